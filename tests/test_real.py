"""The table of real pictures: what it scores is what the pictures say, and what it says follows from its figures."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from benchmarks import real, reference
from four_d import geometry
from four_d.checkpoints import ModelInfo
from four_d.inference import LoadedModel
from four_d.inference.stills import stills
from four_d.types import Cameras, Clip
from four_d.video.fit import fit, resize
from tests.test_export import TINY, tiny_model


def lying(frames: int = 2, size: tuple[int, int] = (6, 8)) -> Clip:
    """A clip of a camera that lies on its side and moves, with motion to both times."""
    generator = torch.Generator().manual_seed(3)
    k = torch.tensor([[7.0, 0, 3.5], [0, 9.0, 2.0], [0, 0, 1]])
    turn = geometry.make_pose(torch.eye(3), torch.tensor([0.1, 0.2, 0.3]))
    poses = torch.stack([torch.eye(4), turn])[:frames]
    return Clip(
        images=torch.rand(frames, 3, *size, generator=generator),
        times=torch.arange(frames) / 30,
        camera_ids=torch.zeros(frames, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses, intrinsics=k.expand(frames, 3, 3)),
        depth=1 + torch.rand(frames, *size, generator=generator),
        valid=torch.ones(frames, *size, dtype=torch.bool),
        motion=torch.rand(2, frames, *size, 3, generator=generator),
        motion_valid=torch.ones(2, frames, *size, dtype=torch.bool),
        query_times=torch.arange(2) / 30,
    )


def quarter(maps: Tensor) -> Tensor:
    """Rows and columns of … h w 3, clockwise."""
    return maps.rot90(-1, (-3, -2))


def test_a_camera_on_its_side_is_turned_with_all_that_it_sees() -> None:
    clip = lying()
    turned = real.upright(clip)
    assert clip.cameras is not None
    assert clip.depth is not None
    assert clip.motion is not None
    assert turned.cameras is not None
    assert turned.depth is not None
    assert turned.motion is not None
    torch.testing.assert_close(turned.images[0, :, 0, -1], clip.images[0, :, 0, 0])  # the top left goes to the right
    before, after = geometry.unproject(clip.depth, clip.cameras), geometry.unproject(turned.depth, turned.cameras)
    # the world is the first camera's: what was below (+y) is now to the left (−x)
    expected = torch.stack([-before[..., 1], before[..., 0], before[..., 2]], -1)
    torch.testing.assert_close(after, quarter(expected), rtol=1e-5, atol=1e-5)
    moved = torch.stack([-clip.motion[..., 1], clip.motion[..., 0], clip.motion[..., 2]], -1)
    torch.testing.assert_close(turned.motion, quarter(moved), rtol=1e-5, atol=1e-5)


def test_answers_come_back_to_the_pixels_that_they_are_of() -> None:
    y, x = torch.meshgrid(torch.linspace(0, 1, 75), torch.linspace(0, 1, 100), indexing="ij")
    ramp = (0.2 + 0.3 * x + 0.4 * y).expand(1, 3, 75, 100)
    fits = fit([(75, 100)], (64, 64), 8)
    back = real._at(resize(list(ramp), fits)[:, 0], fits.of_frames[0])
    assert back is not None
    assert back.shape == (1, 75, 100)
    inside = (slice(None), slice(8, -8), slice(8, -8))  # the edge of what the model sees repeats beyond it
    torch.testing.assert_close(back[inside], ramp[:, 0][inside], atol=4e-3, rtol=0)


def loaded() -> LoadedModel:
    return LoadedModel(tiny_model(), ModelInfo(model=TINY, image_size=(32, 48), frames=4, name="tiny"))


def test_a_model_answers_at_the_pictures_size() -> None:
    clip = Clip(
        images=torch.rand(1, 2, 3, 50, 90), times=torch.tensor([[0.0, 1.0]]), camera_ids=torch.zeros(1, 2).long()
    )
    said = real.Fitted(model=loaded())(clip)
    assert said.depth is not None
    assert said.cameras is not None
    assert said.depth.shape == (1, 2, 50, 90)
    own = loaded()(
        dataclasses.replace(clip, images=resize(list(clip.images[0]), fit([(50, 90)] * 2, (32, 48), 8))[None])
    )
    assert own.cameras is not None
    torch.testing.assert_close(said.cameras.world_from_camera, own.cameras.world_from_camera)
    assert said.cameras.intrinsics[0, 0, 0, 0] > own.cameras.intrinsics[0, 0, 0, 0]  # in the larger picture's pixels


def table(model: float) -> dict[str, Any]:
    absrel = {name: {"model": model, "constant": 0.4, "mean_map": 0.3} for name in ("a", "b")}
    pose = {"a": {"model": {"rotation_deg": 2.0}, "still": {"rotation_deg": 3.0}}}
    return {"absrel": real.with_average(absrel), "pose": pose, "mask": {}, "motion": {}, "digest": "d"}


def test_an_earlier_table_of_the_same_pictures_gives_the_rows_of_the_model_before() -> None:
    whole = real.with_previous(table(0.2), table(0.25), "d")
    assert whole["absrel"]["average"] == {"model": 0.2, "constant": 0.4, "mean_map": 0.3, "previous": 0.25}
    assert whole["pose"]["a"]["previous"] == {"rotation_deg": 2.0}
    assert real.ratio(whole["absrel"]) == pytest.approx(0.8)
    with pytest.raises(SystemExit, match="of other pictures"):
        real.with_previous(table(0.2), table(0.25), "e")


def test_the_page_follows_from_the_figures_and_they_from_their_sets() -> None:
    committed = json.loads(real.TABLE.read_text())
    assert real.TABLE.with_suffix(".md").read_text() == real.page(committed)
    assert {name for name, each in real.REAL.items() if each.depth} == set(committed["absrel"]) - {"average"}
    for row, value in committed["absrel"]["average"].items():
        sets = [rows[row] for name, rows in committed["absrel"].items() if name != "average"]
        assert value == pytest.approx(sum(sets) / len(sets), abs=1e-4)
    assert Path(real.PICTURE).is_file()
    assert np.array(json.loads(real.MEAN_MAP.read_text())["log_relative_depth"]).shape == (8, 8)


def test_stills_are_of_one_size_and_of_what_the_model_says() -> None:
    frames = np.random.default_rng(0).integers(0, 255, (3, 50, 90, 3), np.uint8)
    drawn = stills(loaded()(frames), height=80)
    assert list(drawn) == ["picture", "depth"]
    assert {image.shape for image in drawn.values()} == {drawn["picture"].shape}
    assert drawn["picture"].shape[0] == 80


def test_every_kind_of_training_worlds_counts_in_the_mean_map() -> None:
    kinds = {kind for stage in reference.STAGES.values() for kind in stage.shards}
    assert {real.STANDS_FOR.get(kind, kind) for kind in kinds} == set(reference.HELD_OUT)

"""Held-out pictures of published sets: windows, cameras, masks, keypoints, and which network judged."""

from __future__ import annotations

import dataclasses
import json
import math
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from four_d.abilities import Abilities, Hint, Model, Use
from four_d.data.sampling import disparity_scale
from four_d.datasets import nvidia_dynamic
from four_d.datasets.sequence import Keypoints
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, published_views, run_protocol
from four_d.evaluation.published_views import depth_seen, keypoints_pck, placed
from four_d.evaluation.result import LpipsFacts
from four_d.geometry import make_pose, project, rebase
from four_d.metrics.baselines import StaticCamera
from four_d.protocols.table import PROTOCOLS
from four_d.similarity import LPIPS
from four_d.types import Cameras, Clip, Gaussians, Prediction, Segment
from four_d.windows.cut import owners
from four_d.windows.gaussians import chain
from tests import test_chaining as cards
from tests.helpers import Says
from tests.protocols import test_views as layouts
from tests.protocols import written

WIDTH, HEIGHT = written.WIDTH, written.HEIGHT
GREY = 0.4


def fog(like: Tensor, times: Tensor) -> Gaussians:
    """The same colour wherever one looks: each of these fills the picture."""
    ways = torch.cat([torch.eye(3), -torch.eye(3)]).repeat(4, 1)
    return Gaussians(
        means=(10 * ways)[None].to(like),
        quats=torch.tensor([1.0, 0, 0, 0]).expand(1, len(ways), 4),
        scales=torch.full((1, len(ways), 3), 500.0),
        opacities=torch.full((1, len(ways)), 0.99),
        harmonics=torch.full((1, len(ways), 1, 3), (GREY - 0.5) / 0.28209479177387814),
        offsets=torch.zeros(1, len(times), len(ways), 3),
        offset_times=times[None],
    )


POSED: dict[Hint, Use] = {"intrinsics": "optional", "poses": "optional"}


@dataclasses.dataclass
class Foggy(Model):
    """Says fog; keeps what it was shown."""

    seen: list[Clip] = dataclasses.field(default_factory=list[Clip])
    times: int | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"gaussians"}), hints=POSED, times=self.times)

    def __call__(self, clip: Clip) -> Prediction:
        self.seen.append(clip)
        return Prediction(gaussians=fog(clip.images, clip.times[0]))


def run(model: object, root: Path, protocol: str, **settings: object) -> Published:
    config = PublishedConfig(protocol=protocol, root=str(root), lpips_weights=None, **settings)  # pyright: ignore[reportArgumentType]
    return run_protocol(model, config, patch=4, trained=(32, 32))  # pyright: ignore[reportArgumentType]


def test_dycheck_scores_co_visible_pixels_as_by_hand(tmp_path: Path) -> None:
    layouts.write_dycheck(tmp_path)
    for path in (tmp_path / "apple" / "keypoint" / "2x" / "train").iterdir():
        path.unlink()
    foggy = Foggy()
    result = run(foggy, tmp_path, "dycheck_views", sequences=("apple",), window=(4, 3), long_side=max(WIDTH, HEIGHT))
    assert not result.failed
    assert [(float(c.times[0, 0]), c.times.shape[1]) for c in foggy.seen] == [(0, 4)] * 4  # a clock for each window
    (row,) = result.rows
    errors: dict[str, list[float]] = {"psnr": [], "mpsnr": []}
    for number, (camera, time) in enumerate(layouts.HELD):
        truth = written.world().images[layouts.shown(camera, time)].astype(np.float64) / 255
        squared = ((truth - GREY) ** 2).mean(-1)
        errors["psnr"].append(-10 * math.log10(squared.mean()))
        part = squared if number == 2 else squared[:, : WIDTH // 2]
        errors["mpsnr"].append(-10 * math.log10(part.mean()))
    for name, values in errors.items():
        assert row.scores[f"render_{name}"] == pytest.approx(np.mean(values), abs=0.05)
    assert {"render_mssim", "render_mstructure"} <= row.scores.keys()
    assert "render_mlpips" not in row.scores
    assert row.baselines["copy"].keys() == row.scores.keys()
    assert result.to_dict()["lpips"] == {"network": None, "weights": None}
    assert "LPIPS: not computed, no weights" in result.note


def test_a_model_is_given_the_sets_cameras_in_its_own_pixels(tmp_path: Path) -> None:
    layouts.write_dycheck(tmp_path)
    foggy = Foggy()
    result = run(foggy, tmp_path, "dycheck_views", sequences=("apple",), window=(6, 5), long_side=max(WIDTH, HEIGHT))
    assert 0 <= result.means()["pck_t"] <= 1
    (first, *_) = foggy.seen
    assert first.cameras is not None
    assert first.cameras.known is not None
    assert bool(first.cameras.known.all())
    frames = [layouts.shown(*each) for each in layouts.TRAIN[:6]]
    poses = torch.from_numpy(written.world().poses[frames])
    true = rebase(Cameras(world_from_camera=poses, intrinsics=torch.eye(3).expand(6, 3, 3))).world_from_camera
    torch.testing.assert_close(
        first.cameras.world_from_camera[0, :, :3, :3].double(), true[:, :3, :3], atol=1e-5, rtol=0
    )
    lens = torch.from_numpy(written.world().intrinsics).float()
    scale = torch.tensor([first.images.shape[-1] / WIDTH, first.images.shape[-2] / HEIGHT, 1])[:, None]
    torch.testing.assert_close(first.cameras.intrinsics[0, 0], lens * scale)


def test_nvidia_scores_what_moves_and_every_held_out_picture(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nvidia_dynamic, "NSFF_ROWS", HEIGHT)
    monkeypatch.setattr(nvidia_dynamic, "NSFF_FRAMES", 3)
    layouts.write_nsff(tmp_path)
    result = run(Foggy(), tmp_path, "nvidia_nsff", sequences=("Jumping",), window=(2, 1), long_side=WIDTH)
    assert not result.failed
    scores = result.means()
    assert {"render_psnr", "render_ssim", "render_structure", "render_psnr_dynamic"} == scores.keys()
    assert result.means("copy")["render_psnr"] > scores["render_psnr"]  # all files but one are the same picture


def test_nvidia_gives_the_unit_by_its_bounds(tmp_path: Path) -> None:
    where = tmp_path / "data" / "Balloon1"
    for t in range(12):
        written.picture(where / "images" / f"{t:03d}.png", written.world().images[0])
        written.picture(tmp_path / "results" / "gt" / "Balloon1" / f"v000_t{t:03d}.png", written.world().images[0])
    layouts.bounds(where / "poses_bounds.npy", 12, HEIGHT, 50.0)
    rows = np.load(where / "poses_bounds.npy")
    (sequence,) = PROTOCOLS["nvidia_first"].open(tmp_path, ("Balloon1",))
    assert sequence.bounds is not None
    with pytest.raises(UserError, match="0 < near < far"):
        sequence.bounds()
    rows[:, 15:] = [2.0, 10.0]
    np.save(where / "poses_bounds.npy", rows)
    assert depth_seen(sequence, (40, 50), bounded=False) is None
    depth = depth_seen(sequence, (40, 50), bounded=True)
    assert depth is not None
    assert depth.shape == (12, 40, 50)
    assert float(depth.min()) == pytest.approx(2, abs=0.01)
    clip = Clip(
        images=torch.zeros(12, 3, 40, 50),
        times=torch.arange(12.0),
        camera_ids=torch.zeros(12, dtype=torch.long),
        depth=depth,
        valid=depth > 0,
    )
    assert float(disparity_scale(clip)) == pytest.approx(2 / (0.1 + 0.2 * (0.5 - 0.1)), rel=1e-3)


def test_each_picture_is_of_the_window_in_whose_middle_it_lies() -> None:
    found = owners(torch.tensor([0.0, 2.9, 3.0, 4.5, 6.0]), [(0.0, 3.0), (3.0, 6.0)])
    assert found.tolist() == [0, 0, 0, 1, 1]


@pytest.mark.parametrize(("off", "expected"), [(0.0, 1.0), (20.0, 0.0)])
def test_keypoints_are_carried_by_chaining(off: float, expected: float) -> None:
    """Points of a card that moves, marked in pictures of half the size that the model saw."""
    marked = (0, 2, 12)
    windows = cards.windows(cards.BY_ONE, torch.Generator().manual_seed(0))
    paths, _ = cards.truth(cards.ON_PATCH, cards.PATCH)
    pixels = project(paths.transpose(0, 1), cards.cameras())[0][list(marked)] / 2
    pixels[1:] += off
    visible = torch.ones(3, len(cards.ON_PATCH), dtype=torch.bool)
    given = Keypoints(frames=marked, points=pixels.numpy(), visible=visible.numpy())
    height, width = cards.SIZE
    assert keypoints_pck(partial(chain, windows), cards.SIZE, given, (height // 2, width // 2)) == expected


def test_what_a_model_lacks_is_said_before_anything_is_read(tmp_path: Path) -> None:
    layouts.write_dycheck(tmp_path)

    posing = StaticCamera()
    object.__setattr__(posing, "heads", {"camera": None})
    with pytest.raises(UserError, match="no gaussian head"):
        run(posing, tmp_path, "dycheck_views", sequences=("apple",))

    def silent(_: Clip) -> Prediction:
        return Prediction()

    result = run(Says(silent, outputs=frozenset({"gaussians"})), tmp_path, "dycheck_views", sequences=("apple",))
    assert not result.failed
    assert [missing.reason for missing in result.skipped] == ["this model makes no Gaussians"]


@pytest.mark.parametrize("line", [False, True])
def test_a_model_that_finds_cameras_is_laid_on_the_true_ones(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, line: bool
) -> None:
    """Its world is turned and its unit another; its Gaussians end up where they are, on a straight path too."""
    layouts.write_dycheck(tmp_path)
    poses = torch.from_numpy(written.world().poses[[layouts.shown(*each) for each in layouts.TRAIN]]).float()
    if line:
        poses[:, :3, 3] = poses[0, :3, 3] + torch.linspace(0, 1, len(poses))[:, None] * torch.tensor([0.9, 0.3, -0.4])
        for (camera, time), pose in zip(layouts.TRAIN, poses, strict=True):
            path = tmp_path / "apple" / "camera" / f"{camera}_{time:05d}.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"position": pose[:3, 3].tolist()}))
    turn = torch.tensor([[0.0, -1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])
    true = torch.randn(24, 3, generator=torch.Generator().manual_seed(0))
    seen: list[Segment] = []

    class Own(Model):
        abilities = Abilities(outputs=frozenset({"gaussians"}), hints={"intrinsics": "optional"})

        def __call__(self, clip: Clip) -> Prediction:
            mine = make_pose(turn @ poses[:, :3, :3], 3 * poses[:, :3, 3] @ turn.T)
            assert clip.cameras is not None
            assert clip.cameras.known is not None
            assert not bool(clip.cameras.known.any())
            assert clip.cameras.intrinsics_known is not None
            said = dataclasses.replace(fog(clip.images, clip.times[0]), means=3 * (true @ turn.T)[None])
            cameras = Cameras(world_from_camera=mine[None], intrinsics=clip.cameras.intrinsics)
            return Prediction(gaussians=said, cameras=cameras)

    def watched(*given: object) -> list[Segment]:
        seen.extend(placed(*given))  # pyright: ignore[reportArgumentType]
        return seen

    monkeypatch.setattr(published_views, "placed", watched)
    found = run(Own(), tmp_path, "dycheck_views", sequences=("apple",), window=(12, 11))
    assert not found.failed
    assert len(seen) == 1
    torch.testing.assert_close(seen[0].gaussians.means, true, atol=1e-3, rtol=0)


def test_pictures_count_where_keypoints_cannot_be_followed(tmp_path: Path) -> None:
    where = layouts.write_dycheck(tmp_path)
    next((where / "keypoint" / "2x" / "train").glob("0_*.json")).unlink()
    result = run(Foggy(), tmp_path, "dycheck_views", sequences=("apple",), window=(6, 5))
    assert "render_psnr" in result.means()
    assert "pck_t" not in result.means()
    assert [missing.reason for missing in result.skipped] == ["no pck_t: no keypoint is marked in two frames"]
    assert not result.failed


def test_a_video_of_fewer_frames_than_the_models_has_them_repeated(tmp_path: Path) -> None:
    layouts.write_dycheck(tmp_path)
    foggy = Foggy()
    foggy.times = 14
    (row,) = run(foggy, tmp_path, "dycheck_views", sequences=("apple",)).rows
    _, seen = foggy.seen  # the whole video, in whose world Gaussians are; and the Gaussians
    assert seen.times.shape == (1, 14)
    assert len(seen.times.unique()) == 14
    assert "render_mpsnr" in row.scores


def test_the_network_that_judged_is_known_by_its_weights() -> None:
    torch.manual_seed(0)
    network = LPIPS("alex")
    facts = LpipsFacts.of(network)
    assert facts is not None
    assert facts.network == "alex"
    assert LpipsFacts.of(network) == facts
    with torch.no_grad():
        network.linear[0][0] += 1
    assert LpipsFacts.of(network) != facts
    assert LpipsFacts.of(None) is None

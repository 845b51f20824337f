"""A fit without a mask or tracks: what a feed-forward model sees stands in for them, or one clear sentence does."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from four_d.abilities import Abilities, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.cli.program import main
from four_d.errors import UserError
from four_d.fitting import FitRequest, fit
from four_d.fitting.clip import write_clip
from four_d.fitting.request import AUTO
from four_d.fitting.seen import INTERVALS, find_model, grow, look, moving, plan_blocks, write_masks, write_tracks
from four_d.fitting.tracks import read_any
from four_d.inference import LoadedModel
from four_d.losses.tracked_pixels import read_tracks
from four_d.scene import DeformableSceneConfig
from four_d.types import Clip, Prediction
from tests.test_scene import FRAMES, SIZE, SMALL, footage, masks_of

STEP = 3.0
"""Pixels that everything moves to the right from frame to frame, in the model below."""
PERIOD = 0.04
"""Seconds between the frames of a folder of images."""


class Shifts(ModelModule):
    """A model with a track head that sees all move to the right, and what is not black as moving."""

    def __init__(self, likely: float = 0.9, seen: float = 1.0) -> None:
        super().__init__()
        self.register_buffer("here", torch.zeros(()))
        self.likely, self.seen = likely, seen

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"dynamic", "pixel_tracks", "pixel_tracks_visible"}), points=True)

    def forward(self, clip: Clip) -> Prediction:
        bright = (clip.images.amax(2) > 0.3).float() * self.likely
        if clip.query_points is None:
            return Prediction(dynamic=bright)
        frames = (clip.times / PERIOD)[..., None, None]
        ahead = clip.query_points[:, None, :, 1:] + frames * torch.tensor([STEP, 0.0])
        return Prediction(
            dynamic=bright, pixel_tracks=ahead, pixel_tracks_visible=torch.full_like(ahead[..., 0], self.seen)
        )


def loaded(**settings: float) -> LoadedModel:
    spec = DeformableSceneConfig(frames=4, gaussians=1, image_size=(SIZE, SIZE))  # of its facts only the sizes count
    return LoadedModel(Shifts(**settings), ModelInfo(model=spec, image_size=(SIZE, SIZE), frames=4), Path("shifts"))


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> FitRequest:
    """A bright square that moves to the right by `STEP` pixels a frame, and its mask."""
    folder = tmp_path_factory.mktemp("video")
    given = footage(folder)
    for index in range(FRAMES):
        picture = np.zeros((SIZE, SIZE, 3), np.uint8)
        left = 4 + int(STEP) * index
        picture[10:20, left : left + 8] = 200
        Image.fromarray(picture).save(given.video / f"{index:02d}.png")
        Image.fromarray(picture[..., 0]).save(masks_of(given) / f"{index:02d}.png")
    return given


def test_masks_of_the_model_are_files_as_a_user_gives_them(request_: FitRequest, tmp_path: Path) -> None:
    seen = look(loaded(), request_.video, 300)
    write_masks(seen, tmp_path / "masks")
    theirs, ours = (
        write_clip(request_.video, folder, SIZE, tmp_path / name)
        for folder, name in ((masks_of(request_), "a"), (tmp_path / "masks", "b"))
    )
    np.testing.assert_array_equal(theirs.masks, ours.masks)


def test_a_mask_of_a_video_of_another_shape_is_where_the_object_is(request_: FitRequest, tmp_path: Path) -> None:
    wide = tmp_path / "wide"
    wide.mkdir()
    for index in range(3):
        picture = np.zeros((40, 100, 3), np.uint8)
        picture[10:30, 30 + 5 * index : 60] = 255
        Image.fromarray(picture).save(wide / f"{index}.png")
    write_masks(look(loaded(), wide, 300), tmp_path / "masks")
    found = np.asarray(Image.open(tmp_path / "masks" / "00001.png")) > 0
    assert found.shape == (40, 100)
    truth = np.zeros_like(found)
    truth[10:30, 35:60] = True
    assert (found & truth).sum() / (found | truth).sum() > 0.8


def test_faint_pixels_count_where_they_hang_together_with_likely_ones() -> None:
    within = torch.zeros(3, 4, 12, dtype=torch.bool)
    within[:, 1, :5] = True
    within[:, 1, 8:] = True
    seeds = torch.zeros_like(within)
    seeds[0, 1, 0] = True
    found = grow(seeds, within)
    assert found[:, 1, :5].all()
    assert found.sum() == 15
    assert not grow(torch.zeros_like(within), within).any()


def test_tracks_go_forward_and_backward_at_all_intervals(request_: FitRequest, tmp_path: Path) -> None:
    seen = look(loaded(), request_.video, 300)
    clip = write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")
    number = write_tracks(seen, clip, tmp_path / "tracks.npz")
    pixels, visible = read_any(tmp_path / "tracks.npz", (FRAMES,))
    assert pixels.shape == (number, FRAMES, 2)
    shown = visible > 0.5
    assert (shown.sum(1) >= 2).all()
    gaps = {tuple(np.diff(np.flatnonzero(np.isfinite(row[:, 0])))) for row in pixels}
    assert {1, 2, 4} <= {step for steps in gaps for step in steps}
    column, row = np.nan_to_num(pixels).astype(int)[shown].T
    frame = np.nonzero(shown)[1]
    assert clip.masks[frame, row.clip(0, SIZE - 1), column.clip(0, SIZE - 1)].all(), "on the object where they are seen"
    # this model's world moves to the right also when time runs backward: only what goes on with the object stays seen
    assert np.nanmax(np.where(shown, pixels[..., 0], np.nan), axis=1).max() <= 4 + STEP * (FRAMES - 1) + 8


def test_blocks_are_of_the_models_length_and_of_frames_that_there_are() -> None:
    shown = np.zeros(50, bool)
    shown[10:40] = True
    blocks = plan_blocks(shown, 6)
    assert all(shown[rows[0]] and 2 <= len(rows) <= 6 and min(rows) >= 0 and max(rows) < 50 for rows in blocks)
    assert {abs(rows[1] - rows[0]) for rows in blocks} == set(INTERVALS)
    assert {rows[1] > rows[0] for rows in blocks} == {True, False}
    assert all(len(rows) == 6 for rows in plan_blocks(shown, 6, exact=6))
    assert plan_blocks(np.array([True, False]), 6) == [[0, 1]]


def test_what_a_model_does_not_see_is_said_with_the_remedy(request_: FitRequest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"sees nothing that moves in .*; give the object's mask with --mask"):
        write_masks(look(loaded(likely=0.4), request_.video, 300), tmp_path / "masks")
    clip = write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")
    with pytest.raises(UserError, match=r"follows no point of the object in .*; leave out --tracks auto"):
        write_tracks(look(loaded(seen=0.1), request_.video, 300), clip, tmp_path / "tracks.npz")
    assert {each.name for each in tmp_path.iterdir()} == {"clip"}
    with pytest.raises(UserError, match="model is for a mask or tracks that are not given"):
        replace(request_, model=Path("checkpoints/unified-base"))


def test_models_that_cannot_say_it_are_refused(request_: FitRequest, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"dgs_lrm-base needs intrinsics and poses.*--model"):
        find_model(Path("checkpoints/dgs_lrm-base"))
    model = loaded()
    blind = replace(model, model=Blind())
    with pytest.raises(UserError, match=r"does not say what moves.*give the object's with --mask"):
        write_masks(look(blind, request_.video, 300), tmp_path / "masks")
    clip = write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")
    with pytest.raises(UserError, match="follows no points; leave out --tracks auto"):
        write_tracks(look(blind, request_.video, 300), clip, tmp_path / "tracks.npz")
    fit(replace(request_, steps=1), tmp_path / "scene", SMALL)
    with pytest.raises(UserError, match="is a scene of one video"):
        find_model(tmp_path / "scene" / "scene")


class Blind(Shifts):
    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"depth"}))


def test_a_fit_asks_the_model_once_and_resumes_from_its_files(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path | None] = []

    def found(path: Path | None, device: str) -> LoadedModel:
        calls.append(path)
        return loaded()

    monkeypatch.setattr("four_d.fitting.stages.find_model", found)
    bare, out = replace(request_, mask=None, tracks=AUTO, steps=2), tmp_path / "fit"
    assert fit(bare, out, SMALL).exit_code == 0
    assert {"model_masks", "model_tracks.npz", "tracks.npz"} <= {each.name for each in out.iterdir()}
    assert calls == [None]
    times, pixels, _ = read_tracks(out / "tracks.npz")
    assert pixels.shape[1] == len(times) == FRAMES
    assert fit(bare, out, SMALL).exit_code == 0
    assert calls == [None]
    kept = json.loads((out / "fit.json").read_text())
    del kept["model"]  # of a fit that began before the choice was there
    (out / "fit.json").write_text(json.dumps(kept))
    assert fit(bare, out, SMALL).exit_code == 0


def test_the_reference_model_gives_masks_and_tracks(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("four_d.fitting.seen.ANCHORS", 1)
    seen = look(find_model(None), request_.video, 300)
    assert moving(seen).shape == (FRAMES, *seen.fits.model)
    clip = write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")
    assert write_tracks(seen, clip, tmp_path / "tracks.npz") > 10


def test_the_command_line_knows_auto(request_: FitRequest, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", str(request_.video), "--object", str(request_.object), "--out", str(tmp_path / "fit")]
    assert main([*words, "--tracks", "auto", "--model", str(tmp_path / "none")]) != 0
    assert "none does not exist" in capsys.readouterr().err

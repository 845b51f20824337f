"""Pictures of a clip: they exist, show what they say, and need no more than the clip has."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from four_d.data.contract import RawClip
from four_d.data.shards import finalise, write_shard
from four_d.data.show import draw, show
from four_d.drawing import draw_skeleton, point_colours
from four_d.errors import UserError
from tests.helpers import box_clip, without_surface
from tests.keypoint_scene import NAMES, chain_clip


@pytest.fixture(scope="module")
def clip() -> RawClip:
    return box_clip(seed=1, frames=5, cameras=2, size=(24, 32))


def test_files(tmp_path: Path, clip: RawClip) -> None:
    write_shard(tmp_path / "data", 0, [clip])
    finalise(tmp_path / "data", "boxes")
    paths = show(tmp_path / "data", clip.key, tmp_path / "out")
    assert [path.name for path in paths] == [f"{clip.key}-{name}.png" for name in ("frames", "tracks", "cameras")]
    assert sorted(paths) == sorted((tmp_path / "out").iterdir())
    for by_number, by_key in zip(show(tmp_path / "data", 0, tmp_path / "again"), paths):
        np.testing.assert_array_equal(np.asarray(Image.open(by_number)), np.asarray(Image.open(by_key)))
    with pytest.raises(UserError, match="no clip '3'"):
        show(tmp_path / "data", 3, tmp_path / "out")


def test_the_frames_are_in_the_sheet(clip: RawClip) -> None:
    """Pixels of the first image, enlarged, stand somewhere in the sheet."""
    sheet = draw(clip)["frames"]
    wanted = clip.images[0].repeat(4, axis=0).repeat(4, axis=1)
    h, w = wanted.shape[:2]
    starts = np.argwhere((sheet[: 1 - h, : 1 - w] == wanted[0, 0]).all(-1))
    assert any((sheet[y : y + h, x : x + w] == wanted).all() for y, x in starts)


def test_sources_without_a_surface(clip: RawClip) -> None:
    assert set(draw(without_surface(clip))) == {"frames", "tracks", "cameras"}


def test_skeletons_are_drawn_over_the_frames() -> None:
    raw = chain_clip(2, frames=4, size=48)
    drawn = draw(raw)
    assert set(drawn) == {"frames", "keypoints", "cameras"}
    assert raw.keypoints is not None
    inks = point_colours(len(NAMES))
    for ink in inks[1:]:
        assert (drawn["keypoints"] == ink).all(-1).sum() > 60, "dots, bones and the legend"
    image, known = np.zeros((40, 40, 3), np.uint8), np.array([True, True, False])
    pixels = np.array([[5.0, 5], [30, 5], [20, 30]])
    plain = draw_skeleton(image, pixels, known, np.array([True, False, True]), [(0, 1), (1, 2), (0, 0)])
    first, second, third = (np.argwhere((plain == ink).all(-1)) for ink in point_colours(3))
    assert len(first) > 5
    assert second[:, 1].max() > 29
    assert second[:, 1].min() < 10, "its bone reaches to the first"
    assert len(third) == 0, "unknown, and so is its bone"
    assert not plain[6, 30].any(), "a ring"


def test_images_alone(clip: RawClip) -> None:
    info = dataclasses.replace(clip.info, surface_times=None)
    assert set(draw(RawClip(key="bare", info=info, images=clip.images))) == {"frames"}


def test_cameras_alone(clip: RawClip) -> None:
    drawn = draw(dataclasses.replace(clip, info=dataclasses.replace(clip.info, surface_times=None), surface=None))
    assert set(drawn) == {"frames", "cameras"}
    assert (drawn["cameras"] != 255).any(-1).mean() > 0.005


def test_every_camera_is_drawn_in_its_colour() -> None:
    two = draw(box_clip(seed=1, frames=3, cameras=2, size=24))["cameras"]
    for ink in ((191, 0, 0), (0, 191, 191)):
        assert (two == ink).all(-1).sum() > 50

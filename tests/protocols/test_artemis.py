"""Artemis' animals in the layout that its README states: cameras, mattes, and videos that cover part of a turn."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from data_prep.importers.datasets import import_dataset
from four_d.data.shards import ShardReader
from four_d.datasets import artemis
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols.written import picture, text

VIEWS, FRAMES, HEIGHT, WIDTH = 36, 4, 6, 8
K = np.array([[50.0, 0, 4.25], [0, 60, 3.5], [0, 0, 1]])


def camera(degrees: float, height: float = 1.0) -> NDArray[np.float64]:
    """world_from_camera on a circle of radius 3 in a world whose up is +y, looking at (1, 1, 0)."""
    angle = np.radians(degrees)
    centre = np.array([1 + 3 * np.sin(angle), 1 + height, 3 * np.cos(angle)])
    ahead = np.array([1, 1, 0]) - centre
    ahead /= np.linalg.norm(ahead)
    right = np.cross(ahead, [0, 1, 0])
    right /= np.linalg.norm(right)
    pose = np.eye(4)
    pose[:3] = np.stack([right, np.cross(ahead, right), ahead, centre], axis=1)
    return pose


POSES = [camera(10 * view) for view in range(VIEWS)]


def colour(view: int, at: int) -> tuple[int, int, int]:
    return 6 * view + 20, 50 * at + 20, 128


def write_artemis(root: Path, frames: int = FRAMES, poses: list[NDArray[np.float64]] = POSES) -> None:
    """A cat that runs, each picture of one colour; a second motion is listed whose pictures are not there."""
    cat = root / "cat"
    text(cat / "sequences", f"run {frames}\nwalk 7\n")
    # a row is the third, first, second and fourth column of [R T]
    text(cat / "CamPose.inf", "".join(" ".join(map(str, pose[:3, [2, 0, 1, 3]].T.ravel())) + "\n" for pose in poses))
    lens = "{} \n 50 0 4.25 \n 0 60 3.5 \n 0 0 1 \n \n"
    text(cat / "Intrinsic.inf", "".join(lens.format(view) for view in range(len(poses))))
    matte = np.zeros((HEIGHT, WIDTH), np.uint8)
    matte[:, :3], matte[:, 3] = 255, 127
    for at in range(frames):
        for view in range(len(poses)):
            where = cat / "img" / "run" / str(at)
            image = np.full((HEIGHT, WIDTH, 3), colour(view, at), np.uint8)
            picture(where / f"img_{view:04d}.jpg", image, quality=100, subsampling=0)
            picture(where / f"img_{view:04d}_alpha.png", matte)


def shown(images: NDArray[np.uint8]) -> list[tuple[int, int]]:
    """View and time of each picture, by its colour."""
    means = images.reshape(len(images), -1, 3).astype(float).mean(1)
    return [(round((red - 20) / 6), round((green - 20) / 50)) for red, green, _ in means]


@pytest.mark.parametrize("part", ["", "cat"])
def test_every_view_of_a_motion(part: str, tmp_path: Path) -> None:
    write_artemis(tmp_path)
    (sequence,) = DATASETS["artemis"].open(tmp_path / part)
    assert sequence.name == "cat/run"
    assert sequence.frames == VIEWS * FRAMES
    assert sequence.times[:FRAMES] == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30])
    assert sequence.camera_ids is not None
    assert sequence.camera_ids[FRAMES - 1 : FRAMES + 1] == (0, 1)
    part_of_it = sequence.take([2, 5 * FRAMES + 1])
    assert shown(part_of_it.images()) == [(0, 2), (5, 1)]
    assert part_of_it.cameras is not None
    cameras = part_of_it.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), [POSES[0], POSES[5]], atol=1e-12)
    expected = K + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    np.testing.assert_allclose(cameras.intrinsics.numpy(), [expected] * 2, atol=1e-12)
    assert part_of_it.masks is not None
    masks = part_of_it.masks()
    assert masks[:, :, :3].all()
    assert not masks[:, :, 3:].any()


@pytest.mark.parametrize(
    ("degrees", "views"),
    [(0, [0, 0, 0, 0]), (40, [0, 1, 3, 4]), (90, [0, 3, 6, 9]), (140, [0, 5, 9, 14]), (180, [0, 6, 12, 18])],
)
def test_a_video_covers_what_its_name_says(degrees: int, views: list[int], tmp_path: Path) -> None:
    """Four frames: a third of the way from one to the next; at a tie (45°) either neighbour."""
    write_artemis(tmp_path)
    (sequence,) = PROTOCOLS[f"artemis_{degrees}"].open(tmp_path, ("cat/run",))
    assert sequence.tasks == ("views",)
    assert shown(sequence.images()) == list(zip(views, range(FRAMES), strict=True))
    assert sequence.camera_ids is None
    assert sequence.times == pytest.approx([0, 1 / 30, 2 / 30, 3 / 30])
    assert sequence.masks is not None
    assert sequence.views is not None
    held = sequence.views()
    pairs = shown(held.images)
    assert [view for view, _ in pairs] == list(held.camera_ids)
    assert held.times == pytest.approx([at / 30 for _, at in pairs])
    for at in range(FRAMES):
        there = [view for view, time in pairs if time == at]
        assert {min((4.5, 13.5, 22.5, 31.5), key=lambda want: abs(view - want)) - view for view in there} <= {-0.5, 0.5}
        assert len(there) >= 3
    assert not set(pairs) & set(zip(views, range(FRAMES), strict=True))
    np.testing.assert_allclose(
        held.cameras.world_from_camera.numpy(), [POSES[view] for view in held.camera_ids], atol=1e-12
    )
    assert held.dynamic is not None
    assert held.dynamic[:, :, :3].all()


def test_the_view_of_the_same_height_is_taken_of_several_rings() -> None:
    poses = np.stack([*POSES, *(camera(10 * view, height=3.0) for view in range(VIEWS))])
    assert artemis.nearest_views(poses, [0.0, 90.0, -40.0, 180.0], "cat") == [0, 9, 32, 18]
    turned = np.stack([np.diag([1.0, -1, -1, 1]) @ pose for pose in poses])  # of a world with another up
    assert artemis.nearest_views(turned, [0.0, 90.0, -40.0, 180.0], "cat") == [0, 9, 32, 18]


def test_too_few_views_and_damaged_files_are_named(tmp_path: Path) -> None:
    write_artemis(tmp_path / "half", poses=POSES[:18], frames=2)
    with pytest.raises(UserError, match=r"cat/run: no view stands within 20° of .*the nearest is"):
        PROTOCOLS["artemis_40"].open(tmp_path / "half")
    cat = tmp_path / "half" / "cat"
    text(cat / "sequences", "run 3\n")
    with pytest.raises(UserError, match="has 2 folders of frames, not 0 to 2 as sequences says"):
        DATASETS["artemis"].open(tmp_path / "half")
    text(cat / "sequences", "run two\n")
    with pytest.raises(UserError, match="not a list like 'run 30'"):
        DATASETS["artemis"].open(tmp_path / "half")
    text(cat / "sequences", "run 2\n")
    text(cat / "Intrinsic.inf", "0 \n 50 0 4.25 \n 0 60 3.5 \n 0 0 1 \n \n")
    with pytest.raises(UserError, match=r"Intrinsic\.inf has 1 views, CamPose\.inf 18"):
        DATASETS["artemis"].open(tmp_path / "half")
    (cat / "img" / "run" / "1" / "img_0003_alpha.png").unlink()
    write = "".join(f"{view} \n 50 0 4.25 \n 0 60 3.5 \n 0 0 1 \n \n" for view in range(18))
    text(cat / "Intrinsic.inf", write)
    with pytest.raises(UserError, match=r"img_0003_alpha\.png is missing; expected layout"):
        DATASETS["artemis"].open(tmp_path / "half")
    with pytest.raises(UserError, match="expected layout"):
        DATASETS["artemis"].open(tmp_path)


def test_a_motion_becomes_shards(tmp_path: Path) -> None:
    """Lengths are not metres, and no mask of what moves is made of the mattes."""
    write_artemis(tmp_path / "src", frames=2, poses=POSES[::9])
    manifest = import_dataset(DATASETS["artemis"], tmp_path / "src", tmp_path / "out", checked=False)
    assert manifest.sources["artemis"].licence == "none stated"
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.info.camera_ids == [0, 0, 1, 1, 2, 2, 3, 3]
    assert not clip.info.metric
    assert clip.world_from_camera is not None
    np.testing.assert_allclose(clip.world_from_camera[::2], POSES[::9], atol=1e-6)

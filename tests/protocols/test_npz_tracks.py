"""Files in TAPVid-3D's form: what is read is what was written, and what is wrong is named."""

from __future__ import annotations

import dataclasses
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from four_d import geometry
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.protocols.table import PROTOCOLS
from tests.protocols import tracked

KEYS = ("images_jpeg_bytes", "tracks_XYZ", "visibility", "fx_fy_cx_cy")


def opened(root: Path, protocol: str, *only: str) -> list[Sequence]:
    return PROTOCOLS[protocol].open(root, only or None)


def everything(sequence: Sequence) -> None:
    assert sequence.cameras is not None
    assert sequence.tracks is not None
    sequence.images(), sequence.cameras(), sequence.tracks()


@pytest.fixture
def world(tmp_path: Path) -> Path:
    tracked.worldtrack(tmp_path)
    return tmp_path


@pytest.mark.parametrize("objects", [False, True])
def test_what_is_read_is_what_was_written(world: Path, objects: bool) -> None:
    path = world / "po_mini" / "clip.npz"
    tracked.write(path, tracked.content(tracked.queries(), poses=True, objects=objects))
    (sequence,) = opened(world, "worldtrack", "po_mini")
    known = tracked.scene()
    assert (sequence.name, sequence.frames, sequence.tasks) == ("po_mini/clip", tracked.FRAMES, ("tracks",))
    assert sequence.times[1] == pytest.approx(1 / 30)
    images = sequence.images()
    assert images.shape == known.images.shape
    assert np.abs(images.astype(int) - known.images).mean() < 20, "JPEG of a small picture"
    assert sequence.cameras is not None
    cameras = geometry.rebase(sequence.cameras())
    torch.testing.assert_close(cameras.world_from_camera, known.cameras.world_from_camera, atol=1e-5, rtol=0)
    torch.testing.assert_close(cameras.intrinsics, known.cameras.intrinsics)
    assert sequence.tracks is not None
    truth = sequence.tracks()
    assert truth.known.all()
    np.testing.assert_allclose(truth.queries[:, [1, 2, 0]], tracked.queries(), atol=1e-3)
    world_points = geometry.transform(cameras.world_from_camera, torch.from_numpy(truth.points))
    x, y, t = tracked.queries().astype(int).T
    torch.testing.assert_close(world_points, known.places[:, t, y, x], atol=1e-5, rtol=0)
    assert np.array_equal(truth.visible, known.visible[:, t, y, x].numpy())


def test_worldtrack_takes_what_the_first_frame_sees(world: Path) -> None:
    arrays = tracked.content(tracked.queries((0, 3)), poses=True)
    count = arrays["tracks_XYZ"].shape[1]
    arrays["tracks_XYZ"][2, 5] = np.nan
    tracked.write(world / "ds_mini" / "clip.npz", arrays)
    (sequence,) = opened(world, "worldtrack", "ds_mini/clip")
    assert sequence.tracks is not None
    truth = sequence.tracks()
    seen = arrays["visibility"][0]
    assert len(truth.queries) == seen.sum() < count
    assert not truth.queries[:, 0].any()
    assert (~truth.known).sum() == 1
    assert not truth.known[2, 5]
    assert not truth.visible[2, 5]
    assert not truth.points[2, 5].any()


def test_worldtrack_takes_64_frames(world: Path) -> None:
    arrays = tracked.content(tracked.queries(), poses=True)
    for key in ("images_jpeg_bytes", "tracks_XYZ", "visibility", "extrinsics_w2c"):
        arrays[key] = np.concatenate([arrays[key]] * 14)
    tracked.write(world / "ds_mini" / "clip.npz", arrays)
    (sequence,) = opened(world, "worldtrack", "ds_mini")
    assert sequence.frames == len(sequence.images()) == len(sequence.times) == 64
    assert sequence.cameras is not None
    assert sequence.tracks is not None
    assert len(sequence.cameras().world_from_camera) == len(sequence.tracks().points) == 64


def test_tapvid3d_takes_the_queries_of_the_file_and_all_frames(tmp_path: Path) -> None:
    tracked.tapvid3d(tmp_path)
    sequences = opened(tmp_path, "tapvid3d")
    assert [sequence.name for sequence in sequences] == ["adt/clip", "drivetrack/clip", "pstudio/clip"]
    assert [sequence.times[1] for sequence in sequences] == pytest.approx([1 / 30, 1 / 10, 1 / 30])
    for sequence in sequences:
        assert sequence.tracks is not None
        assert sequence.cameras is not None
        np.testing.assert_array_equal(sequence.tracks().queries[:, [1, 2, 0]], tracked.queries((0, 2)))
        known = sequence.cameras().known
        assert known is not None
        assert bool(known.all()) == sequence.name.startswith("pstudio"), "only cameras that stand still are known"
    assert opened(tmp_path, "tapvid3d", "adt")[0].name == "adt/clip"


def test_every_clip_of_a_source_weighs_alike(world: Path) -> None:
    tracked.write(world / "po_mini" / "b.npz", tracked.content(tracked.queries(), poses=True))
    weights = {sequence.name: sequence.weight for sequence in opened(world, "worldtrack")}
    assert weights["po_mini/b"] == weights["po_mini/clip"] == 0.5
    assert weights["ds_mini/clip"] == 1
    assert opened(world, "worldtrack", "po_mini/b")[0].weight == 1


def test_a_folder_that_is_missing_is_named(world: Path) -> None:
    for path in (world / "po_mini").iterdir():
        path.unlink()
    with pytest.raises(UserError, match=r"po_mini/\*.npz is missing; expected layout: .*adt_mini,pstudio_mini"):
        opened(world, "worldtrack")
    (world / "po_mini").rmdir()
    with pytest.raises(UserError, match="po_mini is missing; expected layout"):
        opened(world, "worldtrack")
    assert len(opened(world, "worldtrack", "adt_mini", "ds_mini")) == 2
    with pytest.raises(UserError, match="there is no sequence tum; choose from adt_mini"):
        opened(world, "worldtrack", "tum")
    with pytest.raises(UserError, match=r"no sequence adt_mini/x; .* such as adt_mini/clip"):
        opened(world, "worldtrack", "adt_mini/x")


@pytest.mark.parametrize("key", [*KEYS, "extrinsics_w2c"])
def test_a_key_that_is_missing_is_named(world: Path, key: str) -> None:
    arrays = tracked.content(tracked.queries(), poses=True)
    del arrays[key]
    tracked.write(world / "adt_mini" / "clip.npz", arrays)
    with pytest.raises(UserError, match=rf"adt_mini/clip.npz: {key} is missing .*the file has .*expected layout"):
        opened(world, "worldtrack", "adt_mini")


def test_tapvid3d_needs_queries(tmp_path: Path) -> None:
    tracked.tapvid3d(tmp_path)
    arrays = tracked.content(tracked.queries(), poses=True)
    del arrays["queries_xyt"]
    tracked.write(tmp_path / "adt" / "clip.npz", arrays)
    with pytest.raises(UserError, match=r"clip.npz: queries_xyt is missing"):
        opened(tmp_path, "tapvid3d")


WRONG = {
    "no tracks": ("visibility", lambda v: v[:, :0], "no tracks"),
    "one axis": ("visibility", lambda v: v[0], "not any any"),
    "fewer points": ("tracks_XYZ", lambda v: v[:, :-1], "tracks_XYZ has the shape"),
    "fewer pictures": ("images_jpeg_bytes", lambda v: v[:-1], "images_jpeg_bytes has the shape"),
    "no picture": ("images_jpeg_bytes", lambda v: np.array([b"x", *v[1:]]), "no.* readable JPEG at frame 0"),
    "a matrix": ("fx_fy_cx_cy", lambda v: np.diag(v[:3]), r"fx_fy_cx_cy has the shape \(3, 3\), not 4"),
    "no focal": ("fx_fy_cx_cy", lambda v: 0 * v, "not fx, fy, cx, cy"),
    "rows of poses": ("extrinsics_w2c", lambda v: v[:, :3], "not 5 4 4"),
    "no poses": ("extrinsics_w2c", lambda v: 0 * v, "not a pose"),
    "a pose lost": ("extrinsics_w2c", lambda v: np.concatenate([v[:3], v[3:] * np.nan]), "not finite at frame 3"),
    "nothing seen": ("visibility", lambda v: v & False, "visibility has no track"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_named_with_file_and_key(world: Path, case: str) -> None:
    key, change, message = WRONG[case]
    arrays = tracked.content(tracked.queries(), poses=True)
    tracked.write(world / "po_mini" / "clip.npz", arrays | {key: change(arrays[key])})
    with pytest.raises(UserError, match=message) as caught:
        everything(*opened(world, "worldtrack", "po_mini"))
    assert "po_mini/clip.npz" in str(caught.value)
    assert key in str(caught.value)
    assert "expected layout" in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("value", "message"), [(99.0, "names frame 99 of a clip of 5"), (0.5, "a frame number"), (-1.0, "a frame number")]
)
def test_queries_of_no_frame_are_named(tmp_path: Path, value: float, message: str) -> None:
    tracked.tapvid3d(tmp_path)
    arrays = tracked.content(tracked.queries(), poses=True)
    arrays["queries_xyt"][3, 2] = value
    tracked.write(tmp_path / "adt" / "clip.npz", arrays)
    (sequence,) = opened(tmp_path, "tapvid3d", "adt")
    with pytest.raises(UserError, match=message):
        everything(sequence)


def test_damaged_files_are_named(world: Path) -> None:
    path = world / "adt_mini" / "clip.npz"
    whole = path.read_bytes()
    for content in (b"nothing", whole[: len(whole) // 2], b""):
        path.write_bytes(content)
        with pytest.raises(UserError, match=r"adt_mini/clip.npz is not a readable npz"):
            opened(world, "worldtrack")


@dataclasses.dataclass
class Harm:
    """Runs a command when it is unpickled."""

    mark: str

    def __reduce__(self) -> object:
        return os.mkdir, (self.mark,)


def test_a_file_that_would_run_code_is_refused(world: Path) -> None:
    mark = world / "harmed"
    arrays = tracked.content(tracked.queries(), poses=True)
    bad = np.empty(tracked.FRAMES, dtype=object)
    bad[:] = [Harm(str(mark))] * tracked.FRAMES
    tracked.write(world / "po_mini" / "clip.npz", arrays | {"images_jpeg_bytes": bad})
    (sequence,) = opened(world, "worldtrack", "po_mini")
    with pytest.raises(UserError, match=r"images_jpeg_bytes cannot be read .*only plain values are read"):
        sequence.images()
    assert not mark.exists()


def test_pictures_of_two_sizes_are_named(world: Path, tmp_path: Path) -> None:
    arrays = tracked.content(tracked.queries(), poses=True, objects=True)
    Image.new("RGB", (8, 8)).save(tmp_path / "small.jpg")
    arrays["images_jpeg_bytes"][2] = (tmp_path / "small.jpg").read_bytes()
    tracked.write(world / "po_mini" / "clip.npz", arrays)
    (sequence,) = opened(world, "worldtrack", "po_mini")
    with pytest.raises(UserError, match=r"several sizes .frame 2 differs"):
        sequence.images()

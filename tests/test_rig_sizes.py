"""Cameras of a rig whose pictures differ in size: each keeps its own in all that goes in and all that is written."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from four_d import cli
from four_d.backbones.hints import HintsConfig
from four_d.errors import UserError
from four_d.formats.cameras import read_cameras
from four_d.geometry import project
from four_d.inference import Known, Result, infer
from four_d.inference.tracks import CROSSES, from_pixels
from four_d.types import Cameras, Clip
from four_d.video.fit import fit, shape_between
from four_d.video.inputs import gather
from tests.test_inference import gradient
from tests.test_inputs import MOTION, motion_model, write_folder
from tests.test_known import hinted, write_model, write_png

try:
    import pycolmap
except ImportError:
    pycolmap = None

Size = tuple[int, int]
LARGER, TURNED = [(48, 64), (60, 80)], [(48, 64), (64, 48)]
"""Of one shape and two sizes; landscape and portrait."""
RIGS = pytest.mark.parametrize("sizes", [LARGER, TURNED, [*LARGER, (64, 48)]])


def rig(sizes: list[Size], frames: int = 3) -> list[np.ndarray]:
    return [gradient(*size, frames) for size in sizes]


def folders(path: Path, sizes: list[Size], frames: int = 3) -> list[Path]:
    return [write_folder(path / f"cam{i}", each) for i, each in enumerate(rig(sizes, frames))]


def of_frames(sizes: list[Size], frames: int = 3) -> list[Size]:
    return sizes * frames


# what goes in


@pytest.mark.parametrize("kind", ["folders", "arrays", "tensors"])
def test_pictures_stay_as_they_came(kind: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    cameras: list[Any] = rig(TURNED, 2)
    if kind == "folders":
        cameras = folders(tmp_path, TURNED, 2)
    if kind == "tensors":
        cameras = [torch.from_numpy(each).permute(0, 3, 1, 2) / 255 for each in cameras]
    source = gather(cameras)
    for index, frame in enumerate(source.frames):
        np.testing.assert_array_equal(frame, rig(TURNED, 2)[index % 2][index // 2])
    assert (source.floats is not None) == (kind == "tensors")
    names = [str(tmp_path / f"cam{i}") if kind == "folders" else f"camera {i}" for i in range(2)]
    told = f"{names[0]} is 64×48 (25% unseen), {names[1]} is 48×64 (25% unseen): the model sees one shape"
    assert told in capfd.readouterr().err
    gather(rig(LARGER, 2))
    assert "unseen" not in capfd.readouterr().err


@RIGS
def test_the_grid_is_one_and_no_camera_loses_more_than_it_must(sizes: list[Size]) -> None:
    fits = fit(of_frames(sizes), (32, 48), 8)
    assert fits.originals == of_frames(sizes)
    assert {own.model for own in fits.of_frames} == {fits.model}
    height, width = shape_between(sizes)
    shapes = [columns / rows for rows, columns in sizes]
    assert width / height == pytest.approx((min(shapes) * max(shapes)) ** 0.5)
    for own in fits.of_frames:
        seen = [side / own.scale for side in own.model]
        assert all(part <= side + 1e-9 for part, side in zip(seen, own.original, strict=True))
        assert any(part == pytest.approx(side) for part, side in zip(seen, own.original, strict=True))


def test_each_camera_is_seen_as_if_it_were_alone() -> None:
    """Of one shape, so that the grid is the same with and without the other camera."""
    model = motion_model()
    both = model(rig(LARGER))
    for camera, frames in enumerate(rig(LARGER)):
        alone = model(frames)
        assert both.fits.of_frames[camera::2] == alone.fits.of_frames
        torch.testing.assert_close(both.images[camera::2], alone.images)
        np.testing.assert_array_equal(both.frames[camera::2], alone.frames)


@RIGS
def test_a_place_is_of_the_colour_that_the_original_has_there(sizes: list[Size]) -> None:
    """Red and green tell where a model pixel is in its own original."""
    result = motion_model()(rig(sizes))
    rows, columns = result.fits.model
    y, x = (torch.from_numpy(each).double() + 0.5 for each in np.mgrid[2 : rows - 2, 2 : columns - 2])
    for frame, (height, width) in enumerate(of_frames(sizes)):
        at = result.fits.points_to_original(torch.stack([x, y], dim=-1), torch.tensor(frame))
        red, green = result.images[frame, :2, 2:-2, 2:-2].double()
        torch.testing.assert_close(red, (at[..., 0] - 0.5) / width, atol=8e-3, rtol=0)
        torch.testing.assert_close(green, (at[..., 1] - 0.5) / height, atol=8e-3, rtol=0)


# what comes out


def reproject(result: Result) -> None:
    """A point in space is at one place of the picture, by model pixels as by each camera's own."""
    assert result.prediction.cameras is not None
    assert result.cameras is not None
    points = torch.randn(len(result.times), 5, 3, generator=torch.Generator().manual_seed(0))
    points = points + torch.tensor([0, 0, 4.0])
    small, _ = project(points, result.prediction.cameras)
    large, _ = project(points.to(result.cameras.intrinsics), result.cameras)
    for frame, own in enumerate(result.fits.of_frames):
        expected = small[frame] / own.scale + torch.tensor([own.left, own.top])
        torch.testing.assert_close(large[frame].float(), expected, atol=1e-2, rtol=1e-4)


@pytest.mark.parametrize("window", [None, 2])
@RIGS
def test_all_that_is_written_is_in_each_cameras_own_pixels(
    sizes: list[Size], window: int | None, tmp_path: Path
) -> None:
    cameras, out = len(sizes), tmp_path / "out"
    overlap = None if window is None else 1
    result = infer(motion_model(), folders(tmp_path, sizes), out, window=window, overlap=overlap)
    assert [frame.shape[:2] for frame in result.frames] == of_frames(sizes)
    reproject(result)
    table = read_cameras(out / "cameras.json")
    assert table.original_sizes == of_frames(sizes)
    assert result.cameras is not None
    torch.testing.assert_close(table.original.intrinsics, result.cameras.intrinsics.double())
    with np.load(out / "prediction.npz") as arrays:
        np.testing.assert_allclose(arrays["intrinsics_original"], result.cameras.intrinsics.double())
        at_model = torch.from_numpy(arrays["intrinsics"]).double()
    torch.testing.assert_close(result.fits.to_model(table.original.intrinsics), at_model, atol=1e-4, rtol=1e-5)
    for index, name in enumerate(table.images):
        with Image.open(out / "colmap" / "original" / "images" / name) as image:
            np.testing.assert_array_equal(np.asarray(image), gradient(*sizes[index % cameras])[index // cameras])
        with Image.open(out / "colmap" / "model" / "images" / name) as image:
            assert image.size == result.fits.model[::-1]


@pytest.mark.skipif(pycolmap is None, reason="pycolmap is not installed: pip install pycolmap")
@pytest.mark.parametrize("window", [None, 2])
@RIGS
def test_colmap_reads_cameras_of_several_sizes(sizes: list[Size], window: int | None, tmp_path: Path) -> None:
    """Every sighting lies in its own picture, where that picture's camera has the point."""
    infer(motion_model(), folders(tmp_path, sizes), tmp_path / "out", window=window)
    for name in ("model", "original"):
        folder = tmp_path / "out" / "colmap" / name
        model: Any = pycolmap.Reconstruction(str(folder / "sparse" / "0"))  # pyright: ignore
        assert model.num_images() == 3 * len(sizes)
        for image in model.images.values():
            camera = model.cameras[image.camera_id]
            with Image.open(folder / "images" / image.name) as picture:
                assert picture.size == (camera.width, camera.height)
            if name == "original":
                assert (camera.height, camera.width) == sizes[int(re.findall(r"\d+", image.name)[0])]
            places = [point.xy for point in image.points2D]
            assert len(places) > 20
            assert (np.array(places) >= -1e-2).all()
            assert (np.array(places) <= (camera.width + 1e-2, camera.height + 1e-2)).all()
            for point in image.points2D:
                found = image.project_point(model.points3D[point.point3D_id].xyz)
                np.testing.assert_allclose(found, point.xy, atol=0.02)


@pytest.mark.parametrize("window", [None, 2])
def test_points_are_in_the_pixels_of_their_frames(window: int | None) -> None:
    """60, 70 is outside camera 0's pictures, and inside what the model sees of camera 1's."""
    model, cameras = motion_model(), rig([(48, 64), (96, 128)])
    overlap = None if window is None else 1
    result = model(cameras, points=[(20.0, 30.0), (1, 60.0, 70.0)], window=window, overlap=overlap)
    assert result.tracks is not None
    assert result.tracks.pixels is not None
    torch.testing.assert_close(result.tracks.queries, torch.tensor([[0.0, 20, 30], [1, 60, 70]]))
    torch.testing.assert_close(result.tracks.pixels[0, 0], torch.tensor([20.0, 30]), atol=0.05, rtol=0)
    torch.testing.assert_close(result.tracks.pixels[1, 1], torch.tensor([60.0, 70]), atol=0.05, rtol=0)
    for frame in (0, 4):
        with pytest.raises(UserError, match=r"point 60,70 is outside what the model sees; choose x from 0 to 64"):
            model(cameras, points=[(frame, 60.0, 70.0)], window=window, overlap=overlap)


def test_a_point_that_stands_still_in_each_cameras_pictures_does_not_move() -> None:
    pixels = torch.tensor([[10.0, 10], [300, 40]])[:, None].repeat(3, 2, 1)
    pixels[1::2, 1, 0] += 400 * 2 * CROSSES * torch.arange(3)
    times, cameras = [0.0, 0.0, 0.1, 0.1, 0.2, 0.2], [0, 1] * 3
    table = from_pixels(torch.zeros(2, 3), pixels, None, None, times, cameras, [100, 400] * 3)
    assert table.moving.tolist() == [False, True]


def test_the_page_shows_each_camera_and_its_trails(tmp_path: Path) -> None:
    config, videos = MOTION, folders(tmp_path, [(48, 64), (96, 128), (64, 48)])
    run, out = write_model(tmp_path / "run", config), tmp_path / "out"
    command = ["infer", *map(str, videos), "--model", str(run), "--out", str(out), "--points", "20,30", "1,40,60"]
    assert cli.main(command) == 0
    page = (out / "report.html").read_text()
    assert "64 × 48, 128 × 96, 48 × 64" in page


# what is known beforehand


INTRINSICS = [(60, 60, 32, 24), (80, 82, 24, 32)]


def asked(seen: list[Clip]) -> Cameras:
    cameras = seen[-1].cameras
    assert cameras is not None
    return cameras


def test_given_intrinsics_and_cameras_files_are_each_cameras_own(tmp_path: Path) -> None:
    model, seen = hinted()
    out, videos = tmp_path / "out", folders(tmp_path, TURNED)
    result = infer(model, videos, out, known=Known(intrinsics=INTRINSICS))
    table = read_cameras(out / "cameras.json")
    for frame, k in enumerate(table.original.intrinsics):
        assert (k[0, 0], k[1, 1], k[0, 2], k[1, 2]) == INTRINSICS[frame % 2]
    reproject(result)
    told = asked(seen).intrinsics
    model(videos, known=Known(cameras=out / "cameras.json"))
    torch.testing.assert_close(asked(seen).intrinsics, told)
    with pytest.raises(UserError, match="pictures of several sizes; give intrinsics for each"):
        model(videos, known=Known(intrinsics=INTRINSICS[:1]))
    one = Cameras(world_from_camera=torch.eye(4)[None], intrinsics=table.original.intrinsics[:1].float())
    with pytest.raises(UserError, match="pictures of several sizes; give intrinsics for each"):
        model(videos, known=Known(cameras=one))
    with pytest.raises(UserError, match=r"a camera is of 64×48 pictures, frame 0 is 48×64"):
        model(videos[::-1], known=Known(cameras=out / "cameras.json"))


def test_masks_and_depth_of_each_frame_are_of_its_size(tmp_path: Path) -> None:
    """Depth and mask say where in the original a pixel is; on the grid they say the place that the fit says."""
    model, seen = hinted(HintsConfig(intrinsics="optional", depth="optional", masks="optional"))
    videos = folders(tmp_path, TURNED)
    (tmp_path / "depth").mkdir()
    (tmp_path / "mask").mkdir()
    masks: list[np.ndarray] = []
    for index, (height, width) in enumerate(of_frames(TURNED)):
        rows, columns = np.mgrid[:height, :width]
        write_png(tmp_path / "depth" / f"{index}.png", 1000 + 10 * columns + rows)
        masks.append(columns > 0.5 * width)
        Image.fromarray(masks[-1]).save(tmp_path / "mask" / f"{index}.png")
    known = Known(depth=tmp_path / "depth", depth_unit=0.001)
    result = model(videos, mask=tmp_path / "mask", known=known)
    depth = seen[-1].depth
    assert depth is not None
    assert result.mask is not None
    rows, columns = result.fits.model
    y, x = (torch.from_numpy(each).double() + 0.5 for each in np.mgrid[:rows, :columns])
    for frame, (_, width) in enumerate(of_frames(TURNED)):
        at = result.fits.points_to_original(torch.stack([x, y], dim=-1), torch.tensor(frame))
        expected = (1000 + 10 * (at[..., 0] - 0.5) + at[..., 1] - 0.5) / 1000
        torch.testing.assert_close(depth[0, frame].double(), expected, atol=0.006, rtol=0)
        sure = (at[..., 0] - width / 2).abs() > 2
        assert torch.equal(result.mask[frame][sure], (at[..., 0] > width / 2)[sure])
    again = model(videos, mask=masks, known=Known(depth=[each.astype(np.float32) + 1 for each in masks]))
    assert again.mask is not None
    assert torch.equal(again.mask, result.mask)
    with pytest.raises(UserError, match=r"mask .*0\.png is 64×48, frame 1 is 48×64; give it at that size"):
        model(videos, mask=tmp_path / "mask" / "0.png")
    with pytest.raises(UserError, match=r"depth is 64×48, frame 1 is 48×64; give it at that size"):
        model(videos, known=Known(depth=np.ones((48, 64), np.float32)[None]))

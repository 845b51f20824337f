"""Readers on real files, laid out as the set has them; and what they read fits together in space.

The yardstick is our own: one frame's depth carried into another by the poses must agree with the depth there, and
must not under the usual mistakes (poses inverted, OpenGL axes, ray length for z-depth, a pixel origin's half pixel).
"""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from four_d import geometry
from four_d.data.readings import pose_mistakes
from four_d.datasets import decode, scenes
from four_d.datasets.sequence import Sequence
from four_d.protocols.table import PROTOCOLS
from four_d.types import Cameras
from tests.protocols import written

HALF = np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
pytestmark = pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples is not there")


def link(source: Path, target: Path) -> Path:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)
    return target


def float32(cameras: Cameras) -> Cameras:
    return Cameras(
        world_from_camera=cameras.world_from_camera.float(), intrinsics=cameras.intrinsics.float(), known=None
    )


def carried(depth: torch.Tensor, cameras: Cameras, a: int, b: int) -> float:
    """Median relative difference of frame a's depth carried into b and the depth there; 1 where they do not meet."""
    height, width = depth.shape[-2:]
    here, there = (
        Cameras(world_from_camera=cameras.world_from_camera[i], intrinsics=cameras.intrinsics[i]) for i in (a, b)
    )
    points = geometry.unproject(depth[a], here).reshape(-1, 3)[depth[a].reshape(-1) > 0]
    pixels, z = geometry.project(points, there)
    x, y = pixels.floor().long().unbind(-1)
    inside = (z > 0) & (x >= 0) & (x < width) & (y >= 0) & (y < height)
    found = depth[b][y[inside], x[inside]]
    error = ((z[inside] - found).abs() / found)[found > 0]
    return float(error.median()) if len(error) >= 100 else 1.0


def loaded(sequence: Sequence) -> tuple[torch.Tensor, Cameras]:
    assert sequence.depth is not None
    assert sequence.cameras is not None
    return torch.from_numpy(sequence.depth()[0]), float32(sequence.cameras())


def assert_only_this_reading_fits(depth: torch.Tensor, cameras: Cameras, pair: tuple[int, int], median: float) -> None:
    error = carried(depth, cameras, *pair)
    assert error < median
    for remedy, wrong in pose_mistakes(cameras).items():
        assert carried(depth, wrong, *pair) > 2 * error, remedy


@pytest.fixture
def hololens(tmp_path: Path) -> Sequence:
    """The same files in the layout of one's own folder; its K counts from pixel centres."""
    source, root = SAMPLES / "hololens_rgbd", tmp_path / "office"
    for part in ("images", "depth", "poses.txt"):
        link(source / part, root / part)
    k = decode.matrix(source / "K.txt", 3, 3)
    written.text(root / "intrinsics.txt", written.rows(k + HALF))
    (sequence,) = PROTOCOLS["folder"].open(tmp_path)
    return sequence


def test_hololens_through_folder(hololens: Sequence) -> None:
    assert hololens.name == "office"
    assert hololens.images().shape == (12, 360, 540, 3)
    depth, cameras = loaded(hololens)
    assert 1.1 < float(depth[depth > 0].min()) < float(depth.max()) < 7.0
    assert 0.65 < float((cameras.world_from_camera[-1] - cameras.world_from_camera[0])[:3, 3].norm()) < 0.69
    assert_only_this_reading_fits(depth, cameras, (0, 11), 0.003)


def test_hololens_colours_go_with_its_depth(hololens: Sequence) -> None:
    """Colours carried by depth and poses are nearer to what is there than colours left where they were."""
    depth, cameras = loaded(hololens)
    images = torch.from_numpy(hololens.images()).float()
    here, there = (
        Cameras(world_from_camera=cameras.world_from_camera[i], intrinsics=cameras.intrinsics[i]) for i in (0, 11)
    )
    keep = depth[0].reshape(-1) > 0
    pixels, _ = geometry.project(geometry.unproject(depth[0], here).reshape(-1, 3)[keep], there)
    x, y = pixels.floor().long().unbind(-1)
    inside = (x >= 0) & (x < 540) & (y >= 0) & (y < 360)
    own = images[0].reshape(-1, 3)[keep][inside]
    moved = (images[11][y[inside], x[inside]] - own).abs().median()
    still = (images[11].reshape(-1, 3)[keep][inside] - own).abs().median()
    assert float(moved) < 0.5 * float(still)


def adt(root: Path, change: Callable[[np.ndarray, np.ndarray], np.ndarray] | None = None) -> Sequence:
    """The two grey cameras at both times in the layout of one's own folder; principal points count from centres."""
    source = SAMPLES / "aria_digital_twin" / "pinhole"
    meta = json.loads((source / "meta.json").read_text())
    frames = [frame for frame in meta["frames"] if frame["camera"].startswith("slam")]
    lines = []
    k = np.array(meta["cameras"]["slam_left"]["K"])
    for i, frame in enumerate(frames):
        link(source / frame["image"], root / "images" / f"{i:02d}.png")
        target = root / "depth" / f"{i:02d}.png"
        if change is None:
            link(source / frame["depth"], target)
        else:
            written.png16(target, change(decode.depth_png(source / frame["depth"], 1000.0), k), 1000)
        lines.append(written.rows(np.array(frame["c2w"]).reshape(1, 16)))
    written.text(root / "poses.txt", "".join(lines))
    written.text(root / "intrinsics.txt", written.rows(k + HALF))
    (sequence,) = PROTOCOLS["folder"].open(root)
    return sequence


def test_aria_digital_twin_through_folder(tmp_path: Path) -> None:
    sequence = adt(tmp_path)
    assert sequence.images().shape == (4, 384, 512, 3)
    depth, cameras = loaded(sequence)
    meta = json.loads((SAMPLES / "aria_digital_twin" / "pinhole" / "meta.json").read_text())
    order = [frame["camera"] for frame in meta["frames"] if frame["camera"].startswith("slam")]
    left, right = order.index("slam_left"), order.index("slam_right")
    assert_only_this_reading_fits(depth, cameras, (left, right), 0.003)
    for shift in (-0.5, 0.5):  # so half a pixel of the principal point is seen: the corner origin is right
        moved = replace(cameras, intrinsics=cameras.intrinsics + torch.from_numpy(2 * shift * HALF).float())
        assert carried(depth, moved, left, right) > 1.3 * carried(depth, cameras, left, right)


def test_aria_depth_read_along_the_ray_does_not_fit(tmp_path: Path) -> None:
    """So z-depth is what the files hold and what the reader gives."""

    def as_if_along_the_ray(depth: np.ndarray, k: np.ndarray) -> np.ndarray:
        y, x = np.mgrid[: depth.shape[0], : depth.shape[1]]
        rays = np.stack([(x - k[0, 2]) / k[0, 0], (y - k[1, 2]) / k[1, 1], np.ones(depth.shape)])
        return (depth / np.linalg.norm(rays, axis=0)).astype(np.float32)

    depth, cameras = loaded(adt(tmp_path / "z"))
    wrong, _ = loaded(adt(tmp_path / "ray", as_if_along_the_ray))
    errors = [(carried(wrong, cameras, a, b), carried(depth, cameras, a, b)) for a in range(4) for b in range(a)]
    assert all(wrong > right for wrong, right in errors)
    assert max(wrong for wrong, _ in errors) > 5 * max(right for _, right in errors)


def test_3dmatch_through_seven_scenes(tmp_path: Path) -> None:
    """The layout is 7-Scenes'; its depth is registered, so it stands for depth.proj.png. Its focal length is 570."""
    source = SAMPLES / "rgbd_3dmatch" / "seq-01"
    written.text(tmp_path / "room" / "TestSplit.txt", "sequence1\n")
    for path in source.iterdir():
        link(path, tmp_path / "room" / "seq-01" / path.name.replace(".depth.", ".depth.proj."))
    (one,) = PROTOCOLS["seven_scenes"].open(tmp_path)
    assert one.frames == 1  # four files: a key frame every 200 is the first
    (sequence,) = scenes.read_seven_scenes(tmp_path, every=1)
    assert (sequence.name, sequence.frames) == ("room/seq-01", 4)
    assert sequence.images().shape == (4, 480, 640, 3)
    depth, cameras = loaded(sequence)
    raw = np.array(Image.open(source / "frame-000422.depth.png"))
    trusted = (raw > 0) & (raw <= 10_000)
    np.testing.assert_allclose(depth[3].numpy()[trusted], raw[trusted] / 1000, rtol=1e-6)
    assert not depth[3].numpy()[~trusted].any()
    own = torch.from_numpy(decode.matrix(SAMPLES / "rgbd_3dmatch" / "camera-intrinsics.txt", 3, 3)).float()
    cameras = replace(cameras, intrinsics=own.expand(4, 3, 3))
    assert_only_this_reading_fits(depth, cameras, (0, 2), 0.03)
    assert carried(depth, cameras, 0, 1) < 0.01


def test_kitti(tmp_path: Path) -> None:
    source, drive = SAMPLES / "kitti_nyu_depth" / "kitti", "2011_09_26_drive_0002_sync"
    depth = tmp_path / "val" / drive / "proj_depth" / "groundtruth" / "image_02" / "0000000005.png"
    link(source / "depth" / "0000000005.png", depth)
    image = tmp_path / "2011_09_26" / drive / "image_02" / "data" / "0000000005.png"
    link(source / "rgb" / "0000000005.png", image)
    (sequence,) = PROTOCOLS["kitti"].open(tmp_path)
    assert sequence.images().shape == (1, 375, 1242, 3)
    assert sequence.depth is not None
    values, valid = sequence.depth()
    assert values.shape == (1, 375, 1242)
    assert 0.15 < valid.mean() < 0.25
    assert 2 < values[valid].min() < values.max() < 90
    lower, upper = values[0, 250:], values[0, :250]
    assert np.median(lower[lower > 0]) < 0.5 * np.median(upper[upper > 0])  # the road is near at the bottom


def test_nyu(tmp_path: Path) -> None:
    source = SAMPLES / "kitti_nyu_depth" / "nyu"
    scene = tmp_path / "official_splits" / "test" / "kitchen"
    link(source / "rgb" / "rgb_00000.jpg", scene / "rgb_00000.jpg")
    link(source / "depth" / "sync_depth_00000.png", scene / "sync_depth_00000.png")
    (sequence,) = PROTOCOLS["nyu"].open(tmp_path)
    assert sequence.images().shape == (1, 480, 640, 3)
    assert sequence.depth is not None
    values, valid = sequence.depth()
    assert 0.7 < valid.mean() < 0.8
    assert values.max() == pytest.approx(6.63, abs=0.01)


def test_davis(tmp_path: Path) -> None:
    source = SAMPLES / "davis_bmx-trees"
    link(source / "frames", tmp_path / "JPEGImages" / "480p" / "bmx-trees")
    link(source / "masks", tmp_path / "Annotations" / "480p" / "bmx-trees")
    (sequence,) = PROTOCOLS["davis16"].open(tmp_path, ("bmx-trees",))
    assert sequence.masks is not None
    images, masks = sequence.images(), sequence.masks()
    assert images.shape == (30, 240, 432, 3)
    assert masks.shape == (30, 240, 432)
    for i in (0, 29):
        np.testing.assert_array_equal(masks[i], np.array(Image.open(source / "masks" / f"{i:05d}.png")) > 127)
    assert (masks.mean((1, 2)) > 0.002).all()
    overlap = (masks[1:] & masks[:-1]).sum() / (masks[1:] | masks[:-1]).sum()
    assert overlap > 0.3  # frames in their order


def test_trajectories_as_tum(tmp_path: Path) -> None:
    """A real trajectory at the times of a real estimate: each picture gets the pose nearest to it."""
    where = tmp_path / "rgbd_dataset_freiburg3_sitting_xyz"
    link(SAMPLES / "trajectories" / "freiburg1_xyz-groundtruth.txt", where / "groundtruth.txt")
    lines = (SAMPLES / "trajectories" / "freiburg1_xyz-rgbdslam.txt").read_text().splitlines()
    stamps = [line.split()[0] for line in lines if not line.startswith("#")]
    written.text(where / "rgb.txt", "# timestamp filename\n" + "".join(f"{t} rgb/{t}.png\n" for t in stamps))
    (sequence,) = PROTOCOLS["tum"].open(tmp_path, (where.name,))
    assert sequence.frames == 90
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    truth = np.loadtxt(where / "groundtruth.txt")
    times = float(stamps[0]) + np.array(sequence.times)
    nearest = np.abs(truth[:, 0] - times[:, None]).argmin(-1)
    apart = np.linalg.norm(cameras.world_from_camera.numpy()[:, :3, 3] - truth[nearest, 1:4], axis=-1)
    assert (apart == 0).mean() > 0.95  # greedy matching gives a pose to one picture only
    assert apart.max() < 0.01
    turned = cameras.world_from_camera[:, :3, :3]
    torch.testing.assert_close(turned @ turned.mT, torch.eye(3, dtype=torch.float64).expand(90, 3, 3))


def test_sintel_pictures(tmp_path: Path) -> None:
    for i, path in enumerate(sorted((SAMPLES / "sintel_alley_1").glob("*.png")), start=1):
        link(path, tmp_path / "training" / "final" / "alley_1" / f"frame_{i:04d}.png")
    (sequence,) = PROTOCOLS["sintel"].open(tmp_path, ("alley_1",))
    assert sequence.images().shape == (4, 436, 1024, 3)
    assert sequence.tasks == ()


def test_flow_of_flying_chairs() -> None:
    flow = decode.flow_flo(SAMPLES / "flyingchairs" / "0000000-gt.flo")
    assert flow.shape == (384, 512, 2)
    assert np.linalg.norm(flow, axis=-1).mean() == pytest.approx(6.1, abs=0.05)
    assert np.abs(flow).max() == pytest.approx(75.7, abs=0.05)
    first, second = (decode.image(SAMPLES / "flyingchairs" / f"0000000-img{i}.ppm").astype(float) for i in (0, 1))
    y, x = np.mgrid[:384, :512]
    u, v = (np.rint(part).astype(int) for part in (x + flow[..., 0], y + flow[..., 1]))
    inside = (u >= 0) & (u < 512) & (v >= 0) & (v < 384)
    moved = np.abs(second[v[inside], u[inside]] - first[inside]).mean()
    assert moved < 0.6 * np.abs(second - first)[inside].mean()


def test_npy_depth_of_tartanair() -> None:
    depth = decode.depth_npy(SAMPLES / "tartanair_pair" / "depth1.npy")
    assert depth.shape == (480, 640)
    assert depth.min() > 1

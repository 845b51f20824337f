"""A user's own data: plain folders, COLMAP and nerfstudio, of one camera or several, with or without distortion."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from PIL import Image

from data_prep.importers.datasets import import_dataset
from data_prep.importers.sequences import Settings
from four_d.data.contract import RawClip
from four_d.data.shards import ShardReader
from four_d.datasets.colmap import read_colmap
from four_d.datasets.folder import read_folder
from four_d.datasets.lens import Lens
from four_d.datasets.nerfstudio import read_nerfstudio
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.formats.cameras import write_colmap
from four_d.formats.clouds import PointCloud
from four_d.formats.colmap import read_model
from four_d.formats.observations import Observations
from four_d.geometry import project
from four_d.types import Cameras
from tests.protocols import written
from tests.protocols.written import HEIGHT, WIDTH, world

SAMPLES = Path(__file__).parents[3] / "shared" / "samples"
FLIP = np.diag([1.0, -1, -1, 1])


def imported(name: str, src: Path, out: Path, **options: object) -> RawClip:
    import_dataset(DATASETS[name], src, out, **options)
    with ShardReader(out) as reader:
        return reader.read(0)


def pictures(folder: Path, names: list[str]) -> None:
    for i, name in enumerate(names):
        written.picture(folder / name, world().images[i % len(world())])


def cameras_json(path: Path, **content: object) -> None:
    written.text(path, json.dumps(content))


def cloud() -> tuple[PointCloud, Observations]:
    """Points on what pixels (3, 5), (9, 5), … of each frame see, and the frames that see them."""
    known = world()
    rows, columns = (each.ravel() for each in np.mgrid[3:HEIGHT:6, 5:WIDTH:6])
    points, frames, pixels = [], [], []
    for i in range(len(known)):
        z = known.depth[i][rows, columns]
        at = np.stack([columns, rows], axis=-1) + 0.5
        local = np.concatenate(
            [(at - known.intrinsics[:2, 2]) / known.intrinsics[[0, 1], [0, 1]], np.ones((len(z), 1))], 1
        )
        points.append(local * z[:, None] @ known.poses[i][:3, :3].T + known.poses[i][:3, 3])
        frames.append(np.full(len(z), i))
        pixels.append(at)
    count = sum(map(len, points))
    stored = PointCloud(
        points=np.concatenate(points).astype(np.float32),
        colours=np.zeros((count, 3), np.uint8),
        frames=np.concatenate(frames).astype(np.int32),
        confidence=np.ones(count, np.float32),
    )
    return stored, Observations(frames=np.concatenate(frames), points=np.arange(count), pixels=np.concatenate(pixels))


def colmap(root: Path, names: list[str]) -> None:
    known = world()
    pictures(root / "images", names)
    poses = Cameras(
        world_from_camera=torch.from_numpy(known.poses), intrinsics=torch.from_numpy(known.intrinsics).expand(4, 3, 3)
    )
    write_colmap(root / "sparse" / "0", poses, [(HEIGHT, WIDTH)] * 4, names, *cloud())


def to_binary(folder: Path) -> None:
    """Write a text model again as COLMAP's binary files, byte by byte after its description, and drop the text."""
    model = read_model(folder)
    numbers = {"PINHOLE": 1}
    parts = [struct.pack("<Q", len(model.cameras))]
    for identity, camera in model.cameras.items():
        height, width = camera.size
        parts += [struct.pack("<iiQQ4d", identity, numbers[camera.model], width, height, *camera.params)]
    (folder / "cameras.bin").write_bytes(b"".join(parts))
    parts = [struct.pack("<Q", len(model.views))]
    for at, view in enumerate(model.views):
        pose = np.linalg.inv(view.world_from_camera)
        x, y, z, w = roma.rotmat_to_unitquat(torch.from_numpy(pose[:3, :3])).tolist()
        parts += [struct.pack("<I7dI", at + 1, w, x, y, z, *pose[:3, 3], view.camera), view.name.encode() + b"\0"]
        parts += [struct.pack("<Q", len(view.observed) + 1), struct.pack("<ddq", 1.0, 2.0, -1)]
        parts += [struct.pack("<ddq", 0.0, 0.0, point) for point in view.observed.tolist()]
    (folder / "images.bin").write_bytes(b"".join(parts))
    parts = [struct.pack("<Q", len(model.points))]
    for identity, point in model.points.items():
        parts += [struct.pack("<Q3d3BdQ", identity, *point, 1, 2, 3, 0.5, 2), struct.pack("<4I", 1, 0, 2, 0)]
    (folder / "points3D.bin").write_bytes(b"".join(parts))
    for path in folder.glob("*.txt"):
        path.unlink()


def test_colmap_text_and_binary_give_the_same(tmp_path: Path) -> None:
    """Cameras as they are; depth at the pixels where points fall, exact there, and nowhere else."""
    colmap(tmp_path / "text", [f"{i:03d}.png" for i in range(4)])
    colmap(tmp_path / "binary", [f"{i:03d}.png" for i in range(4)])
    to_binary(tmp_path / "binary" / "sparse" / "0")
    for kind in ("text", "binary"):
        (sequence,) = read_colmap(tmp_path / kind)
        assert sequence.cameras is not None
        assert sequence.depth is not None
        cameras, (depth, valid) = sequence.cameras(), sequence.depth()
        np.testing.assert_allclose(cameras.world_from_camera.numpy(), world().poses, atol=1e-6)
        np.testing.assert_allclose(cameras.intrinsics[0].numpy(), world().intrinsics, atol=1e-6)
        assert valid.sum() == 4 * 4 * 5
        assert valid[:, 3::6, 5::6].all()
        np.testing.assert_allclose(depth[valid], world().depth[valid], rtol=1e-5)
        np.testing.assert_array_equal(sequence.images(), world().images)


def test_colmap_becomes_shards(tmp_path: Path) -> None:
    colmap(tmp_path / "src", [f"{i:03d}.png" for i in range(4)])
    clip = imported("colmap", tmp_path / "src", tmp_path / "out", settings=Settings(licence="mine"))
    assert (clip.info.metric, clip.info.licence, clip.info.home) == (False, "mine", None)
    assert clip.depth is not None
    valid = clip.depth > 0
    np.testing.assert_allclose(clip.depth[valid], world().depth[valid], rtol=0.005)


def test_folders_of_the_same_names_are_synchronised_cameras(tmp_path: Path) -> None:
    colmap(tmp_path, ["left/0.png", "left/1.png", "right/0.png", "right/1.png"])
    (sequence,) = read_colmap(tmp_path)
    assert sequence.camera_ids == (0, 0, 1, 1)
    assert sequence.times == (0, 1 / 30, 0, 1 / 30)
    colmap(tmp_path / "other", ["a/0.png", "a/1.png", "b/2.png", "b/3.png"])
    (sequence,) = read_colmap(tmp_path / "other")
    assert sequence.camera_ids is None


def test_distorted_cameras_of_colmap_are_undistorted_or_refused_by_name(tmp_path: Path) -> None:
    colmap(tmp_path, [f"{i:03d}.png" for i in range(4)])
    table = tmp_path / "sparse" / "0" / "cameras.txt"
    k = world().intrinsics
    pinhole = f"{WIDTH} {HEIGHT} {k[0, 0]} {k[1, 1]} {k[0, 2]} {k[1, 2]}"
    bent = (0.08, -0.02, 0.003, -0.002)
    lens = Lens.of(k - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], bent, "a")
    table.write_text("".join(f"{i} OPENCV {pinhole} {' '.join(map(str, bent))}\n" for i in range(1, 5)))
    (sequence,) = read_colmap(tmp_path)
    np.testing.assert_array_equal(sequence.images(), lens.undistort_images(list(world().images)))
    table.write_text("".join(f"{i} OPENCV_FISHEYE {pinhole} 0.1 0 0 0\n" for i in range(1, 5)))
    with pytest.raises(UserError, match="camera 1 is OPENCV_FISHEYE, which is not undistorted here"):
        read_colmap(tmp_path)
    table.write_text("1 OPENCV_FISHEYE 3\n")
    with pytest.raises(UserError, match="is not a readable model of COLMAP"):
        read_colmap(tmp_path)


def test_a_damaged_binary_model_is_an_error(tmp_path: Path) -> None:
    colmap(tmp_path, [f"{i:03d}.png" for i in range(4)])
    folder = tmp_path / "sparse" / "0"
    to_binary(folder)
    for name in ("cameras", "images", "points3D"):
        whole = (folder / f"{name}.bin").read_bytes()
        for damaged in (whole[:-3], whole[:4], b"\xff" * 8 + whole[8:]):
            (folder / f"{name}.bin").write_bytes(damaged)
            with pytest.raises(UserError, match="is not a readable model of COLMAP"):
                read_colmap(tmp_path)
        (folder / f"{name}.bin").write_bytes(whole)


def transforms(root: Path, **more: object) -> None:
    known = world()
    frames = [
        {"file_path": f"images/{i}.png", "transform_matrix": (pose @ FLIP).tolist()}
        for i, pose in enumerate(known.poses)
    ]
    k = known.intrinsics
    content = {
        "fl_x": k[0, 0],
        "fl_y": k[1, 1],
        "cx": k[0, 2],
        "cy": k[1, 2],
        "w": WIDTH,
        "h": HEIGHT,
        "frames": frames,
    }
    pictures(root / "images", [f"{i}.png" for i in range(4)])
    written.text(root / "transforms.json", json.dumps({**content, **more}))


def test_nerfstudio(tmp_path: Path) -> None:
    transforms(tmp_path)
    (sequence,) = read_nerfstudio(tmp_path)
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), world().poses, atol=1e-12)
    np.testing.assert_allclose(cameras.intrinsics[2].numpy(), world().intrinsics, atol=1e-12)
    transforms(tmp_path, k1=0.1, p2=0.01)
    (sequence,) = read_nerfstudio(tmp_path)
    lens = Lens.of(world().intrinsics - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]], (0.1, 0.0, 0.0, 0.01, 0.0), "a")
    np.testing.assert_array_equal(sequence.images(), lens.undistort_images(list(world().images)))
    transforms(tmp_path, w=2 * WIDTH, h=2 * HEIGHT)
    (sequence,) = read_nerfstudio(tmp_path)
    assert sequence.cameras is not None
    np.testing.assert_allclose(sequence.cameras().intrinsics[0].numpy() * [[2], [2], [1]], world().intrinsics)


@pytest.mark.parametrize(
    ("more", "match"),
    [
        ({"camera_model": "OPENCV_FISHEYE"}, "is of OPENCV_FISHEYE, which is not undistorted"),
        ({"w": 3 * WIDTH}, "another shape"),
        ({"frames": [{"file_path": "images/0.png"}]}, "transform_matrix"),
        ({"frames": [{"file_path": "images/7.png"}]}, "the image of none is there"),
        ({"fl_x": "wide"}, "lacks, or has no readable"),
    ],
)
def test_what_transforms_lack_is_named(more: dict[str, object], match: str, tmp_path: Path) -> None:
    transforms(tmp_path, **more)
    with pytest.raises(UserError, match=match):
        read_nerfstudio(tmp_path)


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples is not there")
def test_the_real_fox(tmp_path: Path) -> None:
    """Three of its images stand for all: every camera looks at one place, with OpenCV's axes."""
    content = (SAMPLES / "nerf_fox" / "transforms.json").read_text()
    written.text(tmp_path / "transforms.json", content)
    paths = [frame["file_path"] for frame in json.loads(content)["frames"]]
    for path in paths:
        (tmp_path / path).parent.mkdir(exist_ok=True)
        (tmp_path / path).symlink_to(SAMPLES / "nerf_fox" / "images" / "0001.jpg")
    (sequence,) = read_nerfstudio(tmp_path)
    assert sequence.frames == len(paths)
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    assert cameras.intrinsics[0, :2, 2].tolist() == pytest.approx([554.558, 965.268])
    centres, ahead = cameras.world_from_camera[:, :3, 3].numpy(), cameras.world_from_camera[:, :3, 2].numpy()
    sideways = np.eye(3) - ahead[:, :, None] * ahead[:, None]
    meeting = np.linalg.solve(sideways.sum(0), (sideways @ centres[..., None]).sum(0))[:, 0]
    assert ((meeting - centres) * ahead).sum(-1).min() > 0
    image = sequence.take([0]).images()[0]
    raw = np.asarray(Image.open(SAMPLES / "nerf_fox" / "images" / "0001.jpg"))
    assert image.shape == raw.shape
    assert np.abs(image[960, 540].astype(int) - raw[960, 540]).max() < 30  # the middle stays where it is


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples is not there")
def test_real_frames_with_depth_pass_the_check(tmp_path: Path) -> None:
    """HoloLens, in millimetres with world_from_camera; read as camera_from_world the import stops."""
    source, src = SAMPLES / "hololens_rgbd", tmp_path / "office"
    (src / "frames").mkdir(parents=True)
    (src / "depth").mkdir()
    for path in sorted((source / "images").iterdir())[::4]:
        (src / "frames" / path.name).symlink_to(path)
        (src / "depth" / path.name).symlink_to(source / "depth" / path.name)
    poses = np.loadtxt(source / "poses.txt").reshape(-1, 4, 4)[::4]
    k = np.loadtxt(source / "K.txt")
    k[:2, 2] += 0.5  # counted from pixel centres
    lens = k.tolist()
    names = [path.name for path in sorted((src / "frames").iterdir())]

    def write(matrices: np.ndarray) -> None:
        frames = [
            {"image": name, "world_from_camera": pose, "intrinsics": lens}
            for name, pose in zip(names, matrices.tolist(), strict=True)
        ]
        cameras_json(src / "cameras.json", frames=frames)

    write(np.linalg.inv(poses))
    with pytest.raises(UserError, match="Nothing was imported"):
        import_dataset(DATASETS["folder"], src, tmp_path / "out")
    write(poses)
    clip = imported("folder", src, tmp_path / "out")
    assert clip.images.shape == (3, 360, 540, 3)
    assert clip.info.metric
    assert clip.depth is not None
    assert 1 < clip.depth[clip.depth > 0].min() < clip.depth.max() < 7.1


def rig(root: Path) -> None:
    """Left is 24 × 32, right twice as large and wider; the right one stands still."""
    known = world()
    for i in range(3):
        written.picture(root / "frames" / "left" / f"{i}.png", known.images[i])
        large = np.repeat(np.repeat(known.images[i + 1], 2, 0), 2, 1)
        written.picture(root / "frames" / "right" / f"{i}.png", np.concatenate([large, large[:, :8]], 1))
    entries = [
        {"image": f"left/{i}.png", "world_from_camera": known.poses[i].tolist(), "time": i / 10} for i in range(3)
    ]
    entries += [{"image": f"right/{i}.png", "time": i / 10} for i in range(3)]
    k = known.intrinsics * [[2], [2], [1]]
    cameras_json(
        root / "cameras.json",
        metric=False,
        cameras={
            "left": {"intrinsics": known.intrinsics.tolist()},
            "right": {"intrinsics": k.tolist(), "world_from_camera": known.poses[3].tolist()},
        },
        frames=entries,
    )


def test_several_cameras_of_several_sizes(tmp_path: Path) -> None:
    """All get the size of the first one's images: scaled until they cover it, cut evenly, and intrinsics follow."""
    rig(tmp_path / "src")
    clip = imported("folder", tmp_path / "src", tmp_path / "out", checked=False)
    assert clip.images.shape == (6, HEIGHT, WIDTH, 3)
    assert clip.info.camera_ids == [0, 0, 0, 1, 1, 1]
    assert clip.info.times == pytest.approx([0, 0.1, 0.2] * 2)
    assert not clip.info.metric
    assert clip.intrinsics is not None
    assert clip.world_from_camera is not None
    np.testing.assert_allclose(clip.intrinsics[0], world().intrinsics)
    np.testing.assert_allclose(clip.intrinsics[3], world().intrinsics - [[0, 0, 2], [0, 0, 0], [0, 0, 0]])
    np.testing.assert_allclose(clip.world_from_camera[4], world().poses[3])
    assert np.abs(clip.images[3, :, :-4].astype(int) - world().images[1][:, 2:-2]).mean() < 8


def test_intrinsics_without_poses_and_single_frames(tmp_path: Path) -> None:
    pictures(tmp_path / "src" / "frames", ["a.png"])
    written.text(tmp_path / "src" / "intrinsics.txt", written.rows(world().intrinsics))
    clip = imported("folder", tmp_path / "src", tmp_path / "out")
    assert clip.world_from_camera is None
    assert clip.intrinsics is not None
    assert clip.images.shape == (1, HEIGHT, WIDTH, 3)


def test_tracks_of_a_plain_folder(tmp_path: Path) -> None:
    written.folder(tmp_path / "src")
    points = np.zeros((5, 4, 3)) + np.arange(5)[:, None, None]
    points[1, 2] = np.nan
    np.savez(tmp_path / "src" / "tracks.npz", points=points, visible=np.arange(20).reshape(5, 4) % 7 > 0)
    (sequence,) = read_folder(tmp_path / "src")
    assert sequence.world_tracks is not None
    tracks = sequence.world_tracks()
    assert not tracks.known[1, 2]
    assert tracks.known.sum() == 19
    assert tracks.times == sequence.times
    np.savez(tmp_path / "src" / "tracks.npz", points=points[:, :3], visible=np.ones((5, 4)))
    with pytest.raises(UserError, match="give n × t × 3"):
        sequence.world_tracks()


def test_tracks_are_on_the_clock_of_the_images(tmp_path: Path) -> None:
    pictures(tmp_path / "frames", ["0.png", "1.png"])
    moments = {"0": 100.0, "1": 100.1}
    entries = [
        {"image": f"{name}.png", "time": time, "intrinsics": world().intrinsics.tolist()}
        for name, time in moments.items()
    ]
    cameras_json(tmp_path / "cameras.json", frames=entries)
    given = {"points": np.zeros((1, 3, 3)), "visible": np.ones((1, 3), bool)}
    np.savez(tmp_path / "tracks.npz", **given, times=[99.9, 100.0, 100.1])
    (sequence,) = read_folder(tmp_path)
    assert sequence.world_tracks is not None
    assert sequence.world_tracks().times == pytest.approx((-0.1, 0.0, 0.1))


def test_depth_of_nerfstudio_is_in_its_factor_in_both_forms(tmp_path: Path) -> None:
    transforms(tmp_path)
    content = json.loads((tmp_path / "transforms.json").read_text())
    for i, entry in enumerate(content["frames"]):
        entry["depth_file_path"] = f"depth/{i}.{'npy' if i % 2 else 'png'}"
        (tmp_path / "depth").mkdir(exist_ok=True)
        counts = np.rint(1000 * world().depth[i])
        if i % 2:
            np.save(tmp_path / entry["depth_file_path"], counts.astype(np.float32))
        else:
            Image.fromarray(counts.astype(np.uint16)).save(tmp_path / entry["depth_file_path"])
    written.text(tmp_path / "transforms.json", json.dumps(content))
    (sequence,) = read_nerfstudio(tmp_path)
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    np.testing.assert_allclose(depth[valid], world().depth[valid], atol=6e-4)


def test_texts_of_one_camera_are_not_for_several(tmp_path: Path) -> None:
    for camera in ("left", "right"):
        pictures(tmp_path / "frames" / camera, ["0.png"])
    written.text(tmp_path / "intrinsics.txt", written.rows(world().intrinsics))
    with pytest.raises(UserError, match=r"is of one camera, and there are 2 \(left, right\); write cameras.json"):
        read_folder(tmp_path)


def test_a_video_alone() -> None:
    video = Path(__file__).parents[1] / "data" / "bikes.mp4"
    (sequence,) = read_folder(video)
    assert sequence.cameras is None
    assert sequence.frames == len(sequence.times) == 52
    part = sequence.take([3, 4])
    assert part.images().shape == (2, 272, 640, 3)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ("{", "is not readable JSON"),
        ('{"frames": [{"time": 0}]}', "lists no frames"),
        ('{"fps": 0}', "fps is 0"),
        ('{"frames": [{"image": "000.png", "intrinsics": [1, 2]}]}', "000 has a value that is no camera's"),
        ('{"frames": [{"image": "000.png", "world_from_camera": "here"}]}', "000 has a value that is no camera's"),
        ('{"cameras": {"": [1]}}', "cameras is not an object"),
        ('{"cameras": [1]}', "cameras is not an object"),
        ('{"frames": [{"image": "frames/000.png"}]}', r"has 'frames/000', and there is no such image \(one is '000'\)"),
        ('{"frames": [{"image": "000.png", "intrinsics": [[9,0,4],[0,9,4],[0,0,1]]}]}', "no intrinsics of '001'"),
        ('{"cameras": {"left": {}}}', "has a camera 'left'"),
    ],
)
def test_what_is_wrong_with_cameras_json_is_named(content: str, match: str, tmp_path: Path) -> None:
    pictures(tmp_path / "frames", ["000.png", "001.png"])
    written.text(tmp_path / "cameras.json", content)
    with pytest.raises(UserError, match=match):
        read_folder(tmp_path)


def test_projection_of_an_observed_point_is_its_pixel(tmp_path: Path) -> None:
    """The yardstick of the binary reader: poses, intrinsics and points fit together."""
    colmap(tmp_path, [f"{i:03d}.png" for i in range(4)])
    to_binary(tmp_path / "sparse" / "0")
    model = read_model(tmp_path / "sparse" / "0")
    _, seen = cloud()
    for at, view in enumerate(model.views):
        camera = Cameras(
            world_from_camera=torch.from_numpy(view.world_from_camera),
            intrinsics=torch.from_numpy(model.cameras[view.camera].intrinsics),
        )
        points = torch.from_numpy(np.stack([model.points[point] for point in view.observed.tolist()]))
        pixels, _ = project(points, camera)
        np.testing.assert_allclose(pixels.numpy(), seen.pixels[seen.frames == at], atol=1e-3)

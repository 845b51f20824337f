"""Aria Digital Twin's test recording: its colour camera becomes a pinhole one, and tracks follow fork and spoon.

Twice: by the package projectaria-tools from the VRS files, where it is installed; and by a stand-in for it, which gives
the excerpt's pinhole pictures as if a camera without distortion had recorded them.
"""

from __future__ import annotations

import importlib.util
import json
import sys
from functools import lru_cache
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from data_prep.importers.datasets import import_dataset
from four_d.data.shards import ShardReader
from four_d.datasets import aria
from four_d.datasets.sequence import Sequence
from four_d.datasets.table import DATASETS
from four_d.errors import UserError
from four_d.ordering import in_order

SAMPLE = Path(__file__).parents[3] / "shared" / "samples" / "aria_digital_twin"
CENTIMETRES = 0.01
STIRRED = ("WoodenFork", "WoodenSpoon")
pytestmark = pytest.mark.skipif(not SAMPLE.is_dir(), reason="../shared/samples is not there")


@lru_cache(maxsize=1)
def told() -> dict[str, Any]:
    return json.loads((SAMPLE / "pinhole" / "meta.json").read_text())


def frames() -> list[dict[str, Any]]:
    return [frame for frame in told()["frames"] if frame["camera"] == "rgb"]


def stored(frame: int, name: str) -> NDArray[Any]:
    """A picture of the excerpt as its sensor saw it."""
    return np.array(Image.open(SAMPLE / "pinhole" / frames()[frame][name]))


class Lens:
    """The excerpt's colour camera without distortion."""

    def project_no_checks(self, ray: NDArray[np.float64]) -> NDArray[np.float64]:
        return ray[:2] / ray[2] * 280 + 255.5

    def get_image_size(self) -> tuple[int, int]:
        return 512, 512

    def get_transform_device_camera(self) -> SimpleNamespace:
        return SimpleNamespace(to_matrix=lambda: np.array(told()["cameras"]["rgb"]["T_device_camera"]))


class Provider:
    """Pictures of one file."""

    def __init__(self, path: str) -> None:
        self.kind = Path(path).stem
        Path(path).read_bytes()

    def get_timestamps_ns(self, stream: str, domain: str) -> list[int]:
        assert (stream, domain) == (aria.STREAMS[self.kind], "device")
        entry = "image_timestamp_ns" if self.kind == "video" else "timestamp_ns"
        return [frame[entry] for frame in frames()]

    def get_image_data_by_index(self, stream: str, at: int) -> tuple[SimpleNamespace, None]:
        assert stream == aria.STREAMS[self.kind]
        values = stored(at, {"video": "image", "depth_images": "depth", "segmentations": "instance"}[self.kind])
        if self.kind == "segmentations":
            uids = {int(index): int(each["uid"]) for index, each in told()["instances"].items()}
            values = np.array([uids.get(index, 0) for index in range(values.max() + 1)], np.uint64)[values]
        return SimpleNamespace(to_numpy_array=lambda: values), None

    def get_device_calibration(self) -> SimpleNamespace:
        return SimpleNamespace(get_camera_calib={"camera-rgb": Lens()}.get)


def stand_in(patch: pytest.MonkeyPatch) -> None:
    modules = {
        "data_provider": {"create_vrs_data_provider": Provider},
        "sensor_data": {"TimeDomain": SimpleNamespace(__members__={"DEVICE_TIME": "device"})},
        "stream_id": {"StreamId": str},
    }
    for name, content in modules.items():
        module = ModuleType(name)
        module.__dict__.update(content)
        patch.setitem(sys.modules, f"projectaria_tools.core.{name}", module)
    for name in ("projectaria_tools", "projectaria_tools.core"):
        patch.setitem(sys.modules, name, ModuleType(name))


def recording(root: Path) -> Path:
    folder = root / "kitchen"
    folder.mkdir(parents=True)
    for path in in_order(SAMPLE.iterdir()):
        if path.is_file():
            (folder / path.name).symlink_to(path)
    return folder


def forget() -> None:
    for kept in (aria._provider, aria._lens, aria._trajectory, aria._objects, aria._tracks):  # pyright: ignore[reportPrivateUsage]
        kept.cache_clear()


@pytest.fixture(params=["stand-in", "package"])
def sequence(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sequence:
    forget()
    if request.param == "stand-in":
        stand_in(monkeypatch)
    elif importlib.util.find_spec("projectaria_tools") is None:
        pytest.skip("projectaria-tools is not installed")
    recording(tmp_path)
    (found,) = DATASETS["adt"].open(tmp_path)
    return found


def upright(picture: NDArray[Any]) -> NDArray[Any]:
    return np.rot90(picture, -1)


def test_what_is_read_is_the_excerpt_turned_upright(sequence: Sequence) -> None:
    assert (sequence.name, sequence.frames) == ("kitchen/000000", 2)
    assert sequence.times[1] == pytest.approx(1 / 30, abs=1e-3)
    images = np.stack([upright(stored(at, "image")) for at in range(2)]).astype(int)
    there = images.any(-1)
    assert np.abs(sequence.images().astype(int) - images)[there].mean() < 0.6
    assert sequence.depth is not None
    depth, valid = sequence.depth()
    wanted = np.stack([upright(stored(at, "depth")) for at in range(2)]) / 1000
    assert (valid == (wanted > 0)).mean() > 0.999
    both = valid & (wanted > 0)
    assert (np.abs(depth - wanted)[both] < 1e-3).mean() > 0.98  # an edge may be a pixel beside
    assert sequence.cameras is not None
    cameras = sequence.cameras()
    turned = np.stack([np.array(frame["c2w"]) for frame in frames()])
    turned[:, :3, :3] = turned[:, :3, :3] @ aria.UPRIGHT
    np.testing.assert_allclose(cameras.world_from_camera.numpy(), turned, atol=1e-6)
    np.testing.assert_allclose(cameras.intrinsics[0].numpy(), [[280, 0, 256], [0, 280, 256], [0, 0, 1]])
    up = cameras.world_from_camera[:, 1, :3].numpy()  # the world's up in the camera's axes: y of pictures is down
    assert (up[:, 1] < -0.5).all()


def test_tracks_follow_what_is_stirred(sequence: Sequence) -> None:
    """Points of fork and spoon go as their poses say; all others stand still; what is seen is where it is seen."""
    assert sequence.world_tracks is not None
    assert sequence.cameras is not None
    tracks, cameras = sequence.world_tracks(), sequence.cameras()
    assert tracks.known.all()
    path = np.linalg.norm(tracks.points[:, 1] - tracks.points[:, 0], axis=-1)
    stirred = path > 0.5 * CENTIMETRES
    assert stirred.sum() > 50
    assert path[~stirred].max() < 0.02 * CENTIMETRES
    poses = [np.array(each["T_world_object"]) for each in told()["instances"].values() if each["name"] in STIRRED]
    moves = np.stack([pose[1] @ np.linalg.inv(pose[0]) for pose in poses])
    points = tracks.points[stirred, 0]
    carried = np.einsum("kij,nj->kni", moves[:, :3, :3], points) + moves[:, None, :3, 3]
    assert np.linalg.norm(carried - tracks.points[stirred, 1], axis=-1).min(0).max() < 1e-5
    stirrers = [int(index) for index, each in told()["instances"].items() if each["name"] in STIRRED]
    for at in range(2):
        pose = cameras.world_from_camera[at].numpy()
        local = (tracks.points[:, at] - pose[:3, 3]) @ pose[:3, :3]
        pixel = (local[:, :2] / local[:, 2:] * 280 + 256).astype(int)
        seen = tracks.visible[:, at]
        assert seen.sum() > 1000
        shown = upright(stored(at, "instance"))[pixel[seen, 1], pixel[seen, 0]]
        assert np.isin(shown, stirrers)[stirred[seen]].mean() > 0.95
        assert not np.isin(shown, stirrers)[~stirred[seen]].mean() > 0.02


def test_it_becomes_shards_that_pass_the_check(sequence: Sequence, tmp_path: Path) -> None:
    manifest = import_dataset(DATASETS["adt"], tmp_path / "kitchen", tmp_path / "out")
    assert sequence.name == "kitchen/000000"
    assert manifest.modalities == ["cameras", "depth", "tracks"]
    with ShardReader(tmp_path / "out") as reader:
        clip = reader.read(0)
    assert clip.tracks is not None
    assert clip.tracks.visible.any(-1).all()


def test_without_the_package_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    monkeypatch.setitem(sys.modules, "projectaria_tools.core.data_provider", None)
    recording(tmp_path)
    with pytest.raises(UserError, match="takes projectaria-tools; install it with: pip install projectaria-tools"):
        DATASETS["adt"].open(tmp_path)


def test_maps_that_show_people_are_preferred(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    stand_in(monkeypatch)
    folder = recording(tmp_path)
    assert aria._file(folder, "depth_images").name == "depth_images.vrs"  # pyright: ignore[reportPrivateUsage]
    (folder / "depth_images_with_skeleton.vrs").symlink_to(SAMPLE / "depth_images.vrs")
    assert aria._file(folder, "depth_images").name == "depth_images_with_skeleton.vrs"  # pyright: ignore[reportPrivateUsage]


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("aria_trajectory.csv", "tracking_timestamp_us\n1\n", "no readable column"),
        ("aria_trajectory.csv", "", "is empty"),
        ("scene_objects.csv", "object_uid\n1\n", "no readable column"),
        ("instances.json", "[]", "is not one JSON object"),
    ],
)
def test_tables_that_cannot_be_read_are_named(
    name: str, content: str, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    forget()
    stand_in(monkeypatch)
    folder = recording(tmp_path)
    (folder / name).unlink()
    with pytest.raises(UserError, match="expected layout"):
        DATASETS["adt"].open(tmp_path)
    (folder / name).write_text(content)
    (found,) = DATASETS["adt"].open(tmp_path)
    assert found.world_tracks is not None
    with pytest.raises(UserError, match=words) as caught:
        found.world_tracks()
    assert name in str(caught.value)


def test_a_pose_that_is_missing_is_unknown(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    forget()
    stand_in(monkeypatch)
    folder = recording(tmp_path)
    lines = (SAMPLE / "aria_trajectory.csv").read_text().splitlines(keepends=True)
    (folder / "aria_trajectory.csv").unlink()
    (folder / "aria_trajectory.csv").write_text("".join([lines[0], *lines[2:]]))
    (found,) = DATASETS["adt"].open(tmp_path)
    assert found.cameras is not None
    assert found.world_tracks is not None
    known = found.cameras().known
    assert known is not None
    assert known.tolist() == [False, True]
    assert not found.world_tracks().visible[:, 0].any()

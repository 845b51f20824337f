"""Published protocols with predictors whose scores are known, on files in each set's own layout and on real ones."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from four_d import geometry
from four_d.abilities import Abilities, Model
from four_d.datasets.sequence import Sequence
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, run_protocol
from four_d.evaluation import published as module
from four_d.metrics.baselines import StaticCamera
from four_d.metrics.catalogue import METRICS
from four_d.protocols.protocol import Protocol
from four_d.protocols.table import PROTOCOLS
from four_d.types import Cameras, Clip, Prediction
from four_d.windows.cut import Cut
from tests.helpers import Says
from tests.protocols import written

SAMPLES = Path(__file__).parents[2] / "shared" / "samples"
PATCH = 4


@dataclass
class Perfect(Model):
    """Says the truth of whatever frames it is shown, in a unit and world of its own; finds them by their pictures."""

    known: list[Sequence]
    unit: float = 1.0
    world: Tensor | None = None

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"depth", "cameras", "dynamic"}))

    def __call__(self, clip: Clip) -> Prediction:
        sequence, first = self._find(clip)
        frames, size = clip.images.shape[1], (clip.images.shape[-2], clip.images.shape[-1])
        part = slice(first, first + frames)
        depth = None if sequence.depth is None else torch.from_numpy(sequence.depth()[0])[part]
        masks = None if sequence.masks is None else torch.from_numpy(sequence.masks())[part]
        return Prediction(
            depth=None if depth is None else self.unit * _nearest(depth, size)[None],
            cameras=None if sequence.cameras is None else self._cameras(sequence, part, size),
            dynamic=None if masks is None else _nearest(masks.float(), size)[None],
        )

    def _find(self, clip: Clip) -> tuple[Sequence, int]:
        size = (clip.images.shape[-2], clip.images.shape[-1])
        for sequence in self.known:
            images = sequence.images()
            for first in range(len(images) - clip.images.shape[1] + 1):
                if torch.equal(module.stretch(images[first : first + 1], size)[0], clip.images[0, 0].cpu()):
                    return sequence, first
        raise AssertionError("the model was shown something else than the truth's pictures")

    def _cameras(self, sequence: Sequence, part: slice, size: tuple[int, int]) -> Cameras:
        assert sequence.cameras is not None
        cameras, (height, width) = sequence.cameras(), sequence.images().shape[1:3]
        world = torch.eye(4, dtype=torch.float64) if self.world is None else self.world
        poses = world @ geometry.rebase(cameras).world_from_camera[part]
        poses = geometry.make_pose(poses[..., :3, :3], self.unit * poses[..., :3, 3])
        scale = torch.tensor([size[1] / width, size[0] / height, 1.0], dtype=torch.float64)[:, None]
        return Cameras(world_from_camera=poses[None], intrinsics=(scale * cameras.intrinsics[part])[None])


def _nearest(maps: Tensor, size: tuple[int, int]) -> Tensor:
    rows, columns = (((torch.arange(n) + 0.5) * m / n).long() for n, m in zip(size, maps.shape[1:], strict=True))
    return maps[:, rows][:, :, columns]


def _scored(name: str, root: Path, change: Callable[[Perfect], Perfect] | None = None, **settings: object) -> Published:
    """A perfect predictor on files written in the set's layout, at a size at which no resampling is needed."""
    writer, only = written.WRITERS[name]
    if not root.exists():
        writer(root)
    chosen = {"sequences": None if only is None else (only,), "long_side": written.WIDTH, **settings}
    config = PublishedConfig(protocol=name, root=str(root), **chosen)  # pyright: ignore[reportArgumentType]
    model = Perfect(PROTOCOLS[name].open(root, config.sequences))
    return run_protocol(model if change is None else change(model), config, patch=PATCH, trained=(32, 32))


PLAIN = list(written.WRITERS)
"""Pictures are scored in test_published_views.py."""


@pytest.mark.parametrize("name", PLAIN)
def test_the_truth_scores_perfectly_under_every_protocol(name: str, tmp_path: Path) -> None:
    result = _scored(name, tmp_path / "set")
    assert not result.failed
    straight = {missing.task for missing in result.skipped if "on a line" in missing.reason}
    assert not straight or name in ("tum", "dycheck")  # whose strides leave the little world two places
    assert {row.task for row in result.rows} | straight == set(PROTOCOLS[name].tasks), result.skipped
    for metric, value in result.means().items():
        perfect = 1 if METRICS[metric].better == "higher" else 0
        assert value == pytest.approx(perfect, abs=2e-3), metric


@pytest.mark.parametrize("name", ["folder", "nrgbd"])
def test_another_unit_and_world_are_aligned_away_as_the_protocol_says(name: str, tmp_path: Path) -> None:
    exact = _scored(name, tmp_path / "set").means()
    turned = written.world().poses[2]
    other = _scored(name, tmp_path / "set", lambda model: replace(model, unit=1.7)).means()
    for metric, value in other.items():
        if "metric" in metric:
            assert "absrel" not in metric or value == pytest.approx(0.7, abs=0.01)
        elif "scaleshift" not in metric:  # Adam starts at the median ratio, which is exact
            assert value == pytest.approx(exact[metric], abs=3e-3), metric
    world = torch.from_numpy(turned)
    posed = _scored(name, tmp_path / "set", lambda model: replace(model, world=world)).means()
    if "pose_ate_sim3" in posed:
        assert posed["pose_ate_sim3"] == pytest.approx(0, abs=1e-5)


def test_points_aligned_by_trajectory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As DyCheck's: unit and world go by the camera centres, and wrong depth stays wrong."""
    by_trajectory = replace(PROTOCOLS["folder"], points=PROTOCOLS["dycheck"].points)
    monkeypatch.setitem(PROTOCOLS, "folder", by_trajectory)
    world = torch.from_numpy(written.world().poses[2])
    other = _scored("folder", tmp_path / "set", lambda m: replace(m, unit=1.7, world=world), tasks=("points",)).means()
    assert set(other) >= {"points_accuracy_published_trajectory", "points_dist_median_published_trajectory"}
    assert all(value == pytest.approx(0, abs=1e-4) for value in other.values())

    def stretched(model: Perfect) -> Says:
        def predict(clip: Clip) -> Prediction:
            said = model(clip)
            assert said.depth is not None
            return replace(said, depth=1.1 * said.depth)

        return Says(predict)

    wrong = _scored("folder", tmp_path / "set", stretched, tasks=("points",)).means()  # pyright: ignore[reportArgumentType]
    (sequence,) = PROTOCOLS["folder"].open(tmp_path / "set")
    assert sequence.depth is not None
    least = 0.1 * float(sequence.depth()[0].mean())  # along the ray it is more
    assert least < wrong["points_dist_published_trajectory"] < 1.6 * least
    assert wrong["points_accuracy_published_trajectory"] <= wrong["points_dist_published_trajectory"]


def test_published_scores_are_those_of_the_metrics(tmp_path: Path) -> None:
    """Depth twice too large errs by 1 where it is not aligned."""
    result = _scored("folder", tmp_path / "set", lambda model: replace(model, unit=2.0), tasks=("video_depth",))
    assert result.means()["depth_absrel_published_metric"] == pytest.approx(1, abs=1e-5)


@pytest.mark.parametrize("name", ["folder", "sintel", "bonn", "bonn_matched"])
def test_a_camera_that_stands_still_errs_by_what_the_true_one_does(name: str, tmp_path: Path) -> None:
    """ATE is the extent of its path, RPE the size of its steps and turns, in plain numbers."""
    writer, only = written.WRITERS[name]
    writer(tmp_path / "set")
    sequences = None if only is None else (only,)
    config = PublishedConfig(protocol=name, root=str(tmp_path / "set"), sequences=sequences, tasks=("pose",))
    still = run_protocol(StaticCamera(), replace(config, long_side=32), patch=PATCH, trained=(32, 32)).means()
    sequence = next(each for each in PROTOCOLS[name].open(tmp_path / "set", sequences) if each.cameras is not None)
    assert sequence.cameras is not None
    poses = sequence.cameras().world_from_camera.numpy()
    centres = poses[:, :3, 3]
    assert still["pose_ate_sim3"] == pytest.approx(np.sqrt(((centres - centres.mean(0)) ** 2).sum(-1).mean()))
    steps = np.linalg.norm(np.diff(centres, axis=0), axis=-1)
    assert still["pose_rpe_trans_sim3"] == pytest.approx(np.sqrt((steps**2).mean()))
    cosines = [(np.trace(one[:3, :3].T @ other[:3, :3]) - 1) / 2 for one, other in itertools.pairwise(poses)]
    turns = np.rad2deg(np.arccos(np.clip(cosines, -1, 1)))
    assert turns.max() > 0.1
    assert still["pose_rpe_rot_deg_sim3"] == pytest.approx(np.sqrt((turns**2).mean()), rel=1e-4)


def test_windows_for_video_depth_cover_every_frame_once(tmp_path: Path) -> None:
    assert Cut(frames=3, overlap=2).plan(5) == [range(3), range(1, 4), range(2, 5)]
    assert Cut(frames=80, overlap=40).plan(110) == [range(80), range(30, 110)]
    assert Cut(frames=80, overlap=40).plan(3) == [range(3)]
    shown: list[int] = []

    @dataclass
    class Counting(Perfect):
        def __call__(self, clip: Clip) -> Prediction:
            shown.append(clip.images.shape[1])
            return super().__call__(clip)

    result = _scored("folder", tmp_path / "set", lambda m: Counting(m.known), tasks=("video_depth",), window=(2, 1))
    assert set(shown) == {2}
    assert result.means()["depth_absrel_published_metric"] == pytest.approx(0, abs=1e-5)


def test_single_frames_are_shown_alone(tmp_path: Path) -> None:
    shown: list[int] = []

    @dataclass
    class Counting(Perfect):
        def __call__(self, clip: Clip) -> Prediction:
            shown.append(clip.images.shape[1])
            return super().__call__(clip)

    result = _scored("folder", tmp_path / "set", lambda model: Counting(model.known), tasks=("depth",))
    assert set(shown) == {1}
    assert len(shown) == result.rows[0].frames


def test_what_the_model_does_not_predict_is_skipped_and_said(tmp_path: Path) -> None:
    written.WRITERS["folder"][0](tmp_path / "set")
    config = PublishedConfig(protocol="folder", root=str(tmp_path / "set"))
    result = run_protocol(StaticCamera(), config, patch=PATCH, trained=(32, 32))
    assert {row.task for row in result.rows} == {"pose"}
    reasons = {missing.task: missing.reason for missing in result.skipped}
    assert "does not predict depth" in reasons["video_depth"]
    assert "mask" in reasons["mask"]


def _static(name: str, original: Protocol) -> Callable[[Path, tuple[str, ...] | None], list[Sequence]]:
    def read(root: Path, only: tuple[str, ...] | None = None) -> list[Sequence]:
        (moving,) = original.open(root, only)
        assert moving.cameras is not None
        known = moving.cameras()
        pose = known.world_from_camera[:1].expand_as(known.world_from_camera)
        step = torch.zeros_like(pose)
        step[:, 2, 3] = torch.arange(len(pose)) * (name == "line")
        still = replace(known, world_from_camera=pose + step)
        return [replace(moving, name=name, cameras=lambda: still)]

    return read


@pytest.mark.parametrize("name", ["still", "line"])
def test_cameras_that_no_similarity_can_be_fitted_to_are_skipped(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    written.WRITERS["folder"][0](tmp_path / "set")
    protocol: Protocol = replace(PROTOCOLS["folder"], reader=_static(name, PROTOCOLS["folder"]))
    monkeypatch.setitem(PROTOCOLS, "folder", protocol)
    config = PublishedConfig(protocol="folder", root=str(tmp_path / "set"), tasks=("pose",))
    result = run_protocol(StaticCamera(), config, patch=PATCH, trained=(32, 32))
    assert not result.rows
    assert "does not move" in result.skipped[0].reason


def test_one_sequence_that_fails_does_not_lose_the_others(tmp_path: Path) -> None:
    writer = written.WRITERS["folder"][0]
    writer(tmp_path / "set" / "a")
    writer(tmp_path / "set" / "b")
    broken = next((tmp_path / "set" / "a" / "depth").iterdir())
    broken.write_bytes(b"no picture")
    config = PublishedConfig(protocol="folder", root=str(tmp_path / "set"), tasks=("video_depth", "pose"), long_side=32)
    model = Perfect(PROTOCOLS["folder"].open(tmp_path / "set", ("b",)))
    result = run_protocol(model, config, patch=PATCH, trained=(32, 32))
    assert {(row.sequence, row.task) for row in result.rows} >= {("b", "video_depth"), ("b", "pose")}
    assert {missing.sequence for missing in result.failed} == {"a"}
    assert broken.name in " ".join(missing.reason for missing in result.failed)


def test_predictions_that_are_not_finite_fail_their_sequence(tmp_path: Path) -> None:
    written.WRITERS["folder"][0](tmp_path / "set")
    config = PublishedConfig(protocol="folder", root=str(tmp_path / "set"), tasks=("video_depth",))

    def diverged(clip: Clip) -> Prediction:
        return Prediction(depth=torch.full_like(clip.images[:, :, 0], torch.nan))

    (missing,) = run_protocol(Says(diverged), config, patch=PATCH, trained=(32, 32)).failed
    assert "not finite" in missing.reason


@pytest.mark.parametrize("metric", [True, False])
def test_depth_without_a_fit_is_scored_only_where_lengths_are_metres(metric: bool, tmp_path: Path) -> None:
    written.folder(tmp_path)
    written.text(tmp_path / "cameras.json", json.dumps({"metric": metric}))
    config = PublishedConfig(protocol="folder", root=str(tmp_path), tasks=("video_depth",), long_side=32)
    model = Perfect(PROTOCOLS["folder"].open(tmp_path))
    found = run_protocol(model, config, patch=PATCH, trained=(32, 32)).means()
    assert "depth_absrel_published_scale" in found
    assert ("depth_absrel_published_metric" in found) == metric


def test_means_of_depth_are_weighted_by_pixels() -> None:
    rows = [
        module.Row(sequence="a", task="depth", frames=1, scores={"depth_absrel": 1.0}, weight=1.0),
        module.Row(sequence="b", task="depth", frames=1, scores={"depth_absrel": 4.0}, weight=3.0),
    ]
    result = Published(protocol="p", source="s", note="n", rows=rows)
    assert result.means() == {"depth_absrel": pytest.approx(13 / 4)}


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"protocol": "sintle"}, "choose one of sintel"),
        ({"tasks": ("pose", "speed")}, "folder has pose"),
        ({"window": (3, 4)}, "stride"),
        ({"long_side": 2}, "long_side"),
    ],
)
def test_settings_that_make_no_sense_are_named(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        PublishedConfig(**{"protocol": "folder", "root": "x", **settings})  # pyright: ignore[reportArgumentType]


def test_json_and_tables(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    result = _scored("folder", tmp_path / "set", lambda model: replace(model, unit=2.0))
    result.write(tmp_path / "scores.json")
    content = json.loads((tmp_path / "scores.json").read_text())
    assert content["protocol"] == "folder"
    assert content["means"] == result.means()
    assert {row["task"] for row in content["sequences"]} == {row.task for row in result.rows}
    replace(result, failed=[module.Missing(sequence="x", task="pose", reason="broken [file]")]).print()
    text = capsys.readouterr().out
    assert "mean" in text
    assert "FAILED 1: broken [file]: x (pose)" in text


def test_model_sizes_keep_the_shape_in_whole_patches() -> None:
    assert module.model_size((436, 1024), 518, 14) == (224, 518)
    assert module.model_size((480, 640), 512, 8) == (384, 512)
    assert module.model_size((1000, 10), 64, 16) == (64, 16)


real = pytest.mark.skipif(not SAMPLES.is_dir(), reason="../shared/samples is not there")


def _link(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    target.symlink_to(source)


def _real(name: str, root: Path, only: tuple[str, ...] | None = None, **settings: object) -> dict[str, float]:
    """Means of the truth, seen at the size of the pictures (to whole patches)."""
    sequences = PROTOCOLS[name].open(root, only)
    side = max(sequences[0].images().shape[1:3])
    chosen = {"sequences": only, "long_side": side, **settings}
    config = PublishedConfig(protocol=name, root=str(root), **chosen)  # pyright: ignore[reportArgumentType]
    result = run_protocol(Perfect(sequences), config, patch=PATCH, trained=(32, 32))
    assert not result.failed
    return result.means()


@real
def test_davis_bmx_trees(tmp_path: Path) -> None:
    source = SAMPLES / "davis_bmx-trees"
    _link(source / "frames", tmp_path / "JPEGImages" / "480p" / "bmx-trees")
    _link(source / "masks", tmp_path / "Annotations" / "480p" / "bmx-trees")
    scores = _real("davis16", tmp_path, ("bmx-trees",))
    assert set(scores) == {"mask_jm_davis", "mask_jr_davis", "mask_fm_davis", "mask_fr_davis"}
    assert all(value == 1 for value in scores.values())


@real
def test_hololens(tmp_path: Path) -> None:
    source, root = SAMPLES / "hololens_rgbd", tmp_path / "office"
    for part in ("images", "depth", "poses.txt"):
        _link(source / part, root / part)
    k = np.loadtxt(source / "K.txt") + np.array([[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]])
    (root / "intrinsics.txt").write_text("\n".join(" ".join(map(str, row)) for row in k))
    scores = _real("folder", root, max_points=20_000)
    for metric, value in scores.items():
        assert value == pytest.approx(1 if METRICS[metric].better == "higher" else 0, abs=1e-3), metric


@real
def test_3dmatch(tmp_path: Path) -> None:
    source = SAMPLES / "rgbd_3dmatch" / "seq-01"
    (tmp_path / "room").mkdir()
    (tmp_path / "room" / "TestSplit.txt").write_text("sequence1\n")
    for path in source.iterdir():
        _link(path, tmp_path / "room" / "seq-01" / path.name.replace(".depth.", ".depth.proj."))
    scores = _real("seven_scenes", tmp_path, max_points=20_000)
    assert "points_nc_published_icp" in scores
    for metric, value in scores.items():
        assert value == pytest.approx(1 if METRICS[metric].better == "higher" else 0, abs=1e-4), metric


@real
def test_kitti_and_nyu(tmp_path: Path) -> None:
    source, drive = SAMPLES / "kitti_nyu_depth" / "kitti", "2011_09_26_drive_0002_sync"
    truth = tmp_path / "kitti" / "val" / drive / "proj_depth" / "groundtruth" / "image_02" / "0000000005.png"
    _link(source / "depth" / "0000000005.png", truth)
    image = tmp_path / "kitti" / "2011_09_26" / drive / "image_02" / "data" / "0000000005.png"
    _link(source / "rgb" / "0000000005.png", image)
    source, scene = SAMPLES / "kitti_nyu_depth" / "nyu", tmp_path / "nyu" / "official_splits" / "test" / "kitchen"
    _link(source / "rgb" / "rgb_00000.jpg", scene / "rgb_00000.jpg")
    _link(source / "depth" / "sync_depth_00000.png", scene / "sync_depth_00000.png")
    for name in ("kitti", "nyu"):
        size = PROTOCOLS[name].open(tmp_path / name)[0].images().shape[1:3]
        for metric, value in _real(name, tmp_path / name).items():
            exact = size[0] % PATCH == size[1] % PATCH == 0  # KITTI's sparse depth does not survive resampling
            if exact:
                assert value == pytest.approx(1 if METRICS[metric].better == "higher" else 0, abs=1e-3), metric
            else:
                assert np.isfinite(value)

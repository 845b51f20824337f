"""V-DPM's point maps at other times and Any4D's scene flow, with predictors whose scores are known."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from four_d import geometry
from four_d.abilities import Abilities, Model
from four_d.errors import UserError
from four_d.evaluation import Published, PublishedConfig, run_protocol
from four_d.metrics import tracks as metrics
from four_d.protocols.table import PROTOCOLS
from four_d.types import Cameras, Clip, Prediction
from tests.protocols import tracked
from tests.protocols.built import kubric, npz
from tests.protocols.tracked import FRAMES, WIDTH, Oracle
from tests.protocols.written import picture, png16

STEP = 3
PAIRS = ("_0_0", "_0_1", "_1_0", "_1_1")


@dataclass
class SnippetOracle(Model):
    """Says the truth of whatever frames of `tracked.scene` it is shown; ``wrong`` is added to x of displacements."""

    unit: float = 1.0
    wrong: float = 0.0
    moving: bool = True

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"motion"}), queried=frozenset({"motion"}))

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        known, frames = tracked.scene(), _frames(clip)
        first = geometry.invert_pose(known.cameras.world_from_camera[frames[0]])
        poses = first @ known.cameras.world_from_camera[frames]
        poses[:, :3, 3] *= self.unit
        assert clip.query_times is not None
        for number, time in enumerate(clip.query_times[0].tolist()):
            at = frames[clip.times[0].tolist().index(time)]
            own = torch.stack([known.places[frame, frame] for frame in frames])
            apart = (known.places[at, frames] - own) * self.moving @ first[:3, :3].mT
            apart[..., 0] += self.wrong
            yield Prediction(
                cameras=None
                if number
                else Cameras(world_from_camera=poses[None], intrinsics=known.cameras.intrinsics[None, frames]),
                depth=None if number else self.unit * known.depth[None, frames],
                motion=self.unit * apart[None, None],
                motion_visible=known.visible[None, None, at, frames].double(),
            )

    def __call__(self, clip: Clip) -> Prediction:
        raise AssertionError(f"tracks are scored by passes, and this was called with {clip.images.shape}")


def _frames(clip: Clip) -> list[int]:
    known = torch.from_numpy(tracked.scene().images).movedim(-1, 1) / 255
    return [int((known - image.cpu()).abs().flatten(1).mean(1).argmin()) for image in clip.images[0]]


def write_pointodyssey(root: Path) -> None:
    """A scene whose tracks are pixel centres of every frame, each seen in its own frame alone."""
    known, scene = tracked.scene(), root / "boxes"
    for at in range(FRAMES):
        picture(scene / "rgbs" / f"rgb_{at:05d}.jpg", known.images[at], quality=100, subsampling=0)
        png16(scene / "depths" / f"depth_{at:05d}.png", known.depth[at].numpy(), 65.535)
    x, y, t = tracked.queries(tuple(range(FRAMES)), STEP).astype(int).T
    points = known.places[:, t, y, x].numpy()
    npz(
        scene / "anno.npz",
        trajs_3d=points,
        visibs=np.arange(FRAMES)[:, None] == t,
        valids=np.ones(points.shape[:2], bool),
        intrinsics=known.cameras.intrinsics.numpy(),
        extrinsics=geometry.invert_pose(known.cameras.world_from_camera).numpy(),
    )


def run(model: object, root: Path, protocol: str = "vdpm_pointodyssey_margin2", **settings: object) -> Published:
    config = PublishedConfig(protocol=protocol, root=str(root), long_side=WIDTH, **settings)  # pyright: ignore[reportArgumentType]
    return run_protocol(model, config, patch=4, trained=(32, 32))  # pyright: ignore[reportArgumentType]


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("snippets")
    write_pointodyssey(place)
    return place


def _pair(first: int) -> tuple[Tensor, Tensor]:
    """Points i j n 3 of the pixels of frame i at the time of frame j, in the first one's camera, and which move."""
    known = tracked.scene()
    x, y, _ = tracked.queries(step=STEP).astype(int).T
    frames = [first, first + 2]
    places = torch.stack([known.places[:, frame, y, x][frames] for frame in frames])
    here = geometry.invert_pose(known.cameras.world_from_camera[first])
    return geometry.transform(here, places), (places[:, 1] - places[:, 0]).norm(dim=-1) > 0.01


@pytest.mark.parametrize("scaling", ["median", "sim3_closed", "none"])
def test_the_truth_scores_perfectly(scaling: str, root: Path) -> None:
    unit = 1.0 if scaling == "none" else 2.5
    result = run(SnippetOracle(unit=unit), root, scaling=scaling)
    assert [row.sequence for row in result.rows] == [f"boxes/{start:05d}" for start in (0, 1, 2)]
    assert not result.failed
    found = result.means()
    for which in ("", *PAIRS):
        for suffix in ("", "_dynamic"):
            assert found[f"epe_dpm{which}_{scaling}{suffix}"] == pytest.approx(0, abs=2e-4), which
    assert found["track_scale"] == pytest.approx(1 / unit, rel=1e-3)
    assert scaling in result.note


def test_a_displacement_that_errs_counts_at_the_other_time_as_a_fraction_of_the_mean_distance(root: Path) -> None:
    result = run(SnippetOracle(wrong=0.3), root, scaling="none")
    for row in result.rows:
        points, moving = _pair(int(row.sequence[-1]))
        error = 0.3 / float(points.norm(dim=-1).mean())
        for which in PAIRS:
            expected = error if which in ("_0_1", "_1_0") else 0
            assert row.scores[f"epe_dpm{which}_none"] == pytest.approx(expected, abs=2e-4)
        assert row.scores["epe_dpm_none"] == pytest.approx(error / 2, abs=2e-4)
        assert row.scores["track_dynamic_fraction"] == pytest.approx(float(moving.double().mean()))


def test_standing_still_errs_by_how_far_points_go(root: Path) -> None:
    result = run(SnippetOracle(), root, scaling="none")
    still = run(SnippetOracle(moving=False), root, scaling="none")
    assert result.means("model_static") == pytest.approx(still.means(), abs=1e-5)
    for row in still.rows:
        points, moving = _pair(int(row.sequence[-1]))
        gone = (points[:, 1] - points[:, 0]).norm(dim=-1) / points.norm(dim=-1).mean()
        assert row.scores["epe_dpm_0_1_none"] == pytest.approx(float(gone[0].mean()), abs=2e-4)
        assert row.scores["epe_dpm_1_0_none_dynamic"] == pytest.approx(float(gone[1][moving[1]].mean()), abs=2e-4)


def test_snippets_that_no_video_is_long_enough_for_are_an_error(root: Path) -> None:
    for kind, span in (("margin8", 8), ("tracks", 18)):
        with pytest.raises(UserError, match=f"more than {span} frames"):
            PROTOCOLS[f"vdpm_pointodyssey_{kind}"].open(root)
    with pytest.raises(UserError, match="no video of one camera"):
        PROTOCOLS["vdpm_kubric_margin2"].open(_rig(root))


def _rig(root: Path) -> Path:
    kubric(root / "rig")
    return root / "rig"


def test_any4ds_share_of_scene_flow_within_ten_centimetres(tmp_path: Path) -> None:
    for source in ("drivetrack", "pstudio"):
        arrays = tracked.content(tracked.queries(), poses=source == "drivetrack")
        tracked.write(tmp_path / source / "clip.npz", arrays)
    result = run(Oracle(unit=2.0), tmp_path, "any4d_tracks")
    assert [row.sequence for row in result.rows] == ["drivetrack/clip", "pstudio/clip"]
    assert result.means()["sceneflow_tau_world_median_dynamic"] == 1
    still = run(Oracle(moving=False), tmp_path, "any4d_tracks", sequences=("drivetrack",)).means()
    x, y, _ = tracked.queries().astype(int).T
    points = tracked.scene().places[:, 0, y, x]
    lengths = (points[1:] - points[:1]).norm(dim=-1)
    assert still["sceneflow_tau_world_median"] == pytest.approx(float((lengths < 0.1).double().mean()), abs=2e-3)
    assert still["sceneflow_epe_world_median"] == pytest.approx(float(lengths.mean()), rel=2e-3)
    assert 0 < still["sceneflow_tau_world_median"] < 1
    by_hand = metrics.scene_flow(
        torch.tensor([[0.0, 0, 0], [1, 0, 0]]), torch.tensor([[0.0, 0.0999, 0], [1.1001, 0, 0]])
    )
    assert by_hand.tau == 0.5

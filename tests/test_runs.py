"""Points followed through runs longer than a model's window, by models that know the truth."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import evaluation
from four_d import surface as surfaces
from four_d.abilities import Abilities, Model
from four_d.data.sampling import to_clip
from four_d.data.shards import finalise, write_shard
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig
from four_d.evaluation.published_result import Skip
from four_d.evaluation.published_views import placed as placed_on_truth
from four_d.evaluation.runs import (
    Run,
    RunInputs,
    RunTracks,
    RunTruth,
    preparation,
    run_scores,
    run_truth,
    track_scores,
)
from four_d.geometry import invert_pose, make_pose, transform
from four_d.types import Cameras, Clip, Gaussians, Prediction, map_tensors
from four_d.windows.clips import ClipSource
from four_d.windows.cut import Cut
from four_d.windows.sliding import Sliding
from tests.helpers import Says, box_clip
from tests.test_gaussian_pipeline import loaded, model  # noqa: F401  # a fixture

FRAMES, SIZE = 7, 32


@pytest.fixture(scope="module")
def run() -> Run:
    clip = to_clip(box_clip(1, frames=FRAMES, cameras=1, size=SIZE), with_surface=True)
    return Run(key="box/0", clip=clip)


@dataclasses.dataclass(frozen=True)
class Knows(Model):
    """Finds a clip's frames by their images, and says exactly what their pixels show and how it moves.

    Lengths are in the unit in which the clip's cameras are, that of the example.
    """

    run: Run
    moves: bool
    """Dense motion, in a unit of its own and from the first of the frames; else Gaussians, of all frames."""
    still: bool = False

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"motion" if self.moves else "gaussians"}))

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        assert clip.query_times is not None or not self.moves
        times = [None] if clip.query_times is None else clip.query_times[0]
        yield from (self._one(clip, time) for time in times)

    def __call__(self, clip: Clip) -> Prediction:
        return self._one(clip, None)

    def _one(self, clip: Clip, time: Tensor | None) -> Prediction:
        truth = self.run.clip
        frames = [int((truth.images - image).abs().flatten(1).amax(-1).argmin()) for image in clip.images[0]]
        assert truth.cameras is not None
        here = invert_pose(truth.cameras.world_from_camera[frames[0]])
        if self.moves:
            return self._motion(frames, here, time, 3.0)
        assert clip.cameras is not None
        steps = truth.cameras.world_from_camera[frames, :3, 3] - truth.cameras.world_from_camera[frames[0], :3, 3]
        given = clip.cameras.world_from_camera[0, :, :3, 3].norm(dim=-1)
        unit = float(given[-1] / steps[-1].norm())
        return Prediction(gaussians=self._gaussians(frames, here, unit, clip.times[0]))

    def _paths(self, frames: list[int], here: Tensor) -> Float[Tensor, "t f h w 3"]:
        truth = self.run.clip
        assert truth.surface is not None
        surface = dataclasses.replace(
            truth.surface, faces=truth.surface.faces[frames], barycentric=truth.surface.barycentric[frames]
        )
        at = truth.times[frames]
        found = torch.stack([surfaces.points(surface, at if self.still else t.expand(len(at))) for t in at])
        return transform(here, found.flatten(0, 3)[None])[0].view(found.shape)

    def _gaussians(self, frames: list[int], here: Tensor, unit: float, times: Tensor) -> Gaussians:
        paths = self._paths(frames, here).flatten(1, 3) * unit
        count = paths.shape[1]
        found = Gaussians(
            means=paths[0],
            quats=torch.tensor([1.0, 0, 0, 0]).expand(count, 4),
            scales=torch.full((count, 3), 0.02 * unit),
            opacities=torch.full((count,), 0.95),
            harmonics=torch.zeros(count, 1, 3),
            offsets=paths - paths[0],
            offset_times=times,
        )
        return map_tensors(found, lambda tensor: tensor[None])

    def _motion(self, frames: list[int], here: Tensor, time: Tensor | None, unit: float) -> Prediction:
        truth = self.run.clip
        paths = self._paths(frames, here) * unit
        own = paths[torch.arange(len(frames)), torch.arange(len(frames))]
        assert truth.cameras is not None
        cameras = Cameras(
            world_from_camera=here @ truth.cameras.world_from_camera[frames],
            intrinsics=truth.cameras.intrinsics[frames],
        )
        poses = cameras.world_from_camera
        cameras = dataclasses.replace(cameras, world_from_camera=make_pose(poses[:, :3, :3], poses[:, :3, 3] * unit))
        said = Prediction(cameras=cameras, points=own)
        if time is not None:
            step = int((truth.times[frames] - time).abs().argmin())
            said = dataclasses.replace(said, motion=(paths[step] - own)[None])
        return map_tensors(said, lambda tensor: tensor[None])


POSED = RunInputs(normalisation="disparity", hints=("intrinsics", "poses"))
SHOWN = RunInputs()
BY_ONE = Cut(frames=4, overlap=1)
WHOLE = Cut(frames=FRAMES, overlap=1)


def value(scores: dict[str, float | None], name: str) -> float:
    found = scores[name]
    assert found is not None
    return found


def test_the_points_are_of_things_that_move(run: Run) -> None:
    truth = run_truth(run.clip)
    assert truth is not None
    assert 20 < len(truth.queries) <= 256
    assert truth.visible[:, 0].all()
    surface = run.clip.surface
    assert surface is not None
    x, y = truth.queries[:, 1:].long().unbind(-1)
    assert (surfaces.instances(surface)[0, y, x] >= 2).all()
    torch.testing.assert_close(truth.points[:, 0], surfaces.points(surface, run.clip.times)[0, y, x])
    few = run_truth(run.clip, most=5)
    assert few is not None
    assert len(few.queries) == 5
    still = dataclasses.replace(
        run.clip, surface=dataclasses.replace(surface, vertices=surface.vertices[:1].expand_as(surface.vertices))
    )
    assert run_truth(still) is None


def test_exact_gaussians_are_followed_over_windows_of_their_own_unit_and_coordinates(run: Run) -> None:
    scores = run_scores(Knows(run, moves=False), run, POSED, BY_ONE)
    assert value(scores, "track_epe_motion_static") > 0.25
    assert value(scores, "track_epe_motion") < 0.03
    assert value(scores, "track_epe") < 0.1  # a pixel; at edges the Gaussians of several frames mix
    assert value(scores, "track_epe") < value(scores, "track_epe_static") / 3
    assert value(scores, "track_apd") > 0.9
    assert value(scores, "track_visible_accuracy") > 0.8
    assert "track_scale_error" not in scores


def test_gaussians_that_stand_still_score_what_standing_still_does(run: Run) -> None:
    scores = run_scores(Knows(run, moves=False, still=True), run, POSED, BY_ONE)
    assert value(scores, "track_epe") == pytest.approx(value(scores, "track_epe_static"), abs=1e-5)
    assert value(scores, "track_epe_motion") == pytest.approx(value(scores, "track_epe_motion_static"), rel=1e-4)


def test_exact_motion_is_scored_on_the_same_points_whatever_its_unit(run: Run) -> None:
    scores = run_scores(Knows(run, moves=True), run, SHOWN, WHOLE)
    assert value(scores, "track_epe") == pytest.approx(0, abs=1e-4)
    assert value(scores, "track_scale_error") > 0
    chained = run_scores(Knows(run, moves=False), run, POSED, BY_ONE)
    assert scores["track_epe_motion_static"] == chained["track_epe_motion_static"]
    assert value(scores, "track_epe_static") == pytest.approx(value(scores, "track_epe_motion_static"), rel=1e-4)


def test_scores_by_hand() -> None:
    truth = RunTruth(
        queries=torch.zeros(1, 3),
        points=torch.tensor([[[0.0, 0, 2], [0.3, 0, 2], [0.6, 0, 2]]]),
        visible=torch.tensor([[True, True, False]]),
    )
    mine = torch.tensor([[[0.0, 0.4, 2], [0.3, 0.4, 2], [0.3, 0.4, 2]]])
    scores = track_scores(RunTracks(points=mine, visible=torch.ones(1, 3, dtype=torch.bool)), truth, unit=2.0)
    assert value(scores, "track_epe") == pytest.approx(0.4 + 0.5)  # (0.4 + 0.5) / 2, times two
    assert value(scores, "track_epe_static") == pytest.approx(0.5 + (0.36 + 0.16) ** 0.5)
    assert value(scores, "track_epe_motion") == pytest.approx(0.3)
    assert value(scores, "track_epe_motion_static") == pytest.approx(0.9)
    assert value(scores, "track_apd") == pytest.approx(1 / 4)
    assert value(scores, "track_visible_accuracy") == 0.5


def straight(extent: float) -> Tensor:
    """Cameras that go along a line and turn a little on the way."""
    angle = torch.linspace(0, 0.2, 5)
    turn = torch.eye(3).repeat(5, 1, 1)
    turn[:, 0, 0], turn[:, 0, 2], turn[:, 2, 0], turn[:, 2, 2] = angle.cos(), angle.sin(), -angle.sin(), angle.cos()
    return make_pose(turn, torch.linspace(0, extent, 5)[:, None] * torch.tensor([0.9, 0.3, -0.4]))


def arc() -> Tensor:
    poses = straight(1.0)
    poses[:, 1, 3] = poses[:, 0, 3] ** 2
    return poses


def placed(poses: Tensor, true_depth: float | None, own_depth: float | None) -> tuple[Tensor, Tensor]:
    """Means that a model with a world of its own says, brought to the true one; and where they truly are."""
    points = torch.randn(50, 3, generator=torch.Generator().manual_seed(0)) + torch.tensor([0.0, 0, 4])
    turn = torch.tensor([[0.0, -1, 0], [0.6, 0, -0.8], [0.8, 0, 0.6]])
    rigid, lens = make_pose(turn, torch.tensor([3.0, 1, -2])), torch.eye(3).expand(5, 3, 3)

    def own(clip: Clip) -> Prediction:
        mine = make_pose(turn @ poses[:, :3, :3], transform(rigid, poses[:, :3, 3]) / 5)
        said = Gaussians(
            means=transform(rigid, points) / 5,
            quats=torch.tensor([1.0, 0, 0, 0]).expand(50, 4),
            scales=torch.ones(50, 3),
            opacities=torch.ones(50),
            harmonics=torch.zeros(50, 1, 3),
        )
        cameras = Cameras(world_from_camera=mine, intrinsics=lens)
        depth = None if own_depth is None else torch.full((5, 8, 8), own_depth)
        found = Prediction(gaussians=said, cameras=cameras, depth=depth)
        return map_tensors(found, lambda tensor: tensor[None])

    depth = None if true_depth is None else torch.full((5, 8, 8), true_depth)
    clip = Clip(
        images=torch.zeros(5, 3, 8, 8),
        times=torch.arange(5.0),
        camera_ids=torch.zeros(5, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses, intrinsics=lens),
        depth=depth,
        valid=None if depth is None else depth > 0,
    )
    source = ClipSource(model=Says(own), clip=clip, prepare=preparation(RunInputs()))
    sliding = Sliding(source, WHOLE, source.model.abilities)
    whole = sliding.collect()
    (segment,) = placed_on_truth(sliding.segments(), whole, clip)
    return segment.gaussians.means, points


@pytest.mark.parametrize(
    ("poses", "true_depth", "own_depth"),
    [(arc(), None, None), (straight(1.0), None, None), (straight(1.0), 4.0, 1.3), (straight(0.0), 4.0, 0.8)],
    ids=["arc", "straight", "wrong depth", "still"],
)
def test_gaussians_of_a_model_that_finds_cameras_are_laid_on_the_true_ones(
    poses: Tensor, true_depth: float | None, own_depth: float | None
) -> None:
    """A straight path leaves its roll free, and a still camera the scale: orientations and depth hold them."""
    found, truth = placed(poses, true_depth, own_depth)
    torch.testing.assert_close(found, truth, atol=1e-4, rtol=0)


@pytest.mark.parametrize("depth", [(None, None), (4.0, None), (None, 0.8)])
def test_a_still_camera_without_depth_tells_no_scale(depth: tuple[float | None, float | None]) -> None:
    with pytest.raises(Skip, match="nothing says how long"):
        placed(straight(0.01), *depth)


def test_a_model_that_follows_no_points_is_refused(run: Run) -> None:
    with pytest.raises(UserError, match="no motion head"):
        run_scores(Says(), run, POSED, BY_ONE)
    nothing = dataclasses.replace(run, clip=dataclasses.replace(run.clip, surface=None))
    assert set(run_scores(Says(), nothing, POSED, BY_ONE).values()) == {None}


def test_eval_scores_tracks_of_a_real_model(tmp_path: Path, model: object) -> None:  # noqa: F811
    write_shard(tmp_path, 0, [box_clip(0, frames=8, cameras=2, size=24)])
    finalise(tmp_path, "boxes")
    config = EvaluationConfig(
        data=str(tmp_path), frames=6, hints=("intrinsics", "poses"), tasks=("tracks",), track_frames=8
    )
    result = evaluation.run(loaded(model), config)  # pyright: ignore[reportArgumentType]
    scores = result.rows["model"]
    assert scores["track_epe"].videos == 2
    assert scores["track_epe_motion_static"].mean > 0
    assert "track_epe" in result.to_dict()["summary"]  # pyright: ignore[reportOperatorIssue]
    assert "through 8 frames" in result.note
    shorter = evaluation.run(loaded(model), dataclasses.replace(config, track_frames=7))  # pyright: ignore[reportArgumentType]
    assert shorter.digest != result.digest
    with pytest.raises(UserError, match="has 8"):
        evaluation.run(loaded(model), dataclasses.replace(config, track_frames=9))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("wrong", [{"track_frames": 1}, {"cameras": 2}, {"pairwise": True}, {"track_frames": None}])
def test_settings_that_make_no_sense_are_named(wrong: dict[str, object]) -> None:
    settings = {"data": "x", "tasks": ("tracks",), "track_frames": 5, **wrong}
    with pytest.raises(UserError, match="track_frames"):
        EvaluationConfig(**settings)  # pyright: ignore[reportArgumentType]

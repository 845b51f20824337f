from __future__ import annotations

import dataclasses
import io
import json
import math
from pathlib import Path

import numpy as np
import pytest
import roma
import torch
from jaxtyping import Int
from rich.console import Console
from rich.table import Table
from torch import Tensor

from four_d import evaluation, geometry
from four_d.abilities import Abilities, Model
from four_d.backbones.hints import HintsConfig
from four_d.data.contract import ClipInfo, RawClip
from four_d.data.shards import CorruptSample, finalise, write_shard
from four_d.errors import UserError
from four_d.evaluation import (
    METRICS,
    Comparison,
    Evaluation,
    EvaluationConfig,
    Metric,
    Score,
    Scores,
    evaluate,
    held_out,
    image_free,
    summary,
)
from four_d.evaluation.pairwise import Pairwise
from four_d.evaluation.result import described
from four_d.evaluation.tables import parts
from four_d.heads.keypoint import KeypointPrediction
from four_d.metrics import baselines
from four_d.metrics.baselines import StaticCamera
from four_d.metrics.catalogue import POINTS
from four_d.metrics.metric import Task
from four_d.types import NONE, Cameras, Clip, Example, Keypoints, Prediction, map_tensors
from tests.helpers import Says, score_clip
from tests.test_export import TINY

FRAMES, HEIGHT, WIDTH = 6, 8, 10


def _path(seed: int, frames: int = FRAMES) -> Tensor:
    """A bent path with turns of some degrees; the first pose is not the identity."""
    g = torch.Generator().manual_seed(seed)
    vectors = (0.1 * torch.randn(frames, 3, generator=g)).cumsum(0)
    centres = (0.2 * torch.randn(frames, 3, generator=g)).cumsum(0)
    return geometry.make_pose(roma.rotvec_to_rotmat(vectors), centres)


def _example(seeds: list[int], scale: float = 2.0) -> Example:
    """A batch of clips whose truth the tests know."""
    batch = len(seeds)
    depth = torch.stack(
        [1 + torch.rand(FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(s)) for s in seeds]
    )
    poses = torch.stack([_path(seed) for seed in seeds])
    intrinsics = torch.tensor([[10.0, 0, WIDTH / 2], [0, 10, HEIGHT / 2], [0, 0, 1]])
    cameras = Cameras(
        world_from_camera=poses,
        intrinsics=intrinsics.expand(batch, FRAMES, 3, 3),
        known=torch.ones(batch, FRAMES, dtype=torch.bool),
    )
    inputs = Clip(
        images=depth[:, :, None].expand(-1, -1, 3, -1, -1) / 2,
        times=torch.arange(FRAMES, dtype=torch.float32).expand(batch, -1),
        camera_ids=torch.zeros(batch, FRAMES, dtype=torch.long),
    )
    targets = dataclasses.replace(
        inputs,
        depth=depth,
        valid=torch.ones_like(depth, dtype=torch.bool),
        cameras=geometry.rebase(cameras),
        scale=torch.full((batch,), scale),
        dynamic=depth > 1.6,
        dynamic_known=torch.ones(batch, FRAMES, dtype=torch.bool),
    )
    return Example(inputs=inputs, targets=targets, key=[f"clip-{seed}" for seed in seeds])


class Oracle(Model):
    """Knows the examples' truth; says it in another world and unit (``depth_factor``), with turned cameras."""

    def __init__(self, examples: list[Example], depth_factor: float = 1.0, turn_deg: float = 0.0) -> None:
        self.examples = iter(examples)
        self.depth_factor, self.turn_deg = depth_factor, turn_deg

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"depth", "cameras", "dynamic"}))

    def __call__(self, _: Clip) -> Prediction:
        targets = next(self.examples).targets
        assert targets.depth is not None
        assert targets.cameras is not None
        turns = torch.zeros(FRAMES, 3)
        turns[1:, 0] = math.radians(self.turn_deg)
        turn = geometry.make_pose(roma.rotvec_to_rotmat(turns), torch.zeros(FRAMES, 3))
        poses = targets.cameras.world_from_camera @ turn
        poses = geometry.make_pose(poses[..., :3, :3], poses[..., :3, 3] * self.depth_factor)
        cameras = Cameras(world_from_camera=_path(99, 1) @ poses, intrinsics=targets.cameras.intrinsics)
        dynamic = None if targets.dynamic is None else targets.dynamic.float()
        return Prediction(depth=targets.depth * self.depth_factor, cameras=cameras, dynamic=dynamic)


def test_a_perfect_prediction_scores_perfectly_and_beats_every_image_free_one() -> None:
    examples = [_example([1, 2]), _example([3])]
    result = evaluate(Oracle(examples, depth_factor=5.0), examples)
    scores = result.rows["model"]
    assert scores["depth_absrel_median_frame"].mean < 1e-6
    assert scores["depth_delta125_scaleshift_clip"].mean == 1
    assert scores["depth_absrel_none_clip"].mean == pytest.approx(4)
    assert scores["points_accuracy"].mean < 1e-5
    assert scores["points_completeness_median"].mean < 1e-5
    assert scores["mask_iou"].mean == scores["mask_f"].mean == 1
    assert scores["pose_ate_sim3"].mean < 1e-5
    assert scores["pose_rpe_trans_sim3"].mean < 1e-5
    assert scores["pose_rot_pairs_deg"].mean < 1e-3
    assert scores["pose_auc30"].mean == scores["pose_rra5"].mean == scores["pose_rta5"].mean == 1
    assert all(score.videos == 3 and score.excluded == 0 for score in scores.values())
    assert result.keys == ("clip-1", "clip-2", "clip-3")
    for metric in scores:
        best = result.best_image_free(metric)
        assert best is not None
        if "_none_" not in metric:
            better = scores[metric].mean - best[1].mean
            assert better >= 0 if METRICS[metric].better == "higher" else better <= 0


def test_rotation_errors_are_the_turn_that_was_made() -> None:
    examples = [_example([1])]
    scores = evaluate(Oracle(examples, turn_deg=8.0), examples).rows["model"]
    assert scores["pose_rot_first_deg"].mean == pytest.approx(8, abs=1e-3)
    pairs = FRAMES * (FRAMES - 1) / 2  # of which those without frame 0 have both ends turned alike
    relative = scores["pose_rot_pairs_deg"].mean
    assert relative < 8
    assert relative >= 8 * (FRAMES - 1) / pairs
    assert scores["pose_rra15"].mean == 1


def test_trajectory_errors_are_in_source_units() -> None:
    one, two = ([_example([1, 2], scale)] for scale in (1.0, 2.5))
    errors = [evaluate(Says(), e).rows["static_camera"] for e in (one, two)]
    for metric in ("pose_ate_sim3", "pose_rpe_trans_sim3"):
        assert errors[1][metric].mean == pytest.approx(2.5 * errors[0][metric].mean)
    assert errors[1]["pose_rot_pairs_deg"] == errors[0]["pose_rot_pairs_deg"]


def test_a_static_camera_scores_the_extent_and_the_mean_rotation() -> None:
    example = _example([4])
    assert example.targets.cameras is not None
    poses = example.targets.cameras.world_from_camera[0]
    scores = evaluate(Says(), [example]).rows["static_camera"]
    centres = poses[:, :3, 3]
    extent = (centres - centres.mean(0)).square().sum(-1).mean().sqrt().item()
    assert scores["pose_ate_sim3"].mean == pytest.approx(2 * extent, rel=1e-5)
    angles = [
        geometry.rotation_angle(poses[i, :3, :3].mT @ poses[j, :3, :3]) for i in range(6) for j in range(i + 1, 6)
    ]
    assert scores["pose_rot_pairs_deg"].mean == pytest.approx(math.degrees(float(torch.stack(angles).mean())), rel=1e-4)
    assert scores["pose_rta30"].mean == 0


def test_a_model_without_a_head_lacks_its_metrics_but_the_baselines_stand() -> None:
    example = _example([1])
    result = evaluate(Says(lambda _: Prediction(depth=torch.ones(1, FRAMES, HEIGHT, WIDTH))), [example])
    assert not any(metric.startswith("pose") for metric in result.rows["model"])
    assert "pose_ate_sim3" in result.rows["line_camera"]
    assert set(summary(result)) == {
        "depth_absrel_median_frame",
        "depth_absrel_scaleshift_clip",
        "depth_absrel_median_dynamic",
    }


def _without(example: Example, **changes: object) -> Example:
    return dataclasses.replace(example, targets=dataclasses.replace(example.targets, **changes))  # pyright: ignore[reportArgumentType]


def _of_moving(example: Example, moving: float, still: float) -> Scores:
    """A prediction with these relative errors of depth on moving and still pixels."""
    depth, dynamic = example.targets.depth, example.targets.dynamic
    assert depth is not None
    assert dynamic is not None
    return score_clip(Prediction(depth=(depth * (1 + torch.where(dynamic, moving, still)))[0]), _first(example))


def _first(example: Example) -> Clip:
    return map_tensors(example.targets, lambda tensor: tensor[0])


def test_depth_of_what_moves_is_scored_under_the_fit_to_all_pixels() -> None:
    example = _example([1])
    depth = torch.ones(1, FRAMES, HEIGHT, WIDTH)
    dynamic = torch.zeros(1, FRAMES, HEIGHT, WIDTH, dtype=torch.bool)
    dynamic[:, 1:, :2] = True  # a minority, so that the medians are those of the still pixels; frame 0 has none
    example = _without(example, depth=depth, dynamic=dynamic)
    scores = _of_moving(example, moving=0.3, still=0.0)
    assert scores["depth_absrel_median_dynamic"] == pytest.approx(0.3, rel=1e-5)
    assert scores["depth_absrel_median_static"] == pytest.approx(0, abs=1e-6)
    assert scores["depth_absrel_median_frame"] == pytest.approx(0.3 * 0.25 * 5 / 6, rel=1e-5)
    unknown = _without(example, dynamic_known=torch.zeros(1, FRAMES, dtype=torch.bool))
    scores = _of_moving(unknown, moving=0.3, still=0.0)
    assert scores["depth_absrel_median_dynamic"] is None
    assert scores["depth_absrel_median_static"] is None


def test_point_errors_are_in_source_units_and_blind_to_the_models_own() -> None:
    one, two = (_first(_example([1], scale)) for scale in (1.0, 2.5))
    noise = 0.05 * torch.randn(FRAMES, HEIGHT, WIDTH, generator=torch.Generator().manual_seed(0))
    assert one.depth is not None
    assert one.cameras is not None
    mine = geometry.unproject(one.depth + noise, one.cameras)
    turned = 7 * mine @ _path(3)[2, :3, :3] + 4
    first, again, larger = (
        score_clip(Prediction(points=points), truth) for points, truth in ((mine, one), (turned, one), (mine, two))
    )
    found = {metric: value for metric, value in first.items() if value is not None}
    assert found.keys() == {metric.name for metric in POINTS}
    for metric, value in found.items():
        assert value > 0
        assert again[metric] == pytest.approx(value, rel=1e-4)
        assert larger[metric] == pytest.approx(2.5 * value, rel=1e-5)


def test_a_mirrored_prediction_is_no_similarity_of_the_truth() -> None:
    truth = _first(_example([1]))
    assert truth.depth is not None
    assert truth.cameras is not None
    points = geometry.unproject(truth.depth, truth.cameras)
    accuracy = score_clip(Prediction(points=points * torch.tensor([-1.0, 1, 1])), truth)["points_accuracy"]
    assert accuracy is not None
    assert accuracy > 0.05


def test_depth_and_cameras_make_points_where_the_model_has_no_point_map() -> None:
    truth = _first(_example([1]))
    scores = score_clip(Prediction(depth=truth.depth, cameras=truth.cameras), truth)
    assert scores["points_accuracy"] == pytest.approx(0, abs=1e-5)
    assert score_clip(Prediction(depth=truth.depth), truth)["points_accuracy"] is None
    assert truth.depth is not None
    both = Prediction(depth=truth.depth, cameras=truth.cameras, points=torch.randn(*truth.depth.shape, 3))
    assert score_clip(both, truth)["points_accuracy"] == scores["points_accuracy"], "as clouds and tracks take them"


def test_masks_of_frames_without_truth_are_left_out() -> None:
    example = _example([1])
    known = torch.ones(1, FRAMES, dtype=torch.bool)
    known[:, 3:] = False
    truth = _first(_without(example, dynamic_known=known))
    assert truth.dynamic is not None
    wrong_later = truth.dynamic.clone()
    wrong_later[3:] = ~wrong_later[3:]
    assert score_clip(Prediction(dynamic=wrong_later.float()), truth)["mask_iou"] == 1
    blind = _first(_without(example, dynamic_known=torch.ones(1, FRAMES, dtype=torch.bool)))
    assert score_clip(Prediction(dynamic=torch.zeros(FRAMES, HEIGHT, WIDTH)), blind)["mask_iou"] == 0
    none = _first(_without(example, dynamic_known=torch.zeros(1, FRAMES, dtype=torch.bool)))
    assert score_clip(Prediction(dynamic=wrong_later.float()), none)["mask_iou"] is None


def test_studies_find_their_figures_and_the_best_image_free_ones() -> None:
    examples = [_example([1, 2])]
    result = evaluate(Oracle(examples), examples)
    free = image_free(result)
    assert set(free) == set(summary(result))
    assert {"pose_ate_sim3", "pose_rot_pairs_deg", "depth_absrel_median_frame", "mask_iou"} < set(free)
    written = result.to_dict()["summary"]
    assert isinstance(written, dict)
    others = written.pop("predictors")
    assert written == {**summary(result), "image_free": free}
    assert set(others) == set(result.rows) - {result.name}
    assert others["all_moving"]["mask_iou"] == free["mask_iou"]
    assert free["points_accuracy"] == min(
        result.rows[f"{n}_points"]["points_accuracy"].mean for n in ("line", "static")
    )
    assert free["mask_iou"] == result.rows["all_moving"]["mask_iou"].mean
    assert result.rows["none_moving"]["mask_iou"].mean == 0


def test_what_the_truth_does_not_allow_is_excluded_and_counted() -> None:
    full, blind, still = _example([1]), _example([2]), _example([3])
    assert full.targets.cameras is not None
    cameras = full.targets.cameras
    unknown = dataclasses.replace(cameras, known=torch.zeros(1, FRAMES, dtype=torch.bool))
    fixed = dataclasses.replace(cameras, world_from_camera=torch.eye(4).expand(1, FRAMES, 4, 4))
    blind = _without(blind, valid=torch.zeros(1, FRAMES, HEIGHT, WIDTH, dtype=torch.bool), cameras=unknown)
    still = _without(still, cameras=fixed)
    examples = [full, blind, still]
    result = evaluate(Oracle(examples), examples)
    scores = result.rows["model"]
    counts = {metric: (score.videos, score.excluded) for metric, score in scores.items()}
    assert counts["depth_absrel_median_frame"] == (2, 1)
    assert counts["pose_rot_pairs_deg"] == counts["pose_auc30"] == (2, 1)
    assert counts["pose_ate_sim3"] == counts["pose_rpe_trans_sim3"] == counts["pose_rta30"] == (1, 2)
    assert result.per_video["model"]["pose_ate_sim3"][1:] == (None, None)
    assert "NaN" not in json.dumps(result.to_dict())


def test_a_metric_that_no_clip_allows_is_absent() -> None:
    example = _without(_example([1]), depth=None, valid=None, cameras=None, dynamic=None, dynamic_known=None)
    result = evaluate(Says(lambda _: Prediction(depth=torch.ones(1, FRAMES, HEIGHT, WIDTH))), [example])
    assert result.rows["model"] == {}
    assert summary(result) == {}


def test_means_and_their_errors() -> None:
    score = evaluation.score_of([1.0, None, 2.0, 6.0], ["a", "b", "c", "d"])
    assert (score.mean, score.videos, score.excluded) == (3, 3, 1)
    assert score.standard_error == pytest.approx(math.sqrt((4 + 1 + 9) / 2 / 3))
    assert evaluation.score_of([5.0], ["a"]).standard_error == 0


def test_videos_of_one_clip_are_not_taken_for_independent() -> None:
    apart = evaluation.score_of([1.0, 3.0, 8.0], ["a/0", "b/0", "c/0"])
    copies = evaluation.score_of([1.0, 1.0, 3.0, 3.0, 8.0, 8.0], ["a/0", "a/1", "b/0", "b/1", "c/0", "c/1"])
    assert (copies.mean, copies.videos) == (4, 6)
    assert copies.standard_error == pytest.approx(apart.standard_error)


def test_differences_are_paired() -> None:
    row = {"a": {"m": (1.0, 2.0, 30.0, None)}, "b": {"m": (2.0, 3.0, 31.0, None)}}
    score = Score(mean=0.0, standard_error=0.0, videos=0, excluded=0)
    result = Evaluation(
        name="a", rows={"a": {"m": score}, "b": {"m": score}}, keys=("k", "l", "m", "n"), per_video=row, digest=""
    )
    difference = result.difference("m", "a", "b")
    assert (difference.mean, difference.standard_error, difference.videos) == (-1, 0, 3)


def test_the_best_image_free_row_is_the_best_in_the_metrics_own_direction() -> None:
    examples = [_example([5, 6])]
    result = evaluate(Oracle(examples), examples)
    for metric in ("pose_ate_sim3", "pose_rra15"):
        best = result.best_image_free(metric)
        others = [rows[metric].mean for name, rows in result.rows.items() if name != "model" and metric in rows]
        assert best is not None
        assert best[1].mean == (max if metric == "pose_rra15" else min)(others)


def test_values_that_are_not_finite_name_predictor_and_clip() -> None:
    bad = Prediction(depth=torch.full((1, FRAMES, HEIGHT, WIDTH), torch.nan))
    with pytest.raises(UserError, match=r"tiny predicts depth.*clip-1"):
        evaluate(Says(lambda _: bad), [_example([1])], name="tiny")


def test_no_example_is_an_error() -> None:
    with pytest.raises(UserError, match="nothing to evaluate"):
        evaluate(Says(), [])


def test_the_digest_tells_what_was_seen_and_not_what_was_said() -> None:
    examples = [_example([1, 2])]
    a = evaluate(Oracle(examples), examples)
    b = evaluate(Oracle(examples, turn_deg=20), examples)
    later = dataclasses.replace(examples[0].inputs, times=examples[0].inputs.times + 1)
    c = evaluate(Oracle(examples), [dataclasses.replace(examples[0], inputs=later)])
    assert a.digest == b.digest != c.digest


def test_the_digest_tells_what_the_model_was_given_and_how() -> None:
    plain = _example([1, 2])
    inputs, truth = plain.inputs, plain.targets
    assert truth.cameras is not None
    no = torch.zeros_like(inputs.times, dtype=torch.bool)
    poses = dataclasses.replace(truth.cameras, known=~no, intrinsics_known=no)
    lenses = dataclasses.replace(truth.cameras, known=no, intrinsics_known=~no)
    clips = [
        inputs,
        dataclasses.replace(inputs, cameras=poses),
        dataclasses.replace(inputs, cameras=lenses),
        dataclasses.replace(inputs, depth=truth.depth, valid=truth.valid),
    ]
    found = [evaluate(Oracle([plain]), [dataclasses.replace(plain, inputs=clip)]).digest for clip in clips]
    nothing = dataclasses.replace(truth.cameras, known=no, intrinsics_known=no)
    unknown = dataclasses.replace(inputs, cameras=nothing)
    assert evaluate(Oracle([plain]), [dataclasses.replace(plain, inputs=unknown)]).digest == found[0]
    pairs = evaluate(Pairwise(model=StaticCamera()), [plain]).digest
    assert len({*found, pairs}) == 5


def test_a_hint_that_the_model_does_not_take_is_refused() -> None:
    hints = HintsConfig(intrinsics="optional", depth="required")
    config = dataclasses.replace(TINY, backbone=dataclasses.replace(TINY.backbone, hints=hints))
    for model, message in (
        (config.build(), r"hints has poses, and this model takes intrinsics and depth; leave poses out"),
        (TINY.build(), r"hints has poses, and this model takes no hints \(backbone.hints is off\)"),
    ):
        with pytest.raises(UserError, match=message):
            evaluation.run(model.eval(), EvaluationConfig(data="nowhere", hints=("poses",)))


def test_the_model_sees_inputs_only() -> None:
    def model(clip: Clip) -> Prediction:
        assert clip.depth is None
        assert clip.cameras is None
        assert torch.is_inference_mode_enabled()
        return Prediction()

    evaluate(Says(model), [_example([1])])


def test_frame_lists_take_each_camera_in_turn_evenly_from_first_to_last() -> None:
    rig = [0] * 9 + [7] * 9
    assert evaluation.frame_lists([rig], 3) == [(0, (0, 4, 8)), (0, (9, 13, 17))]
    assert evaluation.frame_lists([[1], [0, 1, 0, 1]], 2) == [(1, (0, 2)), (1, (1, 3))]  # a single frame is no video
    assert evaluation.frame_lists([[0, 0, 0]], 8) == [(0, (0, 1, 2))]
    assert evaluation.frame_lists([rig], 4, cameras=2) == [(0, (0, 8, 9, 17)), (0, (9, 17, 0, 8))]
    assert evaluation.frame_lists([[0, 0]], 4, cameras=2) == []
    assert evaluation.frame_lists([rig], 3, stride=2) == [(0, (2, 4, 6)), (0, (11, 13, 15))]
    assert evaluation.frame_lists([rig], 8, stride=3) == [(0, (1, 4, 7)), (0, (10, 13, 16))]  # as many as there are


@pytest.mark.parametrize(
    "wrong",
    [{"frames": 1}, {"frames": 7, "cameras": 2}, {"clips": 0}, {"cameras": 0}, {"train_clips": 0}, {"stride": 0}],
)
def test_settings_that_make_no_sense_are_named(wrong: dict[str, int]) -> None:
    with pytest.raises(UserError, match=r"frames|clips|cameras"):
        EvaluationConfig(data="x", **wrong)  # pyright: ignore[reportArgumentType]


def _raw(seed: int, cameras: int = 2) -> RawClip:
    rng = np.random.default_rng(seed)
    frames = cameras * FRAMES
    poses = torch.cat([_path(seed * 10 + camera) for camera in range(cameras)]).double().numpy()
    intrinsics = np.broadcast_to(np.array([[10.0, 0, WIDTH / 2], [0, 10, HEIGHT / 2], [0, 0, 1]]), (frames, 3, 3))
    info = ClipInfo(
        source="test",
        licence="CC0-1.0",
        metric=True,
        width=WIDTH,
        height=HEIGHT,
        times=[0.1 * i for i in range(FRAMES)] * cameras,
        camera_ids=[camera for camera in range(cameras) for _ in range(FRAMES)],
        depth_unit=0.001,
    )
    return RawClip(
        key=f"test-{seed:04d}",
        info=info,
        images=rng.integers(0, 255, (frames, HEIGHT, WIDTH, 3), dtype=np.uint8),
        world_from_camera=poses,
        intrinsics=intrinsics,
        depth=rng.uniform(1, 3, (frames, HEIGHT, WIDTH)).astype(np.float32),
    )


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """A training and a held-out data set."""
    root = tmp_path_factory.mktemp("data")
    for name, seeds in (("train", range(3)), ("test", range(5, 7))):
        write_shard(root / name, 0, [_raw(seed) for seed in seeds])
        finalise(root / name, name)
    return root / "train", root / "test"


def test_run_scores_every_camera_of_every_clip_beside_fitted_baselines(shards: tuple[Path, Path]) -> None:
    train, test = shards
    config = EvaluationConfig(data=str(test), train_data=str(train), frames=4)
    result = evaluation.run(Says(lambda _: Prediction(depth=torch.ones(1, 4, HEIGHT, WIDTH))), config)
    assert result.keys == ("test-0005/0", "test-0005/1", "test-0006/0", "test-0006/1")
    assert list(result.rows) == [
        "model",
        "flat_depth",
        "static_camera",
        "line_camera",
        "all_moving",
        "none_moving",
        "static_motion",
        "static_points",
        "line_points",
        "mean_depth",
        "median_depth",
        "mean_trajectory",
    ]
    assert "6 videos" in result.note
    # metres: the same clips in other units of the example give the truth's own extent
    poses = _raw(5).world_from_camera
    assert poses is not None
    centres = poses[:FRAMES, :3, 3][np.linspace(0, FRAMES - 1, 4).round().astype(int)]
    extent = np.sqrt(((centres - centres.mean(0)) ** 2).sum(1).mean())
    assert result.per_video["static_camera"]["pose_ate_sim3"][0] == pytest.approx(extent, rel=1e-4)


def test_run_takes_a_bounded_number_of_clips_at_a_chosen_size(shards: tuple[Path, Path]) -> None:
    sizes: list[tuple[int, ...]] = []

    def model(clip: Clip) -> Prediction:
        sizes.append(tuple(clip.images.shape))
        return Prediction()

    config = EvaluationConfig(data=str(shards[1]), frames=4, cameras=2, clips=2, size=(6, 6))
    result = evaluation.run(Says(model), config)
    assert sizes == [(1, 4, 3, 6, 6)] * 2
    assert "untrained" in result.note
    assert "mean_trajectory" not in result.rows


@pytest.mark.parametrize(("tasks", "reads"), [(("pose",), False), (("pose", "motion"), True)])
def test_motion_is_read_only_where_it_is_scored(
    shards: tuple[Path, Path], monkeypatch: pytest.MonkeyPatch, tasks: tuple[Task, ...], *, reads: bool
) -> None:
    """Motion of 24 frames to 24 times takes minutes to read, and gigabytes."""
    read: list[Clip] = []
    monkeypatch.setattr(held_out, "_moving", lambda clip: read.append(clip) or clip)
    config = EvaluationConfig(data=str(shards[1]), train_data=str(shards[0]), frames=3, tasks=tasks)
    evaluation.run(Says(outputs=frozenset({"motion"})), config)
    assert bool(read) == reads


def test_two_runs_are_equal(shards: tuple[Path, Path]) -> None:
    config = EvaluationConfig(data=str(shards[1]), train_data=str(shards[0]), frames=3)
    first, second = (evaluation.run(Says(), config) for _ in range(2))
    assert first.to_dict() == second.to_dict()


def test_a_clip_that_cannot_be_read_ends_the_run(shards: tuple[Path, Path], tmp_path: Path) -> None:
    for file in shards[1].iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    tar = tmp_path / "shard-000000.tar"
    data = bytearray(tar.read_bytes())
    start = data.find(b"\x89PNG")
    data[start + 40] ^= 0xFF
    tar.write_bytes(data)
    with pytest.raises(CorruptSample, match="shard-000000"):
        evaluation.run(Says(), EvaluationConfig(data=str(tmp_path), frames=6))


def test_data_without_a_video_is_named(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [_raw(1, cameras=1)])
    finalise(tmp_path, "one")
    with pytest.raises(UserError, match="2 camera"):
        evaluation.run(Says(), EvaluationConfig(data=str(tmp_path), frames=4, cameras=2))


def test_json_and_tables(tmp_path: Path) -> None:
    examples = [_example([1, 2])]
    result = evaluate(Oracle(examples), examples, note="two clips")
    path = tmp_path / "deep" / "scores.json"
    result.write(path)
    content = json.loads(path.read_text())
    assert content["rows"]["best_image_free"]["pose_ate_sim3"]["predictor"] in ("line_camera", "static_camera")
    assert content["summary"]["pose_ate_sim3"] < content["summary"]["image_free"]["pose_ate_sim3"]
    assert content["metrics"]["pose_ate_sim3"]["unit"] == "m"
    assert content["metrics"].keys() == content["rows"]["model"].keys()
    assert content["per_video"]["keys"] == ["clip-1", "clip-2"]
    assert len(content["per_video"]["line_camera"]["pose_ate_sim3"]) == 2
    assert [p.name for p in path.parent.iterdir()] == ["scores.json"]
    console = Console(record=True, width=200)
    console.print(result.table())
    console.print(result.details())
    text = console.export_text()
    for word in ("line_camera", "static_camera", "pose_ate_sim3 ↓, m", "pose_auc30 ↑", "two clips", result.digest):
        assert word in text


def _depth_bias(video: Comparison) -> float | None:
    predicted, (truth, valid) = video.prediction.depth, video.true_depth
    return None if predicted is None else float((predicted - truth)[valid].mean())


def test_a_metric_of_ones_own_stands_in_tables_and_files(shards: tuple[Path, Path]) -> None:
    bias = Metric("depth_bias", "mean of p − g", unit="m", better="higher", compute=_depth_bias)
    config = EvaluationConfig(data=str(shards[1]), frames=4)
    model = Says(lambda _: Prediction(depth=torch.full((1, 4, HEIGHT, WIDTH), 0.25)))
    result = evaluation.run(model, config, metrics=[bias])
    rows = {name: scores["depth_bias"].mean for name, scores in result.rows.items() if "depth_bias" in scores}
    assert rows["model"] < rows["flat_depth"], "which has 1 everywhere"
    best = result.best_image_free("depth_bias")
    assert best is not None
    assert best[0] == max(rows, key=lambda name: rows[name])
    console = Console(record=True, width=200)
    console.print(result.details())
    assert "depth_bias ↑, m" in console.export_text()
    assert described(bias) == {"unit": "m", "better": "higher", "description": "mean of p − g"}
    for wrong, message in (
        (Metric("depth_bias", ""), "has no function"),
        (Metric("mask_iou", "", compute=_depth_bias), "another name"),
    ):
        with pytest.raises(UserError, match=message):
            evaluation.run(model, config, metrics=[wrong])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Named(Prediction):
    """A prediction of a head of one's own."""

    frames_seen: Int[Tensor, "*b f"] | None = dataclasses.field(default=None, metadata=NONE)


def test_a_metric_of_ones_own_reads_fields_of_ones_own_head() -> None:
    def seen(video: Comparison) -> float | None:
        found = video.prediction
        return float(found.frames_seen.sum()) if isinstance(found, Named) and found.frames_seen is not None else None

    metric = Metric("frames_seen", "frames that the head has seen", better="higher", compute=seen)
    model = lambda clip: Named(frames_seen=torch.ones(clip.times.shape, dtype=torch.long))  # noqa: E731
    rows = evaluate(Says(model), [_example([1, 2])], metrics=[metric]).rows
    assert rows["model"]["frames_seen"].mean == FRAMES
    assert not any("frames_seen" in scores for name, scores in rows.items() if name != "model")


def test_keypoints_are_scored_where_their_task_is_chosen() -> None:
    points = torch.rand(1, FRAMES, 4, 3, generator=torch.Generator().manual_seed(0))
    known = torch.ones(1, FRAMES, 4, dtype=torch.bool)
    keypoints = Keypoints(
        names=torch.ones(1, 4, 2, dtype=torch.long),
        instances=torch.zeros(1, 4, dtype=torch.long),
        points=points,
        valid=known,
        pixels=10 * points[..., :2],
        pixels_valid=known,
        visible=known,
        edges=torch.tensor([[[0, 1]]]),
        rigid=torch.ones(1, 1, dtype=torch.bool),
    )
    example = _example([1])
    example = dataclasses.replace(example, targets=dataclasses.replace(example.targets, keypoints=keypoints))
    moved = points + torch.tensor([0.3, 0, 0])
    model = Says(lambda _: KeypointPrediction(keypoints=moved, keypoint_pixels=10 * points[..., :2]))
    found = evaluate(model, [example], tasks=["keypoints"]).rows["model"]
    assert found["keypoint_mpjpe"].mean == pytest.approx(0.3 * 2, rel=1e-5), "in source units"
    assert found["keypoint_mpjpe_procrustes"].mean == pytest.approx(0, abs=1e-5)
    assert found["keypoint_pck"].mean == 1
    assert found["keypoint_acceleration_error"].mean == pytest.approx(0, abs=1e-3)
    lengths = (points[0, :, 0] - points[0, :, 1]).norm(dim=-1).log()
    assert found["keypoint_bone_variance"].mean == pytest.approx(float(lengths.var(correction=0)), rel=1e-4)
    third = points[0].double().diff(n=3, dim=0).norm(dim=-1).mean() / (example.targets.times[0].diff()[0] ** 3)
    assert found["keypoint_jerk"].mean == pytest.approx(float(third) * 2, rel=1e-3)
    assert all(name.startswith("keypoint_") for name in found)
    assert not any(name.startswith("keypoint_") for name in evaluate(model, [example], tasks=["motion"]).rows["model"])


def test_json_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    result = evaluate(Says(), [_example([1])])
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match="cannot write"):
        result.write(tmp_path / "file" / "scores.json")


def test_the_page_explains_every_predictor_and_setting() -> None:
    page = (Path(__file__).parent.parent / "docs" / "evaluation.md").read_text()
    example = _example([1])
    result = evaluate(Says(), [example], predictors=baselines.fit_baselines([example]))
    assert all(f"`{row}`" in page or row == "model" for row in (*result.rows, "copy"))
    assert all(f"`{field.name}`" in page for field in dataclasses.fields(EvaluationConfig))


def test_print_shows_every_metric(capsys: pytest.CaptureFixture[str]) -> None:
    examples = [_example([1])]
    evaluate(Oracle(examples), examples).print()
    text = capsys.readouterr().out
    assert "pose_rpe_rot_deg_sim3" in text
    assert "line_camera" in text


def test_no_figure_of_a_wide_table_is_cut() -> None:
    names = [f"a_long_name_of_metric_{index:02}" for index in range(12)]
    table = Table("sequence", *names, title="wide")
    table.add_row("model", *(f"{index}.1234" for index in range(12)), end_section=True)
    table.add_row("other", "5.4321", *("" for _ in range(11)))
    console = Console(width=100, record=True, file=io.StringIO())
    for part in parts(table, 100):
        console.print(part)
    shown = console.export_text()
    assert "…" not in shown
    assert max(map(len, shown.splitlines())) <= 100
    assert all(shown.count(text) == 1 for text in (*names, *(f" {index}.1234 " for index in range(12)), "other"))
    assert shown.count("model") == shown.count("wide") == 4

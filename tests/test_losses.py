from __future__ import annotations

import dataclasses
import json
import math
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import roma
import torch
from safetensors.torch import load_file
from torch import Tensor

from four_d.errors import UserError
from four_d.geometry import encode_cameras, invert_pose, make_pose, unproject
from four_d.losses import CameraLossConfig, DepthLossConfig, LossConfig, MotionLossConfig, PointsLossConfig
from four_d.losses.camera import TRANSLATION, encoding_errors, stage_weights
from four_d.losses.dense import PixelTerms, Weighing, confidence_weighted, gradient_term, normal_term
from four_d.losses.matching import MatchingLossConfig, place_entropy, true_places
from four_d.losses.reduction import below_quantile, group_mean, nothing, weighted
from four_d.losses.supervision import supervised
from four_d.types import Cameras, Clip, Prediction, map_tensors
from tests.helpers import loss_value

B, F, H, W = 2, 3, 16, 24
Q = 2
PAPER = PixelTerms(regression=0.0, quantile=None, gradient_by="confidence")
TERMS: list[LossConfig] = [
    CameraLossConfig(),
    CameraLossConfig(huber_delta=0.5),
    DepthLossConfig(),
    DepthLossConfig(pixels=PAPER),
    DepthLossConfig(pixels=PixelTerms(gradient_by="likelihood")),
    PointsLossConfig(),
    PointsLossConfig(pixels=PAPER, normal=0.0, gradient=1.0),
    MotionLossConfig(visibility=0.0),
    MotionLossConfig(visibility=0.0, balance=0.5, pixels=PAPER),
]
REFERENCE = Path(__file__).parents[2] / "shared" / "reference" / "vggt_tiny"
OURS_FROM_XYZW = [0, 1, 2, 6, 3, 4, 5, 7, 8]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def make_targets() -> Clip:
    rotation = roma.rotvec_to_rotmat(0.3 * draw(B, F, 3, seed=1))
    intrinsics = torch.tensor([[20.0, 0, W / 2], [0, 22, H / 2], [0, 0, 1]], dtype=torch.float64)
    return Clip(
        images=torch.zeros(B, F, 3, H, W, dtype=torch.float64),
        times=torch.zeros(B, F, dtype=torch.float64),
        camera_ids=torch.zeros(B, F, dtype=torch.long),
        cameras=Cameras(
            world_from_camera=make_pose(rotation, draw(B, F, 3, seed=2)),
            intrinsics=intrinsics.expand(B, F, -1, -1),
            known=torch.ones(B, F, dtype=torch.bool),
        ),
        depth=draw(B, F, H, W, seed=3).abs() + 0.5,
        valid=draw(B, F, H, W, seed=4) > -1.5,
        motion=draw(B, Q, F, H, W, 3, seed=5) * (draw(B, Q, F, H, W, 1, seed=6) > 0),
        motion_valid=draw(B, Q, F, H, W, seed=7) > -1.5,
        motion_visible=draw(B, Q, F, H, W, seed=8) > 0,
    )


def truth(targets: Clip) -> Prediction:
    """The prediction that is right, and no surer than that: confidence 1, where log c is 0."""
    return Prediction(
        pose_encodings=encode_cameras(targets.cameras, H, W)[None].repeat(4, 1, 1, 1),
        depth=targets.depth.clone(),
        depth_confidence=torch.ones(B, F, H, W, dtype=torch.float64),
        points=unproject(targets.depth, targets.cameras),
        points_confidence=torch.ones(B, F, H, W, dtype=torch.float64),
        motion=targets.motion.clone(),
        motion_confidence=torch.ones(B, Q, F, H, W, dtype=torch.float64),
        motion_visible_logits=4 * targets.motion_visible.double() - 2,
    )


def disturb(prediction: Prediction, size: float = 0.3) -> Prediction:
    seeds = iter(range(10, 30))
    moved = map_tensors(prediction, lambda x: x + size * draw(*x.shape, seed=next(seeds)))
    return map_tensors(moved, lambda x: x.clone().requires_grad_())


def clip_of(value: Clip, index: int) -> Clip:
    return map_tensors(value, lambda x: x[index : index + 1])


def prediction_of(value: Prediction, index: int) -> Prediction:
    encodings = value.pose_encodings[:, index : index + 1]
    rest = map_tensors(dataclasses.replace(value, pose_encodings=None), lambda x: x[index : index + 1])
    return dataclasses.replace(rest, pose_encodings=encodings)


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_zero_at_truth_and_not_beside_it(term: LossConfig) -> None:
    targets = make_targets()
    assert abs(loss_value(term, truth(targets), targets).item()) < 1e-7
    beside = disturb(truth(targets), 0.01)
    plain = dataclasses.replace(
        beside,
        depth_confidence=truth(targets).depth_confidence,
        points_confidence=truth(targets).points_confidence,
        motion_confidence=truth(targets).motion_confidence,
    )
    assert loss_value(term, plain, targets).item() > 1e-5


def without_depth(targets: Clip) -> Clip:
    return dataclasses.replace(targets, depth=None, valid=None)


def without_valid(targets: Clip) -> Clip:
    return dataclasses.replace(targets, depth=0 * targets.depth, valid=torch.zeros_like(targets.valid))


def without_cameras(targets: Clip) -> Clip:
    return dataclasses.replace(targets, cameras=None)


def without_motion(targets: Clip) -> Clip:
    return dataclasses.replace(targets, motion=None, motion_valid=None, motion_visible=None)


def without_valid_motion(targets: Clip) -> Clip:
    return dataclasses.replace(targets, motion_valid=torch.zeros_like(targets.motion_valid))


def with_unknown_cameras(targets: Clip) -> Clip:
    unknown = Cameras(
        world_from_camera=torch.eye(4, dtype=torch.float64).expand(B, F, -1, -1),
        intrinsics=torch.eye(3, dtype=torch.float64).expand(B, F, -1, -1),
        known=torch.zeros(B, F, dtype=torch.bool),
    )
    return dataclasses.replace(targets, cameras=unknown)


@pytest.mark.parametrize(
    ("term", "remove"),
    [
        (DepthLossConfig(), without_depth),
        (DepthLossConfig(), without_valid),
        (PointsLossConfig(), without_depth),
        (PointsLossConfig(), without_valid),
        (PointsLossConfig(), without_cameras),
        (PointsLossConfig(), with_unknown_cameras),
        (MotionLossConfig(), without_motion),
        (MotionLossConfig(balance=0.3), without_valid_motion),
        (CameraLossConfig(), without_cameras),
        (CameraLossConfig(), with_unknown_cameras),
    ],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_missing_supervision_is_exactly_zero_with_zero_gradients(
    term: LossConfig, remove: Callable[[Clip], Clip], dtype: torch.dtype
) -> None:
    targets = make_targets()
    cast: Callable[[Tensor], Tensor] = lambda x: x.to(dtype) if x.is_floating_point() else x  # noqa: E731
    prediction = map_tensors(disturb(truth(targets)), lambda x: x.detach().to(dtype).requires_grad_())
    prediction = dataclasses.replace(
        prediction,
        depth_confidence=(1 + prediction.depth.detach().exp()).requires_grad_(),
        points_confidence=(1 + prediction.depth.detach().exp()).requires_grad_(),
        motion_confidence=(1 + prediction.motion.detach()[..., 0].exp()).requires_grad_(),
    )
    loss = loss_value(term, prediction, map_tensors(remove(targets), cast))
    assert loss.item() == 0
    assert supervised(targets, term.needs).all()
    assert not supervised(remove(targets), term.needs).any()
    loss.backward()
    inputs = {
        "camera": [prediction.pose_encodings],
        "depth": [prediction.depth, prediction.depth_confidence],
        "points": [prediction.points, prediction.points_confidence],
        "motion": [prediction.motion, prediction.motion_visible_logits],
    }[term.kind]
    for each in inputs:
        assert each.grad is not None
        assert torch.equal(each.grad, torch.zeros_like(each))


@pytest.mark.parametrize("remove", [lambda targets: targets, without_motion], ids=["motion", "none"])
def test_a_confidence_of_weight_0_spoils_nothing_however_large(remove: Callable[[Clip], Clip]) -> None:
    """Nothing holds it back where it is not trained, and 0 · inf is no number."""
    targets = make_targets()
    prediction = map_tensors(disturb(truth(targets)), lambda x: x.detach().requires_grad_())
    raw = torch.full((B, Q, F, H, W), 800.0, dtype=torch.float64, requires_grad=True)
    assert (1 + raw.exp()).isinf().all()
    for term in (MotionLossConfig(), MotionLossConfig(balance=0.5), MotionLossConfig(visibility=0.0)):
        loss = loss_value(term, dataclasses.replace(prediction, motion_confidence=1 + raw.exp()), remove(targets))
        assert bool(loss.isfinite())
        loss.backward()
        for leaf in (prediction.motion, prediction.motion_visible_logits):
            assert leaf is not None
            assert leaf.grad is not None, "every output has a path"
            assert bool(leaf.grad.isfinite().all())
        assert raw.grad is None


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_missing_head_is_named(term: LossConfig) -> None:
    with pytest.raises(UserError, match="add a head"):
        loss_value(term, Prediction(), make_targets())


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_loss_of_a_batch_is_the_mean_of_its_clips(term: LossConfig) -> None:
    """So that processes with half a batch each, averaged, do what one process does."""
    targets = make_targets()
    targets.valid[1, :, :6] = False
    targets.motion_valid[1, :, :, 1:] = False
    prediction = disturb(truth(targets), 0.1)
    parts = [loss_value(term, prediction_of(prediction, i), clip_of(targets, i)) for i in range(B)]
    torch.testing.assert_close(loss_value(term, prediction, targets), torch.stack(parts).mean())


def test_values_where_not_valid_do_not_matter() -> None:
    targets = make_targets()
    prediction = disturb(truth(targets), 0.1)
    with torch.no_grad():
        changed = dataclasses.replace(
            prediction,
            depth=torch.where(targets.valid, prediction.depth, 1e6),
            points=torch.where(targets.valid[..., None], prediction.points, 1e6),
        )
    for term in (DepthLossConfig(), PointsLossConfig()):
        torch.testing.assert_close(loss_value(term, changed, targets), loss_value(term, prediction, targets))


def test_points_terms_do_not_change_when_the_world_is_moved() -> None:
    targets = make_targets()
    prediction = disturb(truth(targets), 0.1).points
    target = unproject(targets.depth, targets.cameras)
    rotation, shift = roma.rotvec_to_rotmat(draw(3, seed=30)), draw(3, seed=31)
    moved = [x @ rotation.mT + shift for x in (prediction, target)]
    torch.testing.assert_close(
        normal_term(*moved, targets.valid), normal_term(prediction, target, targets.valid), atol=1e-8, rtol=1e-8
    )
    errors = [torch.linalg.vector_norm(p - t, dim=-1) for p, t in (moved, (prediction, target))]
    torch.testing.assert_close(errors[0], errors[1])


def test_gradient_term_ignores_a_constant_offset_and_normals_a_change_of_size() -> None:
    targets = make_targets()
    depth, points = targets.depth[..., None], unproject(targets.depth, targets.cameras)
    assert gradient_term(depth + 3, depth, targets.valid).abs().max() < 1e-12
    assert normal_term(2 * points, points, targets.valid).abs().max() < 1e-7


def slope(points: Tensor) -> Tensor:
    """The gradient of the mean of `normal_term` against a smooth wall of 32 × 48 pixels."""
    leaf = points.clone().requires_grad_()
    normal_term(leaf, wall(), torch.ones(1, 2, 32, 48, dtype=torch.bool)).mean().backward()
    assert leaf.grad is not None
    return leaf.grad


def wall() -> Tensor:
    """A slanted, wavy wall about 2 away, points of neighbouring pixels 0.004 apart."""
    y, x = torch.meshgrid(torch.arange(32.0), torch.arange(48.0), indexing="ij")
    z = 2 + 0.002 * x + 0.05 * torch.sin(x / 5) * torch.cos(y / 7)
    points = torch.stack([0.002 * x * z, 0.002 * y * z, z], dim=-1)
    return torch.stack([points, points + 0.1])[None]


@pytest.mark.parametrize("noise", [0.0, 1e-3, 0.3])
def test_neighbours_that_half_precision_makes_equal_do_not_blow_up_the_normals(noise: float) -> None:
    """A head that runs in bfloat16 gives triangles without area by the thousand: gradient norms of 1e10 before."""
    generator = torch.Generator().manual_seed(0)
    points = wall() + noise * torch.randn(wall().shape, generator=generator)
    found = slope(points.bfloat16().float())
    assert bool(found.isfinite().all())
    assert float(found.norm()) < 20


def test_triangles_without_area_carry_no_gradient() -> None:
    flat = torch.full((1, 2, 32, 48, 3), 1.5)
    assert not slope(flat).any()
    line = wall() * torch.tensor([1.0, 0.0, 0.0]) + torch.tensor([0.0, 0.5, 2.0])
    assert not slope(line).any()
    needles = line + 1e-7 * wall()[..., [1, 0, 2]]
    assert float(slope(needles).norm()) < 1


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_gradients_are_the_derivatives(term: LossConfig) -> None:
    targets = make_targets()
    base = disturb(truth(targets))
    names = {
        "camera": ["pose_encodings"],
        "depth": ["depth", "depth_confidence"],
        "points": ["points", "points_confidence"],
        "motion": ["motion", "motion_confidence", "motion_visible_logits"],
    }[term.kind]
    raw = [getattr(base, name).detach().abs() + 0.2 for name in names]
    direction = [draw(*x.shape, seed=40 + i) for i, x in enumerate(raw)]

    def along(step: Tensor) -> Tensor:
        moved = {name: x + step * d for name, x, d in zip(names, raw, direction)}
        return loss_value(term, dataclasses.replace(base, **moved), targets)

    step = torch.zeros((), dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(along, (step,), eps=1e-8, atol=1e-4, rtol=1e-3)


def test_gradient_errors_count_by_confidence() -> None:
    targets = make_targets()
    depth = targets.depth[..., None]
    beside = depth + draw(*depth.shape, seed=50)
    plain = gradient_term(beside, depth, targets.valid)
    sure = torch.full_like(targets.depth, 3.0)
    torch.testing.assert_close(gradient_term(beside, depth, targets.valid, "clip", sure), 3 * plain)
    half = torch.where(torch.arange(W) < W // 2, 1.0, 3.0).expand_as(sure)
    weighed = gradient_term(beside, depth, targets.valid, "clip", half)
    assert (weighed > plain).all()
    assert (weighed < 3 * plain).all()


@pytest.mark.parametrize("term", TERMS, ids=lambda t: t.kind)
def test_bfloat16_autocast_does_not_blunt_the_truth(term: LossConfig) -> None:
    """The loop runs losses under autocast, in which matrix products, those of geometry too, are of three digits."""
    single: Callable[[Tensor], Tensor] = lambda x: x.float() if x.is_floating_point() else x  # noqa: E731
    targets = map_tensors(make_targets(), single)
    prediction = map_tensors(disturb(truth(make_targets()), 0.01), lambda x: single(x.detach()))
    expected = loss_value(term, prediction, targets)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        torch.testing.assert_close(loss_value(term, prediction, targets), expected, rtol=1e-4, atol=1e-5)


def test_confidence_is_best_where_it_matches_the_error() -> None:
    error, alpha, gamma = torch.full((2000,), 0.05, dtype=torch.float64), 0.2, 1.0
    confidence = torch.linspace(0.5, 10, 2000, dtype=torch.float64)
    best = confidence[confidence_weighted(error, confidence, gamma, alpha).argmin()]
    assert best.item() == pytest.approx(alpha / (gamma * 0.05), rel=0.01)


def test_parts_of_weight_0_are_left_out_whatever_their_value() -> None:
    one, broken = torch.tensor(3.0, requires_grad=True), torch.tensor(torch.nan, requires_grad=True)
    value = weighted([(2.0, one), (0.0, broken)], start=nothing(one, broken))
    value.backward()
    assert value.item() == 6
    assert one.grad == 2
    assert broken.grad == 0


def test_a_part_of_the_camera_term_of_weight_0_cannot_spoil_it() -> None:
    targets = make_targets()
    encodings = truth(targets).pose_encodings.clone()
    encodings[..., TRANSLATION] = torch.nan
    prediction = Prediction(pose_encodings=encodings.requires_grad_())
    value = loss_value(CameraLossConfig(translation=0.0, min_valid=0), prediction, targets)
    value.backward()
    assert value.isfinite()
    assert prediction.pose_encodings.grad.isfinite().all()


def test_stage_weights() -> None:
    assert stage_weights(4, 0.5) == [0.125 / 4, 0.25 / 4, 0.5 / 4, 1 / 4]


def test_far_translations_pull_no_longer_and_huber_is_gentle_near_truth() -> None:
    target = torch.zeros(1, 1, 9)
    far = torch.full((1, 1, 9), 1e5, requires_grad=True)
    errors = encoding_errors(far, target)
    assert errors[0, 0, :3].tolist() == [100.0] * 3
    near = torch.full((1, 1, 9), 0.01)
    assert (encoding_errors(near, target, 0.1) < encoding_errors(near, target)).all()


def test_first_frames_without_depth_drop_their_clip_from_the_camera_loss() -> None:
    targets = make_targets()
    targets.valid[0, 0] = False
    prediction = disturb(truth(targets))
    loss_value(CameraLossConfig(), prediction, targets).backward()
    assert not prediction.pose_encodings.grad[:, 0].any()
    assert prediction.pose_encodings.grad[:, 1].any()


def test_clips_without_any_depth_count_in_the_camera_loss() -> None:
    targets = make_targets()
    targets.valid[0] = False
    prediction = disturb(truth(targets))
    loss_value(CameraLossConfig(), prediction, targets).backward()
    assert prediction.pose_encodings.grad[:, 0].any()


def test_quantile_is_the_nearest_rank_and_strict() -> None:
    values = torch.arange(11.0)[None].repeat(3, 1)
    keep = torch.ones(3, 11, dtype=torch.bool)
    keep[1, 5:] = False
    keep[2] = False
    below = below_quantile(values, keep, 0.8, at_least=3)
    assert below[0].tolist() == [True] * 8 + [False] * 3
    assert torch.equal(below[1:], keep[1:])  # 5 values: rank 3 leaves 3, which is not more than 3
    assert group_mean(values, below).tolist() == [3.5, 2.0, 0.0]


def test_nothing_gives_zero_gradients_even_to_infinity() -> None:
    x = torch.tensor([torch.inf, torch.nan], requires_grad=True)
    zero = nothing(x)
    zero.backward()
    assert zero.item() == 0
    assert x.grad.tolist() == [0, 0]


def reference_case() -> tuple[Prediction, Clip, dict[str, Tensor], dict[str, Tensor]]:
    if not REFERENCE.is_dir():
        pytest.skip("../shared/reference is not there")
    tensors = load_file(REFERENCE / "losses.safetensors")
    leaves = {name: value.requires_grad_() for name, value in tensors.items() if name.startswith("pred_")}
    pose = torch.eye(4).repeat(2, 3, 1, 1)
    pose[..., :3, :] = tensors["norm_extrinsics"]
    intrinsics = tensors["raw_intrinsics"].clone()
    intrinsics[..., :2, 2] += 0.5  # the reference counts pixels from centres
    targets = Clip(
        images=torch.zeros(2, 3, 3, 28, 42),
        times=torch.zeros(2, 3),
        camera_ids=torch.zeros(2, 3, dtype=torch.long),
        cameras=Cameras(world_from_camera=invert_pose(pose), intrinsics=intrinsics),
        depth=tensors["norm_depths"],
        valid=tensors["point_masks"].bool(),
    )
    prediction = Prediction(
        pose_encodings=torch.stack([leaves[f"pred_pose_enc_list.{k}"][..., OURS_FROM_XYZW] for k in range(4)]),
        depth=leaves["pred_depth"][..., 0],
        depth_confidence=leaves["pred_depth_conf"],
        points=leaves["pred_world_points"],
        points_confidence=leaves["pred_world_points_conf"],
    )
    return prediction, targets, leaves, tensors


WEIGHINGS: dict[str, Weighing] = {"grad": "plain", "grad_conf": "likelihood"}


def only(part: str, **settings: object) -> PixelTerms:
    """Settings that leave one of the parts of a dense loss: of one that is not theirs, none."""
    weights = {name: float(name == part) for name in ("regression", "confidence")}
    return PixelTerms(over="batch", **(weights | settings))


def dense_value(name: str) -> float:
    """Our value of what the reference calls, for example, ``depth[grad,valid_range=0.98].loss_reg_depth``."""
    what, settings, value = re.fullmatch(r"(\w+)\[(.*)\]\.loss_(\w+)_(?:depth|point)", name).groups()
    shape, their_range, *numbers = settings.split(",")
    quantile = float(their_range.removeprefix("valid_range="))
    part = {"conf": "confidence", "reg": "regression", "grad": "shape"}[value]
    changed = {key: float(number) for key, number in (each.split("=") for each in numbers)}
    weight = float(part == "shape")
    pixels = only(
        part, quantile=None if quantile < 0 else quantile, gradient_by=WEIGHINGS.get(shape, "plain"), **changed
    )
    prediction, targets, _, _ = reference_case()
    if what == "point":
        return loss_value(PointsLossConfig(normal=weight, pixels=pixels), prediction, targets).item()
    return loss_value(DepthLossConfig(gradient=weight, pixels=pixels), prediction, targets).item()


def camera_value(name: str) -> float:
    """Our value of ``camera_l1.loss_camera``, or of one of its parts: T, R or FL."""
    prediction, targets, _, _ = reference_case()
    part = {"T": "translation", "R": "rotation", "FL": "fov"}.get(name.rpartition("_")[2])
    settings = {} if part is None else {n: float(n == part) for n in ("translation", "rotation", "fov")}
    return loss_value(CameraLossConfig(over="batch", **settings), prediction, targets).item()


def test_every_value_equals_vggt() -> None:
    """All but those of Euclidean camera errors, which nobody trains with; the objective has a test of its own."""
    if not REFERENCE.is_dir():
        pytest.skip("../shared/reference is not there")
    values = json.loads((REFERENCE / "losses.json").read_text())["values"]
    names = [name for name in values if not name.startswith("camera_l2.") and name != "objective"]
    assert len(names) == 25
    for name in names:
        ours = camera_value(name) if name.startswith("camera") else dense_value(name)
        assert ours == pytest.approx(values[name], abs=1e-6), name


def test_camera_value_objective_and_gradients_equal_vggt() -> None:
    prediction, targets, leaves, tensors = reference_case()
    reference = json.loads((REFERENCE / "losses.json").read_text())["values"]
    camera = loss_value(CameraLossConfig(over="batch"), prediction, targets)
    assert camera.item() == pytest.approx(reference["camera_l1.loss_camera"], abs=1e-6)
    pixels = PixelTerms(over="batch")
    dense = [DepthLossConfig(pixels=pixels), PointsLossConfig(pixels=pixels)]
    objective = 5 * camera + sum(loss_value(term, prediction, targets) for term in dense)
    assert objective.item() == pytest.approx(reference["objective"], abs=1e-5)
    objective.backward()
    for name, leaf in leaves.items():
        expected = tensors[name.replace("pred_", "grad_")]
        assert (leaf.grad - expected).abs().max() <= 1e-5 * expected.abs().max(), name


def test_sparse_motion_is_not_drowned_by_dense() -> None:
    """A clip with one known pixel counts as much as one with all of them (V-DPM: mean within examples first)."""
    targets = make_targets()
    targets.motion_valid[:] = True
    targets.motion_valid[1] = False
    targets.motion_valid[1, 0, 0, 3, 4] = True
    prediction = dataclasses.replace(truth(targets), motion=targets.motion + torch.tensor([0.0, 0.0, 1.0]))
    assert float(loss_value(MotionLossConfig(visibility=0.0), prediction, targets)) == pytest.approx(1)
    moved = targets.motion.clone()
    moved[0] += torch.tensor([0.0, 3.0, 0.0])
    only_dense = dataclasses.replace(truth(targets), motion=moved)
    assert float(loss_value(MotionLossConfig(visibility=0.0), only_dense, targets)) == pytest.approx(1.5)


def test_balance_gives_moving_pixels_their_share() -> None:
    targets = make_targets()
    targets.motion_valid[:] = True
    targets.motion[:] = 0
    targets.motion[:, :, :, 0, 0, 2] = 1  # one pixel of each frame moves
    still = dataclasses.replace(truth(targets), motion=torch.zeros_like(targets.motion))
    assert float(loss_value(MotionLossConfig(visibility=0.0), still, targets)) == pytest.approx(1 / (H * W))
    assert float(loss_value(MotionLossConfig(visibility=0.0, balance=0.25), still, targets)) == pytest.approx(0.25)
    for term in (MotionLossConfig, MatchingLossConfig):
        with pytest.raises(UserError, match="balance is 1"):
            term(balance=1.0)


def test_a_place_between_cells_is_shared_by_those_around_it() -> None:
    log = torch.full((1, 1, 1, 1, 9), 0.02).index_fill(-1, torch.tensor([4, 5]), 0.43).log()
    entropy = place_entropy(log, torch.tensor([0.25, 0.0]).view(1, 1, 1, 1, 2))
    assert float(entropy) == pytest.approx(-math.log(0.43), abs=1e-5)
    aside = place_entropy(log, torch.tensor([0.0, 0.5]).view(1, 1, 1, 1, 2))
    assert float(aside) == pytest.approx(-(math.log(0.43) + math.log(0.02)) / 2, abs=1e-5)


def test_a_place_that_is_surely_missed_is_pulled_back_and_one_outside_is_not() -> None:
    logits = torch.zeros(1, 1, 1, 1, 9).index_fill(-1, torch.tensor([4]), 40.0).requires_grad_()
    missed = place_entropy(logits, torch.tensor([1.0, 0.0]).view(1, 1, 1, 1, 2))
    assert missed.item() == pytest.approx(40)
    missed.sum().backward()
    assert logits.grad.flatten()[[4, 5]].tolist() == pytest.approx([1, -1])
    border = torch.zeros(1, 1, 1, 1, 9).index_fill(-1, torch.tensor([2, 5, 8]), -torch.inf).requires_grad_()
    half = place_entropy(border, torch.tensor([0.5, 0.0]).view(1, 1, 1, 1, 2))
    assert half.item() == pytest.approx((math.log(6) + 20) / 2)
    half.sum().backward()
    assert bool(border.grad.isfinite().all())


def test_the_right_place_of_a_moving_camera_and_of_what_moves() -> None:
    """One camera, 4-pixel cells; frame 1 is the query. The scene stands at depth 2; one cell's point moves sideways."""
    eye = torch.eye(4).repeat(1, 2, 1, 1)
    eye[0, 1, 0, 3] = 0.4  # 4 pixels at focal length 20 and depth 2: everything appears one cell further left
    lens = torch.tensor([[20.0, 0, 8], [0, 20, 8], [0, 0, 1]]).expand(1, 2, 3, 3)
    motion = torch.zeros(1, 1, 2, 16, 16, 3)
    motion[0, 0, 0, 6, 6, 1] = 0.8  # two cells down
    flags = torch.ones(1, 1, 2, 16, 16, dtype=torch.bool)
    targets = Clip(
        images=torch.zeros(1, 2, 3, 16, 16),
        times=torch.tensor([[0.0, 1.0]]),
        camera_ids=torch.zeros(1, 2, dtype=torch.long),
        cameras=Cameras(world_from_camera=eye, intrinsics=lens),
        depth=torch.full((1, 2, 16, 16), 2.0),
        query_times=torch.tensor([[1.0]]),
        motion=motion,
        motion_valid=flags,
        motion_visible=flags,
    )
    step, known, moves = true_places(targets, 0, (4, 4), 25)
    assert known[0, 0, :, 1:].all()
    assert not known[0, 0, :, 0].any(), "it left the image"
    assert not known[0, 1].any(), "the query frame's own places are not asked for"
    torch.testing.assert_close(step[0, 0, 0, 1:], torch.tensor([-1.0, 0.0]).expand(3, 2))
    torch.testing.assert_close(step[0, 0, 1, 1], torch.tensor([-1.0, 2.0]))
    assert moves[0, 0].nonzero().tolist() == [[1, 1]]
    label = (step[..., 1].round() + 2) * 5 + step[..., 0].round() + 2
    right = torch.nn.functional.one_hot(label.long(), 25).float()[:, None] * 50
    assert float(loss_value(MatchingLossConfig(), Prediction(match_logits=right), targets)) == pytest.approx(
        0, abs=1e-6
    )
    assert float(loss_value(MatchingLossConfig(), Prediction(match_logits=0 * right), targets)) == pytest.approx(
        math.log(25)
    )
    with pytest.raises(UserError, match="needs frames to be compared"):
        loss_value(MatchingLossConfig(), Prediction(), targets)
    none = dataclasses.replace(targets, motion_valid=~flags)
    assert float(loss_value(MatchingLossConfig(), Prediction(match_logits=right), none)) == 0
    first = {name: getattr(targets, name)[:, :, :1] for name in ("motion", "motion_valid", "motion_visible")}
    some = dataclasses.replace(targets, motion_frames=torch.zeros(1, 1, dtype=torch.long), **first)
    key = Prediction(match_logits=(right / 9)[:, :, :1], match_frames=torch.zeros(1, 1, dtype=torch.long))
    assert float(loss_value(MatchingLossConfig(), key, some)) == pytest.approx(
        float(loss_value(MatchingLossConfig(), key, targets))
    )
    assert float(loss_value(MatchingLossConfig(), key, some)) > 0


def test_visibility_is_learned_where_motion_is_known() -> None:
    targets = make_targets()
    right = 40 * targets.motion_visible.double() - 20
    sure = dataclasses.replace(truth(targets), motion_visible_logits=right)
    wrong = dataclasses.replace(truth(targets), motion_visible_logits=(-right).requires_grad_())
    loss = MotionLossConfig(visibility=1.0)
    assert float(loss_value(loss, sure, targets)) == pytest.approx(0, abs=1e-6)
    lost = loss_value(loss, wrong, targets)
    assert lost.item() == pytest.approx(20)
    lost.backward()
    pull = wrong.motion_visible_logits.grad
    assert bool((pull[targets.motion_valid].abs() > 0).all()), "what is sure and wrong is pulled back"
    mixed = torch.where(targets.motion_valid, right, -right)
    assert float(loss_value(loss, dataclasses.replace(sure, motion_visible_logits=mixed), targets)) == pytest.approx(
        0, abs=1e-6
    )

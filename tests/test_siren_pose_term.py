"""SirenPose's term: on trajectories of any source, with and without truth, in a run, and in the shipped configs."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor

from four_d import checkpoints, fields
from four_d import config as configs
from four_d.config import RunConfig, load
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.data.shards import finalise, write_shard
from four_d.errors import UserError
from four_d.exporting import export
from four_d.geometry import project
from four_d.keypoints import encode_names, inside_image
from four_d.losses.siren_pose import SirenPoseLossConfig
from four_d.losses.siren_pose.term import extent, in_order
from four_d.losses.supervision import supervised
from four_d.losses.term import LossInputs
from four_d.model import ModelConfig
from four_d.training import TrainingModule, train
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from four_d.trajectories import Trajectories
from four_d.types import NONE, POINT, Clip, Example, Keypoints, Prediction
from tests.helpers import box_clip
from tests.keypoint_scene import chain_clip
from tests.motion_scene import Oracle, scene
from tests.training.runs import assert_same_end, crash, last, make_data, validated

SMALL: dict[str, Any] = {
    "siren_network": {"layers": 2, "width": 8, "code": 4, "clip_code": 4},
    "graph_network": {"layers": 1, "width": 8, "heads": 2, "code": 4},
}
DIRECT = ("position", "depth", "velocity", "acceleration", "bone")


def settings(**given: object) -> SirenPoseLossConfig:
    return configs.build(SirenPoseLossConfig, {"source": "motion", **SMALL, **given}, "losses.siren_pose")


def parts(prediction: Prediction, targets: Clip, **given: object) -> dict[str, Tensor]:
    torch.manual_seed(0)
    return settings(**given).build().parts(LossInputs(prediction=prediction, targets=targets))


@pytest.fixture(scope="module")
def example() -> Example:
    return scene()


@pytest.fixture(scope="module")
def right(example: Example) -> Prediction:
    return Oracle(example)(example.inputs)


def wrong(right: Prediction) -> Prediction:
    assert right.motion is not None
    noise = 0.1 * torch.randn(right.motion.shape, generator=torch.Generator().manual_seed(0))
    return replace(right, motion=(right.motion + noise).requires_grad_())


def test_the_truth_is_zero_and_noise_is_not(example: Example, right: Prediction) -> None:
    best, noisy = (parts(each, example.targets, hidden=1.0) for each in (right, wrong(right)))
    assert set(best) == {*DIRECT, "siren", "graph"}
    for name in DIRECT:
        assert best[name] < 1e-6 < 1e-3 < noisy[name], name
    assert noisy["graph"] > best["graph"]


def test_at_the_truth_the_siren_pulls_nothing(example: Example, right: Prediction) -> None:
    assert right.motion is not None
    exact = replace(right, motion=right.motion.clone().requires_grad_())
    only = dict.fromkeys((*DIRECT, "graph"), 0.0)
    for prediction, least in ((wrong(right), 1e-9), (exact, 0.0)):
        given = {name: value for name, value in SMALL.items() if name == "siren_network"}
        config = configs.build(SirenPoseLossConfig, {"source": "motion", "hidden": 1.0, **only, **given}, "loss")
        value = config.build()(LossInputs(prediction=prediction, targets=example.targets))
        value.backward()
        assert prediction.motion is not None
        assert prediction.motion.grad is not None
        assert value > 0
        assert (prediction.motion.grad.norm() > least) == (least > 0)
        assert prediction.motion.grad.norm() < 1e-4 or least > 0


def test_every_weight_gets_a_gradient_and_so_does_the_model(example: Example, right: Prediction) -> None:
    term, given = settings(hidden=1.0).build(), wrong(right)
    term(LossInputs(prediction=given, targets=example.targets)).backward()
    assert [name for name, weight in term.named_parameters() if weight.grad is None] == []
    assert given.motion is not None
    assert given.motion.grad is not None
    assert given.motion.grad.norm() > 0
    none = settings(siren=0.0, graph=0.0, siren_network={}, graph_network={})
    assert list(none.build().parameters()) == []


@pytest.mark.parametrize("without", ["motion", "cameras", "depth"])
def test_without_truth_it_is_an_exact_zero_with_a_path(example: Example, right: Prediction, without: str) -> None:
    targets, given = replace(example.targets, **{without: None}), wrong(right)
    assert not supervised(targets, settings().needs).any()
    value = settings().build()(LossInputs(prediction=given, targets=targets))
    assert value == 0
    value.backward()
    assert given.motion is not None
    assert given.motion.grad is not None
    assert (given.motion.grad == 0).all()


def test_without_truth_smoothness_and_neighbours_teach_where_that_is_asked_for(
    example: Example, right: Prediction
) -> None:
    given = wrong(right)
    config = settings(without_truth=True)
    assert (config.needs, config.teaches) == ((), ("motion",))
    found = parts(given, replace(example.targets, motion=None), without_truth=True)
    assert {name for name, value in found.items() if value > 0} == {"velocity", "acceleration", "siren"}
    both = fields.stack([fields.unstack(example.targets, 0)] * 2)
    assert both.motion_valid is not None
    half = replace(both, motion_valid=both.motion_valid & torch.tensor([True, False]).view(2, *[1] * 4))
    twice = fields.stack([fields.unstack(given, 0)] * 2)
    mixed, alone = parts(twice, half, without_truth=True), parts(given, example.targets)
    torch.testing.assert_close(mixed["acceleration"], (found["acceleration"] + alone["acceleration"]) / 2)
    torch.testing.assert_close(mixed["position"], alone["position"] / 2)


def test_clips_are_averaged_one_by_one(example: Example, right: Prediction) -> None:
    other = scene(seed=3)
    clips = [(right, example.targets), (Oracle(other, seed=3)(other.inputs), other.targets)]
    clips = [(wrong(prediction), targets) for prediction, targets in clips]
    single = [parts(*clip) for clip in clips]
    batch = [fields.stack([fields.unstack(value, 0) for value in values]) for values in zip(*clips, strict=True)]
    together = parts(*batch)
    for name in together:
        torch.testing.assert_close(together[name], (single[0][name] + single[1][name]) / 2, rtol=1e-4, atol=1e-7)


def test_lengths_in_any_unit_and_times_at_any_speed_give_one_value(example: Example, right: Prediction) -> None:
    given = wrong(right)
    before = parts(given, example.targets, depth=0.0)
    scaled = parts(fields.scale(given, 3.0), fields.scale(example.targets, 3.0), depth=0.0)
    for name in before:
        torch.testing.assert_close(scaled[name], before[name], rtol=1e-3, atol=1e-6)


def test_entries_are_put_in_order_of_time_and_those_of_a_rig_become_one() -> None:
    points = torch.arange(6.0)[None, None, :, None].expand(1, 2, 6, 3)
    visible, valid = torch.full((1, 2, 6), 0.5), torch.ones(1, 2, 6, dtype=torch.bool)
    visible[0, 0, 3], valid[0, 1, 5] = 0.9, False
    times = torch.tensor([[0.2, 0.0, 0.1, 0.2, 0.0, 0.3]])
    found = in_order(Trajectories(points=points, visible=visible, valid=valid, times=times))
    assert found.times[0, :4].tolist() == pytest.approx([0.0, 0.1, 0.2, 0.3])
    assert found.points[0, 0, :4, 0].tolist() == [1, 2, 3, 5]
    assert found.points[0, 1, 2, 0] == 0
    assert found.valid[0].tolist() == [[True] * 4 + [False] * 2, [True] * 3 + [False] * 3]


def test_a_rig_says_what_one_camera_says(example: Example, right: Prediction) -> None:
    """Query times that are asked for twice, and in another order."""
    given, order = wrong(right), torch.tensor([2, 0, 1, 3, 1, 0])
    targets = example.targets
    assert targets.motion is not None
    assert targets.query_times is not None
    repeated = fields.take(targets, "q", order)
    once, twice = parts(given, targets), parts(fields.take(given, "q", order), repeated)
    for name in once:
        torch.testing.assert_close(twice[name], once[name], rtol=1e-4, atol=1e-7)


# keypoints and other sources


@dataclass(frozen=True, kw_only=True)
class Named(Prediction):
    keypoints: Float[Tensor, "*b f joints 3"] | None = field(default=None, metadata=POINT)
    keypoint_visible: Float[Tensor, "*b f joints"] | None = field(default=None, metadata=NONE)


def skeleton(example: Example) -> tuple[Named, Clip]:
    """A chain of four points that turns about its first, and what a model says of it: a fifth name is padding."""
    targets = example.targets
    turns = 2 * targets.times[0, :, None] + torch.arange(4) * 0.3
    steps = 0.3 * torch.stack([turns.cos(), turns.sin(), torch.zeros_like(turns)], dim=-1)
    steps[:, 0] = torch.tensor([0.0, 0.0, 2.0])
    points = torch.nn.functional.pad(steps.cumsum(1), (0, 0, 0, 1))[None]
    names = torch.nn.functional.pad(encode_names(["hip", "knee", "foot", "toe"]), (0, 0, 0, 1))
    assert targets.cameras is not None
    true = Keypoints(
        names=names[None],
        instances=torch.zeros(1, 5, dtype=torch.long),
        points=points,
        valid=(names[:, 0] > 0).expand(1, 4, 5),
        pixels=project(points, targets.cameras)[0],
        pixels_valid=torch.ones(1, 4, 5, dtype=torch.bool),
        visible=torch.ones(1, 4, 5, dtype=torch.bool),
        edges=torch.tensor([[[0, 1], [1, 2], [2, 3], [0, 0]]]),
        rigid=torch.tensor([[True, True, False, False]]),
    )
    said = Named(keypoints=points.clone(), keypoint_visible=torch.ones(1, 4, 5))
    return said, replace(targets, keypoints=true, keypoint_names=names[None], motion=None)


def test_keypoints_with_their_names_and_bones(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    assert settings(source="keypoints").needs == ("keypoints",)
    best = parts(said, targets, source="keypoints")
    for name in DIRECT:
        assert best[name] < 1e-6, name
    longer = said.keypoints.clone()
    longer[:, 2:, 3:] += torch.tensor([0.0, 0.2, 0.0])  # the toe's bone is not rigid, and the padding no point
    found = parts(replace(said, keypoints=longer), targets, source="keypoints")
    assert found["bone"] < 1e-6
    assert found["position"] > 1e-2
    stretched = said.keypoints.clone()
    stretched[:, 2:, 2:] += torch.tensor([0.0, 0.2, 0.0])
    assert parts(replace(said, keypoints=stretched), targets, source="keypoints")["bone"] > 1e-3


def test_hidden_keypoints_get_exactly_no_gradient_unless_they_are_asked_to_count(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    assert targets.keypoints is not None
    visible = targets.keypoints.visible.clone()
    visible[0, 1, 1], visible[0, :, 3] = False, False
    clip = replace(targets, keypoints=replace(targets.keypoints, visible=visible))
    noise = 0.1 * torch.randn(said.keypoints.shape, generator=torch.Generator().manual_seed(0))
    for hidden in (0.0, 0.5):
        points = (said.keypoints + noise).requires_grad_()
        term = settings(source="keypoints", hidden=hidden).build()
        term(LossInputs(prediction=replace(said, keypoints=points), targets=clip)).backward()
        assert points.grad is not None
        felt = (points.grad != 0).any(-1)[0]
        assert felt[:, :4][visible[0, :, :4]].all()
        assert felt[:, :4][~visible[0, :, :4]].any() == (hidden > 0)
        assert not felt[:, 4].any()


def test_the_order_of_keypoints_does_not_matter(example: Example) -> None:
    said, targets = skeleton(example)
    truth, order = targets.keypoints, torch.tensor([2, 4, 0, 3, 1])
    assert said.keypoints is not None
    assert truth is not None
    said = replace(said, keypoints=said.keypoints + 0.1 * torch.rand(1, 4, 5, 3))
    turned = replace(fields.take(truth, "n", order), edges=order.argsort()[truth.edges], rigid=truth.rigid)
    there = replace(targets, keypoints=turned, keypoint_names=turned.names)
    before = parts(said, targets, source="keypoints", reprojection=1.0)
    after = parts(fields.take(said, "joints", order), there, source="keypoints", reprojection=1.0)
    assert min(before.values()) > 0
    for name in before:
        torch.testing.assert_close(after[name], before[name], rtol=1e-4, atol=1e-7)


def test_a_clip_of_one_image_has_positions_alone(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    one = fields.take(replace(said, keypoints=said.keypoints + 0.1), "f", [1])
    found = parts(one, fields.take(targets, "f", [1]), source="keypoints", reprojection=1.0)
    assert {name for name, value in found.items() if value > 0} == {
        "position",
        "depth",
        "reprojection",
        "siren",
        "graph",
    }
    assert all(value.isfinite() for value in found.values())


@pytest.mark.parametrize("end", [-1, 5])
def test_an_edge_to_no_point_is_refused_and_one_to_itself_is_none(example: Example, end: int) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    assert targets.keypoints is not None
    said = replace(said, keypoints=said.keypoints + 0.1 * torch.rand(1, 4, 5, 3))
    edges = targets.keypoints.edges.clone()
    edges[0, 3] = 2
    own = replace(targets, keypoints=replace(targets.keypoints, edges=edges, rigid=torch.ones(1, 4, dtype=torch.bool)))
    rigid = torch.tensor([[True, True, True, False]])
    same = replace(targets, keypoints=replace(targets.keypoints, rigid=rigid))
    torch.testing.assert_close(parts(said, own, source="keypoints"), parts(said, same, source="keypoints"))
    edges[0, 1, 0] = end
    with pytest.raises(UserError, match=r"an edge of Clip\.keypoints joins points of .*, and there are 5"):
        parts(said, own, source="keypoints")


def flat(example: Example) -> tuple[Named, Clip]:
    """`skeleton`, of which the truth has pixels alone; the toe is outside the image."""
    said, targets = skeleton(example)
    assert targets.keypoints is not None
    assert targets.cameras is not None
    truth = targets.keypoints
    pixels = truth.pixels.clone()
    pixels[:, :, 3] = -5
    none = torch.zeros_like(truth.valid)
    return said, replace(targets, keypoints=replace(truth, valid=none, points=0 * truth.points, pixels=pixels))


def test_pixels_alone_teach_by_reprojection(example: Example) -> None:
    said, targets = flat(example)
    assert said.keypoints is not None
    assert targets.cameras is not None
    assert supervised(targets, settings(source="keypoints").needs).all()
    right = parts(said, targets, source="keypoints", reprojection=1.0)
    assert right["reprojection"] < 1e-6
    moved = (said.keypoints + torch.tensor([0.05, 0.0, 0.0])).requires_grad_()
    found = parts(replace(said, keypoints=moved), targets, source="keypoints", reprojection=1.0)
    assert found["reprojection"] > 1e-3
    assert {name for name, value in found.items() if value} == {"reprojection"}
    config = settings(source="keypoints", reprojection=2.0)
    config.build()(LossInputs(prediction=replace(said, keypoints=moved), targets=targets)).backward()
    assert moved.grad is not None
    assert moved.grad.isfinite().all()
    assert targets.keypoints is not None
    here = inside_image(targets.keypoints, (targets.images.shape[-2], targets.images.shape[-1]))
    here = here & (torch.arange(5) < 4)
    assert 0 < here.sum() < here.numel()
    assert torch.equal((moved.grad != 0).any(-1), here), "not outside the image, nor of padding"


def test_pixels_of_two_cameras_place_points_in_space() -> None:
    """Read from a shard without any 3D position; a single camera leaves the depth as it was."""
    raw = chain_clip(0, frames=3, cameras=2, size=64)
    assert raw.keypoints is not None
    bare = replace(raw.keypoints, points=0 * raw.keypoints.points, valid=np.zeros_like(raw.keypoints.valid))
    whole = normalise(to_clip(raw))
    clip = normalise(to_clip(replace(raw, keypoints=bare)))
    factor = float(whole.scale) / float(clip.scale)  # pyright: ignore[reportArgumentType]
    true = fields.scale(whole, factor).keypoints
    assert true is not None
    seen = true.visible.view(2, 3, 5).all(0)
    assert seen.sum() > 5
    for cameras, near in ((2, True), (1, False)):
        targets = collate([to_example(fields.take(clip, "f", range(3 * cameras)), "key")]).targets
        start = true.points[:3] + 0.2 * torch.randn(3, 5, 3, generator=torch.Generator().manual_seed(0))
        points = start.clone().requires_grad_()
        term = SirenPoseLossConfig(source="keypoints", reprojection=1.0, siren=0.0, graph=0.0).build()
        optimiser = torch.optim.Adam([points], lr=0.04)
        for _ in range(120):
            said = Named(keypoints=points.repeat(cameras, 1, 1)[None], keypoint_visible=torch.ones(1, 3 * cameras, 5))
            value = term(LossInputs(prediction=said, targets=targets))
            optimiser.zero_grad()
            value.backward()
            optimiser.step()
        away, before = ((each.detach() - true.points[:3])[seen].norm(dim=-1).mean() for each in (points, start))
        assert value < 0.02, cameras  # pyright: ignore[reportPossiblyUnboundVariable]
        assert (away < 0.1 * before) == near, (cameras, away, before)


def test_the_unit_of_reprojection_is_the_box_of_the_thing(example: Example) -> None:
    said, targets = flat(example)
    assert targets.keypoints is not None
    truth, size = targets.keypoints, max(targets.images.shape[-2:])
    one = replace(truth, pixels_valid=truth.pixels_valid & (torch.arange(5) == 1))
    for away in (0.01, 0.02):  # of a thing of one point, which counts as a tenth of the image
        shifted = replace(one, pixels=one.pixels + away * size * torch.tensor([0.6, 0.8]))
        found = parts(said, replace(targets, keypoints=shifted), source="keypoints", reprojection=1.0)["reprojection"]
        torch.testing.assert_close(found.item(), ((10 * away) ** 2 + 1e-6) ** 0.5 - 1e-3, rtol=1e-3, atol=0)


def test_reprojection_leaves_the_other_parts_and_their_default_as_they_are(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    said = replace(said, keypoints=said.keypoints + 0.1 * torch.rand(1, 4, 5, 3))
    before = parts(said, targets, source="keypoints")
    after = parts(said, targets, source="keypoints", reprojection=1.0)
    assert after.pop("reprojection") > 0
    torch.testing.assert_close(after, before, rtol=0, atol=0)
    assert settings().reprojection == 0


@pytest.mark.parametrize("what", ["hidden", "outside", "true NaN", "no camera in a frame", "no cameras", "no pixels"])
def test_what_has_no_true_pixel_has_exactly_no_gradient_of_reprojection(example: Example, what: str) -> None:
    said, targets = flat(example)
    truth, cameras = targets.keypoints, targets.cameras
    assert said.keypoints is not None
    assert truth is not None
    assert cameras is not None
    spot = torch.zeros(1, 4, 5, dtype=torch.bool)
    spot[0, 1, 2] = True
    if what == "hidden":
        truth = replace(truth, visible=truth.visible & ~spot)
    if what in ("outside", "true NaN"):
        truth = replace(truth, pixels=truth.pixels.masked_fill(spot[..., None], -1 if what == "outside" else torch.nan))
    if what == "no pixels":
        truth, spot = replace(truth, pixels_valid=torch.zeros_like(truth.pixels_valid)), torch.ones_like(spot)
    if what == "no camera in a frame":
        spot[0, 1] = True
        cameras = replace(cameras, known=torch.arange(4)[None] != 1)
    if what == "no cameras":
        cameras, spot = None, torch.ones_like(spot)
    lost = (said.keypoints + 0.1).masked_fill(spot[..., None], torch.nan).requires_grad_()
    only = dict.fromkeys((*DIRECT, "siren", "graph"), 0.0)
    config = SirenPoseLossConfig(source="keypoints", reprojection=1.0, **only)
    clip = replace(targets, keypoints=truth, cameras=cameras)
    value = config.build()(LossInputs(prediction=replace(said, keypoints=lost), targets=clip))
    value.backward()
    assert lost.grad is not None
    assert (lost.grad[spot] == 0).all()
    assert (value == 0) == bool(spot.all())
    assert lost.grad[~spot].isfinite().all()
    assert spot.all() or lost.grad[:, :, 0].any()


@pytest.mark.parametrize("what", ["none", "one", "all hidden", "true NaN", "one frame"])
def test_clips_with_hardly_any_keypoints(example: Example, what: str) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    assert targets.keypoints is not None
    true, points = targets.keypoints, (said.keypoints + 0.1).requires_grad_()
    valid, visible, places = true.valid, true.visible, true.points
    if what == "none":
        valid = torch.zeros_like(valid)
    if what == "one":
        valid = valid & (torch.arange(5) == 1)
    if what == "all hidden":
        visible = torch.zeros_like(visible)
    if what == "true NaN":
        places = places.masked_fill(torch.arange(5)[:, None] == 1, torch.nan)
    if what == "one frame":
        valid = valid & (torch.arange(4) == 2)[:, None]
    clip = replace(targets, keypoints=replace(true, valid=valid, visible=visible, points=places))
    value = settings(source="keypoints").build()(LossInputs(prediction=replace(said, keypoints=points), targets=clip))
    value.backward()
    assert points.grad is not None
    assert points.grad.isfinite().all()
    assert (value == 0) == (what in ("none", "all hidden"))
    assert points.grad.any() == (what not in ("none", "all hidden"))
    if what == "true NaN":
        assert (points.grad[:, :, 1] == 0).all()


def test_points_behind_a_camera_have_no_depth_in_it(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    assert targets.cameras is not None
    said, known = replace(said, keypoints=said.keypoints + 0.05), torch.arange(4)[None] != 1
    pose = targets.cameras.world_from_camera.clone()
    pose[:, 1, :3, :3] = pose[:, 1, :3, :3] @ torch.diag(torch.tensor([-1.0, 1.0, -1.0]))
    turned = replace(targets.cameras, world_from_camera=pose)
    found = parts(said, replace(targets, cameras=turned), source="keypoints")["depth"]
    without = parts(said, replace(targets, cameras=replace(turned, known=known)), source="keypoints")["depth"]
    assert found > 0
    torch.testing.assert_close(found, without)


@pytest.mark.parametrize("shake", [0.0, 1e-6])
def test_a_point_at_rest_has_an_extent_by_its_distance(shake: float) -> None:
    points = torch.tensor([1.0, 2.0, 2.0]).expand(1, 1, 24, 3) + shake * (torch.arange(24) % 2)[:, None]
    for unit in (1.0, 100.0):
        torch.testing.assert_close(extent(unit * points, torch.ones(1, 1, 24)).item(), 0.03 * unit, rtol=1e-4, atol=0)


def test_the_siren_sees_the_times_that_are_known_from_minus_one_to_one(example: Example) -> None:
    said, targets = skeleton(example)
    assert targets.keypoints is not None
    late = replace(targets.keypoints, valid=targets.keypoints.valid & (torch.arange(4) >= 2)[:, None])
    term, stamps = settings(source="keypoints").build(), list[Tensor]()
    assert term.siren is not None
    term.siren.register_forward_pre_hook(lambda _, given: stamps.append(given[1]))
    term(LossInputs(prediction=said, targets=replace(targets, keypoints=late)))
    torch.testing.assert_close(stamps[0][0, 2:], torch.tensor([-1.0, 1.0]))


def test_a_prediction_that_is_no_number_is_not_passed_over(example: Example) -> None:
    said, targets = skeleton(example)
    assert said.keypoints is not None
    lost = replace(said, keypoints=said.keypoints.masked_fill(torch.arange(5)[:, None] == 1, torch.nan))
    assert settings(source="keypoints").build()(LossInputs(prediction=lost, targets=targets)).isnan()


def test_clips_that_ask_for_no_keypoints_need_no_head_that_finds_some(example: Example, right: Prediction) -> None:
    term, given = settings(source="keypoints").build(), wrong(right)
    value = term(LossInputs(prediction=given, targets=example.targets))
    assert value == 0
    value.backward()
    targets = skeleton(example)[1]
    with pytest.raises(UserError, match="the model gives motion: it needs keypoints in 3D"):
        term(LossInputs(prediction=given, targets=targets))


def test_a_source_that_the_model_lacks_is_one_line(example: Example, right: Prediction) -> None:
    with pytest.raises(UserError, match=r"reads trajectories of gaussians, and the model gives motion: it needs one"):
        parts(right, example.targets, source="gaussians")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"position": -1.0}, "weights of parts must be at least 0"),
        (dict.fromkeys((*DIRECT, "siren", "graph"), 0.0), "one of them positive"),
        ({"hidden": 2.0}, "hidden is 2; choose a share"),
        ({"reprojection": 1.0}, "which keypoints have, and source is motion"),
        ({"reprojection": -1.0, "source": "keypoints"}, "weights of parts must be at least 0"),
        ({"points": 0}, "points and neighbours must be at least 1"),
        ({"graph": 0.0, "siren_network": {}}, "graph_network.layers is 1, and has no effect where graph is 0"),
        ({"siren": 0.0, "siren_network": {}, "rate": 2.0}, "rate is 2.0, and has no effect where siren is 0"),
        ({"source": None}, "source"),
    ],
)
def test_settings_that_cannot_be(wrong: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        settings(**wrong)


# in a run


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), bare=1)


def run(shards: Path, folder: Path) -> RunConfig:
    """A model that follows pixels, taught by the term beside `MotionLoss`."""
    dense = {"kind": "dense", "channels": [8, 8, 16, 16], "features": 16}
    heads = {
        "camera": {"kind": "camera", "width": 32, "depth": 1, "heads": 2},
        "depth": {**dense, "output": "depth"},
        "motion": {**dense, "output": "motion", "decoder": {}},
    }
    losses = {"motion": {"kind": "motion"}, "paths": {"kind": "siren_pose", "source": "motion", "points": 16, **SMALL}}
    loop = {"max_steps": 3, "epoch_steps": 2, "ema": 0.9, "precision": "fp32", "accelerator": "cpu"}
    return validated(shards, folder, {"query_times": 3}, model={"heads": heads}, losses=losses, loop=loop)


@pytest.mark.slow
def test_its_weights_train_are_averaged_saved_and_resumed_bit_for_bit_and_are_not_exported(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (run(data, tmp_path / name) for name in ("whole", "broken"))
    begun = whole.losses["paths"].build().state_dict()
    result = train(whole)
    assert result.validation["paths"] > 0
    assert [line["paths"] > 0 for line in read_metrics(whole.run_folder) if line["split"] == "train"] == [True] * 3
    crash(monkeypatch, 2, lambda: train(broken))
    train(broken)
    assert_same_end(broken, whole)
    own = [name for name in last(whole)["state_dict"] if name.startswith("losses.paths.")]
    assert len(own) == len(begun)
    averaged, trained = last(whole)["state_dict"], last(whole)["run"]["trained"]
    moved = [name for name in own if name in trained and not torch.equal(averaged[name], trained[name])]
    assert {name.split(".")[2] for name in moved} == {"siren", "graph", "codes"}
    assert not any("paths" in name for name in checkpoints.read(whole.run_folder).model.state_dict())
    exported = load_file(export(whole.run_folder, tmp_path / "model", formats=["safetensors"]) / "model.safetensors")
    assert not any("paths" in name or name.startswith("losses") for name in exported)
    assert load([whole.run_folder / "config.yaml"]).losses["paths"] == whole.losses["paths"]


TINY = [
    *("model.backbone.width=48", "data.images_per_batch=4", "data.workers=0", "weights=null", "data.image_size=32,32"),
    "data.sampling={min_frames: 4, max_frames: 4, max_stride: 1}",
    *("optimiser.trainable=['*']", "optimiser.min_warmup_steps=0", "loop.max_steps=3", "loop.epoch_steps=3"),
    *("loop.precision=fp32", "loop.accelerator=cpu", "loop.compile=false", "logging.every=1", "logging.pictures=1"),
    *("losses.siren_pose.siren_network.width=16", "losses.siren_pose.graph_network.width=16"),
]
MASK = "model.backbone.dynamics={after: 0, rounds: [1, 2], hidden: 8}"
TRACK = (
    "model.heads.track={kind: track, channels: [8, 8, 8, 8], features: 8, levels: 2, radius: 1, hidden: 16, depth: 1, "
    "heads: 2, virtual: 2, iterations: 2, grid: [3, 3]}"
)
TRACKED = [
    "data.surface=true",
    "losses.track={kind: track}",
    "losses.siren_pose={kind: siren_pose, source: pixel_tracks}",
]
KEYPOINTS = "model.heads.keypoints={width: 16, depth: 1, heads: 2, groups: 64}"
MOTION = "model.heads.motion={channels: [8, 8, 8, 8], features: 8, last_features: 8}"
FORMS: dict[str, tuple[list[str], list[str]]] = {
    "PAGE-4D": (["siren_pose", "overlays/tiny"], [MASK, KEYPOINTS]),
    "PAGE-4D with tracks": (["page_4d", "overlays/tiny"], [MASK, TRACK, *TRACKED]),
    "DePT3R": (["dept3r", "overlays/tiny", "overlays/siren_pose"], [MOTION]),
    "DGS-LRM": (
        ["overlays/dgs_lrm_mini", "overlays/siren_pose_gaussians"],
        ["model.backbone.depth=2", "model.backbone.stride=2", "model.heads.gaussian.frames=4", "data.query_times=4"],
    ),
    "unified": (
        ["unified", "overlays/tiny", "overlays/siren_pose"],
        [MASK, MOTION, "model.heads.gaussian={frames: 4, every: 2, hidden: 16}", "losses.photometric=null"],
    ),
}
"""Files and overrides of each system."""


def tiny(name: str, shards: Path, folder: Path) -> RunConfig:
    paths = [f"folder={folder}", f"data.sources.boxes.path={shards}", f"data.validation.boxes.path={shards}"]
    files, own = FORMS[name]
    return load(files, [*own, *TINY, *paths, "data.validation_clips=1", "data.validation_frames=4"])


@pytest.fixture(scope="module")
def chains(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Clips with keypoints, and one without."""
    folder = tmp_path_factory.mktemp("chains")
    clips = [chain_clip(seed, frames=4, surface=True) for seed in range(3)]
    write_shard(folder, 0, [*clips, box_clip(9, frames=4, cameras=1, size=32)])
    finalise(folder, "chains")
    return folder


@pytest.mark.parametrize("name", FORMS)
def test_the_shipped_configs_train(name: str, data: Path, chains: Path, tmp_path: Path) -> None:
    config = tiny(name, chains if name == "PAGE-4D" else data, tmp_path)
    result = train(config)
    assert result.steps == 3
    assert result.validation["siren_pose"] > 0
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "train"]
    assert any(line["siren_pose"] > 0 for line in lines)


@pytest.mark.parametrize("name", ["PAGE-4D", "DePT3R"])
def test_every_weight_gets_a_finite_gradient_whatever_truth_a_batch_has(
    name: str, data: Path, chains: Path, tmp_path: Path
) -> None:
    """In bfloat16, as on a GPU; a weight without one would stop the exchange between processes."""
    module = TrainingModule(tiny(name, chains if name == "PAGE-4D" else data, tmp_path))
    stream = RunData(module.config).training
    for index in range(3):
        module.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            loss = module.terms(stream[index].batches[0])[1]["loss"]
        loss.backward()
        gradients = {name: weight.grad for name, weight in module.named_parameters() if weight.requires_grad}
        assert [name for name, gradient in gradients.items() if gradient is None] == []
        assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)


def test_page_4d_of_its_own_says_nowhere_where_points_go(data: Path, tmp_path: Path) -> None:
    model = tiny("PAGE-4D with tracks", data, tmp_path).model
    assert isinstance(model, ModelConfig)
    alone = dataclasses.replace(model, heads={name: head for name, head in model.heads.items() if name != "track"})
    clip = Clip(
        images=torch.rand(1, 2, 3, 32, 32), times=torch.tensor([[0.0, 1.0]]), camera_ids=torch.zeros(1, 2).long()
    )
    for build, sources in ((alone, set[str]()), (model, {"pixel_tracks"})):
        prediction = build.build().eval()(clip)
        assert set(LossInputs(prediction=prediction, targets=clip).trajectories) == sources

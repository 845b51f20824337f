"""The parts of SirenPose one by one: consistency of trajectories, SIREN, the graph network, fitting."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import roma
import torch
from torch import Tensor, nn

from four_d import fields
from four_d.errors import UserError
from four_d.geometry import project
from four_d.keypoints import encode_names
from four_d.losses.siren_pose import FitConfig, fit_siren
from four_d.losses.siren_pose import consistency as parts
from four_d.losses.siren_pose.codes import PointCode, canonical
from four_d.losses.siren_pose.graph import GraphConfig, GraphNetwork, judged_error
from four_d.losses.siren_pose.siren import AmortisedSiren, Siren, SirenConfig, anchors
from four_d.trajectories import Trajectories
from four_d.types import Cameras

TIMES = torch.tensor([[0.0, 0.3, 0.5, 1.1, 1.2], [-1.0, 0.0, 0.1, 0.7, 2.0]], dtype=torch.float64)
EDGES = torch.tensor([[0, 1], [1, 2], [2, 3], [0, 0]]).expand(2, -1, -1)
SIREN, GRAPH = SirenConfig(layers=2, width=8, code=4, clip_code=3), GraphConfig(layers=2, width=8, heads=2, code=4)


def made(seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Positions and others near them, b n t 3, and weights, some of them 0 and a half."""
    generator = torch.Generator().manual_seed(seed)
    points = torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64) + torch.tensor([0.0, 0.0, 6.0])
    near = points + 0.1 * torch.randn(2, 4, 5, 3, generator=generator, dtype=torch.float64)
    weights = torch.ones(2, 4, 5, dtype=torch.float64)
    weights[0, 1, 2], weights[1, 3], weights[1, 0, 4] = 0, 0, 0.5
    return points, near, weights


def judged(points: Tensor, reference: Tensor, weights: Tensor, times: Tensor, edges: Tensor) -> Tensor:
    """The graph network's error, of a network that does something."""
    torch.manual_seed(0)
    network = GraphNetwork(GRAPH).double()
    codes = torch.linspace(-1, 1, points.shape[1] * 8, dtype=torch.float64).view(2, -1, 4)
    nn.init.normal_(network.out.weight)
    found = network(points, times, weights, codes, edges)
    return parts.weighted_mean(judged_error(found, points, reference, weights, 0.1), weights)


def camera(points: Tensor) -> Cameras:
    """A camera for each of b t that looks at `made`'s points from a little beside the origin."""
    poses = torch.eye(4, dtype=torch.float64).repeat(len(points), points.shape[2], 1, 1)
    poses[:, :, 0, 3] = 0.1 * torch.arange(points.shape[2])
    lens = torch.tensor([[30.0, 0, 16], [0, 40, 12], [0, 0, 1]], dtype=torch.float64)
    return Cameras(world_from_camera=poses, intrinsics=lens.expand(*poses.shape[:2], 3, 3))


def reprojected(points: Tensor, reference: Tensor, weights: Tensor) -> Tensor:
    seen = camera(points)
    pixels = project(reference.transpose(1, 2), seen)[0].transpose(1, 2)
    return parts.reprojection(points, seen, pixels, torch.full_like(weights, 8), weights)


PARTS: dict[str, Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]] = {
    "position": lambda x, y, w, _t, _e: parts.position(x, y, w),
    "depth": lambda x, y, w, _t, _e: parts.depth(x[..., 2], y[..., 2], w, free=False),
    "free depth": lambda x, y, w, _t, _e: parts.depth(x[..., 2], y[..., 2], w, free=True),
    "reprojection": lambda x, y, w, _t, _e: reprojected(x, y, w),
    "velocity": lambda x, y, w, t, _e: parts.velocity(x, t, w, y),
    "joint velocity": lambda x, _y, w, t, e: parts.joint_velocity(x, t, w, e),
    "acceleration": lambda x, y, w, t, _e: parts.acceleration(x, t, w, y),
    "acceleration alone": lambda x, _y, w, t, _e: parts.acceleration(x, t, w),
    "bones": lambda x, _y, w, _t, e: parts.bone_variance(x, w, e),
    "bones beside others": lambda x, y, w, _t, e: parts.bone_variance(x, w, e, y),
    "graph": judged,
}


def value(
    name: str, points: Tensor, reference: Tensor, weights: Tensor, times: Tensor = TIMES, edges: Tensor = EDGES
) -> Tensor:
    return PARTS[name](points, reference, weights, times, edges)


COMPARING = ("position", "depth", "free depth", "reprojection", "velocity", "acceleration", "bones beside others")


@pytest.mark.parametrize("name", COMPARING)
def test_the_truth_is_zero_and_anything_else_is_not(name: str) -> None:
    points, near, weights = made()
    assert value(name, points, points, weights).abs().max() == 0
    assert value(name, near, points, weights).min() > 0


@pytest.mark.parametrize("name", [name for name in PARTS if name != "free depth"])  # whose median has no gradient
def test_gradients(name: str) -> None:
    points, near, weights = made()
    near.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: value(name, x, points, weights), (near,), fast_mode=name == "graph")


@pytest.mark.parametrize("name", PARTS)
def test_points_that_are_not_known_have_exactly_no_gradient_even_as_no_numbers(name: str) -> None:
    points, near, weights = made()
    spoilt, truth = near.clone(), points.clone()
    spoilt[weights == 0], truth[weights == 0] = torch.nan, torch.nan
    spoilt.requires_grad_()
    found = value(name, spoilt, truth, weights)
    found.sum().backward()
    assert spoilt.grad is not None
    assert (spoilt.grad[weights == 0] == 0).all()
    assert (spoilt.grad[weights > 0] != 0).any()
    torch.testing.assert_close(found, value(name, near, points, weights), rtol=0, atol=0)


@pytest.mark.parametrize("name", PARTS)
@pytest.mark.parametrize("what", ["all invisible", "no points", "one frame, unseen"])
def test_nothing_known_is_an_exact_zero_with_a_path(name: str, what: str) -> None:
    points, near, weights = made()
    times, edges, count, steps = TIMES, EDGES, 4, 5
    if what == "no points":
        count, edges = 0, EDGES[:, :0]
    if what == "one frame, unseen":
        steps, times = 1, TIMES[:, :1]
    points, near = points[:, :count, :steps], near[:, :count, :steps].clone().requires_grad_()
    found = value(name, near, points, torch.zeros_like(weights[:, :count, :steps]), times, edges)
    assert (found == 0).all()
    found.sum().backward()
    assert near.grad is not None
    assert (near.grad == 0).all()


@pytest.mark.parametrize("name", ["velocity", "joint velocity", "acceleration", "acceleration alone", "bones"])
def test_one_frame_or_one_point_leaves_nothing_to_compare(name: str) -> None:
    points, near, _ = made()
    ones = torch.ones(2, 4, 5, dtype=torch.float64)
    assert (value(name, near[:, :, :1], points[:, :, :1], ones[:, :, :1], TIMES[:, :1]) == 0).all()
    if name in ("joint velocity", "bones"):
        for edges in (EDGES[:, :0], EDGES[:, 3:]):
            assert (value(name, near[:, :1], points[:, :1], ones[:, :1], TIMES, edges) == 0).all()


def test_velocity_and_acceleration_do_not_see_a_translation_nor_acceleration_a_velocity() -> None:
    points, near, weights = made()
    shift, drift = torch.tensor([3.0, -1.0, 2.0]), TIMES[:, None, :, None] * torch.tensor([1.0, 2.0, -3.0])
    for name in ("velocity", "joint velocity", "acceleration", "acceleration alone"):
        torch.testing.assert_close(value(name, near + shift, points, weights), value(name, near, points, weights))
    assert (
        value("velocity", near + drift, points, weights) - value("velocity", near, points, weights)
    ).abs().min() > 0.1
    for name in ("joint velocity", "acceleration alone"):
        torch.testing.assert_close(value(name, near + drift, points, weights), value(name, near, points, weights))


@pytest.mark.parametrize("name", ["bones", "bones beside others"])
def test_bones_see_neither_rigid_motion_nor_scale(name: str) -> None:
    points, near, weights = made()
    turns = roma.random_rotmat(size=(2, 1, 5), dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    moved = 3 * ((turns @ near[..., None])[..., 0] + torch.arange(5.0)[:, None])
    torch.testing.assert_close(value(name, moved, points, weights), value(name, near, points, weights))
    stiff = (turns @ near[:, :, :1, :, None])[..., 0]
    assert value("bones", stiff, points, weights).max() < 1e-24


def test_differences_are_exact_for_parabolas_at_any_times() -> None:
    first, second = torch.randn(2, 4, 1, 3, dtype=torch.float64), torch.randn(2, 4, 1, 3, dtype=torch.float64)
    times, ones = TIMES[:, None, :, None], torch.ones(2, 4, 5, dtype=torch.float64)
    points = 1 + first * times + second * times**2
    middles = (times[:, :, 1:] + times[:, :, :-1]) / 2
    torch.testing.assert_close(parts.velocities(points, TIMES, ones)[0], first + 2 * second * middles)
    torch.testing.assert_close(parts.accelerations(points, TIMES, ones)[0], (2 * second).expand(-1, -1, 3, -1))


def test_times_that_do_not_advance_do_not_count() -> None:
    points, near, weights = made()
    padded = torch.cat([TIMES[:, :3], TIMES[:, 2:3], TIMES[:, :1]], dim=1)
    for function in (parts.velocity, parts.acceleration):
        ones = torch.ones_like(weights)
        torch.testing.assert_close(
            function(near, padded, ones, points),
            function(near[:, :, :3], padded[:, :3], ones[:, :, :3], points[:, :, :3]),
        )


def test_a_weighted_median_and_depth_up_to_a_factor() -> None:
    values, weights = torch.tensor([[5.0, 1.0, 3.0, 2.0]]), torch.tensor([[1.0, 1.0, 0.0, 5.0]])
    assert parts.weighted_median(values, weights).tolist() == [2.0]
    points, near, weights = made()
    torch.testing.assert_close(
        value("free depth", 3 * near, points, weights), value("free depth", near, points, weights)
    )
    assert value("depth", 3 * near, points, weights).min() > 0.5


def test_reprojection_by_hand() -> None:
    """6 of 8 pixels to the right and 8 below, of 20; and in another camera nowhere else."""
    seen = camera(torch.zeros(1, 1, 2, 3))
    points = torch.tensor([[0.0, 0, 5], [0.1, 0, 5]], dtype=torch.float64)[None, None]
    pixels = torch.tensor([[16.0, 12], [10, 4]], dtype=torch.float64)[None, None]
    sides, ones = torch.full((1, 1, 2), 20.0), torch.ones(1, 1, 2, dtype=torch.float64)
    found = parts.reprojection(points, seen, pixels, sides, ones)
    torch.testing.assert_close(found.item(), ((0.25 + parts.SOFT**2) ** 0.5 - parts.SOFT) / 2)


@pytest.mark.parametrize(
    "place", [(0.0, 0.0, -2.0), (1.0, -0.5, -3.0), (1.0, 1.0, 0.0), (0.0, 0.0, 0.0), (3.0, 0.0, 1e-9), (0.0, 0.0, 1e-9)]
)
def test_a_point_behind_the_camera_is_drawn_before_it(place: tuple[float, float, float]) -> None:
    """Also one whose pixel would be right, one in the camera's plane, and one at its centre."""
    points = torch.tensor([place, (0.0, 0.0, 4.0)], dtype=torch.float64)[None, :, None].requires_grad_()
    seen, ones = camera(torch.zeros(1, 2, 1, 3)), torch.ones(1, 2, 1, dtype=torch.float64)
    pixels = torch.tensor([[16.0, 12], [16, 12]], dtype=torch.float64)[None, :, None]
    optimiser, worth = torch.optim.Adam([points], lr=0.1), list[float]()
    for _ in range(300):
        value = parts.reprojection(points, seen, pixels, 10 * ones, ones).sum()
        optimiser.zero_grad()
        value.backward()
        assert points.grad is not None
        assert points.grad.isfinite().all()
        assert points.grad.norm() < 1e3
        worth.append(value.item())
        optimiser.step()
    assert worth[0] > 0.1
    assert worth[-1] < 0.01
    assert points[0, 0, 0, 2] > 0


def test_reprojection_does_not_jump_at_the_cameras_plane() -> None:
    z = torch.linspace(0.05, 0.15, 400, dtype=torch.float64)
    points = torch.stack([(1 - z**2).sqrt(), torch.zeros_like(z), z], -1)[:, None, None]
    ones = torch.ones(400, 1, 1, dtype=torch.float64)
    found = parts.reprojection(points, camera(points), torch.zeros(400, 1, 1, 2).double(), ones, ones)
    assert found.diff().abs().max() < 2, "of some 300"
    assert (found.diff() < 0).all(), "the farther before the camera the better"


def test_joint_velocity_is_the_distance_to_the_median_of_the_neighbours() -> None:
    speeds = torch.tensor([[0.0, 1.0, 5.0, 2.0]], dtype=torch.float64)
    times = torch.tensor([[0.0, 2.0]], dtype=torch.float64)
    points = torch.zeros(1, 4, 2, 3, dtype=torch.float64)
    points[..., 0] = speeds[..., None] * times[:, None]
    star = torch.tensor([[[0, 1], [0, 2], [0, 3]]])
    found = parts.joint_velocity(points, times, torch.ones(1, 4, 2, dtype=torch.float64), star)
    expected = torch.tensor([2.0 - 0, 1, 5, 2]).mean() - parts.SOFT
    torch.testing.assert_close(found, expected.double()[None], atol=1e-5, rtol=0)


# SIREN


@pytest.mark.parametrize("width", [64, 256])
def test_a_fresh_siren_has_layers_like_the_arcsine_distribution(width: int) -> None:
    torch.manual_seed(0)
    network, x = Siren(1, 3, SirenConfig(layers=5, width=width)), torch.linspace(-1, 1, 2000)[:, None]
    for number, (layer, omega) in enumerate(zip(network.sines, network.omegas, strict=True)):
        argument = omega * layer(x)
        x = argument.sin()
        assert x.std().item() == pytest.approx(0.5**0.5, abs=0.06)
        # of the arcsine distribution: a third lies beyond cos(π/6)
        assert (x.abs() > math.cos(math.pi / 6)).float().mean().item() == pytest.approx(1 / 3, abs=0.06)
        assert number == 0 or 0.6 < argument.std() < 3
    assert network.out(x).abs().max() < 1


def test_velocities_of_a_siren_are_autograds_and_those_of_central_differences() -> None:
    torch.manual_seed(0)
    network, code = Siren(2, 3, SIREN, codes=4).double(), torch.randn(5, 4, dtype=torch.float64)
    x = torch.randn(5, 2, dtype=torch.float64)
    along = torch.tensor([0.0, 1.0], dtype=torch.float64).expand(5, 2)
    value, rate = network.with_rate(x, along, code)
    torch.testing.assert_close(value, network(x, code), rtol=0, atol=0)
    exact = torch.autograd.functional.jvp(lambda x: network(x, code), x, along)[1]
    torch.testing.assert_close(rate, exact)
    step = 1e-5 * along
    torch.testing.assert_close(rate, (network(x + step, code) - network(x - step, code)) / 2e-5, rtol=1e-6, atol=1e-8)
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    x.requires_grad_()
    assert torch.autograd.gradcheck(lambda x: network.with_rate(x, along, code), (x,))
    with torch.inference_mode():
        torch.testing.assert_close(network.with_rate(x.detach().clone(), along, code)[1], rate)


def frequencies(times: Tensor) -> Tensor:
    """A movement of five frequencies, from half a turn to six and a half."""
    turns = torch.tensor([1.0, 3, 5, 8, 13]) * math.pi * times
    return torch.stack([(turns + phase).sin().sum(-1) / 2 for phase in range(3)], dim=-1)


def test_a_siren_fits_many_frequencies_where_a_network_of_rectifiers_does_not() -> None:
    times, width, errors = torch.linspace(-1, 1, 128)[:, None], 64, list[float]()
    layers = [nn.Linear(1, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU()]
    for network in (lambda: Siren(1, 3, SirenConfig(width=width)), lambda: nn.Sequential(*layers, nn.Linear(width, 3))):
        torch.manual_seed(0)
        fitted = network()
        optimiser = torch.optim.Adam(fitted.parameters(), lr=1e-3)
        for _ in range(200):
            optimiser.zero_grad()
            (fitted(times) - frequencies(times)).square().mean().backward()
            optimiser.step()
        errors.append((fitted(times) - frequencies(times)).square().mean().item())
    assert errors[0] < 1e-3
    assert errors[1] > 0.1


def test_the_amortised_siren_reads_what_is_known_alone_and_differentiates_itself() -> None:
    torch.manual_seed(0)
    points, _, weights = made()
    network, times = AmortisedSiren(SIREN).double(), TIMES / 2
    found = network(points, times, weights, anchors(points, weights))
    spoilt = torch.where(weights[..., None] > 0, points, torch.nan)
    again = network(spoilt, times, weights, anchors(spoilt, weights))
    torch.testing.assert_close(again.points, found.points, rtol=0, atol=0)
    assert found.velocities.shape == (2, 4, 4, 3)
    order = torch.tensor([2, 0, 3, 1])
    turned = network(points[:, order], times, weights[:, order], anchors(points[:, order], weights[:, order]))
    torch.testing.assert_close(turned.points, found.points[:, order])
    shifted = network(points + 5, times, weights, anchors(points + 5, weights))
    torch.testing.assert_close(shifted.points[weights > 0], found.points[weights > 0] + 5)


def test_codes_are_of_the_first_shape_wherever_and_however_large_it_is() -> None:
    points, _, weights = made()
    shape = canonical(points, weights)
    torch.testing.assert_close(canonical(4 * points + 2, weights), shape)
    torch.testing.assert_close(shape[0].square().sum() / 4, torch.tensor(1.0, dtype=torch.float64))
    assert (shape[1, 3] == 0).all()
    later = torch.cat([torch.full_like(points[:, :, :1], torch.nan), points], dim=2)
    torch.testing.assert_close(canonical(later, torch.cat([torch.zeros(2, 4, 1), weights], dim=2)), shape)
    assert PointCode(4).double()(points, weights).shape == (2, 4, 4)


def test_codes_tell_names_apart_and_padding_has_none() -> None:
    torch.manual_seed(0)
    points, _, weights = made()
    names = encode_names(["left_paw", "right_paw", "left_paw", "nose"]).expand(2, -1, -1).clone()
    names[1, 3] = 0
    code = PointCode(4, named=True).double()
    said = code(points, weights, names) - code(points, weights)
    torch.testing.assert_close(said[:, 0], said[:, 2])
    assert (said[0, 0] - said[0, 1]).abs().max() > 0.1
    assert (said[1, 3] == 0).all()


# the graph


def test_the_graph_network_is_equivariant_to_permutations_and_blind_to_translations() -> None:
    torch.manual_seed(0)
    points, _, weights = made()
    network, codes = GraphNetwork(GRAPH).double(), torch.randn(2, 4, 4, dtype=torch.float64)
    found = network(points, TIMES, weights, codes, EDGES)
    assert (found.correction == 0).all(), "at first it corrects nothing"
    nn.init.normal_(network.out.weight)
    found = network(points, TIMES, weights, codes, EDGES)
    order = torch.tensor([2, 0, 3, 1])
    edges = torch.where(parts.real(EDGES)[..., None], order.argsort()[EDGES], 0).flip(1)
    turned = network(points[:, order], TIMES, weights[:, order], codes[:, order], edges)
    torch.testing.assert_close(turned.correction, found.correction[:, order])
    torch.testing.assert_close(turned.excess, found.excess[:, order])
    torch.testing.assert_close(network(points + 5, TIMES, weights, codes, EDGES).correction, found.correction)
    assert (found.excess > 0).all()


def test_messages_go_along_edges_and_time_alone() -> None:
    torch.manual_seed(0)
    points, _, weights = made()
    network = GraphNetwork(dataclasses.replace(GRAPH, layers=1)).double()
    nn.init.normal_(network.out.weight)
    weights, codes = torch.ones_like(weights), torch.randn(2, 4, 4, dtype=torch.float64)
    points.requires_grad_()
    # the centre of all, which every point is seen from, is told apart by a difference of gradients
    network(points, TIMES, weights, codes, EDGES).correction[0, 0, 1].sum().backward()
    assert points.grad is not None
    felt = (points.grad[0] - points.grad[0, 3, 4]).abs().sum(-1) > 1e-9
    assert felt.nonzero().tolist() == [[0, 0], [0, 1], [0, 2], [1, 1]]


def test_nearest_edges_are_of_points_that_are_there_together() -> None:
    points = torch.tensor([0.0, 1, 2.1, 10, 11])[None, :, None, None].expand(2, 5, 2, 3)
    weights = torch.ones(2, 5, 2)
    weights[1, 3], weights[1, 1, 0], weights[1, 0, 1] = 0, 0, 0
    edges = parts.nearest_edges(points, weights, 1)
    one, other = (each[real].tolist() for each, real in zip(edges, parts.real(edges), strict=True))
    assert one == [[0, 1], [1, 2], [3, 4]]
    assert other == [[0, 2], [1, 2], [2, 4]], "0 and 1 are never there together, and 3 never is"
    assert parts.nearest_edges(points[:, :1], weights[:, :1]).shape == (2, 0, 2)
    assert parts.nearest_edges(points[:, :0], weights[:, :0]).shape == (2, 0, 2)


# fitting


def walk(count: int = 4, steps: int = 24) -> Trajectories:
    times = torch.linspace(1, 3, steps)
    turns = torch.arange(count)[:, None] + 3 * times
    points = torch.stack([turns.sin(), turns.cos(), (2 * times).expand(count, -1)], dim=-1)
    valid = torch.ones(count, steps, dtype=torch.bool)
    return Trajectories(points=points, visible=valid.float(), valid=valid, times=times)


def test_a_sequence_is_fitted_with_gaps_and_says_velocities() -> None:
    given = walk()
    points, valid = given.points.clone(), given.valid.clone()
    points[1, 5], points[2, 7], valid[2, 7] = torch.nan, 100.0, False
    spoilt = dataclasses.replace(given, points=points, valid=valid)
    made = fit_siren(spoilt, steps=300, config=FitConfig(network=SirenConfig(width=48, omega0_first=10.0)))
    assert (made(given.times) - given.points).norm(dim=-1).mean() < 0.05
    between = walk(steps=47)
    assert (made(between.times) - between.points).norm(dim=-1).mean() < 0.05
    true = torch.tensor([3.0]) * torch.stack([given.points[..., 1], -given.points[..., 0]], dim=-1)
    assert (made.velocities(given.times)[..., :2] - true).norm(dim=-1)[:, 2:-2].mean() < 0.3
    assert not any(parameter.requires_grad for parameter in made.parameters())


def test_a_fit_repeats_and_leaves_the_global_generator_alone() -> None:
    config = FitConfig(network=SIREN)
    torch.manual_seed(3)
    one = fit_siren(walk(), steps=2, config=config)
    drawn = torch.rand(1)
    torch.manual_seed(3)
    assert torch.rand(1) == drawn
    two = fit_siren(walk(), steps=2, config=config)
    torch.testing.assert_close(one.state_dict(), two.state_dict(), rtol=0, atol=0)


def test_penalties_keep_bones_and_calm_what_is_noise() -> None:
    given, generator = walk(), torch.Generator().manual_seed(0)
    noisy = dataclasses.replace(given, points=given.points + 0.1 * torch.randn(given.points.shape, generator=generator))
    network, edges = SirenConfig(width=32), torch.tensor([[0, 1], [1, 2], [2, 3]])
    spreads, sizes = [], []
    for config in (FitConfig(network=network), FitConfig(network=network, acceleration=1.0, bone=1.0)):
        found = fit_siren(noisy, steps=100, edges=edges, config=config)(given.times)[None]
        ones = torch.ones(found.shape[:-1])
        spreads.append(parts.bone_variance(found, ones, edges[None]).item())
        sizes.append(parts.acceleration(found, given.times[None], ones).item())
    assert spreads[1] < 0.5 * spreads[0]
    assert sizes[1] < 0.5 * sizes[0]


@pytest.mark.parametrize(
    ("edges", "message"),
    [
        ([[0, 4]], "bone 0 ends at keypoint 4.*from 0 to 3"),
        ([[0, 1], [2, 2]], "bone 1 joins .*itself"),
        ([[0, 1], [1, 0]], "bone 1 joins .*as an earlier one does"),
        ([], "there are no rigid bones; give edges"),
    ],
)
def test_bones_that_are_none_are_refused(edges: list[list[int]], message: str) -> None:
    with pytest.raises(UserError, match=message):
        fit_siren(walk(), steps=1, edges=torch.tensor(edges).long().view(-1, 2), config=FitConfig(bone=1.0))


def test_a_fit_of_nothing_is_refused() -> None:
    with pytest.raises(UserError, match="nothing is known of these trajectories"):
        fit_siren(dataclasses.replace(walk(), points=torch.full((4, 24, 3), torch.nan)))
    with pytest.raises(UserError, match="without a batch axis"):
        fit_siren(fields.stack([walk()]))
    with pytest.raises(UserError, match="steps is 0; choose at least 1"):
        fit_siren(walk(), steps=0)


@pytest.mark.parametrize(
    ("kind", "wrong", "message"),
    [
        (SirenConfig, {"layers": 0}, "layers, width"),
        (SirenConfig, {"omega0_first": 0.0}, "omega0_first and omega0_hidden must be positive"),
        (GraphConfig, {"width": 30}, "width 30 must be a positive multiple of heads 4"),
        (GraphConfig, {"least_sigma": 0.0}, "least_sigma must be positive"),
        (FitConfig, {"lr": 0.0}, "lr must be positive"),
    ],
)
def test_settings_that_cannot_be(kind: type, wrong: dict[str, float], message: str) -> None:
    with pytest.raises(UserError, match=message):
        kind(**wrong)

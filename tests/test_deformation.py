"""Deformation graphs: nodes, what follows them, how they move, what they are held to; limits exact, in float64."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import roma
import torch
from torch import Tensor, nn

from four_d import fields
from four_d.deformation import (
    Bends,
    Binding,
    DeformationConfig,
    DirectMotionConfig,
    HexplaneMotionConfig,
    MlpMotionConfig,
    MotionConfig,
    NodeStates,
    Skinning,
    along_surface,
    anchored,
    bind,
    edges_between,
    farthest_points,
    rigidity,
    skin,
    smoothness,
)
from four_d.deformation import skinning as skinnings
from four_d.errors import UserError
from four_d.geometry import Similarity, identity_quaternion, quaternion_product, rigid_part, rotate, transform
from four_d.rendering import render
from four_d.schema import build, to_plain
from four_d.types import map_tensors
from tests.rendering.scenes import cloud

KINDS: tuple[Skinning, ...] = ("linear", "dual_quaternion", "hybrid")
MOTIONS: list[MotionConfig] = [
    DirectMotionConfig(),
    MlpMotionConfig(width=8, depth=2, time_frequencies=2, place_frequencies=1),
    HexplaneMotionConfig(resolution=3, steps=4, features=2, width=8),
]
TIMES = torch.tensor([0.5, 0.7, 1.3, 2.0], dtype=torch.float64)
ids = [config.kind for config in MOTIONS]


def rand(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def turns(*shape: int, most: float = 1.2, seed: int = 0) -> Tensor:
    """Unit quaternions of rotations by up to ``most`` radians, of either sign."""
    axes = torch.nn.functional.normalize(rand(*shape, 3, seed=seed) - 0.5, dim=-1)
    half = most / 2 * rand(*shape, 1, seed=seed + 1)
    signs = torch.where(rand(*shape, 1, seed=seed + 2) < 0.5, -1, 1)
    return signs * torch.cat([half.cos(), half.sin() * axes], dim=-1)


def states(times: int, nodes: int, most: float = 1.2, seed: int = 0) -> NodeStates:
    return NodeStates(
        quats=turns(times, nodes, most=most, seed=seed), shifts=rand(times, nodes, 3, seed=seed + 3) - 0.5
    )


def rigid(nodes: Tensor, times: int = 3) -> tuple[Tensor, Tensor, NodeStates]:
    """One rotation and one shift of the world at each time, and what the nodes do then."""
    quats, shifts = turns(times, most=3.0, seed=5), rand(times, 3, seed=9)
    moved = rotate(quats[:, None], nodes) + shifts[:, None]
    return quats, shifts, NodeStates(quats=quats[:, None].expand(-1, len(nodes), 4), shifts=moved - nodes)


def alike(found: Tensor, expected: Tensor) -> None:
    """Rotations are the same, whatever the quaternions' signs."""
    torch.testing.assert_close((found * expected).sum(-1).abs(), torch.ones_like(found[..., 0]))


# rigid motion left to cameras


def test_anchored_nodes_have_no_rigid_motion_together_and_the_same_deformation() -> None:
    nodes = rand(12, 3)
    quats, shifts, moved = rigid(nodes)
    still = anchored(nodes, moved)
    torch.testing.assert_close(still.shifts, torch.zeros_like(still.shifts), atol=2e-3, rtol=0)
    alike(still.quats, torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).expand_as(still.quats))
    bent = states(3, 12, most=0.4)
    before, after = nodes + bent.shifts, nodes + anchored(nodes, bent).shifts
    torch.testing.assert_close(torch.cdist(after, after), torch.cdist(before, before))
    torch.testing.assert_close(after.mean(1), nodes.mean(0).expand(3, 3))
    both = NodeStates(
        quats=quaternion_product(quats[:, None], bent.quats),
        shifts=rotate(quats[:, None], nodes + bent.shifts) + shifts[:, None] - nodes,
    )
    torch.testing.assert_close(anchored(nodes, both).shifts, anchored(nodes, bent).shifts, atol=2e-2, rtol=0)


@pytest.mark.parametrize("count", [1, 2, 5])
def test_anchoring_of_nodes_on_one_line_has_gradients(count: int) -> None:
    nodes = torch.arange(count, dtype=torch.float64)[:, None] * torch.tensor([1.0, 2.0, 0.5], dtype=torch.float64)
    given = states(2, count)
    given.shifts.requires_grad_()
    found = anchored(nodes, given)
    (found.shifts.square().sum() + found.quats[..., 1].sum()).backward()
    assert given.shifts.grad is not None
    assert bool(given.shifts.grad.isfinite().all())


# nodes


def test_nodes_are_spread_and_those_of_the_points() -> None:
    points = rand(500, 3)
    chosen = farthest_points(points, 30)
    assert len(set(chosen.tolist())) == 30
    nodes = points[chosen]
    apart = torch.cdist(nodes, nodes).fill_diagonal_(math.inf).min()
    assert torch.cdist(points, nodes).amin(1).max() <= apart, "no point is farther from all than two are from another"
    assert torch.equal(farthest_points(points, 30), chosen)


def test_there_are_no_more_nodes_than_places() -> None:
    points = rand(5, 3)
    assert sorted(farthest_points(points, 30).tolist()) == [0, 1, 2, 3, 4]
    assert len(farthest_points(points[[0, 1, 1, 0, 2]], 30)) == 3
    assert len(farthest_points(torch.ones(4, 3), 2)) == 1
    for some, count in ((points, 0), (points[:0], 3)):
        with pytest.raises(ValueError, match="ask for 1 or more"):
            farthest_points(some, count)


def test_points_follow_their_nearest_nodes() -> None:
    points, nodes = rand(40, 3), rand(9, 3, seed=1)
    found = bind(points, nodes, 4)
    distances, order = torch.cdist(points, nodes).sort(dim=1)
    shares = (1 - distances[:, :4] / distances[:, 4:5]) ** 2
    dense = torch.zeros(40, 9, dtype=torch.float64).scatter(1, found.indices, found.weights)
    expected = torch.zeros_like(dense).scatter(1, order[:, :4], shares / shares.sum(-1, keepdim=True))
    torch.testing.assert_close(dense, expected)
    assert (found.indices.diff(dim=1) > 0).all()
    pairs = {tuple(sorted((int(row[0]), int(each)))) for row in order for each in row[1:4]}
    assert {tuple(sorted(pair)) for pair in found.pairs.tolist()} == pairs


def test_shares_change_without_a_step_where_the_nodes_do() -> None:
    nodes = rand(12, 3, seed=1)
    line = torch.linspace(0, 1, 20_001, dtype=torch.float64)[:, None] * torch.tensor([1.0, 0.9, 0.8])
    found = bind(line, nodes, 3)
    dense = torch.zeros(len(line), 12, dtype=torch.float64).scatter(1, found.indices, found.weights)
    assert (dense > 0).any(0).sum() > 4, "nodes come and go"
    assert dense.diff(dim=0).abs().max() < 2e-3


@pytest.mark.parametrize("count", [1, 2, 4, 9])
def test_few_nodes_and_equal_places_have_shares_too(count: int) -> None:
    nodes = rand(count, 3, seed=1)
    points = torch.cat([nodes, nodes.mean(0, keepdim=True), rand(3, 3)])
    found = bind(points, nodes, 4)
    assert found.indices.shape == (len(points), min(count, 4))
    torch.testing.assert_close(found.weights.sum(-1), torch.ones(len(points), dtype=torch.float64))
    same = bind(points, nodes[:1].expand(3, 3), 2)
    torch.testing.assert_close(same.weights, torch.full_like(same.weights, 0.5))


def test_edges_lead_to_the_nearest_others() -> None:
    nodes = rand(7, 3)
    edges = edges_between(nodes, 3)
    expected = torch.cdist(nodes, nodes).argsort(dim=1)[:, 1:4]
    assert torch.equal(edges[:, 1].unflatten(0, (7, 3)), expected)
    assert torch.equal(edges[:, 0], torch.arange(7).repeat_interleave(3))
    assert edges_between(nodes[:2], 8).tolist() == [[0, 1], [1, 0]]
    assert edges_between(nodes[:1], 8).shape == (0, 2)


# skinning


def plain(points: Tensor, nodes: Tensor, binding: Binding, now: NodeStates, kind: str) -> tuple[Tensor, Tensor]:
    """Skinning as in the textbooks, one point after the other."""
    places = torch.zeros(len(now.quats), len(points), 3, dtype=torch.float64)
    rotations = torch.zeros(len(now.quats), len(points), 4, dtype=torch.float64)
    for t in range(len(now.quats)):
        for n, point in enumerate(points):
            own, shares = binding.indices[n], binding.weights[n]
            quats, shifts = now.quats[t, own], now.shifts[t, own]
            matrices = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(quats))
            origin = nodes[own] + shifts - (matrices @ nodes[own][..., None])[..., 0]
            signs = torch.where(quats @ quats[shares.argmax()] < 0, -1.0, 1.0).double() * shares
            real = (signs[:, None] * quats).sum(0)
            pure = torch.cat([torch.zeros(len(own), 1, dtype=torch.float64), origin], dim=-1)
            dual = (signs[:, None] * 0.5 * quaternion_product(pure, quats)).sum(0)
            real, dual = real / real.norm(), dual / real.norm()
            w, u, a, d = real[0], real[1:], dual[0], dual[1:]
            by_dual = rotate(real, point) + 2 * (w * d - a * u + torch.linalg.cross(u, d))
            linear = (shares[:, None] * ((matrices @ point) + origin)).sum(0)
            share = {"linear": 1.0, "dual_quaternion": 0.0, "hybrid": 0.3}[kind]
            places[t, n], rotations[t, n] = share * linear + (1 - share) * by_dual, real
    return places, rotations


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1.2, 6.0])
def test_skinning_is_that_of_the_textbooks(kind: Skinning, most: float) -> None:
    """Also where no signs of the quaternions are right for all points at once."""
    points, nodes = rand(30, 3), rand(8, 3, seed=1)
    binding, now = bind(points, nodes, 3), states(4, 8, most)
    assert (skinnings._signs(binding, now.quats) is None) == (most > 3)
    places, rotations = skin(points, nodes, binding, now, kind, 0.3)
    expected, own = plain(points, nodes, binding, now, kind)
    torch.testing.assert_close(places, expected)
    alike(rotations, own)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("count", [1, 6])
def test_nodes_that_move_as_one_move_everything_rigidly(kind: Skinning, count: int) -> None:
    points, nodes = rand(20, 3), rand(count, 3, seed=1)
    quats, shifts, now = rigid(nodes)
    places, rotations = skin(points, nodes, bind(points, nodes), now, kind)
    torch.testing.assert_close(places, rotate(quats[:, None], points) + shifts[:, None])
    alike(rotations, quats[:, None].expand_as(rotations))


@pytest.mark.parametrize("kind", KINDS)
def test_at_rest_nothing_moves_to_the_last_digit(kind: Skinning) -> None:
    points, nodes = rand(50, 3).float(), rand(9, 3, seed=1).float()
    rest = NodeStates(quats=torch.eye(4)[0].expand(2, 9, 4), shifts=torch.zeros(2, 9, 3))
    places, rotations = skin(points, nodes, bind(points, nodes), rest, kind, 1.0)
    assert torch.equal(places, points.expand(2, -1, -1))
    torch.testing.assert_close(rotations, torch.eye(4)[0].expand(2, 50, 4))


def test_pure_shifts_are_blended_alike() -> None:
    points, nodes = rand(20, 3), rand(6, 3, seed=1)
    now = dataclasses.replace(states(3, 6), quats=torch.eye(4, dtype=torch.float64)[0].expand(3, 6, 4))
    binding = bind(points, nodes)
    linear, dual = (skin(points, nodes, binding, now, kind)[0] for kind in KINDS[:2])
    torch.testing.assert_close(linear, dual)
    assert (linear - points).abs().max() > 0.1


def test_the_mixture_goes_from_one_to_the_other() -> None:
    points, nodes = rand(20, 3), rand(6, 3, seed=1)
    now, binding = states(3, 6), bind(points, nodes)
    linear, dual = (skin(points, nodes, binding, now, kind)[0] for kind in KINDS[:2])
    assert (linear - dual).abs().max() > 1e-3
    each = torch.cat([torch.ones(10), torch.zeros(10)]).double()
    mixed = skin(points, nodes, binding, now, "hybrid", each)[0]
    torch.testing.assert_close(mixed, torch.cat([linear[:, :10], dual[:, 10:]], dim=1))
    torch.testing.assert_close(skin(points, nodes, binding, now, "hybrid", 0.25)[0], 0.25 * linear + 0.75 * dual)


@pytest.mark.parametrize("most", [1.2, 6.0])
def test_signs_of_quaternions_mean_nothing(most: float) -> None:
    points, nodes = rand(20, 3), rand(6, 3, seed=1)
    now, binding = states(3, 6, most), bind(points, nodes)
    flipped = dataclasses.replace(now, quats=now.quats * torch.where(rand(3, 6, 1, seed=20) < 0.5, -1, 1))
    for kind in KINDS:
        places, rotations = skin(points, nodes, binding, now, kind)
        others, own = skin(points, nodes, binding, flipped, kind)
        torch.testing.assert_close(others, places)
        alike(own, rotations)


def test_the_order_of_nodes_means_nothing() -> None:
    points, nodes, now = rand(20, 3), rand(7, 3, seed=1), states(3, 7)
    order = torch.randperm(7, generator=torch.Generator().manual_seed(3))
    shuffled = NodeStates(quats=now.quats[:, order], shifts=now.shifts[:, order])
    edges = edges_between(nodes, 3), edges_between(nodes[order], 3)
    for kind in KINDS:
        first = skin(points, nodes, bind(points, nodes), now, kind)
        second = skin(points, nodes[order], bind(points, nodes[order]), shuffled, kind)
        torch.testing.assert_close(first[0], second[0])
        alike(first[1], second[1])
    torch.testing.assert_close(rigidity(nodes, now, edges[0]), rigidity(nodes[order], shuffled, edges[1]))
    torch.testing.assert_close(smoothness(now, TIMES[:3]), smoothness(shuffled, TIMES[:3]))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("most", [1.2, 6.0])
def test_gradients_of_skinning_are_those_of_finite_differences(kind: Skinning, most: float) -> None:
    points, nodes, now = rand(5, 3), rand(4, 3, seed=1), states(2, 4, most)
    binding = bind(points, nodes, 2)

    def function(*values: Tensor) -> tuple[Tensor, Tensor]:
        at, centres, weights, quats, shifts, share = values
        own = NodeStates(quats=quats / quats.norm(dim=-1, keepdim=True), shifts=shifts)
        places, rotations = skin(at, centres, dataclasses.replace(binding, weights=weights), own, kind, share)
        return places, rotations * rotations[..., :1].sign()

    values = (points, nodes, binding.weights, now.quats, now.shifts, rand(5, seed=2))
    leaves = tuple(value.clone().requires_grad_() for value in values)
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6)


def test_an_unknown_skinning_is_named() -> None:
    points, nodes = rand(5, 3), rand(2, 3)
    with pytest.raises(ValueError, match="choose one of linear, dual_quaternion, hybrid"):
        skin.__wrapped__(points, nodes, bind(points, nodes), states(1, 2), "cubic")


# motion


def built(config: MotionConfig, times: Tensor = TIMES, nodes: int = 5, *, moves: bool = True) -> nn.Module:
    """A motion of nodes in float64; with its last numbers drawn at random, unless it is to rest."""
    torch.manual_seed(0)
    motion = config.build(rand(nodes, 3), times).double()
    if moves:
        last = motion.numbers if isinstance(config, DirectMotionConfig) else motion.network[-1].weight
        nn.init.normal_(last, std=0.3)
    if moves and isinstance(config, HexplaneMotionConfig):
        for planes in motion.moments:
            nn.init.normal_(planes, 1, 0.3)
    return motion


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_every_motion_begins_at_rest_exactly(config: MotionConfig) -> None:
    now = built(config, moves=False)(torch.tensor([-1.0, 0.5, 1.1, 7.0]).double())
    assert torch.equal(now.quats, torch.eye(4, dtype=torch.float64)[0].expand(4, 5, 4))
    assert torch.equal(now.shifts, torch.zeros(4, 5, 3, dtype=torch.float64))


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_outside_its_times_a_motion_stands(config: MotionConfig) -> None:
    motion = built(config)
    now = motion(torch.tensor([-9.0, 0.5, 2.0, 9.0]).double())
    torch.testing.assert_close(now.shifts[0], now.shifts[1], rtol=0, atol=0)
    torch.testing.assert_close(now.quats[2], now.quats[3], rtol=0, atol=0)
    assert (now.shifts[1] - now.shifts[2]).abs().max() > 1e-3
    torch.testing.assert_close(now.quats.norm(dim=-1), torch.ones(4, 5, dtype=torch.float64))


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_one_time_is_enough(config: MotionConfig) -> None:
    now = built(config, TIMES[:1])(torch.tensor([0.0, 0.5, 3.0]).double())
    torch.testing.assert_close(now.shifts, now.shifts[:1].expand(3, -1, -1))
    assert now.quats.isfinite().all()


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_every_number_of_a_motion_is_trained_and_saved(config: MotionConfig) -> None:
    motion = built(config)
    now = motion(TIMES)
    (now.shifts.square().sum() + now.quats[..., 1:].square().sum()).backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in motion.parameters())
    other = config.build(torch.zeros(5, 3), torch.arange(4.0)).double()
    other.load_state_dict(motion.state_dict())
    torch.testing.assert_close(other(TIMES + 0.1).shifts, motion(TIMES + 0.1).shifts, rtol=0, atol=0)


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_gradients_of_motions_are_those_of_finite_differences(config: MotionConfig) -> None:
    motion = built(config, nodes=2)
    names, values = zip(*((name, p.detach().clone().requires_grad_()) for name, p in motion.named_parameters()))

    def function(*parameters: Tensor) -> tuple[Tensor, Tensor]:
        now = torch.func.functional_call(motion, dict(zip(names, parameters)), (TIMES[:3] + 0.13,))
        return now.quats, now.shifts

    assert torch.autograd.gradcheck(function, values, atol=1e-6)


def test_direct_motion_is_what_it_holds_and_linear_in_between() -> None:
    motion = built(DirectMotionConfig())
    at = motion(TIMES)
    torch.testing.assert_close(at.shifts, motion.numbers[..., 4:])
    between = motion(torch.tensor([1.0], dtype=torch.float64))  # halfway from 0.7 to 1.3
    torch.testing.assert_close(between.shifts[0], (at.shifts[1] + at.shifts[2]) / 2)
    middle = torch.nn.functional.normalize(at.quats[1] + at.quats[2], dim=-1)
    torch.testing.assert_close(between.quats[0], middle)


@pytest.mark.parametrize("config", MOTIONS, ids=ids)
def test_motions_learn(config: MotionConfig) -> None:
    """Nodes that go round in a circle, each at its own place, are followed after a few steps."""
    motion, times = built(config, torch.linspace(0, 1, 8).double(), 6, moves=False), torch.linspace(0, 1, 8).double()
    nodes = rand(6, 3)
    half = times[:, None, None] / 2
    quats = torch.cat([half.cos(), 0 * half, 0 * half, half.sin()], dim=-1).expand(8, 6, 4)
    truth = NodeStates(quats=quats, shifts=rotate(quats, nodes) - nodes)
    optimiser = torch.optim.Adam(motion.parameters(), lr=0.02)
    errors = list[float]()
    for _ in range(150):
        now = motion(times)
        error = (now.shifts - truth.shifts).square().mean() + (now.quats - truth.quats).square().mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert errors[-1] < errors[0] / 30


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: MlpMotionConfig(width=0), "width is 0; give 1 or more"),
        (lambda: MlpMotionConfig(time_frequencies=-1), "time_frequencies is -1"),
        (lambda: HexplaneMotionConfig(steps=1), "steps is 1; give 2 or more"),
        (lambda: HexplaneMotionConfig(scales=()), "scales is 0"),
        (lambda: DeformationConfig(nodes=0), "nodes is 0"),
        (lambda: DeformationConfig(linear=1.5), "linear is 1.5; give a share from 0 to 1"),
    ],
)
def test_settings_that_mean_nothing_are_named(make: Callable[[], object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        make()


def test_times_must_ascend() -> None:
    for times in (TIMES.flip(0), TIMES[:0], TIMES[[0, 0]]):
        with pytest.raises(ValueError, match="times that ascend"):
            DirectMotionConfig().build(rand(2, 3), times)


# energies


def test_rigid_motion_costs_nothing() -> None:
    nodes = rand(9, 3)
    _, _, now = rigid(nodes)
    edges = edges_between(nodes, 4)
    assert rigidity(nodes, now, edges) < 1e-28
    bent = dataclasses.replace(now, shifts=now.shifts + 0.1 * rand(3, 9, 3, seed=7))
    assert rigidity(nodes, bent, edges) > 1e-4
    unturned = dataclasses.replace(now, quats=torch.eye(4, dtype=torch.float64)[0].expand(3, 9, 4))
    assert rigidity(nodes, unturned, edges) > 1e-2, "the nodes have to turn with the others"


def test_rigidity_is_its_definition() -> None:
    nodes = torch.tensor([[0.0, 0, 0], [1, 0, 0]], dtype=torch.float64)
    half = math.sqrt(0.5)
    quats = torch.tensor([[[1.0, 0, 0, 0], [half, 0, 0, half]]], dtype=torch.float64)  # the second a quarter turn
    now = NodeStates(quats=quats, shifts=torch.tensor([[[0.0, 0, 0], [2, 0, 0]]], dtype=torch.float64))
    edges = torch.tensor([[0, 1], [1, 0]])
    # (−3, 0, 0) against (−1, 0, 0), and (3, 0, 0) against (0, 1, 0)
    assert rigidity(nodes, now, edges).item() == pytest.approx((4 + 10) / 2)
    weights = torch.tensor([3.0, 1.0], dtype=torch.float64)
    assert rigidity(nodes, now, edges, weights).item() == pytest.approx((3 * 4 + 10) / 4)
    assert rigidity(nodes, now, edges[:0]).item() == 0


def test_even_motion_at_uneven_times_is_smooth() -> None:
    velocity = rand(5, 3)
    rest = torch.eye(4, dtype=torch.float64)[0].expand(4, 5, 4)
    even = NodeStates(quats=rest, shifts=TIMES[:, None, None] * velocity)
    assert smoothness(even, TIMES) < 1e-26
    falling = NodeStates(quats=rest, shifts=even.shifts + 0.5 * 9.81 * TIMES.square()[:, None, None] * torch.eye(3)[2])
    assert smoothness(falling, TIMES).item() == pytest.approx(9.81**2)
    jumping = dataclasses.replace(even, quats=rest * torch.tensor([1.0, -1, -1, 1])[:, None, None])
    assert smoothness(jumping, TIMES) < 1e-26, "q and −q are one rotation"
    turning = dataclasses.replace(even, quats=turns(4, 5, seed=3))
    assert smoothness(turning, TIMES) > 1e-3


def test_two_times_are_smooth_with_a_gradient() -> None:
    now = map_tensors(states(2, 5), lambda tensor: tensor.requires_grad_())
    energy = smoothness(now, TIMES[:2])
    energy.backward()
    assert energy.item() == 0
    assert now.shifts.grad is not None


@pytest.mark.parametrize("energy", ["rigidity", "smoothness"])
def test_gradients_of_energies_are_those_of_finite_differences(energy: str) -> None:
    nodes, now = rand(5, 3), states(4, 5)
    edges = edges_between(nodes, 2)

    def function(at: Tensor, quats: Tensor, shifts: Tensor) -> Tensor:
        own = NodeStates(quats=quats, shifts=shifts)
        return rigidity(at, own, edges) if energy == "rigidity" else smoothness(own, TIMES) + 0 * at.sum()

    leaves = tuple(value.clone().requires_grad_() for value in (nodes, now.quats, now.shifts))
    assert torch.autograd.gradcheck(function, leaves, atol=1e-6)


# the whole graph


@pytest.mark.parametrize("motion", MOTIONS, ids=ids)
def test_a_graph_deforms_gaussians(motion: MotionConfig) -> None:
    """At rest as they are; saved and loaded the same; at the times' turns and places when drawn."""
    gaussians, cameras, _ = cloud(30, size=0.2)
    alone = map_tensors(gaussians, lambda tensor: tensor[0])
    config = DeformationConfig(nodes=6, bound=3, neighbours=2, motion=motion)
    graph = config.build(alone.means, TIMES).double()
    assert build(DeformationConfig, to_plain(config), "fit") == config
    still = render(gaussians, cameras, torch.zeros(1, 1), (17, 19)).colour
    at_rest = map_tensors(graph.deform(alone, TIMES), lambda tensor: tensor[None])
    torch.testing.assert_close(render(at_rest, cameras, torch.ones(1, 1), (17, 19)).colour, still)
    for p in graph.parameters():
        nn.init.normal_(p, std=0.3)
    deformed = graph.deform(alone, TIMES)
    torch.testing.assert_close(alone.means + deformed.offsets[2], graph(alone.means, graph.states(TIMES))[0][2])
    other = config.build(rand(30, 3, seed=8), TIMES + 1).double()
    other.load_state_dict(graph.state_dict())
    torch.testing.assert_close(other.deform(alone, TIMES).offsets, deformed.offsets)
    moved = map_tensors(deformed, lambda tensor: tensor[None])
    assert (render(moved, cameras, TIMES[None, 2:3], (17, 19)).colour - still).abs().max() > 0.01


def test_a_graph_of_one_node_carries_gaussians_as_a_whole() -> None:
    gaussians, cameras, _ = cloud(30, size=0.2)
    alone = map_tensors(gaussians, lambda tensor: tensor[0])
    graph = DeformationConfig(nodes=1, motion=DirectMotionConfig()).build(alone.means, TIMES[:1]).double()
    nn.init.normal_(graph.motion.numbers, std=0.3)
    now = graph.states(TIMES[:1])
    rotation = roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(now.quats[0, 0])).detach()
    shift = (graph.nodes[0] + now.shifts[0, 0]).detach() - rotation @ graph.nodes[0]
    expected = fields.move(gaussians, Similarity(scale=1.0, rotation=rotation, shift=shift))
    found = map_tensors(graph.deform(alone, TIMES[:1]), lambda tensor: tensor[None])
    pictures = [render(each, cameras, torch.zeros(1, 1), (17, 19)).colour for each in (found, expected)]
    torch.testing.assert_close(*pictures)


def test_fewer_gaussians_than_nodes() -> None:
    graph = DeformationConfig().build(rand(3, 3), TIMES).double()
    assert graph.nodes.shape == (3, 3)
    assert graph.indices.shape == (3, 3)
    places, rotations = graph(rand(3, 3), graph.states(TIMES))
    torch.testing.assert_close(places, rand(3, 3).expand(4, -1, -1))
    assert rotations.isfinite().all()
    assert rigidity(graph.nodes, graph.states(TIMES), graph.edges) == 0


def fork() -> Tensor:
    """Two bars side by side, 0.3 apart, on one handle: places 0.03 apart, in float64."""
    steps = torch.arange(0, 1, 0.03, dtype=torch.float64)
    bars = [torch.stack([steps, torch.full_like(steps, y)], -1) for y in (0.0, 0.3)]
    across = torch.arange(0, 0.31, 0.03, dtype=torch.float64)
    handle = torch.stack([torch.full_like(across, -0.03), across], -1)
    flat = torch.cat([*bars, handle])
    return torch.cat([torch.cat([flat, torch.full_like(flat[:, :1], z)], -1) for z in (0.0, 0.03)])


def test_distances_go_along_the_surface() -> None:
    points = fork()
    tip = int((points - torch.tensor([0.99, 0.0, 0.0], dtype=torch.float64)).norm(dim=-1).argmin())
    other = int((points - torch.tensor([0.99, 0.3, 0.0], dtype=torch.float64)).norm(dim=-1).argmin())
    found = along_surface(points, torch.tensor([tip]), 5.0)[0]
    assert float(found[tip]) == 0
    assert float(found[other]) == pytest.approx(2 * 1.02 + 0.3, rel=0.05), "and not 0.3, through the air"
    assert float((found + 1e-9 - (points - points[tip]).norm(dim=-1)).min()) >= 0
    near = along_surface(points, torch.tensor([tip]), 0.5)[0]
    assert torch.equal(near.isinf(), found > 0.5)
    assert torch.equal(near[near.isfinite()], found[near.isfinite()])


def test_a_bend_turns_a_limb_about_its_joint_and_leaves_the_limb_beside_it() -> None:
    points = fork()
    bends = Bends.of(points, 0.6)
    ends = bends.distances.argmin(-1)  # each centre itself
    limb = int(points[ends][:, 0].add(-points[ends][:, 1]).argmax())  # the end of the first bar
    turn = torch.tensor([0.0, 0.0, 0.7], dtype=torch.float64)
    quats = identity_quaternion(points).repeat(len(points), 1)
    means, turned = bends.bend(points, quats, limb, 0.5, turn)
    inside = bends.distances[limb] < 0.37
    beyond = bends.distances[limb] >= 0.5
    assert torch.equal(means[beyond], points[beyond])
    assert bool(beyond[points[:, 1] > 0.2].all()), "the other bar"
    motion = rigid_part(points[inside], means[inside])
    torch.testing.assert_close(transform(motion, points[inside]), means[inside], atol=1e-5, rtol=0)
    torch.testing.assert_close(roma.rotmat_to_rotvec(motion[:3, :3]), turn, atol=1e-4, rtol=0)
    own = roma.rotmat_to_rotvec(roma.unitquat_to_rotmat(roma.quat_wxyz_to_xyzw(turned[inside])))
    torch.testing.assert_close(own, turn.expand_as(own), atol=1e-9, rtol=0)
    gap = (means - points).norm(dim=-1)[~beyond & ~inside]
    assert float(gap.max()) < 0.7 * 0.15, "near the joint little moves"
    assert bends.bend(points, quats, limb, 0.5, 0 * turn)[0] is points
    whole = Bends.of(points, 9.0)
    assert whole.bend(points, quats, limb, 9.0, turn)[0] is points, "the whole object has no joint"


def test_the_rigid_part_is_the_motion_of_all() -> None:
    points = torch.randn(4, 9, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    rotation = roma.rotvec_to_rotmat(torch.tensor([[0.3, 1.0, -0.2]], dtype=torch.float64)).expand(4, 3, 3)
    places = points @ rotation.mT + torch.tensor([1.0, 2.0, 3.0], dtype=torch.float64)
    motion = rigid_part(points, places)
    torch.testing.assert_close(transform(motion, points), places, atol=1e-4, rtol=0)
    line = points[0, :1] * torch.linspace(-1, 1, 5, dtype=torch.float64)[:, None]
    torch.testing.assert_close(rigid_part(line, line), torch.eye(4, dtype=torch.float64), atol=1e-9, rtol=0)

"""Bundle adjustment of all frames of a video: poses, one focal length, and the depth of every point (ours).

As the dense layer of DROID-SLAM (Teed and Deng, NeurIPS 2021), with depths that a model gives as a prior up to a factor
of each frame, and the focal length as one more unknown (MegaSaM, arXiv 2412.04463). Points are those of each frame,
seen in several others; their depths are eliminated from the normal equations (Schur).
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.correlation import pick
from four_d.geometry import make_pose

NEAREST = 1e-3
"""Depth in front of which points are projected, in medians."""
FIXED = 1e12
"""Weight that keeps what is known."""
DAMPING = 1e-4
"""Share of the normal matrix's diagonal that is added to it at first (Levenberg and Marquardt)."""


@dataclass(frozen=True, kw_only=True)
class Sights:
    """Points of each frame, and where other frames (o of them) see them."""

    pixels: Float[Tensor, "b f n 2"]
    depth: Float[Tensor, "b f n"]
    """A model's depth of them."""
    others: Int[Tensor, "b f o"]
    seen: Float[Tensor, "b f o n 2"]
    information: Float[Tensor, "b f o n 2 2"]
    depth_there: Float[Tensor, "b f o n"]
    """The model's depth at the place there."""


@dataclass(frozen=True, kw_only=True)
class Priors:
    """Standard deviations of what is known beforehand, most of them of logarithms. Errors of many sights are shared, so
    that these count less than they say: hence the small one of the focal length.
    """

    point: float = 0.1
    """A point's depth, beside its frame's factor; errors beyond count less."""
    place: float = 0.2
    """Depth at the place where a point is seen."""
    frame: float = 0.1
    """A frame's factor."""
    focal: float = 0.02
    pose: float = 1.0
    """Turns in radians, and steps in median depths."""


@dataclass(frozen=True, kw_only=True)
class State:
    """Unknowns."""

    poses: Float[Tensor, "b f 4 4"]
    """world_from_camera"""
    depth: Float[Tensor, "b f n"]
    """Logarithms."""
    factors: Float[Tensor, "b f"]
    """Logarithms of the frames' factors."""
    focal: Float[Tensor, "b"]
    """Logarithm of the factor on all focal lengths."""


def begin(depth: Float[Tensor, "b f n"], poses: Float[Tensor, "b f 4 4"]) -> State:
    """State before adjustment."""
    zero = torch.zeros_like(poses[..., 0, 0])
    return State(poses=poses, depth=depth.clamp_min(1e-9).log(), factors=zero, focal=zero[:, 0])


def adjust(
    sights: Sights,
    intrinsics: Float[Tensor, "b f 3 3"],
    state: State,
    fixed: Bool[Tensor, "b f"],
    known: Bool[Tensor, "b"],
    scales: tuple[float, ...],
    priors: Priors = Priors(),
) -> State:
    """Take a damped Gauss-Newton step for each of the ``scales``: whitened errors at which a sight counts by a fourth.

    A step that raises the robust sum of errors is not taken. The poses of ``fixed`` frames stay, and the focal lengths
    of clips where they are ``known``.
    """
    unit = sights.depth.flatten(1).median(1).values.clamp_min(1e-9)
    damping = torch.full_like(unit, DAMPING)
    for scale in scales:
        before = _cost(sights, intrinsics, state, scale, priors, unit)
        after = _step(sights, intrinsics, state, fixed, known, scale, priors, unit, damping)
        better = _cost(sights, intrinsics, after, scale, priors, unit) <= before
        state = State(
            poses=torch.where(better[:, None, None, None], after.poses, state.poses),
            depth=torch.where(better[:, None, None], after.depth, state.depth),
            factors=torch.where(better[:, None], after.factors, state.factors),
            focal=torch.where(better, after.focal, state.focal),
        )
        damping = torch.where(better, damping / 3, damping * 10)
    return state


def _cost(
    sights: Sights,
    intrinsics: Float[Tensor, "b f 3 3"],
    state: State,
    scale: float,
    priors: Priors,
    unit: Float[Tensor, "b"],
) -> Float[Tensor, "b"]:
    """Robust sum of squared errors in the image, and of what is known beforehand."""
    seen, z, _ = predicted(state, intrinsics, sights.pixels, sights.others)
    off = sights.seen - seen
    square = torch.einsum("bfoni,bfonij,bfonj->bfon", off, sights.information, off)
    hidden = z <= NEAREST * unit[:, None, None, None]
    share = torch.where(hidden, 1.0, square / (square + scale**2))
    known = sights.information[..., 0, 0] > 0
    surprise = (sights.depth.clamp_min(1e-9).log() + state.factors[..., None] - state.depth) / priors.point
    prior = surprise.square().log1p().sum((1, 2)) + (state.factors / priors.frame).square().sum(1)
    return scale**2 * (share * known).sum((1, 2, 3)) + prior + (state.focal / priors.focal).square()


def predicted(
    state: State, intrinsics: Float[Tensor, "b f 3 3"], pixels: Float[Tensor, "b f n 2"], others: Int[Tensor, "b f o"]
) -> tuple[Float[Tensor, "b f o n 2"], Float[Tensor, "b f o n"], Float[Tensor, "b f o n 2 2"]]:
    """Pixels at which others see points, depth there (not positive behind them), and the slope there by pixel here."""
    points, moved, turn, focal = _moved(state, intrinsics, pixels, others)
    z = moved[..., 2].clamp_min(1e-6)
    there = pick(intrinsics, others)
    scale = state.focal.exp()[:, None, None, None]
    f_there = torch.stack([there[..., 0, 0], there[..., 1, 1]], dim=-1) * scale
    seen = moved[..., :2] / z[..., None] * f_there[..., None, :] + there[..., None, :2, 2]
    by_point = _projection(moved, z)  # of x / z
    along = points[..., 2][:, :, None, :, None, None]
    slope = (by_point @ turn[..., None, :, :])[..., :2] * along / focal[:, :, None, None, None, :]
    return seen, moved[..., 2], slope * f_there[..., None, :, None]


def _projection(moved: Float[Tensor, "*b 3"], z: Float[Tensor, "*b"]) -> Float[Tensor, "*b 2 3"]:
    """Slope of (x / z, y / z) by the point."""
    zero, one = torch.zeros_like(z), 1 / z
    u, v = moved[..., 0] * one, moved[..., 1] * one
    return torch.stack([torch.stack([one, zero, -u * one], -1), torch.stack([zero, one, -v * one], -1)], dim=-2)


def _moved(
    state: State, intrinsics: Float[Tensor, "b f 3 3"], pixels: Float[Tensor, "b f n 2"], others: Int[Tensor, "b f o"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Points in their own and in the other cameras, rotation there_from_here, and focal lengths."""
    focal = torch.stack([intrinsics[..., 0, 0], intrinsics[..., 1, 1]], dim=-1) * state.focal.exp()[:, None, None]
    way = (pixels - intrinsics[..., None, :2, 2]) / focal[..., None, :]
    points = torch.cat([way, torch.ones_like(way[..., :1])], dim=-1) * state.depth.exp()[..., None]
    there = pick(state.poses, others)
    turn = there[..., :3, :3].mT @ state.poses[:, :, None, :3, :3]
    step = (there[..., :3, :3].mT @ (state.poses[:, :, None, :3, 3] - there[..., :3, 3])[..., None])[..., 0]
    return points, points[:, :, None] @ turn.mT + step[..., None, :], turn, focal


@dataclass(frozen=True, kw_only=True)
class _Equations:
    """Normal equations of the sights. The 15 unknowns of a pair of frames: a turn, a step and the factor of each, and
    the focal length.
    """

    normal: Float[Tensor, "b f o 15 15"]
    right: Float[Tensor, "b f o 15"]
    coupled: Float[Tensor, "b f o n 15"]
    """Between those unknowns and a point's depth."""
    of_points: Float[Tensor, "b f n"]
    points_right: Float[Tensor, "b f n"]


def _linearised(
    sights: Sights,
    intrinsics: Float[Tensor, "b f 3 3"],
    state: State,
    scale: float,
    priors: Priors,
    unit: Float[Tensor, "b"],
) -> _Equations:
    """Weigh the sights, and take the slopes of their errors in the image and in depth."""
    points, moved, turn, _ = _moved(state, intrinsics, sights.pixels, sights.others)
    near = NEAREST * unit[:, None, None, None]
    z = torch.maximum(moved[..., 2], near)
    there = pick(intrinsics, sights.others)
    lengths = torch.stack([there[..., 0, 0], there[..., 1, 1]], dim=-1) * state.focal.exp()[:, None, None, None]
    ratio = moved[..., :2] / z[..., None]
    from_centre = ratio * lengths[..., None, :]
    off = sights.seen - from_centre - there[..., None, :2, 2]
    root = _root(sights.information)
    factor_there = pick(state.factors, sights.others)[..., None]
    off_depth = (sights.depth_there.clamp_min(1e-9).log() + factor_there - z.log()) / priors.place
    left = torch.cat([(root @ off[..., None])[..., 0], off_depth[..., None]], dim=-1)
    there_is = (sights.information[..., 0, 0] > 0) & (moved[..., 2] > near)
    share = (1 + left[..., :2].square().sum(-1) / scale**2).square().reciprocal() * there_is
    by_depth = share * (1 + off_depth.square()).square().reciprocal()
    weight = torch.stack([share, share, by_depth], dim=-1)

    of_pixel = root @ (_projection(moved, z) * lengths[..., None, :, None])
    of_depth = torch.stack([torch.zeros_like(z), torch.zeros_like(z), 1 / z], dim=-1) / priors.place
    slope = torch.cat([of_pixel, of_depth[..., None, :]], dim=-2)  # b f o n 3 3, by the point there
    back = slope @ turn[..., None, :, :]
    own = points[:, :, None, :, None, :].expand_as(back)
    seen_points = moved[..., None, :].expand_as(slope)
    zeros = torch.zeros_like(slope[..., :1])
    # by a turn, a step and the factor, of our frame and of the other one
    by_own = torch.cat([torch.linalg.cross(own, back), back, zeros], dim=-1)
    last = torch.tensor([0.0, 0.0, 1.0]).to(z)[:, None].expand_as(zeros)
    by_other = torch.cat([torch.linalg.cross(slope, seen_points), -slope, -last / priors.place], dim=-1)
    by_point = (back * own).sum(-1)
    by_focal = -(back[..., :2] * own[..., :2]).sum(-1)
    by_focal = by_focal + torch.cat([(root @ from_centre[..., None])[..., 0], torch.zeros_like(z)[..., None]], dim=-1)
    local = torch.cat([by_own, by_other, by_focal[..., None]], dim=-1)  # 15
    weighted = local * weight[..., None]
    return _Equations(
        normal=torch.einsum("bfonki,bfonkj->bfoij", weighted, local),
        right=torch.einsum("bfonki,bfonk->bfoi", weighted, left),
        coupled=torch.einsum("bfonki,bfonk->bfoni", weighted, by_point),
        of_points=(weight * by_point.square()).sum((2, 4)),
        points_right=(weight * by_point * left).sum((2, 4)),
    )


def _step(
    sights: Sights,
    intrinsics: Float[Tensor, "b f 3 3"],
    state: State,
    fixed: Bool[Tensor, "b f"],
    known: Bool[Tensor, "b"],
    scale: float,
    priors: Priors,
    unit: Float[Tensor, "b"],
    damping: Float[Tensor, "b"],
) -> State:
    """State after one step: points' depths are eliminated from the equations, whose 7 f + 1 unknowns are solved for."""
    b, f, o = sights.seen.shape[:3]
    each = _linearised(sights, intrinsics, state, scale, priors, unit)
    # a point's own prior: its logarithm is the model's plus the frame's factor
    expected = sights.depth.clamp_min(1e-9).log() + state.factors[..., None]
    surprise = (expected - state.depth) / priors.point
    belief = (1 + surprise.square()).reciprocal() / priors.point**2
    of_points = each.of_points + belief
    points_right = each.points_right + belief * (expected - state.depth)

    size = 7 * f + 1
    mine = torch.eye(7 * f, device=unit.device, dtype=unit.dtype).unflatten(0, (f, 7))
    places = unit.new_zeros(b, f, o, 15, size)
    places[..., :7, : 7 * f] = mine[:, None]
    places[..., 7:14, : 7 * f] = mine[sights.others]
    places[..., 14, 7 * f] = 1
    total = torch.einsum("bfoiG,bfoij,bfojH->bGH", places, each.normal, places)
    right = torch.einsum("bfoiG,bfoi->bG", places, each.right)
    # coupling of each point with everything
    joint = torch.einsum("bfoni,bfoiG->bfnG", each.coupled, places)
    factor_column = functional.pad(mine[:, 6], (0, 1))
    joint = joint - belief[..., None] * factor_column[None, :, None]
    total = total + torch.einsum("bf,fG,fH->bGH", belief.sum(-1), factor_column, factor_column)
    right = right - torch.einsum("bf,fG->bG", (belief * (expected - state.depth)).sum(-1), factor_column)
    total = total - torch.einsum("bfnG,bfn,bfnH->bGH", joint, 1 / of_points, joint)
    right = right - torch.einsum("bfnG,bfn->bG", joint, points_right / of_points)

    # priors, and frames that stay
    step_unit = unit.new_ones(b, f, 7)
    step_unit[..., 3:6] = unit[:, None, None] ** 2
    prior = 1 / (priors.pose**2 * step_unit)
    prior[..., 6] = 1 / priors.frame**2
    prior[..., :6] = prior[..., :6] + FIXED * fixed[..., None] / step_unit[..., :6]
    of_focal = (1 / priors.focal**2 + FIXED * known)[:, None]
    diagonal = torch.cat([prior.flatten(1), of_focal], dim=1)
    right = right - _behind(state, priors, b, f)
    total = total + torch.diag_embed(diagonal + damping[:, None] * total.diagonal(dim1=1, dim2=2))
    change = torch.linalg.solve(total.double(), right.double()).to(unit)
    points_change = (points_right - torch.einsum("bfnG,bG->bfn", joint, change)) / of_points
    moves = change[:, :-1].unflatten(1, (f, 7))
    stay = (~fixed).to(unit)[..., None]
    move = make_pose(roma.rotvec_to_rotmat(moves[..., :3] * stay), moves[..., 3:6] * stay)
    return replace(
        state,
        poses=state.poses @ move,
        depth=state.depth + points_change.clamp(-1, 1),
        factors=state.factors + moves[..., 6],
        focal=state.focal + change[:, -1].clamp(-0.3, 0.3) * ~known,
    )


def _behind(state: State, priors: Priors, b: int, f: int) -> Float[Tensor, "b _g"]:
    """Gradient of the priors of factors and focal length."""
    found = state.factors.new_zeros(b, f, 7)
    found[..., 6] = state.factors / priors.frame**2
    return torch.cat([found.flatten(1), (state.focal / priors.focal**2)[:, None]], dim=1)


def _root(information: Float[Tensor, "*b 2 2"]) -> Float[Tensor, "*b 2 2"]:
    """Upper triangular L with LᵀL = information."""
    a, c, d = information[..., 0, 0], information[..., 0, 1], information[..., 1, 1]
    first = a.clamp_min(1e-12).sqrt()
    across = c / first
    second = (d - across.square()).clamp_min(1e-12).sqrt()
    return torch.stack([torch.stack([first, across], -1), torch.stack([torch.zeros_like(a), second], -1)], dim=-2)

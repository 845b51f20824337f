"""Relative pose of two frames from places that are often wrong: hypotheses, then robust steps (ours).

Two rays of one frame and the places of their points in the other tell a rotation, if the camera only turned; that which
most points support, however loosely, is refined to a full pose by depth, as in graduated non-convexity (Yang et al.,
RA-L 2020): the scale at which errors stop to count falls from step to step.
"""

from __future__ import annotations

import roma
import torch
from jaxtyping import Float
from torch import Tensor
from torch._subclasses.fake_tensor import unset_fake_temporarily
from torch.fx.experimental.proxy_tensor import disable_proxy_modes_tracing

from four_d.constants import move
from four_d.geometry import make_pose

HYPOTHESES = 512
"""Rotations that are tried, each from two points."""
REFINED = 4
"""Best ones that become full poses."""
LOOSE = 0.05
"""Error (x / z) that a rotation may have where the camera also moved."""
SCALES = (0.1, 0.07, 0.05, 0.035, 0.025, 0.018, 0.018)
"""Errors (x / z) that count by a fourth, step by step."""
TRUST = 0.1
"""Weight of an error of depth (of its logarithm) beside one of the place in the image (x / z)."""
DAMPING = 1e-3
"""Added to the normal matrix of weights that sum to 1: what points do not tell stays as it was."""
NEAREST = 0.05
"""Depth, relative to the points' median, in front of which they are projected."""


def relative_pose(
    rays: Float[Tensor, "p n 3"],
    depth: Float[Tensor, "p n"],
    seen: Float[Tensor, "p n 2"],
    depth_there: Float[Tensor, "p n"],
    weights: Float[Tensor, "p n"],
    prior: Float[Tensor, "p 4 4"],
) -> tuple[Float[Tensor, "p 4 4"], Float[Tensor, "p"]]:
    """Pose there_from_here and the share of the weights that supports it.

    ``rays`` (z = 1) and depth are of the points here, ``seen`` (x / z, y / z) and ``depth_there`` are those of their
    places there. Both the prior and no motion are hypotheses as well; no weights give the prior.
    """
    unit = depth.median(-1).values.clamp_min(1e-6)
    points = rays * (depth / unit[:, None])[..., None]
    target = (depth_there / unit[:, None]).clamp_min(NEAREST).log()
    start = make_pose(prior[:, :3, :3], prior[:, :3, 3] / unit[:, None])
    turns = torch.cat(
        [start[:, None, :3, :3], torch.eye(3).to(rays).expand(len(rays), 1, 3, 3), _rotations(rays, seen, weights)], 1
    )
    turned = rays[:, None] @ turns.mT
    ahead = turned[..., 2] > 0.1
    off = (turned[..., :2] / turned[..., 2:].clamp_min(0.1) - seen[:, None]).norm(dim=-1)
    support = (weights[:, None] * ahead / (1 + (off / LOOSE).square())).sum(-1)
    best = support.topk(min(REFINED, support.shape[1]), dim=1).indices
    chosen = turns.gather(1, best[..., None, None].expand(-1, -1, 3, 3))
    poses = torch.cat([start[:, None], make_pose(chosen, torch.zeros_like(chosen[..., 0]))], dim=1)
    wide = (points[:, None], seen[:, None], target[:, None], weights[:, None])
    for scale in SCALES:
        poses = _step(*wide, poses, scale)
    errors, front = _errors(*wide[:3], poses)
    support = (weights[:, None] * front / (1 + (errors.norm(dim=-1) / SCALES[-1]).square())).sum(-1)
    total = weights.sum(-1)
    best = support.argmax(1)
    rows = torch.arange(len(poses), device=poses.device)
    found = torch.where((total > 0)[:, None, None], poses[rows, best], start)
    return make_pose(found[:, :3, :3], found[:, :3, 3] * unit[:, None]), support[rows, best] / total.clamp_min(1e-6)


def _drawn(count: int) -> list[list[int]]:
    """Pairs of numbers below ``count``, always the same ones; constants of a program that is traced.

    A generator in a program would go on from call to call, and give other cameras each time.
    """
    with unset_fake_temporarily(), disable_proxy_modes_tracing():
        return torch.randint(count, (2, HYPOTHESES), generator=torch.Generator().manual_seed(0)).tolist()


def _rotations(
    rays: Float[Tensor, "p n 3"], seen: Float[Tensor, "p n 2"], weights: Float[Tensor, "p n"]
) -> Float[Tensor, "p h 3 3"]:
    """Rotations there_from_here of pairs among the half of the points with the largest weights."""
    count = max(2, rays.shape[1] // 2)
    pairs = move(torch.tensor(_drawn(count)), rays.device)
    order = weights.argsort(dim=1, descending=True, stable=True)[:, :count]
    there = torch.cat([seen, torch.ones_like(seen[..., :1])], dim=-1)
    frames = list[Tensor]()
    for ways in (rays, there):
        ways = torch.nn.functional.normalize(ways, dim=-1)
        a, b = (ways.gather(1, order[:, each][..., None].expand(-1, -1, 3)) for each in pairs)
        middle = torch.nn.functional.normalize(a + b, dim=-1)
        across = torch.nn.functional.normalize(torch.linalg.cross(a, b), dim=-1, eps=1e-6)
        frames.append(torch.stack([middle, across, torch.linalg.cross(middle, across)], dim=-1))
    found = frames[1] @ frames[0].mT
    # of two points in one place nothing is known
    sound = (found.det() - 1).abs() < 1e-2
    return torch.where(sound[..., None, None], found, torch.eye(3).to(found))


def _errors(
    points: Float[Tensor, "p #h n 3"],
    seen: Float[Tensor, "p #h n 2"],
    target: Float[Tensor, "p #h n"],
    poses: Float[Tensor, "p h 4 4"],
) -> tuple[Float[Tensor, "p h n 3"], Tensor]:
    moved = points @ poses[..., :3, :3].mT + poses[..., None, :3, 3]
    z = moved[..., 2].clamp_min(NEAREST)
    off = seen - moved[..., :2] / z[..., None]
    return torch.cat([off, (TRUST * (target - z.log()))[..., None]], dim=-1), moved[..., 2] > NEAREST


def _step(
    points: Float[Tensor, "p #h n 3"],
    seen: Float[Tensor, "p #h n 2"],
    target: Float[Tensor, "p #h n"],
    weights: Float[Tensor, "p #h n"],
    poses: Float[Tensor, "p h 4 4"],
    scale: float,
) -> Float[Tensor, "p h 4 4"]:
    """One Gauss-Newton step with weights 1 / (1 + (r / scale)²)² of errors r."""
    left, front = _errors(points, seen, target, poses)
    moved = points @ poses[..., :3, :3].mT + poses[..., None, :3, 3]
    z = moved[..., 2].clamp_min(NEAREST)
    u, v = moved[..., 0] / z, moved[..., 1] / z
    share = weights * front * (1 + (left.norm(dim=-1) / scale).square()).square().reciprocal()
    share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
    zero, one = torch.zeros_like(u), torch.ones_like(u)
    # by a turn about each axis, then by a step along each
    of_u = torch.stack([-u * v, 1 + u * u, -v, one / z, zero, -u / z], dim=-1)
    of_v = torch.stack([-(1 + v * v), u * v, u, zero, one / z, -v / z], dim=-1)
    of_z = TRUST * torch.stack([v, -u, zero, zero, zero, one / z], dim=-1)
    slopes = torch.stack([of_u, of_v, of_z], dim=-2)
    weighted = slopes * share[..., None, None]
    normal = torch.einsum("phnki,phnkj->phij", weighted, slopes)
    pulled = torch.einsum("phnki,phnk->phi", weighted, left)
    step = torch.linalg.solve(normal + DAMPING * torch.eye(6).to(normal), pulled)
    turn = roma.rotvec_to_rotmat(step[..., :3])
    return make_pose(turn @ poses[..., :3, :3], (turn @ poses[..., :3, 3:])[..., 0] + step[..., 3:])

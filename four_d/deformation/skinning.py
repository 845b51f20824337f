"""Points and rotations that follow nodes: linear blending, dual quaternions, and between the two.

Sources: linear blend skinning; dual-quaternion skinning (Kavan et al. 2007); their mixture as in DreamMesh4D (arXiv
2410.06756). Ours: nodes turn about themselves, not about the origin, and blends are products with a sparse matrix,
which need neither a transform per point and node nor a loop.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from four_d.deformation.motion import NodeStates
from four_d.deformation.nodes import Binding
from four_d.geometry import quaternion_product, rotate

Skinning = Literal["linear", "dual_quaternion", "hybrid"]
"""Blend of places: of transforms linearly (collapses where nodes twist), of dual quaternions (bulges where they bend),
or a mixture of both results."""


def skin(
    points: Float[Tensor, "n 3"],
    nodes: Float[Tensor, "m 3"],
    binding: Binding,
    states: NodeStates,
    kind: Skinning = "dual_quaternion",
    share: Float[Tensor, "n"] | float = 0.5,
) -> tuple[Float[Tensor, "t n 3"], Float[Tensor, "t n 4"]]:
    """Places of points at each time, and their turns since rest: unit quaternions, as in `types.Gaussians`.

    A node at p takes a point x to R (x − p) + p + shift. Turns are the normalised sum of the nodes' quaternions, each
    of q and −q in the half space of the nearest node's, of all kinds alike. Gradients reach points, nodes, the
    binding's weights, the states and ``share``. ValueError for an unknown kind.

    Args:
        points: places at rest.
        nodes: places of the nodes at rest.
        binding: nodes that each point follows.
        states: states of the nodes at t times.
        kind: blend of places.
        share: share of the linear blend in ``hybrid``, of each point or of all.

    """
    if kind not in get_args(Skinning):
        raise ValueError(f"skinning {kind!r} is unknown; choose one of {', '.join(get_args(Skinning))}")
    shifts = nodes + states.shifts - rotate(states.quats, nodes)  # of transforms about the origin
    dual = kind != "linear"
    rows = torch.cat([states.quats, _dual(states.quats, shifts)], dim=-1) if dual else states.quats
    on_cpu = rows.device.type == "cpu"
    signs = _signs(binding, states.quats) if on_cpu else None  # the host would wait for them
    blended = _alike(binding, rows * signs) if signs is not None else _by_point(binding, states.quats, rows)
    blended = blended / blended[..., :4].norm(dim=-1, keepdim=True)
    turns = blended[..., :4]
    places = _by_dual(points, blended) if dual else points[:, None]
    if kind != "dual_quaternion":
        linear = _linear(points, binding, states.quats, shifts)
        each = share[:, None, None] if isinstance(share, Tensor) else share
        places = each * linear + (1 - each) * places if dual else linear
    return places.movedim(1, 0), turns.movedim(1, 0)


def _dual(quats: Float[Tensor, "t m 4"], shifts: Float[Tensor, "t m 3"]) -> Float[Tensor, "t m 4"]:
    """Dual parts of transforms."""
    return 0.5 * quaternion_product(functional.pad(shifts, (1, 0)), quats)


def _by_dual(points: Float[Tensor, "n 3"], blended: Float[Tensor, "n t 8"]) -> Float[Tensor, "n t 3"]:
    """Transform points by dual quaternions (w, u), (a, d): x + 2 (u × (u × x + w x + d) + w d − a u)."""
    w, u, a, d = blended.split((1, 3, 1, 3), dim=-1)
    x = points[:, None]
    inner = torch.linalg.cross(u, x.expand_as(u)) + w * x + d
    return x + 2 * (torch.linalg.cross(u, inner) + w * d - a * u)


def _linear(
    points: Float[Tensor, "n 3"], binding: Binding, quats: Float[Tensor, "t m 4"], shifts: Float[Tensor, "t m 3"]
) -> Float[Tensor, "n t 3"]:
    """Blend transforms x ↦ x + (R − 1) x + shift, so that states at rest change nothing, to the last digit."""
    sums = _alike(binding, torch.cat([_less_identity(quats), shifts], dim=-1))
    change = sums[..., :9].unflatten(-1, (3, 3)) @ points[:, None, :, None]
    return points[:, None] + change[..., 0] + sums[..., 9:]


def _less_identity(quats: Float[Tensor, "t m 4"]) -> Float[Tensor, "t m 9"]:
    """Rotation matrices minus the identity, row by row."""
    w, x, y, z = quats.unbind(-1)
    rows = [
        *(-2 * (y * y + z * z), 2 * (x * y - w * z), 2 * (x * z + w * y)),
        *(2 * (x * y + w * z), -2 * (x * x + z * z), 2 * (y * z - w * x)),
        *(2 * (x * z - w * y), 2 * (y * z + w * x), -2 * (x * x + y * y)),
    ]
    return torch.stack(rows, dim=-1)


@torch.no_grad()
def _signs(binding: Binding, quats: Float[Tensor, "t m 4"]) -> Float[Tensor, "t m 1"] | None:
    """Signs of the nodes' quaternions that are right for every point at once; None if these cannot be found.

    They are those in the half space of the nodes' mean rotation, the principal axis of all quaternions.
    """
    mean = torch.linalg.eigh(quats.mT @ quats).eigenvectors[:, :, -1:]
    signs = torch.where(quats @ mean < 0, -1, 1).to(quats)
    one, other = (signs * quats)[:, binding.pairs].unbind(2)
    return signs if bool(((one * other).sum(-1) >= 0).all()) else None


def _alike(binding: Binding, rows: Float[Tensor, "t m c"]) -> Float[Tensor, "n t c"]:
    """Σ weight · row over each point's nodes, at each time: on the CPU a product with a sparse matrix."""
    if rows.device.type != "cpu":  # enough memory, and no wait for a check of the matrix
        return (rows[:, binding.indices] * binding.weights[..., None].to(rows.dtype)).sum(2).movedim(0, 1)
    points, k = binding.indices.shape
    own = torch.arange(points, device=rows.device).repeat_interleave(k)
    places, weights = torch.stack([own, binding.indices.flatten()]), binding.weights.flatten().to(rows.dtype)
    size = (points, rows.shape[1])
    matrix = torch.sparse_coo_tensor(places, weights, size, is_coalesced=True, check_invariants=False)
    return torch.sparse.mm(matrix, rows.movedim(0, 1).flatten(1)).unflatten(1, (len(rows), rows.shape[-1]))


def _by_point(binding: Binding, quats: Float[Tensor, "t m 4"], rows: Float[Tensor, "t m c"]) -> Float[Tensor, "n t c"]:
    """Compute as `_alike`, with signs of each point's own: those in the half space of its nearest node's."""
    times, nodes = rows.shape[:2]
    points, k = binding.indices.shape
    with torch.no_grad():
        nearest = binding.indices.gather(1, binding.weights.argmax(1, keepdim=True))
        signs = torch.where((quats[:, binding.indices] * quats[:, nearest]).sum(-1) < 0, -1, 1).to(quats)
    if rows.device.type != "cpu":
        weights = (signs * binding.weights).to(rows.dtype)
        return (rows[:, binding.indices] * weights[..., None]).sum(2).movedim(0, 1)
    indices = binding.indices + nodes * torch.arange(times, device=quats.device)[:, None, None]
    weights = (signs * binding.weights).to(rows.dtype)
    sums = functional.embedding_bag(
        indices.reshape(times * points, k),
        rows.flatten(0, 1),
        mode="sum",
        per_sample_weights=weights.reshape(times * points, k),
    )
    return sums.unflatten(0, (times, points)).movedim(0, 1)

"""Energies of nodes that do not move rigidly with their neighbours, or not smoothly over time."""

from __future__ import annotations

import torch
from jaxtyping import Float, Int
from torch import Tensor

from four_d.deformation.motion import NodeStates
from four_d.geometry import rotate
from four_d.kinematics import derivative

TURNS = 0.5
"""Weight of rotations beside that of shifts in `smoothness`, as in Shape of Motion (arXiv 2407.13764)."""


def rigidity(
    nodes: Float[Tensor, "m 3"],
    states: NodeStates,
    edges: Int[Tensor, "e 2"],
    weights: Float[Tensor, "e"] | None = None,
) -> Float[Tensor, ""]:
    """Compute the as-rigid-as-possible energy, 0 for any rigid motion of all nodes: mean over times and edges (i, j) of

    ‖(p_i(t) − p_j(t)) − R_i(t) (p_i − p_j)‖², in squared units of length, weighted if there are ``weights``.

    Sorkine and Alexa 2007, with the nodes' own rotations (SC-GS, arXiv 2312.14937). 0 without edges or times.
    """
    i, j = edges.unbind(-1)
    places = nodes + states.shifts
    errors = places[:, i] - places[:, j] - rotate(states.quats[:, i], nodes[i] - nodes[j])
    squares = errors.square().sum(-1)
    if not squares.numel():
        return squares.sum()
    return squares.mean() if weights is None else (squares @ weights).mean() / weights.sum()


def smoothness(states: NodeStates, times: Float[Tensor, "t"]) -> Float[Tensor, ""]:
    """Compute the mean square of the nodes' accelerations (per s²) over times that ascend, evenly spaced or not.

    Accelerations of shifts and, weighted `TURNS`, of quaternions, each of q and −q nearest to the one before. 0 for
    fewer than three times.
    """
    if len(times) < 3:
        return 0 * (states.shifts.sum() + states.quats.sum())
    with torch.no_grad():
        flips = (states.quats[1:] * states.quats[:-1]).sum(-1) < 0
        signs = torch.cat([flips[:1] & False, flips]).cumsum(0) % 2 * -2 + 1
    motion = torch.cat([states.shifts, TURNS**0.5 * signs[..., None] * states.quats], dim=-1).movedim(0, 1)
    return derivative(motion, times.to(motion), 2).square().sum(-1).mean()

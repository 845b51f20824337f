"""Relative poses of neighbouring frames from matched pixels and depth, and their chain: no weights of their own (ours).

Small windows of a frame are searched in the frame of the same camera just before it; depth lifts a frame's pixels, and
its pose is that in which the points are seen where their windows are found, at the depth that is there. Places in the
image weigh more than depth, which is less exact; it tells turns from moves where the image alone does not. Gauss-Newton
steps with iterated reweighting (Holland and Welsch 1977).
"""

from __future__ import annotations

from dataclasses import dataclass

import roma
import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.correlation import neighbour_frames, pick
from four_d.geometry import make_pose
from four_d.layers import full_type
from four_d.matching import describe
from four_d.types import Clip

WINDOW = 7
"""Side of the compared windows in half cells."""
SHARPNESS = 30.0
"""Factor on the cosine of two windows before the softmax, which says how sure a place is."""
NEAR = 1.5
"""Distance in cells within which places count as one, for their mass and on the way back."""
FOLLOWED, FAR = 5, 3.0
"""Steps by gradients, and half cells beyond which they have lost the place."""

TRUST = 0.1
"""Weight of an error of depth (of its logarithm) beside one of the place in the image (x / z)."""
NEAREST = 0.05
"""Depth, relative to the points' median, in front of which they are projected."""


@dataclass(frozen=True, kw_only=True)
class PixelMatches:
    """Places of each frame's cells in another frame, in pixels (corner origin)."""

    here: Float[Tensor, "n 2"]
    """Centres of the cells, in every frame the same."""
    there: Float[Tensor, "b f n 2"]
    weights: Float[Tensor, "b f n"]
    """Probability mass at the place; 0 where the way back leads elsewhere."""


@torch.no_grad()
def match_pixels(images: Float[Tensor, "b f 3 h w"], others: Int[Tensor, "b f"], cells: int) -> PixelMatches:
    """Match frames with the frames ``others``, by cells of which the longer side has about ``cells``.

    The likeliest place among all cells, then that to which `follow` carries it. Memory per pair of frames is the square
    of the number of cells.
    """
    height, width = images.shape[-2:]
    half = max(1, round(max(height, width) / (2 * cells)))
    halves = functional.avg_pool2d(images.to(full_type(images.dtype)).flatten(0, 1), half)
    windows = describe(halves, 2, WINDOW).unflatten(0, images.shape[:2])
    maps = halves.unflatten(0, images.shape[:2])
    columns = -(-halves.shape[-1] // 2)
    index = torch.arange(windows.shape[-1], device=images.device)
    places = torch.stack([index % columns, index // columns], dim=-1).to(windows)
    there, weights = list[Tensor](), list[Tensor]()
    for frame in range(images.shape[1]):
        other = others[:, frame]
        found, weight = _match(windows[:, frame], pick(windows, other), places)
        there.append(follow(maps[:, frame], pick(maps, other), 2 * places, 2 * found))
        weights.append(weight)
    centres = (torch.stack(there, dim=1) + 0.5) * half
    return PixelMatches(here=(2 * places + 0.5) * half, there=centres, weights=torch.stack(weights, dim=1))


def _match(
    ours: Float[Tensor, "b d n"], theirs: Float[Tensor, "b d n"], places: Float[Tensor, "n 2"]
) -> tuple[Float[Tensor, "b n 2"], Float[Tensor, "b n"]]:
    """Likeliest places of our cells among theirs, and weights."""
    logits = SHARPNESS * (ours.mT @ theirs)
    best, back = logits.argmax(2), logits.argmax(1)
    near = (places[best][:, :, None] - places).abs().amax(-1) <= NEAR
    mass = (logits.softmax(-1) * near).sum(-1)
    returned = (places[back.gather(1, best)] - places).norm(dim=-1) <= NEAR
    return places[best], mass * returned


def follow(
    ours: Float[Tensor, "b c h w"],
    theirs: Float[Tensor, "b c h w"],
    here: Float[Tensor, "n 2"],
    there: Float[Tensor, "b n 2"],
) -> Float[Tensor, "b n 2"]:
    """Refine places by the gradients of our windows (Lucas and Kanade, IJCAI 1981), whatever the brightness.

    Places (x, y) count from the first pixel's centre. Those that would go further than `FAR` stay.
    """
    reach = torch.arange(WINDOW, device=here.device, dtype=here.dtype) - WINDOW // 2
    offsets = torch.stack(torch.meshgrid(reach, reach, indexing="xy"), dim=-1).reshape(-1, 2)

    def windows(image: Float[Tensor, "b c h w"], centres: Float[Tensor, "*b n 2"]) -> Float[Tensor, "b c n k"]:
        size = torch.tensor([image.shape[-1], image.shape[-2]], device=image.device, dtype=image.dtype)
        grid = 2 * (centres[..., None, :] + offsets + 0.5) / size - 1
        grid = grid.expand(len(image), -1, -1, -1)
        found = functional.grid_sample(image, grid, padding_mode="border", align_corners=False)
        return found - found.mean(-1, keepdim=True)

    across = functional.pad(ours, (1, 1, 0, 0), mode="replicate")
    along = functional.pad(ours, (0, 0, 1, 1), mode="replicate")
    own = windows(ours, here)
    slopes = torch.stack(
        [
            windows((across[..., 2:] - across[..., :-2]) / 2, here),
            windows((along[..., 2:, :] - along[..., :-2, :]) / 2, here),
        ]
    )
    normal = torch.einsum("ibcnk,jbcnk->bnij", slopes, slopes)
    normal = normal + 1e-4 * torch.eye(2).to(normal)
    place = there
    for _ in range(FOLLOWED):
        left = own - windows(theirs, place)
        place = place + torch.linalg.solve(normal, torch.einsum("ibcnk,bcnk->bni", slopes, left)).clamp(-1, 1)
    return torch.where((place - there).norm(dim=-1, keepdim=True) <= FAR, place, there)


def sample(maps: Float[Tensor, "b f h w"], pixels: Float[Tensor, "b f n 2"]) -> Float[Tensor, "b f n"]:
    """Values at pixels (corner origin), bilinearly."""
    size = torch.tensor([maps.shape[-1], maps.shape[-2]], device=maps.device, dtype=maps.dtype)
    grid = (2 * pixels / size - 1).flatten(0, 1)[:, None]
    found = functional.grid_sample(maps.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=False)
    return found[:, 0, 0].unflatten(0, maps.shape[:2])


def parents_of(clip: Clip) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """Each frame's predecessor from the same camera, and whether it has one; its own index where not."""
    parents = neighbour_frames(clip.times, clip.camera_ids, later=False)
    return parents, parents != torch.arange(clip.times.shape[1], device=parents.device)


def robust_pose(
    rest: Float[Tensor, "*b n 3"],
    seen: Float[Tensor, "*b n 2"],
    depth: Float[Tensor, "*b n"],
    weights: Float[Tensor, "*b n"],
    prior: Float[Tensor, "*b 4 4"],
    *,
    iterations: int,
    pull: float,
) -> Float[Tensor, "*b 4 4"]:
    """Pose there_from_here in which points ``rest`` (here's coordinates) are seen at ``seen`` (x / z and y / z there).

    ``depth`` is what there is said of the points' depth. Steps from ``prior``, damped by ``pull``: what the points do
    not tell stays as it is, and no weights give the prior. Points count by 1 / (1 + (r / s)²)², r their error and s
    twice its median, and not at all behind the camera. Lengths count relative to the points' median depth.
    """
    unit = rest[..., 2].detach().median(-1).values.clamp_min(1e-6)[..., None]
    points, target = rest / unit[..., None], (depth / unit).clamp_min(NEAREST).log()
    rotation, place = prior[..., :3, :3], prior[..., :3, 3] / unit
    for _ in range(iterations):
        moved = points @ rotation.mT + place[..., None, :]
        z = moved[..., 2].clamp_min(NEAREST)
        u, v = moved[..., 0] / z, moved[..., 1] / z
        left = torch.stack([seen[..., 0] - u, seen[..., 1] - v, TRUST * (target - z.log())], dim=-1)
        with torch.no_grad():  # weights are chosen, not learned
            length = left.norm(dim=-1)
            scale = 2 * length.median(-1, keepdim=True).values.clamp_min(1e-4)
            share = weights * (1 + (length / scale).square()).square().reciprocal() * (moved[..., 2] > NEAREST)
            share = share / share.sum(-1, keepdim=True).clamp_min(1e-6)
        zero, one = torch.zeros_like(u), torch.ones_like(u)
        # by a turn about each axis, then by a step along each
        of_u = torch.stack([-u * v, 1 + u * u, -v, one / z, zero, -u / z], dim=-1)
        of_v = torch.stack([-(1 + v * v), u * v, u, zero, one / z, -v / z], dim=-1)
        of_z = TRUST * torch.stack([v, -u, zero, zero, zero, one / z], dim=-1)
        slopes = torch.stack([of_u, of_v, of_z], dim=-2)
        weighted = slopes * share[..., None, None]
        normal = torch.einsum("...nki,...nkj->...ij", weighted, slopes)
        pulled = torch.einsum("...nki,...nk->...i", weighted, left)
        step = torch.linalg.solve(normal + pull * torch.eye(6).to(normal), pulled)
        turn = roma.rotvec_to_rotmat(step[..., :3])
        rotation, place = turn @ rotation, (turn @ place[..., None])[..., 0] + step[..., 3:]
    return make_pose(rotation, place * unit)


def chained(
    relative: Float[Tensor, "b f 4 4"],
    parents: Int[Tensor, "b f"],
    has_parent: Bool[Tensor, "b f"],
    times: Float[Tensor, "b f"],
    prior: Float[Tensor, "b f 4 4"],
) -> Float[Tensor, "b f 4 4"]:
    """Poses from those relative to the parents, which are earlier; the first of each camera keeps its prior."""
    order, count = times.argsort(dim=1, stable=True), times.shape[1]
    numbers, poses = torch.arange(count, device=times.device), prior
    for place in range(count):
        frame = order[:, place]
        step = pick(poses, pick(parents, frame)) @ pick(relative, frame)
        chosen = (numbers == frame[:, None]) & has_parent
        poses = torch.where(chosen[..., None, None], step[:, None], poses)
    return poses

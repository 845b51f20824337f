"""Cameras of a whole video: neighbours' relative poses, their chain, and the adjustment of all frames (ours)."""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d.constants import on_host, traced
from four_d.correlation import pick
from four_d.geometry import invert_pose, rays, rotation_angle
from four_d.registration.adjustment import Sights, State, adjust, begin, predicted
from four_d.registration.matching import Places, Pyramid, corners, follow, search
from four_d.registration.two_view import relative_pose
from four_d.types import Cameras, Clip

CELLS = 16
"""Points of a frame along its longer side."""
GAPS = (1, 2, 4, 8)
"""Frames of one camera that are compared: so many apart, both ways."""
ROUNDS = (((1,), (12.0, 8.0, 5.0, 3.0)), (GAPS, (5.0, 3.0, 3.0)), (GAPS, (3.0, 2.0, 2.0)))
"""Rounds in which points are followed from where the cameras say, and cameras adjusted: the gaps, and the errors, in
standard deviations, that count by a fourth in each step."""
NEAR = 0.1
"""Distance in longer sides within which a searched place is where the cameras say."""
FLATTEST, STRONGEST = 0.05, 8.0
"""Least area and largest length that a pixel may have in another frame where its window is followed."""
NEAREST = 0.05
"""Depth in medians in front of which points are not followed."""
STAYS, STILL = 2.0, 0.3
"""Standard deviations that a window of a still camera may be away, and least share of windows that are not further."""
FARTHEST = 0.1
"""Radians by which the adjustment may turn a frame from where it was found beside the one before; else it is wrong."""
CONVINCED = 0.1
"""Least share of the weights that supports a relative pose; below it the head's own stays."""


@dataclass(frozen=True, kw_only=True)
class Links:
    """The frame beside which each frame is placed, and how."""

    parents: Int[Tensor, "b f"]
    """Frame before in time by the same camera, or, for a first frame, by the camera that begins first."""
    searched: Float[Tensor, "b f n 2"]
    """Places of each frame's points in its parent, to about a pixel of reduced images."""
    relative: Float[Tensor, "b f 4 4"]
    """parent_from_frame"""
    first: Int[Tensor, "b f"]
    """Each camera's first frame."""
    begins: Bool[Tensor, "b f"]
    """Frames that are their camera's first."""
    joined: Bool[Tensor, "b f"]
    """Frames that follow their parent: all but the first of all, and those of cameras that see nothing of its."""
    stands: Bool[Tensor, "b f"]
    """Frames of cameras that stand still."""

    def shared(self, poses: Float[Tensor, "b f 4 4"]) -> Float[Tensor, "b f 4 4"]:
        """Poses of which a camera that stands still has one, its first frame's."""
        return torch.where(self.stands[..., None, None], pick(poses, self.first), poses)


@torch.no_grad()
def register(
    clip: Clip, cameras: Cameras, depth: Float[Tensor, "b f h w"], still: Float[Tensor, "b f h w"] | None = None
) -> Cameras:
    """Cameras in which a model's depth is seen where the pixels are found again; no gradient.

    The earliest frame keeps the pose that ``cameras`` gives it. A frame keeps that pose relative to the same camera's
    frame before where too few of its points are found there, and a camera's first frame where too few are found in the
    camera that begins first. All frames of a camera that stands still share its first frame's pose. Known intrinsics of
    the clip are taken as they are; else one factor on all focal lengths is sought.

    Args:
        clip: the video.
        cameras: what a model says.
        depth: what a model says, above 0.
        still: probability that a pixel does not move; None: what moves is left to robust weights.

    """
    pyramid = Pyramid.of(clip.images)
    points = corners(pyramid, CELLS).to(depth)
    quiet = torch.ones_like(depth) if still is None else still.to(depth)
    intrinsics, known = _intrinsics(clip, cameras)
    prior = cameras.world_from_camera.to(depth)
    links = _links(clip, pyramid, points, intrinsics, depth, quiet, prior)
    poses = chained(links.relative, links.parents, links.joined, clip.times, prior)
    state = begin(sample(depth, points), links.shared(poses))
    beside_first = pick(links.joined & links.begins, links.first)
    fixed = ~links.joined | (links.stands & ~beside_first)
    across = _beside(clip, pick(links.joined, links.first) | _with_first(clip)) if _several(clip) else None
    for number, (gaps, scales) in enumerate(ROUNDS):
        offsets = [sign * gap for gap in gaps if gap < depth.shape[1] for sign in (-1, 1)]
        if not offsets:
            continue
        compared = [neighbours(clip, offset) for offset in offsets] + ([] if across is None else [across])
        searched = links.searched if not number else None
        sights = _sights(pyramid, intrinsics, depth, quiet, state, points, compared, searched)
        state = adjust(sights, intrinsics, state, fixed, known, scales)
        state = replace(state, poses=links.shared(state.poses))
    adjusted = invert_pose(pick(state.poses, links.parents)) @ state.poses
    apart = rotation_angle(links.relative[..., :3, :3].mT @ adjusted[..., :3, :3])
    trusted = (apart < FARTHEST) | fixed | (links.stands & ~links.begins)
    kept = torch.where(trusted[..., None, None], adjusted, links.relative)
    lens = intrinsics.clone()
    lens[..., :2, :2] *= state.focal.exp()[:, None, None, None]
    found = links.shared(chained(kept, links.parents, links.joined, clip.times, state.poses))
    return replace(
        cameras,
        world_from_camera=found.to(cameras.world_from_camera),
        intrinsics=lens.to(cameras.intrinsics),
    )


def _links(
    clip: Clip,
    pyramid: Pyramid,
    points: Float[Tensor, "b f n 2"],
    intrinsics: Float[Tensor, "b f 3 3"],
    depth: Float[Tensor, "b f h w"],
    quiet: Float[Tensor, "b f h w"],
    prior: Float[Tensor, "b f 4 4"],
) -> Links:
    """Relative poses by places searched in the parents, or else of ``prior``."""
    before, has_before = neighbours(clip, -1)
    leading, has_leading = _leading(clip)
    parents = torch.where(has_before, before, leading)
    there, sure = (each.to(depth) for each in search(clip.images, points.to(pyramid.levels[0]), parents))
    told = invert_pose(pick(prior, parents)) @ prior
    weights = sample(quiet, points)
    pairs = (
        rays(intrinsics, points),
        sample(depth, points),
        rays(pick(intrinsics, parents), there)[..., :2],
        sample(pick(depth, parents), there),
        sure * weights * sample(pick(quiet, parents), there),
        told,
    )
    found, support = (each.unflatten(0, depth.shape[:2]) for each in relative_pose(*(p.flatten(0, 1) for p in pairs)))
    convinced = support >= CONVINCED
    return Links(
        parents=parents,
        searched=there,
        relative=torch.where(convinced[..., None, None], found, told),
        first=_first(clip),
        begins=~has_before,
        joined=has_before | (has_leading & convinced),
        stands=_stand_still(pyramid, points, weights, clip),
    )


def _intrinsics(clip: Clip, cameras: Cameras) -> tuple[Float[Tensor, "b f 3 3"], Bool[Tensor, "b"]]:
    """Intrinsics of all frames, and clips whose are known: the clip's own there, else those of ``cameras``."""
    none = torch.zeros_like(cameras.intrinsics[:, 0, 0, 0], dtype=torch.bool)
    given = clip.cameras
    if given is None:
        return cameras.intrinsics, none
    flags = given.known if given.intrinsics_known is None else given.intrinsics_known
    known = ~none if flags is None else flags.all(1)
    return torch.where(known[:, None, None, None], given.intrinsics.to(cameras.intrinsics), cameras.intrinsics), known


def _before(clip: Clip) -> Bool[Tensor, "b f f"]:
    """Tell if the second frame is before the first in time; at one time those are that come first in the clip."""
    index = torch.arange(clip.times.shape[1], device=clip.times.device)
    earlier = clip.times[:, None] < clip.times[:, :, None]
    return earlier | ((clip.times[:, None] == clip.times[:, :, None]) & (index < index[:, None]))


def neighbours(clip: Clip, gap: int) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """Frame of the same camera ``gap`` places later in time (negative: earlier), and if there is one; else itself."""
    same = clip.camera_ids[:, :, None] == clip.camera_ids[:, None]
    rank = (same & _before(clip)).sum(-1)
    return _found(same & (rank[:, None] == rank[:, :, None] + gap))


def _found(hit: Bool[Tensor, "b f f"]) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """First frame that is hit for each frame, and if there is one; else itself."""
    there, index = hit.any(-1), torch.arange(hit.shape[1], device=hit.device)
    return torch.where(there, hit.float().argmax(-1), index), there


def _with_first(clip: Clip) -> Bool[Tensor, "b f"]:
    """Frames of the camera that begins first."""
    return clip.camera_ids == clip.camera_ids.gather(1, clip.times.argmin(1)[:, None])


def _leading(clip: Clip) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """Last frame before each, of the camera that begins first, and if there is one; else itself."""
    before = _before(clip)
    able = before & _with_first(clip)[:, None]
    rank = torch.where(able, before.sum(-1)[:, None], -1)
    return _found(able & (rank == rank.amax(-1, keepdim=True)))


def _several(clip: Clip) -> bool:
    """Tell if the clip comes from more than one camera. Programs take those of one."""
    ids = None if traced() else on_host(clip.camera_ids)
    return ids is not None and bool((ids != ids[:, :1]).any())


def _beside(clip: Clip, joined: Bool[Tensor, "b f"]) -> tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]:
    """For each frame, the frame of another camera nearest in time, both of ``joined`` cameras, and if there is one."""
    apart = (clip.times[:, :, None] - clip.times[:, None]).abs()
    other = (clip.camera_ids[:, :, None] != clip.camera_ids[:, None]) & joined[:, :, None] & joined[:, None]
    nearest = torch.where(other, apart, torch.inf)
    return _found(other & (nearest == nearest.amin(-1, keepdim=True)))


def _sights(
    pyramid: Pyramid,
    intrinsics: Float[Tensor, "b f 3 3"],
    depth: Float[Tensor, "b f h w"],
    quiet: Float[Tensor, "b f h w"],
    state: State,
    points: Float[Tensor, "b f n 2"],
    compared: list[tuple[Int[Tensor, "b f"], Bool[Tensor, "b f"]]],
    searched: Float[Tensor, "b f n 2"] | None,
) -> Sights:
    """Points followed in the frames of ``compared`` (others, and if there are any), from where the state predicts them.

    In the first of these they are followed from ``searched`` places, where those lie near.
    """
    others = torch.stack([each for each, _ in compared], dim=-1)
    valid = torch.stack([each for _, each in compared], dim=-1)
    start, z, warp = predicted(state, intrinsics, points, others)
    side = max(depth.shape[-2:])
    sane = (z > NEAREST * depth.flatten(1).median(1).values[:, None, None, None]) & (
        (torch.linalg.det(warp) > FLATTEST) & (warp.abs().amax((-1, -2)) < STRONGEST)
    )
    start = torch.where(sane[..., None], start, points[:, :, None]).clamp(-side, 2 * side)
    warp = torch.where(sane[..., None, None], warp, torch.eye(2).to(warp))
    if searched is not None:
        near = (searched - start[:, :, 0]).norm(dim=-1, keepdim=True) < NEAR * side
        start = torch.cat([torch.where(near, searched, start[:, :, 0])[:, :, None], start[:, :, 1:]], dim=2)
    places = _followed(pyramid, points, others, start, warp)
    depth_there, quiet_there = (
        sample(pick(maps, others.flatten(1)), places.pixels.flatten(1, 2)).unflatten(1, others.shape[1:])
        for maps in (depth, quiet)
    )
    weights = sample(quiet, points)[:, :, None] * quiet_there * (valid[..., None] & sane)
    return Sights(
        pixels=points,
        depth=sample(depth, points),
        others=others,
        seen=places.pixels,
        information=places.information * weights[..., None, None],
        depth_there=depth_there,
    )


def _followed(
    pyramid: Pyramid,
    points: Float[Tensor, "b f n 2"],
    others: Int[Tensor, "b f o"],
    start: Float[Tensor, "b f o n 2"],
    warp: Float[Tensor, "b f o n 2 2"],
) -> Places:
    """Places in the points' type, followed in that of the images."""
    places = follow(
        pyramid,
        *(each.to(pyramid.levels[0]) if each.is_floating_point() else each for each in (points, others, start, warp)),
    )
    return Places(pixels=places.pixels.to(points), information=places.information.to(points))


def _first(clip: Clip) -> Int[Tensor, "b f"]:
    """Each frame's first one in time of the same camera."""
    same = clip.camera_ids[:, :, None] == clip.camera_ids[:, None]
    return torch.where(same, clip.times[:, None], torch.inf).argmin(-1)


def _stand_still(
    pyramid: Pyramid, points: Float[Tensor, "b f n 2"], weights: Float[Tensor, "b f n"], clip: Clip
) -> Bool[Tensor, "b f"]:
    """Frames of cameras that never move: in each, enough windows stay exactly where they are in the first."""
    start = points[:, :, None]
    same_place = torch.eye(2).to(start).expand(*start.shape[:-1], 2, 2)
    places = _followed(pyramid, points, _first(clip)[..., None], start, same_place)
    off = places.pixels - start
    square = torch.einsum("bfoni,bfonij,bfonj->bfn", off, places.information, off)
    sound = places.information[:, :, 0, :, 0, 0] > 0
    total = weights.sum(-1)
    stays = (weights * sound * (square < STAYS**2)).sum(-1) >= STILL * total
    same = clip.camera_ids[:, :, None] == clip.camera_ids[:, None]
    # what moves everywhere tells nothing of the camera, and the first frame only that it is itself
    says = (total > 0) & (_first(clip) != torch.arange(total.shape[1], device=total.device))
    return ((stays | ~says)[:, None] | ~same).all(-1) & (says[:, None] & same).any(-1)


def sample(maps: Float[Tensor, "b f h w"], pixels: Float[Tensor, "b f n 2"]) -> Float[Tensor, "b f n"]:
    """Values at pixels (corner origin), bilinearly."""
    size = torch.tensor([maps.shape[-1], maps.shape[-2]], device=maps.device, dtype=maps.dtype)
    grid = (2 * pixels / size - 1).flatten(0, 1)[:, None]
    found = functional.grid_sample(maps.flatten(0, 1)[:, None], grid, padding_mode="border", align_corners=False)
    return found[:, 0, 0].unflatten(0, maps.shape[:2])


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

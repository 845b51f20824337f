"""World points over time in one form, from motion, Gaussians, pixel tracks, keypoints or ground truth.

The points are those that query pixels (frame, x, y) show, as in ``Clip.query_points``. Positions are in the coordinates
and the unit of the clip or prediction that they come from (of a prediction: the first frame's camera), and
differentiable with respect to it.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import cast

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d import surface as surfaces
from four_d.constants import also_kept, keep, on_host, vector
from four_d.errors import UserError
from four_d.geometry import invert_pose, rays, transform, unproject, world_points
from four_d.keypoints import decode_names, named
from four_d.layers import full_precision
from four_d.query import query_times
from four_d.rendering.scene import means_at
from four_d.types import NONE, POINT, Cameras, Clip, Gaussians, Keypoints, Prediction, Surface, same_time, selects

EDGE = 0.1
"""Relative difference of inverse depth above which two neighbouring pixels count as different surfaces, or a point as
hidden from the pixel that it falls on.

Best value from 0.02 to 0.5: near the edges of a box room at 64 × 64 pixels, interpolated exact motion has a mean error
of 15 mm, against 49 mm at the nearest pixel and 221 mm with all four neighbours blended.
"""


@dataclass(frozen=True, kw_only=True)
class Trajectories:
    """n points over t times; several entries may have the same time, as frames of a rig of cameras do (`at_times`)."""

    points: Float[Tensor, "*b n t 3"] = field(metadata=POINT)
    visible: Float[Tensor, "*b n t"] = field(metadata=NONE)
    """Probability of being visible at that time, 0 to 1."""
    valid: Bool[Tensor, "*b n t"]
    """False if the position is undefined."""
    times: Float[Tensor, "*b t"] = field(metadata=NONE)
    """Seconds."""
    edges: Int[Tensor, "*b e 2"] | None = field(default=None, metadata=selects("n"))
    """Bones between the points, where known; one from a point to itself is none."""
    rigid: Bool[Tensor, "*b e"] | None = None
    """True for bones of constant length."""


@dataclass(frozen=True, kw_only=True)
class Shown:
    """Points that query pixels show, and the interpolation of other maps there.

    Maps are interpolated between the centres of the k = 4 nearest pixels, leaving out those of another surface
    (`EDGE`); this is exact on a plane in rigid motion.
    """

    frames: Int[Tensor, "b n"]
    rows: Int[Tensor, "b n k"]
    columns: Int[Tensor, "b n k"]
    weights: Float[Tensor, "b n k"]
    points: Float[Tensor, "b n 3"]
    """Positions at the time of the pixel's own frame."""

    def read(self, maps: Float[Tensor, "b f h w *c"]) -> Float[Tensor, "b n *c"]:
        """Values of the maps at the query pixels."""
        batch = torch.arange(len(maps), device=maps.device)[:, None, None]
        return _weigh(maps[batch, self.frames[..., None], self.rows, self.columns], self.weights)


def shown(prediction: Prediction, queries: Float[Tensor, "b n 3"]) -> Shown:
    """Find the points that pixels show; UserError if the model predicts no geometry."""
    dense, cameras = world_points(prediction), prediction.cameras
    if dense is None:
        raise UserError("this model gives neither depth with cameras nor points, so no place to follow; take another")
    frames, pixels = queries[..., 0].long(), queries[..., 1:]
    rows, columns, shares = _neighbours(pixels, *dense.shape[2:4])
    batch = torch.arange(len(queries), device=queries.device)[:, None]
    found = dense[batch[..., None], frames[..., None], rows, columns]
    own = None if cameras is None else _cameras(cameras, (batch, frames))
    z = (found if own is None else transform(invert_pose(own.world_from_camera), found))[..., 2]
    weights = _one_surface(z, shares)
    points = _weigh(found, weights)
    if prediction.depth is not None and own is not None:
        # without one of the neighbours, the mean of the others is not on the pixel's ray
        on_ray = rays(own.intrinsics, pixels[..., None, :]) * _weigh(z, weights)[..., None, None]
        points = transform(own.world_from_camera, on_ray)[..., 0, :]
    return Shown(frames=frames, rows=rows, columns=columns, weights=weights, points=points)


def predicted(prediction: Prediction, clip: Clip, queries: Float[Tensor, "b n 3"]) -> dict[str, Trajectories]:
    """Predicted trajectories of the pixels' points, by the field of `Prediction` they come from.

    ``motion`` and ``gaussians`` at the clip's query times (without any, Gaussians at the frames' times),
    ``pixel_tracks`` at every frame's time, of the points that the model tracked. Gaussians that are not one per pixel
    of key frames are left out, since they belong to no pixel (`of_gaussians` takes them as they are). So are motion
    and pixel tracks of a model that gives neither points nor depth with cameras, for they have no place in the world.

    ``keypoints`` are other points than the pixels': those that the clip asks for by name (`of_keypoints`).
    """
    found: dict[str, Trajectories] = {}
    placed = prediction.points is not None or (prediction.depth is not None and prediction.cameras is not None)
    if prediction.motion is not None and placed:
        found["motion"] = of_motion(prediction, clip, queries)
    chosen = pixel_gaussians(prediction, queries, clip.images.shape[-2], clip.images.shape[-1])
    if prediction.gaussians is not None and chosen is not None:
        times, (which, known) = clip.times if clip.query_times is None else clip.query_times, chosen
        carried = of_gaussians(prediction.gaussians, times, which)
        found["gaussians"] = replace(carried, valid=carried.valid & known[..., None])
    if prediction.pixel_tracks is not None and placed:
        found["pixel_tracks"] = of_pixel_tracks(prediction, clip)
    keypoints = of_keypoints(prediction, clip)
    return found if keypoints is None else found | {"keypoints": keypoints}


def true(clip: Clip, queries: Float[Tensor, "b n 3"]) -> Trajectories | None:
    """Ground-truth trajectories of the points at the pixels' centres; None if no clip of the batch has any.

    Each clip's are from its surface at every frame's time, or else from its true motion at the query times.
    """
    if clip.cameras is None:
        return None
    surface = None if clip.surface is None else of_surface(clip, queries)
    if clip.motion is None or clip.depth is None:
        return surface
    if surface is None or clip.surface is None:
        return of_true_motion(clip, queries)
    own, motion = (clip.surface.faces >= 0).flatten(1).any(-1), of_true_motion(clip, queries)
    most = max(surface.times.shape[1], motion.times.shape[1])

    def chosen(name: str, after: int) -> Tensor:  # one of fewer times ends with entries that are not valid
        both = [getattr(each, name) for each in (surface, motion)]
        lacks = [most - each.times.shape[1] for each in (surface, motion)]
        one, other = (functional.pad(each, (*[0] * (2 * after), 0, n)) for each, n in zip(both, lacks))
        return torch.where(own.view(-1, *[1] * (one.ndim - 1)), one, other)

    return Trajectories(
        points=chosen("points", 1), visible=chosen("visible", 0), valid=chosen("valid", 0), times=chosen("times", 0)
    )


def of_motion(prediction: Prediction, clip: Clip, queries: Float[Tensor, "b n 3"]) -> Trajectories:
    """Trajectories from dense motion at the clip's query times; at its own time a pixel's point does not move."""
    times, pixels = query_times(clip), shown(prediction, queries)
    own = same_time(clip.times.gather(1, pixels.frames)[..., None], times[:, None])
    points, visible = moved(prediction, pixels, own)
    visible = torch.ones_like(points[..., 0]) if visible is None else visible
    return Trajectories(points=points, visible=visible, valid=torch.ones_like(own), times=times)


def moved(
    prediction: Prediction, pixels: Shown, own: Bool[Tensor, "b n q"]
) -> tuple[Float[Tensor, "b n q 3"], Float[Tensor, "b n q"] | None]:
    """Positions of the pixels' points at the query times of the predicted motion, and the predicted visibility, if any.

    At its pixel's own time, where ``own``, a point has not moved and is visible. UserError without motion.
    """
    if prediction.motion is None:
        raise UserError("this model predicts no motion (it has no motion head); take one that does")
    motion = torch.stack([pixels.read(each) for each in prediction.motion.unbind(1)], dim=2)
    visible = None
    if prediction.motion_visible is not None:
        visible = torch.stack([pixels.read(each) for each in prediction.motion_visible.unbind(1)], dim=2)
        visible = visible.masked_fill(own, 1)
    return pixels.points[:, :, None] + motion.masked_fill(own[..., None], 0), visible


def of_gaussians(
    gaussians: Gaussians, times: Float[Tensor, "b t"], which: Int[Tensor, "b n"] | None = None
) -> Trajectories:
    """Means of Gaussians at any times; ``which``: their indices, None: all. Visibility is their opacity alone."""
    points, opacities = means_at(gaussians, times).transpose(1, 2), gaussians.opacities
    if which is not None:
        batch = torch.arange(len(which), device=which.device)[:, None]
        points, opacities = points[batch, which], opacities[batch, which]
    visible = opacities[..., None].expand(points.shape[:-1])
    return Trajectories(points=points, visible=visible, valid=torch.ones_like(visible, dtype=torch.bool), times=times)


def pixel_gaussians(
    prediction: Prediction, queries: Float[Tensor, "b n 3"], height: int, width: int
) -> tuple[Int[Tensor, "b n"], Bool[Tensor, "b n"]] | None:
    """Index of each pixel's Gaussian, and a mask that is False if the pixel's frame is no key frame.

    None if Gaussians are not one per pixel of each key frame.
    """
    gaussians, key_frames = prediction.gaussians, prediction.key_frames
    if gaussians is None or key_frames is None or gaussians.means.shape[-2] != key_frames.shape[-1] * height * width:
        return None
    here = queries[..., :1].long() == key_frames[:, None]
    rows, columns = _pixel(queries, height, width)
    return (here.int().argmax(-1) * height + rows) * width + columns, here.any(-1)


def of_pixel_tracks(prediction: Prediction, clip: Clip) -> Trajectories:
    """Trajectories from pixel tracks at every frame's time: the points that their pixels show; invalid off-image."""
    assert prediction.pixel_tracks is not None
    tracks, seen = prediction.pixel_tracks, prediction.pixel_tracks_visible
    most = vector([clip.images.shape[-1], clip.images.shape[-2]], tracks)
    inside = ((tracks >= 0) & (tracks <= most)).all(-1)
    frames = torch.arange(tracks.shape[1], device=tracks.device)[:, None, None].expand(*tracks.shape[:3], 1)
    queries = torch.cat([frames.to(tracks), tracks.clamp_min(0).minimum(most)], dim=-1)
    points = shown(prediction, queries.flatten(1, 2)).points.unflatten(1, tracks.shape[1:3])
    visible = torch.ones_like(tracks[..., 0]) if seen is None else seen
    return Trajectories(
        points=points.transpose(1, 2), visible=visible.mT, valid=inside.transpose(1, 2), times=clip.times
    )


def of_surface(clip: Clip, queries: Float[Tensor, "b n 3"]) -> Trajectories:
    """Trajectories from surface and cameras at every frame's time.

    All invalid for a clip of the batch without a surface. ValueError if the batch has no surface or no cameras.
    """
    if clip.surface is None or clip.cameras is None:
        raise ValueError("the truth of pixel tracks needs surfaces and cameras")
    with full_precision(queries.device):
        parts = [
            _follow(
                _unpadded(fields.unstack(clip.surface, i)),
                fields.unstack(clip.cameras, i),
                also_kept(clip.times, lambda times, i=i: times[i]),
                queries[i],
            )
            for i in range(len(queries))
        ]
    points, visible, valid = (torch.stack(each) for each in zip(*parts, strict=True))
    return Trajectories(points=points, visible=visible.to(points), valid=valid, times=clip.times)


def of_true_motion(clip: Clip, queries: Float[Tensor, "b n 3"]) -> Trajectories:
    """Trajectories from true depth, cameras and motion at the query times; invalid if the pixel lacks any of these."""
    assert clip.depth is not None
    assert clip.cameras is not None
    assert clip.motion is not None
    times, frames = query_times(clip), queries[..., 0].long()
    batch = torch.arange(len(queries), device=queries.device)[:, None]
    rows, columns = _pixel(queries, *clip.depth.shape[-2:])
    with full_precision(queries.device):
        places = unproject(clip.depth, clip.cameras)[batch, frames, rows, columns]
    known = torch.ones_like(frames, dtype=torch.bool)
    if clip.valid is not None:
        known = known & clip.valid[batch, frames, rows, columns]
    if clip.cameras.known is not None:
        known = known & clip.cameras.known.gather(1, frames)
    if clip.motion_frames is not None:
        here = frames[..., None] == clip.motion_frames[:, None]
        frames, known = here.int().argmax(-1), known & here.any(-1)
    at = (batch, slice(None), frames, rows, columns)  # values b n q …
    valid = known[..., None].expand(*known.shape, times.shape[1])
    if clip.motion_valid is not None:
        valid = valid & clip.motion_valid[at]
    seen = valid if clip.motion_visible is None else clip.motion_visible[at]
    points = places[:, :, None] + clip.motion[at]
    return Trajectories(points=points, visible=seen.to(points), valid=valid, times=times)


def of_keypoints(prediction: Prediction, clip: Clip) -> Trajectories | None:
    """Predicted keypoints at every frame's time; None if the model gives none (``*b f joints 3`` by that name).

    Valid are those that have a name in ``clip`` (`asked_names`); with the bones of the true ones. UserError for another
    number of them than was asked for, and as in `asked_keypoints`.
    """
    declared = {each.name: each.axes for each in fields.declared(type(prediction))}
    if declared.get("keypoints") != ("*b", "f", "joints", "3"):
        return None
    points = cast(Tensor | None, getattr(prediction, "keypoints"))  # noqa: B009 - of a subclass unknown here
    if points is None:
        return None
    seen = cast(Tensor | None, getattr(prediction, "keypoint_visible", None))
    visible = torch.ones_like(points[..., 0]) if seen is None else seen
    truth, names = asked_keypoints(clip), asked_names(clip)
    if names is not None:
        if not names.shape[-2]:
            return None  # nothing was asked for; in training a head finds one that means nothing
        check_found(points.shape[-2], names.shape[-2])
    known = torch.ones_like(points[:, 0, :, 0], dtype=torch.bool) if names is None else named(names)
    return Trajectories(
        points=points.transpose(1, 2),
        visible=visible.mT,
        valid=known[..., None].expand(visible.mT.shape),
        times=clip.times,
        edges=None if truth is None else truth.edges,
        rigid=None if truth is None else truth.rigid,
    )


def of_true_keypoints(clip: Clip) -> Trajectories | None:
    """True keypoints (`asked_keypoints`) at every frame's time, with their bones; None if the clip has none."""
    truth = asked_keypoints(clip)
    if truth is None:
        return None
    return Trajectories(
        points=truth.points.transpose(-3, -2),
        visible=truth.visible.mT.to(truth.points),
        valid=truth.valid.mT,
        times=clip.times,
        edges=truth.edges,
        rigid=truth.rigid,
    )


def asked_names(clip: Clip) -> Int[Tensor, "*b joints letters"] | None:
    """Names of the keypoints that a model was asked for, in its order: the clip's own, else those of the true ones."""
    if clip.keypoint_names is not None:
        return clip.keypoint_names
    return None if clip.keypoints is None else clip.keypoints.names


def check_found(found: int, named: int) -> None:
    """Raise UserError unless a model found as many keypoints as the targets name."""
    if found != named:
        raise UserError(
            f"the targets name {named} keypoints, and a model was asked for {found}; leave Clip.keypoint_names to "
            "data.sampling.model_inputs"
        )


def asked_keypoints(clip: Clip) -> Keypoints | None:
    """True keypoints, one for each that a model was asked for (`asked_names`); None if the clip has none.

    UserError where the names to find are not the true ones in their order: nothing else says which point is which.
    """
    names, truth = clip.keypoint_names, clip.keypoints
    if names is None or truth is None or torch.equal(on_host(names), on_host(truth.names)):
        return truth
    more = names.shape[-2] - truth.names.shape[-2]
    true = functional.pad(on_host(truth.names), (0, 0, 0, max(more, 0)))
    asked = functional.pad(on_host(names), (0, 0, 0, max(-more, 0)))
    known = named(on_host(truth.names)).any(-1, keepdim=True)  # without truth nothing is compared
    other = (asked != true).any(-1) & known
    if bool(other.any()):
        first = (decode_names(each[other][:1])[0] for each in (asked, true))
        wanted, there = (f"keypoint {name!r}" if name else "none" for name in first)
        raise UserError(
            f"a model was asked for {wanted} where the truth has {there}; leave Clip.keypoint_names to "
            "data.sampling.model_inputs, or give the names of the true keypoints in their order"
        )

    def padded(values: Tensor, behind: int) -> Tensor:  # or cut, where all that is too much has no name
        return functional.pad(values, (*[0] * (2 * behind), 0, more))

    return replace(
        truth,
        names=names,
        instances=padded(truth.instances, 0),
        points=padded(truth.points, 1),
        valid=padded(truth.valid, 0),
        pixels=padded(truth.pixels, 1),
        pixels_valid=padded(truth.pixels_valid, 0),
        visible=padded(truth.visible, 0),
    )


def at_times(trajectories: Trajectories, times: Float[Tensor, "b t"]) -> Trajectories:
    """Trajectories at the given times; invalid at a time without an entry.

    Of several entries of one time, visibility is the maximum and the position that of the most visible entry.
    """
    same = same_time(times[:, :, None], trajectories.times[:, None])[:, None]  # b 1 t entries
    usable = same & trajectories.valid[:, :, None]
    seen = torch.where(usable, trajectories.visible[:, :, None], -1.0)
    best = seen.argmax(-1)
    points = trajectories.points.gather(2, best[..., None].expand(*best.shape, 3))
    return replace(trajectories, points=points, visible=seen.amax(-1).clamp_min(0), valid=usable.any(-1), times=times)


def _follow(
    surface: Surface, cameras: Cameras, times: Float[Tensor, "f"], queries: Float[Tensor, "n 3"]
) -> tuple[Tensor, Tensor, Tensor]:
    """Points (n f 3), visible and valid (n f) of one unbatched clip."""
    if not on_host(surface.times).any():  # only zeros, as in a clip without a surface: all frames are at the one time
        times = keep(torch.zeros_like(times), torch.zeros(times.shape))
    height, width = surface.faces.shape[-2:]
    most = vector([width - 1, height - 1], queries)
    found = surfaces.tracks(surface, cameras, times, queries[:, 0].long(), queries[:, 1:].minimum(most))
    return found.points, found.visible, found.valid


def _unpadded(surface: Surface) -> Surface:
    """Surface of one clip without the times that collation padded with zeros."""
    count = 1 + int((on_host(surface.times).diff() > 0).sum())
    return fields.take(surface, "t", slice(count))


def _cameras(cameras: Cameras, index: tuple[Tensor, Tensor]) -> Cameras:
    return Cameras(world_from_camera=cameras.world_from_camera[index], intrinsics=cameras.intrinsics[index])


def _pixel(queries: Float[Tensor, "b n 3"], height: int, width: int) -> tuple[Int[Tensor, "b n"], Int[Tensor, "b n"]]:
    """Row and column of the pixel that each query lies in."""
    x, y = queries[..., 1:].floor().long().unbind(-1)
    return y.clamp(0, height - 1), x.clamp(0, width - 1)


def _weigh(values: Float[Tensor, "b n k *c"], weights: Float[Tensor, "b n k"]) -> Float[Tensor, "b n *c"]:
    return (values * weights.reshape(*weights.shape, *[1] * (values.ndim - 3))).sum(2)


def _neighbours(
    pixels: Float[Tensor, "b n 2"], height: int, width: int
) -> tuple[Int[Tensor, "b n 4"], Int[Tensor, "b n 4"], Float[Tensor, "b n 4"]]:
    """Rows, columns and bilinear weights of the four nearest pixel centres; at the border some coincide."""
    low = (pixels - 0.5).floor()
    x, y = (pixels - 0.5 - low).unbind(-1)
    left, top = low.long().unbind(-1)
    rows = torch.stack([top, top, top + 1, top + 1], dim=-1).clamp(0, height - 1)
    columns = torch.stack([left, left + 1, left, left + 1], dim=-1).clamp(0, width - 1)
    weights = torch.stack([(1 - x) * (1 - y), x * (1 - y), (1 - x) * y, x * y], dim=-1)
    return rows, columns, weights


def _one_surface(depth: Float[Tensor, "b n 4"], shares: Float[Tensor, "b n 4"]) -> Float[Tensor, "b n 4"]:
    """Perspective-correct weights of the neighbours on the surface of the nearest one.

    On a plane, any quantity affine in 3D position, divided by depth, is affine in pixel coordinates.
    """
    sound = depth.isfinite() & (depth > 1e-6)
    inverse = torch.where(sound, 1 / depth.clamp_min(1e-6), torch.zeros_like(depth))
    nearest = shares.argmax(-1, keepdim=True)
    near = inverse.gather(-1, nearest)
    weights = shares * inverse * ((inverse - near).abs() <= EDGE * near)
    total = weights.sum(-1, keepdim=True)
    alone = torch.zeros_like(shares).scatter(-1, nearest, 1)
    return torch.where(total > 0, weights / total.clamp_min(1e-12), alone)

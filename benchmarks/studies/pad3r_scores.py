"""Figures of the study of PAD3R: a fitted scene beside the truth.

One camera does not tell how large an object is, and the object's file has another surface: a scene is compared after
the one rotation, shift and scale that fit all its cameras best. Nor does it tell an object that turns from a camera
that turns the other way: a scene's cameras carry the rigid motion that fits all points of the object best
(``model.deformation.anchored``), so the true ones do too (`still`), and held-out cameras stand still before the object
so described. The same in the world of the videos, in which the object itself turns, is ``…_in_world``.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import cast

import roma
import torch
from jaxtyping import Float
from torch import Tensor

from benchmarks.studies import pad3r_clips as clips
from four_d import fields
from four_d.geometry import Similarity, invert_pose, project, quaternion_product, rigid_part
from four_d.rendering import contributors, render
from four_d.rendering.scene import means_at
from four_d.scene import DeformableScene
from four_d.types import Cameras, Gaussians, map_tensors


def align(truth: Float[Tensor, "f 4 4"], found: Float[Tensor, "f 4 4"]) -> Similarity:
    """Similarity from a scene's object coordinates to the video's, by its cameras.

    The scale is that of distances from the object's middle: cameras that hardly move tell none by their places.
    """
    product = (truth[:, :3, :3] @ found[:, :3, :3].mT).sum(0)
    rotation = cast(Tensor, roma.special_procrustes(product)).double()
    scale = float((truth[:, :3, 3].norm(dim=-1) / found[:, :3, 3].norm(dim=-1)).median())
    shift = (truth[:, :3, 3].double() - scale * found[:, :3, 3].double() @ rotation.mT).mean(0)
    return Similarity(scale=scale, rotation=rotation, shift=shift)


def still(gaussians: Gaussians) -> tuple[Gaussians, Float[Tensor, "t 4 4"]]:
    """Take the rigid motion of all points together out of moving, unbatched Gaussians.

    Returns them, and before_from_still at each offset time: the motion that brings the points at rest nearest to their
    places, in least squares.
    """
    assert gaussians.offsets is not None
    assert gaussians.turns is not None
    rest, places = gaussians.means, gaussians.means + gaussians.offsets
    motion = rigid_part(rest, places)
    rotation = motion[:, :3, :3]
    back = roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(rotation.mT))[:, None]
    offsets = (places - motion[:, None, :3, 3]) @ rotation - rest
    return replace(gaussians, offsets=offsets, turns=quaternion_product(back, gaussians.turns)), motion


def as_is(gaussians: Gaussians) -> tuple[Gaussians, Float[Tensor, "t 4 4"]]:
    """Leave the motion with the Gaussians, where `still` leaves it with the cameras."""
    assert gaussians.offsets is not None
    return gaussians, torch.eye(4).to(gaussians.means).expand(len(gaussians.offsets), 4, 4)


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The truth and a fitted scene, both in the truth's coordinates and unit."""

    truth: Callable[[Float[Tensor, "t"]], Gaussians]
    """Moving Gaussians, batched, at times of the clip."""
    found: Callable[[Float[Tensor, "t"]], Gaussians]
    shown: Float[Tensor, "f 4 4"]
    """True cameras of the video's frames."""
    seen: Float[Tensor, "f 4 4"]
    """The scene's cameras."""
    radius: float
    """Length of the scene's unit."""


def compare(scene: DeformableScene, name: str, coverage: int, *, in_world: bool) -> Compared:
    """Bring a scene to the truth, as seen from the object or in the world in which the object turns."""
    thing, described = clips.THINGS[name](), as_is if in_world else still
    frames = torch.arange(clips.FRAMES)

    def true_at(times: Float[Tensor, "t"]) -> tuple[Gaussians, Float[Tensor, "t 4 4"]]:
        return described(fields.unstack(clips.at_times(thing, times), 0))

    def found_at(times: Float[Tensor, "t"]) -> tuple[Gaussians, Float[Tensor, "t 4 4"]]:
        # a folder of frames has a rate of its own
        there = scene.deformation.deform(scene.gaussians(), times * clips.RATE * (scene.times[1] - scene.times[0]))
        return described(replace(there, offset_times=times))

    times = frames / clips.RATE
    shown = invert_pose(true_at(times)[1]) @ clips.path(coverage, clips.seed_of(name))
    seen = invert_pose(found_at(times)[1]) @ scene.cameras(frames)
    placed = align(shown, seen)
    return Compared(
        truth=lambda times: fields.stack([true_at(times)[0]]),
        found=lambda times: fields.stack([fields.move(found_at(times)[0], placed)]),
        shown=shown,
        seen=placed.poses(seen),
        radius=placed.scale,
    )


@torch.no_grad()
def scores(scene: DeformableScene, name: str, coverage: int, scale: float) -> dict[str, float]:
    """Figures of a fitted scene; lengths in the object's radii, which are ``scale``."""
    times = torch.arange(clips.FRAMES) / clips.RATE
    values: dict[str, float] = {}
    for in_world, suffix in ((False, ""), (True, "_in_world")):
        both = compare(scene, name, coverage, in_world=in_world)
        values |= {
            f"psnr{suffix}": held_out(both),
            f"pose_error_deg{suffix}": pose_error(both),
            f"track_error{suffix}": track_error(both, scene, times) / scale,
            f"chamfer{suffix}": chamfer(both, times[:: clips.FRAMES // 5]) / scale,
        }
    return values


def pose_error(both: Compared) -> float:
    """Mean angle of the cameras' rotations in degrees."""
    angles = roma.rotmat_geodesic_distance(both.seen[:, :3, :3], both.shown[:, :3, :3])
    return float(torch.rad2deg(angles).mean())


def held_out(both: Compared) -> float:
    """PSNR over black at cameras and times that the video does not have."""
    values: list[float] = []
    for turn in clips.HELD_OUT:
        truth, found = held_out_pictures(both, turn)
        errors = (truth - found).square().flatten(1).mean(-1)
        values += (-10 * errors.clamp_min(1e-10).log10()).tolist()
    return statistics.fmean(values)


def held_out_pictures(
    both: Compared, turn: float
) -> tuple[Float[Tensor, "moments 3 h w"], Float[Tensor, "moments 3 h w"]]:
    """Pictures of the truth and of the scene over black, from ``turn`` degrees beside the video's middle camera."""
    middle = both.shown[len(both.shown) // 2, :3, 3]
    azimuth = float(torch.rad2deg(torch.atan2(middle[0], -middle[2])))
    moments = (torch.linspace(0.05, 0.95, clips.MOMENTS) * (clips.FRAMES - 1)).floor().add(0.5) / clips.RATE
    shown = clips.cameras(clips.camera(azimuth + turn, 10).repeat(len(moments), 1, 1))
    size = (clips.SIZE, clips.SIZE)
    truth, found = (
        render(each, shown, moments[None], size).colour[0].clamp(0, 1)
        for each in (both.truth(moments), both.found(moments))
    )
    return truth, found


def track_error(both: Compared, scene: DeformableScene, times: Float[Tensor, "t"]) -> float:
    """Mean distance over all frames between true points and those that the scene carries on from their first pixels."""
    exact, shown = both.truth(times), clips.cameras(both.shown)
    first = map_tensors(shown, lambda tensor: tensor[:, :1])
    every = means_at(exact, times[None])[0][:, ::16]
    pixels, z = project(every[:1], fields.unstack(first, 0))
    depth = render(exact, first, times[None, :1], (clips.SIZE, clips.SIZE)).depth[0, 0]
    column, row = pixels[0].long().clamp(0, clips.SIZE - 1).unbind(-1)
    seen = z[0] < depth[row, column] + 0.06
    moved = both.found(times)
    # by its own camera and lens: what the scene shows at that pixel
    own = Cameras(world_from_camera=both.seen[None, :1], intrinsics=scene.intrinsics[None, :1])
    found = contributors(moved, own, times[None, :1], pixels[:, seen][None], 8, size=(clips.SIZE, clips.SIZE))
    shares, members = found.weights[0, 0], found.indices[0, 0].clamp_min(0)
    covered = shares.sum(-1) > 0.1
    shares = shares / shares.sum(-1, keepdim=True).clamp_min(0.1)
    carried = means_at(moved, times[None])[0][:, members]
    distance = ((carried * shares[..., None]).sum(2) - every[:, seen]).norm(dim=-1)
    # a point that the scene does not show is off by its radius
    return float(torch.where(covered, distance, both.radius).mean())


def chamfer(both: Compared, times: Float[Tensor, "t"]) -> float:
    """Mean of the distances of each surface's points from the other's nearest."""
    ours, theirs = means_at(both.found(times), times[None])[0], means_at(both.truth(times), times[None])[0][:, ::2]
    pairs = [torch.cdist(a, b) for a, b in zip(ours, theirs, strict=True)]
    return statistics.fmean(float(each.amin(0).mean() + each.amin(1).mean()) / 2 for each in pairs)

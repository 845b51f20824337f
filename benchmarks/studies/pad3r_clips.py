"""Videos of the study of PAD3R: articulated and soft objects of Gaussians, seen over a given range of azimuth.

Each folder has what ``four-d fit`` takes: frames, masks, an object's file, tracks. The object's file is not the
video's: its surface is displaced, its colours are changed, and it has fewer Gaussians. Tracks are true ones with noise,
wrong entries and dropouts. The frames are made by this package's renderer, over a picture that is not.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import roma
import torch
from jaxtyping import Float
from PIL import Image
from torch import Tensor
from torch.nn import functional

from four_d import fields
from four_d.formats.splats import write_ply
from four_d.geometry import identity_quaternion, make_pose, project
from four_d.rendering import render
from four_d.rendering.harmonics import constant
from four_d.rendering.scene import means_at
from four_d.types import Cameras, Gaussians

FRAMES, SIZE, FOCAL, RATE = 40, 96, 144.0, 12.0
"""Number and side of the frames, focal length in pixels, frames per second."""
TRUE, GIVEN = 8000, 3000
"""Gaussians of the video's object and of the object's file."""
HELD_OUT = (-60.0, 60.0, 120.0, 180.0)
"""Azimuths in degrees, from the middle of the video's, at which held-out pictures are taken."""
MOMENTS = 8
"""Times of held-out pictures, between those of the frames."""
TRACKS, NOISE, DROPPED, WRONG = 600, 0.5, 0.2, 0.05
"""Number of tracks; their noise in pixels; shares of their entries that are missing, and that are wrong."""


@dataclass(frozen=True, kw_only=True)
class Part:
    """A capsule that turns about a joint of its parent."""

    start: tuple[float, float, float]
    """The joint, at rest."""
    end: tuple[float, float, float]
    radius: float
    colour: tuple[float, float, float]
    parent: int | None = None
    axis: tuple[float, float, float] = (0.0, 0.0, 1.0)
    swing: float = 0.0
    """Largest angle, radians."""
    phase: float = 0.0
    pace: float = 1.0
    """Swings a second."""


def limbs(hip: tuple[float, float, float], colour: tuple[float, float, float], phase: float, first: int) -> list[Part]:
    """A leg of two parts."""
    x, y, z = hip
    knee, foot = (x + 0.02, y + 0.3, z), (x - 0.02, y + 0.58, z)
    return [
        Part(start=hip, end=knee, radius=0.08, colour=colour, parent=0, swing=0.6, phase=phase, pace=1.2),
        Part(start=knee, end=foot, radius=0.06, colour=(1, 1, 1), parent=first, swing=0.5, phase=phase + 1, pace=1.2),
    ]


def dog() -> list[Part]:
    """Four legs, head and tail."""
    parts = [Part(start=(-0.5, 0, 0), end=(0.5, 0, 0), radius=0.2, colour=(0.8, 0.5, 0.2), swing=0.08, pace=1.2)]
    for x, z, colour, phase in (
        (0.42, 0.13, (0.9, 0.1, 0.1), 0.0),
        (0.42, -0.13, (0.1, 0.2, 0.9), math.pi),
        (-0.42, 0.13, (0.1, 0.8, 0.2), math.pi),
        (-0.42, -0.13, (0.8, 0.8, 0.1), 0.0),
    ):
        parts += limbs((x, 0.12, z), colour, phase, len(parts))
    neck = Part(start=(0.5, -0.05, 0), end=(0.68, -0.35, 0), radius=0.1, colour=(0.5, 0.3, 0.1), parent=0, swing=0.3)
    head = Part(
        start=(0.68, -0.35, 0), end=(0.9, -0.32, 0), radius=0.11, colour=(0.1, 0.1, 0.1), parent=len(parts), swing=0.2
    )
    tail = Part(
        start=(-0.6, -0.1, 0),
        end=(-0.95, -0.3, 0),
        radius=0.05,
        colour=(0.9, 0.4, 0.8),
        parent=0,
        axis=(0, 1, 0),
        swing=0.7,
        pace=1.5,
    )
    return [*parts, neck, head, tail]


def walker() -> list[Part]:
    """Two legs, two arms and a head."""
    parts = [Part(start=(0, 0.1, 0), end=(0, -0.4, 0), radius=0.18, colour=(0.2, 0.5, 0.9), axis=(0, 1, 0), swing=0.3)]
    for z, colour, phase in ((0.1, (0.9, 0.2, 0.2), 0.0), (-0.1, (0.2, 0.8, 0.3), math.pi)):
        parts += limbs((0, 0.2, z), colour, phase, len(parts))
    for z, colour, phase in ((0.25, (0.9, 0.8, 0.2), math.pi), (-0.25, (0.7, 0.3, 0.9), 0.0)):
        first = len(parts)
        parts += [
            Part(
                start=(0, -0.38, z),
                end=(0, -0.1, 1.3 * z),
                radius=0.07,
                colour=colour,
                parent=0,
                swing=0.8,
                phase=phase,
            ),
            Part(
                start=(0, -0.1, 1.3 * z),
                end=(0.1, 0.15, 1.4 * z),
                radius=0.06,
                colour=(0.9, 0.7, 0.6),
                parent=first,
                swing=0.5,
                phase=phase,
            ),
        ]
    return [
        *parts,
        Part(start=(0, -0.55, 0), end=(0.05, -0.75, 0), radius=0.14, colour=(0.9, 0.7, 0.6), parent=0, swing=0.2),
    ]


def bird() -> list[Part]:
    """A body with wings of two parts."""
    parts = [Part(start=(-0.35, 0, 0), end=(0.4, -0.05, 0), radius=0.16, colour=(0.3, 0.3, 0.8), swing=0.1)]
    for side, colour in ((1, (0.9, 0.3, 0.1)), (-1, (0.2, 0.8, 0.7))):
        first = len(parts)
        parts += [
            Part(
                start=(0.05, 0, 0.12 * side),
                end=(0, -0.05, 0.5 * side),
                radius=0.09,
                colour=colour,
                parent=0,
                axis=(float(side), 0, 0),
                swing=0.6,
            ),
            Part(
                start=(0, -0.05, 0.5 * side),
                end=(-0.1, 0, 0.9 * side),
                radius=0.06,
                colour=(1, 1, 0.6),
                parent=first,
                axis=(float(side), 0, 0),
                swing=0.5,
                phase=0.8,
            ),
        ]
    head = Part(
        start=(0.45, -0.1, 0),
        end=(0.65, -0.12, 0),
        radius=0.1,
        colour=(0.9, 0.8, 0.1),
        parent=0,
        axis=(0, 1, 0),
        swing=0.4,
    )
    return [*parts, head]


def eel() -> list[Part]:
    """A chain of short parts that waves."""
    count = 9
    places = [(-0.9 + 1.8 * index / count, 0.0, 0.0) for index in range(count + 1)]
    return [
        Part(
            start=places[index],
            end=places[index + 1],
            radius=0.16 - 0.008 * index,
            colour=(
                0.5 + 0.4 * math.sin(2.0 * index),
                0.5 + 0.4 * math.sin(2.0 * index + 2),
                0.5 + 0.4 * math.sin(1.1 * index + 4),
            ),
            parent=None if index == 0 else index - 1,
            axis=(0, 1, 0) if index % 2 else (0, 0, 1),
            swing=0.25,
            phase=0.7 * index,
        )
        for index in range(count)
    ]


def on_capsule(part: Part, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    """Points on a capsule and its colours there: its own, in bands."""
    start, end = torch.tensor(part.start).float(), torch.tensor(part.end).float()
    along = torch.rand(count, 1, generator=generator)
    out = functional.normalize(torch.randn(count, 3, generator=generator), dim=-1)
    points = start + along * (end - start) + part.radius * out
    # what lies inside the capsule is pushed out to its surface
    axis = functional.normalize(end - start, dim=0)
    length = ((points - start) @ axis).clamp(0, float((end - start).norm()))[:, None]
    middle = start + length * axis
    points = middle + part.radius * functional.normalize(points - middle, dim=-1)
    bands = 0.12 * torch.sin(14 * points + torch.tensor([0.0, 2.0, 4.0]))
    return points, (torch.tensor(part.colour).float() + bands).clamp(0.02, 0.98)


@dataclass(frozen=True, kw_only=True)
class Thing:
    """Gaussians at rest, and where they are at times."""

    gaussians: Gaussians
    moved: Callable[[Tensor], tuple[Tensor, Tensor]]
    """Times t → places t n 3 and turns t n 4."""


def jointed(parts: list[Part], seed: int) -> Thing:
    """An object of capsules, of radius about 1."""
    generator = torch.Generator().manual_seed(seed)
    sizes = torch.tensor([math.dist(part.start, part.end) * part.radius + 2 * part.radius**2 for part in parts])
    counts = (TRUE * sizes / sizes.sum()).round().long().tolist()
    each = [on_capsule(part, count, generator) for part, count in zip(parts, counts, strict=True)]
    owner = torch.cat([torch.full((len(points),), index) for index, (points, _) in enumerate(each)])
    points, colours = (torch.cat(values) for values in zip(*each, strict=True))

    def moved(times: Tensor) -> tuple[Tensor, Tensor]:
        rotations, shifts = list[Tensor](), list[Tensor]()
        for part in parts:
            angle = part.swing * torch.sin(2 * math.pi * part.pace * times + part.phase)
            own = roma.rotvec_to_rotmat(angle[:, None] * functional.normalize(torch.tensor(part.axis).float(), dim=0))
            joint = torch.tensor(part.start).float()
            shift = joint - own @ joint
            if part.parent is not None:  # x ↦ R_parent (R x + s) + s_parent
                above, before = rotations[part.parent], shifts[part.parent]
                own, shift = above @ own, (above @ shift[..., None])[..., 0] + before
            rotations.append(own)
            shifts.append(shift)
        turn, shift = torch.stack(rotations, 1)[:, owner], torch.stack(shifts, 1)[:, owner]
        return (turn @ points[..., None])[..., 0] + shift, roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(turn))

    return Thing(gaussians=_gaussians(points, colours, 0.028), moved=moved)


def soft(seed: int) -> Thing:
    """A soft block that bends and twists without joints."""
    generator = torch.Generator().manual_seed(seed)
    out = functional.normalize(torch.randn(TRUE, 3, generator=generator), dim=-1)
    points = out * torch.tensor([0.95, 0.4, 0.3])
    colours = 0.5 + 0.45 * torch.sin(5 * points + torch.tensor([0.0, 2.1, 4.2]))

    def moved(times: Tensor) -> tuple[Tensor, Tensor]:
        twist = 0.7 * torch.sin(2 * math.pi * 0.8 * times)[:, None] * points[:, 0]
        bend = 0.6 * torch.sin(2 * math.pi * 0.5 * times + 1)[:, None] * points[:, 0]
        zero = torch.zeros_like(twist)
        turn = roma.rotvec_to_rotmat(torch.stack([zero, zero, bend], -1)) @ roma.rotvec_to_rotmat(
            torch.stack([twist, zero, zero], -1)
        )
        places = (turn @ (points * torch.tensor([0.0, 1, 1]))[..., None])[..., 0]
        x = torch.stack([points[:, 0] * bend.cos(), points[:, 0] * bend.sin(), zero], -1)
        return places + x, roma.quat_xyzw_to_wxyz(roma.rotmat_to_unitquat(turn))

    return Thing(gaussians=_gaussians(points, colours, 0.035), moved=moved)


def _gaussians(points: Tensor, colours: Tensor, scale: float) -> Gaussians:
    return Gaussians(
        means=points,
        quats=identity_quaternion(points).repeat(len(points), 1),
        scales=torch.full_like(points, scale),
        opacities=torch.full_like(points[:, 0], 0.9),
        harmonics=constant(colours),
    )


THINGS: dict[str, Callable[[], Thing]] = {
    "dog": lambda: jointed(dog(), 1),
    "walker": lambda: jointed(walker(), 2),
    "bird": lambda: jointed(bird(), 3),
    "eel": lambda: jointed(eel(), 4),
    "soft": lambda: soft(5),
}


def seed_of(name: str) -> int:
    """Seed of an object's camera paths, file, background and tracks."""
    return 100 + list(THINGS).index(name)


def at_times(thing: Thing, times: Float[Tensor, "t"]) -> Gaussians:
    """The object's Gaussians with their offsets and turns at times, batched."""
    places, turns = thing.moved(times)
    own = thing.gaussians
    return fields.stack([replace(own, offsets=places - own.means, offset_times=times, turns=turns)])


def camera(azimuth: float, elevation: float, distance: float = 3.4) -> Float[Tensor, "4 4"]:
    """object_from_camera of a camera that looks at the middle; degrees."""
    a, e = math.radians(azimuth), math.radians(elevation)
    place = distance * torch.tensor([math.cos(e) * math.sin(a), -math.sin(e), -math.cos(e) * math.cos(a)])
    forward = -functional.normalize(place, dim=0)
    right = functional.normalize(torch.linalg.cross(torch.tensor([0.0, 1, 0]), forward), dim=0)
    return make_pose(torch.stack([right, torch.linalg.cross(forward, right), forward], dim=-1), place)


def cameras(poses: Float[Tensor, "f 4 4"]) -> Cameras:
    """Batched cameras of the study's lens."""
    lens = torch.tensor([[FOCAL, 0, SIZE / 2], [0, FOCAL, SIZE / 2], [0, 0, 1]])
    return Cameras(world_from_camera=poses[None], intrinsics=lens.expand(1, len(poses), 3, 3))


def path(coverage: float, seed: int) -> Float[Tensor, "f 4 4"]:
    """A hand-held camera that goes round by so many degrees of azimuth."""
    generator = torch.Generator().manual_seed(seed)
    sway = torch.randn(3, 4, generator=generator)
    moments = torch.arange(FRAMES) / FRAMES
    waves = torch.stack([torch.sin(2 * math.pi * (k + 1) * moments) / (k + 1) for k in range(4)])
    azimuth, elevation, distance = torch.tensor([1.0, 1.5, 0.03])[:, None] * (sway @ waves)
    start = 20.0
    return torch.stack(
        [
            camera(start + coverage * float(m - 0.5) + float(a), 12 + float(e), 3.4 * (1 + float(d)))
            for m, a, e, d in zip(moments, azimuth, elevation, distance, strict=True)
        ]
    )


def perturbed(gaussians: Gaussians, seed: int) -> Gaussians:
    """The object as an image-to-3D model might have it: fewer Gaussians, a displaced surface, other colours."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(gaussians.means), generator=generator)[:GIVEN]
    few = fields.take(gaussians, "n", chosen)
    waves, phases = 4 * torch.randn(3, 6, generator=generator), 2 * math.pi * torch.rand(6, 3, generator=generator)
    smooth = torch.sin((few.means @ waves)[..., None] + phases).sum(1) / 6
    tint = 0.1 * torch.randn(3, generator=generator)
    wider = few.scales * (TRUE / GIVEN) ** 0.5
    return replace(
        few,
        means=few.means + 0.08 * smooth,
        scales=wider,
        harmonics=few.harmonics + constant(0.5 + tint + 0.15 * smooth),
    )


def tracked(thing: Thing, shown: Cameras, times: Tensor, depth: Tensor, seed: int) -> tuple[Tensor, Tensor]:
    """Pixels f n 2 and visibility f n of true tracks with noise, wrong stretches and dropouts."""
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(thing.gaussians.means), generator=generator)[:TRACKS]
    places = means_at(at_times(thing, times), times[None])[0][:, chosen]
    pixels, z = project(places, fields.unstack(shown, 0))
    column, row = pixels.long().clamp(0, SIZE - 1).unbind(-1)
    front = depth[torch.arange(FRAMES)[:, None], row, column]
    seen = (z < front + 0.06) & (pixels > 0).all(-1) & (pixels < SIZE).all(-1)
    seen &= torch.rand(seen.shape, generator=generator) > DROPPED
    noisy = pixels + NOISE * torch.randn(pixels.shape, generator=generator)
    wrong = torch.rand(seen.shape, generator=generator) < WRONG
    noisy[wrong] += 8 * torch.randn(int(wrong.sum()), 2, generator=generator)
    return noisy, seen


def make(name: str, coverage: float, out: Path) -> None:
    """Write one video's folder. Equal arguments give equal files."""
    thing, seed = THINGS[name](), seed_of(name)
    times, poses = torch.arange(FRAMES) / RATE, path(coverage, seed)
    shown = cameras(poses)
    with torch.no_grad():
        views = render(at_times(thing, times), shown, times[None], (SIZE, SIZE))
    generator = torch.Generator().manual_seed(seed)
    behind = functional.interpolate(torch.rand(1, 3, 8, 8, generator=generator), (SIZE, SIZE), mode="bilinear")[0]
    pictures = (views.colour[0] + (1 - views.alpha[0, :, None]) * behind).clamp(0, 1)
    for folder, images in (
        ("frames", pictures),
        ("masks", (views.alpha[0, :, None] > 0.5).float().expand(-1, 3, -1, -1)),
    ):
        (out / folder).mkdir(parents=True, exist_ok=True)
        for index, image in enumerate(images):
            Image.fromarray((image.permute(1, 2, 0) * 255).round().byte().numpy()).save(
                out / folder / f"{index:03d}.png"
            )
    write_ply(out / "object.ply", perturbed(thing.gaussians, seed))
    pixels, seen = tracked(thing, shown, times, views.depth[0], seed)
    np.savez(out / "tracks.npz", tracks=pixels.numpy(), visibility=seen.numpy())

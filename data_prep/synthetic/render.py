"""Ray casting and shading of a stage, one time at a time: correspondence and radiance."""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.raycast import EmbreeRays, RayScene
from data_prep.synthetic.stage import Light, Stage

Array = NDArray[np.float64]
Floats = NDArray[np.float32]
SHADOW_LIFT_M = np.float32(0.002)
"""Distance of a shadow ray's origin from its surface, so that the surface does not shadow itself."""
FOG_LIGHT = 1.6
"""Radiance of thick fog, in mean ambient light."""


@dataclass(frozen=True, kw_only=True)
class Moment:
    """The stage at one time."""

    stage: Stage
    vertices: Floats
    normals: Floats
    rays: RayScene
    lights: list[Light]
    """Lights of the stage where they are at the time."""
    fog: float = 0.0
    """Fraction of light that one metre of air takes, to first order."""


@dataclass(frozen=True, kw_only=True)
class Hits:
    """First hits of n rays of one camera."""

    faces: NDArray[np.int32]
    """n; −1 if nothing was hit."""
    weights: Array
    """n 3: barycentric coordinates ≥ 0 that sum to 1; 0 if nothing was hit."""
    depth: Array
    """n: z-depth; 0 if nothing was hit."""


def make_moment(stage: Stage, time: int, fog: float = 0.0) -> Moment:
    """Pose the stage at time index ``time``."""
    vertices = stage.vertices_at(time)
    rays = EmbreeRays(vertices, stage.triangles)
    lights = [light if light.path is None else replace(light, position=light.at(time)) for light in stage.lights]
    return Moment(stage=stage, vertices=vertices, normals=stage.normals_at(time), rays=rays, lights=lights, fog=fog)


def ray_directions(world_from_camera: Array, intrinsics: Array, pixels: Array) -> Array:
    """World directions (n 3) through pixels (n 2, corner origin), with z = 1 in camera axes.

    A direction times a z-depth is the offset to the point. Written out, since the last bits of a matrix product depend
    on the number of BLAS threads.
    """
    x = (pixels[:, 0] - intrinsics[0, 2]) / intrinsics[0, 0]
    y = (pixels[:, 1] - intrinsics[1, 2]) / intrinsics[1, 1]
    right, down, forward = world_from_camera[:3, :3].T
    return x[:, None] * right + y[:, None] * down + forward


def pixel_grid(width: int, height: int) -> Array:
    """Pixel centres (h·w 2)."""
    y, x = np.mgrid[:height, :width] + 0.5
    return np.stack([x, y], -1).reshape(-1, 2)


class Lens:
    """Ray caster of one camera at one time, in double precision.

    For a camera at o and a face a b c, the weights of a direction d are proportional to d·(b−o)×(c−o) and its two
    rotations, so that one table per camera serves all rays.
    """

    def __init__(self, moment: Moment, position: Array) -> None:
        self._moment, self._position = moment, position
        corners = moment.vertices.astype(np.float64)[moment.stage.triangles] - position
        a, b, c = corners[:, 0], corners[:, 1], corners[:, 2]
        self._edges = np.stack([np.cross(b, c), np.cross(c, a), np.cross(a, b)], 1)
        self._volumes = np.einsum("mi,mi->m", a, self._edges[:, 0])

    def hits(self, directions: Array) -> Hits:
        """First hits of the rays (n 3, from `ray_directions`)."""
        origins = np.broadcast_to(self._position.astype(np.float32), directions.shape)
        faces = self._moment.rays.hit(np.ascontiguousarray(origins), directions.astype(np.float32))
        weights = np.einsum("nki,ni->nk", self._edges[faces], directions)
        total = weights.sum(-1)
        seen = (faces >= 0) & (np.abs(total) > 1e-15)
        safe = np.where(seen, total, 1.0)
        depth = np.where(seen, self._volumes[faces] / safe, 0.0)
        weights = np.clip(weights / safe[:, None], 0, 1) * seen[:, None]
        weights /= np.where(seen, weights.sum(-1), 1.0)[:, None]
        return Hits(faces=np.where(seen, faces, -1).astype(np.int32), weights=weights, depth=depth)


def shade(moment: Moment, position: Array, directions: Array, hits: Hits, pixel_angle: float) -> Floats:
    """Linear radiance (n 3). ``pixel_angle``: width of a pixel at z-depth 1, which sets the texture's mip level."""
    stage, missed = moment.stage, np.flatnonzero(hits.faces < 0)
    radiance = np.empty(directions.shape, np.float32)
    radiance[missed] = sky_colour(stage, directions[missed])
    seen = np.flatnonzero(hits.faces >= 0)
    if not len(seen):
        return radiance
    faces = hits.faces[seen]
    weights, ray = hits.weights[seen].astype(np.float32), directions[seen].astype(np.float32)
    depth = hits.depth[seen].astype(np.float32)
    points: Floats = (position.astype(np.float32) + ray * depth[:, None]).astype(np.float32)
    view = -ray / length(ray)[:, None]
    normal = np.einsum("nk,nki->ni", weights, moment.normals[faces])
    normal /= np.maximum(length(normal), 1e-9)[:, None]
    if stage.two_sided is not None:
        normal[_from_behind(moment, stage.two_sided, faces, view)] *= -1
    slant = np.maximum(np.abs(np.einsum("ni,ni->n", normal, view)), 0.2)
    uv = np.einsum("nk,nki->ni", weights, stage.uv[faces])
    footprint = depth * np.float32(pixel_angle) / np.sqrt(slant) * stage.uv_density[faces]
    albedo = stage.atlas.sample(stage.tiles[faces], uv, footprint)
    up = (normal[:, 2:] + 1) / 2
    diffuse = stage.sky[1] + up * (stage.sky[0] - stage.sky[1])
    colours = np.zeros_like(albedo)
    for light in moment.lights:
        lit, incoming, direction = _light(moment, light, points, normal)
        diffuse[lit] += incoming
        gloss = stage.gloss[faces[lit]]
        shiny = np.flatnonzero(gloss)
        at = lit[shiny]
        half: Floats = (direction[shiny] + view[at]).astype(np.float32, copy=False)
        half /= np.maximum(length(half), 1e-9)[:, None]
        lobe = np.maximum(np.einsum("ni,ni->n", half, normal[at]), 0) ** stage.shine[faces[at]]
        colours[at] += incoming[shiny] * (gloss[shiny] * lobe)[:, None]
    radiance[seen] = colours + albedo * diffuse
    return through_fog(moment, radiance, seen, depth * length(ray)) if moment.fog else radiance


def _from_behind(
    moment: Moment, two_sided: NDArray[np.bool_], faces: NDArray[np.int32], view: Floats
) -> NDArray[np.int64]:
    """Indices of the points on two-sided ``faces`` (n) of which the back is seen; ``view`` (n 3) points to the eye."""
    open_ones = np.flatnonzero(two_sided[faces])
    a, b, c = np.moveaxis(moment.vertices[moment.stage.triangles[faces[open_ones]]], 1, 0)
    return open_ones[np.einsum("ni,ni->n", np.cross(b - a, c - a), view[open_ones]) < 0]


def through_fog(moment: Moment, radiance: Floats, seen: NDArray[np.int64], distance: Floats) -> Floats:
    """Radiance (n 3) through air that takes light and scatters as much of the sky's; rays that hit nothing see only it.

    ``distance`` is that of the rays ``seen``.
    """
    passed = np.zeros(len(radiance), np.float32)
    passed[seen] = np.exp(np.float32(-moment.fog) * distance)
    scattered = moment.stage.sky.mean(0) * np.float32(FOG_LIGHT)
    return (radiance * passed[:, None] + scattered * (1 - passed[:, None])).astype(np.float32)


def length(vectors: Floats) -> Floats:
    """Length of each vector (n 3); faster than NumPy's norm for vectors this short."""
    return np.sqrt(np.einsum("ni,ni->n", vectors, vectors))


def _light(moment: Moment, light: Light, points: Floats, normal: Floats) -> tuple[NDArray[np.int64], Floats, Floats]:
    """Indices of the points (n 3) that a light reaches, the irradiance it adds there, and unit directions to it."""
    to_light: Floats = light.position.astype(np.float32) - points  # pyright: ignore[reportAssignmentType]
    facing = np.einsum("ni,ni->n", normal, to_light)
    lit = np.flatnonzero(facing > 0)
    towards = to_light[lit]
    raised: Floats = (points[lit] + normal[lit] * SHADOW_LIFT_M).astype(np.float32, copy=False)
    free = ~moment.rays.blocked(raised, light.position.astype(np.float32) - raised)
    lit, towards = lit[free], towards[free]
    distance = length(towards)
    reach2 = np.float32(light.reach**2)
    strength = 2 * reach2 / (distance**2 + reach2) * facing[lit] / distance
    return lit, strength[:, None] * light.colour, towards / distance[:, None]


def sky_colour(stage: Stage, directions: Array) -> Floats:
    """Sky radiance (n 3) of rays that hit nothing, a gradient from horizon to zenith."""
    rise = directions[:, 2:] / np.linalg.norm(directions, axis=-1, keepdims=True)
    blend = np.clip(rise, 0, 1).astype(np.float32) ** np.float32(0.6)
    return (stage.sky[0] * (1.6 - 0.8 * blend)).astype(np.float32)

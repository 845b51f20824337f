"""Creatures and shapes of the generator as objects at rest, from which a video of them can be fitted."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from data_prep.synthetic.creatures.animals import make_animal
from data_prep.synthetic.creatures.chains import make_chain
from data_prep.synthetic.creatures.people import make_person
from data_prep.synthetic.creatures.skeleton import Creature, limb_mesh
from data_prep.synthetic.meshes import HELD_OUT_SHAPES, TRAIN_SHAPES, Mesh, joined, moved
from four_d.errors import UserError
from four_d.objects import CanonicalObject, of_triangles
from four_d.objects.triangles import Paint, Triangles

Random = np.random.Generator

CREATURES: dict[str, Callable[[Random], Creature]] = {
    "animal": partial(make_animal, held_out=False),
    "person": partial(make_person, held_out=False),
    "chain": partial(make_chain, held_out=False, rooted=False),
}
SHAPES = {**TRAIN_SHAPES, **HELD_OUT_SHAPES}
KINDS = (*CREATURES, *SHAPES)
BANDS = 0.15
"""Amplitude of the bands of colour, by which one place can be told from another."""


@dataclass(frozen=True, kw_only=True)
class SyntheticObject:
    """One creature or shape, by its kind and seed (an `objects.ObjectProvider`)."""

    kind: str
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise UserError(f"synthetic object {self.kind!r}; choose one of {', '.join(KINDS)}")

    def __str__(self) -> str:
        return f"synthetic:{self.kind}@{self.seed}"

    def provide(self, gaussians: int | None = None) -> CanonicalObject:
        """Make it: every part of its own colour, in bands."""
        rng = np.random.default_rng(self.seed)
        made = CREATURES[self.kind](rng) if self.kind in CREATURES else None
        parts = [SHAPES[self.kind](rng)] if made is None else at_rest(made)
        mesh = joined(parts)
        tints = rng.uniform(0.2, 0.8, (len(parts), 3))
        own = np.repeat(tints, [len(part.triangles) for part in parts], axis=0)
        corners = mesh.vertices[mesh.triangles]
        size = np.ptp(mesh.vertices, axis=0).max()
        waves = np.sin(corners @ rng.normal(0, 12 / size, (3, 3)) + rng.uniform(0, 2 * np.pi, 3))
        colours = np.clip(own[:, None] + BANDS * waves, 0.02, 0.98)
        triangles = Triangles(
            vertices=mesh.vertices,
            faces=mesh.triangles,
            paints=(Paint(colours=colours),),
            counts=(len(mesh.triangles),),
        )
        return of_triangles(triangles, str(self), gaussians=gaussians, up="z")


def parse_synthetic(text: str) -> SyntheticObject:
    """Read KIND or KIND@SEED. UserError for another notation."""
    kind, at, seed = text.partition("@")
    if at and not seed.isdigit():
        raise UserError(f"the seed of the synthetic object {text!r} is no number; write it as animal@3")
    return SyntheticObject(kind=kind, seed=int(seed or 0))


def at_rest(creature: Creature) -> list[Mesh]:
    """Meshes of all shapes of a creature as it stands, in its axes: x forward, y left, z up."""
    origins: list[NDArray[np.float64]] = []
    found: list[Mesh] = []
    for limb in creature.limbs:
        origins.append(limb.offset + (origins[limb.parent] if limb.parent >= 0 else 0))
        found += [moved(limb_mesh(shape), 1.0, origins[-1]) for shape in limb.shapes]
    return found

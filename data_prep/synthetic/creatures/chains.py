"""Chains of links: standing on a plinth like an arm, or lying free."""

from __future__ import annotations

import numpy as np

from data_prep.synthetic.creatures.skeleton import (
    Array,
    Builder,
    Creature,
    Shape,
    Y,
    Z,
    box,
    capsule,
    hinge,
)

Random = np.random.Generator


def make_chain(rng: Random, *, held_out: bool, rooted: bool) -> Creature:
    """Chain of even capsules; held out: of boxes that become thinner towards the tip."""
    count = int(rng.integers(4, 9)) if held_out else int(rng.integers(3, 7))
    total = rng.uniform(0.9, 1.4) if rooted else rng.uniform(1.1, 1.7)
    thickness = rng.uniform(0.045, 0.065) + (0.02 if held_out else 0.0)
    taper = np.linspace(1, rng.uniform(0.4, 0.65) if held_out else 1.0, count)
    lengths = total * taper / taper.sum()
    builder = Builder()
    before: str | None = None
    direction, at = (Z, np.zeros(3)) if rooted else (-np.eye(3)[0], np.array([0, 0, thickness]))
    if rooted:
        height, side = rng.uniform(0.15, 0.4), rng.uniform(0.28, 0.4)
        builder.limb("plinth", None, np.zeros(3), (), box((0, 0, height / 2), (side, side, height), 1))
        before, at = "plinth", np.array([0, 0, height])
    for number, length in enumerate(lengths):
        name, radius = f"link_{number + 1}", thickness * taper[number]
        shape = _link(direction * length, radius, number % 2 + (2 if rooted else 0), held_out)
        bend = rng.uniform(0.9, 1.2)
        hinges = (hinge(Y if rooted else Z, -bend, bend), hinge(np.eye(3)[0] if rooted else Y, -bend, bend))
        builder.limb(name, before, at, hinges if before else (), shape)
        builder.point(f"link_{number}", name, np.zeros(3), 1.5 * radius, *([before] if before else []))
        before, at = name, direction * length
    builder.point(f"link_{count}", f"link_{count}", direction * lengths[-1], 1.5 * thickness * taper[-1])
    builder.bone(*(f"link_{number}" for number in range(count + 1)))
    return builder.build("tentacle" if held_out else "chain", rooted=rooted)


def _link(along: Array, radius: float, paint: int, boxy: bool) -> Shape:
    if not boxy:
        return capsule(np.zeros(3), along, radius, paint)
    sides = np.where(np.abs(along) > 1e-9, np.abs(along) + radius, 2 * radius)
    return box(along / 2, (float(sides[0]), float(sides[1]), float(sides[2])), paint)

"""Animals on four legs."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.creatures.skeleton import (
    Builder,
    Creature,
    Leg,
    X,
    Y,
    Z,
    capsule,
    feature,
    hinge,
)

Random = np.random.Generator
Range = tuple[float, float]
SLACK = 1.06
"""Length of a stretched leg as a multiple of the standing one."""


@dataclass(frozen=True, kw_only=True)
class Breed:
    """Ranges of an animal's measures, in metres where not said otherwise."""

    leg: Range
    """From the joint at the trunk to the floor."""
    trunk: Range
    girth: Range
    """Radius of the trunk."""
    neck: Range
    rise: Range
    """Slope of the neck, in degrees."""
    skull: Range
    """Radius of the head as a share of the girth."""
    muzzle: Range
    """Length as a share of the skull's diameter."""
    tail: Range
    tail_links: tuple[int, int]
    fall: Range
    """Slope of the tail downwards, in degrees."""
    limb: Range
    """Radius of the legs as a share of the girth."""
    bow: float = 1.0
    """Factor on the limits of neck, head and tail up and down, so that those of low animals stay off the floor."""


TRAIN_BREEDS = {
    "cat": Breed(
        leg=(0.24, 0.32),
        trunk=(0.38, 0.5),
        girth=(0.075, 0.1),
        neck=(0.1, 0.14),
        rise=(35, 60),
        skull=(0.75, 0.95),
        muzzle=(0.2, 0.4),
        tail=(0.3, 0.45),
        tail_links=(3, 4),
        fall=(5, 40),
        limb=(0.28, 0.36),
    ),
    "dog": Breed(
        leg=(0.38, 0.55),
        trunk=(0.5, 0.75),
        girth=(0.1, 0.14),
        neck=(0.18, 0.28),
        rise=(35, 65),
        skull=(0.65, 0.85),
        muzzle=(0.6, 1.0),
        tail=(0.12, 0.35),
        tail_links=(1, 3),
        fall=(5, 40),
        limb=(0.26, 0.34),
    ),
    "horse": Breed(
        leg=(0.75, 0.95),
        trunk=(0.95, 1.2),
        girth=(0.2, 0.25),
        neck=(0.45, 0.6),
        rise=(40, 60),
        skull=(0.5, 0.6),
        muzzle=(1.1, 1.5),
        tail=(0.35, 0.5),
        tail_links=(2, 3),
        fall=(5, 40),
        limb=(0.24, 0.3),
    ),
}
HELD_OUT_BREEDS = {
    "giraffe": Breed(
        leg=(1.0, 1.15),
        trunk=(0.65, 0.8),
        girth=(0.17, 0.2),
        neck=(0.75, 0.95),
        rise=(60, 72),
        skull=(0.5, 0.6),
        muzzle=(0.9, 1.2),
        tail=(0.3, 0.4),
        tail_links=(2, 2),
        fall=(5, 40),
        limb=(0.24, 0.3),
    ),
    "crocodile": Breed(
        leg=(0.2, 0.26),
        trunk=(0.8, 1.0),
        girth=(0.11, 0.14),
        neck=(0.15, 0.2),
        rise=(0, 8),
        skull=(0.7, 0.85),
        muzzle=(1.8, 2.4),
        tail=(0.7, 0.95),
        tail_links=(4, 5),
        fall=(2, 5),
        limb=(0.38, 0.46),
        bow=0.2,
    ),
}


def make_animal(rng: Random, *, held_out: bool) -> Creature:
    """Animal of a random breed: trunk, chest, neck, head, four legs of two limbs each and a tail."""
    breeds = HELD_OUT_BREEDS if held_out else TRAIN_BREEDS
    name = str(rng.choice(list(breeds)))
    breed, builder = breeds[name], Builder()
    girth, trunk = rng.uniform(*breed.girth), rng.uniform(*breed.trunk)
    leg = max(rng.uniform(*breed.leg), 0.6 * girth + 0.1)
    thick = girth * rng.uniform(*breed.limb)
    slim = girth * rng.uniform(0.82, 0.95)
    builder.limb("trunk", None, (0, 0, leg + 0.25 * girth), (), capsule((0, 0, 0), (trunk / 2, 0, 0), slim))
    spine = (hinge(Y, -0.2, 0.2), hinge(Z, -0.25, 0.25))
    builder.limb("chest", "trunk", (trunk / 2, 0, 0), spine, capsule((0.05 * trunk, 0, 0), (trunk / 2, 0, 0), girth))
    _head(rng, builder, breed, girth, trunk / 2)
    _tail(rng, builder, breed, slim)
    legs = [
        _leg(builder, side, front, leg, thick, girth if front else slim, trunk)
        for front in (True, False)
        for side in (1, -1)
    ]
    return builder.build(name, legs=legs)


def _head(rng: Random, builder: Builder, breed: Breed, girth: float, chest: float) -> None:
    rise, length = np.radians(rng.uniform(*breed.rise)), rng.uniform(*breed.neck)
    skull = girth * rng.uniform(*breed.skull)
    muzzle, thin = 2 * skull * rng.uniform(*breed.muzzle), 0.55 * skull
    start = np.array([chest + 0.25 * girth, 0, 0.45 * girth])
    along = length * np.array([np.cos(rise), 0, np.sin(rise)])
    turns = (hinge(Y, -0.5 * breed.bow, 0.7 * breed.bow), hinge(Z, -0.8, 0.8))
    builder.limb("neck", "chest", start, turns, capsule((0, 0, 0), along, 0.7 * skull))
    tip, drop = np.array([skull + muzzle, 0, -0.35 * skull]), np.array([0.3 * skull, 0, -0.35 * skull])
    eyes = [np.array([0.55 * skull, side * 0.75 * skull, 0.45 * skull]) for side in (1, -1)]
    ears = [np.array([-0.3 * skull, side * 0.6 * skull, 0.7 * skull]) for side in (1, -1)]
    builder.limb(
        "head",
        "neck",
        along,
        (hinge(Y, -0.6 * breed.bow, 0.9 * breed.bow), hinge(Z, -0.6, 0.6)),
        capsule((0, 0, 0), (0.3 * skull, 0, 0), skull),
        capsule(drop, tip - np.array([thin, 0, 0]), thin, 1),
        *(feature(eye, 0.2 * skull, 2) for eye in eyes),
        *(capsule(ear, ear * (1.1, 1.2, 1.7), 0.22 * skull, 1) for ear in ears),
    )
    builder.point("neck", "neck", np.zeros(3), 1.2 * girth, "chest")
    builder.point("head", "head", np.zeros(3), 1.3 * skull, "neck")
    builder.point("nose", "head", tip - np.array([0.3 * thin, 0, 0]), 1.2 * thin)
    for side, eye in zip(("left", "right"), eyes):
        builder.point(f"{side}_eye", "head", eye, 0.5 * skull)
        builder.bone("nose", f"{side}_eye")
    builder.bone("neck", "head", "nose")


def _tail(rng: Random, builder: Builder, breed: Breed, slim: float) -> None:
    count = int(rng.integers(breed.tail_links[0], breed.tail_links[1] + 1))
    length, fall = rng.uniform(*breed.tail) / count, np.radians(rng.uniform(*breed.fall))
    along = length * np.array([-np.cos(fall), 0, -np.sin(fall)])
    root = np.array([-0.9 * slim, 0, 0.3 * slim])
    turns = (hinge(Y, -0.6 * breed.bow, 0.6 * breed.bow), hinge(Z, -0.7, 0.7))
    previous = "root_of_tail"
    for number in range(count):
        name, radius = f"tail_{number + 1}", 0.4 * slim * (1 - 0.6 * number / count)
        before, at = (f"tail_{number}", along) if number else ("trunk", root)
        builder.limb(name, before, at, turns, capsule((0, 0, 0), along, radius, 1))
        if number == 0:
            builder.point("root_of_tail", "trunk", root, 0.8 * slim, name)
            builder.bone("neck", "root_of_tail")
        point = "tail_tip" if number == count - 1 else name
        builder.point(point, name, along, 1.5 * radius)
        builder.bone(previous, point)
        previous = point


def _leg(builder: Builder, side: int, front: bool, length: float, thick: float, girth: float, trunk: float) -> Leg:
    """Leg of AP-10K's names: shoulder, elbow and front paw, or hip, knee and back paw."""
    word = "left" if side > 0 else "right"
    end, upper, middle = ("front", "shoulder", "elbow") if front else ("back", "hip", "knee")
    body, along = ("chest", 0.42 * trunk) if front else ("trunk", 0.04 * trunk)
    hip = np.array([along, side * 0.62 * girth, -0.25 * girth])
    half = 0.5 * SLACK * (length - thick)
    bend = -1 if front else 1
    names = f"{word}_{end}_upper", f"{word}_{end}_lower"
    splay = hinge(X, -0.5, 0.8) if side > 0 else hinge(X, -0.8, 0.5)
    limits = (0.0, 2.2) if bend > 0 else (-2.2, 0.0)
    thigh, shin = (capsule((0, 0, 0), (0, 0, -half), wide, paint) for wide, paint in ((1.25 * thick, 0), (thick, 1)))
    first = builder.limb(names[0], body, hip, (splay, hinge(Y, -1.3, 1.3)), thigh)
    second = builder.limb(names[1], names[0], (0, 0, -half), (hinge(Y, *limits),), shin)
    points = f"{word}_{upper}", f"{word}_{middle}", f"{word}_{end}_paw"
    builder.point(points[0], names[0], np.zeros(3), 1.1 * girth, body)
    builder.point(points[1], names[1], np.zeros(3), 1.8 * thick, names[0])
    builder.point(points[2], names[1], np.array([0, 0, -half]), 1.5 * thick)
    builder.bone("neck" if front else "root_of_tail", *points)
    return Leg(upper=first, lower=second, foot=None, lengths=(half, half), bend=bend, height=thick)

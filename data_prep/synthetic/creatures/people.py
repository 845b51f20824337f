"""People: pelvis, chest, head, and arms and legs with knees, elbows, hands and feet."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from data_prep.synthetic.creatures.skeleton import Array, Builder, Creature, Leg, X, Y, Z, box, capsule, feature, hinge

Random = np.random.Generator
Range = tuple[float, float]
SKIN, SHIRT, TROUSERS, DARK = range(4)
"""Materials: of head, arms and hands; of the trunk and upper arms; of the legs; of eyes and feet."""


@dataclass(frozen=True, kw_only=True)
class Build:
    """Ranges of a person's measures: the height in metres, everything else as a share of it."""

    height: Range
    legs: Range
    """From the hip to the floor."""
    head: Range
    """From chin to crown."""
    shoulders: Range
    """Half the width from joint to joint."""
    girth: Range
    """Radius of the thigh."""


TRAIN_BUILDS = {
    "adult": Build(
        height=(1.5, 1.9), legs=(0.46, 0.51), head=(0.125, 0.145), shoulders=(0.1, 0.125), girth=(0.036, 0.052)
    )
}
HELD_OUT_BUILDS = {
    "child": Build(
        height=(0.9, 1.25), legs=(0.39, 0.43), head=(0.18, 0.21), shoulders=(0.095, 0.11), girth=(0.048, 0.056)
    ),
    "giant": Build(
        height=(2.0, 2.2), legs=(0.54, 0.57), head=(0.095, 0.11), shoulders=(0.13, 0.15), girth=(0.034, 0.044)
    ),
}


def make_person(rng: Random, *, held_out: bool) -> Creature:
    """Person of a random build."""
    builds = HELD_OUT_BUILDS if held_out else TRAIN_BUILDS
    name = str(rng.choice(list(builds)))
    build, builder = builds[name], Builder()
    height = rng.uniform(*build.height)
    legs, head, wide, thick = (height * rng.uniform(*r) for r in (build.legs, build.head, build.shoulders, build.girth))
    trunk, reach = height - legs - 1.18 * head, rng.uniform(0.64, 0.72)
    _trunk(builder, legs, trunk, wide, thick)
    _head(builder, 0.72 * trunk, head)
    arms = [
        (_arm(builder, side, np.array([0, side * wide, 0.62 * trunk]), legs * reach, thick), other)
        for other, side in ((1, 1), (0, -1))
    ]
    built = [_leg(builder, side, np.array([0, side * 0.6 * wide, 0]), legs, thick) for side in (1, -1)]
    return builder.build(name, legs=built, arms=arms)


def _trunk(builder: Builder, legs: float, trunk: float, wide: float, thick: float) -> None:
    hips = capsule((0, -0.5 * wide, 0.02), (0, 0.5 * wide, 0.02), 1.35 * thick, TROUSERS)
    builder.limb("pelvis", None, (0, 0, legs), (), hips)
    middle = box((0, 0, 0.37 * trunk), (2.6 * thick, 1.75 * wide, 0.56 * trunk), SHIRT)
    top = capsule((0, -0.8 * wide, 0.62 * trunk), (0, 0.8 * wide, 0.62 * trunk), 1.1 * thick, SHIRT)
    turns = (hinge(Y, -0.35, 0.9), hinge(Z, -0.6, 0.6))
    builder.limb("chest", "pelvis", (0, 0, 0.22 * trunk), turns, middle, top)
    builder.point("pelvis", "pelvis", np.zeros(3), 2.2 * thick)
    builder.point("waist", "chest", np.zeros(3), 2.0 * thick, "pelvis")
    builder.bone("pelvis", "waist")


def _head(builder: Builder, neck: float, head: float) -> None:
    """Neck and head, rigid together, on the chest."""
    radius = 0.38 * head
    low, high = 0.18 * head + radius, 1.18 * head - radius
    face = radius + 0.02 * head
    eyes = [np.array([0.86 * radius, side * 0.42 * radius, 0.62 * (low + high)]) for side in (1, -1)]
    nose = np.array([face, 0, 0.5 * (low + high)])
    builder.limb(
        "head",
        "chest",
        (0, 0, neck),
        (hinge(Y, -0.6, 0.7), hinge(Z, -1.1, 1.1)),
        capsule((0, 0, low), (0, 0, high), radius, SKIN),
        capsule((0, 0, -0.1 * head), (0, 0, low), 0.2 * head, SKIN),
        capsule(nose - np.array([0.08 * head, 0, -0.1 * head]), nose, 0.07 * head, SKIN),
        *(feature(eye, 0.1 * head, DARK) for eye in eyes),
    )
    builder.point("neck", "head", np.zeros(3), 0.45 * head, "chest")
    builder.point("nose", "head", nose, 0.2 * head)
    builder.point("head_top", "head", np.array([0, 0, high + 0.7 * radius]), 0.6 * radius)
    for word, eye in zip(("left", "right"), eyes):
        builder.point(f"{word}_eye", "head", eye, 0.2 * head)
        builder.bone("nose", f"{word}_eye")
    builder.bone("waist", "neck", "nose")
    builder.bone("neck", "head_top")


def _arm(builder: Builder, side: int, shoulder: Array, length: float, thick: float) -> int:
    """Arm of ``length`` from shoulder to wrist, with a hand; index of the upper arm."""
    word, half, slim = "left" if side > 0 else "right", length / 2, 0.62 * thick
    spread = hinge(X, -0.15, 2.4) if side > 0 else hinge(X, -2.4, 0.15)
    upper, lower = f"{word}_upper_arm", f"{word}_forearm"
    index = builder.limb(
        upper,
        "chest",
        shoulder,
        (spread, hinge(Y, -2.8, 1.0)),
        capsule((0, 0, 0), (0, 0, -half), 1.15 * slim, SHIRT),
    )
    hand = np.array([0, 0, -half - 0.35 * half])
    builder.limb(
        lower,
        upper,
        (0, 0, -half),
        (hinge(Y, -2.4, 0.0),),
        capsule((0, 0, 0), (0, 0, -half), slim, SKIN),
        capsule((0, 0, -half), hand, 1.1 * slim, SKIN),
    )
    names = f"{word}_shoulder", f"{word}_elbow", f"{word}_wrist", f"{word}_hand"
    builder.point(names[0], upper, np.zeros(3), 2.0 * thick, "chest")
    builder.point(names[1], lower, np.zeros(3), 2.0 * slim, upper)
    builder.point(names[2], lower, np.array([0, 0, -half]), 2.0 * slim)
    builder.point(names[3], lower, hand, 2.0 * slim)
    builder.bone("neck", *names)
    return index


def _leg(builder: Builder, side: int, hip: Array, length: float, thick: float) -> Leg:
    """Leg of ``length`` from the hip to the floor, with a foot."""
    word, sole = "left" if side > 0 else "right", 0.09 * length
    half = (length - sole) / 2
    splay = hinge(X, -0.35, 0.8) if side > 0 else hinge(X, -0.8, 0.35)
    thigh, shin, foot = f"{word}_thigh", f"{word}_shin", f"{word}_foot"
    toe = np.array([0.27 * length, 0, 0.35 * sole - sole])
    indices = (
        builder.limb(
            thigh, "pelvis", hip, (splay, hinge(Y, -2.0, 0.9)), capsule((0, 0, 0), (0, 0, -half), thick, TROUSERS)
        ),
        builder.limb(
            shin,
            thigh,
            (0, 0, -half),
            (hinge(Y, 0.0, 2.4),),
            capsule((0, 0, 0), (0, 0, -half), 0.75 * thick, TROUSERS),
        ),
        builder.limb(
            foot,
            shin,
            (0, 0, -half),
            (hinge(Y, -0.9, 1.2),),
            box((0.09 * length, 0, -0.45 * sole), (0.32 * length, 0.11 * length, 1.1 * sole), DARK),
        ),
    )
    names = f"{word}_hip", f"{word}_knee", f"{word}_ankle", f"{word}_toes"
    builder.point(names[0], thigh, np.zeros(3), 2.2 * thick, "pelvis")
    builder.point(names[1], shin, np.zeros(3), 1.7 * thick, thigh)
    builder.point(names[2], foot, np.zeros(3), 1.7 * thick, shin)
    builder.point(names[3], foot, toe, 1.2 * sole)
    builder.bone("pelvis", *names)
    return Leg(upper=indices[0], lower=indices[1], foot=indices[2], lengths=(half, half), bend=1, height=sole)

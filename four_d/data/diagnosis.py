"""Diagnosis of a clip's conventions: measure the given reading, try the others, and name the one that explains more.

Every usual mistake is a reading of the same numbers (`readings`), and every reading is measured as the given one is
(`evidence`). A mistake is named where its reading is far better than the given one, and can be excluded where it is far
worse; where both are alike the clip cannot tell, which is said. So no limit has to know how large a mistake is.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.data.contract import RawClip
from four_d.data.evidence import FLOORS, KINDS, LEAST_OVERLAP, Pair, compare
from four_d.data.matches import Matches, frame_pairs
from four_d.data.measures import Finding, Measure, Unchecked
from four_d.data.readings import (
    DISTANCE,
    TIME,
    UNIT,
    UNIT_FACTORS,
    Mistake,
    Reading,
    groups,
    mistakes,
    of_images,
    unit_mistake,
)
from four_d.data.truth import Truth

GAIN = 1.5
"""Factor by which errors must fall under another reading for the given one to be a mistake."""
CLEAR = 3.0
"""Factor by which they must fall in the end where something is left that no reading explains, as noise is."""
LOSS = 0.7
"""Factor of gain below which another reading is refuted by a second kind of evidence."""
EXCLUDED = 1.5
"""Factor by which errors rise under another reading that the clip excludes."""
ROUNDS = 3
"""Most mistakes that are undone one after the other."""
AGREEMENT_LIMIT = 0.9
"""Fraction of the pixels that another frame confirms, of those that it confirms or contradicts."""
DEPTH_TOLERANCE = 0.02
"""Relative difference below which two depths are equal, unless the source states another."""
PIXEL_LIMIT, SIDE_LIMIT, WAY_LIMIT = 2.0, 0.003, 0.1
"""Limit of a pair's error in pixels: the largest of these pixels, this share of the image's longer side, and this share
of the way that the matches moved, for poses that drift."""


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """Mistakes of a clip, each with the factor by which undoing it lowers the errors."""

    named: list[tuple[Mistake, float]] = field(default_factory=list[tuple[Mistake, float]])
    pairs: list[Pair] = field(default_factory=list[Pair])
    """Evidence under the given reading."""
    excluded: set[str] = field(default_factory=set[str])
    """Groups of mistakes that the clip excludes."""
    tried: set[str] = field(default_factory=set[str])
    """Groups of mistakes that were measured."""
    open: set[str] = field(default_factory=set[str])
    """Groups of mistakes that would change the reading, measured or not."""

    @property
    def remedy(self) -> str:
        """Mistakes to undo, one after the other; empty without any."""
        return "; then ".join(mistake.remedy for mistake, _ in self.named)


def reading_of(clip: RawClip, known: Truth, streams: Sequence[int]) -> Reading:
    """Read a clip, which has cameras, as it is given. ``streams`` has the number of each frame's run of neighbours."""
    assert known.cameras is not None
    rows = torch.arange(len(clip.info.times))
    return Reading(
        cameras=known.cameras,
        depth=known.depth,
        dynamic=known.dynamic,
        times=known.times,
        streams=tuple(streams),
        size=(clip.info.height, clip.info.width),
        camera_at=rows,
        depth_at=rows,
    )


def convention_findings(clip: RawClip, known: Truth, streams: Sequence[int], tolerance: float) -> Iterator[Finding]:
    """Find wrong conventions of a clip with cameras; depths within a fraction ``tolerance`` are equal.

    ``streams`` has the number of each frame's run of neighbouring frames of one camera.
    """
    matches, pairs = Matches(clip.images), frame_pairs(clip.info, streams)
    if not pairs:
        single = "there is a single frame" if len(streams) == 1 else "no two frames are of one camera or of one time"
        yield Unchecked(what="conventions", why=single)
        return
    reading, surface = reading_of(clip, known, streams), clip.surface is not None
    found = diagnose(reading, matches, pairs, tolerance, surface=surface)
    if found.named:
        gain = found.named[0][1]
        yield Measure(
            check="convention",
            value=gain,
            limit=GAIN,
            what="factor by which frames fit each other better under another reading",
            remedy=found.remedy,
        )
    yield from _limits(found, matches, pairs, tolerance, clip)
    yield from _unchecked(found, matches, pairs, clip, groups(reading, surface=surface))


def diagnose(
    reading: Reading, matches: Matches, pairs: Sequence[tuple[int, int]], tolerance: float, *, surface: bool
) -> Diagnosis:
    """Undo the mistake that explains most, as long as one does. With a ``surface`` only images are in question."""
    given = [compare(reading, matches, pair, tolerance) for pair in pairs]
    current, evidence = reading, given
    named: list[tuple[Mistake, float]] = []
    excluded, tried, open_groups = set[str](), set[str](), set[str]()
    for number in range(ROUNDS):
        best: tuple[float, Mistake, Reading, list[Pair], float] | None = None
        clean = _clean(evidence)
        if clean and number:
            break
        for mistake in _candidates(current, evidence, surface, clean):
            if any(mistake.remedy == before.remedy for before, _ in named):
                continue
            other = mistake.undo(current)
            if _equal(other, current):
                continue
            open_groups.add(mistake.group)
            pairs_other = [
                compare(other, matches, pair, tolerance, before=before, touches=mistake.touches)
                for pair, before in zip(pairs, evidence, strict=True)
            ]
            gains = _gains(evidence, pairs_other)
            if number == 0 and gains:
                tried.add(mistake.group)
                if min(gains.values()) < 1 / EXCLUDED:
                    excluded.add(mistake.group)
            if not gains or max(gains.values()) < GAIN or min(gains.values()) < LOSS:
                continue
            total = sum(math.log(gain) for gain in gains.values())
            if best is None or total > 1.02 * best[0]:
                best = total, mistake, other, pairs_other, max(gains.values())
        if best is None:
            break
        _, mistake, current, evidence, gain = best
        named.append((mistake, gain))
        excluded.add(mistake.group)
    if named and not (_clean(evidence) or max(_gains(given, evidence).values()) >= CLEAR):
        named = []  # what is left is large: the reading hides an unknown mistake rather than mending a known one
    return Diagnosis(named=named, pairs=given, excluded=excluded, tried=tried, open=open_groups)


def _clean(evidence: Sequence[Pair]) -> bool:
    """True where no kind of evidence can improve enough."""
    for kind in KINDS:
        errors = np.array([getattr(pair, kind) for pair in evidence])
        errors = errors[np.isfinite(errors)]
        if len(errors) and np.log(np.maximum(errors / FLOORS[kind], 1)).mean() >= math.log(GAIN):
            return False
    return True


def _candidates(reading: Reading, evidence: Sequence[Pair], surface: bool, clean: bool) -> list[Mistake]:
    """List what to try: everything, or three of each group, to see whether they would show, where the clip fits."""
    found = of_images(reading) if surface else mistakes(reading)
    if clean:
        of_group: dict[str, list[Mistake]] = {}
        for mistake in found:
            of_group.setdefault(mistake.group, []).append(mistake)
        return [mistake for listed in of_group.values() for mistake in listed[:3]]
    if surface:
        return found
    ratios = np.array([pair.ratio for pair in evidence])
    ratios = ratios[np.isfinite(ratios)]
    if len(ratios):
        ratio = float(np.median(ratios))
        known = any(abs(ratio / factor - 1) < 0.1 for factor in UNIT_FACTORS)
        if not known and abs(math.log(ratio)) > math.log(1.1):
            found.append(unit_mistake(ratio))
    return found


def _equal(other: Reading, current: Reading) -> bool:
    """Tell readings that differ in the cameras' numbers, and not even by much, from those that do not."""
    ours, theirs = other.cameras, current.cameras
    return ours is not theirs and all(
        torch.allclose(a, b, rtol=1e-6, atol=1e-6)
        for a, b in ((ours.world_from_camera, theirs.world_from_camera), (ours.intrinsics, theirs.intrinsics))
    )


def _gains(given: Sequence[Pair], other: Sequence[Pair]) -> dict[str, float]:
    """Factor by which errors fall, by kind of evidence, over the pairs that have it under both readings."""
    gains: dict[str, float] = {}
    for kind in KINDS:
        before, after = (np.array([getattr(pair, kind) for pair in pairs]) for pairs in (given, other))
        both = np.isfinite(before) & np.isfinite(after)
        enough = min(2, int(np.isfinite(before).sum()))
        if not both.any() or both.sum() < enough:
            continue
        ratio = np.log(np.maximum(before[both], FLOORS[kind]) / np.maximum(after[both], FLOORS[kind]))
        if ratio.mean() > 0 and (ratio > 0).mean() < 0.6:
            ratio = np.minimum(ratio, 0)  # few pairs alone improve: chance
        gains[kind] = float(np.exp(ratio.mean()))
    return gains


def _limits(
    found: Diagnosis, matches: Matches, pairs: Sequence[tuple[int, int]], tolerance: float, clip: RawClip
) -> Iterator[Measure]:
    """Measure the given reading by itself, against what is sound whatever the mistake."""
    side = max(clip.info.width, clip.info.height)
    unexplained = "no usual mistake explains it: check that images, poses and depth are of the same frames"
    for kind, what in (
        ("lines", "pixels (median) between a matched corner and where the cameras may see it"),
        ("points", "pixels (median) between a matched corner and where depth and cameras see it"),
    ):
        errors = np.array([getattr(pair, kind) for pair in found.pairs])
        moved = np.array([0.0 if (m := matches(*pair)) is None else m.moved for pair in pairs])
        rated = np.isfinite(errors)
        if not rated.any():
            continue
        limits = np.maximum(max(PIXEL_LIMIT, SIDE_LIMIT * side), WAY_LIMIT * moved)
        worst = int(np.where(rated, errors / limits, -1).argmax())
        middle = max(float(np.median((errors / limits)[rated & kind])) for kind in _kinds(pairs, clip, rated))
        yield Measure(
            check={"lines": "corners", "points": "corners with depth"}[kind],
            value=middle,
            limit=1.0,
            frame=pairs[worst][0],
            what=f"{what} over its limit; at most {errors[worst]:.2g} pixels",
            remedy=found.remedy or unexplained,
        )
    yield from _depth_limits(found, pairs, tolerance, clip)


def _kinds(pairs: Sequence[tuple[int, int]], clip: RawClip, rated: NDArray[np.bool_]) -> list[NDArray[np.bool_]]:
    """Masks of pairs of one camera and of pairs of several, where some of both are ``rated``.

    One kind must not outvote the other: where a rig's images are exchanged, each camera still fits itself.
    """
    ids = clip.info.camera_ids
    same = np.array([ids[a] == ids[b] for a, b in pairs])
    kinds = [same, ~same]
    return [kind for kind in kinds if (rated & kind).sum() > 1] or [np.ones(len(pairs), bool)]


def _depth_limits(
    found: Diagnosis, pairs: Sequence[tuple[int, int]], tolerance: float, clip: RawClip
) -> Iterator[Measure]:
    overlaps = np.array([pair.overlap for pair in found.pairs])
    if np.isfinite(overlaps).any():
        best = int(np.nanargmax(overlaps))
        yield Measure(
            check="overlap",
            value=float(overlaps[best]),
            limit=LEAST_OVERLAP,
            above=False,
            frame=pairs[best][0],
            what="largest share of a frame's pixels that land in another frame",
            remedy=found.remedy or "no two frames see the same by these poses and depths: check their units",
        )
    agreements = np.array([pair.agreement for pair in found.pairs])
    rated = np.isfinite(agreements)
    if not rated.any():
        return
    worst = int(np.where(rated, agreements, 2).argmin())
    errors = np.array([pair.depth for pair in found.pairs])
    errors = errors[np.isfinite(errors)]
    half = "depth is so rough that it is smooth nowhere"
    if len(errors):
        half = f"half of the depths are off by more than {100 * float(np.median(errors)):.2g} %"
    yield Measure(
        check="depth across frames",
        value=min(float(np.median(agreements[rated & kind])) for kind in _kinds(pairs, clip, rated)),
        limit=AGREEMENT_LIMIT,
        above=False,
        frame=pairs[worst][0],
        what=f"fraction of pixels whose depth frame {pairs[worst][1]} and others confirm, to {tolerance:.2g} of it",
        remedy=found.remedy
        or f"{half}, and no usual mistake explains it: check the poses "
        "for a wrong scale or drift; for a noisy depth sensor state its depth_tolerance in clip.json, or raise "
        "--depth-tolerance, for example to 0.05",
    )


def _unchecked(
    found: Diagnosis, matches: Matches, pairs: Sequence[tuple[int, int]], clip: RawClip, possible: Sequence[str]
) -> Iterator[Unchecked]:
    """Say which of the ``possible`` mistakes the clip cannot exclude, and why."""
    moved = [m.moved for pair in pairs if (m := matches(*pair)) is not None]
    if not moved:
        why = "no two frames share enough corners"
        if any(math.isfinite(pair.depth) for pair in found.pairs):
            why += ", and depth across frames does not tell"
    elif np.median(moved) < 1 and len(set(clip.info.camera_ids)) == 1:
        why = "the camera hardly moves"
    elif np.median(moved) < 1:
        why = "the cameras hardly move, and no two share enough corners"
    else:
        why = "frames fit as well with it as without"
    if not found.tried:
        yield Unchecked(what="conventions", why=why)
        return
    for group in possible:
        if group in found.excluded:
            continue
        if group in found.tried:
            yield Unchecked(what=group, why=why)
        elif group in found.open:
            what = "pixels with depth" if group in (DISTANCE, UNIT) else "corners"
            yield Unchecked(what=group, why=f"two frames share too few {what} that would tell")
        elif group == TIME:
            yield Unchecked(what=group, why="no camera has three frames in a row")

"""One spelling of keypoint names over several sources, and how often each was annotated."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

SIDES = {"l": "left", "r": "right", "left": "left", "right": "right"}
ENDS = {"f": "front", "b": "back", "front": "front", "back": "back", "hind": "back", "rear": "back"}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])|[A-Z]|\d+")


def canonical(name: str) -> str:
    """Unify the spelling of a name: lower case, words joined by ``_``, side first, then front or back.

    ``L_F_Paw``, ``left-front paw`` and ``Paw Front Left`` are ``left_front_paw``; ``LShoulder`` is ``left_shoulder``;
    ``Root of tail`` is ``root_of_tail``. Single letters are sides or ends only beside a word: ``L5`` is ``l_5``.
    """
    words = [word.lower() for word in _WORD.findall(name)]
    spelled_out = any(len(word) > 1 and not word.isdigit() for word in words)
    side = [SIDES[w] for w in words if w in SIDES and (len(w) > 1 or spelled_out)]
    end = [ENDS[w] for w in words if w in ENDS and (len(w) > 1 or (spelled_out and side))]
    if len(side) != 1 or len(end) > 1:
        return "_".join(words) or name
    rest = [w for w in words if w not in SIDES and not (end and w in ENDS)]
    return "_".join([*side, *end, *rest])


@dataclass(kw_only=True)
class Vocabulary:
    """Counts of labelled keypoints by canonical name and source."""

    counts: dict[str, Counter[str]] = field(default_factory=lambda: defaultdict[str, Counter[str]](Counter))
    instances: Counter[str] = field(default_factory=Counter[str])
    """Annotated things by source."""
    spellings: dict[str, set[str]] = field(default_factory=lambda: defaultdict[str, set[str]](set))
    """Canonical name → spellings of the sources."""

    def add(self, source: str, spelled: Iterable[str], labelled: Iterable[bool]) -> None:
        """Count one instance."""
        self.instances[source] += 1
        for name, known in zip(spelled, labelled, strict=True):
            self.spellings[canonical(name)].add(name)
            self.counts[canonical(name)][source] += bool(known)

    def to_dict(self) -> dict[str, object]:
        """Content of ``vocabulary.json``: names with their counts, the most frequent first, and instances by source."""
        totals = sorted(self.counts.items(), key=lambda item: (-item[1].total(), item[0]))
        keypoints = {
            name: {"count": by.total(), "sources": dict(sorted(by.items())), "spellings": sorted(self.spellings[name])}
            for name, by in totals
        }
        return {
            "keypoints": keypoints,
            "instances": {"count": self.instances.total(), "sources": dict(sorted(self.instances.items()))},
        }

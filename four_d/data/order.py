"""Order of clips: which clip of which source a run's n-th example is, a pure function of (seed, n, shard sizes).

A source's clips come once a round. Each round shuffles the shards, cuts them into groups of ``window`` shards, and
shuffles clips within a group only, so that a few shards are in use at a time. Examples go around ``lanes`` lanes: lane
l has the examples n ≡ l (mod lanes), and of each group a part of its own, of neighbouring shards. Processes take whole
lanes, so each needs its own part of a group; and which example has which clip does not depend on how many there are.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Literal, TypeVar

import numpy as np
from numpy.typing import NDArray

BLOCK = 4096
"""Number of draws made at once."""
BATCHES, SOURCES, ORDER, EXAMPLE, ASPECT, SHARDS = range(6)
"""Independent random streams of one seed."""

K = TypeVar("K")
V = TypeVar("V")

Window = int | Literal["all"]
"""Number of shards within which clips are shuffled."""


class Mixture:
    """Mapping of examples to clips: sources by weight, each source's clips in the order of `Rounds`.

    A pure function of its arguments; the last draws are cached. ``shards`` are the numbers of clips of each source's
    shards. With the window ``all`` there is one lane.
    """

    def __init__(
        self,
        shards: Sequence[Sequence[int]],
        weights: Sequence[float],
        seed: int,
        *,
        window: Window = "all",
        lanes: int = 1,
    ) -> None:
        self._seed, self._lanes = seed, 1 if window == "all" else lanes
        self._rounds = [Rounds(each, window, self._lanes, (seed, source)) for source, each in enumerate(shards)]
        self._probabilities = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._block, self._draws = 0, self._draw(0)
        self._before = self._none_drawn()

    def pick(self, number: int) -> tuple[int, int]:
        """Return (source, index within the source) of an example."""
        source, slot = self._slot(number)
        return source, self._rounds[source].clip(slot)

    def part(self, number: int) -> tuple[int, Part]:
        """Source of an example, and the part of a group that it comes from."""
        source, slot = self._slot(number)
        return source, self._rounds[source].part(slot)

    def _slot(self, number: int) -> tuple[int, int]:
        """Source of an example, and its place in that source's endless order."""
        block, position = divmod(number, BLOCK)
        self._go_to(block)
        source, lane = int(self._draws[position]), number % self._lanes
        first = (lane - block * BLOCK) % self._lanes
        earlier = int((self._draws[first : position : self._lanes] == source).sum())
        return source, (int(self._before[source, lane]) + earlier) * self._lanes + lane

    def _go_to(self, block: int) -> None:
        """Set the draws of a block and the numbers of draws, of each source and lane, in all earlier blocks."""
        if block < self._block:
            self._block, self._draws, self._before = 0, self._draw(0), self._none_drawn()
        while self._block < block:  # a resumed run replays the earlier blocks once
            lanes = (self._block * BLOCK + np.arange(BLOCK)) % self._lanes
            np.add.at(self._before, (self._draws, lanes), 1)
            self._block += 1
            self._draws = self._draw(self._block)

    def _draw(self, block: int) -> NDArray[np.int64]:
        rng = np.random.default_rng((self._seed, SOURCES, block))
        return rng.choice(len(self._probabilities), size=BLOCK, p=self._probabilities)

    def _none_drawn(self) -> NDArray[np.int64]:
        return np.zeros((len(self._probabilities), self._lanes), np.int64)


class Part:
    """Lane's part of a group: ``shards`` in the order of their first use, and ``following``, those of its next part.

    ``number`` tells the parts of a lane apart.
    """

    def __init__(self, lane: int, number: int, shards: list[int], following: list[int]) -> None:
        self.lane, self.number, self.shards, self.following = lane, number, shards, following


class Rounds:
    """Endless order of one source's clips, round after round; slot n of it belongs to lane n mod ``lanes``.

    ``shards`` are the shards' numbers of clips, ``seed`` that of the run with the source's number.
    """

    def __init__(self, shards: Sequence[int], window: Window, lanes: int, seed: tuple[int, int]) -> None:
        self._sizes = np.asarray(shards, np.int64)
        self._ends = self._sizes.cumsum()
        self._total = int(self._sizes.sum())
        self._window, self._lanes, self._seed = window, lanes, seed
        self._cuts: OrderedDict[int, tuple[NDArray[np.int64], NDArray[np.int64]]] = OrderedDict()
        self._groups: OrderedDict[tuple[int, int], NDArray[np.int64]] = OrderedDict()
        self._parts: OrderedDict[tuple[int, int], Part] = OrderedDict()

    def clip(self, slot: int) -> int:
        """Return the index of the slot's clip among all of the source."""
        turn, group, start = self._find(slot)
        return int(self._group(turn, group, start)[slot - start])

    def part(self, slot: int) -> Part:
        """Return the part of a group that the slot's lane has."""
        turn, group, start = self._find(slot)
        lane = slot % self._lanes
        if (lane, start) not in self._parts:
            clips = self._group(turn, group, start)
            end = start + len(clips)
            next_turn, next_group, next_start = self._find(end + (lane - end) % self._lanes)
            following = self._shards(self._group(next_turn, next_group, next_start), lane - next_start)
            part = Part(lane, start, self._shards(clips, lane - start), following)
            _remember(self._parts, (lane, start), part, 2 * self._lanes)
        return self._parts[lane, start]

    def _shards(self, clips: NDArray[np.int64], first: int) -> list[int]:
        """Shards of a lane's clips in a group, by first use."""
        own = np.searchsorted(self._ends, clips[first % self._lanes :: self._lanes], side="right")
        return list(dict.fromkeys(own.tolist()))

    def _find(self, slot: int) -> tuple[int, int, int]:
        """Round of a slot, its group there, and the group's first slot."""
        turn, place = divmod(slot, self._total)
        starts = self._cut(turn)[1]
        group = int(np.searchsorted(starts, place, side="right")) - 1
        return turn, group, turn * self._total + int(starts[group])

    def _cut(self, turn: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        """Shards of a round in order, and the number of clips before each group."""
        if self._window == "all":
            return np.arange(len(self._sizes)), np.zeros(1, np.int64)
        if turn not in self._cuts:
            shards = np.random.default_rng((self._seed[0], SHARDS, self._seed[1], turn)).permutation(len(self._sizes))
            before = self._sizes[shards].cumsum() - self._sizes[shards]
            _remember(self._cuts, turn, (shards, before[:: self._window]), 4)
        return self._cuts[turn]

    def _group(self, turn: int, group: int, start: int) -> NDArray[np.int64]:
        """Clips of a group, slot by slot."""
        if (turn, group) not in self._groups:
            order = (self._seed[0], ORDER, self._seed[1], turn)
            rng = np.random.default_rng(order if self._window == "all" else (*order, group))
            width = len(self._sizes) if self._window == "all" else self._window
            shards = self._cut(turn)[0][group * width : (group + 1) * width]
            clips = np.concatenate(
                [np.arange(int(self._ends[s] - self._sizes[s]), int(self._ends[s])) for s in shards.tolist()]
            )
            found = np.empty_like(clips)
            for lane in range(self._lanes):
                first = (lane - start) % self._lanes
                own = len(found[first :: self._lanes])
                found[first :: self._lanes] = clips[:own][rng.permutation(own)]
                clips = clips[own:]
            # lanes of a mixture of sources are at different groups
            _remember(self._groups, (turn, group), found, 2 if self._window == "all" else max(2, self._lanes))
        return self._groups[turn, group]


def _remember(cache: OrderedDict[K, V], key: K, value: V, most: int) -> None:
    """Store a value, and drop the oldest beyond ``most``."""
    cache[key] = value
    while len(cache) > most:
        cache.popitem(last=False)

"""The order of clips is a function of seed and number; windows keep few shards in use and lose nothing."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise

import pytest

from four_d.data.order import Mixture, Rounds, Window

SIZES = [3, 0, 9, 4, 1, 7, 20, 2] * 3
WINDOWS: tuple[tuple[Window, int], ...] = (("all", 8), (1, 1), (1, 8), (4, 3), (6, 8), (100, 5))
"""Windows and lanes."""


def mixture(window: Window = "all", lanes: int = 1, seed: int = 1) -> Mixture:
    return Mixture([[20, 30], [7]], [3.0, 1.0], seed, window=window, lanes=lanes)


def test_sources_come_by_weight_and_every_clip_once_a_round() -> None:
    picks = mixture()
    picked = [picks.pick(n) for n in range(9000)]
    shares = Counter(source for source, _ in picked)
    assert shares[0] / 9000 == pytest.approx(0.75, abs=0.02)
    for source, length in ((0, 50), (1, 7)):
        order = [index for s, index in picked if s == source]
        rounds = [order[i : i + length] for i in range(0, len(order) - length, length)]
        assert all(sorted(turn) == list(range(length)) for turn in rounds)
        assert rounds[0] != rounds[1]


@pytest.mark.parametrize(("window", "lanes"), WINDOWS)
def test_every_clip_comes_once_a_round_in_windows_too(window: Window, lanes: int) -> None:
    alone, total = Mixture([SIZES], [1.0], 1, window=window, lanes=lanes), sum(SIZES)
    order = [alone.pick(n)[1] for n in range(3 * total)]
    rounds = [order[i : i + total] for i in range(0, len(order), total)]
    assert all(sorted(turn) == list(range(total)) for turn in rounds)
    assert rounds[0] != rounds[1] != rounds[2]


@pytest.mark.parametrize(("window", "lanes"), [WINDOWS[0], WINDOWS[3]])
def test_an_example_does_not_depend_on_what_was_asked_before(window: Window, lanes: int) -> None:
    straight = mixture(window, lanes)
    expected = {n: straight.pick(n) for n in (0, 1, 4095, 4096, 9001, 20000)}
    assert all(mixture(window, lanes).pick(n) == picked for n, picked in expected.items())
    jumping = mixture(window, lanes)
    assert {n: jumping.pick(n) for n in sorted(expected, reverse=True)} == expected
    other = mixture(window, lanes, seed=2)
    assert [other.pick(n) for n in range(20)] != [straight.pick(n) for n in range(20)]


def test_the_order_of_all_is_that_of_runs_begun_before_there_were_windows() -> None:
    picks = mixture()
    assert [picks.pick(n) for n in (*range(6), 5000, 5001)] == [
        (0, 48),
        (0, 20),
        (0, 31),
        (0, 17),
        (1, 1),
        (0, 22),
        (0, 42),
        (0, 23),
    ]


@pytest.mark.parametrize(("window", "lanes"), WINDOWS[1:])
def test_clips_of_a_group_come_together_and_lanes_have_parts_of_their_own(window: int, lanes: int) -> None:
    rounds, total = Rounds(SIZES, window, lanes, (7, 0)), sum(SIZES)
    shard_of = [shard for shard, size in enumerate(SIZES) for _ in range(size)]
    parts: dict[tuple[int, int], list[int]] = {}
    for slot in range(2 * total):
        part = rounds.part(slot)
        assert part.lane == slot % lanes
        parts.setdefault((part.lane, part.number), []).append(shard_of[rounds.clip(slot)])
        assert (
            list(dict.fromkeys(parts[part.lane, part.number])) == part.shards[: len(set(parts[part.lane, part.number]))]
        )
    by_group: dict[int, list[tuple[int, list[int]]]] = {}
    for (lane, number), used in parts.items():
        by_group.setdefault(number, []).append((lane, used))
    for group in by_group.values():
        assert len({shard for _, used in group for shard in used}) <= window
        # a part is a run of the group's shards: two neighbours share at most one
        uses = sum(len(set(used)) for _, used in group)
        assert uses <= len({shard for _, used in group for shard in used}) + len(group) - 1
    for lane in range(lanes):
        numbers = sorted(number for each, number in parts if each == lane)
        for now, then in pairwise(numbers[:-1]):
            slot = now + (lane - now) % lanes
            assert rounds.part(slot).following == list(dict.fromkeys(parts[lane, then]))


@pytest.mark.parametrize("nodes", [1, 2, 4])
def test_a_shard_is_needed_about_once_a_round_and_node(nodes: int) -> None:
    shards, window, lanes = 96, 24, 8
    alone = Mixture([[10] * shards], [1.0], 0, window=window, lanes=lanes)
    needed = Counter[tuple[int, int]]()
    for number in range(10 * shards):
        _, clip = alone.pick(number)
        needed[clip // 10, number % lanes * nodes // lanes] += 1
    per_node = Counter(node for _, node in needed)
    assert len({shard for shard, _ in needed}) == shards
    assert sum(per_node.values()) == shards, "equal shards are cut at their ends"
    assert max(per_node.values()) == shards // nodes

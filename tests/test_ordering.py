"""Files of a sequence come in the order of their numbers, padded or not."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from four_d.ordering import in_order, natural


def ordered(*names: str) -> list[str]:
    return [path.name for path in in_order(Path(name) for name in names)]


def test_digits_count_as_numbers() -> None:
    names = [f"frame_{i}.jpg" for i in range(1, 121)]
    assert ordered(*sorted(names)) == names
    mixed = ["a9-x1.png", "a9-x10.png", "a10-x2.png", "b1.png"]
    assert ordered(*sorted(mixed)) == mixed


@given(st.lists(st.integers(0, 10**9), unique=True), st.sampled_from(["frame_{:010d}.png", "{:010d}-color.jpg"]))
def test_padded_names_stand_as_in_the_alphabet(numbers: list[int], pattern: str) -> None:
    names = [pattern.format(number) for number in numbers]
    assert ordered(*names) == sorted(names)


@pytest.mark.parametrize(
    "names",
    [
        ["frame_1.JPG", "frame_2.jpg", "FRAME_3.jpg", "frame_10.JPG"],
        ["12.0.png", "12.25.png", "12.5.png", "13.0.png", "103.75.png"],
        ["rgb-1.5.png", "rgb-10.25.png", "rgb-10.5.png"],
        ["1.1.png", "1.8.png", "1.9.png", "1.10.png"],  # 1.1 and 1.10 are one number: these are no decimals
        ["1305031102.175304.png", "1305031102.211214.png", "1305031103.011214.png"],
        ["shot.png", "shot1.png", "shot2.png", "shot10.png"],
        ["x01.png", "x1.png", "x002.png"],
    ],
)
def test_names_of_all_kinds(names: list[str]) -> None:
    assert ordered(*sorted(names, reverse=True)) == names


def test_folders_come_before_names() -> None:
    paths = [Path("cam2/1.png"), Path("cam2/10.png"), Path("cam10/2.png")]
    assert in_order(reversed(paths)) == paths
    assert natural("cam2") < natural("cam10")

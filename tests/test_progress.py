"""Lines in a log, where there is no terminal: an estimate early on, at a rate that the first unit does not spoil."""

from __future__ import annotations

import pytest

from four_d.progress import Bar


class Clock:
    now = 0.0

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr("four_d.progress.time", clock)
    return clock


def test_the_tenth_unit_says_how_long_it_will_take(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("training", 110, "step", None)
    clock.now = 12.0  # the first unit compiles
    bar.advance(loss=0.5)
    for _ in range(9):
        assert capsys.readouterr().err == ""
        clock.now += 0.2
        bar.advance(loss=0.5)
    assert capsys.readouterr().err == "training: 10/110 5 step/s loss 0.5 20 s left\n"
    clock.now += 14.9
    bar.advance(loss=0.25)
    assert capsys.readouterr().err == "", "then a line now and then"


def test_short_work_says_nothing_before_its_end(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("clips", 20, "clip", None)
    for _ in range(19):
        clock.now += 0.2
        bar.advance()
    assert capsys.readouterr().err == ""
    clock.now += 0.2
    bar.advance()
    assert capsys.readouterr().err == "clips: 20/20 5 clip/s 0 s left\n"


def test_work_gone_on_with_is_rated_by_what_is_new(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    bar = Bar("training", 1000, "step", None)
    bar.resume(900)
    for _ in range(4):
        clock.now += 10.0
        bar.advance()
    assert capsys.readouterr().err.splitlines()[0] == "training: 902/1000 0.1 step/s 980 s left"

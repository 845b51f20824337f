"""`four-d doctor` says what there is, and of what there is not why and how to get it."""

import importlib.util

import pytest
import torch

from four_d import cli, doctor


def test_everything_is_named_once(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["doctor"]) == 0
    lines = capsys.readouterr().out.splitlines()
    names = [line.split("  ")[0] for line in lines]
    assert len(set(names)) == len(names)
    assert {"torch", "cuda", "rendering: torch", "rendering: gsplat", "lpips", "extra: usd"} <= set(names)
    assert next(line for line in lines if line.startswith("rendering: torch")).endswith(" available")


def test_what_is_missing_comes_with_the_remedy(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda _: None)
    monkeypatch.setattr(doctor, "missing", lambda *_: "no compiler; install g++")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    found = dict(doctor.doctor())
    assert found["extra: video"].endswith("pip install 'four_d[video]'")
    assert found["rendering: compiled"] == "not available: no compiler; install g++"
    assert found["rendering: gsplat"].startswith("not available: it renders on CUDA, and there is none")
    assert found["cuda"].startswith("none")

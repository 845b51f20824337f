"""Tracks are learned from correspondence, which the data side gives only when asked."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from four_d.config import RunConfig
from four_d.errors import UserError
from four_d.schema import build, to_plain
from four_d.training import train
from tests.training.runs import make_data, tiny

TRACK = {
    "kind": "track",
    "channels": [8, 8, 16, 16],
    "features": 16,
    "levels": 2,
    "radius": 1,
    "hidden": 16,
    "depth": 1,
    "heads": 2,
    "virtual": 2,
    "iterations": 2,
    "grid": [2, 2],
}


def plain(shards: Path, folder: Path, *, surface: bool) -> dict[str, object]:
    config = to_plain(tiny(shards, folder, loop={"max_steps": 2, "epoch_steps": 2}))
    config["model"]["heads"]["track"] = TRACK
    config["losses"]["track"] = {"kind": "track"}
    config["data"]["surface"] = surface
    return config


def test_a_track_head_learns(tmp_path: Path) -> None:
    shards = make_data(tmp_path / "shards", range(2))
    config = build(RunConfig, plain(shards, tmp_path, surface=True), "config")
    result = train(config)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert all(line["track"] > 0.1 for line in lines if line["split"] == "train")


def test_tracks_without_correspondence_are_an_error_at_once(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"the loss track learns from correspondence; set data\.surface=true"):
        build(RunConfig, plain(tmp_path, tmp_path, surface=False), "config")


def test_a_run_goes_on_although_settings_were_added_since(tmp_path: Path) -> None:
    shards = make_data(tmp_path / "shards", range(2))
    config = tiny(shards, tmp_path, loop={"max_steps": 2, "epoch_steps": 2})
    folder = train(config).folder
    text = (folder / "config.yaml").read_text()
    assert "  surface: false\n" in text
    (folder / "config.yaml").write_text(text.replace("  surface: false\n", ""))
    longer = dataclasses.replace(config, loop=dataclasses.replace(config.loop, max_steps=3))
    assert train(longer, resume="always").steps == 3

"""Overlays name what they lie on: alone they bring it, and a wrong order or a missing base is one clear line."""

from __future__ import annotations

from pathlib import Path

import pytest

from four_d import config
from four_d.errors import UserError
from four_d.overlays import find, shipped_configs, stack

DATA = ["data.sources.mine.path=somewhere"]
CHAINS = {
    "overlays/demo": "vggt overlays/tiny",
    "overlays/page_4d_reference": "page_4d overlays/mini overlays/page_4d_mini",
    "overlays/dept3r_phase_1": "dept3r overlays/large",
    "overlays/unified_mini": "unified overlays/mini overlays/dept3r_mini overlays/dept3r_late_mini",
    "overlays/dgs_lrm_512": "dgs_lrm",
    "overlays/dgs_lrm_base": "dgs_lrm overlays/dgs_lrm_mini",
    "overlays/small": "vggt",
}
ANYWHERE = {"overlays/debug", "overlays/finetune"}
"""Overlays that go over anything."""


def names(*files: str | Path) -> list[str]:
    return [layer.name for layer in stack(files)]


@pytest.mark.parametrize("name", [name for name in shipped_configs() if name not in ANYWHERE])
def test_every_shipped_config_loads_by_its_name_alone(name: str) -> None:
    config.load([name], DATA)
    config.load([find(name), *sorted(ANYWHERE)], DATA)


@pytest.mark.parametrize("name", CHAINS)
def test_an_overlay_brings_what_it_lies_on_and_that_may_be_given_too(name: str) -> None:
    chain = [*CHAINS[name].split(), name]
    assert names(name) == names(*chain) == chain
    assert config.load_plain([name]) == config.load_plain(chain)


@pytest.mark.parametrize(
    ("files", "message"),
    [
        ("vggt overlays/demo", r"overlays/demo lies on overlays/tiny, not on vggt; give overlays/demo first, which"),
        ("vggt overlays/demo overlays/tiny", r"overlays/demo lies on overlays/tiny; give overlays/tiny before it"),
        ("vggt overlays/dept3r_mini", r"overlays/dept3r_mini lies on dept3r or unified, not on vggt; give"),
        (
            "dept3r overlays/large overlays/dept3r_mini",
            r"lies on overlays/mini, not on dept3r overlays/large; .* before",
        ),
        ("dgs_lrm overlays/tiny", r"overlays/tiny lies on vggt or page_4d or dept3r or unified, not on dgs_lrm"),
        ("overlays/tiny dept3r", r"dept3r is a system of its own, which lies on nothing; give it first"),
    ],
)
def test_a_wrong_order_or_a_missing_base_is_one_line(files: str, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        config.load(files.split(), DATA)
    assert "\n" not in str(caught.value)


def test_files_of_ones_own_name_a_base_or_stand_for_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "below.yaml").write_text("base: overlays/tiny\nname: below\nseed: 3\n")
    (tmp_path / "mine.yaml").write_text("base: [below.yaml]\nname: mine\n")
    mine, whole = str(tmp_path / "mine.yaml"), tmp_path / "whole.yaml"
    assert names(mine) == ["vggt", "overlays/tiny", "below.yaml", mine]
    run = config.load([mine], DATA)
    assert (run.name, run.seed) == ("mine", 3)
    whole.write_text(config.to_yaml(run))
    assert names(whole, "overlays/demo") == [str(whole), "overlays/demo"]
    monkeypatch.chdir(tmp_path)
    (tmp_path / "vggt").write_text("something else")
    assert stack(["overlays/tiny"])[0].path == shipped_configs()["vggt"], (
        "a base is the shipped one, whatever lies here"
    )


@pytest.mark.parametrize(
    ("base", "message"),
    [
        ("{a: b}", r"mine\.yaml: base is .*; list what the file lies on"),
        ("[1]", r"mine\.yaml: base is \[1\]"),
        ("overlays/tinny", r"overlays/tinny does not exist; did you mean overlays/tiny"),
        ("mine.yaml", r"mine\.yaml lies on itself; mend base in "),
    ],
)
def test_a_wrong_base_is_one_line(base: str, message: str, tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(f"base: {base}\nname: mine\n")
    with pytest.raises(UserError, match=message):
        stack([tmp_path / "mine.yaml"])

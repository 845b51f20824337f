"""`four-d config explain`: every setting can be found, and says its type, default, value and use."""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Iterator
from pathlib import Path

import pytest

from four_d import cli
from four_d.config import RunConfig
from four_d.docstrings import field_docs, summary
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig, PublishedConfig
from four_d.explain import explain
from four_d.schema import branches, hints_of, kinds_of

RECIPE = ["dept3r", "overlays/mini", "overlays/dept3r_mini"]


def settings(kind: type, where: str = "", given: tuple[str, ...] = ()) -> Iterator[tuple[str, tuple[str, ...], str]]:
    """Name, overrides that choose its kind, and docstring of all settings there are; an entry's name is its kind."""
    docs, hints = field_docs(kind), hints_of(kind)
    for name in (each.name for each in dataclasses.fields(kind)):
        own, entry = f"{where}.{name}".lstrip("."), typing.get_origin(hints[name]) is dict
        yield own, given, docs.get(name, "").replace("None", "null")
        members = branches(hints[name])
        for member in members:
            kinds = [*kinds_of([member])]  # none of what is meant without a kind
            chosen = [f"{own}.kind={kind}" for kind in kinds if len(members) > 1 and not entry]
            yield from settings(member, f"{own}.{(kinds or ['NAME'])[0]}" if entry else own, (*given, *chosen))


def undocumented(kind: type, where: str, seen: set[type]) -> Iterator[str]:
    """Settings below a dataclass without a docstring; those of a class that stands at several places once."""
    if kind in seen:
        return
    seen.add(kind)
    docs, hints = field_docs(kind), hints_of(kind)
    for name in (each.name for each in dataclasses.fields(kind)):
        own = f"{where}.{name}".lstrip(".")
        if not (summary(kind) if name == "kind" else docs.get(name)):
            yield own
        for member in branches(hints[name]):
            yield from undocumented(member, own, seen)


@pytest.mark.parametrize("kind", [RunConfig, EvaluationConfig, PublishedConfig])
def test_every_setting_has_a_docstring(kind: type) -> None:
    """For ``kind`` it is the class's own."""
    seen: set[type] = set()
    assert list(undocumented(kind, "", seen)) == []
    assert len(seen) >= (40 if kind is RunConfig else 1)


def test_every_setting_is_explained() -> None:
    found = list(settings(RunConfig))
    assert len(found) > 200
    for name, given, doc in found:
        said = explain(name, [], given, width=10_000)
        assert said.startswith(f"{name}: ")
        assert doc in said


def test_a_setting_says_its_type_default_value_and_use() -> None:
    alone = explain("losses.motion")
    assert "Distance of predicted to true motion" in alone
    assert "losses.motion.visibility: number, default 0.1\n    Weight of the cross-entropy." in alone
    assert "here" not in alone.split()
    given = explain("losses.motion", RECIPE)
    assert given.startswith("losses.motion: motion\n")
    assert "losses.motion.weight: number | settings, default 1.0, here 30.0" in given
    assert "default plain" in explain("losses.motion.pixels.gradient_by", RECIPE)
    assert "confidence: number, default 0.0" in explain("losses.motion.pixels"), "as the motion loss starts it"
    assert "here 7" in explain("seed", [], ["seed=7"])
    assert explain("model.backbone.query", ["dept3r"]).startswith(
        "model.backbone.query: settings, default null, here {}"
    )


def test_settings_of_eval_are_explained_as_it_takes_them() -> None:
    """Some are of held-out shards, some of published sets, some of both with other meanings."""
    both = explain("eval")
    assert both.startswith("Settings of `four-d eval` on held-out shards.\n\neval.data: text, required\n")
    assert "Settings of `four-d eval … protocol=NAME`.\n\neval.protocol: text, required\n" in both
    for kind in (EvaluationConfig, PublishedConfig):
        for name in (each.name for each in dataclasses.fields(kind)):
            assert f"\neval.{name}: " in explain(f"eval.{name}")
    frames = explain("eval.frames")
    assert "eval.frames: whole number, default 8" in frames
    assert "eval.frames: whole number | null, default null" in frames
    assert "here 16" in explain("eval.frames", [], ["frames=16"])
    assert "protocol" not in explain("eval", [], ["frames=16"])
    published = explain("eval", [], ["protocol=sintel"])
    assert "eval.protocol: text, required, here sintel" in published
    assert "held-out" not in published
    assert explain().endswith("eval: settings of four-d eval\n  all: four-d config explain eval")


def test_unions_and_mappings_name_their_kinds() -> None:
    assert "kinds: camera, dense, dynamic, gaussian, keypoints, track" in explain("model.heads")
    assert explain("model.backbone").splitlines()[0] == "model.backbone: alternating | spacetime"
    assert "data.sources.NAME.path: text, required" in explain("data.sources")
    assert "kinds: renders\n" in explain("data.sources")
    assert explain("data.sources.renders.size").startswith("data.sources.renders.size: whole number, default 64")
    assert "model.heads: NAME" in explain("model"), "without a kind"
    assert explain("model", [], ["model.kind=pose_net"]).splitlines()[0] == "model: pose_net"
    assert explain("model.backbone.stride").startswith("model.backbone.stride: whole number, default 4")
    assert explain().startswith("name: text, required\n")


@pytest.mark.parametrize(
    ("name", "files", "message"),
    [
        ("losses.moton", [], r"losses\.moton is neither in the config nor a kind; did you mean losses\.motion"),
        ("optimiser.lrr", [], r"optimiser\.lrr is not a setting; did you mean optimiser\.lr"),
        ("optimiser.lr.x", [], r"optimiser\.lr is a single value"),
        ("optimisr", [], r"did you mean optimiser"),
        ("model.heads.depth.frames", ["vggt"], r"a setting of the kind gaussian, and model\.heads\.depth is dense"),
        ("model.heads.depht", ["vggt"], r"did you mean model\.heads\.depth"),
        ("model.heads.depth", [], r"a name of your own needs its config beside it: four-d config explain model\.heads"),
        ("model.heads.channels", [], r"did you mean model\.heads\.dense\.channels or model\.heads\.track\.channels\?"),
        ("model.backbone.strid", [], r"did you mean model\.backbone\.stride\?"),
        ("optimiser.betas.0", [], r"optimiser\.betas is a list, \[number, number\], which is set as a whole"),
        ("optimiser.", [], r"optimiser\. is not a dotted name; did you mean optimiser\?"),
        ("model..heads", [], r"model\.\.heads is not a dotted name; did you mean model\.heads\?"),
        ("losses.motion.weight.strt", [], r"did you mean losses\.motion\.weight\.start\?"),
        ("eval.protocoll", [], r"eval\.protocoll is not a setting; did you mean eval\.protocol"),
        ("eval.data.x", [], r"eval\.data is a single value"),
        ("eval", ["vggt"], r"eval takes no config files, and vggt is one"),
    ],
)
def test_what_is_not_there_is_one_line_with_near_names(name: str, files: list[str], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        explain(name, files)
    assert "\n" not in str(caught.value)


def test_the_command_takes_a_setting_configs_and_overrides(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["config", "explain", "optimiser.lr", "vggt", "optimiser.lr=3e-3"]) == 0
    assert "default 0.0002, here 0.003" in capsys.readouterr().out
    assert cli.main(["config", "explain", "vggt"]) == 0
    assert "name: text, required, here vggt" in capsys.readouterr().out
    assert cli.main(["config", "explain", "vgt"]) == 2
    assert "vgt is neither a setting nor a config; did you mean vggt" in capsys.readouterr().err
    assert cli.main(["config", "explain", "eval.clips", "clips=5"]) == 0
    assert "here 5" in capsys.readouterr().out
    assert cli.main(["config", "explain", "zzzzz"]) == 2
    assert "choose among name, model, data, losses" in (told := capsys.readouterr().err)
    assert "logging, eval, dept3r" in told


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["explain", ""], r"a name is empty; leave it out"),
        (["explain", "."], r"\. is neither a setting nor a config; choose among name, model"),
        (["explain", "losses[0]"], r"losses\[0\] is neither a setting nor a config; did you mean losses\?"),
        (["explain", "lr"], r"did you mean optimiser\.lr or optimiser\.groups\.NAME\.lr\?"),
        (["explain", "motion"], r"did you mean losses\.motion or model\.deformation\.motion\?"),
        (["explain", "config.optimiser.lr"], r"did you mean optimiser\.lr"),
        (["explain", "seed", "loop"], r"seed and loop are both settings; explain one at a time"),
        (["explain", "seed", "vgt"], r"config vgt does not exist; did you mean vggt\?"),
        (["explain", "overlays/tinny"], r"config overlays/tinny does not exist; did you mean overlays/tiny"),
        (
            ["explain", "model.backbone", "vggt", "model.backbone.kind=spactime"],
            r"model\.backbone\.kind is 'spactime'; did you mean spacetime\?",
        ),
        (["diff", "vggt", "vgt"], r"vgt: config vgt does not exist; did you mean vggt\?"),
        (["diff", "", "vggt"], r"'' names no config; put one before it, as vggt\+seed=1"),
        (["diff", "vggt+", "vggt"], r"vggt\+: the name of a config is empty"),
        (["diff", "vggt", "seed=7"], r"'seed=7' names no config; put one before it, as vggt\+seed=7"),
        (["diff", "vggt", "optimiser.lr"], r"optimiser\.lr is a setting, not a config; .* as vggt\+optimiser\.lr=…"),
        (["diff", "vggt seed=1", "vggt"], r"has a space within a name; join configs and settings with \+"),
        (["diff", "vggt", "vggt+optimiser.lrr=1"], r"vggt\+optimiser\.lrr=1: .* did you mean optimiser\.lr\?"),
    ],
)
def test_a_wrong_word_is_one_line_with_the_remedy(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert cli.main(["config", *words]) == 2
    told = capsys.readouterr().err
    assert re.search(message, told)
    assert len(told.splitlines()) == 1


def test_recipes_are_compared_although_they_name_no_data(capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["config", "diff", "vggt", "vggt+seed=7"]) == 0
    assert capsys.readouterr().out == "seed: 0 → 7\n"
    assert cli.main(["config", "diff", "vggt", "vggt+data.sources.a.path=x"]) == 0
    assert capsys.readouterr().out == "data.sources.a: None → {'path': 'x', 'weight': 1.0}\n"


def test_a_kind_is_explained_with_its_choices() -> None:
    told = explain("model.backbone.kind", ["dgs_lrm"])
    assert told.startswith("model.backbone.kind: alternating | spacetime, default alternating, here spacetime\n")


def test_a_class_without_source_is_explained_without_docstrings() -> None:
    made = dataclasses.make_dataclass("Made", [("weight", float, 1.0)])
    assert field_docs(made) == {}

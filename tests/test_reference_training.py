"""The reference model's training: which piece comes next, and what it goes on with."""

from __future__ import annotations

import importlib.util
import json
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from four_d.config import load
from four_d.training.optimiser import learning_rate

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("reference", ROOT / "benchmarks" / "reference.py")
assert SPEC is not None
assert SPEC.loader is not None
reference = importlib.util.module_from_spec(SPEC)
sys.modules["reference"] = reference  # its dataclasses look their module up
SPEC.loader.exec_module(reference)

LENGTHS = {"first": 100, "second": 50, "third": 20}


@pytest.mark.parametrize(
    ("steps", "partial", "expected"),
    [
        ({}, None, ("first", 0)),
        ({"first": 40}, None, ("first", 40)),
        ({"first": 100}, None, ("second", 0)),
        ({"first": 100, "second": 50, "third": 20}, None, None),
        ({}, ("first", 60), ("first", 60)),  # the runs are gone: from what was kept
        ({}, ("first", 100), ("second", 0)),
        ({}, ("second", 10), ("second", 10)),
        ({"second": 30}, ("second", 10), ("second", 30)),
        ({"first": 40}, ("second", 10), ("second", 10)),
        ({}, ("another_model", 10), ("first", 0)),
    ],
)
def test_the_furthest_stage_goes_on(
    steps: dict[str, int], partial: tuple[str, int] | None, expected: tuple[str, int] | None
) -> None:
    assert reference.next_stage(steps, partial, LENGTHS) == expected


@pytest.fixture
def place(tmp_path: Path) -> object:
    return reference.Place(runs=tmp_path, partial=tmp_path / "partial", raw=tmp_path / "raw.jsonl")


def written(place: object, name: str, step: int, most: int) -> None:
    """A run of that stage."""
    folder = place.runs / name / "checkpoints"  # pyright: ignore[reportAttributeAccessIssue]
    folder.mkdir(parents=True)
    torch.save({"run": {"step": step, "config": {"loop": {"max_steps": most}}}}, folder / "last.ckpt")


def test_a_stage_begins_from_the_one_before_or_from_what_was_kept(place: object) -> None:
    names = list(reference.STAGES)
    total = place.lengths[names[1]]  # pyright: ignore[reportAttributeAccessIssue]
    command = reference.command_of(names[0], 0, place)
    assert "train" in command
    assert not any(word.startswith("weights.path") for word in command)
    command = reference.command_of(names[1], 0, place)
    assert "finetune" in command
    assert command[-1] == f"weights.path={place.partial}"  # pyright: ignore[reportAttributeAccessIssue]
    written(place, names[0], 10, 10)
    assert reference.command_of(names[1], 0, place)[-1].endswith(names[0])
    assert f"loop.max_steps={total}" in reference.command_of(names[1], 0, place)
    command = reference.command_of(names[1], 1000, place)
    assert command[-1].endswith("partial")
    assert f"loop.max_steps={total - 1000}" in command
    written(place, names[1], 200, total - 1000)
    assert reference.command_of(names[1], 1200, place)[-1].endswith("config.yaml")
    assert sum(reference.progress_of(names[1], place)) == 1200


def test_the_rate_goes_on_where_it_was(place: object) -> None:
    stage = reference.STAGES["heads"]
    values, total = stage.values(place, 0), stage.steps
    whole = load(values[:1], [*values[1:], "weights.path=x"]).optimiser
    for done in (300, 600):
        rest = load(values[:1], [*values[1:], "weights.path=x", *reference.rest(values, done, total)])
        assert rest.loop.max_steps == total - done
        assert rest.optimiser.lr == pytest.approx(learning_rate(done / total, whole), rel=1e-4)
        end = learning_rate(1.0, rest.optimiser)
        assert end == pytest.approx(whole.lr * whole.final_lr_share, rel=1e-3)
        ratio = rest.optimiser.lr / whole.lr
        assert rest.optimiser.groups["new"].lr == pytest.approx(1.5e-3 * ratio, rel=1e-4)


@pytest.mark.parametrize("name", list(reference.STAGES))
def test_every_stage_is_a_recipe_whose_parts_fit(name: str, place: object) -> None:
    values = reference.STAGES[name].values(place, 0)
    names, stage = list(reference.STAGES), reference.STAGES[name]
    first = name == names[0]
    config = load(values[:1], [*values[1:], *([] if first else ["weights.path=x"])])
    with torch.device("meta"):
        model = config.model.build()
    assert {"depth", "points", "cameras"} <= set(model.abilities.outputs)
    if not first:
        before = reference.STAGES[stage.rest or stage.start or names[names.index(name) - 1]].values(place, 0)
        with torch.device("meta"):
            former = load(before[:1], [*before[1:], "weights.path=x"]).model.build()
        new = set(model.state_dict()) - set(former.state_dict())
        assert config.weights is not None
        patterns = config.weights.fresh
        assert all(any(Path(each).match(pattern) for pattern in patterns) for each in new)
        assert not set(former.state_dict()) - set(model.state_dict())


def test_what_was_kept_says_how_far_it_is(place: object) -> None:
    assert reference.kept(place) is None
    partial = place.partial  # pyright: ignore[reportAttributeAccessIssue]
    partial.mkdir()
    info = json.loads((ROOT / "checkpoints/unified-base/config.json").read_text())
    for label, expected in (("all", ("all", 800)), ("all@1000", ("all", 1800))):
        (partial / "config.json").write_text(json.dumps({**info, "name": label, "steps": 800}))
        assert reference.kept(place) == expected


def test_a_stage_joins_depth_learned_on_with_heads_learned_before(
    place: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    exported = list[list[str]]()

    def export(command: list[str], *_: object, **__: object) -> int:
        exported.append(command)
        folder = Path(command[command.index("--out") + 1])
        folder.mkdir(parents=True)
        parts = {"trunk": 1.0} if command[4].endswith("furnished") else {"trunk": 2.0, "head": 2.0}
        save_file({name: torch.tensor(value) for name, value in parts.items()}, folder / "model.safetensors")
        return 0

    monkeypatch.setattr(reference, "call", export)
    for name in ("heads", "furnished"):
        written(place, name, 10, reference.STAGES[name].steps)
    weights = Path(reference.command_of("all", 0, place)[-1].removeprefix("weights.path="))
    assert [Path(command[4]).name for command in exported] == ["furnished", "heads"]
    assert {name: float(each) for name, each in load_file(weights / "model.safetensors").items()} == {
        "trunk": 1.0,
        "head": 2.0,
    }
    assert not exported[2:]
    assert reference.command_of("all", 5, place)[-1].endswith("partial"), "what was kept holds both"


def test_worlds_that_are_there_are_not_asked_for_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place, asked = reference.Place(runs=tmp_path, scale=0.01), list[list[str]]()
    monkeypatch.setattr(reference, "call", lambda command, *_, **__: asked.append(command))
    calm = reference.STAGES["plain_128"].sets(0)["calm"]
    reference.make(calm, place, 1)
    assert [word for word in asked[0] if word.endswith("data/plain_128-0/calm")]
    place.data(calm).mkdir(parents=True)
    for clips, again in ((3, 2), (4, 2)):  # of a shard of four
        (place.data(calm) / "manifest.json").write_text(json.dumps({"clips": clips}))
        reference.make(calm, place, 1)
        assert len(asked) == again


def test_no_two_runs_train_on_the_same_worlds() -> None:
    # furnished begins before heads, again
    stages = [stage for name, stage in reference.STAGES.items() if name != "heads"]
    each = [one for stage in stages for begun in (0, 1, 700) for one in stage.sets(begun).values()]
    sets = list({one.folder: one for one in each}.values())  # once, where a stage is shown another's again
    assert all(one in sets for one in each)
    assert len({one.seed for one in sets}) == len({one.folder for one in sets}) == len(sets)
    assert not any(one.held_out for one in sets)


def test_a_run_that_goes_on_keeps_its_worlds_and_a_new_one_has_its_own(place: object) -> None:
    made = [each.folder for each in reference.worlds(place) if not each.held_out]
    assert {each.split("/")[0] for each in made} == {f"{name}-0" for name in list(reference.STAGES)[:2]}
    total = place.lengths["plain_128"]  # pyright: ignore[reportAttributeAccessIssue]
    assert any("data/plain_128-1000/calm" in word for word in reference.command_of("plain_128", 1000, place))
    written(place, "plain_128", 200, total - 1000)
    assert reference.begun("plain_128", 1200, place) == 1000
    assert {each.folder.split("/")[0] for each in reference.worlds(place)} == {"held_out", "plain_128-1000", "heads-0"}


def test_worlds_of_a_stage_are_its_own_unless_it_is_shown_those_of_another() -> None:
    for name, stage in reference.STAGES.items():
        again = {} if stage.shown is None else reference.STAGES[stage.shown].sets(0)
        for kind, each in stage.sets(0).items():
            assert each.size == stage.size
            assert each == again.get(kind, each)  # the same number of shards too, or they would be made anew
            assert each.folder == f"{stage.shown if kind in again else name}-0/{kind}"
    assert list(reference.STAGES["wide"].sets(0).values())[-1].folder == "wide-0/open"

"""Starting from weights: what is taken over, what is refused, and how the result is judged."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest
import torch
from torch import nn

from four_d import checkpoints, cli
from four_d.config import GroupConfig, OptimiserConfig, RunConfig, WeightsConfig, to_yaml
from four_d.errors import UserError
from four_d.metrics.comparison import Comparison
from four_d.metrics.metric import Metric
from four_d.schema import build
from four_d.training import TrainResult, finetune, train
from four_d.training.module import TrainingModule
from four_d.training.optimiser import group_rate, make_optimiser, parts
from four_d.training.run import compare
from four_d.training.validation import validation_metrics
from tests.training.runs import assert_same, crash, last, make_data, tiny, validated

DYNAMICS = {"after": 0, "rounds": [1, 1], "hidden": 4, "hold": [2, 4]}


def small() -> nn.Module:
    return nn.ModuleDict({"one": nn.Linear(2, 2), "two": nn.Linear(2, 3), "three": nn.Linear(1, 1)})


def test_weights_are_taken_over_whole() -> None:
    source, model = small().state_dict(), small()
    checkpoints.fill(model, source, "file")
    assert all(torch.equal(value, source[name]) for name, value in model.state_dict().items())


def test_what_is_fresh_stays_and_what_is_dropped_is_left_out() -> None:
    source, model = small().state_dict(), small()
    source["old.bias"] = torch.zeros(3)
    del source["two.weight"], source["two.bias"]
    before = model["two"].weight.detach().clone()
    checkpoints.fill(model, source, "file", fresh=["two.*"], dropped=["old.*"])
    assert torch.equal(model["two"].weight, before)
    assert torch.equal(model["one"].weight, source["one.weight"])


@pytest.mark.parametrize(
    ("change", "fresh", "dropped", "message"),
    [
        (
            {"two.weight": None},
            [],
            [],
            r"file lacks the weight two\.weight; the nearest are .*or name it in weights\.fresh",
        ),
        ({"two.weihgt": torch.zeros(1)}, [], [], r"the weight two\.weihgt; .* or name it in weights\.dropped"),
        ({"two.weight": torch.zeros(2, 2)}, [], [], r"file: two\.weight is \(2, 2\) instead of \(3, 2\)"),
        ({}, ["four.*"], [], r"weights\.fresh: pattern 'four\.\*' matches no name"),
        ({}, [], ["four.*"], r"weights\.dropped: pattern 'four\.\*' matches no name"),
        ({}, ["two.*"], [], r"two\.weight is there and in the model, .* give 'weights\.fresh=\[\]'"),
        (
            {"two.bias": None},
            ["two.bias", "two.w*"],
            [],
            r"two\.weight is there .* give 'weights\.fresh=\[two\.bias\]'; to begin anew .* in weights\.dropped too",
        ),
        ({}, [], ["two.*"], r"weights\.dropped would .* give 'weights\.dropped=\[\]'; .* in weights\.fresh too"),
    ],
)
def test_what_does_not_fit_is_one_error_and_changes_nothing(
    change: dict[str, torch.Tensor | None], fresh: list[str], dropped: list[str], message: str
) -> None:
    source, model = {**small().state_dict(), **change}, small()
    weights = {name: value for name, value in source.items() if value is not None}
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        checkpoints.fill(model, weights, "file", fresh=fresh, dropped=dropped)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def doubled() -> nn.Module:
    """With a part that `small` lacks, which has a layer more than what it begins as."""
    copy = nn.ModuleDict({"weight_of": nn.Linear(2, 3), "extra": nn.Linear(1, 1)})
    return nn.ModuleDict({**dict(small().named_children()), "twin": copy})


def test_what_the_source_lacks_begins_as_a_copy() -> None:
    source, model = small().state_dict(), doubled()
    before = model["twin"]["extra"].weight.detach().clone()
    checkpoints.fill(
        model, source, "file", fresh=["twin.extra.*"], copies={"twin.weight_of.*": "two.*", "four.*": None}
    )
    for name in ("weight", "bias"):
        assert torch.equal(getattr(model["twin"]["weight_of"], name), source[f"two.{name}"])
        assert torch.equal(getattr(model["two"], name), source[f"two.{name}"])
    assert torch.equal(model["twin"]["extra"].weight, before)


def test_a_copy_is_a_value_of_its_own() -> None:
    model = doubled()
    checkpoints.fill(model, small().state_dict(), "file", fresh=["twin.extra.*"], copies={"twin.weight_of.*": "two.*"})
    with torch.no_grad():
        model["two"].weight.add_(1)
    assert torch.equal(model["twin"]["weight_of"].weight + 1, model["two"].weight)


def test_what_is_fresh_is_no_copy_and_the_first_pattern_decides() -> None:
    source, model = small().state_dict(), doubled()
    before = model["twin"]["weight_of"].bias.detach().clone()
    copies = {"twin.extra.*": "three.*", "twin.*": "*"}
    source |= {"weight_of.weight": torch.ones(3, 2), "extra.weight": torch.ones(1, 1)}
    dropped = ["weight_of.weight", "extra.weight"]  # what is left out can still be copied
    checkpoints.fill(model, source, "file", fresh=["twin.weight_of.bias"], dropped=dropped, copies=copies)
    assert torch.equal(model["twin"]["weight_of"].bias, before)
    assert torch.equal(model["twin"]["weight_of"].weight, torch.ones(3, 2))
    assert torch.equal(model["twin"]["extra"].weight, source["three.weight"])


def test_what_the_source_has_is_no_copy() -> None:
    source, model = doubled().state_dict(), doubled()
    del source["twin.weight_of.bias"]
    checkpoints.fill(model, source, "file", fresh=(), dropped=(), copies={"twin.weight_of.*": "two.*"})
    assert torch.equal(model["twin"]["weight_of"].weight, source["twin.weight_of.weight"])
    assert torch.equal(model["twin"]["weight_of"].bias, source["two.bias"])


@pytest.mark.parametrize(
    ("copies", "fresh", "message"),
    [
        ({}, ["twin.extra.*"], r"file lacks the weight twin\.weight_of\.weight; "),
        ({"twni.*": "two.*"}, [], r"weights\.copies: pattern 'twni\.\*' matches no name; the nearest are .*twin\."),
        ({"twin.*": "tow.*"}, [], r"weights\.copies: pattern 'tow\.\*' matches no name; the nearest are two\."),
        (
            {"twin.*": "two.*"},
            [],
            r"file lacks two\.weight_of\.weight, which twin\.weight_of\.weight is to .*the nearest",
        ),
        (
            {"twin.weight_of.*": "one.*"},
            ["twin.extra.*"],
            r"file: one\.weight is \(2, 2\), but twin\.weight_of\.weight is \(3, 2\) \(weights\.copies\)",
        ),
        ({"two.*": "one.*"}, ["twin.*"], r"weights\.copies: nothing is left for 'two\.\*', for file has those"),
        ({"twin.*": "two.*"}, ["twin.*"], r"nothing is left for 'twin\.\*', .* or weights\.fresh names them"),
    ],
)
def test_a_copy_that_does_not_fit_is_one_error_and_changes_nothing(
    copies: dict[str, str | None], fresh: list[str], message: str
) -> None:
    source, model = small().state_dict(), doubled()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    with pytest.raises(UserError, match=message):
        checkpoints.fill(model, source, "file", fresh=fresh, dropped=[], copies=copies)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.fixture(scope="module")
def shards(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("shards"))


@pytest.fixture(scope="module")
def source(shards: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A plain model's run."""
    return train(tiny(shards, tmp_path_factory.mktemp("source"), loop={"max_steps": 2, "epoch_steps": 2})).folder


def tuned(shards: Path, folder: Path, source: Path, **loop: object) -> RunConfig:
    """The same with a mask, from the source's weights."""
    config = validated(shards, folder, loop={"max_steps": 6, "epoch_steps": 4, **loop})
    plain = dataclasses.asdict(config)
    plain["model"]["backbone"]["dynamics"] = DYNAMICS
    plain["model"]["heads"]["dynamic"] = {"kind": "dynamic"}
    plain["weights"] = {"path": str(source), "fresh": ["backbone.dynamics.*"]}
    plain["optimiser"]["trainable"] = ["backbone.global_blocks.1.*", "backbone.dynamics.*"]
    return build(RunConfig, plain, "config")


def test_finetuning_starts_from_the_weights_and_trains_only_what_it_should(
    shards: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    result = finetune(tuned(shards, tmp_path, source))
    old, new = checkpoints.read(source).model.state_dict(), checkpoints.read(result.folder).model.state_dict()
    changed = {name for name in old if not torch.equal(old[name], new[name])}
    assert changed
    assert all(name.startswith("backbone.global_blocks.1.") for name in changed)
    lines = [json.loads(line) for line in (result.folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if line["split"] == "validation"] == [0, 4, 6]
    assert result.before["depth_absrel_median_frame"] > 0
    assert result.before.keys() == result.validation.keys()
    table = capsys.readouterr().out
    assert "before" in table
    assert "after" in table


def test_a_run_starts_with_the_copies(shards: Path, source: Path, tmp_path: Path) -> None:
    plain = dataclasses.asdict(validated(shards, tmp_path))
    plain["model"]["heads"]["points"] = {**plain["model"]["heads"]["depth"], "output": "points"}
    plain["weights"] = {
        "path": str(source),
        "fresh": ["heads.points.out.*"],
        "copies": {"heads.points.*": "heads.depth.*"},
    }
    config = build(RunConfig, plain, "config")
    state = TrainingModule(config, checkpoints.read(source)).model.state_dict()
    copies = {name for name in state if name.startswith("heads.points.") and ".out." not in name}
    assert copies
    for name in copies:
        assert torch.equal(state[name], state[name.replace("points", "depth")]), name


def test_alpha_follows_the_steps_and_is_stored(shards: Path, source: Path, tmp_path: Path) -> None:
    for steps, alpha in ((4, 0.5), (6, 0.0)):  # set by the steps before
        result = finetune(tuned(shards, tmp_path, source, max_steps=steps))
        found = checkpoints.read(result.folder).model.state_dict()["backbone.dynamics.alpha"]
        assert found.item() == pytest.approx(alpha), steps


def test_the_origin_and_its_licences_stay_known(shards: Path, source: Path, tmp_path: Path) -> None:
    result = finetune(tuned(shards, tmp_path, source))
    run = torch.load(result.checkpoint, weights_only=True)["run"]
    assert run["origin"]["path"].startswith(str(source))
    assert run["origin"]["sha256"] == checkpoints.sha256_of(source / checkpoints.LAST)
    assert checkpoints.read(result.folder).info.recipe["started from"].startswith("test (weights' sha256 ")
    assert checkpoints.read(source).info.trained_on.items() <= checkpoints.read(result.folder).info.trained_on.items()


def test_a_run_that_got_worse_says_so(
    shards: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config = tuned(shards, tmp_path, source)
    config = dataclasses.replace(config, optimiser=dataclasses.replace(config.optimiser, lr=1.0, trainable=("*",)))
    result = finetune(config)
    assert "loss" in result.worse
    assert "warning: worse than the weights it started from: " in capsys.readouterr().err


def test_the_verb_takes_weights_as_one_word(
    shards: Path, source: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(to_yaml(validated(shards, tmp_path, loop={"max_steps": 2, "epoch_steps": 2})))
    assert cli.main(["finetune", str(file)]) == 2
    assert "give weights=PATH" in capsys.readouterr().err
    assert cli.main(["finetune", str(file), f"weights={source}"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "test")  # even a short run says where it is
    assert f"path: {source}" in (tmp_path / "test" / "config.yaml").read_text()


def test_what_is_no_number_any_more_is_worse() -> None:
    figures = {"validation": {"loss": 1.0}, "before": {"loss": 2.0, "pose_rot_pairs_deg": 3.0}}
    result = TrainResult(folder=Path(), checkpoint=Path(), best=None, steps=1, seconds=0.0, **figures)
    assert result.worse == ("pose_rot_pairs_deg",)


def test_every_figure_gets_worse_in_its_own_direction(capsys: pytest.CaptureFixture[str]) -> None:
    def nothing(_: Comparison) -> float | None:
        return None

    metrics = validation_metrics(
        own=[
            Metric("hits", "", better="higher", compute=nothing),
            Metric("misses", "", better="lower", compute=nothing),
            Metric("share", "", compute=nothing),
        ]
    )
    up, down = {"hits": 0.9, "misses": 0.9, "share": 0.9}, {"hits": 0.1, "misses": 0.1, "share": 0.1}
    grown, shrunk = (
        TrainResult(
            folder=Path(),
            checkpoint=Path(),
            best=None,
            steps=1,
            seconds=0.0,
            before=before,
            validation=after,
            metrics=metrics,
        )
        for before, after in ((down, up), (up, down))
    )
    assert grown.worse == ("misses",)
    assert shrunk.worse == ("hits",)
    compare(shrunk)
    table = capsys.readouterr().out
    assert "hits ↑" in table
    assert "misses ↓" in table
    assert table.count("✗") == 1


def test_finetuning_needs_weights_and_held_out_clips(shards: Path, source: Path, tmp_path: Path) -> None:
    config = tuned(shards, tmp_path, source)
    with pytest.raises(UserError, match="give weights=PATH"):
        finetune(dataclasses.replace(config, weights=None))
    with pytest.raises(UserError, match=r"give data\.validation"):
        finetune(dataclasses.replace(config, data=dataclasses.replace(config.data, validation={})))
    with pytest.raises(UserError, match=r"weights\.path is missing"):
        train(dataclasses.replace(config, weights=WeightsConfig()))
    with pytest.raises(UserError, match="does not exist"):
        train(dataclasses.replace(config, weights=WeightsConfig(path=str(tmp_path / "nothing"))))
    assert not config.run_folder.exists()


def test_a_best_figure_that_nobody_gives_is_an_error(shards: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"loop\.best is 'los', which no validation gives; choose one of loss, "):
        train(validated(shards, tmp_path, loop={"best": "los", "max_steps": 2, "epoch_steps": 2}))


def test_groups_have_rates_and_decays_of_their_own() -> None:
    config = OptimiserConfig(
        lr=1e-3,
        weight_decay=0.1,
        warmup_share=0.5,
        groups={"head": GroupConfig(parameters=("two.*",), lr=1e-2, weight_decay=0.2, warmup_share=0.1)},
    )
    optimiser = make_optimiser(small(), config)
    found = {(g["part"], g["weight_decay"]): round(group_rate(0.1, config, g), 6) for g in optimiser.param_groups}
    assert found == {("", 0.1): 2e-4, ("", 0.0): 2e-4, ("head", 0.2): 1e-2, ("head", 0.0): 1e-2}


def test_groups_that_do_not_fit_are_named() -> None:
    twice = {name: GroupConfig(parameters=(pattern,)) for name, pattern in (("a", "one.*"), ("b", "one.bias"))}
    with pytest.raises(UserError, match=r"one\.bias is in two groups, a and b"):
        parts(small(), OptimiserConfig(groups=twice))
    with pytest.raises(UserError, match=r"optimiser\.groups\.a: pattern 'four' matches nothing"):
        parts(small(), OptimiserConfig(groups={"a": GroupConfig(parameters=("four",))}))


def test_clipping_by_groups_limits_each_norm(shards: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    groups = {"heads": {"parameters": ["heads.*"]}}
    norms: list[list[float]] = []

    def look(self: TrainingModule) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        total = clip(self)
        grouped = [[p for p in part if p.grad is not None] for part in self._parts().values()]
        norms.append([float(torch.stack([p.grad.norm() for p in part]).norm()) for part in grouped])
        return total

    clip = TrainingModule._clip
    monkeypatch.setattr(TrainingModule, "_clip", look)
    train(tiny(shards, tmp_path, optimiser={"clip": "groups", "groups": groups, "clip_norm": 1e-3}))
    assert all(norm == pytest.approx(1e-3, rel=1e-3) for each in norms for norm in each)
    assert all(len(each) == 2 for each in norms)


def test_a_killed_and_resumed_run_ends_with_the_same_weights_and_mask_schedule(
    shards: Path, source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, broken = (tuned(shards, tmp_path / name, source, epoch_steps=3, ema=0.9) for name in ("whole", "broken"))
    expected = finetune(whole)
    crash(monkeypatch, 4, lambda: finetune(broken))
    stopped = last(broken)
    assert stopped["run"]["step"] == 3
    assert stopped["state_dict"]["model.backbone.dynamics.alpha"] == 1  # of step 2; at 3 it begins to fall
    monkeypatch.setattr(checkpoints, "read", lambda _: pytest.fail("a resumed run has its weights already"))
    result = finetune(broken)
    assert_same(last(broken)["state_dict"], last(whole)["state_dict"])
    assert last(broken)["run"]["origin"] == last(whole)["run"]["origin"]
    assert result.before == expected.before
    assert result.validation == expected.validation

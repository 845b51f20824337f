"""Loss terms: weights of their own, and weights in the sum that change over the run."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Literal, cast

import lightning
import pytest
import torch
from torch import Tensor, nn

from four_d.config import GroupConfig, RunConfig, WeightsConfig, to_yaml
from four_d.errors import UserError
from four_d.losses import LossConfig
from four_d.losses.dense import DepthLossConfig
from four_d.losses.reduction import nothing
from four_d.losses.schedule import Ramp, Weight, weight_at
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm
from four_d.schema import Plain, build, to_plain
from four_d.training import finetune, train
from four_d.training.module import TrainingModule
from four_d.training.optimiser import parts
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from four_d.types import Example, Prediction
from tests.training.runs import make_data, tiny, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), bare=1)


@dataclass(frozen=True, kw_only=True)
class CritiqueConfig(LossSpec):
    """A term with weights: depth is compared after a learned map."""

    needs: ClassVar[tuple[Need, ...]] = ("depth",)
    teaches: ClassVar[tuple[str, ...]] = ("depth",)
    kind: Literal["critique"] = "critique"
    weight: Weight = 1.0

    def build(self) -> Critique:
        return Critique(self)


class Critique(LossTerm[CritiqueConfig]):
    def __init__(self, config: CritiqueConfig) -> None:
        super().__init__(config)
        self.map = nn.Linear(1, 1)

    def forward(self, inputs: LossInputs) -> Tensor:
        depth, truth, valid = inputs.prediction.depth, inputs.targets.depth, inputs.targets.valid
        if truth is None or valid is None or not valid.any():
            return nothing(depth)
        return (self.map(depth[..., None])[..., 0] - self.map(truth[..., None])[..., 0])[valid].abs().mean()


def with_critique(config: RunConfig, **settings: object) -> RunConfig:
    losses: dict[str, LossConfig] = {**config.losses, "critique": CritiqueConfig(**settings)}
    return dataclasses.replace(config, losses=losses)


def test_terms_weights_are_drawn_after_the_models_and_are_trained(data: Path, tmp_path: Path) -> None:
    plain, module = TrainingModule(tiny(data, tmp_path)), TrainingModule(with_critique(tiny(data, tmp_path)))
    assert all(torch.equal(a, b) for a, b in zip(plain.model.parameters(), module.model.parameters(), strict=True))
    groups = module.configure_optimizers().param_groups
    trained = {id(parameter) for group in groups for parameter in group["params"]}
    assert trained == {id(parameter) for parameter in module.parameters()}
    config = dataclasses.replace(
        module.config.optimiser, groups={"critic": GroupConfig(parameters=("losses.critique.*",), lr=0.1)}
    )
    assert {id(p) for p in parts(module, config)["critic"]} == {id(p) for p in module.losses.parameters()}


def test_every_weight_of_a_term_gets_a_gradient_even_from_clips_without_truth(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(with_critique(tiny(data, tmp_path)))
    batch = RunData(module.config).training[0].batches[0]
    bare = dataclasses.replace(batch, targets=dataclasses.replace(batch.targets, depth=None, valid=None, cameras=None))
    for each in (batch, bare):
        module.zero_grad()
        module.terms(each)[1]["loss"].backward()
        assert [name for name, p in module.named_parameters() if p.grad is None] == []


def test_a_frozen_model_leaves_terms_to_train(data: Path, tmp_path: Path) -> None:
    config = with_critique(tiny(data, tmp_path, optimiser={"trainable": ["heads.*"]}))
    module = TrainingModule(config)
    assert not any(p.requires_grad for p in module.model.get_submodule("backbone").parameters())
    assert all(p.requires_grad for p in module.losses.parameters())


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_checkpoint_holds_terms_weights_beside_the_models(data: Path, tmp_path: Path, ema: float | None) -> None:
    config = with_critique(tiny(data, tmp_path, loop={"max_steps": 3, "epoch_steps": 3, "ema": ema}))
    before = {name: value.clone() for name, value in TrainingModule(config).state_dict().items()}
    state = torch.load(train(config).checkpoint, weights_only=True)
    assert state["state_dict"].keys() == before.keys()
    # the bias cancels out: it gets the gradient 0, and no decay
    name = "losses.critique.map.weight"
    assert not torch.equal(state["state_dict"][name], before[name])
    if ema is not None:
        assert not torch.equal(state["run"]["trained"][name], state["state_dict"][name])
        assert state["run"]["trained"].keys() == {each.removeprefix("model.") for each in before}


def test_a_run_whose_terms_have_other_weights_is_not_continued(data: Path, tmp_path: Path) -> None:
    module = TrainingModule(with_critique(tiny(data, tmp_path)))
    content: Plain = {"state_dict": module.state_dict(), "optimizer_states": []}
    module.on_save_checkpoint(content)
    with pytest.raises(
        UserError, match=r"losses\.critique\.map\.weight is not as the run began; set losses\.critique as"
    ):
        TrainingModule(tiny(data, tmp_path)).on_load_checkpoint(content)
    other: Plain = {"state_dict": TrainingModule(tiny(data, tmp_path)).state_dict(), "run": content["run"]}
    with pytest.raises(UserError, match="is not as the run began"):
        module.on_load_checkpoint(other)


def test_ramps_by_hand() -> None:
    ramp = Ramp(start=1.0, end=3.0, since=0.2, until=0.6)
    found = [weight_at(ramp, progress) for progress in (0.0, 0.2, 0.4, 0.5, 0.6, 1.0)]
    assert found == pytest.approx([1, 1, 2, 2.5, 3, 3])
    smooth = dataclasses.replace(ramp, shape="cosine")
    assert [weight_at(smooth, progress) for progress in (0.1, 0.3, 0.4, 0.9)] == pytest.approx(
        [1, 1.29289, 2, 3], abs=1e-5
    )
    assert weight_at(0.7, 0.5) == 0.7


@pytest.mark.parametrize("given", [2, "2.0", 2.0, {"start": 0, "end": 2, "until": 0.5}])
def test_a_weight_is_a_number_or_a_ramp(given: object, data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, losses={"depth": {"kind": "depth", "weight": given}})
    weight = config.losses["depth"].weight
    assert weight == (Ramp(start=0.0, end=2.0, until=0.5) if isinstance(given, dict) else 2.0)
    assert build(RunConfig, to_plain(config), "config") == config
    assert "weight" in to_yaml(config)


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("much", "config.losses.depth.weight is 'much': Value 'much' of type 'str' could not be converted to Float"),
        (float("nan"), "config.losses.depth.weight is nan; give a finite number"),
        (
            {"start": 1},
            "config.losses.depth.weight.end is missing; set it in a config file or as losses.depth.weight.end=",
        ),
        (
            {"start": 1, "end": 1},
            "config.losses.depth.weight: start and end are both 1; give that number alone, as weight=1",
        ),
        (
            {"start": 1, "end": -1},
            "config.losses.depth.weight: start is 1 and end -1; a loss is minimised: choose 0 or more",
        ),
        (-1, "losses.depth.weight is -1; a loss is minimised: choose 0 or more"),
        ({"start": 0, "end": 1, "since": 0.5, "until": 0.5}, "since is 0.5 and until 0.5, which are shares of the run"),
        (
            {"start": 0, "end": 1, "steps": 5},
            "config.losses.depth.weight.steps is not a setting; choose among start, end",
        ),
    ],
)
def test_weights_that_make_no_sense_are_refused(given: object, said: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        tiny(data, tmp_path, losses={"depth": {"kind": "depth", "weight": given}})
    assert said in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("name", ["loss", "step", "steps_per_s", "pose_ate_sim3", "keys", "training", "a.b"])
def test_names_that_mean_something_else_are_refused(name: str, data: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"a loss cannot be called '{name}'"):
        tiny(data, tmp_path, losses={name: {"kind": "depth"}})
    if name in ("keys", "training", "a.b"):
        config = tiny(data, tmp_path, model={"heads": {name: {"kind": "dense", "output": "depth"}}})
        with pytest.raises(UserError, match=f"a head cannot be called '{name}'"):
            config.model.build()


def test_a_ramp_weighs_the_term_step_by_step_and_is_recorded(data: Path, tmp_path: Path) -> None:
    ramp = {"start": 0.0, "end": 2.0, "since": 0.5}
    config = validated(data, tmp_path, losses={"depth": {"kind": "depth", "weight": ramp}})
    train(config)
    lines = read_metrics(config.run_folder)
    training = [line for line in lines if line["split"] == "train"]
    assert [line["weight/depth"] for line in training] == pytest.approx([0, 0, 0, 2 / 3, 4 / 3, 2])
    for line in training:
        camera = 5.0 * cast(float, line["camera"])
        expected = camera + cast(float, line["weight/depth"]) * cast(float, line["depth"])
        assert line["loss"] == pytest.approx(expected, rel=1e-5)
    for line in (line for line in lines if line["split"] == "validation"):
        assert line["loss"] == pytest.approx(
            5.0 * cast(float, line["camera"]) + 2 * cast(float, line["depth"]), rel=1e-5
        )


class Weights(lightning.Callback):
    """Records all parameters at the start and after every step."""

    def __init__(self) -> None:
        self.after: list[dict[str, Tensor]] = []

    def note(self, module: nn.Module) -> None:
        self.after.append({name: p.detach().clone() for name, p in module.named_parameters()})

    def on_train_start(self, trainer: lightning.Trainer, pl_module: lightning.LightningModule) -> None:  # noqa: ARG002
        self.note(pl_module)

    def on_train_batch_end(self, *given: object) -> None:
        self.note(cast(TrainingModule, given[1]))


@pytest.mark.parametrize(
    ("ramp", "rests"),
    [
        (Ramp(start=0.0, end=1.0, since=0.9), (True, True, False)),
        (Ramp(start=1.0, end=0.0, since=0.4, until=0.5), (False, True, True)),
    ],
)
def test_a_term_of_weight_0_voids_no_step_and_its_own_weights_rest(
    ramp: Ramp, rests: tuple[bool, ...], data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """0 · NaN is NaN; and Adam's moments and weight decay would move weights without a gradient."""
    config = with_critique(
        tiny(data, tmp_path, loop={"max_steps": 3, "epoch_steps": 3}, optimiser={"weight_decay": 0.5}), weight=ramp
    )
    whole, seen = Critique.forward, Weights()

    def broken(self: Critique, inputs: LossInputs) -> Tensor:
        return whole(self, inputs) * (float("nan") if weight_at(ramp, inputs.progress) == 0 else 1.0)

    monkeypatch.setattr(Critique, "forward", broken)
    result = train(config, callbacks=[seen])
    lines = [line for line in read_metrics(result.folder) if line["split"] == "train"]
    assert [line["critique"] is None for line in lines] == list(rests), "a value that is not finite is recorded as such"
    name = "losses.critique.map.weight"
    for rest, before, after in zip(rests, seen.after, seen.after[1:], strict=False):
        assert torch.equal(before[name], after[name]) == rest
        assert not torch.equal(before["model.heads.depth.out.weight"], after["model.heads.depth.out.weight"])
        assert all(value.isfinite().all() for value in after.values())


def test_every_weight_gets_a_gradient_while_the_only_term_of_a_head_has_weight_0(data: Path, tmp_path: Path) -> None:
    """Processes would wait for one without."""
    ramp = Ramp(start=0.0, end=1.0, since=0.5)
    config = with_critique(tiny(data, tmp_path), weight=ramp)
    module = TrainingModule(
        dataclasses.replace(config, losses={k: v for k, v in config.losses.items() if k != "depth"})
    )
    with torch.no_grad():
        for parameter in module.losses.parameters():
            parameter.fill_(torch.nan)
    module.terms(RunData(module.config).training[0].batches[0])[1]["loss"].backward()
    gradients = {name: p.grad for name, p in module.named_parameters()}
    assert [name for name, gradient in gradients.items() if gradient is None] == []
    assert all(gradient.isfinite().all() for gradient in gradients.values() if gradient is not None)
    assert not any(g.any() for name, g in gradients.items() if g is not None and name.startswith("model.heads.depth"))


@dataclass(frozen=True, kw_only=True)
class SlopeConfig(CritiqueConfig):
    """A term that differentiates a network of its own."""

    kind: Literal["slope"] = "slope"  # pyright: ignore[reportIncompatibleVariableOverride]

    def build(self) -> Slope:
        return Slope(self)


class Slope(Critique):
    def forward(self, inputs: LossInputs) -> Tensor:
        depth = inputs.prediction.depth
        assert depth is not None
        places = depth.flatten()[:, None]
        places = places if places.requires_grad else places.requires_grad_()
        made = self.map(places.square())
        return torch.autograd.grad(made.sum(), places, create_graph=True)[0].square().mean()


def test_a_term_may_differentiate_in_validation_too(data: Path, tmp_path: Path) -> None:
    """Before the first step too, which Lightning's trainer does by another way."""
    config = validated(data, tmp_path, loop={"max_steps": 1})
    begun = train(dataclasses.replace(config, name="begun"))
    losses: dict[str, LossConfig] = {**config.losses, "slope": SlopeConfig()}
    weights = WeightsConfig(path=str(begun.checkpoint))
    result = finetune(dataclasses.replace(config, losses=losses, weights=weights))
    assert result.before["slope"] > 0
    assert result.validation["slope"] > 0


def test_a_number_is_not_recorded(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 1})
    train(config)
    assert not any(name.startswith("weight/") for line in read_metrics(config.run_folder) for name in line)
    assert config.losses["depth"] == DepthLossConfig()


def test_a_step_without_finite_gradients_leaves_all_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = with_critique(tiny(data, tmp_path, loop={"max_steps": 4, "epoch_steps": 4, "ema": 0.5}))
    whole, kept, average = TrainingModule.terms, dict[str, Tensor](), dict[str, Tensor]()

    def poisoned(self: TrainingModule, example: Example) -> tuple[Prediction, dict[str, Tensor]]:
        prediction, terms = whole(self, example)
        if self.step == 2:
            assert self.average is not None
            kept.update({name: value.detach().clone() for name, value in self.state_dict().items()})
            average.update({name: value.clone() for name, value in self.average.weights.items()})
        factor = float("nan") if self.step >= 2 else 1.0
        return prediction, {name: value * factor for name, value in terms.items()}

    monkeypatch.setattr(TrainingModule, "terms", poisoned)
    saved = torch.load(train(config).checkpoint, weights_only=True)
    state, run = saved["state_dict"], saved["run"]
    assert state.keys() == kept.keys()
    names = {name: name if name.startswith("losses.") else f"model.{name}" for name in average}
    assert all(torch.equal(state[names[name]], value) for name, value in average.items()), (
        "the average does not move on"
    )
    assert all(torch.equal(run["trained"][name], kept[names[name]]) for name in average)
    assert any(not torch.equal(run["trained"][name], value) for name, value in average.items())
    assert run["average_updates"] == 2
    rest = set(kept) - set(names.values())
    assert all(torch.equal(state[name], kept[name]) for name in rest)

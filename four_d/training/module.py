"""Training module: an explicit step of forward, loss terms, backward and update."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, cast

import lightning
import numpy as np
import torch
from jaxtyping import Bool
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor, nn
from torch.distributed.fsdp import FSDPModule
from torch.distributed.tensor import DTensor

from four_d import fields
from four_d.abilities import ModelModule
from four_d.checkpoints import WEIGHTS, Checkpoint, fill, licences_of, sha256_of
from four_d.config import RunConfig, WeightsConfig
from four_d.data.loading import Step
from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.losses.reduction import nothing, weighted
from four_d.losses.schedule import Ramp, weight_at
from four_d.losses.supervision import supervised
from four_d.losses.term import LossInputs, values_of
from four_d.metrics.metric import Metric
from four_d.model import compile_blocks
from four_d.parts import Pretrained
from four_d.rendering.backends import fastest_missing
from four_d.schema import Plain, to_plain
from four_d.training import parallel
from four_d.training.averaging import Average
from four_d.training.optimiser import (
    LOSSES,
    check_trains,
    follow_rows,
    freeze,
    group_rate,
    make_optimiser,
    with_settings,
)
from four_d.training.strategies import DATA, exchanging, shard
from four_d.training.validation import Means, validation_metrics
from four_d.training.validation import figures as judged
from four_d.types import Clip, Example, Prediction

LOGGER = logging.getLogger(__name__)

Terms = dict[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Judged:
    """Soundness of a step, on the device: nobody waits for it before figures are recorded."""

    step: int
    keys: tuple[str, ...]
    """Clips of this process."""
    unsound: Bool[Tensor, "n"]
    """True for clips with a value that is not finite, in the data or the prediction."""
    bad: Bool[Tensor, ""]
    """True where the gradient, of all processes, was not finite: the step changed nothing."""

    def told(self, unsound: Sequence[bool]) -> str:
        """Line on a step that was left out; ``unsound``: the values of this one's, on the host."""
        found = dict.fromkeys(key for key, each in zip(self.keys, unsound, strict=True) if each)
        if found:
            return f"step {self.step}: not finite is a value of {', '.join(found)}, or what the model makes of it"
        return f"step {self.step}: the gradient of a batch is not finite, of {', '.join(dict.fromkeys(self.keys))}"


class TrainingModule(lightning.LightningModule):
    """Model, losses and update. The progress of a run is ``step`` (updates done) and ``elapsed`` (seconds).

    ``elapsed`` sums over all starts of the run, each from the end of its first step: compiling and starting workers
    before that vary with the machine and are not training. ``metrics`` are the caller's own, for validation.
    ``resumed``: its weights are those of a checkpoint that will be loaded.
    """

    def __init__(
        self,
        config: RunConfig,
        start: Checkpoint | None = None,
        metrics: Sequence[Metric] = (),
        *,
        resumed: bool = False,
    ) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        with torch.random.fork_rng(devices=[]):  # weights are drawn on the CPU
            torch.manual_seed(config.seed)
            self.model: ModelModule = config.model.build()
            self.losses = nn.ModuleDict({name: loss.build() for name, loss in config.losses.items()})
        self.origin: Plain = {}
        self.pretrained: dict[str, str] = {}
        """Source → licence of published weights that parts began with."""
        self.licences: dict[str, str] = {}
        """Source → licence of the training data; empty before the first checkpoint."""
        if not resumed:
            self._load_pretrained(start)
        if start is not None:
            self._start_from(start)
        freeze(self, config.optimiser.trainable, config.optimiser.frozen)
        # without a gradient these would stop the exchange of gradients between processes, and with one of zero decay
        self.untaught = self.model.freeze_untaught(
            frozenset(field for loss in config.losses.values() if loss.weight for field in loss.teaches)
        )
        check_trains(self)
        if config.loop.compile:
            compile_blocks(self.model)
        ema = config.loop.ema
        self.average = None if ema is None else Average(self, ema)
        self._averaged = ExitStack()
        self.step, self.elapsed, self.bad_steps = 0, 0.0, torch.zeros((), dtype=torch.long)
        self.judged: Judged | None = None
        """Clips and gradient of the last step, as it judged them; None before the first."""
        self.metrics = validation_metrics(config.losses, metrics)
        """Figures that validation may give, by name."""
        self._means = Means()
        self.validation: dict[str, float] = {}
        """Figures of the last validation, means over all clips of all processes."""

    def _load_pretrained(self, start: Checkpoint | None) -> None:
        """Load published weights into the parts whose configs name some, unless ``start`` has all of a part's."""
        chosen = self.config.weights or WeightsConfig()
        given = set[str]() if start is None else set(start.model.state_dict())
        given = {name for name in given if not any(fnmatchcase(name, pattern) for pattern in chosen.fresh)}
        for prefix, module in self.model.named_modules():
            own = {f"{prefix}.{name}" for name in module.state_dict()}
            if isinstance(module, Pretrained) and not own <= given:
                self.pretrained |= module.load_pretrained()

    def _start_from(self, start: Checkpoint) -> None:
        """Start from another model's weights, and record their origin."""
        chosen = self.config.weights or WeightsConfig()
        weights = start.model.state_dict()
        self.model.fit_shapes(weights)
        fill(
            self.model,
            weights,
            str(start.path),
            fresh=chosen.fresh,
            dropped=chosen.dropped,
            copies=chosen.copies,
        )
        file = start.path / WEIGHTS if (start.path / WEIGHTS).is_file() else start.path
        self.origin = {
            "path": str(start.path),
            "sha256": sha256_of(file),
            "name": start.info.name,
            "trained_on": start.info.trained_on,
        }

    def setup(self, stage: str) -> None:  # noqa: ARG002 - Lightning's name and signature
        """Compile the rasteriser before the first step, where other ranks would wait for it in a collective."""
        if self.model.abilities.gives_gaussians:
            ready_to_render(self.trainer.strategy.root_device, first=self.trainer.local_rank == 0)

    def configure_model(self) -> None:
        """Split the weights and their average over the processes where the strategy asks for it."""
        if self.device_mesh is not None and not isinstance(self, FSDPModule):
            shard(self, self.model, self.device_mesh[DATA])
            if self.average is not None:  # begins as the weights, which nothing has changed yet
                self.average = Average(self, cast(float, self.config.loop.ema))

    @property
    def share(self) -> float:
        """Completed fraction of the run, by steps or by time, whichever is further."""
        loop = self.config.loop
        by_time = 0.0 if loop.max_minutes is None else self.elapsed / (60 * loop.max_minutes)
        return min(1.0, max(self.step / loop.max_steps, by_time))

    @property
    def progress(self) -> float:
        """`share` at the end of the current step: at its beginning the first learning rate would be 0."""
        return min(1.0, max(self.share, (self.step + 1) / self.config.loop.max_steps))

    def terms(self, example: Example) -> tuple[Prediction, Terms]:
        """Compute the prediction and its unweighted loss terms; ``loss`` is their weighted sum.

        Terms of weight 0 are left out of it, whatever their value.
        """
        prediction = self.model(example.inputs)
        progress = self.progress if self.training else 1.0
        inputs = LossInputs(prediction=prediction, targets=example.targets, step=self.step, progress=progress)
        terms, weights = values_of(self.losses.items(), inputs), self.weights(progress)
        # processes exchange all gradients: those of terms' weights without truth, and of what only resting terms reach
        paths = self if 0 in weights.values() else self.losses
        linked = [parameter for parameter in paths.parameters() if parameter.requires_grad]
        if isinstance(self, FSDPModule):  # which does that itself (`strategies.shard`)
            linked = []
        zero = torch.zeros((), device=self.device)
        total = weighted(((weights[name], value) for name, value in terms.items()), start=nothing(zero, *linked))
        return prediction, {"loss": total, **terms}

    def weights(self, progress: float) -> dict[str, float]:
        """Weights of the terms at a fraction of the run."""
        return {name: weight_at(loss.weight, progress) for name, loss in self.config.losses.items()}

    def supervised(self, targets: Clip) -> Terms:
        """Fraction of a batch's clips that have each term's truth."""
        return {name: supervised(targets, term.needs).float().mean() for name, term in self.config.losses.items()}

    def training_step(self, step: Step, _: int) -> Terms:
        """Perform one update and return its figures, means over its batches.

        They are the terms, ``supervised/TERM``, lr, gradient_norm (before clipping), ``gradient_norm/GROUP`` of each of
        ``optimiser.groups`` and of the rest, and ``weight/TERM`` of weights that change over the run.
        """
        # stochastic layers must not depend on how often a run was resumed
        seed_device(_seed(self.config.seed, step.index, self.global_rank), self.device)
        optimiser = cast(LightningOptimizer, self.optimizers())
        self._follow_rows(self.model.at_step(self.step), optimiser)
        rate = self._set_rate(optimiser)
        optimiser.zero_grad()
        count, means, unsound = len(step.batches), Terms(), list[Tensor]()
        for number, example in enumerate(step.batches, start=1):
            with exchanging(self, self.trainer.strategy.model, number == count):
                prediction, terms = self.terms(example)
                unsound.append(unsound_clips(example.inputs, example.targets, prediction))
                del prediction
                with full_precision(self.device):  # as torch requires; Lightning's autocast covers this whole method
                    self.manual_backward(terms["loss"] / count)
            shares = {f"supervised/{name}": share for name, share in self.supervised(example.targets).items()}
            for name, value in {**terms, **shares}.items():
                means[name] = means.get(name, 0) + value.detach() / count
        norm, norms = self._clip()
        keys = tuple(key for example in step.batches for key in example.key)
        self.judged = Judged(step=self.step, keys=keys, unsound=torch.cat(unsound), bad=~norm.isfinite())
        self._stop_where_stuck(self.judged)
        now = self.weights(self.progress)
        ramps = [name for name, loss in self.config.losses.items() if isinstance(loss.weight, Ramp)]
        weights = {f"weight/{name}": torch.full((), now[name], device=self.device) for name in ramps}
        self._rest(name for name, weight in now.items() if not weight)
        optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self, norm.isfinite())
        figures = {**means, **weights, "lr": torch.full((), rate, device=self.device), "gradient_norm": norm, **norms}
        every = cast(int, self.trainer.log_every_n_steps)  # pyright: ignore[reportAttributeAccessIssue] - set elsewhere
        if every and self.step % every == 0:  # when loggers write: Lightning's bookkeeping costs more than the figures
            self.log_dict({f"train/{name}": value for name, value in figures.items()})
        return figures

    def _follow_rows(self, rows: Mapping[str, Tensor], optimiser: LightningOptimizer) -> None:
        """Let the optimiser and the running average follow parameters that got other rows (`ModelModule.at_step`)."""
        if rows and parallel.running():
            raise UserError(f"{next(iter(rows))} changes its rows, which processes cannot share; train in one process")
        for name, former in rows.items():
            parameter = self.model.get_parameter(name)
            parameter.grad = None
            if not parameter.requires_grad:
                continue
            follow_rows(optimiser.optimizer.state[parameter], former)
            if self.average is not None:
                self.average.follow_rows(name, parameter, former)

    def _set_rate(self, optimiser: LightningOptimizer) -> float:
        loop = self.config.loop
        warmed = (self.step + 1) / max(1, min(self.config.optimiser.min_warmup_steps, loop.max_steps // 5))
        for group in optimiser.param_groups:
            group["lr"] = group_rate(self.progress, self.config.optimiser, group, warmed)
        return cast(float, optimiser.param_groups[0]["lr"])

    def _clip(self) -> tuple[Tensor, Terms]:
        """Clip the gradient, and return its norm before, and those of groups if there are any, by their names in
        figures; where the norm is not finite the update does nothing.

        All on the device: waiting for the norm would stall every step.
        """
        trained = [parameter for parameter in self.parameters() if parameter.requires_grad]
        config, parts = self.config.optimiser, self._parts() if self.config.optimiser.groups else {}
        if config.clip == "groups":
            norms = [_whole(torch.nn.utils.clip_grad_norm_(group, config.clip_norm)) for group in parts.values()]
            norm = torch.stack(norms).norm()
        else:
            norms = [_whole(torch.nn.utils.get_total_norm(_gradients(group))) for group in parts.values()]
            norm = _whole(torch.nn.utils.clip_grad_norm_(trained, config.clip_norm))
        optimiser = cast(LightningOptimizer, self.optimizers())
        optimiser.optimizer.found_inf = (~norm.isfinite()).float()  # pyright: ignore[reportAttributeAccessIssue] - as torch.amp.GradScaler
        return norm, {f"gradient_norm/{part or 'rest'}": each for part, each in zip(parts, norms)}

    def _stop_where_stuck(self, judged: Judged) -> None:
        """Raise UserError, at the latest ``loop.bad_steps`` later, where as many in a row had no finite gradient."""
        most = self.config.loop.bad_steps
        self.bad_steps = torch.where(judged.bad, self.bad_steps.to(judged.bad.device) + 1, 0)
        if (self.step + 1) % most == 0 or self.progress >= 1:
            count = int(self.bad_steps)
            if count >= most:
                raise UserError(
                    f"{count} steps in a row gave no finite gradient; lower optimiser.lr, use fp32, or leave out such "
                    f"clips ({judged.told(judged.unsound.tolist())})"
                )

    def _rest(self, terms: Iterable[str]) -> None:
        """Keep the update from these terms' own weights: without a gradient they neither decay nor drift."""
        for name in terms:
            for parameter in self.losses[name].parameters():
                parameter.grad = None

    def _parts(self) -> dict[str, list[Tensor]]:
        """Parameters of each of the optimiser's groups that clip and are recorded by themselves."""
        found: dict[str, list[Tensor]] = {}
        for group in cast(LightningOptimizer, self.optimizers()).param_groups:
            found.setdefault(group["part"], []).extend(group["params"])
        return found

    def on_fit_start(self) -> None:
        """Report the heads that learn nothing."""
        for name, output in self.untaught.items() if self.global_rank == 0 else ():
            remedy = f"add a loss of {output}, or leave it out: model.{name}=null"
            LOGGER.warning(f"{name} has no loss, so its weights stay as they are; {remedy}")

    def validation_step(self, step: Step, _: int) -> dict[str, Prediction | Terms]:
        """Prediction and terms of one clip, under the averaged weights if there are any."""
        targets = step.batches[0].targets
        devices = [self.device] if self.device.type == "cuda" else []
        with torch.random.fork_rng(devices):  # what terms draw is the same at every validation, so that figures compare
            torch.manual_seed(self.config.seed)
            prediction, terms = self.terms(step.batches[0])
        terms = {name: value.detach() for name, value in terms.items()}
        found = judged(prediction, terms, self.supervised(targets), targets, self.metrics.values())
        self._means.add(found, 0.0 if step.repeat else 1.0)
        return {"prediction": prediction, "terms": terms}

    def on_validation_start(self) -> None:
        """Validate the averaged weights."""
        if self.average is not None:
            self._averaged.enter_context(self.average.applied(self))

    def on_validation_epoch_end(self) -> None:
        """Take the means over the clips; Lightning's loggers and callbacks know them as ``validation/NAME``."""
        self.validation = self._means.take(self.device)
        self.log_dict({f"validation/{name}": value for name, value in self.validation.items()}, batch_size=1)

    def on_validation_end(self) -> None:
        """Restore the training weights."""
        self._averaged.close()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Make AdamW; every step sets its rate."""
        return make_optimiser(self, self.config.optimiser)

    def on_save_checkpoint(self, checkpoint: Plain) -> None:
        """Save the weights to use, averaged ones if there are any, as ``state_dict``; plain containers only."""
        run: Plain = {"step": self.step, "elapsed": self.elapsed, "config": to_plain(self.config)}
        if self.origin:
            run["origin"] = self.origin
        if self.pretrained:
            run["pretrained"] = self.pretrained
        if not self.licences:  # of the data, which may be gone when the model is exported
            self.licences = licences_of(self.config)
        run["licences"] = self.licences
        if self.average is not None and "optimizer_states" in checkpoint:
            state = cast(dict[str, Tensor], checkpoint["state_dict"])
            run["trained"] = {name: state[_key(name)] for name in self.average.weights}
            run["average_updates"] = int(self.average.updates)
        if self.average is not None:
            state = cast(dict[str, Tensor], checkpoint["state_dict"])
            averaged = {_key(name): value for name, value in self.average.weights.items()}
            checkpoint["state_dict"] = {**state, **averaged}
        checkpoint["run"] = run

    def on_load_checkpoint(self, checkpoint: Plain) -> None:
        """Load a checkpoint; a run may begin or continue without averaging."""
        run = cast(Plain, checkpoint["run"])
        self.step, self.elapsed = cast(int, run["step"]), cast(float, run["elapsed"])
        self.origin = cast(Plain, run.get("origin", {}))
        self.pretrained = cast(dict[str, str], run.get("pretrained", {}))
        self.licences = cast(dict[str, str], run.get("licences", {}))
        state = cast(dict[str, Tensor], checkpoint["state_dict"])
        self._check_losses(state)
        self.model.fit_shapes({name.removeprefix("model."): value for name, value in state.items()})
        if self.average is not None:
            used = {name.removeprefix("model."): value for name, value in state.items()}
            self.average.load(used, cast(int, run.get("average_updates", 0)))
        trained = cast(dict[str, Tensor], run.get("trained", {}))
        checkpoint["state_dict"] = {**state, **{_key(name): value for name, value in trained.items()}}
        if "optimizer_states" in checkpoint:
            fresh = make_optimiser(self, self.config.optimiser)
            saved = cast(list[dict[str, Any]], checkpoint["optimizer_states"])
            checkpoint["optimizer_states"] = [with_settings(each, fresh) for each in saved]

    def _check_losses(self, state: Mapping[str, Tensor]) -> None:
        """Raise UserError where terms have other learned weights than those that the run began with."""
        begun = {name: value.shape for name, value in state.items() if name.startswith(LOSSES)}
        own = {name: value.shape for name, value in self.losses.state_dict(prefix=LOSSES).items()}
        for name in {**begun, **own}:
            if begun.get(name) != own.get(name):
                term = ".".join(name.split(".")[:2])
                raise UserError(
                    f"{name} is not as the run began; set {term} as it was then, or choose another name for the run"
                )


def _whole(norm: Tensor) -> Tensor:
    """Norm over all processes, of which each may have a part."""
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def _gradients(parameters: Iterable[Tensor]) -> list[Tensor]:
    return [parameter.grad for parameter in parameters if parameter.grad is not None]


def _key(name: str) -> str:
    """Name in ``state_dict`` of a parameter of `optimiser.trained`."""
    return name if name.startswith(LOSSES) else f"model.{name}"


def ready_to_render(device: torch.device, *, first: bool) -> None:
    """Build the rasteriser, on the ``first`` process of each machine before the others.

    UserError, on every process, where any of several would have to render in plain torch while the others wait.
    """
    reason = parallel.in_turn(lambda: fastest_missing(device), first=first)
    lacking = parallel.total([float(reason is not None)], device)[0]
    if parallel.running() and lacking:
        count = f"{lacking:.0f} of {torch.distributed.get_world_size()} processes"
        raise UserError(
            f"{count} would render in plain torch, which is too slow to share a run ({reason or 'not this one'}); see "
            "four-d doctor there"
        )


@torch.no_grad()
def unsound_clips(*values: Clip | Prediction) -> Bool[Tensor, "b"]:
    """Tell which clips of a batch have a value that is not finite, on the device."""
    found: list[Tensor] = []
    for value in values:
        for leaf, tensor in fields.leaves(value):
            if leaf.dim("b", tensor) == 0 and tensor.is_floating_point():
                rows = tensor.unsqueeze(-1).flatten(1)
                found.append(~rows.sum(1, dtype=full_type(tensor.dtype)).isfinite())  # takes less memory than a mask
    return torch.stack(found).any(0)


def seed_device(seed: int, device: torch.device) -> None:
    """Seed torch's generators of the CPU and of a device.

    ``torch.manual_seed`` seeds all kinds of devices, and stores the stack for each that has not been used.
    """
    torch.default_generator.manual_seed(seed)
    if device.type == "cuda":
        torch.cuda.manual_seed_all(seed)
    elif device.type == "mps":
        torch.mps.manual_seed(seed)


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

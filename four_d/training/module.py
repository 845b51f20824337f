"""The one training module: a step is forward, terms, backward and update, written out."""

from __future__ import annotations

from contextlib import AbstractContextManager, ExitStack, nullcontext
from typing import cast

import lightning
import numpy as np
import torch
from lightning.pytorch.core.optimizer import LightningOptimizer
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel

from four_d.checkpoints import WEIGHTS, Checkpoint, fill, sha256_of
from four_d.config import Plain, RunConfig, WeightsConfig, to_plain
from four_d.data.loading import Step
from four_d.errors import UserError
from four_d.layers import full_precision, full_type
from four_d.model import FourD, compile_blocks
from four_d.rendering import render
from four_d.training.averaging import Average
from four_d.training.optimiser import freeze, group_rate, make_optimiser
from four_d.types import Clip, Example, Prediction, Views, map_tensors

MAX_BAD_STEPS = 20
"""Steps in a row without finite gradients after which a run gives up."""

Terms = dict[str, Tensor]


class TrainingModule(lightning.LightningModule):
    """Model, losses and update. Where a run stands is ``step`` (updates done) and ``elapsed`` (seconds, all starts)."""

    def __init__(self, config: RunConfig, start: Checkpoint | None = None) -> None:
        super().__init__()
        self.automatic_optimization = False
        self.config = config
        with torch.random.fork_rng():
            torch.manual_seed(config.seed)
            self.model: FourD = config.model.build()
        self.origin: Plain = {}
        if start is not None:
            self._start_from(start)
        freeze(self.model, config.optimiser.trainable, config.optimiser.frozen)
        if config.loop.compile:
            compile_blocks(self.model)
        ema = config.loop.ema
        self.average = None if ema is None else Average(self.model, ema)
        self._averaged = ExitStack()
        self.step, self.elapsed, self.bad_steps = 0, 0.0, 0

    def _start_from(self, start: Checkpoint) -> None:
        """Take over another model's weights, and remember whose they are."""
        chosen = self.config.weights or WeightsConfig()
        weights = start.model.state_dict()
        fill(
            self.model,
            weights,
            str(start.path),
            fresh=chosen.fresh,
            dropped=chosen.dropped,
            copies=chosen.copies,
        )
        file = start.path / WEIGHTS if start.path.is_dir() else start.path
        self.origin = {
            "path": str(start.path),
            "sha256": sha256_of(file),
            "name": start.info.name,
            "trained_on": start.info.trained_on,
        }

    @property
    def share(self) -> float:
        """How much of the run is over, by steps or by time, whichever is further."""
        loop = self.config.loop
        by_time = 0.0 if loop.max_minutes is None else self.elapsed / (60 * loop.max_minutes)
        return min(1.0, max(self.step / loop.max_steps, by_time))

    def terms(self, example: Example) -> tuple[Prediction, Terms]:
        """The prediction and its unweighted loss terms; ``loss`` is their weighted sum."""
        prediction = self.model(example.inputs)
        losses, views = self.config.losses, pictures(prediction, example.targets)
        terms = {name: term(prediction, views, example.targets) for name, term in losses.items()}
        total = sum(
            (losses[name].weight * value for name, value in terms.items()), start=torch.zeros((), device=self.device)
        )
        return prediction, {"loss": total, **terms}

    def training_step(self, step: Step, _: int) -> Terms:
        """One update. Its terms, averaged over the accumulated batches, with lr and gradient_norm (before clipping)."""
        # stochastic layers must not depend on how often a run was resumed
        torch.manual_seed(_seed(self.config.seed, step.index, self.global_rank))
        self.model.at_step(self.step)
        optimiser = cast(LightningOptimizer, self.optimizers())
        rate = self._set_rate(optimiser)
        optimiser.zero_grad()
        count, means = len(step.batches), Terms()
        for number, example in enumerate(step.batches, start=1):
            with self._gather_gradients(number == count):
                terms = self.terms(example)[1]
                self.manual_backward(terms["loss"] / count)
            for name, value in terms.items():
                means[name] = means.get(name, 0) + value.detach() / count
        norm = self._clip()
        optimiser.step()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model)
        return {**means, "lr": torch.tensor(rate), "gradient_norm": norm}

    def _set_rate(self, optimiser: LightningOptimizer) -> float:
        # the end of the step counts: at its beginning the first rate would be 0, and that step lost
        share = min(1.0, max(self.share, (self.step + 1) / self.config.loop.max_steps))
        for group in optimiser.param_groups:
            group["lr"] = group_rate(share, self.config.optimiser, group)
        return cast(float, optimiser.param_groups[0]["lr"])

    def _gather_gradients(self, last: bool) -> AbstractContextManager[None]:
        """Ranks exchange gradients once per update, in the backward of the last batch."""
        wrapped = self.trainer.strategy.model
        return wrapped.no_sync() if isinstance(wrapped, DistributedDataParallel) and not last else nullcontext()

    def _clip(self) -> Tensor:
        """Clip the gradient; drop it where it is not finite, so that the update does nothing. Its norm before."""
        trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        config = self.config.optimiser
        groups = self._parts() if config.clip == "groups" else [trained]
        norm = torch.stack([torch.nn.utils.clip_grad_norm_(group, config.clip_norm) for group in groups]).norm()
        if bool(norm.isfinite()):
            self.bad_steps = 0
            return norm
        self.bad_steps += 1
        if self.bad_steps >= MAX_BAD_STEPS:
            raise UserError(f"{self.bad_steps} steps in a row gave no finite gradient; lower optimiser.lr or use fp32")
        for parameter in trained:
            parameter.grad = None
        return norm

    def _parts(self) -> list[list[Tensor]]:
        """The parameters of each of the optimiser's groups."""
        found: dict[str, list[Tensor]] = {}
        for group in cast(LightningOptimizer, self.optimizers()).param_groups:
            found.setdefault(group["part"], []).extend(group["params"])
        return list(found.values())

    def validation_step(self, step: Step, _: int) -> dict[str, Prediction | Terms]:
        """Prediction and terms of one clip, under the averaged weights if there are any."""
        prediction, terms = self.terms(step.batches[0])
        return {"prediction": prediction, "terms": terms}

    def on_validation_start(self) -> None:
        """Validate the averaged weights."""
        if self.average is not None:
            self._averaged.enter_context(self.average.applied(self.model))

    def on_validation_end(self) -> None:
        """Back to those that train."""
        self._averaged.close()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """AdamW; its rate is set by every step."""
        return make_optimiser(self.model, self.config.optimiser)

    def on_save_checkpoint(self, checkpoint: Plain) -> None:
        """``state_dict`` holds the weights to use, the averaged ones if there are any; plain containers only."""
        run: Plain = {"step": self.step, "elapsed": self.elapsed, "config": to_plain(self.config)}
        if self.origin:
            run["origin"] = self.origin
        if self.average is not None and "optimizer_states" in checkpoint:
            state = cast(dict[str, Tensor], checkpoint["state_dict"])
            run["trained"] = {name: state[f"model.{name}"] for name in self.average.weights}
            run["average_updates"] = self.average.updates
        if self.average is not None:
            state = cast(dict[str, Tensor], checkpoint["state_dict"])
            averaged = {f"model.{name}": value for name, value in self.average.weights.items()}
            checkpoint["state_dict"] = {**state, **averaged}
        checkpoint["run"] = run

    def on_load_checkpoint(self, checkpoint: Plain) -> None:
        """The inverse; a run that began without averaging, or goes on without, is fine."""
        run = cast(Plain, checkpoint["run"])
        self.step, self.elapsed = cast(int, run["step"]), cast(float, run["elapsed"])
        self.origin = cast(Plain, run.get("origin", {}))
        state = cast(dict[str, Tensor], checkpoint["state_dict"])
        if self.average is not None:
            used = {name.removeprefix("model."): value for name, value in state.items()}
            self.average.load(used, cast(int, run.get("average_updates", 0)))
        trained = cast(dict[str, Tensor], run.get("trained", {}))
        checkpoint["state_dict"] = {**state, **{f"model.{name}": value for name, value in trained.items()}}


def pictures(prediction: Prediction, targets: Clip) -> Views | None:
    """What the predicted Gaussians look like from where the targets' views were taken; None without either."""
    shown = targets.views
    if prediction.gaussians is None or shown is None or shown.cameras is None:
        return None
    with full_precision(shown.images.device):
        gaussians = map_tensors(prediction.gaussians, lambda tensor: tensor.to(full_type(tensor.dtype)))
        return render(gaussians, shown.cameras, shown.times, (shown.images.shape[-2], shown.images.shape[-1]))


def _seed(*numbers: int) -> int:
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0])

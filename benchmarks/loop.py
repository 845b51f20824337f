"""Cost of the training loop, and of exchanging gradients: `train` against a bare PyTorch loop in the same processes.

    python benchmarks/loop.py [--processes 1|2] [--config vggt --config overlays/tiny] [--pieces 20] [--steps 5]
                              [--data DIR] [--out docs/results/scaling.json] [key=value …]

Both loops have a model of their own with the same weights, the same steps from the same loader, and the same optimiser.
They take turns: a callback of the run does a piece of the bare loop after each piece of the run, so that what else
the machine does hits both alike. The figure is the median over pairs of neighbouring pieces, with the quartiles.

The bare loop is what one writes without a framework: loader, forward, losses, backward, clipping, AdamW, the schedule
of the rate, the running average if there is one, and a line with the loss every ``logging.every`` steps. In the end its
weights are compared with the run's.

With one process the figure is ``lightning_overhead``, time of `train` ÷ time of the bare loop. With two, of one thread
each, the bare loops exchange nothing, and it is ``ddp2_efficiency``, time of the bare loops ÷ time of `train` under
DDP: their steps see the same clips, so the work is the same. Pieces begin together, and waits for that do not count.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning
import numpy as np
import torch
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor, distributed

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.train import data_folder  # noqa: E402 - this script is run by its path
from four_d.config import RunConfig, load  # noqa: E402
from four_d.data.loading import FromStep, Step, loader  # noqa: E402
from four_d.losses.schedule import weight_at  # noqa: E402
from four_d.losses.term import LossInputs, values_of  # noqa: E402
from four_d.outputs import write_json  # noqa: E402
from four_d.training import train  # noqa: E402
from four_d.training.module import TrainingModule  # noqa: E402
from four_d.training.optimiser import group_rate, make_optimiser, trained  # noqa: E402
from four_d.training.parallel import discover  # noqa: E402
from four_d.training.record import describe_machine  # noqa: E402
from four_d.training.run import RunData  # noqa: E402

WARM_UP = 3
"""Pieces of each loop that are not counted."""
FIXED = ("loop.accelerator=cpu", "loop.precision=fp32", "data.validation={}", "data.aspect=null", "weights=null")


class Bare:
    """A PyTorch loop without a framework, on a model of its own."""

    def __init__(self, config: RunConfig, steps: Iterator[Step]) -> None:
        module = TrainingModule(config)
        self.model, self.losses = module.model.train(), module.losses
        self._config, self._module = config, module
        self._optimiser = make_optimiser(module, config.optimiser)
        self._parameters = [each for each in module.parameters() if each.requires_grad]
        self._averages = None if config.loop.ema is None else [each.detach().clone() for each in self._parameters]
        self._steps = steps
        self._done = 0
        self._losses: list[Tensor] = []

    def step(self) -> None:
        """Do one update."""
        config, step = self._config, next(self._steps)
        progress = (self._done + 1) / config.loop.max_steps
        warmed = (self._done + 1) / max(1, min(config.optimiser.min_warmup_steps, config.loop.max_steps // 5))
        for group in self._optimiser.param_groups:
            group["lr"] = group_rate(progress, config.optimiser, group, warmed)
        self._optimiser.zero_grad()
        for example in step.batches:
            prediction = self.model(example.inputs)
            inputs = LossInputs(prediction=prediction, targets=example.targets, step=self._done, progress=progress)
            terms = values_of(self.losses.items(), inputs)
            loss = sum(weight_at(config.losses[name].weight, progress) * value for name, value in terms.items())
            assert isinstance(loss, Tensor)
            (loss / len(step.batches)).backward()
            self._losses.append(loss.detach())
        torch.nn.utils.clip_grad_norm_(self._parameters, config.optimiser.clip_norm)
        self._optimiser.step()
        if self._averages is not None and config.loop.ema is not None:
            with torch.no_grad():
                for average, parameter in zip(self._averages, self._parameters, strict=True):
                    average.lerp_(parameter, 1 - config.loop.ema)
        self._done += 1
        if self._done % config.logging.every == 0:
            print(f"{self._done} {torch.stack(self._losses).mean().item():.4f}", file=sys.stderr)
            self._losses.clear()

    def difference(self, other: TrainingModule) -> float:
        """Largest difference of a weight from another module's."""
        pairs = zip(trained(self._module).values(), trained(other).values(), strict=True)
        return max(float((a - b).detach().abs().max()) for a, b in pairs)


class Turns(lightning.Callback):
    """Callback that does a piece of the bare loop after each piece of the run's, and keeps the times of both."""

    def __init__(self, bare: Bare, steps: int) -> None:
        self._bare, self._steps = bare, steps
        self._seen = 0
        self._since = (0.0, 0.0)
        self.pieces: dict[str, list[tuple[float, float]]] = {"run": [], "bare": []}
        """Wall and processor time of each piece, in seconds."""
        self.difference: float | None = None

    def on_train_batch_end(
        self,
        trainer: lightning.Trainer,
        pl_module: lightning.LightningModule,
        outputs: STEP_OUTPUT,
        batch: Step,
        batch_idx: int,
    ) -> None:
        """Let the bare loop catch up at the end of a piece."""
        del trainer, outputs, batch, batch_idx
        self._seen += 1
        if self._seen % self._steps:
            return
        if self._seen > self._steps:  # the first piece had no beginning
            self.pieces["run"].append(self._past())
        together()
        self._since = now()
        for _ in range(self._steps):
            self._bare.step()
        if self._seen > self._steps:
            self.pieces["bare"].append(self._past())
        if not distributed.is_initialized():
            assert isinstance(pl_module, TrainingModule)
            self.difference = self._bare.difference(pl_module)
        together()
        self._since = now()

    def _past(self) -> tuple[float, float]:
        wall, processor = now()
        return wall - self._since[0], processor - self._since[1]


def now() -> tuple[float, float]:
    """Wall clock, and processor time of all threads of this process."""
    return time.perf_counter(), time.process_time()


def together() -> None:
    """Wait for the other processes."""
    if distributed.is_initialized():
        distributed.barrier()


def spread(ratios: list[float]) -> dict[str, float]:
    """Median and quartiles."""
    low, middle, high = (float(each) for each in np.percentile(ratios, [25, 50, 75]))
    return {"median": round(middle, 4), "quartile_1": round(low, 4), "quartile_3": round(high, 4)}


def result(pieces: list[dict[str, list[tuple[float, float]]]], steps: int) -> dict[str, Any]:
    """Figures of the pieces of all processes. A run's piece ends with its last process, a bare one's with its own."""
    count = len(pieces[0]["run"])
    walls = {
        "run": [max(each["run"][i][0] for each in pieces) for i in range(WARM_UP, count)],
        "bare": [statistics.mean(each["bare"][i][0] for each in pieces) for i in range(WARM_UP, count)],
    }
    work = {
        name: [statistics.mean(each[name][i][1] for each in pieces) for i in range(WARM_UP, count)]
        for name in ("run", "bare")
    }
    upside_down = len(pieces) > 1
    ratios = {
        kind: spread([b / a if upside_down else a / b for a, b in zip(times["run"], times["bare"], strict=True)])
        for kind, times in (("wall", walls), ("processor", work))
    }
    medians = {
        f"{name}_{kind}_ms_per_step": round(1e3 * statistics.median(times[name]) / steps, 2)
        for kind, times in (("wall", walls), ("processor", work))
        for name in ("run", "bare")
    }
    return {**ratios, **medians, "pieces": count - WARM_UP, "steps_per_piece": steps}


def measure(arguments: argparse.Namespace) -> None:
    """Train in this process, one of several perhaps, and record the result."""
    world = discover()
    names = arguments.config or ["vggt", "overlays/tiny"]
    count = arguments.steps * (arguments.pieces + WARM_UP + 1)
    with tempfile.TemporaryDirectory() as own:
        folder = arguments.folder or Path(own)
        values = [*FIXED, f"data.sources.it.path={arguments.data}", f"folder={folder}", "name=run"]
        values += [f"loop.max_steps={count}", f"loop.epoch_steps={count}", "logging.pictures=0"]
        config = load(names, [*values, f"data.clips_multiple={world.size}", *arguments.overrides])
        steps = loader(RunData(config, world).training, FromStep(0), config.data.workers, pin_memory=False)
        bare = Bare(config, iter(steps))
        turns, before = Turns(bare, arguments.steps), os.getloadavg()
        train(config, callbacks=[turns])
        mine = folder / f"pieces-{world.rank}.json"
        mine.write_text(json.dumps(turns.pieces))
        if arguments.folder is None:
            found = {**result([turns.pieces], arguments.steps), "weights_differ_by": turns.difference}
            finish(arguments, names, found, config, before)


def finish(
    arguments: argparse.Namespace, names: list[str], found: dict[str, Any], config: RunConfig, load_before: object
) -> None:
    """Print the figures, and merge them into the file of results."""
    size = sum(each.numel() for each in TrainingModule(config).parameters())
    told = {"config": names, "overrides": arguments.overrides, "parameters": size, "seed": config.seed}
    told |= {"images_per_batch": config.data.images_per_batch, "load_before": load_before}
    told |= {
        "load_after": os.getloadavg(),
        "threads": torch.get_num_threads(),
        "command": " ".join(["python", *sys.argv]),
    }
    figure = "lightning_overhead" if arguments.processes == 1 else "ddp2_efficiency"
    row = {**found, **told, **describe_machine()}
    print(json.dumps({figure: row}))
    if arguments.out is not None:
        whole = json.loads(arguments.out.read_text()) if arguments.out.is_file() else {}
        rows = [each for each in whole.get(f"{figure}_runs", []) if each["config"] != names]
        whole |= {figure: found["wall"]["median"], f"{figure}_runs": [*rows, row]}
        write_json(arguments.out, whole)


def launch(arguments: argparse.Namespace) -> None:
    """Start the processes with torchrun, and gather their pieces."""
    with tempfile.TemporaryDirectory() as folder:
        before = os.getloadavg()
        command = [sys.executable, "-m", "torch.distributed.run", f"--nproc-per-node={arguments.processes}"]
        command += ["--standalone", __file__, *sys.argv[1:], "--folder", folder, "--data", str(arguments.data)]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT)
        pieces = [json.loads((Path(folder) / f"pieces-{rank}.json").read_text()) for rank in range(arguments.processes)]
        names = arguments.config or ["vggt", "overlays/tiny"]
        config = load(names, [*FIXED, f"data.sources.it.path={arguments.data}", *arguments.overrides])
        torch.set_num_threads(1)
        finish(arguments, names, result(pieces, arguments.steps), config, before)


def main() -> None:
    arguments = parse().parse_args()
    if arguments.folder is not None:
        measure(arguments)
        return
    with data_folder(arguments.data, 8, 0) as folder:
        arguments.data = folder
        (measure if arguments.processes == 1 else launch)(arguments)


def parse() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--processes", type=int, choices=(1, 2), default=1)
    parser.add_argument("--config", action="append", help="config files (default: vggt, overlays/tiny)")
    parser.add_argument("--pieces", type=int, default=20)
    parser.add_argument("--steps", type=int, default=5, help="of a piece")
    parser.add_argument("--data", type=Path, help="a data set's folder; made anew if not given")
    parser.add_argument("--out", type=Path, help="file of results to merge the figures into")
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    return parser


if __name__ == "__main__":
    main()

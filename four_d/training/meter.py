"""Measurements of training on a process: rates, waiting, step times, memory, and the share of the device's peak."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import cast

import torch

from four_d.abilities import ModelModule
from four_d.config import RunConfig
from four_d.data.loading import Step
from four_d.schema import Plain
from four_d.training import parallel
from four_d.training.pace import Histogram, clock_of, memory
from four_d.training.work import TERA, Operations, Shape, peak_rate, shape_of

LOGGER = logging.getLogger(__name__)

STEP_TIMES = "step_s"
"""Name of the histogram of step times."""


class Meter:
    """Meter of one process's steps. Nothing in it waits for the device but `line`'s sums over processes."""

    def __init__(self, config: RunConfig, device: torch.device, processes: int, earlier: Sequence[Plain] = ()) -> None:
        """``earlier``: the run's lines so far, whose last histogram of step times goes on."""
        self._device, self._processes = device, processes
        self._clock, self._recent, self._begun = clock_of(device), Histogram(), 0
        self.times = Histogram()
        """Times of all steps of the run, but for the first of each start, in which much is made ready."""
        saved = [line for line in earlier if line["split"] == "histogram" and line["name"] == STEP_TIMES][-1:]
        for line in saved:
            edges, counts = cast(list[float], line["edges"]), cast(list[int], line["counts"])
            self.times.restore(edges, counts, cast(float, line["most"]))
        self._peak = parallel.from_first([_peak(config, device) or 0.0], device)[0]
        self._operations, self._shapes = Operations(), Counter[Shape]()
        self._images = self._tokens = self._steps = 0
        self._waited = 0.0

    def begin(self, batch: Step, model: ModelModule, precision: AbstractContextManager[None]) -> None:
        """Begin a step. A batch of a new shape is counted before, in the loop's ``precision``, if there is a peak."""
        for example in batch.batches if self._peak and self._begun else ():
            if self._operations.needs(example.inputs):
                self._operations.count(model, example.inputs, precision)
        self._clock.begin()

    def end(self, batch: Step, model: ModelModule) -> None:
        """End a step, whose weights are updated."""
        self._clock.end()
        self._steps += 1
        for example in batch.batches:
            self._images += example.inputs.images.shape[:2].numel()
            self._tokens += model.tokens(example.inputs)
            self._shapes[shape_of(example.inputs)] += 1
        self._read()

    def _read(self) -> None:
        """Take the times of the steps that the device has done."""
        for seconds in self._clock.take():
            self._begun += 1
            if self._begun > 1:
                self._recent.add(seconds)
                self.times.add(seconds)

    def line(self, seconds: float, waited: float) -> dict[str, float]:
        """Figures of the steps since the last line, which took so many seconds in all, over all processes.

        ``waited``: seconds that this process has waited for batches since it started.
        """
        self._read()
        images, tokens = self._images * self._processes, self._tokens * self._processes
        found = {"steps_per_s": self._steps / seconds, "images_per_s": images / seconds}
        if tokens:
            found["tokens_per_s"] = tokens / seconds
        worst = {"data_wait_s": (waited - self._waited) / max(self._steps, 1), **memory(self._device)}
        found |= dict(zip(worst, parallel.maximum([*worst.values()], self._device)))
        if len(self._recent):
            found |= {f"{STEP_TIMES}_p{share:.0f}": self._recent.quantile(share / 100) for share in (50, 95)}
            found[f"{STEP_TIMES}_max"] = self._recent.most
        done = [(self._operations.of(shape), count) for shape, count in self._shapes.items()]
        if self._peak and all(each is not None for each, _ in done):
            rate = sum(cast(float, each) * count for each, count in done) / seconds
            found |= {"tflops_per_device": rate / TERA, "mfu": rate / self._peak}
        self._recent, self._shapes, self._waited = Histogram(), Counter(), waited
        self._images = self._tokens = self._steps = 0
        return found


def _peak(config: RunConfig, device: torch.device) -> float | None:
    """Peak operations per second of the device; of a GPU that is not known, None, which one line says."""
    given = config.logging.peak_tflops
    if given is not None:
        return given * TERA
    if device.type != "cuda":
        return None
    name = torch.cuda.get_device_name(device)
    peak = peak_rate(name, config.loop.precision)
    if peak is None:
        LOGGER.warning(f"no peak rate of {name} is known, so mfu is left out; give it by logging.peak_tflops=NUMBER")
    return peak

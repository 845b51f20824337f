"""SIREN beside networks of rectifiers of the same size, on motion of several frequencies.

    python -m benchmarks.studies.siren_pose_networks

A point moves in five harmonics, from half a turn to six and a half over the clip. Each network learns 128 of its
positions and is judged between them: by mean squared distance, and by the mean squared error of velocity (its exact
derivative). ``siren_slow`` has a first ω₀ of 10 instead of 30; ``rectifiers_of_waves`` is given sines and cosines of
the time, at octaves up to the highest frequency.
Phases and initial weights differ by seed. Writes docs/results/siren_pose_networks.json.
"""

from __future__ import annotations

import itertools
import json
import math
import os
import platform
import statistics
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.generate import commit, processor
from four_d.losses.siren_pose.siren import Siren, SirenConfig

SEEDS = (0, 1, 2)
WIDTH, LAYERS, OCTAVES = 64, 3, 5
HARMONICS = (1.0, 3.0, 5.0, 8.0, 13.0)
STEPS = (200, 1000)
RESULT = Path(__file__).resolve().parents[2] / "docs" / "results" / "siren_pose_networks.json"


class Waves(nn.Module):
    """Sines and cosines of a time in [−1, 1], at octaves from half a turn on."""

    def forward(self, times: Tensor) -> Tensor:
        """Map n 1 to n 2·octaves."""
        angles = times * torch.pi * 2.0 ** torch.arange(OCTAVES)
        return torch.cat([angles.sin(), angles.cos()], dim=-1)


def rectifiers(inputs: int) -> list[nn.Module]:
    """Layers of a network as deep and wide as the SIREN."""
    sizes = [inputs] + [WIDTH] * LAYERS
    pairs = itertools.pairwise(sizes)
    return [*(part for a, b in pairs for part in (nn.Linear(a, b), nn.ReLU())), nn.Linear(WIDTH, 3)]


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "siren": lambda: Siren(1, 3, SirenConfig(width=WIDTH, layers=LAYERS)),
    "siren_slow": lambda: Siren(1, 3, SirenConfig(width=WIDTH, layers=LAYERS, omega0_first=10.0)),
    "rectifiers": lambda: nn.Sequential(*rectifiers(1)),
    "rectifiers_of_waves": lambda: nn.Sequential(Waves(), *rectifiers(2 * OCTAVES)),
}


def motion(times: Tensor, phases: Tensor) -> Tensor:
    """Positions n 3 of a point; mean square size 1.9."""
    angles = torch.pi * torch.tensor(HARMONICS) * times
    return (angles[:, None] + phases).sin().sum(-1) / 2


def judge(network: nn.Module, phases: Tensor, seen: Tensor) -> dict[str, float]:
    """Errors halfway between the positions seen."""
    times = ((seen[1:] + seen[:-1]) / 2).requires_grad_()
    truth, found = motion(times, phases), network(times)
    rates = [
        torch.stack(
            [torch.autograd.grad(each[:, axis].sum(), times, retain_graph=True)[0][:, 0] for axis in range(3)], -1
        )
        for each in (found, truth)
    ]
    return {
        "position": float((found - truth).detach().square().sum(-1).mean()),
        "velocity": float((rates[0] - rates[1]).square().sum(-1).mean()),
    }


def fit(name: str, seed: int, steps: int) -> dict[str, float]:
    """Errors after a number of steps, whose rate falls to 0 along half a cosine."""
    torch.manual_seed(seed)
    phases = 2 * torch.pi * torch.rand(3, len(HARMONICS))
    network, seen = NETWORKS[name](), torch.linspace(-1, 1, 128)[:, None]
    truth = motion(seen, phases)
    optimiser = torch.optim.Adam(network.parameters(), lr=1e-3)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, steps)
    for _ in range(steps):
        optimiser.zero_grad()
        (network(seen) - truth).square().mean().backward()
        optimiser.step()
        schedule.step()
    return judge(network, phases, seen)


def main() -> None:
    result: dict[str, object] = {
        "commit": commit(),
        "machine": f"{os.cpu_count()} × {processor()}, Python {platform.python_version()}",
        "command": "python -m benchmarks.studies.siren_pose_networks",
    }
    for name, make in NETWORKS.items():
        runs = {str(steps): {str(seed): fit(name, seed, steps) for seed in SEEDS} for steps in STEPS}
        means = {
            steps: {
                figure: statistics.fmean(each[figure] for each in seeds.values()) for figure in ("position", "velocity")
            }
            for steps, seeds in runs.items()
        }
        count = sum(math.prod(weight.shape) for weight in make().parameters())
        result[name] = {"parameters": count, "mean": means, "per_seed": runs}
        print(name, count, json.dumps(means), flush=True)
    RESULT.write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()

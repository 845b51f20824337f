"""Time of rendering on a CPU: forward and backward of one seeded scene by every backend that runs here.

    python benchmarks/rendering.py [--gaussians 16384] [--size 128] [--repeats 10] [--threads 2] [--seed 0]
                                   [--backends compiled torch] [--note TEXT] [--page docs/results/rendering.md]

The scene: Gaussians uniform in a cube of edge 2, whose middle is 3 in front of the camera, half axes uniform in 0.01 to
0.03, turned at random, opacities uniform in 0.05 to 0.95, one colour each; focal length 1.2 times the picture's width.
A time is that of `render` and of the backward pass from all of the picture to means, quaternions, scales, opacities,
colours and the camera's pose: checks, projection and all. The first call, which may compile, is not counted; the median
and the least of the others are. ``--page`` writes the table; otherwise it is printed.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from datetime import date
from pathlib import Path

import torch
from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from four_d.geometry import pixel_centres  # noqa: E402 - this script is run by its path
from four_d.rendering import backends, contributors, render  # noqa: E402
from four_d.types import Cameras, Gaussians  # noqa: E402

MANY = 512
"""More Gaussians than weigh anything at one pixel of these scenes."""

PAGE = """# Rendering on a CPU

{date} · {machine} · commit `{commit}` · seed {seed}{note}

```bash
python benchmarks/rendering.py {arguments}
```

Forward and backward of {gaussians:,} Gaussians at {size} × {size} pixels in float32, checks and projection included. At
a pixel {mean:.1f} Gaussians weigh something on average. The scene is described in the benchmark's first lines.

| backend | forward, ms | backward, ms | both, median, ms | both, least, ms |
| --- | --- | --- | --- | --- |
{rows}
"""


def scene(count: int, size: int, seed: int) -> tuple[Gaussians, Cameras, Tensor]:
    """The scene above, with one camera of ``size`` × ``size`` pixels at time 0."""
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(1, count, *shape, generator=generator)

    gaussians = Gaussians(
        means=uniform(3) * 2 - 1 + torch.tensor([0.0, 0.0, 3.0]),
        quats=torch.randn(1, count, 4, generator=generator),
        scales=uniform(3) * 0.02 + 0.01,
        opacities=uniform() * 0.9 + 0.05,
        harmonics=uniform(1, 3) * 3 - 1.5,
    )
    intrinsics = torch.tensor([[1.2 * size, 0, size / 2], [0, 1.2 * size, size / 2], [0, 0, 1]])
    cameras = Cameras(world_from_camera=torch.eye(4)[None, None], intrinsics=intrinsics[None, None])
    return gaussians, cameras, torch.zeros(1, 1)


def step(gaussians: Gaussians, cameras: Cameras, times: Tensor, size: int, backend: str) -> tuple[float, float]:
    """Seconds of one forward pass and of its backward pass."""
    names = ("means", "quats", "scales", "opacities", "harmonics")
    leaves = {name: getattr(gaussians, name).clone().requires_grad_() for name in names}
    pose = cameras.world_from_camera.clone().requires_grad_()
    camera = Cameras(world_from_camera=pose, intrinsics=cameras.intrinsics)
    start = time.perf_counter()
    view = render(Gaussians(**leaves), camera, times, (size, size), backend=backend)
    between = time.perf_counter()
    (view.colour.sum() + view.depth.sum() + view.alpha.sum()).backward()
    return between - start, time.perf_counter() - between


def measure(run: Callable[[], tuple[float, float]], repeats: int) -> tuple[float, float, float, float]:
    """Medians of forward and of backward, and median and least of both together, in seconds."""
    run()
    pairs = [run() for _ in range(repeats)]
    both = [sum(pair) for pair in pairs]
    forward, backward = (statistics.median(times) for times in zip(*pairs))
    return forward, backward, statistics.median(both), min(both)


def contributors_per_pixel(gaussians: Gaussians, cameras: Cameras, times: Tensor, size: int) -> float:
    """Mean number of Gaussians with a weight, over every fourth row and column."""
    pixels = pixel_centres(size, size, gaussians.means)[::4, ::4].reshape(1, 1, -1, 2)
    found = contributors(gaussians, cameras, times, pixels, min(MANY, gaussians.means.shape[1]))
    return float((found.weights > 0).sum(-1).float().mean())


def report(options: argparse.Namespace) -> str:
    """The page: what was measured, where, by which command, and the table."""
    torch.set_num_threads(options.threads)
    world = scene(options.gaussians, options.size, options.seed)
    rows = [row(name, world, options) for name in options.backends]
    return PAGE.format(
        date=date.today(),
        machine=f"{_machine()}, {options.threads} threads, torch {torch.__version__}",
        commit=_commit(),
        arguments=_arguments(options),
        mean=contributors_per_pixel(*world, options.size),
        rows="\n".join(rows),
        **{**vars(options), "note": f" · {options.note}" if options.note else ""},
    )


def row(name: str, world: tuple[Gaussians, Cameras, Tensor], options: argparse.Namespace) -> str:
    """One backend's line of the table."""
    if reason := backends.missing(name, torch.device("cpu")):
        return f"| {name} | not available: {reason} | | | |"
    seconds = measure(lambda: step(*world, options.size, name), options.repeats)
    return f"| {name} | " + " | ".join(f"{1000 * value:.1f}" for value in seconds) + " |"


def _arguments(options: argparse.Namespace) -> str:
    names = ("gaussians", "size", "repeats", "threads", "seed")
    return " ".join(f"--{name} {getattr(options, name)}" for name in names)


def _machine() -> str:
    path = Path("/proc/cpuinfo")
    lines = path.read_text().splitlines() if path.exists() else []
    names = (line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())


def _commit() -> str:
    git = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True, check=False)
    return git.stdout.strip() or "unknown"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, value in (("gaussians", 16384), ("size", 128), ("repeats", 10), ("threads", 2), ("seed", 0)):
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--backends", nargs="+", default=["compiled", "torch"])
    parser.add_argument("--note", default="", help="what else the machine did")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    page = report(options)
    print(page)
    if options.page:
        options.page.write_text(page)


if __name__ == "__main__":
    main()

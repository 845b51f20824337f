"""Trajectories of a real clip with entries hidden on purpose: `fit_siren` with and without its penalties, against
straight lines between the entries that are left.

    python benchmarks/fit_tracks.py SHARDS [--clip 0] [--rigid head:nose,head:left_ear] [--seeds 3] [--steps 1000] \
        [--picture FILE.png]

The clip has to be of a rig with cameras and tracked keypoints. Its own positions are not used, for those of a session
were smoothed already: each point is triangulated at each time alone, from the views that track it most of the time
(the point nearest to their rays). A quarter of the entries is hidden, singly or in gaps, and is the measure: the
distance of a fit from what was triangulated there, noise included. Prints a table, of means over the seeds of what is
hidden and of the network. Lengths are those of the clip.
"""

from __future__ import annotations

import argparse
import dataclasses
import shlex
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from four_d.data.contract import RawClip
from four_d.data.shards import ShardReader
from four_d.losses.siren_pose import FitConfig, fit_siren
from four_d.trajectories import Trajectories

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT))

from benchmarks.generate import commit, processor  # noqa: E402 - this script is run by its path

HIDDEN = 0.25
"""Share of the entries of each point that are hidden."""
GAP = 10
"""Times of a gap."""
MOST = 0.9
"""Share of the times at which a view has to track a point to be used for it."""
FITS = {
    "SIREN": FitConfig(),
    "SIREN, acceleration 10": FitConfig(acceleration=10.0),
    "SIREN, acceleration 100": FitConfig(acceleration=100.0),
    "SIREN, acceleration 100, bone 10": FitConfig(acceleration=100.0, bone=10.0),
}
SHOWN = ("straight lines", "SIREN", "SIREN, acceleration 100, bone 10")
Points = NDArray[np.float64]
Flags = NDArray[np.bool_]


def triangulated(clip: RawClip) -> tuple[Points, Flags]:
    """Positions (n t 3) of a rig's keypoints, each time alone, and where there are any (n t)."""
    assert clip.keypoints is not None
    assert clip.world_from_camera is not None
    assert clip.intrinsics is not None
    views = len(set(clip.info.camera_ids))

    def by_view(values: NDArray[Any]) -> NDArray[Any]:
        return values.reshape(views, -1, *values.shape[1:])

    pixels, seen = by_view(clip.keypoints.pixels.astype(np.float64)), by_view(clip.keypoints.visible)
    poses, intrinsics = by_view(clip.world_from_camera), by_view(clip.intrinsics)
    used = (seen.mean(1) >= MOST)[:, None]  # views, 1, points: always the same, or positions would jump between them
    known = (seen | ~used).all(0) & (used.sum(0) >= 2)
    local = (pixels - intrinsics[:, :, None, :2, 2]) / intrinsics[:, :, None, [0, 1], [0, 1]]
    rays = np.concatenate([local, np.ones((*local.shape[:-1], 1))], axis=-1) @ poses[..., :3, :3].swapaxes(-1, -2)
    rays /= np.linalg.norm(rays, axis=-1, keepdims=True)
    across = (np.eye(3) - rays[..., :, None] * rays[..., None, :]) * used[..., None, None]
    right = (across @ poses[:, :, None, :3, 3, None]).sum(0)
    points = np.zeros((*known.shape, 3))
    points[known] = np.linalg.solve(across.sum(0)[known], right[known])[..., 0]
    return points.swapaxes(0, 1), known.T


def hide(known: Flags, pattern: str, rng: np.random.Generator) -> Flags:
    """Entries to hide (n t): `HIDDEN` of those that are known, singly or in gaps; never the first or the last time."""
    hidden = np.zeros_like(known)
    for row, own in zip(hidden, known, strict=True):
        wanted = HIDDEN * own.sum()
        while (row & own).sum() < wanted:
            start = int(rng.integers(1, len(row) - 1))
            row[start : min(start + (GAP if pattern == "gaps" else 1), len(row) - 1)] = True
    return hidden & known


def straight(points: Points, given: Flags) -> Points:
    """Interpolate linearly between given entries (n t 3)."""
    at = np.arange(points.shape[1])
    rows = [
        np.stack([np.interp(at, at[own], row[own, axis]) for axis in range(3)], axis=-1)
        for row, own in zip(points, given, strict=True)
    ]
    return np.stack(rows)


def still(points: Points, given: Flags) -> Points:
    """Mean of the given entries of each point, at all times (n t 3)."""
    return np.stack([np.broadcast_to(row[own].mean(0), row.shape) for row, own in zip(points, given, strict=True)])


def fitted(
    clip: RawClip,
    points: Points,
    given: Flags,
    edges: Sequence[tuple[int, int]],
    config: FitConfig,
    steps: int,
    seed: int,
) -> Points:
    """Positions (n t 3) of a SIREN fitted to the given entries."""
    times = torch.tensor(clip.info.times[: points.shape[1]])
    known = torch.from_numpy(given)
    trajectories = Trajectories(
        points=torch.from_numpy(points).float(), visible=known.float(), valid=known, times=times
    )
    bones = torch.tensor(edges).view(-1, 2) if config.bone else None
    return fit_siren(trajectories, steps=steps, edges=bones, config=config, seed=seed)(times).double().numpy()


def figures(found: Points, points: Points, hidden: Flags, edges: Sequence[tuple[int, int]]) -> tuple[float, ...]:
    """Mean and median error where entries are hidden, mean second difference, and the bones' mean standard deviation
    over their mean lengths.
    """
    error = np.linalg.norm(found - points, axis=-1)[hidden]
    bend = np.linalg.norm(np.diff(found, 2, axis=1), axis=-1).mean()
    lengths = [np.linalg.norm(found[a] - found[b], axis=-1) for a, b in edges]
    vary = float(np.mean([each.std() / each.mean() for each in lengths])) if edges else 0.0
    return float(error.mean()), float(np.median(error)), float(bend), vary


def draw(
    path: Path, clip: RawClip, points: Points, known: Flags, hidden: Flags, curves: dict[str, Points], unit: str
) -> None:
    """Draw the coordinates of the three points that move the most over time, and the skeleton at four times."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    assert clip.info.keypoints is not None
    times = np.array(clip.info.times[: points.shape[1]])
    reach = [np.ptp(np.percentile(row[own], [10, 90], axis=0), axis=0) for row, own in zip(points, known, strict=True)]
    chosen = np.argsort([-each.max() for each in reach])[:3]
    figure = plt.figure(figsize=(13, 5.6), constrained_layout=True)
    grid = figure.add_gridspec(2, 12, height_ratios=[2.6, 1])
    colours = dict(zip(curves, ("tab:grey", "tab:orange", "tab:blue")))
    for place, point in enumerate(chosen.tolist()):
        panel = figure.add_subplot(grid[0, 4 * place : 4 * place + 4])
        axis = int(reach[point].argmax())
        given = known[point] & ~hidden[point]
        panel.plot(times[given], points[point, given, axis], ".", color="black", ms=3, label="given")
        own = hidden[point]
        panel.plot(times[own], points[point, own, axis], "o", mfc="none", color="tab:red", ms=4, label="hidden")
        for name, found in curves.items():
            panel.plot(times, found[point, :, axis], color=colours[name], lw=1.3, label=name)
        panel.set_title(f"{clip.info.keypoints.names[point]}, {'xyz'[axis]} [{unit}]", fontsize=10)
        panel.set_xlabel("time [s]", fontsize=9)
        if not place:
            panel.legend(fontsize=7)
    last = list(curves)[-1]
    spread = curves[last].reshape(-1, 3) - curves[last].reshape(-1, 3).mean(0)
    plane = np.linalg.svd(spread, full_matrices=False)[2][:2]
    for place, frame in enumerate(np.linspace(0, len(times) - 1, 4).round().astype(int).tolist()):
        panel = figure.add_subplot(grid[1, 3 * place : 3 * place + 3])
        flat = curves[last][:, frame] @ plane.T
        raw = points[:, frame] @ plane.T
        for a, b in clip.info.keypoints.edges:
            panel.plot(*flat[[a, b]].T, color="tab:blue", lw=1.5)
        for own, ink, fill in (
            (known[:, frame] & ~hidden[:, frame], "black", "black"),
            (hidden[:, frame], "tab:red", "none"),
        ):
            panel.plot(*raw[own].T, "o", color=ink, mfc=fill, ms=4)
        panel.set_title(f"{times[frame]:.2f} s, {last}", fontsize=8)
        panel.set_aspect("equal")
        panel.tick_params(labelsize=7)
    figure.savefig(path, dpi=80)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shards", type=Path)
    parser.add_argument("--clip", type=int, default=0, help="its place in the manifest")
    parser.add_argument("--rigid", default="", help="bones of constant length, as head:nose,head:left_ear")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--picture", type=Path)
    arguments = parser.parse_args()
    with ShardReader(arguments.shards) as reader:
        clip = reader.read(arguments.clip)
    points, known = triangulated(clip)
    factor, unit = (1000.0, "mm") if clip.info.metric else (1.0, "units")
    points *= factor
    kept = np.flatnonzero(known.mean(1) > MOST)
    assert clip.info.keypoints is not None
    place = {int(point): index for index, point in enumerate(kept)}
    names = [clip.info.keypoints.names[point] for point in kept]
    edges = [(place[a], place[b]) for a, b in clip.info.keypoints.edges if a in place and b in place]
    said = dataclasses.replace(clip.info.keypoints, names=names, edges=edges)
    clip = dataclasses.replace(clip, info=dataclasses.replace(clip.info, keypoints=said))
    points, known = points[kept], known[kept]
    pairs = [pair.split(":") for pair in arguments.rigid.split(",") if pair]
    rigid = [(names.index(a), names.index(b)) for a, b in pairs]
    print(f"{clip.key}: {len(names)} points, {points.shape[1]} times, {known.mean():.1%} of entries known, {unit}")
    print(f"{processor()}, {torch.get_num_threads()} threads, {commit()}: {shlex.join(sys.argv)}")
    methods: dict[str, Callable[[Flags, int], Points]] = {
        "mean position": lambda given, _: still(points, given),
        "straight lines": lambda given, _: straight(points, given),
    }
    for name, config in FITS.items():
        if rigid or not config.bone:
            methods[name] = lambda given, seed, config=config: fitted(
                clip, points, given, rigid, config, arguments.steps, seed
            )
    for pattern in ("single", "gaps"):
        rows: dict[str, list[tuple[float, ...]]] = {name: [] for name in methods}
        curves: dict[str, Points] = {}
        hidden = np.zeros_like(known)
        began = time.monotonic()
        for seed in range(arguments.seeds):
            hidden = hide(known, pattern, np.random.default_rng(seed))
            for name, method in methods.items():
                curves[name] = method(known & ~hidden, seed)
                rows[name].append(figures(curves[name], points, hidden, rigid))
        print(f"\nhidden: {pattern} ({time.monotonic() - began:.0f} s)\n")
        print(f"| fit | error where hidden [{unit}]: mean | median | second difference [{unit}] | bones vary |")
        print("|---|---|---|---|---|")
        for name, own in rows.items():
            error, median, bend, bones = np.mean(own, axis=0)
            spread = np.std(own, axis=0)[0]
            print(f"| {name} | {error:.2f} ± {spread:.2f} | {median:.2f} | {bend:.3f} | {bones:.1%} |", flush=True)
        if pattern == "gaps" and arguments.picture is not None:
            draw(arguments.picture, clip, points, known, hidden, {n: curves[n] for n in SHOWN if n in curves}, unit)


if __name__ == "__main__":
    main()

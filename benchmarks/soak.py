r"""Runs killed at random moments: none may lose its checkpoint, and each must end as an undisturbed one, to the bit.

    python benchmarks/soak.py [--kills 50] [--minutes 40] [--processes 1] [--strategy ddp] [--seed 0] \
        [--out docs/results/scaling.json]

Small runs that save after every step are killed (SIGKILL) at random moments from their start on and started again, as
a launcher does. After each kill the newest checkpoint must be readable and no older than before it. Each run that
comes to its end is compared with one that was not disturbed: weights, averages and moments. With several processes, a
random one is killed, then the others. A soak may be run in pieces, with a seed each, which chooses the moments. Figures
are merged into the file: ``resume_kills_survived`` counts over all its entries of ``resume_soaks``, one for each number
of processes, strategy and seed.
"""

from __future__ import annotations

import argparse
import json
import math
import multiprocessing
import os
import random
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any, cast

import torch

from data_prep.synthetic import WorldSettings, generate
from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import RunConfig, load, to_yaml
from four_d.data.shards import finalise, write_shard
from four_d.outputs import write_json
from four_d.schema import build
from four_d.training import train
from four_d.training.record import describe_machine, read_metrics

STEPS = 20


@dataclass(kw_only=True)
class Soak:
    """Result of a soak."""

    processes: int
    strategy: str
    seed: int = 0
    kills: int = 0
    survived: int = 0
    """Kills after which the checkpoint was sound and the run went on."""
    while_saving: int = 0
    """Kills that left a half-written checkpoint behind, which the next start removed."""
    finished: int = 0
    """Runs that came to their end, killed in between, with the undisturbed run's weights."""
    seconds: float = 0.0
    failures: list[str] = field(default_factory=list[str])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=50)
    parser.add_argument("--minutes", type=float, default=math.inf, help="time after which there are no more kills")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--seed", type=int, default=0, help="of the moments")
    parser.add_argument("--out", type=Path, default=None, help="file for the figures")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        found = run(
            Path(folder),
            kills=arguments.kills,
            minutes=arguments.minutes,
            processes=arguments.processes,
            strategy=arguments.strategy,
            seed=arguments.seed,
            shown=True,
        )
    print(json.dumps(asdict(found), indent=1))
    if arguments.out is not None:
        merge(arguments.out, found)
    sys.exit(bool(found.failures))


def run(
    folder: Path,
    *,
    kills: int,
    minutes: float = math.inf,
    processes: int = 1,
    strategy: str = "ddp",
    seed: int = 0,
    shown: bool = False,
) -> Soak:
    """Kill runs in ``folder`` so many times, or for so long, and let the last one come to its end."""
    data, chance, began = small_data(folder / "data"), random.Random(seed), time.monotonic()
    found = Soak(processes=processes, strategy=strategy, seed=seed)
    undisturbed = small_config(data, folder / "undisturbed", found)
    code = _ended(_start(undisturbed, processes, folder))
    if code:
        return _failed(found, f"undisturbed: exit code {code}, {_log(folder)}")
    expected = sharding.read(undisturbed.run_folder / LAST)

    def more() -> bool:
        return found.kills < kills and time.monotonic() < began + 60 * minutes

    while more() and not found.failures:
        config = small_config(data, folder / f"run-{found.finished}", found)
        _killed_until_its_end(config, found, more, chance, folder)
        if not found.failures and not same(expected, sharding.read(config.run_folder / LAST)):
            found.failures.append(f"{config.run_folder} ended with other weights")
        found.finished += not found.failures
        if shown:
            print(f"{found.kills} kills, {found.while_saving} while saving, {found.finished} runs ended", flush=True)
    found.seconds = round(time.monotonic() - began, 1)
    return found


def _killed_until_its_end(
    config: RunConfig, found: Soak, more: Callable[[], bool], chance: random.Random, folder: Path
) -> None:
    step = 0
    while True:
        several = _start(config, found.processes, folder)
        if more():
            _wait_a_while(config, several, chance)
        else:
            _ended(several)
        if not any(each.is_alive() for each in several):
            code = _ended(several)
            if code:
                _failed(found, f"start after kill {found.kills}: exit code {code}, {_log(folder)}")
            return
        for each in chance.sample(several, len(several)):
            if each.pid is not None and each.is_alive():
                os.kill(each.pid, signal.SIGKILL)
        _ended(several)
        found.kills += 1
        found.while_saving += bool([*(config.run_folder / LAST.parent).glob(".*.partial")])
        now = _step(config, found)
        if now < step:
            _failed(found, f"kill {found.kills}: step {now} after {step}")
        if found.failures:
            return
        step = now
        found.survived += 1


def _wait_a_while(config: RunConfig, several: Sequence[BaseProcess], chance: random.Random) -> None:
    """Wait for up to three steps and then a random part of the time that one took, or a random part of the start."""
    steps, began, before = chance.choice((0, 1, 2, 3)), time.monotonic(), len(read_metrics(config.run_folder))
    span, moved = chance.uniform(0, 3.0), began
    while steps and any(each.is_alive() for each in several):
        now = len(read_metrics(config.run_folder))
        if now > before:
            steps, before, span, moved = steps - 1, now, time.monotonic() - moved, time.monotonic()
        time.sleep(0.005)
    time.sleep(chance.uniform(0, min(span, 3.0)))


def _step(config: RunConfig, found: Soak) -> int:
    """Step of the newest checkpoint, which is read whole; 0 without one."""
    path = config.run_folder / LAST
    if not path.exists():
        if path.is_symlink():
            _failed(found, f"{path} points nowhere")
        return 0
    try:
        return cast(int, sharding.gathered(sharding.read(path))["run"]["step"])
    except Exception as error:
        _failed(found, f"{path} after kill {found.kills}: {error}")
        return 0


def same(left: object, right: object) -> bool:
    """Equal to the bit, but for times."""
    if isinstance(left, torch.Tensor):
        return isinstance(right, torch.Tensor) and torch.equal(left, right)
    if isinstance(left, dict) and isinstance(right, dict):
        clock = {"elapsed", "config", "loops", "callbacks"}
        one, other = cast(dict[str, Any], left), cast(dict[str, Any], right)
        return one.keys() == other.keys() and all(same(one[key], other[key]) for key in one if key not in clock)
    if isinstance(left, list | tuple) and isinstance(right, list | tuple):
        pairs = zip(cast(list[object], left), cast(list[object], right), strict=True)
        return all(same(one, other) for one, other in pairs)
    return left == right


def small_config(data: Path, folder: Path, soak: Soak) -> RunConfig:
    """Small run that saves after each of its `STEPS`, with the processes and strategy of a soak."""
    checkpoints = {"keep": 2}
    loop = {"max_steps": STEPS, "epoch_steps": 1, "ema": 0.9, "strategy": soak.strategy, "checkpoints": checkpoints}
    loop |= {"precision": "fp32", "accelerator": "cpu"}
    sizes = {"patches": {"kind": "conv"}, "patch_size": 8, "width": 32, "rounds": 2, "heads": 2, "registers": 1}
    head = {"kind": "dense", "output": "depth", "channels": [8, 8, 16, 16], "features": 16}
    sampling = {"min_frames": 2, "max_frames": 4}
    examples = {"image_size": [16, 16], "images_per_batch": 8, "clips_multiple": soak.processes, "sampling": sampling}
    plain = {
        "name": "soak",
        "folder": str(folder),
        "model": {"backbone": {"kind": "alternating", **sizes}, "heads": {"depth": head}},
        "data": {"sources": {"worlds": {"path": str(data)}}, **examples},
        "losses": {"depth": {"kind": "depth"}},
        "loop": loop,
        "logging": {"every": 1},
    }
    return build(RunConfig, plain, "soak")


def small_data(folder: Path) -> Path:
    """Make two small clips; return the folder."""
    settings = WorldSettings(cameras=2, frames=6, width=32, height=32, duration_s=(0.5, 0.6))
    write_shard(folder, 0, [generate(seed, settings) for seed in range(2)], lossless=True)
    finalise(folder, "worlds")
    return folder


def _start(config: RunConfig, processes: int, folder: Path) -> list[BaseProcess]:
    """Start the processes of a run, forked from one that has imported all."""
    file = folder / "run.yaml"
    file.write_text(to_yaml(config))
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["benchmarks.soak"])
    several: list[BaseProcess] = []
    for rank in range(processes):
        each = context.Process(target=_train, args=(str(file), str(folder / "log.txt"), rank, processes, port))
        each.start()
        several.append(each)
    return several


def _train(file: str, log: str, rank: int, size: int, port: int) -> None:
    output = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(output, number)
    torch.set_num_threads(1)
    if size > 1:
        ranks = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size, "MASTER_PORT": port}
        os.environ |= {name: str(value) for name, value in ranks.items()} | {"MASTER_ADDR": "127.0.0.1"}
    sys.exit(train(load([file])).exit_code)


def _ended(several: Sequence[BaseProcess]) -> int:
    for each in several:
        each.join()
    return max((abs(each.exitcode or 0) for each in several), default=0)


def _failed(found: Soak, line: str) -> Soak:
    found.failures.append(line)
    return found


def _log(folder: Path) -> str:
    return (folder / "log.txt").read_text(errors="replace")[-1500:]


def merge(path: Path, found: Soak) -> None:
    """Put the figures into the file, in the place of earlier ones of the same kind."""
    figures = cast(dict[str, Any], json.loads(path.read_text()) if path.is_file() else {})
    machine = describe_machine()
    entry = {**asdict(found), **{name: machine[name] for name in ("torch", "lightning", "cpus", "commit", "command")}}
    kind = ("processes", "strategy", "seed")
    key = [entry[name] for name in kind]
    others = [each for each in figures.get("resume_soaks", []) if [each[name] for name in kind] != key]
    soaks = sorted([*others, entry], key=lambda each: [each[name] for name in kind])
    survived = sum(cast(int, each["survived"]) for each in soaks)
    write_json(path, {**figures, "resume_kills_survived": survived, "resume_soaks": soaks})


if __name__ == "__main__":
    main()

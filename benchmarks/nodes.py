"""Two machines that lose their network or their processes: the run must end as an undisturbed one, to the bit.

    python benchmarks/nodes.py [--rounds 3] [--out docs/results/scaling.json]   # Linux, root, `ip` of iproute2

The machines are network namespaces on this one, each with torchrun and one process, and a bridge between them. At a
random moment of a run something happens to it (`EVENTS`); a torchrun that gives up is started again, as a scheduler
does. The figures are ``two_nodes`` of the file.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from types import TracebackType
from typing import Any, cast

from benchmarks import soak
from four_d import sharding
from four_d.checkpoints import LAST
from four_d.config import RunConfig, to_yaml
from four_d.outputs import write_json
from four_d.training.record import describe_machine, read_metrics

ADDRESSES = "10.77.0.1", "10.77.0.2"
PORT = 29500
TIMEOUT = 30.0
"""Seconds after which a process gives up on the others (``loop.timeout_seconds``)."""
SHORT = 3.0
"""Seconds of a cut that TCP bridges."""
LONG = TIMEOUT + 90.0
"""Seconds of a cut after which torchrun's own exchange (60 s) has failed too."""
STARTS = 4
"""Times that a machine's torchrun is started, the first included."""
ROOT = Path(__file__).parents[1]


def missing() -> str | None:
    """Reason why there can be no two machines here; None where there can."""
    if shutil.which("ip") is None:
        return "no `ip`; on Debian: apt-get install iproute2"
    try:
        with Network(f"try{os.getpid()}"):
            return None
    except subprocess.CalledProcessError as error:
        return f"no network namespaces ({error.stderr.strip()})"


class Network:
    """Two machines as network namespaces, joined by a bridge in a third."""

    def __init__(self, name: str) -> None:
        self.machines = f"{name}-a", f"{name}-b"
        self._middle = f"{name}-bridge"

    def __enter__(self) -> Network:
        try:
            self._build()
        except BaseException:
            self._remove()
            raise
        return self

    def __exit__(self, kind: type | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._remove()

    def _build(self) -> None:
        _ip("netns", "add", self._middle)
        _ip("-n", self._middle, "link", "add", "bridge", "type", "bridge")
        _ip("-n", self._middle, "link", "set", "bridge", "up")
        for number, (machine, address) in enumerate(zip(self.machines, ADDRESSES)):
            _ip("netns", "add", machine)
            _ip("-n", self._middle, "link", "add", f"port{number}", "type", "veth", "peer", "eth0", "netns", machine)
            _ip("-n", self._middle, "link", "set", f"port{number}", "master", "bridge", "up")
            _ip("-n", machine, "address", "add", f"{address}/24", "dev", "eth0")
            for device in ("lo", "eth0"):
                _ip("-n", machine, "link", "set", device, "up")

    def _remove(self) -> None:
        for each in (*self.machines, self._middle):
            with suppress(subprocess.CalledProcessError):
                _ip("netns", "delete", each)

    def cut(self) -> None:
        """Lose all that is sent between the machines; neither is told."""
        _ip("-n", self._middle, "link", "set", "port1", "nomaster")

    def mend(self) -> None:
        """Join the machines again."""
        _ip("-n", self._middle, "link", "set", "port1", "master", "bridge")


def _ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


class Job:
    """A run on both machines, whose torchruns are started again where they give up."""

    def __init__(self, network: Network, config: RunConfig, folder: Path) -> None:
        self.network, self.config = network, config
        self._file = folder / f"{config.run_folder.parent.name}.yaml"
        self._file.write_text(to_yaml(config))
        self.starts = [0, 0]
        self.torchruns = [self._start(number) for number in range(2)]

    def _start(self, number: int) -> subprocess.Popen[bytes]:
        self.starts[number] += 1
        command = ["ip", "netns", "exec", self.network.machines[number], sys.executable, "-m", "torch.distributed.run"]
        command += ["--nnodes=2", "--nproc-per-node=1", "--max-restarts=3", f"--local-addr={ADDRESSES[number]}"]
        command += ["--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:{PORT}", "--rdzv-id=nodes"]
        command += [f"--rdzv-conf=is_host={number == 0}", "-m", "four_d.cli", "train", str(self._file)]
        paths = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
        settings = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "eth0", "PYTHONPATH": paths}
        # else the slower machine's process may still find the other's address of the start before
        settings["TORCH_DISABLE_SHARE_RDZV_TCP_STORE"] = "1"
        with self.log(number).open("a") as log:
            return subprocess.Popen(command, env={**os.environ, **settings}, stdout=log, stderr=log)

    def log(self, number: int) -> Path:
        """Output of a machine."""
        return self._file.with_suffix(f".{number}.log")

    def workers(self, number: int) -> list[int]:
        """Process numbers of a machine's processes that train."""
        pid = self.torchruns[number].pid
        with suppress(OSError):
            return [int(each) for each in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]
        return []

    def kill(self, number: int) -> None:
        """Kill a machine's torchrun and its process, at once."""
        for pid in (self.torchruns[number].pid, *self.workers(number)):
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.torchruns[number].wait()

    def steps(self) -> int:
        """Steps recorded."""
        return len(read_metrics(self.config.run_folder))

    def until(self, reached: Callable[[], bool]) -> None:
        """Wait; RuntimeError where both torchruns ended before."""
        while not reached():
            if all(each.poll() is not None for each in self.torchruns):
                raise RuntimeError(self.told())
            time.sleep(0.02)

    def end(self) -> None:
        """Start torchruns that gave up again until both end well; RuntimeError where one is started too often."""
        while any(each.poll() != 0 for each in self.torchruns):
            for number, each in enumerate(self.torchruns):
                if each.poll() not in (None, 0):
                    if self.starts[number] == STARTS:
                        raise RuntimeError(self.told())
                    self.torchruns[number] = self._start(number)
            time.sleep(0.1)

    def told(self) -> str:
        """Last lines of both machines."""
        return "\n".join(f"machine {number}: {self.log(number).read_text()[-3000:]}" for number in range(2))

    def close(self) -> None:
        """Kill whatever still runs."""
        for number, each in enumerate(self.torchruns):
            if each.poll() is None:
                self.kill(number)


def cut(job: Job) -> None:
    """Cut the network until a process gave up on the other."""
    job.network.cut()
    before = [job.workers(number) for number in range(2)]
    job.until(lambda: any(job.workers(number) != before[number] for number in range(2)))
    job.network.mend()


def cut_for_long(job: Job) -> None:
    """Cut the network for longer than torchruns wait for each other: they end, each as soon as it learns of it."""
    job.network.cut()
    time.sleep(LONG)
    job.network.mend()
    job.until(lambda: job.torchruns[1].poll() is not None)


def cut_for_short(job: Job) -> None:
    """Cut the network for a few seconds."""
    job.network.cut()
    time.sleep(SHORT)
    job.network.mend()


def kill_process(job: Job) -> None:
    """Kill the second machine's process."""
    os.kill(job.workers(1)[0], signal.SIGKILL)


def kill_machine(job: Job) -> None:
    """Kill torchrun and its process on the second machine."""
    job.kill(1)


def kill_all(job: Job) -> None:
    """Kill torchrun and its process on both machines."""
    for number in range(2):
        job.kill(number)


EVENTS = cut, cut_for_long, cut_for_short, kill_process, kill_machine, kill_all


@dataclass(kw_only=True)
class Outcome:
    """A run to which something happened."""

    event: str
    at: int
    """Steps recorded before."""
    starts: list[int]
    """Starts of each machine's torchrun."""
    same: bool
    """True if weights, averages and moments are the undisturbed run's, to the bit."""
    seconds: float


def config(data: Path, folder: Path, strategy: str) -> RunConfig:
    """Run of `soak`, whose processes give up on each other after `TIMEOUT`."""
    made = soak.small_config(data, folder, soak.Soak(processes=2, strategy=strategy))
    return replace(made, loop=replace(made.loop, timeout_seconds=TIMEOUT))


def run(
    network: Network, made: RunConfig, folder: Path, event: Callable[[Job], None] | None, after: int, wait: float = 0.0
) -> Outcome:
    """Run on both machines; ``wait`` seconds after so many steps let something happen. ``same`` is not judged."""
    began, job, at = time.monotonic(), Job(network, made, folder), 0
    try:
        if event is not None:
            job.until(lambda: job.steps() >= after)
            time.sleep(wait)
            at = job.steps()
            event(job)
        job.end()
    finally:
        job.close()
        network.mend()
    name = "none" if event is None else event.__name__
    return Outcome(event=name, at=at, starts=job.starts, same=True, seconds=round(time.monotonic() - began, 1))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1, help="times that each event happens")
    parser.add_argument("--strategy", choices=("ddp", "fsdp2"), default="ddp")
    parser.add_argument("--events", nargs="+", default=[each.__name__ for each in EVENTS])
    parser.add_argument("--out", type=Path, default=None, help="file for the figures")
    given = parser.parse_args()
    reason = missing()
    if reason is not None:
        parser.error(reason)
    chance, found = random.Random(0), list[Outcome]()
    with tempfile.TemporaryDirectory() as place, Network(f"nodes{os.getpid()}") as network:
        folder = Path(place)
        data = soak.small_data(folder / "data")
        whole = config(data, folder / "whole", given.strategy)
        print(run(network, whole, folder, None, 0), flush=True)
        expected = sharding.read(whole.run_folder / LAST)
        for turn in range(given.rounds):
            for event in (each for each in EVENTS if each.__name__ in given.events):
                made = config(data, folder / f"{event.__name__}-{turn}", given.strategy)
                outcome = run(network, made, folder, event, chance.randint(1, 8), chance.uniform(0, 0.5))
                outcome.same = soak.same(expected, sharding.read(made.run_folder / LAST))
                found.append(outcome)
                print(outcome, flush=True)
    if given.out is not None:
        _merge(given.out, given.strategy, found)
    sys.exit(not all(each.same for each in found))


def _merge(path: Path, strategy: str, found: list[Outcome]) -> None:
    """Put the outcomes into the file, in the place of earlier ones of this strategy."""
    figures = cast(dict[str, Any], json.loads(path.read_text()) if path.is_file() else {})
    machine = describe_machine()
    entry = {name: machine[name] for name in ("torch", "lightning", "cpus", "commit", "command")}
    entry |= {"timeout_seconds": TIMEOUT, "runs": [asdict(each) for each in found]}
    write_json(path, {**figures, "two_nodes": {**figures.get("two_nodes", {}), strategy: entry}})


if __name__ == "__main__":
    main()

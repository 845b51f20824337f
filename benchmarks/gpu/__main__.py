"""All measurements on one GPU, one after the other, each in a process and with a time box of its own.

    python -m benchmarks.gpu --out FOLDER [--device cuda] [--minutes 13] [--sections vggt dgs_lrm] [--tiny]

FOLDER/gpu.json is written anew after each section; sections that it has already and that are not asked for stay, so
that the work may be parted into several calls. A section that fails or is stopped keeps what it had measured, with the
reason. ``--tiny`` rehearses with sizes that a CPU computes in seconds; ``--device pretend`` takes a pretended CUDA
device (`tests.pretend_cuda`). The process ends with 1 where a section was not done.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import nullcontext
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import build
from benchmarks.gpu.job import ROOT, Job, beside_package, reason
from benchmarks.gpu.sections import SECTIONS
from four_d.devices import without_cuda
from four_d.outputs import write_whole
from four_d.training.record import describe_machine

LAST_LINES = 12
LARGEST = 15 << 20
"""Bytes of the packed library that is still brought back."""


def child(options: argparse.Namespace) -> None:
    """Run one section in this process."""
    pretended = options.device == "pretend"
    with beside_package("pretend_cuda").pretend_cuda() if pretended else nullcontext():
        job = Job(
            device=torch.device("cuda" if pretended else options.device),
            tiny=options.tiny,
            compiles=not pretended,
            record=options.record,
            deadline=time.monotonic() + options.box,
        )
        SECTIONS[options.only].load()(job)


def section(options: argparse.Namespace, name: str, box: float) -> dict[str, Any]:
    """Run a section in a process of its own, stop it after ``box`` seconds, and return all that it recorded."""
    record, log = options.out / f"{name}.jsonl", options.out / f"{name}.log"
    record.write_text("")
    command = [sys.executable, "-m", "benchmarks.gpu", "--only", name, "--record", str(record), "--box", str(box)]
    command += ["--device", options.device, *(["--tiny"] if options.tiny else [])]
    begin = time.monotonic()
    with log.open("w") as file:
        process = subprocess.Popen(command, cwd=ROOT, stdout=file, stderr=subprocess.STDOUT, start_new_session=True)
        code = None
        try:
            code = process.wait(box)
        except subprocess.TimeoutExpired:
            pass
        finally:
            if code is None:  # also where this process is told to end
                os.killpg(process.pid, signal.SIGKILL)
                process.wait()
    status = "stopped" if code is None else "failed" if code else "done"
    figures: dict[str, list[Any]] = {}
    for line in record.read_text().splitlines():
        try:
            table, row = json.loads(line)
        except json.JSONDecodeError:  # cut off when it was stopped
            break
        figures.setdefault(table, []).append(row)
    tail = log.read_text(errors="replace").splitlines()[-LAST_LINES:] if status != "done" else []
    seconds = round(time.monotonic() - begin, 1)
    record.unlink()
    told = {"why": tail[-1] if code else f"its {box:.0f} s were over", "log": tail} if tail else {}
    return {"status": status, "seconds": seconds, "box": box, "figures": figures, **told}


def machine() -> dict[str, Any]:
    """Describe the machine, the driver and the libraries."""
    asked = "name,driver_version,memory.total,clocks.max.sm,power.limit"
    command = ["nvidia-smi", f"--query-gpu={asked}", "--format=csv,noheader"]
    try:
        card = subprocess.run(command, capture_output=True, text=True, check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError) as error:
        card = reason(error)
    found = dict(describe_machine())
    file = Path(os.environ.get("CARRIED", "")) / "commit.txt"
    if found["commit"] is None and file.is_file():  # where the code travels without its history
        found["commit"] = file.read_text().strip()
    return {**found, "command": None, "nvidia_smi": card, "cuda": torch.version.cuda, "cudnn": _cudnn()}


def _cudnn() -> int | None:
    return torch.backends.cudnn.version() if torch.cuda.is_available() else None


class Kernels:
    """gsplat's library: a carried one that loads, or one that is compiled beside the other sections."""

    def __init__(self, out: Path, *, wanted: bool) -> None:
        self.state: dict[str, Any] = {"status": "not wanted"}
        self._out, self._begin = out, time.monotonic()
        self._process: subprocess.Popen[bytes] | None = None
        if not wanted:
            return
        library = build.place() / f"{build.NAME}.so"
        if library.is_file() and self._loads():
            self.state = {"status": "carried"}
            return
        library.unlink(missing_ok=True)
        self.state = {"status": "compiling"}
        with (out / "gsplat.log").open("w") as log:
            command = ["nice", "-n", "10", sys.executable, "-m", "benchmarks.gpu.build"]
            self._process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log, start_new_session=True)

    def _loads(self) -> bool:
        command = [sys.executable, "-c", "import torch, gsplat.csrc"]
        return subprocess.run(command, check=False, capture_output=True).returncode == 0

    def ready(self, limit: float) -> str | None:
        """Wait; return why there is no library, or None."""
        if self._process is None:
            return None
        try:
            code = self._process.wait(max(1.0, limit))
        except subprocess.TimeoutExpired:
            return "gsplat is still compiling"
        self._process = None
        self.state = {"status": "failed" if code else "compiled", "seconds": round(time.monotonic() - self._begin, 1)}
        if code:
            self.state["log"] = (self._out / "gsplat.log").read_text(errors="replace").splitlines()[-40:]
            return "gsplat did not compile"
        return None

    def end(self) -> None:
        """Stop a compilation that still runs; keep what was compiled in the folder of results, if it is small."""
        self.ready(0)
        if self._process is not None:
            os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()
            self.state = {"status": "stopped"}
        if self.state["status"] == "compiled":
            packed = build.pack(build.place() / f"{build.NAME}.so", self._out)
            self.state["packed_bytes"] = packed.stat().st_size
            if packed.stat().st_size > LARGEST:
                packed.unlink()


def main() -> None:
    options = parse()
    if options.only:
        child(options)
        return
    if options.device == "cuda" and (lacking := without_cuda()) is not None:
        sys.exit(f"{lacking}; to rehearse: --device cpu --tiny")
    begin = time.monotonic()
    options.out.mkdir(parents=True, exist_ok=True)
    path = options.out / "gpu.json"
    found: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {"sections": {}}
    kind = {"device": options.device, "rehearsal": options.tiny or options.device != "cuda"}
    if any(found.get(name, value) != value for name, value in kind.items()):
        sys.exit(f"{path} is of another device or of a rehearsal; choose another --out")
    found |= {**kind, "date": datetime.now(UTC).isoformat(timespec="seconds"), "machine": machine()}
    words = [options.out.name if word == str(options.out) else word for word in sys.argv[1:]]
    found["command"] = shlex.join(["python", "-m", "benchmarks.gpu", *words])
    chosen = [name for name in SECTIONS if name in options.sections]
    draws = options.device == "cuda"  # also where none of these sections draws: a later call will
    kernels = Kernels(options.out, wanted=draws)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(1))
    try:
        failed = every(options, chosen, found, kernels, begin)
    finally:
        kernels.end()
        found["gsplat"] = kernels.state if draws else found.get("gsplat")
        write_whole(path, json.dumps(found, indent=1) + "\n")
    sys.exit(failed)


def every(
    options: argparse.Namespace, chosen: list[str], found: dict[str, Any], kernels: Kernels, begin: float
) -> bool:
    """Run the chosen sections, and write the file after each; True if one was not done."""
    failed = False
    for name in chosen:
        left = 60 * options.minutes - (time.monotonic() - begin)
        why = kernels.ready(left - 30) if SECTIONS[name].draws else None
        left = 60 * options.minutes - (time.monotonic() - begin)
        if why is None and left < 10:
            why = "no time was left"
        box = min(SECTIONS[name].box * options.stretch, left)
        result = {"status": "skipped", "why": why} if why else section(options, name, box)
        result |= {name: found["machine"][name] for name in ("nvidia_smi", "commit")}
        result |= {"command": found["command"], "date": datetime.now(UTC).isoformat(timespec="seconds")}
        found["sections"][name], found["gsplat"] = result, kernels.state
        write_whole(options.out / "gpu.json", json.dumps(found, indent=1) + "\n")
        print(f"{name}: {result['status']} {why or ''} after {result.get('seconds', 0)} s", flush=True)
        failed |= result["status"] != "done"
    return failed


def parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=ROOT / "runs/gpu")
    parser.add_argument("--device", choices=("cuda", "cpu", "pretend"), default="cuda")
    parser.add_argument("--minutes", type=float, default=12.5, help="all sections together")
    parser.add_argument("--sections", nargs="+", choices=tuple(SECTIONS), default=tuple(SECTIONS))
    parser.add_argument("--tiny", action="store_true", help="rehearse")
    parser.add_argument("--stretch", type=float, default=1.0, help="factor of each section's time box")
    for name, kind in (("only", str), ("record", Path), ("box", float)):
        parser.add_argument(f"--{name}", type=kind, help=argparse.SUPPRESS)
    return parser.parse_args()


if __name__ == "__main__":
    main()

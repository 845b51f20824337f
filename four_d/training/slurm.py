"""A run as a job of SLURM: a batch script that saves before the time limit, queues the job again and goes on."""

from __future__ import annotations

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from four_d.config import RunConfig
from four_d.errors import UserError
from four_d.outputs import write_whole
from four_d.training.run import STOPPED

FOLDER = "slurm"
"""Folder in a run's folder for the script and its logs."""
_TIME = re.compile(r"\d+|\d+:\d\d|\d+:\d\d:\d\d|\d+-\d\d?(:\d\d){0,2}")


@dataclass(frozen=True, kw_only=True)
class Job:
    """Machines, time and options that a run asks SLURM for."""

    nodes: int = 1
    """Number of machines."""
    processes_per_node: int = 1
    """Processes on each, one per GPU."""
    gpus: bool = True
    """Ask for a GPU per process; off: the processes train on CPUs."""
    time: str = "24:00:00"
    """Time limit of a job in SLURM's notation; a longer run takes several, one after the other."""
    save_seconds: int = 180
    """Time before the limit at which the run is told to finish its step, save and end."""
    options: tuple[str, ...] = ()
    """Further options of sbatch, as partition=gpu,account=me,cpus-per-task=8."""
    setup: str = ""
    """Shell commands before the run, as 'module load cuda'."""

    def __post_init__(self) -> None:
        if min(self.nodes, self.processes_per_node, self.save_seconds) < 1:
            raise UserError("nodes, processes-per-node and save-seconds must be at least 1")
        if not _TIME.fullmatch(self.time):
            raise UserError(f"--time is {self.time!r}; give SLURM's notation, as 12:00:00 or 2-00:00:00")
        for each in self.options:
            if not re.fullmatch(r"[a-z][a-z0-9-]*(=.+)?", each):
                raise UserError(f"--options: {each!r} is no option of sbatch without its dashes, as partition=gpu")

    @property
    def processes(self) -> int:
        """Number of processes of the run."""
        return self.nodes * self.processes_per_node


def script(job: Job, config: RunConfig, arguments: Sequence[str], workplace: Path) -> str:
    """Write the batch script of ``four-d train ARGUMENTS`` in the folder ``workplace``.

    One task of srun is one process of the run, which finds its rank where torchrun would tell it.

    UserError where batches cannot be shared by so many processes.
    """
    multiple = config.data.clips_multiple
    if multiple % job.processes:
        raise UserError(
            f"{job.processes} processes cannot share batches of clips in multiples of {multiple}; "
            f"set data.clips_multiple={job.processes} (or a multiple of it)"
        )
    place = (workplace / config.run_folder / FOLDER).absolute()
    options = {
        "job-name": config.name,
        "nodes": job.nodes,
        "ntasks-per-node": job.processes_per_node,
        **({"gpus-per-node": job.processes_per_node} if job.gpus else {}),
        "time": job.time,
        "signal": f"USR1@{job.save_seconds}",
        "open-mode": "append",
        "output": place / "job-%j.log",
    }
    further = [f"#SBATCH --{each}" for each in job.options]
    train = shlex.join([sys.executable, "-m", "four_d.cli", "train", "--resume", "auto", *arguments])
    ranks = "RANK=$SLURM_PROCID LOCAL_RANK=$SLURM_LOCALID GROUP_RANK=$SLURM_NODEID"
    lines = [
        "#!/bin/bash",
        *(f"#SBATCH --{name}={value}" for name, value in options.items()),
        "#SBATCH --requeue",
        *further,
        "",
        f"cd {shlex.quote(str(workplace.absolute()))} || exit 1",
        *([job.setup] if job.setup else []),
        'export MASTER_ADDR=$(scontrol show hostnames "$SLURM_JOB_NODELIST" | head -n 1)',
        "export MASTER_PORT=$((20000 + SLURM_JOB_ID % 20000))",
        f"export WORLD_SIZE={job.processes} LOCAL_WORLD_SIZE={job.processes_per_node}",
        f"srun --kill-on-bad-exit=1 bash -c {shlex.quote(f'{ranks} exec {train}')}",
        "code=$?",
        f"# {STOPPED}: saved after a signal, before the time limit or where others have priority",
        f'if [ "$code" -eq {STOPPED} ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
        'exit "$code"',
    ]
    return "\n".join(lines) + "\n"


def submit(job: Job, config: RunConfig, arguments: Sequence[str], *, dry_run: bool) -> tuple[str, Path]:
    """Store the script in the run's folder and hand it to sbatch; return the script and its path.

    With ``dry_run`` nothing is stored or handed in. UserError without sbatch, and for what sbatch refuses.
    """
    text, path = script(job, config, arguments, Path.cwd()), config.run_folder / FOLDER / "job.sh"
    if dry_run:
        return text, path
    sbatch = shutil.which("sbatch")
    if sbatch is None:
        raise UserError("this machine has no sbatch; go to one of the cluster's, or see the script with --dry-run")
    write_whole(path, text)
    found = subprocess.run([sbatch, str(path)], capture_output=True, text=True, check=False)
    if found.returncode:
        raise UserError(f"sbatch refused {path}: {' '.join(found.stderr.split())}")
    print(found.stdout.strip())
    return text, path

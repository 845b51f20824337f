"""A run as a job of SLURM: the batch script, and with a real scheduler on this machine its way through a time limit."""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Generator
from pathlib import Path

import pytest
import torch

from four_d.checkpoints import LAST
from four_d.cli.program import main
from four_d.config import to_yaml
from four_d.errors import UserError
from four_d.schema import build
from four_d.training.record import read_metrics
from four_d.training.slurm import Job, script
from tests.training.runs import make_data, tiny


def test_the_script_of_a_job(tmp_path: Path) -> None:
    config = tiny(tmp_path, Path("runs"), data={"clips_multiple": 8, "images_per_batch": 32})
    job = Job(nodes=2, processes_per_node=4, time="2:00:00", options=("partition=gpu",), setup="module load cuda")
    lines = script(job, config, ["a b.yaml", "name=test"], tmp_path).splitlines()
    assert lines[0] == "#!/bin/bash"
    for expected in (
        "#SBATCH --job-name=test",
        "#SBATCH --nodes=2",
        "#SBATCH --ntasks-per-node=4",
        "#SBATCH --gpus-per-node=4",
        "#SBATCH --time=2:00:00",
        "#SBATCH --signal=USR1@180",
        "#SBATCH --open-mode=append",
        f"#SBATCH --output={tmp_path}/runs/test/slurm/job-%j.log",
        "#SBATCH --requeue",
        "#SBATCH --partition=gpu",
        f"cd {tmp_path} || exit 1",
        "module load cuda",
        "export WORLD_SIZE=8 LOCAL_WORLD_SIZE=4",
        'if [ "$code" -eq 143 ]; then scontrol requeue "$SLURM_JOB_ID"; fi',
    ):
        assert expected in lines, expected
    assert lines.index("module load cuda") > max(i for i, line in enumerate(lines) if line.startswith("#SBATCH"))
    checked = subprocess.run(["bash", "-n"], input="\n".join(lines), text=True, check=False)
    assert checked.returncode == 0
    assert "gpus-per-node" not in script(Job(gpus=False), config, [], tmp_path)


def test_the_script_starts_a_process_with_the_rank_of_its_task(tmp_path: Path) -> None:
    """With stand-ins for SLURM's programs: two tasks, one after the other, then the end and what follows from it."""
    config = tiny(tmp_path, Path("runs"), data={"clips_multiple": 2, "images_per_batch": 8})
    text = script(Job(processes_per_node=2, gpus=False), config, ["it's.yaml"], tmp_path)
    shown = (
        'echo "$RANK/$WORLD_SIZE local $LOCAL_RANK/$LOCAL_WORLD_SIZE node $GROUP_RANK at $MASTER_ADDR:$MASTER_PORT $@"'
    )
    task = 'SLURM_PROCID=$i SLURM_LOCALID=$i SLURM_NODEID=0 "$@"'
    for name, body in {
        "srun": f"shift; for i in 0 1; do {task}; code=$?; done; exit $code",
        "scontrol": 'if [ "$1" = requeue ]; then echo requeued $2; else echo first; echo second; fi',
        "python": f"{shown}; exit 143",
    }.items():
        (tmp_path / name).write_text(f"#!/bin/bash\n{body}\n")
        (tmp_path / name).chmod(0o755)
    (tmp_path / "job.sh").write_text(text.replace(sys.executable, str(tmp_path / "python")))
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin", "SLURM_JOB_ID": "7", "SLURM_JOB_NODELIST": "n[1-2]"}
    done = subprocess.run(
        ["bash", str(tmp_path / "job.sh")], capture_output=True, text=True, check=False, env=environment
    )
    command = "-m four_d.cli train --resume auto it's.yaml"
    assert done.stdout.splitlines() == [
        f"0/2 local 0/2 node 0 at first:20007 {command}",
        f"1/2 local 1/2 node 0 at first:20007 {command}",
        "requeued 7",
    ]
    assert done.returncode == 143


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"nodes": 0}, "must be at least 1"),
        ({"time": "soon"}, "give SLURM's notation"),
        ({"options": ["--partition=gpu"]}, "no option of sbatch without its dashes"),
    ],
)
def test_a_job_that_slurm_would_not_take(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(Job, settings, "job")


def test_submit_shows_refuses_and_needs_sbatch(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "run.yaml").write_text(to_yaml(tiny(tmp_path, tmp_path / "runs")))
    file = str(tmp_path / "run.yaml")
    monkeypatch.setenv("PATH", str(tmp_path))
    assert main(["submit", file, "--dry-run", "--time", "1:00:00", "--options", "partition=a,account=b"]) == 0
    shown = capsys.readouterr().out
    assert "#SBATCH --partition=a\n#SBATCH --account=b\n" in shown
    assert not (tmp_path / "runs").exists()
    assert main(["submit", file]) == 2
    assert "this machine has no sbatch" in capsys.readouterr().err
    assert main(["submit", file, "--nodes", "4", "--dry-run"]) == 2
    assert "set data.clips_multiple=4" in capsys.readouterr().err


PROGRAMS = ("slurmctld", "slurmd", "munged", "sbatch", "srun", "scontrol")
MISSING = [name for name in PROGRAMS if shutil.which(name, path=f"{os.environ.get('PATH', '')}:/usr/sbin") is None]

CONF = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ports[0]}
SlurmdPort={ports[1]}
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
CryptoType=crypto/munge
SlurmUser=root
SlurmdUser=root
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/ctld.pid
SlurmdPidFile={folder}/d.pid
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
ReturnToService=2
SelectType=select/cons_tres
SelectTypeParameters=CR_Core
KillWait=30
MinJobAge=3600
RequeueExit=0
SchedulerParameters=requeue_delay=0,sched_interval=1
MailProg=/bin/true
SlurmdParameters=config_overrides
NodeName={host} NodeAddr=127.0.0.1 CPUs=2 State=UNKNOWN
PartitionName=all Nodes={host} Default=YES MaxTime=INFINITE State=UP
"""


@pytest.fixture
def slurm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Generator[Path]:
    """A scheduler and a machine, both this one."""
    if MISSING or os.getuid() != 0:
        pytest.skip(f"needs root and {', '.join(MISSING or PROGRAMS)} (apt-get install slurm-wlm munge)")
    monkeypatch.setenv("PATH", f"{os.environ['PATH']}:/usr/sbin")
    folder = tmp_path / "slurm"
    for name in ("state", "spool"):
        (folder / name).mkdir(parents=True)
    (folder / "munge.key").write_bytes(os.urandom(1024))
    (folder / "munge.key").chmod(0o400)
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(2)]
    ports = [each.getsockname()[1] for each in sockets]
    for each in sockets:
        each.close()
    host = socket.gethostname().split(".")[0]
    (folder / "slurm.conf").write_text(CONF.format(host=host, ports=ports, folder=folder))
    monkeypatch.setenv("SLURM_CONF", str(folder / "slurm.conf"))
    munge = ["munged", "--foreground", "--force", f"--key-file={folder}/munge.key", f"--socket={folder}/munge.socket"]
    munge += [f"--{name}={folder}/munge.{name[:4]}" for name in ("pid-file", "log-file", "seed-file")]
    with (folder / "log.txt").open("w") as log:
        running = [
            subprocess.Popen(command, stdout=log, stderr=log)
            for command in (munge, ["slurmctld", "-D"], ["slurmd", "-D", "-N", host])
        ]
        try:
            yield folder
        finally:
            subprocess.run(["scancel", "--full", "--user=root"], check=False, capture_output=True)
            for each in reversed(running):
                each.terminate()
                each.wait()


@pytest.mark.slow
def test_a_job_saves_before_its_time_limit_and_goes_on_by_itself(
    slurm: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = make_data(tmp_path / "data")
    steps = {"max_steps": 1_000_000, "epoch_steps": 1_000_000}
    config = tiny(data, tmp_path / "runs", loop=steps, data={"clips_multiple": 2})
    (tmp_path / "run.yaml").write_text(to_yaml(config))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    command = ["submit", str(tmp_path / "run.yaml"), "--processes-per-node", "2", "--no-gpus"]
    eventually(lambda: "idle" in told("sinfo", "--noheader"), slurm)
    assert main([*command, "--time", "10"]) == 0
    job = told("squeue", "--noheader", "--format=%i").split()[0]
    eventually(lambda: len(read_metrics(config.run_folder)) > 2, slurm)
    # what slurmctld does before the limit, without the minutes until then
    told("scancel", "--signal=USR1", job)
    eventually(lambda: "Restarts=1" in told("scontrol", "show", "job", job), slurm)
    stopped = torch.load(config.run_folder / LAST, weights_only=True)["run"]["step"]
    assert stopped >= 3
    eventually(lambda: read_metrics(config.run_folder)[-1]["step"] > max(stopped, 4) + 1, slurm)
    trained = [line["step"] for line in read_metrics(config.run_folder) if line["split"] == "train"]
    assert trained[:5] == [1, 2, 3, 4, 5]
    told("scancel", job)


def told(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout


def eventually(holds: object, folder: Path) -> None:
    """Wait for a state; the test's own time limit ends it."""
    assert callable(holds)
    for _ in range(3000):
        if holds():
            return
        time.sleep(0.2)
    logs = [*folder.rglob("*.txt"), *folder.parent.rglob("job-*.log")]
    raise AssertionError("\n".join(each.read_text()[-2000:] for each in logs))

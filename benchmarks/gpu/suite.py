"""The tests that need a GPU: ``pytest -m gpu`` over the files that have some."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path
from xml.etree import ElementTree

from benchmarks.gpu.job import ROOT, Job


def files() -> list[str]:
    """Test files with the mark; others may need packages that a bare machine lacks."""
    found = [each for each in sorted((ROOT / "tests").rglob("test_*.py")) if "mark.gpu" in each.read_text()]
    return [str(each.relative_to(ROOT)) for each in found]


def run(job: Job) -> None:
    """Run pytest, and record each test."""
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "tests.xml"
        command = [sys.executable, "-m", "pytest", "-m", "gpu", "-q", "-p", "no:cacheprovider"]
        command += ["--junitxml", str(out), *files(), *(["--collect-only"] if job.tiny else [])]
        code = subprocess.run(command, cwd=ROOT, check=False, timeout=max(1.0, job.left - 2)).returncode
        job.put("pytest", code=code, files=files())
        for case in ElementTree.parse(out).iter("testcase") if out.is_file() else ():
            trouble = next((each for each in case if each.tag in ("failure", "error", "skipped")), None)
            state = "passed" if trouble is None else trouble.tag
            why = None if trouble is None else (trouble.get("message") or "")[:300]
            job.put("test", name=case.get("name"), file=case.get("classname"), state=state, why=why)
    if code:
        raise RuntimeError(f"pytest ended with {code}")

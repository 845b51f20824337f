"""Former reference models come out of the repository's history."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from benchmarks import former


@pytest.fixture
def history(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A repository whose first commit holds a model that its second one has no more."""
    folder = tmp_path / "repository"
    (folder / "checkpoints" / "old").mkdir(parents=True)
    (folder / "checkpoints" / "old" / "config.json").write_text("{}")
    who = ("-c", "user.name=me", "-c", "user.email=me@example.org")

    def git(*words: str) -> str:
        return subprocess.run(["git", *who, *words], cwd=folder, check=True, stdout=subprocess.PIPE, text=True).stdout

    git("init", "--quiet")
    git("add", ".")
    git("commit", "--quiet", "--message", "a model")
    monkeypatch.setattr(former, "COMMIT", git("rev-parse", "HEAD").strip())
    git("rm", "--quiet", "-r", "checkpoints")
    git("commit", "--quiet", "--message", "no model")
    monkeypatch.setattr(former, "ROOT", folder)
    monkeypatch.chdir(tmp_path)
    return folder


@pytest.mark.usefixtures("history")
def test_it_is_put_where_runs_are_and_asked_of_git_once(monkeypatch: pytest.MonkeyPatch) -> None:
    assert (former.former("old") / "config.json").read_text() == "{}"
    monkeypatch.setattr(former, "COMMIT", "none")
    assert former.former("old").is_dir()


@pytest.mark.usefixtures("history")
def test_one_that_history_lacks_is_said() -> None:
    with pytest.raises(SystemExit, match="other is in this repository's history alone, which git does not show"):
        former.former("other")


def test_one_of_another_commit_is_put_beside_it(history: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    commit = subprocess.run(
        ["git", "rev-parse", "HEAD~"], cwd=history, check=True, stdout=subprocess.PIPE, text=True
    ).stdout.strip()
    monkeypatch.setattr(former, "COMMIT", "none")
    assert (former.former(f"old@{commit}") / "config.json").read_text() == "{}"
    with pytest.raises(SystemExit, match="old is in this repository's history alone"):
        former.former("old")

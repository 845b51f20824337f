"""Commands of README and docs are what the command line takes; links lead somewhere."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest

from four_d import cli, config

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
pytestmark = pytest.mark.skipif(not (ROOT / "README.md").exists(), reason="needs the working copy")


def commands() -> list[tuple[str, str]]:
    """(page, command) of every line in a shell block that calls four-d."""
    found: list[tuple[str, str]] = []
    for page in PAGES:
        for block in re.findall(r"```(?:sh|bash|console)\n(.*?)```", page.read_text(), flags=re.DOTALL):
            lines = block.replace("\\\n", " ").splitlines()
            found += [(page.name, line.split("four-d ", 1)[1]) for line in lines if re.search(r"\bfour-d ", line)]
    return found


@pytest.mark.parametrize(("page", "command"), commands())
def test_commands_are_understood(page: str, command: str) -> None:
    words = [word for word in shlex.split(command, comments=True) if word not in ("…", "...")]
    arguments = cli.parse(words)
    if words[0] == "train":
        files = [word for word in words[1:] if "=" not in word and not word.startswith("-")]
        overrides = [word for word in words[1:] if "=" in word]
        if all(not name.endswith(".yaml") for name in files):
            config.load(files, ["data.sources.any.path=data", *overrides])
    assert callable(arguments.command)


def test_the_pages_have_commands() -> None:
    assert len(commands()) >= 8


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path) -> None:
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if not re.match(r"\w+:", target):
            assert (page.parent / target).exists(), f"{page.name} links {target}"


def test_verbs_named_in_the_readme_exist() -> None:
    named = set(re.findall(r"`four-d (\w+)", (ROOT / "README.md").read_text()))
    assert named
    for verb in named:
        with pytest.raises(SystemExit) as stopped:
            cli.parse([verb, "--help"])
        assert stopped.value.code == 0


def test_the_architecture_page_names_every_room_and_module() -> None:
    page, package = (ROOT / "docs" / "architecture.md").read_text(), ROOT / "four_d"
    for path in package.iterdir():
        if not path.name.startswith(("_", ".")) and path.name != "py.typed":
            assert f"`{path.name}{'/' if path.is_dir() else ''}`" in page
    for room in ("cli", "data", "formats", "inference", "training"):
        told = page.split(f"\n`{room}/` is")[1].split("\n\n")[0]
        for path in (package / room).glob("*.py"):
            assert path.name.startswith("_") or f"`{path.stem}`" in told, f"{room}/{path.name}"

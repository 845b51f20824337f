"""Messages go through logging: on stderr as they are, silenced where wished, of several processes the first one's."""

from __future__ import annotations

import logging
import re
from pathlib import Path

import pytest

from four_d.logs import to_stderr

PACKAGE = Path(__file__).parent.parent / "four_d"
LOGGER = logging.getLogger("four_d.formats.ply")


def test_they_are_on_stderr_once_and_can_be_silenced(
    capsys: pytest.CaptureFixture[str],
) -> None:
    to_stderr()
    to_stderr()
    LOGGER.warning("5 % of it: {as} they are")
    assert capsys.readouterr().err == "5 % of it: {as} they are\n"
    logging.getLogger("four_d").setLevel("CRITICAL")
    LOGGER.warning("nothing")
    logging.getLogger("four_d").setLevel("NOTSET")
    assert capsys.readouterr().err == ""


def test_of_several_processes_only_the_first_speaks(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("RANK", "1")
    LOGGER.warning("a note")
    LOGGER.error("a corrupt sample")
    assert capsys.readouterr().err == "a corrupt sample\n"


def test_library_modules_do_not_print_to_stderr() -> None:
    """But for the command line, the progress bar, and what shows the messages."""
    spared = {PACKAGE / "progress.py", PACKAGE / "logs.py", *(PACKAGE / "cli").glob("*.py")}
    for path in {*PACKAGE.rglob("*.py"), *(PACKAGE.parent / "data_prep").rglob("*.py")} - spared:
        assert not re.search(r"print\([^)]*file=sys\.stderr", path.read_text()), path

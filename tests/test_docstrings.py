"""Docstrings begin with an imperative or a noun phrase, never with a clause that a reader must turn round first."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
FILES = [file for room in ("four_d", "data_prep", "examples") for file in sorted((ROOT / room).rglob("*.py"))]
CLAUSE = re.compile(r"(Of|What|Where|How|Which|Whose|Whether|When|As|Also|Likewise|Like that|The same)\b")


def docstrings(file: Path) -> Iterator[tuple[int, str]]:
    """Line and text of each: of modules, classes, functions, and below fields and constants."""
    for node in ast.walk(ast.parse(file.read_text())):
        for statement in getattr(node, "body", []) if not isinstance(node, ast.Lambda | ast.IfExp) else []:
            match statement:
                case ast.Expr(value=ast.Constant(value=str(text))):
                    yield statement.lineno, text.strip()


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.relative_to(ROOT).as_posix())
def test_they_begin_plainly(file: Path) -> None:
    assert not [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(file) if CLAUSE.match(text)]

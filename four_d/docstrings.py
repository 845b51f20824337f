"""Docstrings of a dataclass's fields, read from its source, since Python keeps only the class's own."""

from __future__ import annotations

import ast
import inspect
import sys
from functools import cache
from itertools import pairwise


@cache
def field_docs(kind: type) -> dict[str, str]:
    """Name → docstring of the fields of a class and its bases, as one line; those without one are left out.

    Empty for a class without source, as one typed into an interpreter.
    """
    docs: dict[str, str] = {}
    for base in reversed(kind.__mro__):
        if base.__module__ != "builtins":
            docs |= _own(base)
    return docs


def summary(kind: type) -> str:
    """Docstring of a class as plain text; empty if `dataclass` generated it."""
    text = inspect.cleandoc(kind.__dict__.get("__doc__") or "")
    return "" if text.startswith(f"{kind.__name__}(") else text.replace("``", "`")


def _own(kind: type) -> dict[str, str]:
    node: ast.AST | None = _module(kind.__module__)
    for name in kind.__qualname__.replace("<locals>.", "").split("."):  # functions are looked into as classes are
        node = next((each for each in getattr(node, "body", []) if getattr(each, "name", None) == name), None)
    docs: dict[str, str] = {}
    for field, text in pairwise(node.body if isinstance(node, ast.ClassDef) else []):
        if not (isinstance(field, ast.AnnAssign) and isinstance(field.target, ast.Name)):
            continue
        if isinstance(text, ast.Expr) and isinstance(text.value, ast.Constant):
            docs[field.target.id] = " ".join(str(text.value.value).split()).replace("``", "`")
    return docs


@cache
def _module(name: str) -> ast.Module | None:
    """Syntax of a module that is imported; None without source."""
    try:
        return ast.parse(inspect.getsource(sys.modules[name]))
    except (KeyError, OSError, TypeError, SyntaxError):
        return None

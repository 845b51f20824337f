"""Run-time type checks of the tests (``--jaxtyping-packages`` in pyproject.toml)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeVar

from beartype import beartype

F = TypeVar("F", bound=Callable[..., Any])


def checked(function: F) -> F:
    """Check arguments and result of ``function`` at every call, but for a function within another.

    That one would be compiled anew each time the outer one runs: three quarters of all the time that the tests took.
    """
    return function if "<locals>" in function.__qualname__ else beartype(function)

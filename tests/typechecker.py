"""Run-time checks of types and shapes in all of the package's functions, while tests run.

jaxtyping's import hook decorates functions with its `jaxtyped`, which took half of all the tests' time: it makes two
checked functions of each one, and binds the arguments of every call for its messages. Here beartype checks a function
once, within a scope of jaxtyping's axes; its message names the argument or result.
"""

from __future__ import annotations

import functools
import inspect
import sys
from collections.abc import Callable
from dataclasses import is_dataclass
from typing import Any, TypeVar

import jaxtyping
from beartype import beartype
from jaxtyping._storage import pop_shape_memo, push_shape_memo

T = TypeVar("T", bound=Callable[..., Any])


def checked(function: T) -> T:
    """Check arguments and result of ``function``, or the fields of a dataclass, at every call.

    A function within another is left alone: it would be compiled anew each time that the outer one runs. So is a
    generator: it takes its arguments at its first step, which is in another function's scope.
    """
    if inspect.isclass(function):
        made = function.__dict__.get("__init__")
        if is_dataclass(function) and made is not None and not hasattr(made, "__wrapped__"):
            function.__init__ = checked(made)
        return function
    if "<locals>" in function.__qualname__ or inspect.isgeneratorfunction(function):
        return function
    names = function.__globals__
    function.__annotations__ = {name: _evaluated(hint, names) for name, hint in function.__annotations__.items()}
    typed = beartype(function)

    @functools.wraps(function)
    def within_scope(*arguments: Any, **more: Any) -> Any:
        push_shape_memo({})
        try:
            return typed(*arguments, **more)
        finally:
            pop_shape_memo()

    return within_scope  # type: ignore[return-value]


def _evaluated(hint: object, names: dict[str, Any]) -> object:
    """Value of an annotation; anything if it names what is defined later, or for type checkers only.

    beartype itself looks in the class first, where a method may be called as a module is.
    """
    try:
        return eval(hint, names) if isinstance(hint, str) else hint
    except Exception:  # jaxtyping refuses some annotations by other errors
        return Any


def install() -> None:
    """Check what is imported from here on; nothing in a worker process, which imports the package before its tests."""
    if "four_d" in sys.modules:
        return
    jaxtyping.install_import_hook("four_d", "tests.typechecker.checked")
    jaxtyping.jaxtyped = lambda *_, **__: checked  # what the hook writes above functions and classes

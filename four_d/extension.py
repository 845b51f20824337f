"""Open unions of config classes: this package's, and those that `extend` adds."""

from __future__ import annotations

import dataclasses
import importlib
import typing
from functools import cache
from typing import Literal, Protocol

from four_d.errors import UserError

_ADDED: list[type] = []
"""Classes added by `extend` in this process."""
_UNIONS: list[OneOf] = []
"""All open unions, once `config` is imported."""


class Spec(Protocol):
    """Base of specs: a protocol that inherits from it directly is one, whose configs an open union holds."""


class OneOf:
    """Annotation of an open union: ``HeadConfig = Annotated[HeadSpec, OneOf(CameraHeadConfig, …)]``."""

    def __init__(self, *known: type) -> None:
        self.known = known
        _UNIONS.append(self)

    def members(self, spec: type) -> tuple[type, ...]:
        """Package's own classes, and the added ones that inherit from ``spec``."""
        return (*self.known, *(added for added in _ADDED if spec in added.__mro__ and added not in self.known))


def extend(*configs: type) -> None:
    """Register config classes of your own, so that files and checkpoints with their ``kind`` can be read.

    Call it in the script that trains or loads, before either; registering a class again changes nothing.

    Args:
        configs: frozen dataclasses that inherit from `HeadSpec`, `BackboneSpec`, `ModelSpec` or a loss's, with a field
            ``kind: Literal["my_kind"] = "my_kind"``.

    Raises:
        UserError: a class that is no such config, or whose kind is taken.

    """
    for config in configs:
        kind = kind_of(config) if dataclasses.is_dataclass(config) else None
        if kind is None:
            raise UserError(
                f'{config.__name__} is no config class; make it a frozen dataclass with kind: Literal["my_kind"] = '
                '"my_kind"'
            )
        specs = _specs(config)
        if not specs:
            raise UserError(f"{config.__name__} is of no open union; let it inherit from HeadSpec, or another …Spec")
        # re-running a notebook's cell creates its class again
        others = [each for each in _ADDED if (*_name(each), kind_of(each)) != (*_name(config), kind)]
        for other in (*_known(), *others):
            if other is not config and kind_of(other) == kind and specs & _specs(other):
                raise UserError(
                    f"{config.__name__} has the kind {kind!r}, which {'.'.join(_name(other))} has; choose another"
                )
        _ADDED[:] = [*others, config]


def _known() -> list[type]:
    """The package's own classes, of all unions."""
    importlib.import_module("four_d.config")
    return [known for union in _UNIONS for known in union.known]


def _specs(config: type) -> set[type]:
    """Specs (`Spec`) that a config class inherits from."""
    return {base for base in config.__mro__[1:] if Spec in base.__bases__}


def _name(config: type) -> tuple[str, str]:
    return config.__module__, config.__qualname__


@cache
def kind_of(config: type) -> str | None:
    """Name of a config class in files, its ``kind``; None without one."""
    hint = typing.get_type_hints(config).get("kind")
    return str(typing.get_args(hint)[0]) if typing.get_origin(hint) is Literal else None

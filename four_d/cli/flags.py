"""Command-line flags from dataclasses: a field gives name, type, choices and default, its docstring the help.

A field ``max_frames`` of a verb's dataclass becomes ``--max-frames``; a field that is True by default becomes a switch
that turns it off, as ``--no-tracks``. Fields of nested dataclasses are flags too. `Form` overrides a value's notation.
"""

from __future__ import annotations

import argparse
import dataclasses
import types
import typing
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal, TypeVar, cast

from four_d.cli.values import path
from four_d.docstrings import field_docs
from four_d.schema import hints_of

T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Form:
    """Command-line form of a field, as in ``Annotated[tuple[int, int], Form(parse=size, metavar="WxH")]``."""

    parse: Callable[[str], object] | None = None
    """Converter of one argument to a value; None: by the field's type."""
    metavar: str | None = None
    several: bool | None = None
    """True if the flag takes several arguments; None: by the field's type."""
    separator: str = ":"
    """Separator of the numbers or words of one argument."""
    positional: bool = False
    """True for an argument without a name."""
    name: str | None = None
    """Name of the flag; None: the field's name."""
    hidden: bool = False
    """True for a field without a flag, which the command sets."""


Forms = Mapping[str, Form]
"""Field → form, for dataclasses that are independent of the command line."""


def add_flags(verb: argparse.ArgumentParser, kind: type, forms: Forms | None = None) -> None:
    """Add the flags of a dataclass and of those nested in it."""
    for field, hint, form in _fields(kind, forms or {}):
        inner = _dataclass(hint)
        if inner is not None:
            add_flags(verb, inner, forms)
        elif not form.hidden:
            _add(verb, field, hint, form, field_docs(kind).get(field.name, ""))


def from_flags(arguments: argparse.Namespace, kind: type[T], forms: Forms | None = None) -> T:
    """Build the dataclass from the given arguments; other fields keep their defaults."""
    given = vars(arguments)
    values: dict[str, object] = {}
    for field, hint, form in _fields(kind, forms or {}):
        inner = _dataclass(hint)
        if inner is not None:
            values[field.name] = from_flags(arguments, inner, forms)
        elif not form.hidden and field.name in given:
            value = given[field.name]
            values[field.name] = tuple(cast(list[object], value)) if isinstance(value, list) else value
    return kind(**values)


def _fields(kind: type, forms: Forms) -> list[tuple[dataclasses.Field[object], object, Form]]:
    """Field, type without ``Annotated``, and form of each field."""
    hints = hints_of(kind)
    found: list[tuple[dataclasses.Field[object], object, Form]] = []
    for field in dataclasses.fields(kind):
        hint = hints[field.name]
        own = next((each for each in getattr(hint, "__metadata__", ()) if isinstance(each, Form)), Form())
        bare = typing.get_args(hint)[0] if typing.get_origin(hint) is Annotated else hint
        found.append((field, bare, forms.get(field.name, own)))
    return found


def _add(verb: argparse.ArgumentParser, field: dataclasses.Field[object], hint: object, form: Form, doc: str) -> None:
    """Add one flag. If it is not given, the arguments lack it, so that the dataclass's default holds."""
    default = _default(field)
    begins = doc[:1].lower() if doc[1:2].islower() or doc[1:2] == " " else doc[:1]  # names in capitals stay
    text = f"{begins}{doc[1:]}".removesuffix(".").replace("None:", "not given:")
    name = f"--{form.name or field.name.replace('_', '-')}"
    if hint is bool:
        off = default is True
        switched = f"--no-{name[2:]}" if off else name
        help_text = f"do not {text}" if off else text
        action = "store_false" if off else "store_true"
        verb.add_argument(switched, action=action, dest=field.name, default=argparse.SUPPRESS, help=help_text)
        return
    required = default is dataclasses.MISSING
    if not required and default not in (None, "", (), range(1), Path()):
        text = f"{text} (default {_shown(default, form.separator)})".strip()
    several, choices, parse = _reading(hint)
    choices = choices if form.parse is None else None
    settings: dict[str, object] = {"help": text.replace("%", "%%"), "default": argparse.SUPPRESS}
    if form.parse is not None or choices is None:
        settings["type"] = form.parse or parse
    if form.metavar is not None:
        settings["metavar"] = form.metavar
    if choices is not None:
        settings["choices"] = choices
    if several if form.several is None else form.several:
        settings["nargs"] = "+" if required or not form.positional else "*"
    add = cast(Callable[..., object], verb.add_argument)
    if form.positional:
        add(field.name, **settings)
    else:
        add(name, dest=field.name, required=required, **settings)


def _default(field: dataclasses.Field[object]) -> object:
    return field.default if field.default_factory is dataclasses.MISSING else field.default_factory()


def _shown(default: object, separator: str) -> str:
    return separator.join(map(str, default)) if isinstance(default, tuple) else str(default)


def _dataclass(hint: object) -> type | None:
    """Dataclass of a field's type, also if the type allows None too; None if it is no dataclass."""
    members = _members(hint)
    only = members[0] if len(members) == 1 else None
    return only if isinstance(only, type) and dataclasses.is_dataclass(only) else None


def _members(hint: object) -> Sequence[object]:
    union = typing.get_origin(hint) in (types.UnionType, typing.Union)
    return [each for each in typing.get_args(hint) if each is not type(None)] if union else [hint]


def _reading(hint: object) -> tuple[bool, Sequence[str] | None, Callable[[str], object]]:
    """True if a field takes several arguments; its choices, if any; the converter of one argument."""
    members = _members(hint)
    if Path in members:
        return False, None, path
    for member in members:
        origin, inner = typing.get_origin(member), typing.get_args(member)
        if origin is Literal:
            return False, [str(each) for each in inner], str
        if isinstance(origin, type) and issubclass(origin, Sequence) and (origin is not tuple or inner[-1] is Ellipsis):
            return True, *_reading(inner[0])[1:]
    return False, None, next((kind for kind in (int, float) if kind in members), str)

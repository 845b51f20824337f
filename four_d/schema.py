"""Config dataclasses out of plain values: unions by ``kind``, defaults, and errors that name the value at fault.

A part with several kinds is a union of dataclasses, distinguished by ``kind``: that union is the registry. Which
settings there are is known to the dataclasses alone.
"""

from __future__ import annotations

import dataclasses
import difflib
import math
import types
import typing
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from typing import Protocol, TypeVar, cast, runtime_checkable

from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from four_d.errors import UserError, first_line
from four_d.extension import OneOf, kind_of

T = TypeVar("T")

Plain = dict[str, object]
"""Nested dicts, lists, strings, numbers, booleans and None."""


@dataclass(frozen=True)
class _Place:
    """Place of a value, which errors name: ``config.optimiser.lr``."""

    root: str
    """Name of the whole: ``config``, or a file's."""
    path: str = ""
    """Dotted name within the whole, as the command line takes it."""
    recorded: bool = False
    """True in what four_d wrote itself (`build`)."""

    def __str__(self) -> str:
        return f"{self.root}.{self.path}".removesuffix(".")

    def within(self, name: str) -> _Place:
        return replace(self, path=f"{self.path}.{name}".lstrip("."))


@runtime_checkable
class Selective(Protocol):
    """Config in which a choice may leave other settings without effect."""

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads, also dotted ones of a part → why."""
        ...


def build(kind: type[T], plain: object, root: str, path: str = "", *, recorded: bool = False) -> T:
    """Make a config dataclass out of plain values, choosing each union's branch by its ``kind``.

    Missing values keep the default of their place: a part's own field determines the defaults of its parts.

    Args:
        kind: the dataclass
        plain: its values, a mapping
        root: name of the whole that the values are of, for errors: ``config``, or a file's
        path: dotted name of the values within that whole; empty: they are the whole
        recorded: accept settings without effect, in what four_d wrote itself: an older version may have taken them

    Raises:
        UserError: with the dotted name of the value at fault.

    """
    return _build(kind, plain, _Place(root, path, recorded))


def _build(kind: type[T], plain: object, where: _Place) -> T:
    if not isinstance(plain, Mapping):
        raise UserError(f"{where} is {plain!r}; write a mapping of keys")
    values = cast(Mapping[str, object], plain)
    hints = hints_of(kind)
    for key in values:
        if key not in hints:
            near = [where.within(name).path for name in difflib.get_close_matches(str(key), hints, n=2)]
            hint = f"did you mean {' or '.join(near)}?" if near else f"choose among {', '.join(hints)}"
            raise UserError(f"{where.within(key)} is not a setting; {hint}")
    defaults = {key: value for key, value in _default_parts(kind).items() if branches(hints[key])}
    parts = {
        key: _merge(hints[key], defaults.get(key), defaults.get(key), value)
        for key, value in values.items()
        if branches(hints[key])
    }
    bare = _bare_hints_of(kind)
    leaves = {key: _leaf(bare[key], value, where.within(key)) for key, value in values.items() if key not in parts}
    nested = {key: _nested(hints[key], value, where.within(key)) for key, value in parts.items()}
    checked = {**leaves, **nested}
    missing = [f.name for f in _required(kind) if f.name not in checked]
    if missing:
        example = _example(hints[missing[0]], where.within(missing[0]).path)
        raise UserError(f"{where.within(missing[0])} is missing; set it in a config file or as {example}")
    try:
        built = kind(**checked)
    except UserError as error:
        raise UserError(f"{where}: {error}") from error
    if isinstance(built, Selective) and not where.recorded:
        _refuse_unread(built, where)
    return built


def _refuse_unread(config: Selective, where: _Place) -> None:
    """Raise UserError for a setting without effect that differs from its default."""
    for name, why in config.without_effect.items():
        value, default = _value_and_default(config, name)
        if value != default:
            text = OmegaConf.to_yaml(OmegaConf.create([default])).removeprefix("- ").strip()
            setting = f"{where.within(name).path}={text}"
            raise UserError(
                f"{where.within(name)} is {value!r}, and has no effect {why}; leave it out, or set {setting}"
            )


def unread(config: object, path: str = "") -> set[str]:
    """Dotted names of all settings without effect, in a config dataclass and its parts."""
    if isinstance(config, Mapping):
        parts = cast(Mapping[str, object], config)
        own = set[str]()
    elif dataclasses.is_dataclass(config):
        parts = {field.name: getattr(config, field.name) for field in dataclasses.fields(config)}
        own = set(config.without_effect) if isinstance(config, Selective) else set[str]()
    else:
        return set()
    found = {f"{path}.{name}".lstrip(".") for name in own}
    return found.union(*(unread(part, f"{path}.{name}".lstrip(".")) for name, part in parts.items()))


def _value_and_default(config: object, name: str) -> tuple[object, object]:
    """Plain value and default of a setting; an entry of a mapping has the defaults of its class."""
    *parts, leaf = name.split(".")
    at_home: object = _defaults(type(config))
    for part in parts:
        config = cast(Plain, config)[part] if isinstance(config, Mapping) else getattr(config, part)
        at_home = cast(Plain, at_home).get(part) if isinstance(at_home, dict) else None
    own = _defaults(type(config)) | (cast(Plain, at_home) if isinstance(at_home, dict) else {})
    return to_plain(getattr(config, leaf)), own[leaf]


def _example(hint: object, dotted: str) -> str:
    """Command-line override that sets a missing value of a type, with … for the user's own value."""
    if typing.get_origin(hint) is dict:
        return _example(typing.get_args(hint)[1], f"{dotted}.NAME")
    members = branches(hint)
    members = [member for member in members if kind_of(member) is None] or members  # which is meant without a kind
    if len(members) > 1:
        return f"{dotted}.kind=… ({', '.join(kinds_of(members))})"
    required = _required(members[0]) if members else []
    if required:
        return _example(hints_of(members[0])[required[0].name], f"{dotted}.{required[0].name}")
    return f"{dotted}={'{}' if members else '…'}"


def to_plain(config: object) -> object:
    """Invert `build`: dataclasses become dicts, tuples lists."""
    if dataclasses.is_dataclass(config) and not isinstance(config, type):
        return {f.name: to_plain(getattr(config, f.name)) for f in dataclasses.fields(config)}
    if isinstance(config, Mapping):
        return {str(key): to_plain(value) for key, value in cast(Mapping[object, object], config).items()}
    if isinstance(config, list | tuple):
        return [to_plain(item) for item in cast(Sequence[object], config)]
    return config


def diff(left: object, right: object, where: str = "") -> list[tuple[str, object, object]]:
    """Differences of two plain values: dotted name, left value and right value."""
    if isinstance(left, dict) and isinstance(right, dict):
        a, b = cast(Plain, left), cast(Plain, right)
        keys = [*a, *(key for key in b if key not in a)]
        return [line for key in keys for line in diff(a.get(key), b.get(key), f"{where}.{key}".lstrip("."))]
    return [] if left == right else [(where, left, right)]


def merge(kind: type, base: Plain, over: Plain) -> Plain:
    """Merge plain values ``over`` of a dataclass onto ``base``, mapping by mapping.

    Another ``kind`` than the base's, which may have left it to the default, replaces the whole mapping: none of the old
    kind's settings stay.
    """
    return cast(Plain, _merge(kind, {}, base, over))


def _merge(hint: object, default: object, base: object, over: object) -> object:
    """Merge values of a type; ``default`` is the plain default of their place, None without one."""
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    old, new = cast(Plain, base), cast(Plain, over)
    at_home = cast(Plain, default) if isinstance(default, dict) else {}
    if typing.get_origin(hint) is dict:
        item = typing.get_args(hint)[1]
        return {**old, **{key: _merge(item, at_home.get(key), old.get(key), value) for key, value in new.items()}}
    members = {kind_of(member): member for member in branches(hint)}
    before = old.get("kind", at_home.get("kind"))
    said = before is not None or None in members  # a kind, or that of the member without one
    if "kind" in new and said and new["kind"] != before:
        return new
    chosen = new.get("kind", before)
    member = members.get(cast(str | None, chosen))
    hints = {} if member is None else hints_of(member)
    if member is not None and (not at_home or at_home.get("kind") != chosen):
        at_home = _defaults(member)
    return {**old, **{key: _merge(hints.get(key), at_home.get(key), old.get(key), value) for key, value in new.items()}}


def _required(kind: type) -> list[dataclasses.Field[object]]:
    missing = dataclasses.MISSING
    return [f for f in dataclasses.fields(kind) if f.default is missing and f.default_factory is missing]


def _defaults(kind: type) -> Plain:
    """Defaults of the fields that have one, as plain values."""
    fields = [each for each in dataclasses.fields(kind) if each not in _required(kind)]
    made = {each.name: each.default_factory for each in fields if each.default_factory is not dataclasses.MISSING}
    return {each.name: to_plain(made[each.name]() if each.name in made else each.default) for each in fields}


def _default_parts(kind: type) -> Plain:
    """Defaults of the fields that are dataclasses or mappings, as plain values."""
    return {name: value for name, value in _defaults(kind).items() if isinstance(value, dict)}


@cache
def hints_of(kind: type) -> Mapping[str, object]:
    """Types of a dataclass's settings by name, with their marks; evaluated once, as that takes milliseconds."""
    return typing.get_type_hints(kind, include_extras=True)


@cache
def _bare_hints_of(kind: type) -> Mapping[str, object]:
    return typing.get_type_hints(kind)


def branches(hint: object) -> list[type]:
    """Dataclasses that a type admits: itself, a union's members, open or not, or those of a dict's values."""
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return [hint]
    if typing.get_origin(hint) is typing.Annotated:
        spec, *marks = typing.get_args(hint)
        return [branch for mark in marks if isinstance(mark, OneOf) for branch in mark.members(spec)]
    if typing.get_origin(hint) is dict:
        return branches(typing.get_args(hint)[1])
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return [branch for member in typing.get_args(hint) for branch in branches(member)]
    return []


def kinds_of(members: Sequence[type]) -> dict[str, type]:
    """Kind → dataclass of a union's members, without those that have no kind."""
    return {kind: member for member in members if (kind := kind_of(member)) is not None}


def _nested(hint: object, value: object, where: _Place) -> object:
    if typing.get_origin(hint) is dict:
        if not isinstance(value, Mapping):
            raise UserError(f"{where} is {value!r}; write a mapping of names")
        item = typing.get_args(hint)[1]
        entries = cast(Mapping[str, object], value).items()
        # null removes an entry of an earlier file
        return {
            str(name): _nested(item, entry, where.within(str(name))) for name, entry in entries if entry is not None
        }
    if value is None and type(None) in typing.get_args(hint):
        return None
    if float in typing.get_args(hint) and not isinstance(value, Mapping):  # a number, or a section in its place
        return _leaf(float, value, where)
    return _build(_choose(branches(hint), value, where), value, where)


def _choose(members: list[type], value: object, where: _Place) -> type:
    """Branch that the value's ``kind`` names; without one the branch that has none, or the only one."""
    kinds = {kind_of(member): member for member in members}
    kind = cast(Plain, value).get("kind") if isinstance(value, Mapping) else None
    if kind is None and len(members) == 1:
        return members[0]
    if kind in kinds:
        return kinds[cast(str | None, kind)]
    given = f"{where.within('kind')} is {kind!r}" if kind is not None else f"{where} has no kind"
    names = [name for name in kinds if name is not None]
    if not names:
        raise UserError(f"{given}, and there is only one kind of it; leave the kind out, {where}: {{}} is enough")
    choice = f"choose one of {', '.join(names)}, as {where.within('kind').path}={names[0]}"
    own = "" if kind is None else "; a class of your own has to be made known first: four_d.extend(MyConfig)"
    raise UserError(f"{given}; {choice}{own}")


def _is_list(hint: object) -> bool:
    """True if a type is a list or an optional list."""
    if typing.get_origin(hint) in (types.UnionType, typing.Union):
        return all(member is type(None) or _is_list(member) for member in typing.get_args(hint))
    return typing.get_origin(hint) is tuple


def _leaf(hint: object, value: object, where: _Place) -> object:
    """Check and convert the value of a plain field with OmegaConf.

    A text for a list is split at its commas: brackets need quotes in a shell.
    """
    if _is_list(hint):
        value = value.split(",") if isinstance(value, str) else value
        if isinstance(value, int | float):
            raise UserError(f"{where} is {value!r}; give a list, as {where.path}={value},{value}")
    if isinstance(value, Mapping) and typing.get_origin(hint) is not dict:
        inner = next(iter(cast(Plain, value)), "")
        raise UserError(
            f"{where.within(inner)} is not a setting: {where.path} is one value; set it whole, as {where.path}=…"
        )
    try:
        # a schema of this field alone, since OmegaConf does not support open unions, which other fields may be
        schema = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint, MISSING)]))
        node = cast(Plain, OmegaConf.merge(schema, {"value": value}))["value"]
    except OmegaConfBaseException as error:
        told = first_line(error).replace("Invalid value '$VALUE', ", "")  # of lists, which are shown already
        raise UserError(f"{where} is {value!r}: {told}") from error
    checked = OmegaConf.to_object(node) if OmegaConf.is_config(node) else node
    # NaN passes comparisons, and nothing trains with infinity
    if not all(math.isfinite(number) for number in _floats(checked)):
        raise UserError(f"{where} is {value!r}; give a finite number")
    return checked


def _floats(value: object) -> Iterator[float]:
    """Yield the floats in a plain value."""
    if isinstance(value, float):
        yield value
    elif isinstance(value, list | tuple):
        for each in cast(Sequence[object], value):
            yield from _floats(each)

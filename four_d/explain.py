"""Explanation of a setting, by its dotted name as in ``losses.motion``: docstring, type, default and value.

Settings are a run's, or those of ``four-d eval``: ``eval.frames``.
"""

from __future__ import annotations

import dataclasses
import difflib
import re
import textwrap
import types
import typing
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal, cast

from four_d.config import RunConfig, load_plain
from four_d.docstrings import field_docs, summary
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig, PublishedConfig
from four_d.overlays import find, shipped_configs
from four_d.schema import Plain, branches, hints_of, kinds_of, to_plain

EVAL = "eval"
"""First part of the names of settings of ``four-d eval``, which takes them without it."""
_UNSET = object()


@dataclass(frozen=True, kw_only=True)
class _Setting:
    """Setting on the path from the whole config to the one to explain."""

    name: str
    hint: object
    default: object
    """Default; _UNSET without one: a value is required."""
    value: object
    """Plain value of the given config; _UNSET where it gives none."""
    doc: str = ""


def explain(name: str = "", paths: Sequence[str | Path] = (), overrides: Sequence[str] = (), width: int = 100) -> str:
    """Explain the setting ``name`` and the settings in it; empty: the whole config.

    With config files and overrides, their values are shown too. The config may be incomplete. Those of ``eval`` are as
    ``four-d eval`` takes them: with ``protocol=NAME`` among them the settings of published sets are explained, with
    others those of held-out shards, without any both.

    Raises:
        UserError: there is no such setting (near names given), or the config cannot be read.

    """
    root, _, rest = name.partition(".")
    if root == EVAL:
        return _explain_eval(rest, paths, overrides, width)
    given = load_plain(paths, overrides) if paths or overrides else _UNSET
    page = _page(_find(replace(_run(), value=given), name), width)
    return page if name else f"{page}\n\n{EVAL}: settings of four-d eval\n  {_all(EVAL)}"


def _explain_eval(name: str, paths: Sequence[str | Path], overrides: Sequence[str], width: int) -> str:
    """Explain a setting of ``four-d eval``, by each of its dataclasses that has it."""
    if paths:
        raise UserError(f"four-d eval takes no config files, and {paths[0]} is one; give key=value alone")
    kinds = [EvaluationConfig, PublishedConfig]
    given = load_plain([], overrides, EvaluationConfig) if overrides else _UNSET
    if isinstance(given, Mapping):
        kinds = kinds[1:] if "protocol" in given else kinds[:1]
    top = name.partition(".")[0]
    having = [kind for kind in kinds if top in ("", *_names(kind))]
    if not having:
        known = dict.fromkeys(f"{EVAL}.{each.name}" for kind in kinds for each in dataclasses.fields(kind))
        raise UserError(f"{EVAL}.{top} is not a setting; {_near(f'{EVAL}.{top}', [*known])}")
    pages: list[str] = []
    for kind in having:
        setting = _find(_Setting(name=EVAL, hint=kind, default=_UNSET, value=given), name)
        page = _page(setting, width) if name else "\n".join(_settings(kind, setting, width)).strip()
        pages.append("\n".join([*_wrapped(summary(kind), width, ""), "", page]))
    return "\n\n".join(pages)


def _find(setting: _Setting, name: str) -> _Setting:
    """Setting of a dotted name within another; the other itself for an empty one."""
    parts = name.split(".") if name else []
    if "" in parts:
        mended = ".".join(part for part in parts if part)
        raise UserError(
            f"{name} is not a dotted name; {f'did you mean {mended}?' if mended else 'write one as optimiser.lr'}"
        )
    for part in parts:
        setting = _inside(setting, part)
    return setting


def split_name(words: Sequence[str]) -> tuple[str, list[str]]:
    """Split a command's words into the setting, empty if none is named, and the rest: config files and overrides.

    A word that begins with a setting's name is one; a config file of that name is written ``./model``.

    Raises:
        UserError: the first word is neither a setting nor a config.

    """
    first = next((word for word in words if "=" not in word), "")
    if "" in words:
        raise UserError("a name is empty; leave it out to see all settings, or write one, as optimiser.lr")
    if is_setting(first):
        rest = [word for word in words if word != first]
        for other in (word for word in rest if "=" not in word and is_setting(word)):
            raise UserError(f"{first} and {other} are both settings; explain one at a time")
        return first, rest
    if first and not Path(first).is_file() and first not in shipped_configs():
        if "/" in first or first.endswith((".yaml", ".yml")):
            find(first)  # which names near configs
        known = [*_roots(), *shipped_configs()]
        leaf = first.rpartition(".")[2]
        deeper = [] if difflib.get_close_matches(leaf, known, n=1) else _called(_run(), leaf)
        raise UserError(f"{first} is neither a setting nor a config; {_meant(deeper) or _near(first, known)}")
    return "", list(words)


def is_setting(word: str) -> bool:
    """True if a word begins with the name of a setting at the top, and is no config."""
    config = Path(word).is_file() or word in shipped_configs()
    return not config and word.partition(".")[0] in _roots()


def _roots() -> list[str]:
    return [*(each.name for each in dataclasses.fields(RunConfig)), EVAL]


def _run() -> _Setting:
    return _Setting(name="", hint=RunConfig, default=_UNSET, value=_UNSET)


def _called(setting: _Setting, leaf: str) -> list[str]:
    """Names of all settings and kinds within one whose last part is ``leaf``, the shortest first."""
    found: list[str] = []
    entry = typing.get_origin(setting.hint) is dict
    for member in branches(setting.hint):
        kind = next(iter(kinds_of([member])), "NAME")
        within = replace(setting, name=f"{setting.name}.{kind}", default=_UNSET, value=_UNSET) if entry else setting
        inner = _fields(member, within)
        found += [each.name for each in [*inner, *([within] if entry else [])] if each.name.endswith(f".{leaf}")]
        found += [name for each in inner for name in _called(each, leaf)]
    return sorted(dict.fromkeys(found), key=lambda name: (name.count("."), name))


def _meant(names: Sequence[str]) -> str:
    """Question for some of these names; empty without any."""
    return f"did you mean {' or '.join(names[:3])}?" if names else ""


def _inside(setting: _Setting, part: str) -> _Setting:
    """Setting called ``part`` within another."""
    own = f"{setting.name}.{part}".lstrip(".")
    if typing.get_origin(setting.hint) is dict:
        return _entry(setting, part, own)
    members, kinds = _members(setting), kinds_of(branches(setting.hint))
    if part == "kind" and len(kinds) > 1:
        return _kind(setting, own, kinds)
    for member in members:
        found = {each.name.rpartition(".")[2]: each for each in _fields(member, setting)}
        if part in found:
            return found[part]
    known = [each.name for member in members for each in _fields(member, setting)]
    if not known:
        a_list = typing.get_origin(setting.hint) is tuple
        value = f"a list, {describe(setting.hint)}, which is set as a whole" if a_list else "a single value"
        raise UserError(f"{own} is not a setting: {setting.name} is {value}; explain {setting.name}")
    elsewhere = [kind for kind, member in kinds.items() if part in _names(member)]
    if elsewhere:
        other = next(iter(kinds_of(members)))
        raise UserError(f"{own} is a setting of the kind {' or '.join(elsewhere)}, and {setting.name} is {other} here")
    raise UserError(f"{own} is not a setting; {_near(own, known)}")


def _kind(setting: _Setting, own: str, kinds: Mapping[str, type]) -> _Setting:
    """The choice of a part's kind."""
    value = cast(Plain, setting.value).get("kind", _UNSET) if isinstance(setting.value, Mapping) else _UNSET
    default = _UNSET if setting.default is _UNSET else getattr(setting.default, "kind", _UNSET)
    doc = f"Kind of {setting.name}; each has settings and defaults of its own."
    return _Setting(name=own, hint=Literal[tuple(kinds)], default=default, value=value, doc=doc)


def _entry(setting: _Setting, part: str, own: str) -> _Setting:
    """Entry of a mapping whose names are the user's; without a config, a kind's name stands for such an entry."""
    item = typing.get_args(setting.hint)[1]
    values = cast(Plain, setting.value) if isinstance(setting.value, Mapping) else {}
    kinds = kinds_of(branches(item))
    if part in values:
        return _Setting(name=own, hint=item, default=_UNSET, value=values[part])
    if part in kinds:
        return _Setting(name=own, hint=kinds[part], default=_UNSET, value=_UNSET)
    if kinds and _without_kind(branches(item)) is None:
        names = [f"{setting.name}.{name}" for name in {**values, **kinds}]
        deeper = [f"{setting.name}.{name}.{part}" for name, member in kinds.items() if part in _names(member)]
        yours = (
            "" if values else f" (a name of your own needs its config beside it: four-d config explain {own} CONFIG)"
        )
        raise UserError(f"{own} is neither in the config nor a kind; {_meant(deeper) or _near(own, names)}{yours}")
    default = _UNSET if not isinstance(setting.default, Mapping) else cast(Plain, setting.default).get(part, _UNSET)
    return _Setting(name=own, hint=item, default=default, value=_UNSET)


def _near(name: str, known: Sequence[str]) -> str:
    """Question for the names whose last part is like that of ``name``, or else all of them."""
    by_leaf = {each.rpartition(".")[2]: each for each in reversed(known)}
    near = difflib.get_close_matches(name.rpartition(".")[2], by_leaf, n=3)
    return _meant([by_leaf[leaf] for leaf in near]) or f"choose among {', '.join(dict.fromkeys(known))}"


def _names(member: type) -> set[str]:
    return {each.name for each in dataclasses.fields(member)}


def _members(setting: _Setting) -> list[type]:
    """Dataclasses that a setting may be: the one of its value, or else all, the default's first."""
    members = branches(setting.hint)
    if len(members) > 1 and isinstance(setting.value, Mapping):
        kind = cast(Plain, setting.value).get("kind")
        if kind is not None and kind not in kinds_of(members):
            raise UserError(f"{setting.name}.kind is {kind!r}; {_near(str(kind), [*kinds_of(members)])}")
        usual = type(setting.default)
        if setting.default is _UNSET and typing.get_origin(setting.hint) is not dict:
            usual = _without_kind(members)
        chosen = usual if kind is None else kinds_of(members).get(str(kind))
        if chosen in members:
            return [cast(type, chosen)]
    return sorted(members, key=lambda member: member is not type(setting.default))


def _fields(member: type, setting: _Setting) -> list[_Setting]:
    """Settings in a dataclass; defaults are those of its place."""
    hints, docs = hints_of(member), field_docs(member)
    values = cast(Plain, setting.value) if isinstance(setting.value, Mapping) else {}
    at_home = setting.default if type(setting.default) is member else None
    found: list[_Setting] = []
    for each in dataclasses.fields(member):
        if at_home is not None:
            default = getattr(at_home, each.name)
        elif each.default_factory is not dataclasses.MISSING:
            default = each.default_factory()
        else:
            default = _UNSET if each.default is dataclasses.MISSING else each.default
        name = f"{setting.name}.{each.name}".lstrip(".")
        value = values.get(each.name, _UNSET)
        found.append(
            _Setting(name=name, hint=hints[each.name], default=default, value=value, doc=docs.get(each.name, ""))
        )
    return found


def _page(setting: _Setting, width: int) -> str:
    """Page of a setting and, a paragraph each, the settings in it."""
    members = _members(setting)
    named = typing.get_origin(setting.hint) is dict
    lines = [_headline(setting)] if setting.name else []
    lines += _wrapped(setting.doc, width, "  ")
    if named and _without_kind(branches(setting.hint)) is None:
        return "\n".join([*lines, *_entries(setting)])
    whole = setting.name
    if named:
        setting = replace(setting, name=f"{setting.name}.NAME", value=_UNSET)
    if len(members) > 1:
        kinds = kinds_of(members)
        lines += [f"  kinds: {', '.join(kinds)}"]
        usual = type(setting.default) if setting.default is not _UNSET and not named else _without_kind(members)
        members = [member for member in members if member is usual]
        lines += [] if members and not named else [f"  {_ask(whole, next(iter(kinds)))}"]
    for member in members:
        lines += _dataclass(member, setting, width)
    return "\n".join(lines).strip()


def _without_kind(members: Sequence[type]) -> type | None:
    """The member that is meant where no kind is given; None where one must be."""
    known = kinds_of(members).values()
    return next((member for member in members if member not in known), None)


def _dataclass(member: type, setting: _Setting, width: int) -> list[str]:
    """Lines of a dataclass's docstring and its settings."""
    lines = [f"  {line}".rstrip() for line in _null(summary(member)).splitlines() if setting.name]
    return [*lines, *_settings(member, setting, width)]


def _settings(member: type, setting: _Setting, width: int) -> list[str]:
    """Lines of a dataclass's settings."""
    lines: list[str] = []
    for each in _fields(member, setting):
        if each.name.rpartition(".")[2] != "kind":
            own = each.doc or _first(each)
            lines += ["", _headline(each), *_wrapped(own, width, "    ")]
    return lines


def _entries(setting: _Setting) -> list[str]:
    """Lines of the names in a mapping, and the kinds of its entries."""
    values = cast(Plain, setting.value) if isinstance(setting.value, Mapping) else {}
    kinds = kinds_of(branches(setting.hint))
    lines = [f"  {setting.name}.{name}: {_short(value)}" for name, value in values.items()]
    return [*lines, f"  kinds: {', '.join(kinds)}", f"  {_ask(setting.name, next(iter(kinds)))}"] if kinds else lines


def _ask(name: str, kind: str) -> str:
    return f"each: four-d config explain {name}.{kind}"


def _all(name: str) -> str:
    return f"all: four-d config explain {name}"


def _first(setting: _Setting) -> str:
    """First line of a nested dataclass's docstring."""
    members = branches(setting.hint)
    return summary(members[0]).partition("\n")[0] if len(members) == 1 else ""


def _headline(setting: _Setting) -> str:
    members = _members(setting)
    known = len(members) == 1 and isinstance(setting.value, Mapping) and typing.get_origin(setting.hint) is not dict
    parts = [f"{setting.name}: {describe(members[0] if known else setting.hint)}"]
    if setting.default is not _UNSET and not dataclasses.is_dataclass(setting.default):
        parts.append(f"default {_short(to_plain(setting.default))}")
    elif setting.default is _UNSET and setting.name and not branches(setting.hint):
        parts.append("required")
    told_below = bool(setting.value) and branches(setting.hint) and isinstance(setting.value, Mapping)
    if setting.value is not _UNSET and not told_below:
        parts.append(f"here {_short(setting.value)}")
    return ", ".join(parts)


def _short(value: object) -> str:
    """Format a plain value as YAML on one line."""
    if value is None or isinstance(value, bool):
        return {None: "null", True: "true", False: "false"}[value]
    if isinstance(value, Mapping):
        return "{" + ", ".join(f"{name}: {_short(each)}" for name, each in cast(Plain, value).items()) + "}"
    if isinstance(value, list):
        return "[" + ", ".join(_short(each) for each in cast(list[object], value)) + "]"
    return str(value)


def describe(hint: object) -> str:
    """Describe a type in YAML's words."""
    origin, inner = typing.get_origin(hint), typing.get_args(hint)
    if hint in (None, type(None)):
        return "null"
    if origin is Literal:
        return " | ".join(map(str, inner))
    if origin in (types.UnionType, typing.Union):
        return " | ".join(dict.fromkeys(describe(each) for each in inner))
    if origin is Annotated:
        return " | ".join(describe(each) for each in branches(hint))
    if origin is dict:
        return f"NAME → {describe(inner[1])}"
    if origin is tuple:
        if inner[-1] is Ellipsis:
            return f"list of {describe(inner[0])}"
        return f"[{', '.join(describe(each) for each in inner)}]"
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        kind = next(iter(kinds_of([hint])), None)
        return "settings" if kind is None else kind
    words = {"str": "text", "int": "whole number", "float": "number", "bool": "true or false"}
    name = getattr(hint, "__name__", str(hint))
    return words.get(name, name)


def _wrapped(text: str, width: int, indent: str) -> list[str]:
    return textwrap.wrap(_null(text), width, initial_indent=indent, subsequent_indent=indent) if text else []


def _null(text: str) -> str:
    """Replace None in docstrings by YAML's null."""
    return re.sub(r"\bNone\b", "null", text)

"""Bidirectional, total maps between two vocabularies of weight names, as lists of rules."""

from __future__ import annotations

import difflib
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from functools import cache

import torch
from torch import Tensor

from four_d.errors import UserError

State = Mapping[str, Tensor]
FIELDS = {"{n}": r"(?P<n>\d+)", "{rest}": r"(?P<rest>.+)"}
"""Placeholders for a number, or for the rest of a name, in both names of a rule."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """Rule for one name or a pattern of names: ``theirs`` ↔ ``ours``, with equal fields (`FIELDS`) in both."""

    theirs: str
    ours: str
    axis: int | None = None
    """Axis along which entries are reordered (`Order`)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Permutation of entries: entry i of ours is entry ``theirs[i]`` of theirs."""

    theirs: tuple[int, ...]

    def to_ours(self, value: Tensor, axis: int) -> Tensor:
        """Copy into our order."""
        return value.index_select(axis, torch.tensor(self.theirs, device=value.device))

    def to_theirs(self, value: Tensor, axis: int) -> Tensor:
        """Invert `to_ours`."""
        return value.index_select(axis, torch.tensor(self.theirs, device=value.device).argsort())


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """Pattern of their names that we leave out, with the reason."""

    theirs: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """Shell pattern of our names that their files lack, with the reason.

    ``value`` fills it; None keeps the new model's value.
    """

    ours: str
    reason: str
    value: float | None = None


def unchanged(state: State) -> dict[str, Tensor]:
    """Identity, for vocabularies whose tensors correspond one to one."""
    return dict(state)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """Adapter of a vocabulary. The first matching rule of a name decides."""

    rules: tuple[Rule, ...]
    dropped: tuple[Dropped, ...] = ()
    fresh: tuple[Fresh, ...] = ()
    order: Order | None = None
    """Order along the ``axis`` of a rule that has one."""
    fold: Callable[[State], dict[str, Tensor]] = unchanged
    """Preprocessing on their names, before the rules, for tensors that depend on several of theirs."""
    unfold: Callable[[State], dict[str, Tensor]] = unchanged
    """Inverse of `fold`, after the rules."""

    def our_name(self, theirs: str) -> tuple[str, Rule] | None:
        """Our name and the rule; None if no rule matches."""
        return _translate(theirs, tuple((rule, rule.theirs, rule.ours) for rule in self.rules))

    def their_name(self, ours: str) -> tuple[str, Rule] | None:
        """Their name and the rule; None if no rule matches."""
        return _translate(ours, tuple((rule, rule.ours, rule.theirs) for rule in self.rules))

    def is_dropped(self, theirs: str) -> bool:
        """True if a weight of theirs is deliberately left out."""
        return any(_match(each.theirs, theirs) is not None for each in self.dropped)

    def is_fresh(self, ours: str) -> Fresh | None:
        """Entry for a name that their files lack; None if they have it."""
        return next((each for each in self.fresh if fnmatchcase(ours, each.ours)), None)

    def to_ours(self, source: State, target: State, origin: str) -> dict[str, Tensor]:
        """Fill all weights of ``target`` (a new model's, whose values matter only where fresh) from ``source``.

        Raises:
            UserError: a tensor of either that has no counterpart, or another shape; it names the nearest ones.

        """
        folded = self.fold(source)
        named = self._named(folded, target, origin)
        fresh = {name: self._fresh(name, target[name], source, origin) for name in target if name not in named}
        for ours, (theirs, _) in named.items():
            _same_shape(theirs, folded[theirs], target[ours], origin)
        return {name: fresh[name] if name in fresh else self._ordered(folded, *named[name]) for name in target}

    def _named(self, source: State, target: State, origin: str) -> dict[str, tuple[str, Rule]]:
        """Our name → theirs and the rule, for all of ``source``."""
        named: dict[str, tuple[str, Rule]] = {}
        for theirs in source:
            if self.is_dropped(theirs):
                continue
            match = self.our_name(theirs)
            if match is None or match[0] not in target:
                known = (each[0] for each in map(self.their_name, target) if each is not None)
                raise UserError(
                    f"{origin} has {theirs}, for which the model has no parameter{_suggestion(theirs, known)}"
                )
            named[match[0]] = (theirs, match[1])
        return named

    def _ordered(self, source: State, theirs: str, rule: Rule) -> Tensor:
        value = source[theirs]
        return self.order.to_ours(value, rule.axis) if self.order and rule.axis is not None else value

    def to_theirs(self, ours: State, origin: str) -> dict[str, Tensor]:
        """Rename weights to theirs. UserError if one of ours has no counterpart there."""
        named: dict[str, Tensor] = {}
        for name, value in ours.items():
            match = self.their_name(name)
            if match is None and self.is_fresh(name):
                continue
            if match is None:
                known = {rule.ours for rule in self.rules}
                raise UserError(f"{origin}: {name} has no counterpart in the published names{_suggestion(name, known)}")
            theirs, rule = match
            named[theirs] = self.order.to_theirs(value, rule.axis) if self.order and rule.axis is not None else value
        return self.unfold(named)

    def _fresh(self, name: str, initial: Tensor, source: State, origin: str) -> Tensor:
        fresh = self.is_fresh(name)
        if fresh is None:
            match = self.their_name(name)
            theirs = name if match is None else match[0]
            raise UserError(f"{origin} lacks {theirs} (ours: {name}){_suggestion(theirs, source)}")
        return initial if fresh.value is None else torch.full(initial.shape, fresh.value)


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """Prefix both names of each rule."""
    return tuple(replace(rule, theirs=theirs + rule.theirs, ours=ours + rule.ours) for rule in rules)


def same(*names: str) -> tuple[Rule, ...]:
    """Rules for names that are equal in both."""
    return tuple(Rule(theirs=name, ours=name) for name in names)


@cache
def _compiled(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for field, expression in FIELDS.items():
        pattern = pattern.replace(re.escape(field), expression)
    return re.compile(pattern)


def _match(template: str, name: str) -> dict[str, str] | None:
    match = _compiled(template).fullmatch(name)
    return None if match is None else match.groupdict()


def _translate(name: str, rules: Sequence[tuple[Rule, str, str]]) -> tuple[str, Rule] | None:
    for rule, pattern, template in rules:
        fields = _match(pattern, name)
        if fields is not None:
            return template.format(**fields), rule
    return None


def _same_shape(name: str, value: Tensor, target: Tensor, origin: str) -> None:
    if value.shape != target.shape:
        shape, expected = (" × ".join(map(str, each.shape)) or "a number" for each in (value, target))
        raise UserError(
            f"{origin}: {name} is {shape}, the model's is {expected}; give the model's own --config, or other weights"
        )


def _suggestion(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.3)
    return f"; nearest: {', '.join(near)}" if near else "; these look like another model's weights"

"""Two-way maps between two vocabularies of weight names, as lists of rules; filling a model from one is total."""

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
"""What stands for a number, or for the rest of a name, in both names of a rule."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One name, or many alike: ``theirs`` ↔ ``ours``, the same fields (`FIELDS`) in both."""

    theirs: str
    ours: str
    axis: int | None = None
    """Along which the entries come in another order (`Order`)."""


@dataclass(frozen=True, kw_only=True)
class Order:
    """Entry i of ours is entry ``theirs[i]`` of theirs."""

    theirs: tuple[int, ...]

    def to_ours(self, value: Tensor, axis: int) -> Tensor:
        """A copy in our order."""
        return value.index_select(axis, torch.tensor(self.theirs, device=value.device))

    def to_theirs(self, value: Tensor, axis: int) -> Tensor:
        """The inverse of `to_ours`."""
        return value.index_select(axis, torch.tensor(self.theirs, device=value.device).argsort())


@dataclass(frozen=True, kw_only=True)
class Dropped:
    """A pattern of their names that we have no use for, and why."""

    theirs: str
    reason: str


@dataclass(frozen=True, kw_only=True)
class Fresh:
    """A pattern (as in a shell) of our names that their files do not hold, and why.

    ``value`` fills it; None keeps what the new model has.
    """

    ours: str
    reason: str
    value: float | None = None


def unchanged(state: State) -> dict[str, Tensor]:
    """No tensor of one vocabulary is made of several of the other."""
    return dict(state)


@dataclass(frozen=True, kw_only=True)
class Adapter:
    """A vocabulary. The first rule that fits a name decides."""

    rules: tuple[Rule, ...]
    dropped: tuple[Dropped, ...] = ()
    fresh: tuple[Fresh, ...] = ()
    order: Order | None = None
    """Of rules with an ``axis``."""
    fold: Callable[[State], dict[str, Tensor]] = unchanged
    """On their names, before the rules: tensors that depend on several of theirs."""
    unfold: Callable[[State], dict[str, Tensor]] = unchanged
    """Undoes `fold`, after the rules."""

    def our_name(self, theirs: str) -> tuple[str, Rule] | None:
        """What we call it; None if no rule fits."""
        return _translate(theirs, tuple((rule, rule.theirs, rule.ours) for rule in self.rules))

    def their_name(self, ours: str) -> tuple[str, Rule] | None:
        """What they call it; None if no rule fits."""
        return _translate(ours, tuple((rule, rule.ours, rule.theirs) for rule in self.rules))

    def is_dropped(self, theirs: str) -> bool:
        """Whether we have no use for it."""
        return any(_match(each.theirs, theirs) is not None for each in self.dropped)

    def is_fresh(self, ours: str) -> Fresh | None:
        """Why their files do not hold it, if they do not."""
        return next((each for each in self.fresh if fnmatchcase(ours, each.ours)), None)

    def to_ours(self, source: State, target: State, where: str) -> dict[str, Tensor]:
        """All weights of ``target`` (a new model's; its values matter only where they stay fresh) out of ``source``.

        Raises:
            UserError: a tensor of either that has no counterpart, or another shape; it names the nearest ones.

        """
        folded = self.fold(source)
        named = self._named(folded, target, where)
        fresh = {name: self._fresh(name, target[name], source, where) for name in target if name not in named}
        for ours, (theirs, _) in named.items():
            _same_shape(theirs, folded[theirs], target[ours], where)
        return {name: fresh[name] if name in fresh else self._ordered(folded, *named[name]) for name in target}

    def _named(self, source: State, target: State, where: str) -> dict[str, tuple[str, Rule]]:
        """Our name → theirs, and the rule, of all that ``source`` has."""
        named: dict[str, tuple[str, Rule]] = {}
        for theirs in source:
            if self.is_dropped(theirs):
                continue
            found = self.our_name(theirs)
            if found is None or found[0] not in target:
                known = (each[0] for each in map(self.their_name, target) if each is not None)
                raise UserError(f"{where} has {theirs}, for which the model has no place{_nearest(theirs, known)}")
            named[found[0]] = (theirs, found[1])
        return named

    def _ordered(self, source: State, theirs: str, rule: Rule) -> Tensor:
        value = source[theirs]
        return self.order.to_ours(value, rule.axis) if self.order and rule.axis is not None else value

    def to_theirs(self, ours: State, where: str) -> dict[str, Tensor]:
        """The same weights in their names. UserError if they have no place for one of ours."""
        named: dict[str, Tensor] = {}
        for name, value in ours.items():
            found = self.their_name(name)
            if found is None and self.is_fresh(name):
                continue
            if found is None:
                known = {rule.ours for rule in self.rules}
                raise UserError(f"{where}: {name} has no counterpart there{_nearest(name, known)}")
            theirs, rule = found
            named[theirs] = self.order.to_theirs(value, rule.axis) if self.order and rule.axis is not None else value
        return self.unfold(named)

    def _fresh(self, name: str, like: Tensor, source: State, where: str) -> Tensor:
        fresh = self.is_fresh(name)
        if fresh is None:
            found = self.their_name(name)
            theirs = name if found is None else found[0]
            raise UserError(f"{where} lacks {theirs} (ours: {name}){_nearest(theirs, source)}")
        return like if fresh.value is None else torch.full(like.shape, fresh.value)


def under(theirs: str, ours: str, rules: Iterable[Rule]) -> tuple[Rule, ...]:
    """The same rules with a prefix on both names."""
    return tuple(replace(rule, theirs=theirs + rule.theirs, ours=ours + rule.ours) for rule in rules)


def same(*names: str) -> tuple[Rule, ...]:
    """Rules for names that both share."""
    return tuple(Rule(theirs=name, ours=name) for name in names)


@cache
def _compiled(template: str) -> re.Pattern[str]:
    pattern = re.escape(template)
    for field, expression in FIELDS.items():
        pattern = pattern.replace(re.escape(field), expression)
    return re.compile(pattern)


def _match(template: str, name: str) -> dict[str, str] | None:
    found = _compiled(template).fullmatch(name)
    return None if found is None else found.groupdict()


def _translate(name: str, rules: Sequence[tuple[Rule, str, str]]) -> tuple[str, Rule] | None:
    for rule, given, wanted in rules:
        fields = _match(given, name)
        if fields is not None:
            return wanted.format(**fields), rule
    return None


def _same_shape(name: str, value: Tensor, wanted: Tensor, where: str) -> None:
    if value.shape != wanted.shape:
        given, size = (" × ".join(map(str, each.shape)) or "a number" for each in (value, wanted))
        raise UserError(
            f"{where}: {name} is {given}, the model wants {size}; give the model's own --config, or other weights"
        )


def _nearest(name: str, names: Iterable[str]) -> str:
    near = difflib.get_close_matches(name, list(names), n=2, cutoff=0.3)
    return f"; nearest: {', '.join(near)}" if near else "; it looks like another model's weights"

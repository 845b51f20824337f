"""What a changed ``kind`` leaves of the settings before it: nothing, in files as in overrides, at every union."""

from __future__ import annotations

import dataclasses
import typing
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import reduce
from itertools import permutations
from pathlib import Path
from typing import Literal, cast

import pytest
from omegaconf import OmegaConf

from four_d import schema
from four_d.config import RunConfig, load_plain
from four_d.errors import UserError
from four_d.schema import Plain


@dataclass(frozen=True)
class Union:
    """Place of a part that comes in several kinds."""

    name: str
    around: tuple[str, ...]
    """Settings that choose the kinds of the parts around it."""
    kinds: tuple[str, ...]
    default: str | None
    """Kind without any; None for an entry of a mapping and for a required part, which have none."""


def unions(kind: type, where: str = "", around: tuple[str, ...] = ()) -> Iterator[Union]:
    """All there are below a dataclass; an entry of a mapping is called ``one``."""
    hints = typing.get_type_hints(kind, include_extras=True)
    for each in dataclasses.fields(kind):
        members = schema.branches(hints[each.name])
        entry = typing.get_origin(hints[each.name]) is dict
        own = f"{where}.{each.name}{'.one' if entry else ''}".lstrip(".")
        if len(members) > 1:
            required = each.default_factory is dataclasses.MISSING
            default = None if entry or required else cast(type, each.default_factory)().kind
            yield Union(own, around, tuple(schema.kinds_of(members)), default)
        for member in members:
            chosen = (f"{own}.kind={each}" for each in schema.kinds_of([member]) if len(members) > 1)
            yield from unions(member, own, (*around, *chosen))


UNIONS = list(unions(RunConfig))


def at(plain: Plain, name: str) -> object:
    """Value of a dotted name."""
    return reduce(lambda part, key: cast(Plain, part)[key], name.split("."), cast(object, plain))


def test_there_are_the_unions_that_are_known() -> None:
    names = {union.name for union in UNIONS}
    known = {"model", "model.backbone", "model.backbone.patches", "model.heads.one", "losses.one", "data.sources.one"}
    assert known <= names


@pytest.mark.parametrize("union", UNIONS, ids=lambda union: union.name)
def test_another_kind_starts_from_its_own_defaults(union: Union, tmp_path: Path) -> None:
    """Whether the kind before was said or the default; what is set beside the new one counts."""
    for count, (old, new) in enumerate(permutations(union.kinds, 2)):
        over = [f"{union.name}.kind={new}", f"{union.name}.right=1", f"{union.name}.deep.right=1"]
        for said in (True, False) if old == union.default else (True,):
            kind = [f"{union.name}.kind={old}"] if said else []
            below = [*union.around, *kind, f"{union.name}.left=1", f"{union.name}.deep.left=1"]
            files = [tmp_path / f"{count}_{said}_{name}.yaml" for name in ("below", "over")]
            for file, settings in zip(files, (below, over), strict=True):
                file.write_text(OmegaConf.to_yaml(OmegaConf.from_dotlist(settings)))
            expected = {"kind": new, "right": 1, "deep": {"right": 1}}
            assert at(load_plain(files), union.name) == expected
            for overrides in (over, over[::-1]):
                assert at(load_plain(files[:1], overrides), union.name) == expected


@pytest.mark.parametrize("union", UNIONS, ids=lambda union: union.name)
def test_the_same_kind_keeps_what_was_set(union: Union) -> None:
    """Also where the one before was the default, and only the other says so."""
    kind = union.default or union.kinds[0]
    said = [] if union.default else [f"{union.name}.kind={kind}"]
    settings = [*union.around, *said, f"{union.name}.left=1", f"{union.name}.kind={kind}", f"{union.name}.right=1"]
    assert at(load_plain([], settings), union.name) == {"kind": kind, "left": 1, "right": 1}


def test_the_last_of_several_kinds_counts() -> None:
    settings = ["losses.a.kind=depth", "losses.a.weight=2", "losses.a.kind=points", "losses.b.kind=camera"]
    assert load_plain([], settings) == {"losses": {"a": {"kind": "points", "weight": 2}, "b": {"kind": "camera"}}}


@dataclass(frozen=True, kw_only=True)
class Plainest:
    """Kind without a name."""

    deep: int = 1


@dataclass(frozen=True, kw_only=True)
class Named:
    """Kind with a name, at home with another default than its own."""

    kind: Literal["named"] = "named"
    deep: int = 2


@dataclass(frozen=True, kw_only=True)
class Whole:
    """Part with a union that has a member without ``kind``, and one whose default is not its class's."""

    open: Plainest | Named = field(default_factory=Plainest)
    home: Named | Plainest = field(default_factory=lambda: Named(deep=7))


def test_a_member_without_kind_is_a_kind_too() -> None:
    base: Plain = {"open": {"deep": 5}}
    assert schema.merge(Whole, base, {"open": {"kind": "named"}}) == {"open": {"kind": "named"}}
    assert schema.merge(Whole, base, {"open": {"deep": 6}}) == {"open": {"deep": 6}}
    assert schema.build(Whole, {"open": {"kind": "named"}}, "whole").open == Named()
    assert schema.build(Whole, {"home": {}}, "whole").home == Named(deep=7), "its place's default"


def test_what_four_d_wrote_itself_may_hold_settings_that_nothing_reads() -> None:
    """A checkpoint of an earlier version loads; only what a user writes is refused."""
    plain = load_plain(
        ["configs/vggt.yaml"], ["data.sources.a.path=x", "data.sampling={one_camera_share: 1, max_cameras: 2}"]
    )
    with pytest.raises(UserError, match=r"max_cameras is 2, and has no effect"):
        schema.build(RunConfig, plain, "config")
    config = schema.build(RunConfig, plain, "config", recorded=True)
    assert config.data.sampling.max_cameras == 2
    assert "data.sampling.max_cameras" in schema.unread(config)
    assert "data.sampling.one_camera_share" not in schema.unread(config)

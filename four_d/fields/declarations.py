"""Declarations of a dataclass's fields, read from annotations and metadata, and traversal of its tensors."""

from __future__ import annotations

import dataclasses
import types as builtin
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import ClassVar, Protocol, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from torch import Tensor

from four_d.drawing import Drawing
from four_d.types import Clip, Geometry

T = TypeVar("T")
Truth = Callable[[Clip], tuple[Tensor | None, Tensor | None]]
"""Function from a clip of targets to an output's truth and its validity (`types.truth`)."""
BATCH = "*b"
"""Name of any number of batch axes; ``b`` means the first of them."""
ENDINGS: dict[Geometry, tuple[tuple[str, ...], ...]] = {
    Geometry.POINT: (("3",),),
    Geometry.DISPLACEMENT: (("3",),),
    Geometry.NORMAL: (("3",),),
    Geometry.POSE: (("4", "4"),),
    Geometry.QUATERNION: (("4",),),
    Geometry.TURN: (("4",),),
    Geometry.HARMONICS: (("k", "3"),),
    Geometry.INTRINSICS: (("3", "3"),),
    Geometry.PIXEL: (("2",), ("3",)),
}
"""Last axes that each geometry allows."""


@dataclass(frozen=True, kw_only=True, eq=False)  # each is itself alone, so that `_leaf` is looked up at once
class Field:
    """Declaration of a field: a tensor, or a nested dataclass of ``kind``."""

    name: str
    axes: tuple[str, ...] = ()
    geometry: Geometry = Geometry.NONE
    internal: bool = False
    certainty: bool = False
    truth: Truth | None = None
    input: bool = False
    selects: str | None = None
    padded: frozenset[str] = frozenset()
    drawing: Drawing | None = None
    kind: type | None = None
    outer: Mapping[str, str] = dataclasses.field(default_factory=dict[str, str])
    prefix: str = ""

    @property
    def own_axis(self) -> str:
        """Axis that counts the entries of indices (``selects``)."""
        return self.axes[-2] if self.geometry is Geometry.PIXEL or self.pairs else self.axes[-1]

    @property
    def pairs(self) -> bool:
        """True for indices that come in pairs, such as a bone's two points."""
        return self.selects is not None and self.geometry is not Geometry.PIXEL and self.axes[-1] == "2"


@dataclass(frozen=True, kw_only=True)
class Leaf:
    """Tensor of a value: its path, and its declaration with the axes' outer names."""

    name: str
    """Path from the value, as ``cameras.known``."""
    label: str
    """Name in a flat list (`named`)."""
    axes: tuple[str, ...]
    """Axis names; an axis that counts the entries of several has all their names: ``k h w``."""
    geometry: Geometry
    internal: bool
    certainty: bool
    truth: Truth | None
    padded: frozenset[str]
    """Axes that may differ in length between the values of a batch."""
    drawing: Drawing | None

    def dim(self, axis: str, tensor: Tensor) -> int | None:
        """Index of an axis of the tensor; None where it has none."""
        if axis == "b" and BATCH in self.axes:
            return self.axes.index(BATCH) if tensor.ndim >= len(self.axes) else None
        if axis not in self.axes:
            return None
        place = self.axes.index(axis)
        after = BATCH in self.axes[:place]
        return place - len(self.axes) + tensor.ndim if after else place


@cache
def declared(kind: type) -> tuple[Field, ...]:
    """Fields of a dataclass that hold tensors. TypeError for an invalid declaration."""
    hints = get_type_hints(kind)
    declarations = (_declared(kind, each, hints[each.name]) for each in dataclasses.fields(kind))
    found = tuple(each for each in declarations if each is not None)
    owners: dict[str, str] = {}
    for each in found:
        for label, path in labels_of(each, (kind,)):
            other = owners.setdefault(label, path)
            if other != path:
                raise TypeError(f"{kind.__name__}.{other} and .{path} are both listed as {label}; rename one of them")
    _check_selections(kind, found)
    return found


def _check_selections(kind: type, found: Sequence[Field]) -> None:
    """TypeError for an axis that counts what a field of another class selects: it would be cut with that."""
    owners = {
        name: base for base in kind.__mro__ for name in getattr(base, "__dataclass_fields__", {})
    }  # the last, which is the first that declares it
    for selection in (each for each in found if each.selects is not None):
        for each in found:
            names = each.axes if each.kind is None else each.outer.values()
            parts = {part for axis in names for part in axis.split()}
            if selection.own_axis in parts and owners[each.name] is not owners[selection.name]:
                raise TypeError(
                    f"{kind.__name__}.{each.name} has an axis {selection.own_axis}, which counts what "
                    f"{selection.name} selects, of another class; give the axis another name"
                )


def labels_of(field: Field, above: tuple[type, ...]) -> Iterator[tuple[str, str]]:
    """Name in a flat list, and path, of each tensor of a field; those of a value nested in its own kind once."""
    if field.kind is None:
        yield field.name, field.name
    elif field.kind not in above:
        for each in declared(field.kind):
            for label, path in labels_of(each, (*above, field.kind)):
                yield f"{field.prefix}{label}", f"{field.name}.{path}"


def axes(kind: type, name: str) -> tuple[str, ...]:
    """Axes of a field of tensors, as annotated. KeyError for another field."""
    return {each.name: each.axes for each in declared(kind)}[name]


def _declared(kind: type, field: dataclasses.Field[object], hint: object) -> Field | None:
    where, said = f"{kind.__name__}.{field.name}", field.metadata
    whole = get_origin(hint) in (Union, builtin.UnionType)
    options = [option for option in get_args(hint) if option is not type(None)] if whole else [hint]
    if len(options) != 1 or not isinstance(options[0], type):
        return _of_something_else(where, hint)
    only = options[0]
    if dataclasses.is_dataclass(only):
        if "nested" not in said:
            raise TypeError(f"{where} does not say what its axes are called outside; add metadata=nested(…)")
        prefix = f"{field.name}_" if said["prefix"] is None else said["prefix"]
        return Field(name=field.name, kind=only, outer=said["nested"], padded=said["padded"], prefix=prefix)
    if not hasattr(only, "dim_str"):
        return _of_something_else(where, hint)
    annotated = cast(_Annotated, only)
    found = Field(
        name=field.name,
        axes=tuple(annotated.dim_str.split()),
        geometry=said.get("geometry", Geometry.NONE),
        internal=said.get("internal", False),
        certainty=said.get("certainty", False),
        truth=said.get("truth"),
        input=said.get("input", False),
        selects=said.get("selects"),
        padded=said.get("padded", frozenset()),
        drawing=_drawing(field.name, said),
    )
    if found.drawing is not None and found.axes[:2] != (BATCH, "f"):
        raise TypeError(f"{where} is drawn, frame by frame; let its axes begin with '*b f', not '{annotated.dim_str}'")
    if "geometry" not in said and any(name.startswith("float") for name in annotated.dtypes):
        raise TypeError(f"{where} does not say its geometry; add metadata=LENGTH, POINT, … or NONE (types.Geometry)")
    endings = ENDINGS.get(found.geometry)
    if endings is not None and not any(found.axes[-len(each) :] == each for each in endings):
        wanted = " or ".join(f"'{' '.join(each)}'" for each in endings)
        raise TypeError(f"{where} is a {found.geometry.name}, whose axes end with {wanted}, not '{annotated.dim_str}'")
    return found


def _drawing(name: str, said: Mapping[str, object]) -> Drawing | None:
    """Drawing of a field of this name, with the folder of its own name where it says none."""
    found = cast(Drawing | None, said.get("drawing"))
    return dataclasses.replace(found, folder=name) if found is not None and found.folder == "" else found


class _Annotated(Protocol):
    """A tensor type of jaxtyping."""

    dim_str: str
    dtypes: Sequence[str]


def _of_something_else(where: str, hint: object) -> None:
    """Raise TypeError for a field whose tensors would be missed."""
    inner = [hint]
    while inner:
        each = inner.pop()
        if each is Tensor or hasattr(each, "dim_str") or dataclasses.is_dataclass(each):
            raise TypeError(
                f"{where} holds tensors in a form without axes; annotate it as Float[Tensor, '*b f h w'] (or Int, "
                "Bool) or as a dataclass of such fields, with | None where it may be absent"
            )
        inner += get_args(each)


@cache
def all_axes(kind: type, above: tuple[type, ...] = ()) -> frozenset[str]:
    """Names of all axes; a value nested in its own kind counts once."""
    found: set[str] = {"b"}
    for each in declared(kind):
        names = each.axes if each.kind is None else ()
        if each.kind is not None and each.kind not in (*above, kind):
            names = [_outside(each, axis) for axis in all_axes(each.kind, (*above, kind)) - {"b"}]
        found |= {part for axis in names for part in axis.split() if part != BATCH and not part.isdecimal()}
    return frozenset(found)


def _outside(field: Field, axis: str) -> str:
    """Outer name of an axis of a nested value; for combined axes, ``k h w``, that of each."""
    if axis.isdecimal():
        return axis
    return field.outer.get(axis, f"{field.name}.{axis}")


def combine(
    values: Sequence[T | None], act: Callable[[Leaf, list[Tensor | None]], Tensor | None], path: tuple[Field, ...] = ()
) -> T | None:
    """Combine several values of a kind tensor by tensor; other fields are the first's."""
    present = [value for value in values if value is not None]
    if not present:
        return None
    kinds = {type(value) for value in present}
    if len(kinds) != 1 or not dataclasses.is_dataclass(present[0]):
        raise ValueError(f"values are {', '.join(sorted(each.__name__ for each in kinds))}; give dataclasses of a kind")
    changes: dict[str, object] = {}
    for each in declared(type(present[0])):
        parts = [getattr(value, each.name, None) for value in values]
        changes[each.name] = act(_leaf(each, path), parts) if each.kind is None else combine(parts, act, (*path, each))
    first = values[0]
    return None if first is None else replace(first, changes)


class DataclassInstance(Protocol):
    """Anything that `dataclasses.replace` takes."""

    __dataclass_fields__: ClassVar[dict[str, dataclasses.Field[object]]]


@cache
def _leaf(field: Field, path: tuple[Field, ...]) -> Leaf:
    names, padded = field.axes, field.padded
    for outer in reversed(path):
        padded = {_outside(outer, axis) for axis in padded | outer.padded}
        names = [part for axis in names for part in _rename(outer, axis)]
    return Leaf(
        name=".".join(each.name for each in (*path, field)),
        label="".join(each.prefix for each in path) + field.name,
        axes=tuple(names),
        geometry=field.geometry,
        internal=field.internal,
        certainty=field.certainty,
        truth=field.truth,
        padded=frozenset(padded),
        drawing=field.drawing,
    )


def _rename(outer: Field, axis: str) -> list[str]:
    if axis == BATCH:
        return [BATCH, *([outer.outer["b"]] if "b" in outer.outer else [])]
    return [" ".join(_outside(outer, part) for part in axis.split())]


def apply(value: T, act: Callable[[Leaf, Tensor], Tensor | None]) -> T:
    """Replace every tensor by the result of ``act`` on its declaration and it."""
    found = combine([value], lambda leaf, parts: None if parts[0] is None else act(leaf, parts[0]))
    assert found is not None
    return found


def leaves(value: object, path: tuple[Field, ...] = ()) -> Iterator[tuple[Leaf, Tensor]]:
    """Yield every tensor of a value, itself at ``path`` within another, with its declaration."""
    for each in declared(type(value)):
        part = getattr(value, each.name)
        if part is not None and each.kind is None:
            yield _leaf(each, path), part
        elif part is not None:
            yield from leaves(part, (*path, each))


def replace(value: T, changes: Mapping[str, object]) -> T:
    """Apply `dataclasses.replace` to a value that is not statically known to be a dataclass."""
    return cast(T, dataclasses.replace(cast(DataclassInstance, value), **changes))

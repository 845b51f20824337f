"""Cutting, joining and batching of values along named axes."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TypeVar, cast

import torch
from torch import Tensor
from torch.nn import functional

from four_d.constants import also_kept
from four_d.fields.declarations import (
    BATCH,
    DataclassInstance,
    Field,
    Leaf,
    all_axes,
    apply,
    combine,
    declared,
    leaves,
    replace,
)
from four_d.types import Geometry

T = TypeVar("T")


def size(value: object, axis: str) -> int | None:
    """Length of an axis; None if no tensor has it."""
    found = ((leaf.dim(axis, tensor), tensor) for leaf, tensor in leaves(value))
    return next((tensor.shape[dim] for dim, tensor in found if dim is not None), None)


def take(value: T, axis: str, index: slice | Tensor | Sequence[int]) -> T:
    """Select entries of an axis, in this order; fields without the axis stay.

    Fields of selected entries (`types.selects`) follow: those of entries not taken are left out, and of an entry taken
    twice only the first keeps them.
    """
    inner = _nested(value, axis)
    if inner is not None:
        return replace(value, {inner: take(getattr(value, inner), axis.partition(".")[2], index)})
    chosen = index if isinstance(index, slice | Tensor) else torch.tensor(list(index), dtype=torch.long)
    indices: dict[str, slice | Tensor] = {axis: chosen}
    changes: dict[str, object] = {}
    for each in _selections(value, axis):
        old = cast(Tensor | None, getattr(value, each.name))
        if old is None:
            indices[each.own_axis] = chosen
        else:
            indices[each.own_axis], changes[each.name] = _select_again(each, old, chosen, _length(value, axis))
    return replace(apply(value, lambda leaf, tensor: _chosen(value, leaf, tensor, indices)), changes)


def _chosen(value: object, leaf: Leaf, tensor: Tensor, indices: Mapping[str, slice | Tensor]) -> Tensor:
    for name, some in indices.items():
        tensor = _index(value, leaf, tensor, name, some)
    return tensor


def _nested(value: object, axis: str) -> str | None:
    """Field that a private axis of a nested value belongs to; ValueError for an unknown axis."""
    name, dot, _ = axis.partition(".")
    if dot and any(each.name == name and each.kind is not None for each in declared(type(value))):
        return name
    if axis not in all_axes(type(value)):
        raise ValueError(f"{type(value).__name__} has no axis {axis}; choose among {sorted(all_axes(type(value)))}")
    return None


def _selections(value: object, axis: str) -> list[Field]:
    """Fields that select entries of an axis; those for which None means none are left out if they are None."""
    found = [each for each in declared(type(value)) if each.selects == axis]
    optional = [each for each in found if each.geometry is Geometry.PIXEL or each.pairs]
    return [each for each in found if each not in optional or getattr(value, each.name) is not None]


def _length(value: object, axis: str) -> int:
    found = size(value, axis)
    if found is None:
        raise ValueError(f"nothing in this {type(value).__name__} tells the length of its axis {axis}")
    return found


def _select_again(field: Field, old: Tensor, chosen: slice | Tensor, count: int) -> tuple[Tensor, Tensor]:
    """Positions of the entries of ``old`` that are left, and these entries as indices into the chosen ones."""
    pixels = field.geometry is Geometry.PIXEL
    keys = old[..., 0].long() if pixels else old
    rows = keys.reshape(-1, *keys.shape[-2 if field.pairs else -1 :])
    if bool((rows != rows[:1]).any()):
        raise ValueError(f"{field.name} differs within the batch; take frames of one clip at a time")
    positions = torch.arange(count, device=old.device)[chosen.to(old.device) if isinstance(chosen, Tensor) else chosen]
    # one position more that is none, for argmax where nothing is taken
    same = functional.pad(rows[0][..., None] == positions, (0, 1))
    if field.pairs:
        kept = same.any(-1).all(-1).nonzero()[:, 0]
        return kept, same[kept].int().argmax(-1).to(old.dtype).expand(*old.shape[:-2], -1, -1)
    kept = same.any(1).nonzero()[:, 0]
    new = same[kept].int().argmax(1)
    if not pixels:
        return kept, new.to(old.dtype).expand(*old.shape[:-1], -1)
    left = old[..., kept, :]
    return kept, torch.cat([new.to(old.dtype).expand(left.shape[:-1])[..., None], left[..., 1:]], dim=-1)


def _index(value: object, leaf: Leaf, tensor: Tensor, axis: str, index: slice | Tensor) -> Tensor:
    """Select entries of one axis, also of one that counts several axes together."""
    if isinstance(index, Tensor):
        index = index.to(tensor.device)
    dim = leaf.dim(axis, tensor)
    if dim is not None:
        places = (*[slice(None)] * dim, index)
        return tensor[places] if isinstance(index, Tensor) else also_kept(tensor, lambda values: values[places])
    joint = next((each for each in leaf.axes if axis in each.split()), None)
    place = None if joint is None else leaf.dim(joint, tensor)
    if joint is None or place is None:
        return tensor
    parts = joint.split()
    before = math.prod(_length(value, part) for part in parts[: parts.index(axis)])
    split = tensor.unflatten(place, (before, _length(value, axis), -1))
    return split[(*[slice(None)] * (place + 1), index)].flatten(place, place + 2)


def entries(value: object, leaf: Leaf, tensor: Tensor, axis: str) -> tuple[int, Tensor] | None:
    """Locate the entries of an axis in one of a value's tensors: on that axis, a combined or a selecting one.

    Returns:
        Index of the tensor's axis, and the entry that each of its places belongs to, (*b) n; None if there is none.

    """
    selected: dict[str, Tensor | None] = {axis: None}
    for each in (each for each in _selections(value, axis) if not each.pairs):  # a pair is of two entries
        rows = cast(Tensor | None, getattr(value, each.name))
        selected[each.own_axis] = rows[..., 0].long() if rows is not None and each.geometry is Geometry.PIXEL else rows
    for joint in leaf.axes:
        dim, parts = leaf.dim(joint, tensor), joint.split()
        part = next((each for each in parts if each in selected), None)
        if dim is None or part is None:
            continue
        chosen = selected[part]
        keys = torch.arange(_length(value, axis), device=tensor.device) if chosen is None else chosen
        count, total = keys.shape[-1], tensor.shape[dim]
        inner = parts[parts.index(part) + 1 :]
        each_of = total // count if part == parts[0] else math.prod(_length(value, other) for other in inner)
        return dim, keys[..., torch.arange(total, device=tensor.device) // each_of % count]
    return None


def join(values: Sequence[T], axis: str) -> T:
    """Concatenate values along an axis, the inverse of `take`; fields without the axis are the first's."""
    inner = _nested(values[0], axis)
    if inner is not None:
        parts = [getattr(value, inner) for value in values]
        return replace(values[0], {inner: join(parts, axis.partition(".")[2])})
    names, shifted = {axis}, list(values)
    for each in _selections(values[0], axis):
        names.add(each.own_axis)
        shifted = _shift(each, shifted, axis)
    found = combine(shifted, lambda leaf, parts: _cat(leaf, parts, axis, names))
    assert found is not None
    return found


def _cat(leaf: Leaf, parts: Sequence[Tensor | None], axis: str, names: Collection[str]) -> Tensor | None:
    """Concatenate along ``axis``, or the one of ``names`` that the tensors have; without either, the first."""
    joined = next((each for each in leaf.axes if not set(names).isdisjoint(each.split())), None)
    if joined is None and not (axis == "b" and BATCH in leaf.axes):
        return parts[0]
    if joined is not None and joined.split()[0] not in names:
        raise ValueError(f"{leaf.name} counts {axis} within other things, and cannot be joined along it")
    present = _all_or_none(leaf, parts)
    dim = leaf.dim(joined or axis, present[0]) if present else None
    return torch.cat(present, dim=dim) if dim is not None else parts[0]


def _shift(field: Field, values: Sequence[T], axis: str) -> list[T]:
    """Shift indices into an axis to those after joining all values along it."""
    start, found = 0, list[T]()
    for value in values:
        old = cast(Tensor | None, getattr(value, field.name))
        if old is None:
            return list(values)
        add = torch.tensor([start, 0, 0]).to(old) if field.geometry is Geometry.PIXEL else start
        found.append(replace(value, {field.name: old + add}))
        start += _length(value, axis)
    return found


def _all_or_none(leaf: Leaf, parts: Sequence[Tensor | None]) -> list[Tensor]:
    present = [part for part in parts if part is not None]
    if len(present) not in (0, len(parts)):
        raise ValueError(f"{len(present)} of {len(parts)} values have {leaf.name}; all must, or none")
    return present


def stack(values: Sequence[T], done: Mapping[str, Tensor] | None = None) -> T:
    """Stack unbatched values to a batch. Axes declared ``padded`` are padded with zeros (False) to the longest.

    ``done``: batches of some tensors, by name, that are at hand already.

    ValueError for a field that only some of them have, or that is of different sizes.
    """
    ready = done or {}
    found = combine(values, lambda leaf, parts: ready[leaf.name] if leaf.name in ready else _stack(leaf, parts))
    assert found is not None
    return found


def _stack(leaf: Leaf, parts: Sequence[Tensor | None]) -> Tensor | None:
    present = _all_or_none(leaf, parts)
    if not present:
        return None
    if BATCH not in leaf.axes:
        raise ValueError(f"{leaf.name} has no batch axis ('{BATCH}')")
    place = leaf.axes.index(BATCH)
    if len({part.shape for part in present}) == 1:
        return torch.stack(present, dim=place)
    names = [each for each in leaf.axes if each != BATCH]
    for name, *lengths in zip(names, *(part.shape for part in present), strict=True):
        if len(set(lengths)) > 1 and name not in leaf.padded:
            raise ValueError(f"{leaf.name} has {sorted(set(lengths))} entries of {name}; all must have equally many")
    return pad(present).movedim(0, place)


def pad(tensors: Sequence[Tensor]) -> Tensor:
    """Stack tensors of unequal sizes; each is padded with zeros (False) at the ends of its axes."""
    longest = torch.tensor([tensor.shape for tensor in tensors]).amax(0).tolist()
    stacked = tensors[0].new_zeros(len(tensors), *longest)
    for row, tensor in zip(stacked, tensors, strict=True):
        row[tuple(slice(0, n) for n in tensor.shape)] = tensor
    return stacked


def unstack(value: T, index: int) -> T:
    """Take one value of a batch, the inverse of `stack` except for its padding."""
    return apply(value, lambda leaf, tensor: _one(leaf, tensor, index))


def _one(leaf: Leaf, tensor: Tensor, index: int) -> Tensor:
    dim = leaf.dim("b", tensor)
    return tensor if dim is None else also_kept(tensor, lambda values: values.select(dim, index))


def without(value: T, *axes: str) -> T:
    """Remove the fields that have one of these axes."""
    for axis in axes:
        _nested(value, axis)
    parts = ((leaf, {part for each in leaf.axes for part in each.split()}) for leaf, _ in leaves(value))
    return _drop(value, (leaf.name for leaf, names in parts if not names.isdisjoint(axes)))


def delivered(value: T) -> T:
    """Remove the fields that only losses read (`types.INTERNAL`)."""
    return _drop(value, (leaf.name for leaf, _ in leaves(value) if leaf.internal))


def inputs(value: T) -> T:
    """Remove the fields that a model does not see (all but `types.INPUT`)."""
    return _drop(value, (each.name for each in declared(type(value)) if not each.input))


def _drop(value: T, paths: Iterable[str]) -> T:
    names = {path.partition(".")[0] for path in paths}
    needed = {
        each.name for each in dataclasses.fields(cast(DataclassInstance, value)) if each.default is not None
    } & names
    if needed:
        raise ValueError(f"{type(value).__name__} cannot be without {', '.join(sorted(needed))}")
    return replace(value, dict.fromkeys(names))

"""Flat names of a value's tensors, as in files and exported programs."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from four_d.drawing import Drawing, Map
from four_d.fields.declarations import DataclassInstance, Leaf, declared, labels_of, leaves

T = TypeVar("T")


def named(value: object) -> dict[str, Tensor]:
    """Map flat names to tensors; names of nested values begin as declared (`types.nested`)."""
    return {leaf.label: tensor for leaf, tensor in leaves(value)}


def arrays(value: object) -> dict[str, NDArray[np.generic]]:
    """Map flat names (`named`) to arrays; floats in single precision."""
    parts = {name: tensor.detach().cpu() for name, tensor in named(value).items()}
    return {name: (part.float() if part.is_floating_point() else part).numpy() for name, part in parts.items()}


def drawings(value: object) -> Iterator[tuple[Leaf, Drawing, Map]]:
    """Yield the fields of an unbatched value that are drawn (`types.drawn`): declaration, drawing, values by frame."""
    for leaf, tensor in leaves(value):
        if leaf.drawing is not None:
            yield leaf, leaf.drawing, tensor.detach().float().cpu().numpy()


def labels(kind: type) -> dict[str, frozenset[str]]:
    """Map each field of a dataclass that holds tensors to their flat names (`named`)."""
    return {each.name: frozenset(label for label, _ in labels_of(each, (kind,))) for each in declared(kind)}


def of_names(kind: type[T], tensors: Mapping[str, Tensor], prefix: str = "") -> T:
    """Make a value of tensors by their flat names, the inverse of `named`; names that are not declared are passed over.

    A nested value is there if one of its tensors is. ValueError where a tensor is missing that has to be there.
    """
    found: dict[str, object] = {}
    flat = labels(kind)
    for each in declared(kind):
        if each.kind is None:
            found[each.name] = tensors.get(f"{prefix}{each.name}")
        elif any(f"{prefix}{label}" in tensors for label in flat[each.name]):
            found[each.name] = of_names(each.kind, tensors, f"{prefix}{each.prefix}")
    present = {name: value for name, value in found.items() if value is not None}
    for each in dataclasses.fields(cast(DataclassInstance, kind)):
        needed = each.default is dataclasses.MISSING and each.default_factory is dataclasses.MISSING
        if needed and each.name not in present:
            raise ValueError(f"{prefix}{each.name} of {kind.__name__} is missing among {', '.join(sorted(tensors))}")
    return kind(**present)

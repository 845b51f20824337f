"""Operations on dataclasses of tensors, driven by their fields' declarations: axes (annotation), geometry (metadata).

All cutting, joining, batching, moving, scaling, mirroring and writing goes through here, so that a field's declaration
suffices (`types`), also for fields of a subclass of `Prediction` that a head defines. Axes of a nested value have the
names that the outer field gives them (`types.nested`), else are private: ``tracks.n``. An invalid declaration is a
TypeError when its class is first used; values that do not fit each other are a ValueError.
"""

from four_d.fields.axes import delivered, entries, inputs, join, pad, size, stack, take, unstack, without
from four_d.fields.declarations import Field, Leaf, Truth, apply, axes, combine, declared, leaves
from four_d.fields.names import arrays, drawings, labels, named, of_names
from four_d.fields.transforms import divide, mirror, move, scale

__all__ = [
    "Field",
    "Leaf",
    "Truth",
    "apply",
    "arrays",
    "axes",
    "combine",
    "declared",
    "delivered",
    "divide",
    "drawings",
    "entries",
    "inputs",
    "join",
    "labels",
    "leaves",
    "mirror",
    "move",
    "named",
    "of_names",
    "pad",
    "scale",
    "size",
    "stack",
    "take",
    "unstack",
    "without",
]

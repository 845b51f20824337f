"""Interface of models to their callers: `Model` and its `Abilities`; `ModelModule` and `ModelSpec` for training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Literal, Protocol, cast, runtime_checkable

from torch import Tensor, nn

from four_d import fields
from four_d.devices import Precision, computing
from four_d.errors import UserError
from four_d.extension import Spec
from four_d.types import Clip, Prediction, widened

Hint = Literal["intrinsics", "poses", "depth", "masks", "boxes"]
HINTS: tuple[Hint, ...] = ("intrinsics", "poses", "depth", "masks", "boxes")
Use = Literal["off", "optional", "required"]
"""Use of a hint by a model; ``required``: it refuses a clip without."""
Normalisation = Literal["mean_distance", "disparity", "stored"]
"""Quantity of a fixed size in examples: the mean distance of points (VGGT: 1), or the disparity that a fifth of the
pixels fall below (DGS-LRM: 2); or none, where lengths are in the source's own unit (``stored``)."""
World = Literal["first_camera", "stored"]
"""Coordinates of a model's outputs: the first frame's camera, or those of its training data."""
UNITS: dict[Normalisation, str] = {
    "mean_distance": "model unit: the mean distance of the scene's points to the first camera is about 1; not metres",
    "disparity": "the unit of the cameras and depth that were given",
    "stored": "the unit of the model's training data; of a model of one object, the object's radius",
}
"""Unit of the lengths that a model predicts, in words, by how it was trained."""


@dataclass(frozen=True, kw_only=True)
class Abilities:
    """Outputs of a model and the inputs that it takes or needs."""

    outputs: frozenset[str] = frozenset()
    """Fields of its predictions."""
    predictions: tuple[type[Prediction], ...] = (Prediction,)
    """Classes that declare them: subclasses of `Prediction` for fields of a model's own."""
    queried: frozenset[str] = frozenset()
    """Outputs that answer the clip's query times."""
    points: bool = False
    """True if it answers query points (``Clip.query_points``)."""
    hints: Mapping[Hint, Use] = field(default_factory=dict[Hint, Use])
    """Supported hints, each optional or required; those that are off are absent."""
    hint_settings: Mapping[Hint, str] = field(default_factory=dict[Hint, str])
    """Config setting that chooses a hint's use; hints whose use cannot be chosen are absent."""
    masks: bool = False
    """True if its outputs depend on the user's mask of moving pixels (``Clip.dynamic``)."""
    times: int | None = None
    """Number of distinct times that a clip must have for Gaussians; None: any."""
    stride: int = 1
    """Motion is supervised at every ``stride``-th frame: those that have token rows."""
    key_frames: int = 0
    """Frames of each camera whose pixels become Gaussians, in a clip of ``times`` times."""
    key_cameras: int | None = None
    """Number of cameras with key frames; None: all."""
    multiple: int = 1
    """Image height and width must be multiples of this."""
    image_size: tuple[int, int] | None = None
    """Exact height and width of images; None: any multiples."""
    frames: int | None = None
    """Exact number of frames of a clip; None: any."""
    seen_as: str = ""
    """Way in which a wrapper shows clips to the model (`pairwise`); empty: the whole clip at once."""
    normalisation: Normalisation = "mean_distance"
    """Rule for its unit of length."""
    world: World = "first_camera"
    """Coordinates of its outputs."""
    trained_frames: int | None = None
    """Number of frames of a clip in training; None: unknown."""
    precision: Precision | None = None
    """Arithmetic precision; None: the caller's, such as an enclosing autocast's."""
    looks: bool = True
    """False if its outputs do not depend on the images, as a scene's that is fitted to one clip."""

    @property
    def required(self) -> frozenset[Hint]:
        """Hints without which it refuses a clip."""
        return frozenset(hint for hint, use in self.hints.items() if use == "required")

    @property
    def moves(self) -> bool:
        """True if it predicts dense motion to query times."""
        return "motion" in self.outputs

    @property
    def follows(self) -> bool:
        """True if it answers query points, or predicts dense motion, from which their tracks are read."""
        return self.moves or self.points

    @property
    def gives_gaussians(self) -> bool:
        """True if it predicts Gaussians."""
        return "gaussians" in self.outputs

    @property
    def hints_text(self) -> str:
        """Description of the supported hints, for messages."""
        if self.hints:
            return f"takes {' and '.join(hint for hint in HINTS if hint in self.hints)}"
        off = " and ".join(sorted({*self.hint_settings.values()}))
        return "takes no hints" + (f" ({off} is off)" if off else "")

    @property
    def arithmetic(self) -> str:
        """Arithmetic precision as the end of a note; empty where it is fp32 or unset."""
        return "" if self.precision in (None, "fp32") else f"; computed in {self.precision}"


def check_sees_scenes(model: Abilities) -> None:
    """Raise UserError for a model of one object, which takes crops of it, where one of any videos is needed."""
    if model.world != "first_camera":
        raise UserError(
            "this model's cameras are about one object that fills its pictures; run it on a video by "
            "four_d.pose_net.follow_object, which crops them"
        )


def check(prediction: Prediction, abilities: Abilities) -> None:
    """Raise TypeError for a field that the abilities do not name, that answers query times and has no axis for them, or
    that has the axis of query points in a model that answers none; and for an output that no class of theirs declares.

    Fields that only losses read need not be named.
    """
    kind = type(prediction).__name__
    known = {each.name for each in itertools.chain.from_iterable(map(fields.declared, abilities.predictions))}
    for name in sorted(abilities.outputs - known):
        raise TypeError(f"no class of abilities.predictions declares the output {name}; name {kind} there")
    axes: dict[str, set[str]] = {}
    for leaf, _ in fields.leaves(prediction):
        name = leaf.name.partition(".")[0]
        if name not in abilities.outputs and not leaf.internal:
            raise TypeError(
                f"the model predicts {kind}.{name}, which its abilities.outputs (or a head's provides) lack"
            )
        axes.setdefault(name, set()).update(part for axis in leaf.axes for part in axis.split())
    for name in sorted(name for name, parts in axes.items() if "n" in parts and not abilities.points):
        raise TypeError(
            f"{kind}.{name} has an axis n, which counts the points that are asked for, and this model answers none; "
            "rename the axis, or say that they are answered (HeadSpec.answers_points, Abilities.points)"
        )
    for name in sorted(abilities.queried & set(axes)):
        if "q" not in axes[name]:
            raise TypeError(
                f"{kind}.{name} answers query times and has no axis q, so that all but the first would be lost; "
                "annotate it as '*b q …', or let a head that is not queried give it"
            )


@runtime_checkable
class Model(Protocol):
    """Interface of models. A class that inherits from it needs only the call and ``abilities``."""

    @property
    def abilities(self) -> Abilities:
        """Outputs of the model and the inputs that it takes or needs."""
        ...

    def __call__(self, clip: Clip, /) -> Prediction:
        """Predict for a batched clip, with the answers to all of its query times."""
        ...

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction per query time of a batched clip (q = 1), of which only the first need hold outputs that
        depend on none; one where the model answers no query or the clip has none.
        """
        if clip.query_times is None or not self.abilities.queried:
            yield self(clip)
            return
        for time in clip.query_times.split(1, dim=1):
            yield self(replace(clip, query_times=time))

    def without(self, *outputs: str) -> Model:  # noqa: ARG002 - for those with parts
        """Model that neither computes these fields nor needs inputs for them.

        A model that cannot leave anything out returns itself.
        """
        return self


class ModelModule(nn.Module, Model):
    """Trainable model, built by a `ModelSpec`. Only its ``abilities`` and its call have no default."""

    @property
    def abilities(self) -> Abilities:
        """Outputs of the model and the inputs that it takes or needs."""
        raise NotImplementedError

    precision: Precision | None = None
    """Arithmetic precision of a call; None: the caller's, such as the training loop's autocast."""

    def __call__(self, clip: Clip, /) -> Prediction:
        """Run ``forward`` in the model's precision, which where it is set gives float32 at least.

        TypeError where the prediction denies its abilities (`check`).
        """
        with computing(self.precision, clip.images.device):
            found = cast(Prediction, super().__call__(clip))
            found = found if self.precision is None else widened(found)
        check(found, self.abilities)
        return found

    def set_precision(self, precision: Precision) -> None:
        """Set the arithmetic precision of calls. UserError for one in which the model cannot compute."""
        self.precision = precision

    def answers(self, clip: Clip) -> Iterator[Prediction]:
        """Yield one prediction per query time; override to share work between them.

        Precision and checks are those of `passes`, which runs inside them up to each answer.
        """
        if clip.query_times is None or not self.abilities.queried:
            yield cast(Prediction, super().__call__(clip))
            return
        for time in clip.query_times.split(1, dim=1):
            yield cast(Prediction, super().__call__(replace(clip, query_times=time)))

    def passes(self, clip: Clip) -> Iterator[Prediction]:
        """Yield the `answers` in the model's precision, as a call gives them; see `Model.passes`."""
        given = self.answers(clip)
        while True:
            with computing(self.precision, clip.images.device):  # not around a yield: the caller's code runs in between
                found = next(given, None)
                if found is None:
                    return
                found = found if self.precision is None else widened(found)
            check(found, self.abilities)
            yield found
            del found  # frees its memory before the next one is computed

    def tokens(self, clip: Clip) -> int:  # noqa: ARG002 - for those with tokens
        """Number of tokens that a batched clip is encoded to, for rates; 0 of a model without."""
        return 0

    def at_step(self, step: int) -> Mapping[str, Tensor]:  # noqa: ARG002 - for those that follow a schedule
        """Set what follows a schedule for a training step, before it; it is stored with the weights.

        A model whose parameters get other rows in training, as a scene that splits its Gaussians, sets ``.data`` of the
        same parameters here, while they still have the gradients of the step before: clipped, and None in the first
        step after a start, so what must resume exactly is accumulated in a buffer.

        Returns:
            Name of each parameter with other rows → for each row, the former row that it goes on as, or -1 for a new
            one; the optimiser and the running average follow. In one process only: others would not know.

        """
        return {}

    def shards(self) -> list[nn.Module]:
        """Parts whose weights processes that split them (FSDP2) gather one at a time: repeated ones, called as modules.

        The rest is gathered for the whole pass.
        """
        return []

    def freeze_untaught(self, taught: frozenset[str]) -> dict[str, str]:  # noqa: ARG002 - for those with parts
        """Freeze the parts that set none of the ``taught`` fields; return name → first field of those with weights."""
        return {}

    def fit_shapes(self, state: Mapping[str, Tensor]) -> None:
        """Give parameters the shapes of a state that is to be loaded, for a model whose shapes change in training.

        The state may be another model's that this one begins with, and lack some of its names.
        """


@runtime_checkable
class ModelSpec(Spec, Protocol):
    """Config of a model, a frozen dataclass, as ``model`` of a run. `extend` registers further ones."""

    @property
    def abilities(self) -> Abilities:
        """Abilities of the model that it builds."""
        ...

    def build(self) -> ModelModule:
        """Build the model, with weights of torch's global generator. UserError where settings do not fit each other."""
        ...

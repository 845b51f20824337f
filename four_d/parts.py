"""The parts of a model, backbone and heads, and what they provide to and require of each other."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Protocol, runtime_checkable

from four_d.abilities import Hint, Use
from four_d.extension import Spec
from four_d.types import Clip, Prediction, Tokens


@dataclass(frozen=True)
class Provision:
    """Optional output of a backbone beside patch tokens of some frames. Equal name and detail make equal provisions."""

    name: str
    """Noun phrase for messages, as in "requires tokens of every frame"."""
    remedy: str = field(default="", compare=False)
    """Remedy in error messages; ``{name}`` stands for the head's name. A head may give its own: `otherwise`."""
    detail: object = None
    """Further value that must be equal, such as the settings of a shared module."""

    def otherwise(self, remedy: str) -> Provision:
        """Copy with another remedy."""
        return replace(self, remedy=remedy)


EVERY_FRAME = Provision("tokens of every frame", "remove it, or take configs/unified.yaml, whose backbone gives them")
"""One row of `Tokens` for each frame of the clip, in the clip's order; else rows of some frames (``Tokens.frames``)."""
CAMERA_TOKEN = Provision("camera tokens", "take the alternating backbone, or remove the head")
"""``Tokens.special``, whose first is the camera's."""
QUERY = Provision("tokens that know the query time", "set 'model.backbone.query={{}}'")
"""Tokens conditioned on the clip's first query time, so that each query time takes its own encoding."""
DYNAMICS = Provision("a mask of what moves", "set 'model.backbone.dynamics={{}}' (alternating), or remove the head")
"""``Tokens.dynamic_logits``."""
MATCHES = Provision("matches of all times", "set 'model.backbone.correlation={{}}' (spacetime)")
"""``Tokens.matches``."""
SWEEP = Provision("depths along rays", "set 'model.backbone.cost_volume={{}}' (spacetime)")
"""``Tokens.sweep``."""
DETAIL = Provision(
    "a map that is finer than patches",
    "set 'model.backbone.patches={{kind: features}}' (alternating), or model.heads.{name}.detail=false",
)
"""``Tokens.detail``, of `TokenShape.detail` channels and `TokenShape.detail_stride`."""
FEATURES = Provision(
    "features to compare frames by",
    "set model.backbone.correlation=null, or give the motion head's decoder "
    "correlation=${{model.backbone.correlation}}",
)
"""``Tokens.features``; ``detail`` is the `CorrelationConfig`."""


@dataclass(frozen=True, kw_only=True)
class TokenShape:
    """Sizes of a backbone's tokens, by which heads are built."""

    width: int
    """Channels of the token maps."""
    rounds: int
    """Number of the backbone's rounds, each of which can give a token map."""
    patch_size: int
    """Pixels to each side of a patch; image sides must be multiples of it."""
    image_size: int | None = None
    """Side of the square images that position embeddings are stored for; None: no images in particular."""
    detail: int = 0
    """Channels of the map that is finer than patches (`DETAIL`); 0: there is none."""
    detail_stride: int = 0
    """Pixels to each side of that map's pixels."""


@runtime_checkable
class Pretrained(Protocol):
    """Interface of a module within a model whose weights may begin as published ones.

    Building gives random weights, since a checkpoint is read without those files.
    """

    def load_pretrained(self) -> dict[str, str]:
        """Load the weights that the config names, if any, and return source → licence, for the model's card.

        Called where training begins, unless the weights that it begins from have all of this module's. UserError where
        they are missing or of another network.
        """
        ...


@runtime_checkable
class Backbone(Protocol):
    """Interface of a backbone, which is also an ``nn.Module``."""

    @property
    def config(self) -> BackboneSpec:
        """Config that built it."""
        ...

    def __call__(self, clip: Clip, rounds: tuple[int, ...], /) -> Tokens:
        """Encode a clip: the token maps of exactly these rounds (counted from 0, ascending).

        UserError if the images' sides are not multiples of the patch size.
        """
        ...

    def at_step(self, step: int) -> None:
        """Set what follows a schedule for a training step."""


@runtime_checkable
class BackboneSpec(Spec, Protocol):
    """Config of a backbone, a frozen dataclass with a ``kind``. All but ``shape`` and ``build`` has a default."""

    @property
    def shape(self) -> TokenShape:
        """Sizes of the tokens."""
        ...

    @property
    def provides(self) -> frozenset[Provision]:
        """Provisions that heads may require."""
        return frozenset()

    @property
    def idle(self) -> frozenset[Provision]:
        """Provisions that at least one head must require, because nothing else trains them."""
        return frozenset()

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """Supported hints, each optional or required."""
        return {}

    @property
    def hint_settings(self) -> Mapping[Hint, str]:
        """Name of its setting that chooses a hint's use; hints whose use cannot be chosen are absent."""
        return {}

    @property
    def masks(self) -> bool:
        """True if it reads the user's mask of moving pixels (``Clip.dynamic``)."""
        return False

    @property
    def row_stride(self) -> int:
        """Stride in frames of a camera between its token rows."""
        return 1

    @property
    def special(self) -> int:
        """Number of tokens of a row beside its patches."""
        return 0

    @property
    def gaussian_times(self) -> int | None:
        """Number of times that its tokens compare, which heads of Gaussians must share; None: any."""
        return None

    def build(self) -> Backbone:
        """Build the module, an ``nn.Module``. UserError where settings do not fit each other."""
        ...


@runtime_checkable
class Head(Protocol):
    """Interface of a head, which is also an ``nn.Module``."""

    @property
    def config(self) -> HeadSpec:
        """Config that built it."""
        ...

    @property
    def rounds(self) -> tuple[int, ...]:
        """Rounds of the backbone whose token maps it reads, found by ``Tokens.rounds``."""
        ...

    def __call__(self, tokens: Tokens, clip: Clip, /) -> Prediction:
        """Predict this head's fields only. Of ``clip`` it may read the fields that a model may see.

        It is called in the loop's autocast, and itself wraps what needs float32 (`layers.full_precision`).
        """
        ...


@runtime_checkable
class HeadSpec(Spec, Protocol):
    """Config of a head, a frozen dataclass with a ``kind``. All but ``provides`` and ``build`` has a default."""

    @property
    def provides(self) -> tuple[str, ...]:
        """Fields of the prediction that it sets. A loss that ``teaches`` one of them trains the head."""
        ...

    @property
    def requires(self) -> frozenset[Provision]:
        """Provisions required of the backbone. Without `EVERY_FRAME` the head also works on rows of some frames."""
        return frozenset()

    @property
    def excludes(self) -> frozenset[Provision]:
        """Provisions that the backbone must not have, because the head computes them itself."""
        return frozenset()

    @property
    def prediction(self) -> type[Prediction]:
        """Class that declares what it ``provides``: of a head with fields of its own, the subclass with those."""
        return Prediction

    @property
    def queried(self) -> bool:
        """True if it answers a query time, the clip's first."""
        return False

    @property
    def answers_points(self) -> bool:
        """True if it tracks the clip's query points (``Clip.query_points``)."""
        return False

    @property
    def takes(self) -> Mapping[Hint, Use]:
        """Hints that it reads itself."""
        return {}

    @property
    def gaussian_times(self) -> int | None:
        """Number of times that its Gaussians move to: other clips are seen in segments of so many. None: any."""
        return None

    def key_frames(self, row_stride: int) -> tuple[int, int | None]:  # noqa: ARG002 - for heads of Gaussians
        """Number of frames per camera whose pixels become Gaussians, and number of such cameras (None: all)."""
        return 0, None

    def build(self, shape: TokenShape) -> Head:
        """Build the module, an ``nn.Module``. UserError where settings do not fit each other."""
        ...

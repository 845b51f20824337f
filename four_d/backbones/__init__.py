"""Backbones: ``(Clip) -> Tokens``. Adding one is one new file, and its config in the union below."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Protocol, runtime_checkable

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.types import Clip, Tokens

BackboneConfig = AlternatingConfig | SpacetimeConfig
"""All backbones there are; the config's ``kind`` says which."""


@runtime_checkable
class Backbone(Protocol):
    """What `model.FourD` asks of a backbone (which is also an ``nn.Module``)."""

    token_width: int
    """Channels of the token maps it gives."""
    rounds: int
    """How many token maps it could give."""
    patch_size: int

    @property
    def queried(self) -> bool:
        """Whether its tokens depend on the query time: then on the first of the clip's only."""
        ...

    @property
    def takes(self) -> tuple[str, ...]:
        """The hints it takes: of intrinsics, poses, depth, masks."""
        ...

    def keep(self, rounds: Iterable[int]) -> None:
        """Give the token maps of these rounds from now on, and no others."""
        ...

    def at_step(self, step: int) -> None:
        """Set what follows a schedule for a training step."""
        ...

    def __call__(self, clip: Clip) -> Tokens:
        """UserError if the images' sides are not multiples of `patch_size`."""
        ...

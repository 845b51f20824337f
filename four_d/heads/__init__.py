"""Heads: ``(Tokens, Clip) -> Prediction`` with only their own fields set. Adding one: a file, and its config below."""

from __future__ import annotations

from typing import Protocol, runtime_checkable

from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.heads.track import TrackHeadConfig
from four_d.types import Clip, Prediction, Tokens

HeadConfig = CameraHeadConfig | DenseHeadConfig | DynamicHeadConfig | GaussianHeadConfig | TrackHeadConfig
"""All heads there are; the config's ``kind`` says which."""


@runtime_checkable
class Head(Protocol):
    """What `model.FourD` asks of a head (which is also an ``nn.Module``)."""

    rounds: tuple[int, ...]
    """Rounds of the backbone whose token maps it reads."""
    queried: bool
    """Whether it answers a query time: the first of the clip's."""

    def __call__(self, tokens: Tokens, clip: Clip) -> Prediction:
        """Only this head's fields are set. Of ``clip`` it may read what a model may see."""
        ...

"""Backbones: ``(Clip) -> Tokens``. Adding one is one new file, and its config in the union below (or `extend`)."""

from __future__ import annotations

from typing import Annotated

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.extension import OneOf
from four_d.parts import BackboneSpec

BackboneConfig = Annotated[BackboneSpec, OneOf(AlternatingConfig, SpacetimeConfig)]
"""Config of any backbone, chosen by its ``kind``."""

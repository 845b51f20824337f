"""Flags of data make, in a module of their own: it imports the generator, so only the verb imports it."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

from data_prep.synthetic import WorldSettings
from four_d.cli import values
from four_d.cli.flags import Form


@dataclass(frozen=True, kw_only=True)
class Make:
    """Flags of data make."""

    out: Annotated[Path, Form(positional=True, metavar="OUT")]
    """Folder of the shards and their manifest."""
    shards: Annotated[range, Form(parse=values.index_range, metavar="A:B")] = range(1)
    """Range of shards to make, as 0:64."""
    seed: int = 0
    """Seed of all shards: equal seeds give equal worlds, however many processes make them."""
    workers: int = 1
    """Number of processes."""
    clips_per_shard: int = 16
    """Number of clips, a world each, in one shard."""
    size: Annotated[tuple[int, int], Form(parse=values.size, metavar="WxH", separator="x")] = (128, 128)
    """Image size, as 128 or 160x120."""
    world: WorldSettings = field(default_factory=WorldSettings)
    """Settings of the worlds."""
    held_out: bool = False
    """Make worlds with textures and shapes that training data never has."""

"""Data sets of a run: their configs, and their clips by number, with corrupt ones replaced and reported."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass

from four_d.data.contract import RawClip, truths
from four_d.data.crops import CropRule
from four_d.data.manifest import Contents, SampleIndex, ShardInfo
from four_d.data.order import Window
from four_d.data.remote import THREADS, CacheConfig, FetchError
from four_d.data.renders import RenderReader, RendersConfig
from four_d.data.shards import CorruptSample, ShardReader, open_shards
from four_d.errors import UserError
from four_d.types import Clip

MAX_REPLACEMENTS = 100
"""Consecutive corrupt samples after which loading fails."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set: the folder of its manifest, and its weight in sampling."""

    path: str
    """Folder of shards with its manifest, as ``four-d data make`` writes it, or the address of one: ``http(s)://…``,
    ``s3://…``."""
    weight: float = 1.0
    """Share of the examples that come from here, relative to the other sources' weights; above 0. Validation reads
    every set alike."""

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError(f"weight is {self.weight}; choose a positive number or remove the source")

    def open(self, cache: CacheConfig | None = None, kept: int | None = None) -> ShardReader:
        """Open the shards. UserError if one of a folder is missing or of the wrong size, or an address does not answer.

        Files from an address are kept in ``cache``, the last ``kept`` of its sidecars in memory (None: all).
        """
        return open_shards(self.path, cache, kept)


AnySourceConfig = SourceConfig | RendersConfig
"""Config of any source; without a ``kind`` shards."""
Reader = ShardReader | RenderReader
"""Open source: its ``samples``, and ``read``, which gives frames of one of them as a `RawClip`."""


class Sources:
    """Open data sets of a run, from which examples are made. Corrupt samples are replaced and reported."""

    def __init__(
        self, config: Mapping[str, AnySourceConfig], cache: CacheConfig | None = None, kept: int | None = None
    ) -> None:
        self.names = list(config)
        self.readers: list[Reader] = [source.open(cache, kept) for source in config.values()]
        self.weights = [source.weight for source in config.values()]
        for source, reader in zip(config.values(), self.readers):
            if not len(reader):
                raise UserError(f"{source.path}: the manifest lists no clips")

    def fingerprint(self, window: Window = "all") -> str:
        """Hash of the sources' contents: equal where the stream is equal. In windows it takes no sidecar."""
        if window == "all":
            content = [(s.shard, s.key, s.frames) for reader in self.readers for s in reader.samples]
        else:
            content = [(info.shard, info.clips, info.sha256) for reader in self.readers for info in reader.shards]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def _kinds(self) -> Iterator[tuple[str, list[tuple[ShardInfo, Contents]]]]:
        """Each source's name and kinds of clips, shard by shard."""
        for name, reader in zip(self.names, self.readers, strict=True):
            yield name, [(info, kind) for info in reader.shards for kind in info.contents]

    def having(self, needs: Collection[str]) -> dict[str, float]:
        """Fraction of each source's clips that have every truth in ``needs`` (`contract.truths`)."""
        shares = dict[str, float]()
        for name, kinds in self._kinds():
            fit = sum(kind.clips for _, kind in kinds if truths(kind.modalities).issuperset(needs))
            shares[name] = fit / sum(kind.clips for _, kind in kinds)
        return shares

    def of_one_camera(self) -> list[str]:
        """Sources without any clip of several cameras."""
        return [name for name, kinds in self._kinds() if not any(kind.cameras > 1 for _, kind in kinds)]

    def check_times(self, least: int) -> None:
        """Raise UserError if a camera of some clip has fewer frames than a model needs distinct times."""
        for name, kinds in self._kinds():
            short = [(info, kind) for info, kind in kinds if kind.times < least]
            if short:
                raise UserError(
                    f"source {name}: {sum(kind.clips for _, kind in short)} of {sum(kind.clips for _, kind in kinds)} "
                    f"clips have fewer than the {least} times that the model's gaussian head moves to (one in "
                    f"{short[0][0].shard} has {short[0][1].times}); leave those clips out, or "
                    f"lower model.heads.gaussian.frames"
                )

    def clip(
        self,
        source: int,
        index: int,
        choose: Callable[[SampleIndex], tuple[list[int], CropRule]],
        make: Callable[[RawClip], Clip],
    ) -> tuple[Clip, str, list[str]]:
        """Result of ``make`` for the chosen frames of a clip, cropped; its key; and a line for each bad clip skipped.

        A clip that cannot be read or made is replaced by the next one of its source.
        """
        reader, skipped = self.readers[source], list[str]()
        for attempt in range(min(len(reader), MAX_REPLACEMENTS)):
            number = (index + attempt) % len(reader)
            sample = reader.samples[number]
            try:
                frames, rule = choose(sample)
                return make(reader.read(number, frames, rule=rule)), sample.key, skipped
            except CorruptSample as error:
                skipped.append(str(error))
            except FetchError:  # of the network or the server, not of this clip
                raise
            except UserError as error:
                skipped.append(f"{sample.shard}: sample {sample.key}: {error}")
        raise UserError(f"{len(skipped)} consecutive clips cannot be used; the last: {skipped[-1]}")

    def check_room(self, cache: CacheConfig, window: Window, nodes: int) -> None:
        """Raise UserError if the cache does not hold what one of ``nodes`` machines needs at a time of what is remote.

        That is its part of two windows, and what is being fetched.
        """
        need = 0
        for reader in self.readers:
            if isinstance(reader, ShardReader) and reader.remote:
                sizes = sorted(info.bytes for info in reader.shards)
                count = len(sizes) if window == "all" else 2 * (-(-window // nodes) + 1) + THREADS
                need += sum(sizes[-count:])
        if need > cache.size_gb * 1e9:
            remedy = "set data.shuffle_shards=16, for example" if window == "all" else "lower data.shuffle_shards"
            raise UserError(
                f"data.cache.size_gb is {cache.size_gb:g}, and shuffling within {window} shards takes "
                f"{need / 1e9:.3g} GB of local copies; raise it, or {remedy}"
            )

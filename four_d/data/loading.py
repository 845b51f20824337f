"""What every training step sees, as a pure function of (seed, step, manifests): resumable, whatever reads it.

The stream is infinite and belongs to the run, not to its processes: rank r of W takes the examples r, r + W, … of each
batch, so a step sees the same examples on one process or on many. The place of a run in its stream is one number, the
step; an exact resume needs no other state.
"""

from __future__ import annotations

import dataclasses
import hashlib
import itertools
import signal
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from torch.utils.data import DataLoader, Dataset, Sampler

from four_d.data.augment import AugmentConfig, augment, crop
from four_d.data.contract import RawClip
from four_d.data.motion import choose_times, with_motion
from four_d.data.sampling import (
    HintShares,
    Normalisation,
    SamplingConfig,
    choose_frames,
    collate,
    normalise,
    to_clip,
    to_example,
)
from four_d.data.shards import CorruptSample, SampleIndex, ShardReader
from four_d.data.views import ViewsConfig, choose_references, choose_views, split
from four_d.errors import UserError
from four_d.types import Clip, Example, map_tensors

BLOCK = 4096
"""Draws that are made at a time."""
MAX_REPLACEMENTS = 100
"""Corrupt samples in a row after which a source is given up."""

_BATCHES, _SOURCES, _ORDER, _EXAMPLE = range(4)
"""Independent random streams of one seed."""


@dataclass(frozen=True, kw_only=True)
class SourceConfig:
    """One data set: the folder of its manifest, and how often it is drawn relative to the others."""

    path: str
    weight: float = 1.0

    def __post_init__(self) -> None:
        if self.weight <= 0:
            raise UserError(f"weight is {self.weight}; choose a positive number or remove the source")


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """What is trained on, in which batches."""

    sources: dict[str, SourceConfig]
    validation: dict[str, SourceConfig] = field(default_factory=dict[str, SourceConfig])
    """Held-out data sets; none = no validation."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    image_size: tuple[int, int] = (128, 128)
    """Rows and columns."""
    images_per_batch: int = 48
    """A batch holds images_per_batch // frames clips; all its clips have the same number of frames."""
    clips_multiple: int = 1
    """A batch holds a multiple of so many clips: the most processes that the run can be spread over."""
    validation_clips: int = 16
    """Clips of the fixed validation list, spread evenly over each held-out data set."""
    validation_frames: int = 8
    surface: bool = False
    """Give the losses what every pixel saw as correspondence too: those of tracks need it."""
    query_times: int = 0
    """Times of an example's frames to which the model is asked for motion, and the losses know it."""
    views: ViewsConfig | None = None
    """Frames that pictures of Gaussians are compared with. None: there are no pictures."""
    references: int = 0
    """Frames far away in time that every example has besides, only to be looked at."""
    normalisation: Normalisation = "mean_distance"
    hints: HintShares = field(default_factory=HintShares)
    """What the model is given beforehand, and how often."""
    workers: int = 0
    """Loader processes per training process."""

    def __post_init__(self) -> None:
        if not self.sources:
            raise UserError("sources is empty; name at least one data set, for example {synthetic: {path: data/train}}")
        if self.images_per_batch < self.clips_multiple * self.sampling.min_frames:
            raise UserError(
                f"images_per_batch is {self.images_per_batch}, too few for clips_multiple {self.clips_multiple} "
                f"clips of sampling.min_frames {self.sampling.min_frames}"
            )
        if min(self.image_size) < 1 or self.validation_clips < 1 or self.validation_frames < 1:
            raise UserError("image_size, validation_clips and validation_frames must be positive")
        if self.workers < 0 or self.query_times < 0 or self.references < 0:
            raise UserError("workers, query_times and references must be at least 0")

    def frames(self, found: SampleIndex, count: int, rng: np.random.Generator) -> list[int]:
        """Of a clip: ``count`` frames of an example, then its references, then its views."""
        times, cameras = found.times, found.camera_ids
        chosen = choose_frames(times, cameras, count, self.sampling, rng)
        references = choose_references(times, cameras, chosen, self.references, rng)
        views = [] if self.views is None else choose_views(times, cameras, chosen, self.views, rng)
        return [*chosen, *references, *views]


@dataclass(frozen=True, kw_only=True)
class Step:
    """What one process sees in one step: as many batches as gradients are accumulated over."""

    index: int
    batches: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    """One line for each corrupt sample that was replaced."""

    def pin_memory(self) -> Step:
        """For `DataLoader(pin_memory=True)`."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


class Mixture:
    """Which clip the n-th global sample is: sources by weight, each source's clips in a new random order every round.

    A pure function of its arguments; draws are cached by block.
    """

    def __init__(self, lengths: Sequence[int], weights: Sequence[float], seed: int) -> None:
        self._lengths, self._seed = list(lengths), seed
        self._shares = np.asarray(weights, dtype=np.float64) / np.sum(weights)
        self._counts = [np.zeros(len(lengths), dtype=np.int64)]
        self._orders: dict[int, tuple[int, NDArray[np.int64]]] = {}
        self._last: tuple[int, NDArray[np.int64]] | None = None

    def pick(self, number: int) -> tuple[int, int]:
        """(source, index within the source) of a global sample."""
        block, place = divmod(number, BLOCK)
        draws = self._draws(block)
        source = int(draws[place])
        before = int(self._before(block)[source] + (draws[:place] == source).sum())
        turn, position = divmod(before, self._lengths[source])
        return source, int(self._order(source, turn)[position])

    def _draws(self, block: int) -> NDArray[np.int64]:
        if self._last is None or self._last[0] != block:
            rng = np.random.default_rng((self._seed, _SOURCES, block))
            self._last = block, rng.choice(len(self._shares), size=BLOCK, p=self._shares)
        return self._last[1]

    def _before(self, block: int) -> NDArray[np.int64]:
        """How often each source was drawn in all earlier blocks."""
        while len(self._counts) <= block:
            draws = self._draws(len(self._counts) - 1)
            self._counts.append(self._counts[-1] + np.bincount(draws, minlength=len(self._shares)))
        self._draws(block)
        return self._counts[block]

    def _order(self, source: int, turn: int) -> NDArray[np.int64]:
        if self._orders.get(source, (-1,))[0] != turn:
            rng = np.random.default_rng((self._seed, _ORDER, source, turn))
            self._orders[source] = turn, rng.permutation(self._lengths[source])
        return self._orders[source][1]


class Batches:
    """How many frames and clips the m-th global batch has, and which global sample is its first. Pure, cached."""

    def __init__(self, config: DataConfig, seed: int) -> None:
        most = min(config.sampling.max_frames, config.images_per_batch // config.clips_multiple)
        self._range = config.sampling.min_frames, most
        self._images, self._multiple, self._seed = config.images_per_batch, config.clips_multiple, seed
        self._firsts = [0]
        self._last: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def get(self, batch: int) -> tuple[int, int, int]:
        """(frames, clips, first global sample)."""
        block, place = divmod(batch, BLOCK)
        while len(self._firsts) <= block:
            self._firsts.append(self._firsts[-1] + int(self._draw(len(self._firsts) - 1)[1].sum()))
        frames, clips = self._draw(block)
        return int(frames[place]), int(clips[place]), self._firsts[block] + int(clips[:place].sum())

    def _draw(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._last is None or self._last[0] != block:
            rng = np.random.default_rng((self._seed, _BATCHES, block))
            frames = rng.integers(self._range[0], self._range[1] + 1, size=BLOCK)
            clips = self._images // frames // self._multiple * self._multiple
            self._last = block, frames, clips
        return self._last[1:]


class Sources:
    """The open data sets of a run, and a clip of them made into an example. Corrupt samples are replaced and named."""

    def __init__(self, config: dict[str, SourceConfig]) -> None:
        self.names = list(config)
        self.readers = [ShardReader(Path(source.path)) for source in config.values()]
        self.weights = [source.weight for source in config.values()]
        for source, reader in zip(config.values(), self.readers):
            if not len(reader):
                raise UserError(f"{source.path}: the manifest lists no clips")

    def fingerprint(self) -> str:
        """A hash of what the manifests list: equal where the stream is equal."""
        content = [(s.shard, s.key, s.frames) for reader in self.readers for s in reader.samples]
        return hashlib.sha256(repr(content).encode()).hexdigest()

    def check_times(self, least: int) -> None:
        """UserError if a camera of some clip has fewer frames than a model needs times, which repeating cannot mend."""
        for name, reader in zip(self.names, self.readers, strict=True):
            counts = {s.key: min(Counter(s.camera_ids).values()) for s in reader.samples}
            short = [key for key, count in counts.items() if count < least]
            if short:
                raise UserError(
                    f"source {name}: {len(short)} of {len(counts)} clips have fewer than the {least} times that the "
                    f"model's gaussian head moves to ({short[0]} has {counts[short[0]]}); leave those clips out, or "
                    f"train a model of fewer times (model.heads.gaussian.frames)"
                )

    def clip(
        self,
        source: int,
        index: int,
        choose: Callable[[SampleIndex], list[int]],
        make: Callable[[RawClip], Clip],
    ) -> tuple[Clip, str, list[str]]:
        """What ``make`` makes of the chosen frames of a clip, its key, and a line for each bad clip passed over.

        A clip that cannot be read or made gives way to the next one of its source.
        """
        reader, skipped = self.readers[source], list[str]()
        for attempt in range(min(len(reader), MAX_REPLACEMENTS)):
            number = (index + attempt) % len(reader)
            sample = reader.samples[number]
            try:
                return make(reader.read(number, choose(sample))), sample.key, skipped
            except CorruptSample as error:
                skipped.append(str(error))
            except UserError as error:
                skipped.append(f"{sample.shard}: sample {sample.key}: {error}")
        raise UserError(f"{len(skipped)} clips in a row cannot be used, the last: {skipped[-1]}")


class TrainingSteps(Dataset[Step]):
    """Item n is this rank's part of step n. There is no last one."""

    def __init__(
        self, config: DataConfig, seed: int, *, accumulate: int = 1, rank: int = 0, world_size: int = 1
    ) -> None:
        if config.clips_multiple % world_size:
            raise UserError(
                f"{world_size} processes cannot share batches of clips in multiples of {config.clips_multiple}; "
                f"set data.clips_multiple={world_size} (or a multiple of it)"
            )
        self._config, self._seed, self._accumulate = config, seed, accumulate
        self._rank, self._world_size = rank, world_size
        self.sources = Sources(config.sources)
        self._mixture = Mixture([len(reader) for reader in self.sources.readers], self.sources.weights, seed)
        self._batches = Batches(config, seed)

    def __getitem__(self, index: int) -> Step:
        skipped: list[str] = []
        numbers = range(index * self._accumulate, (index + 1) * self._accumulate)
        batches = tuple(self._batch(number, skipped) for number in numbers)
        return Step(index=index, batches=batches, skipped=tuple(skipped))

    def _batch(self, number: int, skipped: list[str]) -> Example:
        frames, clips, first = self._batches.get(number)
        mine = range(first + self._rank, first + clips, self._world_size)
        return collate([self._example(sample, frames, skipped) for sample in mine])

    def _example(self, sample: int, frames: int, skipped: list[str]) -> Example:
        config, rng = self._config, np.random.default_rng((self._seed, _EXAMPLE, sample))
        source, index = self._mixture.pick(sample)
        clip, key, passed = self.sources.clip(
            source,
            index,
            lambda found: config.frames(found, frames, rng),
            lambda raw: prepared(raw, config, rng, lambda clip: augment(clip, config.image_size, config.augment, rng)),
        )
        skipped += passed
        return to_example(clip, key, config.hints.draw(rng))


class ValidationClips(Dataset[Step]):
    """A fixed list of single clips, no augmentation. Each rank has equally many: the last may be repeats.

    ``index`` of a step is the clip's place in the list; a place beyond the list's ``total`` marks a repeat.
    """

    def __init__(self, config: DataConfig, *, rank: int = 0, world_size: int = 1) -> None:
        self._config, self._rank, self._world_size = config, rank, world_size
        self.sources = Sources(config.validation)
        self._list = [
            (source, int(index))
            for source, reader in enumerate(self.sources.readers)
            for index in np.linspace(0, len(reader) - 1, min(config.validation_clips, len(reader))).round()
        ]
        self.total = len(self._list)

    def __len__(self) -> int:
        return -(-self.total // self._world_size)

    def __getitem__(self, index: int) -> Step:
        if not 0 <= index < len(self):
            raise IndexError(index)
        place = index * self._world_size + self._rank
        source, number = self._list[place % self.total]
        rng = np.random.default_rng((_EXAMPLE, place % self.total))
        config = self._config
        clip, key, skipped = self.sources.clip(
            source,
            number,
            lambda found: config.frames(found, config.validation_frames, rng),
            lambda raw: prepared(raw, config, rng, lambda clip: fit(clip, config.image_size)),
        )
        example = to_example(clip, key, config.hints.most())
        return Step(index=place, batches=(collate([example]),), skipped=tuple(skipped))


def prepared(raw: RawClip, config: DataConfig, rng: np.random.Generator, change: Callable[[Clip], Clip]) -> Clip:
    """A stored clip as the losses see it: ``change`` crops and augments, then come units and motion."""
    clip = change(to_clip(raw, with_surface=config.surface or config.query_times > 0))
    clip = normalise(
        split(clip, config.references, 0 if config.views is None else config.views.count), config.normalisation
    )
    if config.query_times:
        rendered = clip.times if clip.references is None else clip.times[~clip.references]
        clip = with_motion(clip, choose_times(rendered, config.query_times, rng))
    return clip if config.surface else dataclasses.replace(clip, surface=None)


def fit(clip: Clip, size: tuple[int, int]) -> Clip:
    """The clip at ``size`` without any randomness: the largest window around the principal point."""
    return crop(clip, size, 1.0)


class FromStep(Sampler[int]):
    """Numbers of steps from ``start`` on, without end."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


def loader(data: Dataset[Step], sampler: Iterable[int], workers: int, *, pin_memory: bool) -> DataLoader[Step]:
    """A loader that gives whole items in order. Its workers leave signals to the training process."""
    return DataLoader(
        data,
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        worker_init_fn=_quiet_worker if workers else None,
    )


def _quiet_worker(_: int) -> None:
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGUSR2):
        signal.signal(number, signal.SIG_IGN)

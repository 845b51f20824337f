"""Examples of every training step, a pure function of (seed, step, manifests) and so exactly resumable.

The stream is infinite and belongs to the run, not to its processes: rank r of W takes the examples r, r + W, … of each
batch, so a step sees the same examples on one process or on many. The position of a run in its stream is one number,
the step; an exact resume needs no other state.
"""

from __future__ import annotations

import dataclasses
import itertools
import multiprocessing
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from typing import cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset, Sampler

from four_d.abilities import Normalisation, World
from four_d.data.augment import AugmentConfig, augment
from four_d.data.contract import RawClip
from four_d.data.crops import CropRule
from four_d.data.manifest import SampleIndex
from four_d.data.motion import choose_times, key_frames, with_motion
from four_d.data.order import ASPECT, BATCHES, BLOCK, EXAMPLE, Mixture, Window
from four_d.data.remote import CacheConfig
from four_d.data.reversal import reverse
from four_d.data.sampling import (
    HintProbabilities,
    SamplingConfig,
    choose_frames,
    collate,
    normalise,
    to_clip,
    to_example,
)
from four_d.data.sources import AnySourceConfig, Sources
from four_d.data.views import ViewsConfig, choose_references, choose_views, split
from four_d.errors import UserError
from four_d.types import Clip, Example, map_tensors
from four_d.workers import context, describe_exit, ignore_signals


@dataclass(frozen=True, kw_only=True)
class DataConfig:
    """Training data and its batches."""

    sources: dict[str, AnySourceConfig]
    """Data sets to train on, under names of your choice: folders of shards, or ``kind: renders``, an object."""
    validation: dict[str, AnySourceConfig] = field(default_factory=dict[str, AnySourceConfig])
    """Held-out data sets; none = no validation."""
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    """Choice of an example's frames and cameras among a clip's."""
    augment: AugmentConfig = field(default_factory=AugmentConfig)
    """Random crops, mirroring and changes of colour of training clips; validation has none."""
    image_size: tuple[int, int] = (128, 128)
    """Rows and columns."""
    aspect: tuple[float, float] | None = None
    """Range of a training batch's aspect ratio (rows over columns), drawn uniformly; images fit into ``image_size``,
    and fill one side of it. None: always ``image_size``, as in validation."""
    images_per_batch: int = 48
    """Images per batch: it holds images_per_batch // frames clips, all with the same number of frames."""
    clips_multiple: int = 1
    """Divisor of the number of clips in a batch: the most processes that the run can be spread over."""
    shuffle_shards: Window = "all"
    """Number of shards of a source within which its clips are shuffled: each pass takes the shards in a new random
    order, this many at a time, and each process reads its own part of them. ``all``: among all clips."""
    validation_clips: int = 16
    """Clips of the fixed validation list, spread evenly over each held-out data set."""
    validation_frames: int = 8
    """Frames of each validation clip; for models of Gaussians, as many as they have times."""
    surface: bool = False
    """Load the surface correspondence of every pixel for the losses: those of tracks need it."""
    query_times: int = 0
    """Number of query times of motion per example, drawn from the times of its frames."""
    motion_every: int | None = None
    """Stride, in a camera's frames in time order, of frames with true motion: the key frames of a spacetime backbone of
    this ``stride``, which are all that its losses read. None: all frames."""
    views: ViewsConfig | None = None
    """Frames that renders are compared with. None: no renders."""
    references: int = 0
    """Number of additional reference frames per example, far away in time, as context only."""
    normalisation: Normalisation = "mean_distance"
    """Unit of length that each example is brought to. ``mean_distance``, VGGT's: the mean distance of points to the
    first camera is 1; ``disparity``, DGS-LRM's: a fifth of the pixels has a depth above ½, for models of given
    poses; ``stored``: the source's own."""
    world: World = "first_camera"
    """Coordinates of each example: its first frame's camera, or those of the source (``stored``), for models of one
    object."""
    hints: HintProbabilities = field(default_factory=HintProbabilities)
    """Probability of each ground-truth hint to the model."""
    workers: int = 0
    """Loader processes per training process."""
    cache: CacheConfig = field(default_factory=CacheConfig)
    """Local copies of what comes from an address."""

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
        if self.aspect is not None and not 0 < self.aspect[0] <= self.aspect[1]:
            raise UserError(f"aspect is {list(self.aspect)}; give rows over columns, 0 < least ≤ most, or null")
        if self.motion_every is not None and self.motion_every < 1:
            raise UserError("motion_every must be at least 1, or null")
        if self.world == "stored" and self.augment.mirror_share:
            raise UserError("augment.mirror_share mirrors the world, which is the source's; set augment.mirror_share=0")
        if self.shuffle_shards != "all" and self.shuffle_shards < 1:
            raise UserError(f"shuffle_shards is {self.shuffle_shards}; choose at least 1, or all")
        if self.workers < 0 or self.query_times < 0 or self.references < 0:
            raise UserError("workers, query_times and references must be at least 0")

    @property
    def without_effect(self) -> dict[str, str]:
        """Settings that nothing reads → why."""
        unread = {} if self.query_times else {"motion_every": "where query_times is 0"}
        if self.views is not None and self.augment.per_frame_share:  # 0 is what holds then
            unread["augment.per_frame_share"] = "where views is set: renders are compared with frames of equal colours"
        every = "on validation, which reads every set alike"
        return {**unread, **{f"validation.{name}.weight": every for name in self.validation}}

    def frames(self, sample: SampleIndex, count: int, rng: np.random.Generator) -> list[int]:
        """Choose frames of a clip: ``count`` of an example, then its references, then its views."""
        times, cameras = sample.times, sample.camera_ids
        chosen = choose_frames(times, cameras, count, self.sampling, rng)
        references = choose_references(times, cameras, chosen, self.references, rng)
        views = [] if self.views is None else choose_views(times, cameras, chosen, self.views, rng)
        return [*chosen, *references, *views]


@dataclass(frozen=True, kw_only=True)
class Step:
    """Data of one process in one step: one batch per gradient accumulation."""

    index: int
    batches: tuple[Example, ...]
    skipped: tuple[str, ...] = ()
    """One line for each corrupt sample that was replaced."""
    repeat: bool = False
    """True for padding that only gives all processes equally many steps."""

    def pin_memory(self) -> Step:
        """Pin the memory of all batches, for `DataLoader(pin_memory=True)`."""
        return map_tensors(self, lambda tensor: tensor.pin_memory())


class Batches:
    """Shape of the m-th global batch: frames, clips, first global sample and image size (multiples of ``patch_size``).

    Pure, cached.
    """

    def __init__(self, config: DataConfig, seed: int, patch_size: int = 1) -> None:
        self._size, self._aspect, self._patch_size = config.image_size, config.aspect, patch_size
        max_frames = min(config.sampling.max_frames, config.images_per_batch // config.clips_multiple)
        self._range = config.sampling.min_frames, max_frames
        self._images, self._multiple, self._seed = config.images_per_batch, config.clips_multiple, seed
        self._firsts = [0]
        self._last: tuple[int, NDArray[np.int64], NDArray[np.int64]] | None = None

    def get(self, batch: int) -> tuple[int, int, int]:
        """Return (frames, clips, first global sample)."""
        block, position = divmod(batch, BLOCK)
        while len(self._firsts) <= block:
            self._firsts.append(self._firsts[-1] + int(self._draw(len(self._firsts) - 1)[1].sum()))
        frames, clips = self._draw(block)
        return int(frames[position]), int(clips[position]), self._firsts[block] + int(clips[:position].sum())

    def size(self, batch: int) -> tuple[int, int]:
        """Rows and columns."""
        if self._aspect is None:
            return self._size
        aspect = np.random.default_rng((self._seed, ASPECT, batch)).uniform(*self._aspect)
        return shape(self._size, float(aspect), self._patch_size)

    def _draw(self, block: int) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
        if self._last is None or self._last[0] != block:
            rng = np.random.default_rng((self._seed, BATCHES, block))
            frames = rng.integers(self._range[0], self._range[1] + 1, size=BLOCK)
            clips = self._images // frames // self._multiple * self._multiple
            self._last = block, frames, clips
        return self._last[1:]


def shape(size: tuple[int, int], aspect: float, multiple: int) -> tuple[int, int]:
    """Rows and columns of the largest images of ``aspect`` (rows over columns) that fit into ``size``.

    The shorter one is rounded down to a multiple, as in VGGT's training (at least one).
    """
    rows, columns = size
    if rows > columns * aspect:
        return max(int(columns * aspect) // multiple, 1) * multiple, columns
    return rows, max(int(rows / aspect) // multiple, 1) * multiple if rows < columns * aspect else columns


def largest_size(config: DataConfig, multiple: int) -> tuple[int, int]:
    """Rows and columns of the largest images of training batches, whose aspect may be drawn."""
    if config.aspect is None:
        return config.image_size
    rows, columns = config.image_size
    least, most = config.aspect
    return shape(config.image_size, min(max(rows / columns, least), most), multiple)


class TrainingSteps(Dataset[Step]):
    """Endless data set whose item n is this rank's part of step n. ``patch_size`` is the model's (`Batches`)."""

    def __init__(
        self,
        config: DataConfig,
        seed: int,
        *,
        accumulate: int = 1,
        rank: int = 0,
        world_size: int = 1,
        nodes: int = 1,
        patch_size: int = 1,
    ) -> None:
        if config.clips_multiple % world_size:
            raise UserError(
                f"{world_size} processes cannot share batches of clips in multiples of {config.clips_multiple}; "
                f"set data.clips_multiple={world_size} (or a multiple of it)"
            )
        self._config, self._seed, self._accumulate = config, seed, accumulate
        self._rank, self._world_size = rank, world_size
        window = config.shuffle_shards
        self.sources = Sources(config.sources, config.cache, None if window == "all" else 2 * window)
        self.sources.check_room(config.cache, window, nodes)
        shards = [[info.clips for info in reader.shards] for reader in self.sources.readers]
        self._mixture = Mixture(shards, self.sources.weights, seed, window=window, lanes=config.clips_multiple)
        self._parts: dict[tuple[int, int], int] = {}
        self._batches = Batches(config, seed, patch_size)

    def __getitem__(self, index: int) -> Step:
        skipped: list[str] = []
        numbers = range(index * self._accumulate, (index + 1) * self._accumulate)
        batches = tuple(self._batch(number, skipped) for number in numbers)
        return Step(index=index, batches=batches, skipped=tuple(skipped))

    def _batch(self, number: int, skipped: list[str]) -> Example:
        frames, clips, first = self._batches.get(number)
        own_samples = range(first + self._rank, first + clips, self._world_size)
        size = self._batches.size(number)
        alone = self._config.views is None and not self._config.references  # else a clip has more frames
        images = torch.empty(len(own_samples), frames, 3, *size) if alone else None
        places = [None] * len(own_samples) if images is None else images
        examples = [
            self._example(sample, frames, size, skipped, place)
            for sample, place in zip(own_samples, places, strict=True)
        ]
        return collate(examples, images)

    def _example(
        self, sample: int, frames: int, size: tuple[int, int], skipped: list[str], into: Tensor | None
    ) -> Example:
        config, rng = self._config, np.random.default_rng((self._seed, EXAMPLE, sample))
        source, index = self._mixture.pick(sample)
        self._expect(sample)

        def change(clip: Clip) -> Clip:
            return augment(clip, config.augment, rng, alike=config.views is not None)

        clip, key, replaced = self.sources.clip(
            source,
            index,
            lambda index_entry: (config.frames(index_entry, frames, rng), config.augment.crop_rule(size, rng)),
            lambda raw: prepared(turned(raw, frames, config.augment, rng), config, rng, change, into),
        )
        skipped += replaced
        return to_example(clip, key, config.hints.draw(rng))

    def _expect(self, sample: int) -> None:
        """Have the shards fetched ahead when an example is the first of its lane's part of a group."""
        source, part = self._mixture.part(sample)
        if self._parts.get((source, part.lane)) != part.number:
            self._parts[source, part.lane] = part.number
            self.sources.readers[source].expect(part.shards, part.following)


class ValidationClips(Dataset[Step]):
    """Fixed list of single clips without augmentation, equally many per rank: the last may be repeats.

    ``index`` of a step is the clip's place in the list.
    """

    def __init__(self, config: DataConfig, *, rank: int = 0, world_size: int = 1) -> None:
        self._config, self._rank, self._world_size = config, rank, world_size
        self.sources = Sources(config.validation, config.cache, config.validation_clips)
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
        position = index * self._world_size + self._rank
        source, number = self._list[position % self.total]
        rng = np.random.default_rng((EXAMPLE, position % self.total))
        config, rule = self._config, CropRule(size=self._config.image_size)
        clip, key, skipped = self.sources.clip(
            source,
            number,
            lambda index_entry: (config.frames(index_entry, config.validation_frames, rng), rule),
            lambda raw: prepared(raw, config, rng),
        )
        example = to_example(clip, key, config.hints.likely())
        repeat = position >= self.total
        return Step(index=position, batches=(collate([example]),), skipped=tuple(skipped), repeat=repeat)


def turned(raw: RawClip, count: int, config: AugmentConfig, rng: np.random.Generator) -> RawClip:
    """Show some of the clips backwards; ``count`` frames are the example's own. Draws nothing where none are."""
    return reverse(raw, count) if config.reverse_share and rng.random() < config.reverse_share else raw


def prepared(
    raw: RawClip,
    config: DataConfig,
    rng: np.random.Generator,
    change: Callable[[Clip], Clip] = lambda clip: clip,
    into: Tensor | None = None,
) -> Clip:
    """Prepare a clip, cropped as it was read, for the losses: ``change`` augments it; then units and motion.

    ``into``: memory for its images.
    """
    with_surface = config.surface or config.query_times > 0
    clip = change(to_clip(raw, with_surface=with_surface, world=config.world, into=into))
    clip = normalise(
        split(clip, config.references, 0 if config.views is None else config.views.count), config.normalisation
    )
    if config.query_times:
        rendered = clip.times if clip.references is None else clip.times[~clip.references]
        frames = None if config.motion_every is None else key_frames(clip, config.motion_every)
        clip = with_motion(clip, choose_times(rendered, config.query_times, rng), frames)
    return clip if config.surface else dataclasses.replace(clip, surface=None)


class FromStep(Sampler[int]):
    """Endless sampler of step numbers from ``start`` on."""

    def __init__(self, start: int) -> None:
        self.start = start

    def __iter__(self) -> Iterator[int]:
        return itertools.count(self.start)


class Loader(DataLoader[Step]):
    """Loader of whole items in order, in this process or by workers. Made by `loader`.

    An item's UserError is raised unchanged; a dead worker is a UserError that names it.
    """

    def __iter__(self) -> Iterator[Step]:  # pyright: ignore[reportIncompatibleMethodOverride]  # which names a private type
        """Start the workers if there are none yet, then yield items."""
        # DataLoader keeps its workers private: those that appear while it starts are its own
        earlier = set(multiprocessing.active_children())
        items = super().__iter__()
        self._processes = [*self._processes, *(set(multiprocessing.active_children()) - earlier)]
        return self._items(cast(Iterator[Step | UserError], items))

    _processes: Sequence[BaseProcess] = ()
    waited = 0.0
    """Seconds that whoever iterates has waited for items, all iterations together."""

    def _timed(self, items: Iterator[Step | UserError]) -> Iterator[Step | UserError]:
        while True:
            began = time.monotonic()
            item = next(items, None)
            self.waited += time.monotonic() - began
            if item is None:
                return
            yield item

    def _items(self, items: Iterator[Step | UserError]) -> Iterator[Step]:
        try:
            for item in self._timed(items):
                if isinstance(item, UserError):
                    raise item
                yield item
        except (RuntimeError, OSError, EOFError) as error:  # the latter two: it died while it handed its batch over
            if not isinstance(error, RuntimeError):
                ended = wait([process.sentinel for process in self._processes], timeout=10)
                for process in self._processes:
                    if process.sentinel in ended:
                        process.join(10)  # its pipes close a moment before it has an exit code
            for process in self._processes:
                if process.exitcode:
                    raise UserError(
                        f"data loader worker {process.pid} {describe_exit(process.exitcode)}; lower "
                        f"data.workers (now {self.num_workers}) and start again: the run resumes from its last "
                        "checkpoint"
                    ) from error
            raise


class _ErrorsAsItems(Dataset[Step | UserError]):
    """Data set that returns each UserError as an item.

    A `DataLoader` would wrap one raised in a worker in another exception with a page of traceback.
    """

    def __init__(self, data: Dataset[Step]) -> None:
        self._data = data

    def __getitem__(self, index: int) -> Step | UserError:
        try:
            return self._data[index]
        except UserError as error:
            return error


def loader(data: Dataset[Step], sampler: Iterable[int], workers: int, *, pin_memory: bool) -> Loader:
    """Make a loader of ``data`` with ``workers`` processes (0: none), which leave signals to this one."""
    return Loader(
        cast(Dataset[Step], _ErrorsAsItems(data)),
        batch_size=None,
        sampler=sampler,
        num_workers=workers,
        persistent_workers=workers > 0,
        pin_memory=pin_memory,
        multiprocessing_context=context() if workers else None,
        worker_init_fn=_init_worker if workers else None,
    )


def _init_worker(_: int) -> None:
    ignore_signals()

"""The stream is a function of seed, step and manifests; corrupt clips are replaced and named."""

from __future__ import annotations

import dataclasses
import multiprocessing
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import torch

from four_d.data.augment import NO_AUGMENT
from four_d.data.loading import (
    Batches,
    DataConfig,
    FromStep,
    Loader,
    Step,
    TrainingSteps,
    ValidationClips,
    loader,
    shape,
)
from four_d.data.order import Window
from four_d.data.sampling import SamplingConfig
from four_d.data.shards import ShardReader, finalise, write_shard
from four_d.data.sources import SourceConfig
from four_d.errors import UserError
from four_d.types import map_tensors
from tests.helpers import box_clip


def write(folder: Path, seeds: range) -> Path:
    write_shard(folder, 0, [box_clip(seed, frames=4, cameras=2, size=24) for seed in seeds])
    finalise(folder, "boxes")
    return folder


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    root = tmp_path_factory.mktemp("data")
    return write(root / "a", range(5)), write(root / "b", range(5, 8))


@pytest.fixture
def config(folders: tuple[Path, Path]) -> DataConfig:
    return DataConfig(
        sources={
            "a": SourceConfig(path=str(folders[0]), weight=3.0),
            "b": SourceConfig(path=str(folders[1]), weight=1.0),
        },
        validation={"a": SourceConfig(path=str(folders[0]))},
        sampling=SamplingConfig(min_frames=2, max_frames=4),
        image_size=(16, 16),
        images_per_batch=12,
        clips_multiple=2,
        validation_clips=3,
        validation_frames=3,
    )


def same(a: Step, b: Step) -> bool:
    """Equal to the bit."""
    if a.index != b.index or [x.key for x in a.batches] != [y.key for y in b.batches]:
        return False
    tensors: list[list[torch.Tensor]] = []
    for step in (a, b):
        found: list[torch.Tensor] = []
        map_tensors(step, lambda tensor, found=found: found.append(tensor) or tensor)
        tensors.append(found)
    return all(torch.equal(x, y) for x, y in zip(*tensors, strict=True))


def test_images_of_a_batch_share_an_aspect_that_depends_on_seed_and_step_alone(config: DataConfig) -> None:
    wide = dataclasses.replace(config, aspect=(0.3, 1.0), image_size=(40, 40))
    steps = TrainingSteps(wide, 7, accumulate=2, patch_size=8)
    parts = [TrainingSteps(wide, 7, accumulate=2, rank=rank, world_size=2, patch_size=8) for rank in range(2)]
    seen = set[tuple[int, int]]()
    for index in (3, 0, 1, 2):
        shapes = [batch.inputs.images.shape[-2:] for batch in steps[index].batches]
        assert all([b.inputs.images.shape[-2:] for b in part[index].batches] == shapes for part in parts)
        targets = steps[index].batches[0].targets
        assert targets.depth.shape[-2:] == shapes[0]
        centre = targets.cameras.intrinsics[..., :2, 2]
        assert torch.allclose(centre, torch.tensor([shapes[0][1], shapes[0][0]]) / 2)
        seen |= {(rows, columns) for rows, columns in shapes}
    assert {columns for _, columns in seen} == {40}
    assert {rows for rows, _ in seen} <= {8, 16, 24, 32, 40}
    assert len(seen) > 2
    assert ValidationClips(wide)[0].batches[0].inputs.images.shape[-2:] == (40, 40)


def test_aspects_are_even_between_their_ends_and_portraits_fill_the_other_side() -> None:
    sources = {"a": SourceConfig(path="nowhere")}
    batches = Batches(DataConfig(sources=sources, image_size=(518, 518), aspect=(0.33, 1.0)), 0, 14)
    rows, columns = np.array([batches.size(number) for number in range(600)]).T
    assert set(columns) == {518}
    assert set(rows) == set(range(168, 518, 14)), "VGGT's: 168 to 518, in multiples of 14, rounded down"
    assert abs(rows.mean() / 518 - 0.65) < 0.02
    assert shape((518, 518), 2.0, 14) == (518, 252)
    assert shape((128, 256), 0.5, 8) == (128, 256)
    assert shape((64, 64), 0.01, 8) == (8, 64)
    with pytest.raises(UserError, match=r"aspect is \[1.0, 0.5\]; give rows over columns"):
        DataConfig(sources=sources, aspect=(1.0, 0.5))


def test_batches_follow_each_other_without_a_gap(config: DataConfig) -> None:
    batches = Batches(config, seed=3)
    expected = 0
    for number in range(5000):
        frames, clips, first = batches.get(number)
        assert 2 <= frames <= 4
        assert clips == 12 // frames // 2 * 2
        assert first == expected
        expected += clips
    assert {batches.get(n)[0] for n in range(100)} == {2, 3, 4}
    assert Batches(config, seed=3).get(4500) == batches.get(4500)


@pytest.mark.parametrize("window", ["all", 1])
def test_a_step_is_the_same_whatever_was_read_before_and_whoever_reads(config: DataConfig, window: Window) -> None:
    config = dataclasses.replace(config, shuffle_shards=window)
    steps = TrainingSteps(config, 7, accumulate=2)
    later = steps[5]
    assert not same(steps[4], dataclasses.replace(later, index=4))
    assert same(TrainingSteps(config, 7, accumulate=2)[5], later)
    for workers in (0, 2) if window == 1 else (0,):
        stream = iter(loader(steps, FromStep(4), workers, pin_memory=False))
        next(stream)
        assert same(next(stream), later)
        del stream
    assert not same(TrainingSteps(config, 8, accumulate=2)[5], later)


@pytest.mark.parametrize("window", ["all", 1])
def test_ranks_share_a_batch_without_changing_it(config: DataConfig, window: Window) -> None:
    config = dataclasses.replace(config, shuffle_shards=window)
    whole = TrainingSteps(config, 7)
    parts = [TrainingSteps(config, 7, rank=rank, world_size=2) for rank in range(2)]
    for step in range(4):
        (all_of_it,) = whole[step].batches
        (first,), (second,) = (part[step].batches for part in parts)
        assert [k for pair in zip(first.key, second.key, strict=True) for k in pair] == all_of_it.key
        assert torch.equal(first.inputs.images, all_of_it.inputs.images[0::2])
        assert torch.equal(second.inputs.images, all_of_it.inputs.images[1::2])


@pytest.mark.parametrize("window", ["all", 1])
def test_a_run_that_goes_on_with_more_or_fewer_ranks_sees_the_same_examples(config: DataConfig, window: Window) -> None:
    config = dataclasses.replace(config, shuffle_shards=window, images_per_batch=16, clips_multiple=4)
    whole = TrainingSteps(config, 7)
    for step, size in enumerate((1, 4, 2)):
        ranks = [TrainingSteps(config, 7, rank=rank, world_size=size) for rank in range(size)]
        keys = [rank[step].batches[0].key for rank in ranks]
        assert [key for each in zip(*keys, strict=True) for key in each] == whole[step].batches[0].key


def test_all_clips_of_a_batch_have_equally_many_frames(config: DataConfig) -> None:
    steps = TrainingSteps(config, 0)
    shapes = [steps[n].batches[0].inputs.images.shape for n in range(12)]
    assert {shape[1] for shape in shapes} == {2, 3, 4}
    assert all(shape[0] * shape[1] <= 12 and shape[0] % 2 == 0 for shape in shapes)


def test_an_uneven_split_is_refused(config: DataConfig) -> None:
    with pytest.raises(UserError, match=r"set data\.clips_multiple=3"):
        TrainingSteps(config, 0, rank=0, world_size=3)


def test_validation_is_a_fixed_list_that_ranks_share_evenly(config: DataConfig) -> None:
    alone = ValidationClips(config)
    keys = [alone[n].batches[0].key[0] for n in range(len(alone))]
    assert keys == ["box-000000", "box-000002", "box-000004"]
    assert same(alone[1], ValidationClips(config)[1])
    ranks = [ValidationClips(config, rank=rank, world_size=2) for rank in range(2)]
    assert [len(rank) for rank in ranks] == [2, 2]
    places = [rank[n].index for n in range(2) for rank in ranks]
    assert places == [0, 1, 2, 3]
    counted = [rank[n].batches[0].key[0] for n in range(2) for rank in ranks if rank[n].index < rank.total]
    assert counted == keys
    with pytest.raises(IndexError):
        alone[3]


def damage(folder: Path, keys: list[int]) -> None:
    reader = ShardReader(folder)
    for sample in (reader.samples[i] for i in keys):
        offset, size, _ = sample.members["cameras.npy"]
        with (folder / sample.shard).open("r+b") as file:
            file.seek(offset)
            file.write(bytes(size))


def test_a_corrupt_clip_gives_way_to_the_next_and_is_named(config: DataConfig, tmp_path: Path) -> None:
    folder = write(tmp_path / "c", range(3))
    damage(folder, [1])
    broken = dataclasses.replace(
        config, sources={"c": SourceConfig(path=str(folder))}, validation={"c": SourceConfig(path=str(folder))}
    )
    steps = TrainingSteps(broken, 0)
    seen = [steps[n] for n in range(6)]
    assert {key for step in seen for key in step.batches[0].key} == {"box-000000", "box-000002"}
    lines = {line for step in seen for line in step.skipped}
    assert len(lines) == 1
    assert "box-000001" in lines.pop()
    assert all(same(TrainingSteps(broken, 0)[n], step) for n, step in enumerate(seen[:2]))
    assert ValidationClips(broken)[1].batches[0].key == ["box-000002"]


def test_a_source_of_nothing_but_corrupt_clips_ends_the_run(config: DataConfig, tmp_path: Path) -> None:
    folder = write(tmp_path / "d", range(2))
    damage(folder, [0, 1])
    broken = dataclasses.replace(config, sources={"d": SourceConfig(path=str(folder))})
    with pytest.raises(UserError, match="2 consecutive clips cannot be used"):
        TrainingSteps(broken, 0)[0]


def test_a_source_of_short_clips_is_refused_by_name(config: DataConfig, tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [box_clip(0, frames=4, size=24), box_clip(1, frames=2, size=24)])
    finalise(tmp_path, "boxes")
    mixed = dataclasses.replace(config, sources={**config.sources, "short": SourceConfig(path=str(tmp_path))})
    sources = TrainingSteps(mixed, seed=0).sources
    sources.check_times(2)
    with pytest.raises(UserError, match=r"source short: 1 of 2 clips have fewer than the 3 times .* has 2\); leave"):
        sources.check_times(3)


def test_the_fingerprint_knows_the_clips(config: DataConfig, folders: tuple[Path, Path]) -> None:
    whole = TrainingSteps(config, 0).sources.fingerprint()
    assert whole == TrainingSteps(config, 5).sources.fingerprint()
    fewer = dataclasses.replace(config, sources={"a": SourceConfig(path=str(folders[0]))})
    assert TrainingSteps(fewer, 0).sources.fingerprint() != whole


def test_without_augmentation_examples_still_have_the_right_size(config: DataConfig) -> None:
    plain = dataclasses.replace(config, augment=NO_AUGMENT, image_size=(20, 28))
    targets = TrainingSteps(plain, 0)[0].batches[0].targets
    assert targets.images.shape[-2:] == (20, 28)
    assert targets.depth is not None
    assert targets.valid is not None
    assert targets.scale is not None
    assert np.isfinite(targets.depth.numpy()).all()
    assert bool((targets.scale > 0).all())
    assert float(targets.valid.float().mean()) > 0.5


def test_impossible_configs_are_refused(config: DataConfig) -> None:
    with pytest.raises(UserError, match="sources is empty"):
        DataConfig(sources={})
    with pytest.raises(UserError, match="images_per_batch is 3"):
        dataclasses.replace(config, images_per_batch=3)
    with pytest.raises(UserError, match="weight is 0"):
        SourceConfig(path="x", weight=0.0)


def test_a_worker_that_dies_while_it_hands_a_batch_over_is_named() -> None:
    """The other end of its connection is gone then, before its process has ended."""
    worker = multiprocessing.get_context("spawn").Process(target=time.sleep, args=(60,))
    worker.start()

    def items() -> Iterator[Step]:
        os.kill(cast(int, worker.pid), signal.SIGKILL)
        raise ConnectionResetError
        yield

    loader = Loader(cast(Any, [0]))
    loader._processes = [worker]
    with pytest.raises(UserError, match=f"data loader worker {worker.pid} was killed by SIGKILL"):
        next(loader._items(items()))

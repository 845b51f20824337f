"""Weights that processes split (FSDP2) train as whole ones do, and checkpoints go from one strategy to another.

One process with a group of its own splits nothing, but takes every step that several would; two are in the slow tests.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest
import torch
from lightning.pytorch.strategies import DDPStrategy
from torch import distributed

from four_d import checkpoints, sharding
from four_d.config import LoopConfig, RunConfig
from four_d.errors import UserError
from four_d.model import FourD, ModelConfig
from four_d.schema import build
from four_d.training import train
from four_d.training.module import Terms, TrainingModule
from four_d.training.parallel import World
from four_d.training.strategies import Fsdp2, strategy
from four_d.types import Example, Prediction
from tests.training.runs import assert_same, crash, make_data, tiny, validated
from tests.training.test_parallel import torchrun

LOOP = {"ema": 0.9, "accumulate": 2, "max_steps": 4, "epoch_steps": 2}
SPLIT = {"images_per_batch": 12, "clips_multiple": 2}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), bare=2)


@pytest.fixture(autouse=True)
def same_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lightning sets variables of torchrun's for a group in this process."""
    for name in ("MASTER_ADDR", "MASTER_PORT", "RANK", "LOCAL_RANK", "NODE_RANK", "WORLD_SIZE"):
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)


def in_parts() -> Fsdp2:
    return Fsdp2(1, "gloo")


def assert_same_checkpoint(one: RunConfig, other: RunConfig) -> None:
    """Same weights, averages and moments, to the bit, whatever kind of checkpoint each has."""
    left, right = (sharding.read(run.run_folder / checkpoints.LAST) for run in (one, other))
    assert_same(left["state_dict"], right["state_dict"])
    # without the groups, whose rate is the step's
    assert_same(*(each["optimizer_states"][0]["state"] for each in (left, right)))
    assert_same(left["run"]["trained"], right["run"]["trained"])


def test_split_weights_train_resume_and_load_as_whole_ones(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, split = (tiny(data, tmp_path / name, loop={**LOOP, "precision": "fp32"}) for name in ("whole", "split"))
    train(whole)
    crash(monkeypatch, 3, lambda: train(split, strategy=in_parts()))
    assert not distributed.is_initialized()
    train(split, strategy=in_parts())
    assert (split.run_folder / checkpoints.LAST / sharding.SKELETON).is_file()
    assert_same_checkpoint(whole, split)
    read = [checkpoints.read(run.run_folder).model.state_dict() for run in (whole, split)]
    assert_same(*read)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["whole", "split", "gathered"])
def test_a_run_goes_on_from_the_checkpoint_of_another_strategy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first: str
) -> None:
    settings = {**LOOP, "checkpoints": {"sharded": first == "split"}}
    reference, mixed = (validated(data, tmp_path / name, loop=settings) for name in ("reference", "mixed"))
    train(reference)
    if first == "whole":
        crash(monkeypatch, 3, lambda: train(mixed))
        train(mixed, strategy=in_parts())
    else:
        crash(monkeypatch, 3, lambda: train(mixed, strategy=in_parts()))
        train(mixed)
    assert_same_checkpoint(reference, mixed)
    best = [checkpoints.read(run.run_folder / "checkpoints/best.ckpt").model.state_dict() for run in (reference, mixed)]
    assert_same(*best)


def test_a_step_without_finite_gradient_changes_no_split_weights(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    loop, optimiser = {**LOOP, "epoch_steps": 1}, {"clip": "groups", "groups": HEADS}
    good, bad = (tiny(data, tmp_path / name, loop=loop, optimiser=optimiser) for name in ("good", "bad"))
    crash(monkeypatch, 2, lambda: train(good, strategy=in_parts()))
    whole = TrainingModule.terms

    def spoilt(self: TrainingModule, example: Example) -> tuple[Prediction, Terms]:
        prediction, terms = whole(self, example)
        return prediction, {**terms, "loss": terms["loss"] * (torch.nan if self.step >= 2 else 1.0)}

    monkeypatch.setattr(TrainingModule, "terms", spoilt)
    assert train(bad, strategy=in_parts()).steps == 4
    assert_same_checkpoint(good, bad)


HEADS = {"heads": {"parameters": ["heads.*"], "lr": 1e-4}}


def test_blocks_are_split_one_by_one(data: Path, tmp_path: Path) -> None:
    plain = {"kind": "timm", "model": "vit_tiny_patch16_224", "depth": 2, "embed_width": 32, "heads": 2}
    backbone = {"patches": plain, "patch_size": 8, "width": 32, "rounds": 2, "heads": 2}
    heads = {"depth": {"kind": "dense", "output": "depth", "channels": [8, 8, 16, 16], "features": 16}}
    model = build(ModelConfig, {"backbone": backbone, "heads": heads}, "model").build()
    assert isinstance(model, FourD)
    names = {id(module): name for name, module in model.named_modules()}
    split = [names[id(each)] for each in model.shards()]
    assert len(split) == len(set(split)) == 2 * 2 + 2
    assert {name.rsplit(".", 1)[0] for name in split} == {
        "backbone.frame_blocks",
        "backbone.global_blocks",
        "backbone.patches.encoder.blocks",
    }


@pytest.mark.parametrize(
    ("world", "loop", "gpus", "message"),
    [
        (World(), {"accelerator": "cuda"}, 0, "torch finds no GPU; set loop.accelerator=cpu"),
        (World(size=4, local_size=4), {"accelerator": "cuda"}, 2, "4 processes were started .* has 2 GPUs"),
        (World(size=2, local_size=2), {"accelerator": "auto"}, 2, "this torch has no NCCL"),
    ],
)
def test_gpus_and_nccl_that_are_not_there(
    world: World, loop: dict[str, object], gpus: int, message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: gpus > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: gpus)
    monkeypatch.setattr(distributed, "is_nccl_available", lambda: False)
    with pytest.raises(UserError, match=message):
        strategy(world, build(LoopConfig, loop, "loop"))


def test_a_torch_that_cannot_split_weights_as_needed(monkeypatch: pytest.MonkeyPatch) -> None:
    loop = build(LoopConfig, {"accelerator": "cpu", "strategy": "fsdp2"}, "loop")
    assert strategy(World(), loop) == "auto", "one process is alone"
    assert isinstance(strategy(World(size=2, local_size=2), loop), Fsdp2)
    monkeypatch.delattr("torch.distributed.fsdp.FSDPModule.set_reduce_scatter_unused_params")
    with pytest.raises(UserError, match=r"needs torch 2\.13"):
        strategy(World(size=2, local_size=2), loop)


def test_a_folder_without_a_part_or_of_another_framework_is_one_line(data: Path, tmp_path: Path) -> None:
    split = tiny(data, tmp_path, loop=LOOP)
    train(split, strategy=in_parts())
    longer = replace(split, loop=replace(split.loop, max_steps=5))
    for lost, message in (("__0_0.distcp", r"cannot be read \(\w+: .*__0_0\.distcp"), ("state.pt", "without state.pt")):
        (split.run_folder / checkpoints.LAST / lost).unlink()
        with pytest.raises(UserError, match=message + r".*; link it to an older step-\*\.ckpt beside it, or remove it"):
            train(longer, strategy=in_parts())


def test_processes_wait_for_each_other_as_long_as_the_loop_says() -> None:
    for kind in ("ddp", "fsdp2"):
        loop = build(LoopConfig, {"accelerator": "cpu", "strategy": kind, "timeout_seconds": 7.0}, "loop")
        made = strategy(World(size=2, local_size=2), loop)
        assert isinstance(made, DDPStrategy | Fsdp2)
        assert made._timeout == timedelta(seconds=7)
    with pytest.raises(UserError, match="timeout_seconds is 0; choose more than 0"):
        build(LoopConfig, {"timeout_seconds": 0.0}, "loop")


DIES = """
import os, sys
from four_d.config import load
from four_d.training import train
from four_d.training.module import TrainingModule
whole = TrainingModule.training_step
def dying(self, batch, number):
    if self.step == 3:
        os._exit(9)
    return whole(self, batch, number)
TrainingModule.training_step = dying
train(load([sys.argv[1]]))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["ddp", "fsdp2"])
def test_one_process_goes_on_with_the_run_of_two(data: Path, tmp_path: Path, kind: str) -> None:
    loop = {**LOOP, "strategy": kind}
    one, two = (tiny(data, tmp_path / name, data=SPLIT, loop=loop) for name in ("one", "two"))
    train(one)
    (tmp_path / "dies.py").write_text(DIES)
    finished = torchrun(two, tmp_path, sys.executable, str(tmp_path / "dies.py"))
    assert finished.returncode != 0
    assert (two.run_folder / checkpoints.LAST).readlink() == Path("step-0000002.ckpt"), finished.stderr[-3000:]
    assert train(two).steps == 4
    left, right = (sharding.read(run.run_folder / checkpoints.LAST)["state_dict"] for run in (one, two))
    for name, value in left.items():
        torch.testing.assert_close(right[name], value, rtol=2e-3, atol=2e-5, msg=name)

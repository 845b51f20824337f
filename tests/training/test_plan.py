"""The plan of a step's memory: beside what the allocator gave out in a run, its parts, and the largest clip."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.profiler import ProfilerActivity, profile

from four_d import fields
from four_d.config import RunConfig, load
from four_d.data.loading import TrainingSteps
from four_d.errors import UserError
from four_d.training import train
from four_d.training.plan import MOST_PLANNED, Bounded, Place, Planner, largest_fitting, memory_size
from tests.on_cuda import BOXES, SMALL
from tests.training.runs import make_data, tiny

CASES: dict[str, tuple[str, list[str]]] = {
    "tracks": ("vggt", []),
    "checkpointing, averages, accumulation": (
        "dept3r",
        ["model.backbone.checkpointing=true", "model.backbone.rounds=6", "loop.ema=0.9", "loop.accumulate=2"],
    ),
    "a mask, in bfloat16": ("page_4d", ["loop.precision=bf16"]),
    "Gaussians": ("dgs_lrm", []),
}


MANY = ["data.images_per_batch=16", "loop.checkpoints.background=false"]
"""Settings by which activations outweigh the copy of the state that a checkpoint is written from."""


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), range(3))


def configured(name: str, data: Path, folder: Path, overrides: list[str]) -> RunConfig:
    """A shipped config at the smallest size, for a run of three steps."""
    configs, own = BOXES[name]
    places = [f"data.sources.boxes.path={data}", "data.validation={}", f"folder={folder}"]
    loop = ["loop.max_steps=3", "loop.epoch_steps=3", "loop.accelerator=cpu", "loop.precision=fp32", "loop.ema=null"]
    return load(configs, [*SMALL, *own, *places, *loop, *MANY, *overrides])


def allocated(run: Callable[[], object]) -> int:
    """Most bytes that torch's allocator on the CPU gave out at a time."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as seen:
        run()
    assert seen.profiler is not None
    assert seen.profiler.kineto_results is not None
    events = [each for each in seen.profiler.kineto_results.events() if each.name() == "[memory]"]
    now = peak = 0
    for event in sorted(events, key=lambda each: each.start_ns()):
        now += event.nbytes()  # pyright: ignore[reportAttributeAccessIssue] - its stub lacks it
        peak = max(peak, now)
    return peak


@pytest.mark.slow
@pytest.mark.parametrize("case", sorted(CASES))
def test_the_plan_is_near_what_the_allocator_gives_out(case: str, data: Path, tmp_path: Path) -> None:
    name, overrides = CASES[case]
    config = configured(name, data, tmp_path, overrides)
    plan = Planner(config).plan(4, 4)
    found = allocated(lambda: train(config))
    assert plan.activations + plan.peak_gradients > plan.saved + plan.gradients, "else saving is what is tested"
    assert plan.total == pytest.approx(found, rel=0.15)


def test_a_step_is_counted_without_making_the_model(data: Path, tmp_path: Path) -> None:
    """Parts by hand, and what processes share."""
    config = tiny(data, tmp_path, loop={"ema": 0.9, "precision": "fp32"}, optimiser={"frozen": ["backbone.*"]})
    planner = Planner(config)
    parameters = {name: each.numel() for name, each in config.model.build().named_parameters()}
    whole = sum(parameters.values())
    heads = sum(count for name, count in parameters.items() if name.startswith("heads."))
    parts = {each.name: each for each in planner.parts}
    assert sum(each.parameters for each in parts.values()) == whole
    assert (parts["backbone"].trained, parts["heads.camera"].trained > 0) == (0, True)
    assert planner.checkpoint_bytes == planner.weight_bytes + 3 * 4 * heads
    alone = planner.plan(2, 2)
    assert (alone.moments, alone.averages, alone.gradients, alone.exchange) == (8 * heads, 4 * heads, 4 * heads, 0)
    assert alone.saved == planner.checkpoint_bytes
    ddp, fsdp = (planner.plan(2, 2, Place(kind="cuda", devices=4, strategy=kind)) for kind in ("ddp", "fsdp2"))
    assert (ddp.exchange, ddp.saved, ddp.activations) == (4 * heads, 0, alone.activations)
    assert (fsdp.moments, fsdp.averages, fsdp.gradients) == (2 * heads, heads, heads)
    assert fsdp.weights < alone.weights


@pytest.mark.slow
def test_checkpointing_makes_activations_fewer(data: Path, tmp_path: Path) -> None:
    more = ["model.backbone.rounds=6", "model.backbone.attention=sdpa"]
    plain, again = (
        Planner(configured("dept3r", data, tmp_path, [*more, f"model.backbone.checkpointing={each}"])).plan(2, 4)
        for each in ("false", "true")
    )
    assert again.activations < 0.8 * plain.activations
    assert again.weights == plain.weights


def test_no_large_tensor_is_made() -> None:
    with Bounded(FakeTensorMode(allow_non_fake_inputs=True)):
        few = torch.arange(3) * 2
        many = torch.arange(1_000_000)[:, None] * torch.arange(1_000_000)  # 8 TB
        assert few.tolist() == [0, 2, 4]
        assert few.nonzero().tolist() == [[1], [2]]
        few.add_(1)
    assert few.tolist() == [1, 3, 5]
    assert isinstance(many, FakeTensor)
    assert many.shape == (1_000_000, 1_000_000)


def test_the_largest_fitting_clip_is_found_in_few_counts() -> None:
    asked: list[int] = []

    def need(number: int) -> float:
        asked.append(number)
        return 100.0 + 10 * number + 0.5 * number**2

    found = largest_fitting(need, need(77) + 1.0, 24)
    assert found is not None
    assert (found.number, found.reserved, found.planned) == (77, need(77), 78)
    assert len(asked) <= 8
    assert largest_fitting(need, 100.0, 24) is None
    few = largest_fitting(need, need(3), 24)
    assert few is not None
    assert few.number == 3


@pytest.mark.parametrize("bend", [0.0, 0.01, 2.0])
def test_beyond_what_is_counted_need_is_extrapolated(bend: float) -> None:
    def need(number: int) -> float:
        assert number <= MOST_PLANNED
        return 1e3 + 10.0 * number + bend * number**2

    limit = 1e3 + 10 * 5000 + bend * 5000**2
    found = largest_fitting(need, limit + 1, 24)
    assert found is not None
    assert abs(found.number - 5000) <= 1
    assert (found.reserved, found.planned) == (pytest.approx(limit, rel=1e-3), MOST_PLANNED)


def test_need_that_grows_ever_less_is_not_taken_to_fall() -> None:
    """Maps that are made some frames at a time: more frames cost less each, and the answer errs to the safe side."""
    found = largest_fitting(lambda number: 1000.0 + 10 * min(number, 60) + number, 5000.0, 24)
    assert found is not None
    assert 1000 < found.number <= 3400


def test_held_out_views_are_planned_at_their_size(data: Path, tmp_path: Path) -> None:
    """They were drawn at 64 × 64 pixels, whatever the run's size."""
    config = configured("dgs_lrm", data, tmp_path, [])
    planned, size = Planner(config).example(4, 4, (16, 16))
    real = TrainingSteps(config.data, config.seed, patch_size=config.model.abilities.multiple)[0].batches[0]
    for one, other in ((planned.inputs, real.inputs), (planned.targets, real.targets)):
        assert {leaf.name: tensor.shape for leaf, tensor in fields.leaves(one)} == {
            leaf.name: tensor.shape for leaf, tensor in fields.leaves(other)
        }
    assert real.targets.views is not None
    assert size == pytest.approx(267_880, rel=0.01)


def test_sizes_of_memory() -> None:
    assert memory_size("80GB") == 8e10
    assert memory_size("1.5 GiB") == 1.5 * 2**30
    for wrong in ("80", "GB", "-1GB", "infGB", "80 apples"):
        with pytest.raises(UserError, match="no size of memory; write it as 80GB"):
            memory_size(wrong)

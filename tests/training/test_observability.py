"""Figures of a run's speed, memory and gradients: where they are written, and what a resumed run adds."""

from __future__ import annotations

import json
import math
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import Dataset
from torch.utils.flop_counter import FlopCounterMode

from four_d import fields
from four_d.config import MEASURED, LoggingConfig, ProfileConfig, RunConfig
from four_d.data.loading import Step, loader
from four_d.errors import UserError
from four_d.training import copies, train
from four_d.training.copies import Media, WandbCopy, check_copies
from four_d.training.meter import STEP_TIMES
from four_d.training.module import TrainingModule
from four_d.training.pace import Histogram, HostClock
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from four_d.training.work import TERA, Operations, Shape, fitted, peak_rate, shape_of
from tests.training.runs import crash, make_data, tiny, validated

Lines = list[dict[str, Any]]
GROUPS = {"cameras": {"parameters": ["heads.camera.*"]}}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


def lines(config: RunConfig, split: str = "train") -> Lines:
    return [line for line in read_metrics(config.run_folder) if line["split"] == split]


def test_lines_hold_rates_waiting_times_memory_and_gradients_of_groups(data: Path, tmp_path: Path) -> None:
    logging = {"every": 2, "peak_tflops": 0.5}
    config = tiny(data, tmp_path, logging=logging, optimiser={"lr": 1e-3, "groups": GROUPS})
    train(config)
    found = lines(config)
    host = {name for name in MEASURED if not name.startswith("device_")}
    assert host <= found[-1].keys()
    for line in found:
        assert line["tokens_per_s"] / line["images_per_s"] == pytest.approx(4 + 2), (
            "patches, camera token and register of an image"
        )
        assert line["step_s_p50"] <= line["step_s_p95"] <= line["step_s_max"]
        assert 0 < line["host_memory_gb"] <= line["host_memory_peak_gb"]
        squares = line["gradient_norm/cameras"] ** 2 + line["gradient_norm/rest"] ** 2
        assert squares == pytest.approx(line["gradient_norm"] ** 2, rel=0.1), "means over steps"
        assert line["mfu"] == pytest.approx(line["tflops_per_device"] / 0.5)
    (times,) = [line for line in lines(config, "histogram") if line["step"] == 6]
    assert times["name"] == STEP_TIMES
    assert sum(times["counts"]) == 5, "the first step of a start makes much ready"
    assert len(times["edges"]) == len(times["counts"]) + 1


def test_gradients_of_groups_change_no_weight(data: Path, tmp_path: Path) -> None:
    plain, grouped = tiny(data, tmp_path / "a"), tiny(data, tmp_path / "b", optimiser={"lr": 1e-3, "groups": GROUPS})
    one, other = (train(config).checkpoint for config in (plain, grouped))
    left, right = (torch.load(path, weights_only=True)["state_dict"] for path in (one, other))
    assert all(torch.equal(value, right[name]) for name, value in left.items())


def test_mfu_is_left_out_without_a_peak(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    train(config)
    assert not any("mfu" in line for line in lines(config))


def test_peaks_are_those_of_data_sheets() -> None:
    assert peak_rate("NVIDIA H100 80GB HBM3", "bf16") == 989 * TERA
    assert peak_rate("NVIDIA H100 PCIe", "bf16") == 756 * TERA
    assert peak_rate("NVIDIA A100-SXM4-80GB", "fp32") == 19.5 * TERA
    assert peak_rate("NVIDIA A10G", "bf16") is None, "another card than the A10"
    assert peak_rate("NVIDIA L4", "bf16") != peak_rate("NVIDIA L40", "bf16")
    with pytest.raises(UserError, match="peak_tflops is 0"):
        LoggingConfig(peak_tflops=0.0)


def test_operations_are_those_of_forward_and_backward_and_counting_changes_nothing(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    module = TrainingModule(config)
    example = RunData(config).training[0].batches[0]
    module.model.heads["camera"].eval()
    before = {name: value.clone() for name, value in module.model.state_dict().items()}
    counted = Operations()
    assert counted.of(shape_of(example.inputs)) is None
    assert counted.needs(example.inputs)
    counted.count(module.model, example.inputs, torch.autocast("cpu", enabled=False))
    assert not counted.needs(example.inputs)
    assert module.model.training
    assert not module.model.heads["camera"].training
    assert all(torch.equal(value, before[name]) for name, value in module.model.state_dict().items())
    with sdpa_kernel(SDPBackend.MATH), FlopCounterMode(display=False) as counter:  # its backward repeats nothing
        found = [value.sum() for _, value in fields.leaves(module.model(example.inputs)) if value.requires_grad]
        torch.stack(found).sum().backward()
    # the images need no gradient, which the count of three takes no notice of
    assert counted.of(shape_of(example.inputs)) == pytest.approx(counter.get_total_flops(), rel=0.02)


def test_frozen_parts_have_no_backward(data: Path, tmp_path: Path) -> None:
    config = tiny(data, tmp_path)
    module = TrainingModule(config)
    clip = RunData(config).training[0].batches[0].inputs
    found = []
    for frozen in (False, True):
        module.requires_grad_(not frozen)
        counted = Operations()
        counted.count(module.model, clip, torch.autocast("cpu", enabled=False))
        found.append(counted.of(shape_of(clip)))
    assert found[0] == 3 * found[1] > 0


def test_operations_of_further_shapes_follow_from_counted_ones() -> None:
    def true(shape: Shape) -> float:
        clips, frames, rows, columns, _, _ = shape
        tokens = rows * columns / 196 + 5
        return clips * (
            2e7 * frames * tokens + 4e3 * frames * tokens**2 + 4e3 * (frames * tokens) ** 2 + 1e6 * frames**2
        )

    rng = np.random.default_rng(0)
    drawn = [(2, int(f), 14 * int(r), 518, 0, 0) for f, r in zip(rng.integers(2, 25, 40), rng.integers(12, 38, 40))]
    known = {shape: true(shape) for shape in drawn[:12]}
    for shape in drawn[12:]:
        assert fitted(known, shape) == pytest.approx(true(shape), rel=1e-3)


def test_waiting_for_a_batch_is_the_loaders_time(monkeypatch: pytest.MonkeyPatch) -> None:
    class Clock:
        now = 0.0

        def monotonic(self) -> float:
            return self.now

    clock = Clock()

    class Slow(Dataset[Step]):
        def __len__(self) -> int:
            return 3

        def __getitem__(self, index: int) -> Step:
            clock.now += 2.0
            return Step(index=index, batches=())

    monkeypatch.setattr("four_d.data.loading.time", clock)
    made = loader(Slow(), range(3), 0, pin_memory=False)
    for _ in made:
        clock.now += 100.0
    assert made.waited == 6.0


# histogram


def test_a_histogram_is_bounded_and_right_within_a_bucket() -> None:
    found = Histogram()
    assert math.isnan(found.quantile(0.5))
    rng = np.random.default_rng(0)
    values = np.exp(rng.normal(size=5000))
    for value in values:
        found.add(float(value))
    assert len(found) == 5000
    for share in (0.05, 0.5, 0.95):
        assert found.quantile(share) == pytest.approx(np.quantile(values, share), rel=0.03)
    assert found.quantile(1.0) == pytest.approx(found.most, rel=0.03)
    assert found.most == values.max()
    edges, counts = found.buckets()
    assert len(counts) < 250
    assert np.histogram(values, edges)[0].tolist() == counts
    again = Histogram()
    again.restore(edges, counts, found.most)
    assert again.buckets() == (edges, counts)
    assert again.most == found.most


def test_a_clock_gives_each_step_once() -> None:
    clock = HostClock()
    for _ in range(3):
        clock.begin()
        clock.end()
    assert len(clock.take()) == 3
    assert clock.take() == []


# copies


def events(config: RunConfig) -> Any:
    """Figures that TensorBoard reads of a run."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    every = {"scalars": 0, "images": 0, "histograms": 0}
    read = EventAccumulator(str(config.run_folder / "tensorboard"), size_guidance=every)
    read.Reload()
    return read


def scalars(config: RunConfig) -> dict[str, dict[int, float]]:
    """TensorBoard's scalars by name and step, as its page shows them; a step that is there twice fails."""
    read, found = events(config), {}
    for name in read.Tags()["scalars"]:
        values = read.Scalars(name)
        assert len({each.step for each in values}) == len(values), name
        found[name] = {each.step: each.value for each in values}
    return found


@pytest.mark.slow
def test_a_killed_and_resumed_run_has_each_step_once_in_every_copy(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("tensorboard")
    pytest.importorskip("wandb")
    logging = {"every": 1, "pictures": 1, "tensorboard": True, "wandb": "offline"}
    config = validated(data, tmp_path, logging=logging)
    crash(monkeypatch, 5, lambda: train(config))
    assert max(scalars(config)["train/loss"]) == 5
    train(config)
    losses = {line["step"]: line["loss"] for line in lines(config)}
    assert [*losses] == [1, 2, 3, 4, 5, 6]
    found = scalars(config)
    assert found["train/loss"] == pytest.approx(losses)
    assert [*found["validation/depth_absrel_median_frame"]] == [3, 6]
    read = events(config)
    assert [event.step for event in read.Images("pictures/clip-0")] == [3, 6]
    assert [event.step for event in read.Histograms(f"histogram/{STEP_TIMES}")] == [3, 6]
    assert sum(lines(config, "histogram")[-1]["counts"]) == 2 + 2, "the first step of each start is left out"
    files = sorted((config.run_folder / "wandb").glob("offline-run-*/run-*.wandb"))
    assert len(files) == 2
    assert len({file.stem for file in files}) == 1, "one id"
    rows = [row for file in files for row in history(file)]
    assert [(row["step"], row["train/loss"]) for row in rows if "train/loss" in row] == [*losses.items()]
    assert [row["step"] for row in rows if any(name.startswith("histogram/") for name in row)] == [3, 6]


def history(file: Path) -> Lines:
    """Rows of figures of wandb's offline file."""
    from wandb.proto.wandb_internal_pb2 import Record

    rows: Lines = []
    for _, content in copies._records(file):
        record = Record()
        record.ParseFromString(content)
        if record.HasField("history"):
            items = record.history.item
            rows.append({item.key or "/".join(item.nested_key): json.loads(item.value_json) for item in items})
    return rows


def write_offline(file: Path, steps: list[int], pad: int) -> None:
    """wandb's offline file with a row for each step, in pieces where a block ends."""
    from wandb.proto.wandb_internal_pb2 import Record

    content = b"header:"
    for step in steps:
        record = Record()
        record.history.item.add(key="step", value_json=str(step))
        record.history.item.add(key="pad", value_json=json.dumps("x" * pad))
        left, kind = record.SerializeToString(), 0
        while left or not kind:
            room = copies.BLOCK - len(content) % copies.BLOCK
            if room < copies.HEAD:
                content += b"\0" * room
                continue
            piece, left = left[: room - copies.HEAD], left[room - copies.HEAD :]
            kind = (3 if left else 4) if kind else (2 if left else 1)
            content += struct.pack("<IHB", 0, len(piece), kind) + piece
    file.parent.mkdir(parents=True)
    file.write_bytes(content)


@pytest.mark.parametrize("pad", [10, 9_000, 70_000])
def test_wandbs_offline_file_is_cut_where_later_steps_begin(tmp_path: Path, pad: int) -> None:
    file = tmp_path / "offline-run-x" / "run-y.wandb"
    write_offline(file, [1, 2, 3, 4, 5, 6], pad)
    assert [row["step"] for row in history(file)] == [1, 2, 3, 4, 5, 6]
    copies.forget_offline(tmp_path, 6)
    assert [row["step"] for row in history(file)] == [1, 2, 3, 4, 5, 6]
    copies.forget_offline(tmp_path, 4)
    assert [row["step"] for row in history(file)] == [1, 2, 3, 4]
    file.write_bytes(file.read_bytes()[:-3])  # a killed service's last record
    copies.forget_offline(tmp_path, 2)
    assert [row["step"] for row in history(file)] == [1, 2]


def test_what_wandbs_server_has_is_not_sent_again() -> None:
    class Run:
        resumed, summary = True, {"step": 40}

        def __init__(self) -> None:
            self.sent: list[int] = []

        def log(self, values: dict[str, Any]) -> None:
            self.sent.append(values["step"])

    run: Any = Run()
    copy = WandbCopy.__new__(WandbCopy)
    copy._run, copy._sent = run, copies._last_sent(run)
    for step in (30, 40, 50):
        copy.numbers(step, {"loss": 1.0})
    assert run.sent == [40, 50]
    run.resumed = False
    assert copies._last_sent(run) == -1


def test_pictures_of_copies_are_limited_in_number_and_size(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    pictures = tmp_path / "pictures"
    pictures.mkdir()
    for step in (3, 6):
        Image.new("RGB", (64, 32)).save(pictures / f"clip-0-{step:07d}.png")
    media = Media(pictures, LoggingConfig(media_count=2, media_side=16), step=3)
    assert [media.allows() for _ in range(3)] == [True, False, False], "one was copied before"
    assert sum("logging.media_count" in line for line in caplog.messages) == 1
    small = media.sized(pictures / "clip-0-0000003.png")
    with Image.open(small) as reduced:
        assert reduced.size == (16, 8)
    whole = Media(pictures, LoggingConfig(media_side=64), step=0)
    assert whole.sized(pictures / "clip-0-0000003.png") == pictures / "clip-0-0000003.png"


def test_a_copy_whose_package_is_missing_is_refused_before_anything_is_written(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(copies.importlib.util, "find_spec", lambda _: None)
    config = tiny(data, tmp_path, logging={"tensorboard": True})
    with pytest.raises(UserError, match=r"pip install 'four_d\[tensorboard\]', or set logging\.tensorboard=false"):
        train(config)
    assert not config.run_folder.exists()
    with pytest.raises(UserError, match=r"set logging\.wandb=off"):
        check_copies(LoggingConfig(wandb="offline"))


def test_a_tensorboard_that_cannot_write_costs_its_figures_and_nothing_else(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    pytest.importorskip("tensorboard")

    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("torch.utils.tensorboard.writer.SummaryWriter.add_scalar", full)
    config = tiny(data, tmp_path, logging={"tensorboard": True, "every": 1})
    assert train(config).steps == 6
    assert sum("TensorBoard's copy ended" in line for line in caplog.messages) == 1


# profile


@pytest.mark.slow
def test_a_profile_is_a_trace_and_a_table(data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    loop = {"max_steps": 5, "epoch_steps": 5, "precision": "fp32", "profile": {"start": 2, "steps": 2}}
    config = tiny(data, tmp_path, loop=loop)
    train(config)
    folder = config.run_folder / "profile"
    assert sorted(file.name for file in folder.iterdir()) == ["operators.txt", "trace-0000003.json"]
    trace = json.loads((folder / "trace-0000003.json").read_text())
    names = [event.get("name", "") for event in trace["traceEvents"]]
    assert sum(name.startswith("Optimizer.step") for name in names) == 2
    table = (folder / "operators.txt").read_text().splitlines()
    assert "2 steps" in table[0]
    assert 5 < len(table) <= 21
    assert any("aten::" in row for row in table[1:])
    assert any("profiled steps 3 to 4" in line for line in caplog.messages)


def test_a_run_that_ends_before_its_profile_says_so(
    data: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    config = tiny(data, tmp_path, loop={"max_steps": 2, "epoch_steps": 2, "precision": "fp32", "profile": {}})
    train(config)
    assert any("nothing was profiled: this start had 2 steps" in line for line in caplog.messages)
    with pytest.raises(UserError, match="steps from 1 to 100"):
        ProfileConfig(steps=101)

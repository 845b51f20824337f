"""Parts of a user's own, each defined here in at most 40 lines: no file of the package knows them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field, make_dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Literal, cast

import lightning
import numpy as np
import pytest
import torch
import yaml
from jaxtyping import Float
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor, nn

import four_d
from four_d import checkpoints, extension, schema
from four_d.abilities import Abilities, ModelModule, ModelSpec
from four_d.cli.program import main
from four_d.config import RunConfig, load
from four_d.drawing import NORMALS
from four_d.errors import UserError
from four_d.evaluation import Comparison, EvaluationConfig, Metric
from four_d.evaluation import run as evaluate
from four_d.exporting import export
from four_d.extension import extend
from four_d.heads import HeadConfig
from four_d.inference import LoadedModel, infer
from four_d.layers import full_precision, full_type
from four_d.losses.reduction import group_mean, kept_mean, nothing
from four_d.losses.schedule import Ramp, Weight
from four_d.losses.supervision import Need
from four_d.losses.term import LossInputs, LossSpec, LossTerm, values_of
from four_d.model import FourD, ModelConfig
from four_d.parts import BackboneSpec, HeadSpec, TokenShape
from four_d.training import TrainingModule, train
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from four_d.trajectories import at_times
from four_d.types import (
    LENGTH,
    NONE,
    NORMAL,
    POINT,
    Cameras,
    Clip,
    Example,
    Prediction,
    Tokens,
    drawn,
    widened,
)
from tests.training.runs import assert_same, assert_same_end, crash, last, make_data, validated


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"), bare=1)


# a term with weights and a schedule: paths are compared with a small network of place and time, which learns the truth


@dataclass(frozen=True, kw_only=True)
class PathLossConfig(LossSpec):
    """Distance of predicted paths from what a network that learns the true ones makes of their beginnings."""

    needs: ClassVar[tuple[Need, ...]] = ("motion",)
    teaches: ClassVar[tuple[str, ...]] = ("motion",)
    kind: Literal["path"] = "path"
    weight: Weight = field(default_factory=lambda: Ramp(start=0.0, end=0.5, until=0.5))
    width: int = 8

    def build(self) -> PathLoss:
        return PathLoss(self)


class PathLoss(LossTerm[PathLossConfig]):
    def __init__(self, config: PathLossConfig) -> None:
        super().__init__(config)
        self.step = nn.Sequential(nn.Linear(4, config.width), nn.Tanh(), nn.Linear(config.width, 3))

    def forward(self, inputs: LossInputs) -> Float[Tensor, ""]:
        paths, true = inputs.trajectories["motion"], inputs.true_trajectories
        if true is None:
            return nothing(paths.points)
        true = at_times(true, paths.times)
        times = paths.times[:, None, :, None].expand_as(paths.points[..., :1])
        made = true.points + self.step(torch.cat([true.points, times], dim=-1))
        errors = (made - true.points).abs() + (paths.points - made.detach()).abs()
        return group_mean(errors.mean(-1).flatten(1), true.valid.flatten(1)).mean()


def with_paths(shards: Path, folder: Path, data: dict[str, object] | None = None, strategy: str = "ddp") -> RunConfig:
    """A model that follows pixels, taught by the term beside `MotionLoss`."""
    dense = {"kind": "dense", "channels": [8, 8, 16, 16], "features": 16}
    heads = {
        "camera": {"kind": "camera", "width": 32, "depth": 1, "heads": 2},
        "depth": {**dense, "output": "depth"},
        "motion": {**dense, "output": "motion", "decoder": {}},
    }
    losses = {"motion": {"kind": "motion"}, "path": {"kind": "path", "width": 6}}
    settings = {"max_steps": 3, "epoch_steps": 2, "ema": 0.9, "precision": "fp32", "accelerator": "cpu"}
    settings |= {"strategy": strategy}
    return validated(
        shards, folder, {"query_times": 2, **(data or {})}, model={"heads": heads}, losses=losses, loop=settings
    )


def test_a_term_with_weights_and_a_schedule(data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    extend(PathLossConfig)
    whole, broken = (with_paths(data, tmp_path / name) for name in ("whole", "broken"))
    result = train(whole)
    assert result.validation["path"] > 0
    lines = [line for line in read_metrics(whole.run_folder) if line["split"] == "train"]
    assert [line["weight/path"] for line in lines] == pytest.approx([1 / 3, 0.5, 0.5])
    crash(monkeypatch, 2, lambda: train(broken))
    train(broken)
    assert_same_end(broken, whole)
    own = [name for name in last(whole)["state_dict"] if name.startswith("losses.path.step.")]
    assert len(own) == 4
    assert not any("path" in name for name in checkpoints.read(whole.run_folder).model.state_dict())
    exported = load_file(export(whole.run_folder, tmp_path / "model", formats=["safetensors"]) / "model.safetensors")
    assert exported
    assert not any("path" in name or name.startswith("losses") for name in exported)
    again = load([whole.run_folder / "config.yaml"])
    assert again.losses["path"] == PathLossConfig(width=6)


# a head with fields of its own, a backbone that gives rows for every second frame, a model without either


@dataclass(frozen=True, kw_only=True)
class Thick(Prediction):
    thickness: Float[Tensor, "*b f h w"] | None = field(default=None, metadata=LENGTH)
    picked: Float[Tensor, "*b n 3"] | None = field(default=None, metadata=POINT)


@dataclass(frozen=True, kw_only=True)
class ThickHeadConfig(HeadSpec):
    kind: Literal["thick"] = "thick"
    prediction = Thick
    provides = ("thickness", "picked")
    answers_points = True

    def build(self, shape: TokenShape) -> ThickHead:
        return ThickHead(self, shape)


class ThickHead(nn.Module):
    """Works on rows of any frames: a frame without one takes the nearest."""

    def __init__(self, config: ThickHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config, self.rounds, self.size = config, (shape.rounds - 1,), shape.patch_size
        self.out = nn.Linear(shape.width, shape.patch_size**2)

    def forward(self, tokens: Tokens, clip: Clip) -> Thick:
        gaps = torch.arange(clip.images.shape[1], device=tokens.frames.device)[:, None] - tokens.frames
        patches = tokens.patches[tokens.rounds.index(self.rounds[0])][:, gaps.abs().argmin(-1)]
        with full_precision(patches.device):
            maps = self.out(patches.to(full_type(patches.dtype))).exp()
        maps = maps.unflatten(-1, (self.size, self.size)).unflatten(2, tokens.grid)
        maps = maps.transpose(3, 4).flatten(4, 5).flatten(2, 3)  # b f h w
        if clip.query_points is None:
            return Thick(thickness=maps)
        frame, x, y = clip.query_points.floor().long().unbind(-1)
        height, width = maps.shape[-2:]
        rows = torch.arange(len(maps), device=maps.device)[:, None]
        depth = maps[rows, frame, y.clamp(0, height - 1), x.clamp(0, width - 1)]
        return Thick(thickness=maps, picked=torch.stack([x * depth, y * depth, depth], dim=-1))


@dataclass(frozen=True, kw_only=True)
class SecondConfig(BackboneSpec):
    kind: Literal["second"] = "second"
    patch_size: int = 8
    width: int = 16

    @property
    def shape(self) -> TokenShape:
        return TokenShape(width=self.width, rounds=1, patch_size=self.patch_size)

    row_stride = 2

    def build(self) -> Second:
        return Second(self)


class Second(nn.Module):
    """Tokens of every second frame: a convolution."""

    def __init__(self, config: SecondConfig) -> None:
        super().__init__()
        self.config = config
        self.embed = nn.Conv2d(3, config.width, config.patch_size, stride=config.patch_size)

    def forward(self, clip: Clip, rounds: tuple[int, ...]) -> Tokens:
        maps = self.embed(clip.images.flatten(0, 1))
        patches = maps.flatten(2).mT.unflatten(0, clip.images.shape[:2])[:, ::2]
        frames = torch.arange(0, clip.images.shape[1], 2, device=maps.device)
        grid = (maps.shape[-2], maps.shape[-1])
        return Tokens(patches=(patches,), special=(patches[:, :, :0],), grid=grid, frames=frames, rounds=rounds)

    def at_step(self, step: int) -> None: ...


@dataclass(frozen=True, kw_only=True)
class ThickLossConfig(LossSpec):
    needs: ClassVar[tuple[Need, ...]] = ("depth",)
    teaches: ClassVar[tuple[str, ...]] = ("thickness",)
    kind: Literal["thick"] = "thick"
    weight: float = 1.0

    def build(self) -> ThickLoss:
        return ThickLoss(self)


class ThickLoss(LossTerm[ThickLossConfig]):
    def forward(self, inputs: LossInputs) -> Tensor:
        assert isinstance(inputs.prediction, Thick)
        thickness, truth, valid = inputs.prediction.thickness, inputs.targets.depth, inputs.targets.valid
        assert thickness is not None
        if truth is None or valid is None:
            return nothing(thickness)
        return kept_mean((thickness - truth).abs(), valid, "clip")


@dataclass(frozen=True, kw_only=True)
class SlabConfig(ModelSpec):
    """A model without backbone or heads: one wall that the camera looks at, seen by a camera that drifts."""

    kind: Literal["slab"] = "slab"
    pieces: int = 4
    abilities = Abilities(outputs=frozenset({"depth", "depth_confidence", "cameras"}), multiple=4)

    def build(self) -> Slab:
        return Slab(self)


class Slab(ModelModule):
    """Each step its first piece splits in two."""

    def __init__(self, config: SlabConfig) -> None:
        super().__init__()
        self.config = config
        self.distances = nn.Parameter(torch.linspace(1, 2, config.pieces))

    @property
    def abilities(self) -> Abilities:
        return self.config.abilities

    def at_step(self, step: int) -> dict[str, Tensor]:  # noqa: ARG002
        rows = torch.arange(-1, len(self.distances))
        self.distances.data = self.distances.data[rows.clamp_min(0)]
        return {"distances": rows}

    def fit_shapes(self, state: dict[str, Tensor]) -> None:
        self.distances.data = torch.zeros_like(state["distances"])

    def forward(self, clip: Clip) -> Prediction:
        *batch, _, height, width = clip.images.shape
        pose = torch.eye(4, device=clip.images.device).expand(*batch, 4, 4)
        lens = clip.images.new_tensor([[width, 0, width / 2], [0, width, height / 2], [0, 0, 1]])
        cameras = Cameras(world_from_camera=pose, intrinsics=lens.expand(*batch, 3, 3))
        depth = self.distances.mean().expand(*batch, height, width)
        return Prediction(depth=depth, depth_confidence=1 + torch.ones_like(depth), cameras=cameras)


OURS = {"kind": "alternating", "patch_size": 8, "width": 32, "rounds": 2, "heads": 2}
THICK = {"thick": {"kind": "thick"}}
OWN: dict[str, tuple[object, object]] = {
    "parts": ({"backbone": {"kind": "second"}, "heads": THICK}, THICK),
    "a head on a backbone of ours": ({"backbone": OURS, "heads": THICK}, THICK),
    "a model": ({"kind": "slab"}, {"depth": {"kind": "depth"}}),
}
"""Model and losses of a run."""


@pytest.fixture(autouse=True)
def _extended() -> Iterator[None]:
    before = list(extension._ADDED)  # pyright: ignore[reportPrivateUsage]
    four_d.extend(ThickHeadConfig, SecondConfig, ThickLossConfig, SlabConfig)
    yield
    extension._ADDED[:] = before  # pyright: ignore[reportPrivateUsage]


@pytest.fixture(scope="module")
def boxes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_data(tmp_path_factory.mktemp("data"))


class Fire(lightning.Callback):
    """Ends a run before its third step."""

    def on_train_batch_start(self, *given: object) -> None:
        assert isinstance(given[1], TrainingModule)
        if given[1].step == 2:
            raise RuntimeError("the house burns down")


def own(what: str, data: Path, folder: Path, steps: int) -> RunConfig:
    loop = {"max_steps": steps, "epoch_steps": 2, "ema": 0.9, "precision": "fp32", "accelerator": "cpu"}
    plain = cast(schema.Plain, schema.to_plain(validated(data, folder, loop=loop, data={"validation_clips": 1})))
    return schema.build(RunConfig, {**plain, "model": OWN[what][0], "losses": OWN[what][1]}, "config")


def check_windows(model: LoadedModel, folder: Path) -> None:
    """A video of three windows: every frame once, and the points that the first window saw."""
    pictures = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    points = [(2, 10.5, 20.5), (6, 8.5, 8.5)] if model.abilities.follows else None
    infer(model, pictures, str(folder / "seen"), points=points, window=4, overlap=2)
    with np.load(folder / "seen/prediction.npz") as found:
        written = dict(found)
    maps = written["thickness" if points else "depth"]
    assert maps.shape == (8, *maps.shape[1:])
    assert (maps > 0).all()
    if points:
        assert written["picked"].shape == (2, 3)
        assert np.isfinite(written["picked"]).all()


@pytest.mark.parametrize("what", OWN)
def test_what_is_ones_own_trains_resumes_validates_exports_and_is_scored(
    what: str, boxes: Path, tmp_path: Path
) -> None:
    straight = four_d.train(own(what, boxes, tmp_path / "straight", 3))
    assert straight.validation["loss"] > 0
    with pytest.raises(RuntimeError, match="burns down"):
        four_d.train(own(what, boxes, tmp_path / "resumed", 3), callbacks=[Fire()])
    resumed = four_d.train(own(what, boxes, tmp_path / "resumed", 3))
    assert resumed.steps == straight.steps == 3
    one, two = (checkpoints.read(tmp_path / name / "test").model for name in ("straight", "resumed"))
    assert_same(one.state_dict(), two.state_dict())
    assert what != "a model" or len(one.state_dict()["distances"]) == 4 + 3
    tuned = TrainingModule(own(what, boxes, tmp_path / "tuned", 3), checkpoints.read(tmp_path / "straight" / "test"))
    assert_same(tuned.model.state_dict(), one.state_dict())
    assert main(["export", str(tmp_path / "straight" / "test"), "--out", str(tmp_path / "out")]) == 0
    loaded = four_d.load(tmp_path / "out")
    check_windows(loaded, tmp_path)
    found = evaluate(loaded, EvaluationConfig(data=str(boxes), frames=4, clips=1, size=(16, 16), device="cpu"))
    assert ("depth_absrel_median_frame" in found.rows["model"]) == ("depth" in loaded.abilities.outputs)


def thickness_error(video: Comparison) -> float | None:
    found, (truth, valid) = video.prediction, video.true_depth
    if not isinstance(found, Thick) or found.thickness is None:
        return None
    return float((found.thickness - truth.to(found.thickness)).abs()[valid].mean())


def test_a_metric_of_ones_own_field_is_validated_chooses_the_best_and_is_evaluated(boxes: Path, tmp_path: Path) -> None:
    after = iter([0.1, 0.3, 0.2])

    def hits(video: Comparison) -> float | None:
        return None if thickness_error(video) is None else next(after)

    error = Metric("thickness_error", "mean of |t − g|", unit="m", better="lower", compute=thickness_error)
    mine = [error, Metric("hits", "a figure of which more is better", better="higher", compute=hits)]
    config = own("a head on a backbone of ours", boxes, tmp_path, 6)
    config = replace(config, loop=replace(config.loop, best="hits"))
    result = four_d.train(config, metrics=mine)
    assert result.validation["hits"] == pytest.approx(0.2)
    assert 0 < result.validation["thickness_error"] < 10
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "validation"]
    assert [line["hits"] for line in lines] == pytest.approx([0.1, 0.3, 0.2])
    assert result.best is not None
    assert torch.load(result.best, weights_only=True)["run"]["step"] == 4
    model = four_d.load(config.run_folder)
    settings = EvaluationConfig(data=str(boxes), frames=4, clips=1, size=(16, 16), device="cpu")
    found = evaluate(model, settings, metrics=[error])
    assert found.rows["model"]["thickness_error"].mean > 0
    assert "thickness_error" not in found.rows["flat_depth"]


def test_what_cannot_choose_the_best_is_refused_before_the_first_step(boxes: Path, tmp_path: Path) -> None:
    share = Metric("share", "neither good nor bad", compute=thickness_error)
    config = own("a head on a backbone of ours", boxes, tmp_path, 2)
    for best, message in (("share", "of which more is not better or worse"), ("shares", "which no validation gives")):
        with pytest.raises(UserError, match=rf"loop\.best is '{best}', {message}; choose .*loss"):
            four_d.train(replace(config, loop=replace(config.loop, best=best)), metrics=[share])
    with pytest.raises(UserError, match="there is a figure thick already"):
        four_d.train(config, metrics=[replace(share, name="thick")])
    assert not [line for line in read_metrics(config.run_folder) if line["split"] == "train"]


def first_batch(module: TrainingModule) -> Example:
    return RunData(module.config).training[0].batches[0]


def test_placeholders_for_missing_truth_are_no_truth(data: Path, tmp_path: Path) -> None:
    """In a batch a clip without depth has depth 0 beside the depth of the others."""
    module = TrainingModule(own("parts", data, tmp_path, 1))
    example = first_batch(module)
    valid = example.targets.valid
    assert valid is not None
    assert not valid.flatten(1).any(-1).all(), "clip 1 is bare"
    assert valid.any()
    prediction = cast(Thick, module.model(example.inputs))
    assert prediction.thickness is not None
    beside = torch.where(valid, prediction.thickness, 1e6)
    inputs = [
        LossInputs(prediction=replace(prediction, thickness=each), targets=example.targets)
        for each in (prediction.thickness, beside)
    ]
    assert torch.equal(*(module.losses["thick"](each) for each in inputs))


def test_a_head_of_ones_own_computes_in_full_precision_under_autocast(boxes: Path, tmp_path: Path) -> None:
    module = TrainingModule(own("parts", boxes, tmp_path, 1))
    clip = first_batch(module).inputs
    model = cast(FourD, module.model)
    with torch.autocast("cpu", torch.bfloat16):
        tokens = model.backbone(clip, model.rounds)
        found = cast(Thick, model(clip)).thickness
    assert tokens.patches[0].dtype == torch.bfloat16
    expected = cast(Thick, model.heads["thick"](widened(tokens), clip)).thickness
    assert found is not None
    assert expected is not None
    assert torch.equal(found, expected)


def test_a_term_of_ones_own_computes_in_full_precision_under_autocast(data: Path, tmp_path: Path) -> None:
    """Its own layers, and on a prediction that a head gives in half precision."""
    extend(PathLossConfig)
    module = TrainingModule(with_paths(data, tmp_path))
    example = first_batch(module)
    with torch.autocast("cpu", torch.bfloat16):
        prediction, terms = module.terms(example)
    exact = module.losses["path"](LossInputs(prediction=prediction, targets=example.targets))
    assert exact > 0
    assert torch.equal(terms["path"], exact)
    assert prediction.motion is not None
    halved = replace(prediction, motion=prediction.motion.bfloat16())
    inputs = LossInputs(prediction=halved, targets=example.targets)
    with torch.autocast("cpu", torch.bfloat16):
        value = values_of(module.losses.items(), inputs)["path"]
    assert value.dtype == torch.float32
    assert torch.equal(value, module.losses["path"](replace(inputs, prediction=widened(halved))))


def test_an_unknown_kind_says_what_to_do(boxes: Path, tmp_path: Path) -> None:
    four_d.train(own("parts", boxes, tmp_path, 1))
    extension._ADDED.clear()  # pyright: ignore[reportPrivateUsage]
    with pytest.raises(UserError, match=r"backbone\.kind is 'second'; choose one of .*four_d\.extend\(") as raised:
        four_d.load(tmp_path / "test")
    assert "\n" not in str(raised.value)


def test_a_class_that_is_no_part_is_refused() -> None:
    with pytest.raises(UserError, match="Path is no config class; make it a frozen dataclass with kind"):
        four_d.extend(Path)

    class LampSpec:
        """Ends as the protocols of parts do, and is none."""

    said = [("kind", Literal["lamp"], field(default="lamp"))]
    with pytest.raises(UserError, match="Lamp is of no open union; let it inherit from HeadSpec"):
        four_d.extend(make_dataclass("Lamp", said, bases=(LampSpec,), frozen=True))


def test_a_head_that_needs_every_frame_is_refused_on_some() -> None:
    plain = {"backbone": {"kind": "second"}, "heads": {"depth": {"kind": "dense"}}}
    with pytest.raises(UserError, match=r"heads\.depth requires tokens of every frame, which the second backbone"):
        schema.build(ModelConfig, plain, "model").build()


def of_kind(kind: str, module: str = "mine") -> type:
    """A config class of a head called Mine."""
    said = [("kind", Literal[kind], field(default=kind))]  # pyright: ignore[reportInvalidTypeForm, reportUndefinedVariable]
    bases, namespace = (ThickHeadConfig,), {"__module__": module}
    return make_dataclass("Mine", said, bases=bases, namespace=namespace, frozen=True, kw_only=True)


def test_a_kind_is_one_class() -> None:
    """A class made anew takes its own place, and no other's: of the package, of another module, of another kind."""
    for kind, other in (("dense", r"four_d\.heads\.dense\.DenseHeadConfig"), ("thick", r".*ThickHeadConfig")):
        with pytest.raises(UserError, match=f"Mine has the kind '{kind}', which {other} has; choose another"):
            four_d.extend(of_kind(kind))
    again = of_kind("mine")
    four_d.extend(of_kind("mine"), again, of_kind("yours"), of_kind("theirs", "elsewhere"))
    heads = schema.kinds_of(schema.branches(HeadConfig))
    assert heads["mine"] is again
    assert {"dense", "thick", "yours", "theirs"} <= set(heads)


@dataclass(frozen=True, kw_only=True)
class Facing(Prediction):
    normals: Float[Tensor, "*b f h w 3"] | None = field(
        default=None, metadata=NORMAL | drawn(NORMALS, "Surface normals")
    )
    shade: Float[Tensor, "*b f h w"] | None = field(
        default=None, metadata=NONE | drawn(lambda shade: np.uint8(255 * shade[..., None].repeat(3, -1)), "Shade")
    )


@dataclass(frozen=True, kw_only=True)
class FacingHeadConfig(HeadSpec):
    kind: Literal["facing"] = "facing"
    prediction = Facing
    provides = ("normals", "shade")

    def build(self, shape: TokenShape) -> FacingHead:
        return FacingHead(self, shape)


class FacingHead(nn.Module):
    """A wall that turns from the right to the left, whatever it sees."""

    def __init__(self, config: FacingHeadConfig, shape: TokenShape) -> None:
        super().__init__()
        self.config, self.rounds = config, (shape.rounds - 1,)
        self.tilt = nn.Parameter(torch.zeros(()))

    def forward(self, tokens: Tokens, clip: Clip) -> Facing:  # noqa: ARG002
        b, f, _, h, w = clip.images.shape
        right = torch.linspace(0.9, -0.9, f)[:, None, None].expand(b, f, h, w) + 0 * self.tilt
        normals = torch.stack([right, torch.zeros_like(right), -(1 - right**2).sqrt()], dim=-1)
        return Facing(normals=normals, shade=-normals[..., 2])


def test_what_a_head_of_ones_own_draws_is_shown_everywhere(boxes: Path, tmp_path: Path) -> None:
    """In pictures of validation, in the report and the files of a video of several windows; the card names them."""
    four_d.extend(FacingHeadConfig)
    plain = cast(dict[str, Any], schema.to_plain(own("parts", boxes, tmp_path, 1)))
    plain["model"]["heads"] = {"facing": {"kind": "facing"}, **THICK}
    plain["logging"] = {"every": 1, "pictures": 1}
    config = schema.build(RunConfig, plain, "config")
    four_d.train(config)
    (picture,) = sorted((config.run_folder / "pictures").iterdir())
    first = (242, 128, 183)  # 255 / 2 · (1 + 0.9, 1 + 0, 1 + √(1 - 0.9²))
    sheet = np.asarray(Image.open(picture))
    assert (sheet == first).all(-1).sum() >= 128**2
    assert (sheet == (111, 111, 111)).all(-1).sum() >= 128**2
    out = export(config.run_folder, tmp_path / "model", formats=["safetensors"])
    assert "result.prediction.normals, result.prediction.shade" in (out / "README.md").read_text()
    frames = np.random.default_rng(0).integers(0, 255, (8, 32, 32, 3), np.uint8)
    infer(four_d.load(out), frames, tmp_path / "seen", window=4, overlap=2)
    page = (tmp_path / "seen" / "report.html").read_text()
    assert [f'aria-label="{title}"' in page for title in ("Surface normals", "Shade", "Thickness")] == [
        True,
        True,
        False,
    ]
    files = sorted((tmp_path / "seen" / "normals").iterdir())
    assert [file.name for file in files] == [f"{index:06d}.png" for index in range(8)]
    assert (np.asarray(Image.open(files[0])) == first).all()
    assert len({file.read_bytes() for file in files}) > 2
    assert (np.asarray(Image.open(tmp_path / "seen" / "shade" / "000000.png")) == 111).all()


def test_a_unit_that_poses_tell_is_refused_to_lengths_of_ones_own(boxes: Path, tmp_path: Path) -> None:
    hints = {"intrinsics": "required", "poses": "required"}
    plain = cast(schema.Plain, schema.to_plain(own("a head on a backbone of ours", boxes, tmp_path, 1)))
    cast(dict[str, dict[str, object]], plain["model"])["backbone"] |= {"hints": hints}
    shares = {"intrinsics": 1.0, "poses": 1.0}
    plain["data"] = {**cast(schema.Plain, plain["data"]), "hints": shares, "normalisation": "disparity"}
    (tmp_path / "run.yaml").write_text(yaml.safe_dump(plain))
    with pytest.raises(UserError, match=r"the model's picked would be in it; set data\.normalisation"):
        load([tmp_path / "run.yaml"])

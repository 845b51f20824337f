from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import NoReturn

import pytest
import torch
from jaxtyping import Float
from torch import Tensor

from four_d import evaluation
from four_d.abilities import Abilities, ModelModule
from four_d.cli import main, parse, runs
from four_d.cli.common import placed
from four_d.cli.fit import FORMS as FIT_FORMS
from four_d.cli.fitting import Fit
from four_d.cli.flags import from_flags
from four_d.cli.infer import FORMS
from four_d.cli.request import Infer
from four_d.config import LoopConfig
from four_d.devices import Precision, autocasts, computing, emulates_bf16, tensor_cores, told_when_full, usable
from four_d.errors import UserError
from four_d.evaluation import novel
from four_d.inference import LoadedModel, Selection, infer, novel_views
from four_d.metrics.baselines import StaticCamera
from four_d.model import FourD
from four_d.training import run as training_run
from four_d.training import train
from four_d.training.run import slow_precision
from four_d.types import POINT, Cameras, Clip, Gaussians, Prediction, Views
from tests.protocols import written
from tests.test_inference import BIKES, model
from tests.test_model import build, make_clip
from tests.test_novel import make_clip as shown
from tests.test_novel import wall
from tests.test_novel_views import SIZE, cameras, moving
from tests.training.runs import make_data, tiny


def switches() -> tuple[bool, bool]:
    return torch.backends.cuda.matmul.allow_tf32, torch.backends.cudnn.allow_tf32


def test_a_name_of_a_device_is_one_or_an_error_of_one_line() -> None:
    assert usable("cpu") == torch.device("cpu")
    for name in ("cuda:99", "abacus"):
        with pytest.raises(UserError, match=rf"no device '{name}' on this machine.*; choose one of auto, cpu"):
            usable(name)


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_a_gpu_where_there_is_one(
    monkeypatch: pytest.MonkeyPatch, cuda: bool, mps: bool, expected: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert usable("auto").type == expected


@pytest.mark.parametrize(("built", "told"), [(None, "is not built for CUDA: install one"), ("13.0", "nvidia-smi")])
def test_a_missing_gpu_is_an_error_with_the_remedy(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, built: str | None, told: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.version, "cuda", built)

    def none(*_: object, **__: object) -> NoReturn:
        raise RuntimeError("torch says so at length")

    monkeypatch.setattr(torch, "empty", none)
    with pytest.raises(UserError, match=rf"^no device 'cuda' on this machine \(.*{told}.*\); choose one of auto, cpu$"):
        train(tiny(tmp_path, tmp_path, loop={"accelerator": "cuda"}))


def test_the_choice_is_told_in_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def enough(*_: object) -> NoReturn:
        raise UserError("enough")

    monkeypatch.setattr(training_run, "_fit", enough)
    with pytest.raises(UserError, match="enough"):
        train(tiny(make_data(tmp_path / "data", range(1)), tmp_path))
    placed(model(), "cpu", "bf16")
    assert [line for line in caplog.messages if " on cpu in " in line] == [
        "training test on cpu in fp32",
        "computing on cpu in bf16",
    ]


def test_every_verb_that_computes_takes_a_device() -> None:
    asked = from_flags(parse(["train", "vggt", "seed=1", "--device", "mps"]), runs.Train)
    assert runs.given(asked) == (["vggt"], ["seed=1", "loop.accelerator=mps"])
    assert runs.given(from_flags(parse(["finetune", "vggt"]), runs.Train)) == (["vggt"], [])
    assert from_flags(parse(["eval", "runs/a", "data=b", "--device", "cuda:1"]), runs.Eval).device == "cuda:1"
    words = ["fit", "a.mp4", "--object", "a.ply", "--out", "b", "--device", "cpu"]
    assert from_flags(parse(words), Fit, FIT_FORMS).request.device == "cpu"


@pytest.mark.parametrize(
    ("precision", "expected"), [("fp32", (False, False)), ("tf32", (True, True)), ("bf16", (False, True))]
)
def test_a_precision_says_what_tensor_cores_may_do(precision: Precision, expected: tuple[bool, bool]) -> None:
    before = switches()
    with tensor_cores(precision):
        assert switches() == expected
    assert switches() == before
    with computing(None, torch.device("cpu")):
        assert switches() == before


def test_a_model_computes_as_precisely_as_it_is_told() -> None:
    network, clip = build().eval(), make_clip()
    plain = depth(network(clip))
    with torch.autocast("cpu", torch.bfloat16):
        around = depth(network(clip))
        network.precision = "fp32"
        assert torch.equal(depth(network(clip)), plain)
    network.precision = "bf16"
    half = depth(network(clip))
    assert torch.equal(half, around)
    assert half.dtype == torch.float32
    assert not torch.equal(half, plain)
    torch.testing.assert_close(half, plain, rtol=0.1, atol=0.05)


class Product(ModelModule):
    """A model without parts or parameters, whose depth is a product."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("weight", torch.rand(24, 24, generator=torch.Generator().manual_seed(0)))

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"depth"}))

    def forward(self, clip: Clip) -> Prediction:
        return Prediction(depth=clip.images.mean(2) @ self.get_buffer("weight"))


def test_a_model_without_parts_or_parameters_computes_where_and_as_it_is_told() -> None:
    loaded = LoadedModel(Product(), model().info)
    full, half = (depth(loaded.to("cpu", precision)(make_clip())) for precision in ("fp32", "bf16"))
    assert half.dtype == torch.float32, "which files can hold"
    assert not torch.equal(full, half)
    torch.testing.assert_close(full, half, rtol=0.02, atol=0.02)
    assert loaded.abilities.arithmetic == "; computed in bf16"
    assert loaded.device.type == "cpu"
    large = make_clip(f=40)
    assert depth(loaded(large)).shape == (1, 40, 16, 24)


def test_answers_of_a_models_own_are_of_its_precision_and_checked_as_calls_are() -> None:
    class Answers(Product):
        outputs = frozenset({"depth"})

        @property
        def abilities(self) -> Abilities:
            return Abilities(outputs=self.outputs)

        def answers(self, clip: Clip) -> Iterator[Prediction]:
            yield from (self.forward(clip) for _ in range(2))

    plain, own = Product(), Answers()
    plain.precision = own.precision = "bf16"
    found = [depth(said) for said in own.passes(make_clip())]
    assert len(found) == 2
    for each in (*found, *map(depth, plain.passes(make_clip()))):
        assert each.dtype == torch.float32, "which files can hold"
        assert torch.equal(each, depth(plain(make_clip())))
    own.outputs = frozenset[str]()
    with pytest.raises(TypeError, match=r"predicts Prediction\.depth, which its abilities\.outputs"):
        list(own.passes(make_clip()))


def depth(prediction: Prediction) -> Tensor:
    assert prediction.depth is not None
    return prediction.depth.detach()


@dataclass(frozen=True, kw_only=True)
class Joints(Prediction):
    joints: Float[Tensor, "*b f n 3"] | None = field(default=None, metadata=POINT)


def test_an_axis_of_query_points_is_refused_where_none_are_answered() -> None:
    class Says(Product):
        @property
        def abilities(self) -> Abilities:
            return Abilities(outputs=frozenset({"joints"}), predictions=(Joints,))

        def forward(self, clip: Clip) -> Joints:
            return Joints(joints=clip.images.flatten(3).mT[:, :, :7])

    with pytest.raises(TypeError, match=r"joints has an axis n, .* this model answers none; rename the axis"):
        Says()(make_clip())


def test_precision_ends_where_an_answer_is_given() -> None:
    """A generator that is asked for its next answer must not leave autocast on for whoever asks."""
    network = build().eval()
    network.precision = "bf16"
    before = switches()
    for _ in network.passes(make_clip()):
        assert not torch.is_autocast_enabled("cpu")
        assert switches() == before


def test_a_loaded_model_takes_device_and_precision_and_clips_from_anywhere() -> None:
    loaded = model()
    assert loaded.to("cpu").model.precision is None
    assert loaded.to("auto", "bf16").model.precision == "bf16"
    assert loaded.to("cpu").model.precision == "bf16"
    elsewhere = LoadedModel(loaded.model.to("meta"), loaded.info)
    assert elsewhere.here(make_clip()).images.device.type == "meta"


def test_novel_views_are_drawn_where_they_are_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(gaussians: Gaussians, *rest: object, **_: object) -> Views:
        devices.update({gaussians.means.device.type, *(each.device.type for each in rest if isinstance(each, Tensor))})
        return Views(colour=torch.zeros(1, 1, 3, *SIZE), alpha=torch.zeros(1, 1, *SIZE), depth=torch.zeros(1, 1, *SIZE))

    devices: set[str] = set()
    monkeypatch.setattr(novel_views, "render", draw)
    list(novel_views.novel_views(moving(), cameras(), torch.tensor([9.0, 9.0]), SIZE, device=torch.device("meta")))
    assert devices == {"meta"}


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 79 GiB."),
        RuntimeError("[enforce fail at alloc_cpu.cpp:124] DefaultCPUAllocator: can't allocate memory: 5 bytes\nstack"),
        MemoryError("Unable to allocate 3 TiB"),
    ],
)
def test_full_memory_is_one_line_with_a_remedy(error: Exception) -> None:
    with (
        pytest.raises(UserError, match=r"llocate.*; take fewer") as raised,
        told_when_full("take fewer frames"),
    ):
        raise error
    assert len(str(raised.value).splitlines()) == 1
    with pytest.raises(RuntimeError, match="shape"), told_when_full("take fewer frames"):
        raise RuntimeError("shape")


def test_notes_say_how_precisely_was_computed() -> None:
    loaded = model()
    assert loaded.abilities.arithmetic == StaticCamera().abilities.arithmetic == ""
    assert loaded.to("cpu", "fp32").abilities.arithmetic == ""
    assert loaded.to("cpu", "bf16").abilities.arithmetic == "; computed in bf16"


def test_infer_takes_a_device_and_a_precision(capsys: pytest.CaptureFixture[str]) -> None:
    asked = from_flags(parse(["infer", "clip.mp4", "--out", "out"]), Infer, FORMS)
    assert (asked.device, asked.precision) == ("auto", "fp32")
    asked = from_flags(parse(["infer", "clip.mp4", "--out", "out", "--precision", "tf32"]), Infer, FORMS)
    assert asked.precision == "tf32"
    assert main(["infer", "clip.mp4", "--out", "out", "--device", "cuda:99"]) == 2
    assert "no device 'cuda:99' on this machine" in capsys.readouterr().err


def test_infer_compiles_on_demand(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(_: Path) -> LoadedModel:
        return loaded

    def nothing(*_: object, **__: object) -> None:
        pass

    compiled: list[object] = []
    loaded = model()
    monkeypatch.setattr("four_d.inference.load", load)
    monkeypatch.setattr("four_d.inference.infer", nothing)
    monkeypatch.setattr("four_d.model.compile_blocks", compiled.append)
    command = [
        "infer",
        str(BIKES),
        "--model",
        str(tmp_path / "model"),
        "--out",
        str(tmp_path / "out"),
        "--device",
        "cpu",
    ]
    assert main(command) == 0
    assert not compiled
    assert main([*command, "--compile"]) == 0
    assert compiled == [loaded.model]


def test_pictures_are_drawn_on_the_models_device_and_scored_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    def draw(gaussians: Gaussians, cameras: Cameras, times: Tensor, size: tuple[int, int]) -> Views:
        devices.update(each.device.type for each in (gaussians.means, cameras.intrinsics, times))
        blank = torch.zeros(1, 3, *size)
        return Views(colour=blank[:, :, None].expand(-1, -1, 3, -1, -1), alpha=blank, depth=blank)

    devices: set[str] = set()
    monkeypatch.setattr(novel, "render", draw)
    assert "render_psnr" in novel.novel_scores(wall(0.5), shown(), device=torch.device("meta"))
    assert devices == {"meta"}


def full(*_: object, **__: object) -> NoReturn:
    raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of 8 GiB.")


SAID = r"^CUDA out of memory\. Tried to allocate 2\.00 GiB; "


def test_where_memory_runs_out_each_verb_says_what_to_lower(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FourD, "forward", full)
    monkeypatch.setattr(FourD, "passes", full)
    with pytest.raises(UserError, match=SAID + r".*--window"):
        infer(model(), BIKES, tmp_path / "out", selection=Selection(max_frames=2))
    assert not (tmp_path / "out").exists()
    data = make_data(tmp_path / "data", range(2))
    with pytest.raises(UserError, match=SAID + r".*images_per_batch"):
        train(tiny(data, tmp_path))
    with pytest.raises(UserError, match=SAID + r".*precision=bf16"):
        evaluation.run(model(), evaluation.EvaluationConfig(data=str(data), frames=2, clips=1, size=(32, 48)))
    written.folder(tmp_path / "set")
    config = evaluation.PublishedConfig(protocol="folder", root=str(tmp_path / "set"), tasks=("depth",), long_side=32)
    failed = evaluation.run_protocol(model(), config, patch=16, trained=(32, 48)).failed
    assert failed
    assert all(re.match(SAID + r".*long_side", each.reason) for each in failed)


@pytest.mark.parametrize(
    ("capability", "device", "emulated"), [("AVX2", "cpu", True), ("AVX512", "cpu", False), ("AVX2", "cuda", False)]
)
def test_a_cpu_without_avx_512_emulates_bf16(
    monkeypatch: pytest.MonkeyPatch, capability: str, device: str, emulated: bool
) -> None:
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert emulates_bf16(torch.device(device)) == emulated
    for precision in ("bf16", "fp32"):
        lines = slow_precision(LoopConfig(precision=precision), torch.device(device))
        assert [line.rpartition("; ")[2] for line in lines] == ["set loop.precision=fp32"] * (
            emulated and precision == "bf16"
        )


def test_a_device_without_autocast_is_not_asked_for_it(monkeypatch: pytest.MonkeyPatch) -> None:
    """As torch 2.11 does, where other versions say False of ``meta``."""

    def asked(kind: str) -> bool:
        if kind == "meta":
            raise RuntimeError("unknown device type for autocast")
        return True

    monkeypatch.setattr(torch, "is_autocast_enabled", asked)
    assert autocasts("cpu")
    assert not autocasts("meta")

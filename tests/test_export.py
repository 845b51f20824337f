"""An export loads to the same model, its program gives the same numbers, and nothing half-made appears."""

import dataclasses
import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import four_d.export
from four_d import checkpoints
from four_d.backbones.alternating import AlternatingConfig
from four_d.checkpoints import ModelInfo
from four_d.config import RunConfig, to_plain
from four_d.data.loading import DataConfig, SourceConfig
from four_d.errors import UserError
from four_d.export import export, to_program
from four_d.heads import CameraHeadConfig, DenseHeadConfig
from four_d.model import FourD, ModelConfig, compile_blocks
from four_d.types import Clip, Prediction

DENSE = {"channels": (8, 8, 8, 8), "features": 16, "last_features": 8}
TINY = ModelConfig(
    backbone=AlternatingConfig(patch_size=8, width=32, rounds=2, heads=2, layer_scale=None),
    heads={
        "camera": CameraHeadConfig(depth=1, heads=2, iterations=2),
        "depth": DenseHeadConfig(output="depth", **DENSE),  # pyright: ignore[reportArgumentType]
        "points": DenseHeadConfig(output="points", **DENSE),  # pyright: ignore[reportArgumentType]
    },
)
RUN = RunConfig(
    name="tiny",
    model=TINY,
    data=DataConfig(sources={"boxes": SourceConfig(path="nowhere")}, image_size=(32, 48)),
    losses={},
)


def tiny_model(seed: int = 0) -> FourD:
    torch.manual_seed(seed)
    return TINY.build().eval()


def write_run(folder: Path, model: FourD) -> Path:
    """A run folder as training leaves it."""
    file = folder / checkpoints.LAST
    file.parent.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    content = {"state_dict": {**state, "other": torch.zeros(1)}, "run": {"config": to_plain(RUN), "step": 7}}
    torch.save(content, file)
    return folder


def predict(model: FourD, frames: int = 3) -> Prediction:
    generator = torch.Generator().manual_seed(1)
    times = torch.zeros(1, frames)
    images = torch.rand(1, frames, 3, 32, 48, generator=generator)
    with torch.no_grad():
        return model(Clip(images=images, times=times, camera_ids=times.long()))


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("export")
    run = write_run(folder / "run", tiny_model())
    return export(run, folder / "model", scores={"depth_absrel_median_frame": 0.25})


def test_run_loads_to_the_same_model(tmp_path: Path) -> None:
    model = tiny_model()
    found = checkpoints.read(write_run(tmp_path / "run", model))
    assert (found.info.image_size, found.info.steps, found.info.trained_on) == ((32, 48), 7, {"boxes": "unknown"})
    assert torch.equal(predict(found.model).depth, predict(model).depth)
    assert not found.model.training
    single = checkpoints.read(tmp_path / "run" / checkpoints.LAST)
    assert torch.equal(predict(single.model).depth, predict(model).depth)


def test_export_loads_to_the_same_model(exported: Path) -> None:
    found = checkpoints.read(exported)
    want, got = predict(tiny_model()), predict(found.model)
    assert torch.equal(want.depth, got.depth)
    assert torch.equal(want.cameras.world_from_camera, got.cameras.world_from_camera)
    assert found.info.scores == {"depth_absrel_median_frame": 0.25}
    assert found.info.model == TINY


def test_export_of_an_export_is_the_same(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    outputs = json.loads((exported / "export.json").read_text())["outputs"]
    errors = {name: value["largest_relative_error"] for name, value in outputs.items()}
    monkeypatch.setattr(four_d.export, "to_program", lambda *_: (None, errors))  # tracing again takes seconds
    monkeypatch.setattr(torch.export, "save", lambda _, file: file.write(b"program"))
    again = export(exported, tmp_path / "again")
    for name in ("model.safetensors", "config.json", "README.md"):
        assert (again / name).read_bytes() == (exported / name).read_bytes()


def test_card_says_what_it_is(exported: Path) -> None:
    card = (exported / "README.md").read_text()
    for text in (
        "# tiny",
        "four_d.load",
        "7 steps on boxes",
        "32 × 48",
        "| depth_absrel_median_frame | 0.25 |",
        "unknown",
    ):
        assert text in card


def test_program_runs_without_this_package(exported: Path) -> None:
    """In a fresh interpreter that never imports four_d, with a number of frames that was never traced or checked."""
    code = (
        "import sys, torch\n"
        f"program = torch.export.load({str(exported / 'model.pt2')!r}).module()\n"
        "images = torch.rand(1, 7, 3, 32, 48, generator=torch.Generator().manual_seed(1))\n"
        "out = program(images)\n"
        "assert not any(name.split('.')[0] == 'four_d' for name in sys.modules)\n"
        "torch.save(out, sys.argv[1])\n"
    )
    result = exported.parent / "out.pt"
    subprocess.run([sys.executable, "-c", code, str(result)], check=True, capture_output=True, timeout=120)
    given, want = torch.load(result), predict(tiny_model(), frames=7)
    torch.testing.assert_close(given["depth"], want.depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given["world_from_camera"], want.cameras.world_from_camera, atol=1e-5, rtol=1e-5)
    note = json.loads((exported / "export.json").read_text())
    assert set(note["outputs"]) == set(given)
    assert all(value["largest_relative_error"] <= four_d.export.TOLERANCE for value in note["outputs"].values())


def test_compiled_blocks_do_not_matter() -> None:
    model = tiny_model()
    compile_blocks(model)
    _, errors = to_program(model, (32, 48))
    assert max(errors.values()) <= four_d.export.TOLERANCE


def test_wrong_program_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", tiny_model())
    monkeypatch.setattr(four_d.export, "relative_error", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"off by 0\.5"):
        export(run, tmp_path / "model")
    assert sorted(p.name for p in tmp_path.iterdir()) == ["run"]


def test_no_disk_space(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, exported: Path) -> None:
    def full(path: Path, data: bytes) -> int:
        raise OSError(28, "No space left on device", str(path))

    monkeypatch.setattr(Path, "write_bytes", full)
    with pytest.raises(UserError, match="No space left"):
        export(exported, tmp_path / "model")
    assert not list(tmp_path.iterdir())


def test_relative_error() -> None:
    assert four_d.export.relative_error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0])) == pytest.approx(0.1)
    assert four_d.export.relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")


def damage(folder: Path, what: str) -> None:
    info = json.loads((folder / "config.json").read_text())
    if what == "weights cut":
        content = (folder / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[: len(content) // 2])
    elif what == "weights gone":
        (folder / "model.safetensors").unlink()
    elif what == "not json":
        (folder / "config.json").write_text("{")
    elif what == "newer":
        (folder / "config.json").write_text(json.dumps({**info, "format": 99}))
    elif what == "other width":
        info["model"]["backbone"]["width"] = 64
        (folder / "config.json").write_text(json.dumps(info))
    elif what == "one head less":
        del info["model"]["heads"]["points"]
        (folder / "config.json").write_text(json.dumps(info))
    elif what == "unknown key":
        (folder / "config.json").write_text(json.dumps({**info, "colour": "blue"}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights cut", r"model\.safetensors cannot be read"),
        ("weights gone", r"model\.safetensors cannot be read"),
        ("not json", r"config\.json cannot be read"),
        ("newer", "format 99"),
        ("other width", "does not belong to the config"),
        ("one head less", "model lacks, the weight heads.points"),
        ("unknown key", "colour is not a setting"),
    ],
)
def test_damaged_export(exported: Path, tmp_path: Path, what: str, message: str) -> None:
    for name in ("config.json", "model.safetensors"):
        (tmp_path / name).write_bytes((exported / name).read_bytes())
    damage(tmp_path, what)
    with pytest.raises(UserError, match=message) as raised:
        checkpoints.read(tmp_path)
    assert len(str(raised.value).splitlines()) <= 2


def test_damaged_or_absent_run(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="does not exist"):
        checkpoints.read(tmp_path / "nothing")
    with pytest.raises(UserError, match="holds no model"):
        checkpoints.read(tmp_path)
    run = write_run(tmp_path / "run", tiny_model())
    file = run / checkpoints.LAST
    content = file.read_bytes()
    for damaged in (b"", content[: len(content) // 2], b"not a checkpoint"):
        file.write_bytes(damaged)
        with pytest.raises(UserError, match=r"last\.ckpt is no checkpoint"):
            checkpoints.read(run)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(UserError, match="run"):
        checkpoints.read(run)


def test_info_round_trip(tmp_path: Path) -> None:
    info = ModelInfo(
        model=TINY, image_size=(32, 48), frames=9, name="x", trained_on={"a": "CC0-1.0"}, scores={"m": 0.5}
    )
    checkpoints.write_info(tmp_path / "config.json", info)
    assert checkpoints.read_info(tmp_path / "config.json") == info
    assert dataclasses.replace(info, frames=8) != info

"""An export loads to the same model, its program gives the same numbers, and nothing half-made appears."""

import dataclasses
import importlib
import json
import os
import shutil
import subprocess
import sys
import types
from pathlib import Path

import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file

import four_d
from four_d import checkpoints, cli, exporting, logs, portable, programs, tracing
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.checkpoints import ModelInfo
from four_d.config import RunConfig
from four_d.correlation import CorrelationConfig
from four_d.cost_volume import CostVolumeConfig
from four_d.data.loading import DataConfig
from four_d.data.sources import SourceConfig
from four_d.errors import UserError
from four_d.exporting import card, export, read_scores, round_weights
from four_d.heads import CameraHeadConfig, DenseHeadConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.model import FourD, ModelConfig, compile_blocks
from four_d.refinement import RefinementConfig
from four_d.schema import to_plain
from four_d.tracing import TOLERANCE, output_names, signature, to_program
from four_d.types import Cameras, Clip, Prediction

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
    made = {"command": ["/some/where/four-d", "train", "vggt", "data.sources.s.path=/home/me/worlds", "seed=1"]}
    (run / "environment.json").write_text(json.dumps({**made, "cpus": 2, "machine": "x86_64", "commit": "abc"}))
    (run / "metrics.jsonl").write_text('{"step": 7, "elapsed_s": 90.0}\n{"split": "histogram", "step": 7}\n')
    return export(
        run, folder / "model", scores={"depth_absrel_median_frame": 0.25, "image_free/depth_absrel_median_frame": 0.5}
    )


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
    assert found.info.scores == {"depth_absrel_median_frame": 0.25, "image_free/depth_absrel_median_frame": 0.5}
    assert found.info.model == TINY


def test_an_export_can_leave_out_what_refines_cameras_and_says_so_in_its_config(exported: Path, tmp_path: Path) -> None:
    refined, out = tmp_path / "refined", tmp_path / "model"
    shutil.copytree(exported, refined)
    info = checkpoints.read_info(refined / "config.json")
    model = dataclasses.replace(TINY, refine=RefinementConfig(by="matches"))
    checkpoints.write_info(refined / "config.json", dataclasses.replace(info, model=model))
    kept = checkpoints.read(export(refined, tmp_path / "kept", formats=["safetensors"]))
    assert kept.info.model == model
    plain = checkpoints.read(export(refined, out, formats=["safetensors"], refine=False))
    assert plain.info.model == TINY
    assert not plain.info.scores, "they were scored with it"
    want, got = predict(tiny_model()), predict(plain.model)
    assert torch.equal(want.cameras.world_from_camera, got.cameras.world_from_camera)
    with pytest.raises(UserError, match="refines nothing after its heads"):
        export(out, tmp_path / "again", formats=["safetensors"], refine=False)


def test_export_of_an_export_is_the_same(exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    traced = types.SimpleNamespace(module=lambda: None)
    monkeypatch.setattr(tracing, "trace", lambda *_: traced)  # tracing again takes seconds
    monkeypatch.setattr(tracing, "compare", lambda *_: {})
    monkeypatch.setattr(tracing, "timed", lambda *_: (1.0, 1.0))
    monkeypatch.setattr(programs, "write", lambda file, *_: file.write_bytes(b"program"))
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
        "| metric | value | image_free |",
        "| depth_absrel_median_frame ↓ | 0.25 | 0.5 |",
        "unknown",
        "- command: `four-d train vggt data.sources.s.path=…/worlds seed=1`",
        "- hardware: 2 CPU cores (x86_64)",
        "- minutes: 1.5",
        "- commit: `abc`",
    ):
        assert text in card
    assert "/home" not in card


def test_half_precision_on_disk_is_what_the_model_then_computes_with(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", tiny_model())
    out = export(run, tmp_path / "model", dtype="bf16", formats=["safetensors"])
    weights = load_file(out / "model.safetensors")
    assert {value.dtype for value in weights.values()} == {torch.bfloat16}
    found, original = checkpoints.read(out).model.state_dict(), tiny_model().state_dict()
    assert {value.dtype for value in found.values()} == {torch.float32}
    for name, value in found.items():
        assert torch.equal(value, original[name].bfloat16().float())
    assert {p.name for p in out.iterdir()} == {
        ".four_d.json",
        "README.md",
        "config.json",
        "export.json",
        "model.safetensors",
    }
    assert "depth_confidence, points" in (out / "README.md").read_text()
    assert "model.pt2" not in (out / "README.md").read_text()
    rounded = tiny_model()
    round_weights(rounded, torch.bfloat16)
    assert torch.equal(predict(rounded).depth, predict(checkpoints.read(out).model).depth)
    # once rounded it stays so
    again = export(out, tmp_path / "again", dtype="bf16", formats=["safetensors"])
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


@pytest.mark.parametrize(
    ("content", "scores"),
    [
        (
            {
                "model": "m",
                "summary": {"ate": 0.5, "mask_iou": 1, "image_free": {"ate": 2.0}, "predictors": {"copy": {"x": 3.0}}},
            },
            {"ate": 0.5, "mask_iou": 1.0, "image_free/ate": 2.0, "copy/x": 3.0},
        ),
        ({"ate": 0.5, "note": "x"}, {"ate": 0.5}),
    ],
)
def test_scores_of_an_evaluation(tmp_path: Path, content: object, scores: dict[str, float]) -> None:
    (tmp_path / "scores.json").write_text(json.dumps(content))
    assert read_scores(tmp_path / "scores.json") == scores


@pytest.mark.parametrize("content", ["{", "[]", "{}", '{"summary": 3}', '{"summary": {"a": "b"}}'])
def test_scores_that_are_none(tmp_path: Path, content: str) -> None:
    (tmp_path / "scores.json").write_text(content)
    with pytest.raises(UserError, match=r"scores\.json"):
        read_scores(tmp_path / "scores.json")


# reference models


def make_reference(folder: Path, model: Path, **changes: object) -> Path:
    """`checkpoints/models.json` with one model that is there and a better one that is not."""
    shutil.copytree(model, folder / "here")
    line = {"licence": "CC0-1.0", "summary": "of boxes", "bytes": 1, "sha256": "0", "rank": 1}
    listed = {
        **line,
        "name": "here",
        "rank": 2,
        "sha256": checkpoints.sha256_of(model / "model.safetensors"),
        **changes,
    }
    (folder / "models.json").write_text(json.dumps([listed, {**line, "name": "gone"}]))
    return folder


def test_the_best_reference_that_is_there_is_taken(exported: Path, tmp_path: Path) -> None:
    folder = make_reference(tmp_path / "checkpoints", exported)
    path, reference = checkpoints.best_reference([tmp_path / "none", folder])
    assert (path, reference.rank, reference.licence) == (folder / "here", 2, "CC0-1.0")
    assert [each.name for each in checkpoints.references(folder)] == ["gone", "here"]
    assert checkpoints.read(path).info.name == "tiny"


def test_an_exports_weights_stand_for_its_folder(exported: Path, tmp_path: Path) -> None:
    assert checkpoints.read(exported / "model.safetensors").path == exported
    alone = shutil.copy(exported / "model.safetensors", tmp_path)
    with pytest.raises(UserError, match=r"holds weights alone, and config\.json of an exported folder is not beside"):
        checkpoints.read(alone)
    with pytest.raises(UserError, match=r"nothing\.safetensors does not exist"):
        checkpoints.read(tmp_path / "nothing.safetensors")


def test_a_reference_that_was_changed_is_refused(exported: Path, tmp_path: Path) -> None:
    folder = make_reference(tmp_path / "checkpoints", exported, sha256="0" * 64)
    with pytest.raises(UserError, match=r"sha256 differs"):
        checkpoints.read(folder / "here")
    # anywhere else it is just an export
    assert checkpoints.read(shutil.copytree(folder / "here", tmp_path / "copy")).info.name == "tiny"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"no reference model here \(.*models\.json lists none\); name a model with --model"),
        ("[]", "lists none"),
        ("{", r"models\.json cannot be read"),
        ("{}", r"models\.json holds no list"),
        ('[{"name": "x"}]', r"models\.json\[0\]\.sha256 is missing"),
        ('[{"nam": "x"}]', r"models\.json\[0\]\.nam is not a setting"),
        (
            '[{"name": "x", "sha256": "0", "bytes": 1, "rank": 1, "licence": "l", "summary": "s"}]',
            "none of those listed in .* is there",
        ),
    ],
)
def test_no_reference(tmp_path: Path, content: str | None, message: str) -> None:
    if content is not None:
        (tmp_path / "models.json").write_text(content)
    with pytest.raises(UserError, match=message) as raised:
        checkpoints.best_reference([tmp_path])
    assert len(str(raised.value).splitlines()) == 1


def test_infer_without_a_model_says_which_it_takes(
    exported: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(checkpoints, "REFERENCES", [Path("checkpoints")])
    video = tmp_path / "video"
    video.mkdir()
    for index in range(2):
        Image.new("RGB", (48, 32), (index * 90, 10, 20)).save(video / f"{index}.png")
    assert cli.main(["infer", "video", "--out", "out"]) == 2
    assert "no reference model here" in capsys.readouterr().err
    make_reference(tmp_path / "checkpoints", exported)
    assert cli.main(["infer", "video", "--out", "out"]) == 0
    assert f"taking {Path('checkpoints/here')} (of boxes; CC0-1.0)" in capsys.readouterr().err
    assert (tmp_path / "out" / "report.html").is_file()


def test_export_verb_prints_the_digest(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    write_run(tmp_path / "run", tiny_model())
    (tmp_path / "scores.json").write_text('{"summary": {"ate": 0.125}}')
    arguments = ["--dtype", "bf16", "--format", "safetensors", "--scores", "scores.json"]
    assert cli.main(["export", "run", "--out", "model", *arguments]) == 0
    digest = checkpoints.sha256_of(tmp_path / "model" / "model.safetensors")
    assert digest in capsys.readouterr().out
    assert "| ate | 0.125 |" in (tmp_path / "model" / "README.md").read_text()


def test_program_runs_without_this_package(exported: Path) -> None:
    """In a fresh interpreter that never imports four_d, with a number of frames that was never traced or checked."""
    code = (
        "import sys, torch\n"
        f"program = torch.export.load({str(exported / 'model.pt2')!r}).module()\n"
        "images = torch.rand(1, 7, 3, 32, 48, generator=torch.Generator().manual_seed(1))\n"
        "out = program(images, torch.arange(7.0)[None] / 25)\n"
        "assert not any(name.split('.')[0] == 'four_d' for name in sys.modules)\n"
        "torch.save(out, sys.argv[1])\n"
    )
    result = exported.parent / "out.pt"
    subprocess.run([sys.executable, "-c", code, str(result)], check=True, capture_output=True)
    given, want = torch.load(result), predict(tiny_model(), frames=7)
    torch.testing.assert_close(given["depth"], want.depth, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(given["world_from_camera"], want.cameras.world_from_camera, atol=1e-5, rtol=1e-5)
    note = json.loads((exported / "export.json").read_text())
    assert note["shapes"] == {"images": [1, "frames", 3, 32, 48], "times": [1, "frames"]}
    assert (note["frames"], note["tolerance"]) == ({"at_least": 2}, TOLERANCE)
    assert {*note["formats"]} == {"safetensors", "pt2"}
    for entry in note["formats"].values():
        assert (exported / entry["file"]).stat().st_size == entry["bytes"]
        assert set(entry["differences"]) == set(given)
        assert all(value["relative"] <= TOLERANCE for value in entry["differences"].values())
    assert all(value["absolute"] == 0 for value in note["formats"]["safetensors"]["differences"].values())
    speed = note["formats"]["pt2"]
    assert speed["times_eager"] == pytest.approx(speed["eager_seconds"] / speed["seconds"], rel=0.01)


@pytest.mark.slow
def test_compiled_blocks_do_not_matter() -> None:
    model = tiny_model()
    compile_blocks(model)
    _, errors = to_program(model, (32, 48))
    assert max(each.relative for each in errors.values()) <= TOLERANCE


def test_wrong_program_is_not_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = write_run(tmp_path / "run", tiny_model())
    monkeypatch.setattr(tracing, "relative_error", lambda *_: 0.5)
    with pytest.raises(UserError, match=r"the safetensors file's \w+ is off by 0\.5 \(> 0\.001\); not written"):
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
    assert tracing.relative_error(torch.tensor([1.0, 4.5]), torch.tensor([1.0, 5.0])) == pytest.approx(0.1)
    assert tracing.relative_error(torch.zeros(2), torch.zeros(3)) == float("inf")
    assert tracing.relative_error(torch.tensor([True, False]), torch.tensor([True, False])) == 0
    assert tracing.relative_error(torch.tensor([True, True]), torch.tensor([True, False])) == 1
    assert tracing.relative_error(torch.tensor([3, 4]), torch.tensor([3, 5])) == pytest.approx(0.2)
    assert tracing.relative_error(torch.zeros(0, 3), torch.zeros(0, 3)) == 0


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
    elif what in ("weight gone", "weight misshapen"):
        weights = load_file(folder / "model.safetensors")
        weight = weights.pop("backbone.camera_token")
        if what == "weight misshapen":
            weights["backbone.camera_token"] = weight[..., :-1].contiguous()
        save_file(weights, folder / "model.safetensors")
    elif what == "unknown key":
        (folder / "config.json").write_text(json.dumps({**info, "colour": "blue"}))


@pytest.mark.parametrize(
    ("what", "message"),
    [
        ("weights cut", r"model\.safetensors cannot be read"),
        ("weights gone", r"model\.safetensors cannot be read"),
        ("not json", r"config\.json cannot be read"),
        ("newer", "format 99"),
        ("other width", "config is of another size"),
        ("one head less", "model lacks, the weight heads.points"),
        ("weight gone", r"lacks the weight backbone\.camera_token; it does not belong to the config beside it"),
        ("weight misshapen", r"backbone\.camera_token is \(1, 2, 1, 31\) instead of \(1, 2, 1, 32\)"),
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
        with pytest.raises(UserError, match=r"last\.ckpt is not a checkpoint"):
            checkpoints.read(run)
    torch.save({"state_dict": {}}, file)
    with pytest.raises(UserError, match="run"):
        checkpoints.read(run)


class Code:
    """What runs a command when a careless reader unpickles it."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch run.by.a.pickle",)


def test_a_checkpoint_with_code_in_it_is_refused_and_runs_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    run = write_run(tmp_path / "run", tiny_model())
    torch.save({"state_dict": {}, "run": Code()}, run / checkpoints.LAST)
    with pytest.raises(UserError, match=r"last\.ckpt is not a checkpoint of a run, or is damaged"):
        checkpoints.read(run)
    assert not (tmp_path / "run.by.a.pickle").exists()


def test_info_round_trip(tmp_path: Path) -> None:
    info = ModelInfo(
        model=TINY, image_size=(32, 48), frames=9, name="x", trained_on={"a": "CC0-1.0"}, scores={"m": 0.5}
    )
    checkpoints.write_info(tmp_path / "config.json", info)
    assert checkpoints.read_info(tmp_path / "config.json") == info
    assert dataclasses.replace(info, frames=8) != info


@pytest.mark.slow
def test_all_frames_of_a_program_are_one_cameras_for_however_long() -> None:
    torch.manual_seed(0)
    search = CorrelationConfig(channels=8, cells=2, radius=2)
    backbone = dataclasses.replace(TINY.backbone, correlation=search).build()
    depth = TINY.heads["depth"].build(backbone.config.shape)
    model = FourD(backbone, {"depth": depth}).eval()
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    program, _ = to_program(model, (16, 24))
    images = torch.rand(1, 27, 3, 16, 24)
    times = torch.rand(1, 27).cumsum(1)
    with torch.no_grad():
        expected = model(Clip(images=images, times=times, camera_ids=torch.zeros_like(times, dtype=torch.long)))
    torch.testing.assert_close(program.module()(images, times)["depth"], expected.depth)


@pytest.mark.parametrize(("posed", "follow"), [(True, False), (True, True), (False, False)])
def test_programs_give_gaussians_of_a_fixed_number_of_frames(posed: bool, follow: bool) -> None:
    head = GaussianHeadConfig(
        frames=4,
        every=None if posed else 2,
        position="ray" if posed else "point",
        hidden=8,
        follow=follow,
        sweep=follow,
    )
    search = CorrelationConfig(channels=8, cells=2, radius=2) if follow else None
    volume = CostVolumeConfig(hypotheses=4) if follow else None
    spacetime = SpacetimeConfig(
        patch_size=8, stride=2, width=32, depth=1, heads=2, correlation=search, cost_volume=volume, times=4
    )
    config = ModelConfig(backbone=spacetime if posed else TINY.backbone, heads={"gaussian": head})
    torch.manual_seed(0)
    model = config.build().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(0.02 * torch.randn_like(parameter))
    taken = signature(model.abilities, (16, 24))
    assert taken.frames == 4
    assert ("world_from_camera: float32 (1, 4, 4, 4)" in taken.text) == posed
    program, errors = to_program(model, (16, 24))
    assert set(errors) == set(output_names(model, (16, 24)))
    assert {"gaussian_means", "gaussian_offsets", "key_frames"} <= set(errors)
    inputs = taken.example(4, torch.Generator().manual_seed(3))
    given = dict(zip(taken.inputs, inputs, strict=True))
    poses, times = given.get("world_from_camera"), given["times"]
    cameras = None if poses is None else Cameras(world_from_camera=poses, intrinsics=given["intrinsics"])
    still = torch.zeros_like(times, dtype=torch.long)
    expected = model(Clip(images=given["images"], times=times, camera_ids=still, cameras=cameras))
    assert expected.gaussians is not None
    given = program.module()(*inputs)
    info = ModelInfo(
        model=config, image_size=(16, 24), frames=4, normalisation="disparity" if posed else "mean_distance"
    )
    text = card(info, model, errors)
    assert ('known = Known(cameras="cameras.json", depth="depth")' in text) == posed
    assert ('model("video.mp4", known=known)  # result.gaussians' in text) == posed
    assert ('result = model("video.mp4")  # result.gaussians' in text) != posed
    assert ("the unit of the cameras" in text) == posed
    torch.testing.assert_close(given["gaussian_means"], expected.gaussians.means)
    torch.testing.assert_close(given["gaussian_offsets"], expected.gaussians.offsets)
    torch.testing.assert_close(given["gaussian_offset_times"], times)


def test_the_packages_export_stays_a_function(tmp_path: Path) -> None:
    """A module of the same name would take its place once it is imported."""
    run = write_run(tmp_path / "run", tiny_model())
    for name in ("one", "two"):
        assert four_d.export(run, tmp_path / name, formats=["safetensors"]) == tmp_path / name
    for name, home in four_d._HOMES.items():
        importlib.import_module(f"four_d.{home}")
        assert not isinstance(getattr(four_d, name), types.ModuleType), name


# other runtimes


def small_run(folder: Path) -> Path:
    """Run of a model that compiles in seconds."""
    torch.manual_seed(0)
    config = dataclasses.replace(TINY, heads={"camera": TINY.heads["camera"]})
    run = dataclasses.replace(RUN, model=config)
    file = folder / checkpoints.LAST
    file.parent.mkdir(parents=True)
    state = {f"model.{name}": value for name, value in config.build().state_dict().items()}
    torch.save({"state_dict": state, "run": {"config": to_plain(run), "step": 7}}, file)
    return folder


@pytest.mark.slow
@pytest.mark.parametrize("name", ["onnx", "aoti"])
def test_other_runtimes_give_what_the_model_gives(
    tmp_path: Path, name: exporting.Format, capsys: pytest.CaptureFixture[str]
) -> None:
    for needed in {"onnx": portable.ONNX_PACKAGES, "aoti": ()}[name]:
        pytest.importorskip(needed)
    if name == "aoti" and shutil.which("g++") is None:
        pytest.skip("g++ is missing, which AOTInductor calls")
    logs.to_stderr()
    out = export(small_run(tmp_path / "run"), tmp_path / "model", formats=[name])
    entry = json.loads((out / "export.json").read_text())["formats"][name]
    assert (out / entry["file"]).stat().st_size == entry["bytes"] > 10_000
    assert {*entry["differences"]} == {"world_from_camera", "intrinsics"}
    assert all(each["relative"] <= TOLERANCE for each in entry["differences"].values())
    assert entry["seconds"] > 0
    assert f"{name}: {entry['file']}, largest relative difference" in capsys.readouterr().err
    with pytest.raises(UserError, match="onnxruntime" if name == "onnx" else "is run by torch alone"):
        four_d.load(out / entry["file"])


def test_what_onnx_has_no_kernel_for_is_written_otherwise(tmp_path: Path) -> None:
    for needed in portable.ONNX_PACKAGES:
        pytest.importorskip(needed)

    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor, times: torch.Tensor) -> dict[str, torch.Tensor]:
            order = (times * 25).long().sort(dim=1, stable=True).indices
            bright = torch.where((times > 0.1)[..., None, None, None], images > 0.5, images < 0.1)
            return {"order": order, "bright": bright}

    taken = tracing.Signature(image_size=(8, 8))
    inputs = taken.example(9, torch.Generator().manual_seed(0))
    program = torch.export.export(Odd(), inputs)
    run = portable.write_onnx(tmp_path / "model.onnx", program, taken, ["order", "bright"])
    expected = Odd()(*inputs)
    assert all(torch.equal(value, expected[name]) for name, value in run(*inputs).items())


def test_an_operator_without_counterpart_is_named(tmp_path: Path) -> None:
    pytest.importorskip("onnx")

    class Odd(torch.nn.Module):
        def forward(self, images: torch.Tensor, times: torch.Tensor) -> dict[str, torch.Tensor]:
            return {"depth": torch.linalg.svd(images)[1], "times": times}

    taken = tracing.Signature(image_size=(8, 8))
    program = torch.export.export(Odd(), taken.example(3, torch.Generator()))
    with pytest.raises(UserError, match=r"ONNX has no counterpart of the operator aten\.\w*svd"):
        portable.write_onnx(tmp_path / "model.onnx", program, taken, ["depth", "times"])
    assert not list(tmp_path.iterdir())


def test_what_a_format_needs_is_said_before_anything_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(portable, "ONNX_PACKAGES", ("json", "no_such_package"))
        with pytest.raises(UserError, match=r"the format onnx needs no_such_package: pip install 'four_d\[onnx\]'"):
            export(tmp_path / "nothing", tmp_path / "model", formats=["onnx"])
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"aoti needs a C\+\+ compiler, and no-such-compiler is not found"):
        export(tmp_path / "nothing", tmp_path / "model", formats=["aoti"])
    with pytest.raises(UserError, match="no format 'tflite'; choose among safetensors, pt2, onnx, aoti"):
        export(tmp_path / "nothing", tmp_path / "model", formats=["tflite"])


def test_an_ancestor_that_is_not_for_commercial_use_is_told(
    exported: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(exported, tmp_path / "tuned")
    plain = json.loads((exported / "config.json").read_text())
    plain["trained_on"] = {"vggt-1b weights": "non-commercial", "boxes": "CC0-1.0"}
    (tmp_path / "tuned" / "config.json").write_text(json.dumps(plain))
    logs.to_stderr()
    out = export(tmp_path / "tuned", tmp_path / "model", formats=["safetensors"])
    assert "warning: not for commercial use in any format: vggt-1b weights: non-commercial" in capsys.readouterr().err
    assert json.loads((out / "export.json").read_text())["not_commercial"] == ["vggt-1b weights: non-commercial"]

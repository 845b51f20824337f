"""An exported program is a Model: it says what it takes, and gives what its model gives, through every door."""

from __future__ import annotations

import dataclasses
import json
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

import four_d
from four_d import checkpoints, cli, fields, programs
from four_d.abilities import Normalisation
from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.hints import HintsConfig
from four_d.backbones.spacetime import SpacetimeConfig
from four_d.checkpoints import ModelInfo
from four_d.correlation import CorrelationConfig
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig, run
from four_d.exporting import export
from four_d.fields.names import labels
from four_d.heads import CameraHeadConfig, DenseHeadConfig, HeadConfig
from four_d.heads.gaussian import GaussianHeadConfig
from four_d.heads.query_decoder import QueryDecoderConfig
from four_d.inference import Known, LoadedModel
from four_d.model import ModelConfig
from four_d.types import Cameras, Clip, Gaussians, Prediction
from tests.helpers import full
from tests.training.runs import make_data

SIZE = (16, 24)
Both = tuple[LoadedModel, LoadedModel]
"""A model, and its program."""
SEARCH = CorrelationConfig(channels=8, cells=2, radius=2)
BACKBONE = AlternatingConfig(patch_size=8, width=16, rounds=1, heads=2, layer_scale=None, correlation=SEARCH)
HEADS: dict[str, HeadConfig] = {
    "camera": CameraHeadConfig(depth=1, heads=2, iterations=1),
    "depth": DenseHeadConfig(output="depth", channels=(8, 8, 8, 8), features=16, last_features=8),
}
FOLLOWING = DenseHeadConfig(
    output="motion", channels=(8, 8, 8, 8), features=16, last_features=8, decoder=QueryDecoderConfig(correlation=SEARCH)
)
MOVING = ModelConfig(backbone=BACKBONE, heads={**HEADS, "motion": FOLLOWING})
"""Heads of cameras, depth, and motion to any query time."""
POSED = ModelConfig(
    backbone=SpacetimeConfig(patch_size=8, stride=2, width=32, depth=1, heads=2, correlation=SEARCH, times=4),
    heads={"gaussian": GaussianHeadConfig(frames=4, every=None, position="ray", hidden=8)},
)
"""Gaussians of four frames whose cameras are given."""


def exported(folder: Path, model: ModelConfig, normalisation: Normalisation = "mean_distance") -> Both:
    """A model of random weights as an exported folder, and its program."""
    torch.manual_seed(0)
    built = model.build()
    weights = {name: value + 0.05 * torch.randn_like(value) for name, value in built.state_dict().items()}
    (folder / "made").mkdir()
    save_file(weights, folder / "made/model.safetensors")
    info = ModelInfo(model=model, image_size=SIZE, frames=4, name="p", normalisation=normalisation, steps=7)
    checkpoints.write_info(folder / "made/config.json", info)
    out = export(folder / "made", folder / "out")
    return four_d.load(out), four_d.load(out / "model.pt2")


@pytest.fixture(scope="module")
def moving(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return exported(tmp_path_factory.mktemp("moving"), MOVING)


@pytest.fixture(scope="module")
def posed(tmp_path_factory: pytest.TempPathFactory) -> Both:
    return exported(tmp_path_factory.mktemp("posed"), POSED, "disparity")


def clips(count: int = 2, frames: int = 5) -> Clip:
    generator = torch.Generator().manual_seed(5)
    times = torch.rand(count, frames, generator=generator).cumsum(1)
    images = torch.rand(count, frames, 3, *SIZE, generator=generator)
    return Clip(images=images, times=times, camera_ids=torch.zeros_like(times, dtype=torch.long))


def video(frames: int = 5, size: tuple[int, int] = SIZE) -> np.ndarray:
    return np.random.default_rng(3).integers(0, 255, (frames, *size, 3), np.uint8)


def assert_close(given: object, wanted: object) -> None:
    found, expected = fields.named(given), fields.named(wanted)
    assert set(found) == set(expected)
    for name, value in expected.items():
        if value.is_floating_point():
            torch.testing.assert_close(
                found[name], value, atol=1e-4, rtol=1e-4, msg=lambda text, n=name: f"{n}: {text}"
            )
        else:
            assert torch.equal(found[name], value), name


@pytest.mark.slow
def test_a_batch_with_several_query_times_is_predicted_as_by_the_model(
    moving: Both,
) -> None:
    model, program = moving
    clip = dataclasses.replace(clips(), query_times=clips().times[:, [3, 1]])
    for asked in (clip, clips(), dataclasses.replace(clips(), query_times=clips().times[:, :0])):
        assert_close(program(asked), fields.delivered(model(asked)))
    wanted, given = (list(each.passes(clip)) for each in (model, program))
    assert len(given) == 2
    assert given[1].depth is None
    for one, other in zip(given, wanted, strict=True):
        assert_close(one, fields.delivered(other))


def test_its_abilities_are_the_models_but_for_what_is_fixed(moving: Both, posed: Both) -> None:
    model, program = (each.abilities for each in moving)
    unsaid = {"pose_encodings", "motion_confidence", "motion_visible_logits"}  # which only losses read
    assert (program.outputs, program.queried) == (model.outputs - unsaid, model.queried - unsaid)
    assert (program.image_size, program.frames, program.multiple, program.hints) == (SIZE, None, 8, {})
    bound, fixed = (each.abilities for each in posed)
    assert (fixed.frames, fixed.times, fixed.key_frames, fixed.stride) == (4, 4, bound.key_frames, bound.stride)
    assert (fixed.hints, fixed.normalisation) == (bound.hints, "disparity")
    rest = posed[1].without("gaussians").abilities
    assert "gaussians" not in rest.outputs
    assert (rest.times, rest.frames) == (None, 4)


def test_a_video_is_seen_and_its_points_followed_as_by_the_model(moving: Both) -> None:
    wanted, given = (each(video(), points=[(10.0, 5.0), (3, 15.5, 6.0)]) for each in moving)
    assert_close(given.prediction, wanted.prediction)
    assert wanted.tracks is not None
    assert given.tracks is not None
    assert_close(given.tracks, wanted.tracks)
    long = moving[1](video(9), window=4, overlap=2, tracks=False)
    assert_close(long.prediction, moving[0](video(9), window=4, overlap=2, tracks=False).prediction)
    with pytest.MonkeyPatch.context() as patch:  # whether it fits is measured on tensors without values
        patch.setattr("four_d.memory.free_bytes", lambda *_: 1)
        with pytest.raises(UserError, match="GB"):
            moving[1](clips(1, frames=7))


def test_a_video_of_another_shape_is_cropped_to_the_programs(moving: Both) -> None:
    result = moving[1](video(size=(30, 30)), tracks=False)
    assert result.fits.model == SIZE
    assert result.cameras is not None
    assert result.depth is not None
    assert result.depth.shape == (5, *SIZE)


def test_gaussians_of_a_long_video_of_known_cameras(posed: Both) -> None:
    poses = torch.eye(4).repeat(7, 1, 1)
    poses[:, 0, 3] = torch.arange(7) * 0.1
    lens = torch.tensor([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]]).repeat(7, 1, 1)
    depth = 2 + torch.rand(7, *SIZE, generator=torch.Generator().manual_seed(1))
    known = Known(cameras=Cameras(world_from_camera=poses, intrinsics=lens), depth=depth.numpy())
    for count in (4, 7):
        some = Known(cameras=fields.take(known.cameras, "b", slice(count)), depth=known.depth[:count])  # pyright: ignore
        wanted, given = (each(video(7)[:count], known=some, window=4) for each in posed)
        for one, other in zip(given.gaussians, wanted.gaussians, strict=True):
            assert_close(one, other)
    with pytest.raises(UserError, match="window is 5, and this model takes exactly 4 frames"):
        posed[1](video(7), known=known, window=5)
    with pytest.raises(UserError, match="takes exactly 4 frames, and the clip has 3"):
        posed[1](video(3), known=Known(cameras=fields.take(known.cameras, "b", slice(3)), depth=known.depth[:3]))  # pyright: ignore


def test_what_a_program_cannot_do_is_one_line(moving: Both, posed: Both) -> None:
    program, clip = moving[1], clips()
    other = dataclasses.replace(clip, images=clip.images[..., :16])
    two = dataclasses.replace(clip, camera_ids=torch.arange(5).repeat(2, 1) % 2)
    for wrong, message in (
        (other, "takes images of 16 × 24 pixels .* these are 16 × 16; resize them, or load the folder"),
        (clips(frames=1), "takes 2 or more frames, and the clip has 1"),
        (two, "the frames of one camera"),
        (dataclasses.replace(clip, references=clip.times > 1), "no reference frames"),
    ):
        with pytest.raises(UserError, match=message):
            program(wrong)
    with pytest.raises(UserError, match="takes intrinsics and poses of every frame, and a frame comes without"):
        posed[1](clips(frames=4))
    with pytest.raises(UserError, match="takes no hints"):
        program(video(), known=Known(intrinsics=[(20.0, 20.0, 12.0, 8.0)]))
    with pytest.raises(UserError, match="computes in fp32"):
        program.to("cpu", "bf16")
    with pytest.raises(UserError, match="runs on the CPU"):
        program.model.to(torch.device("meta"))
    with pytest.raises(UserError, match="cannot be trained"):
        program.model.train()
    assert program.to("cpu", "fp32").abilities.precision == "fp32"
    assert dataclasses.replace(program.info, model=moving[0].info.model) == moving[0].info


def test_files_that_are_no_programs(tmp_path: Path) -> None:
    def refused(message: str) -> None:
        with pytest.raises(UserError, match=message):
            four_d.load(tmp_path / "x.pt2")

    refused("does not exist")
    (tmp_path / "x.pt2").write_bytes(b"nothing")
    refused("is no program, or is damaged")
    for record, message in (
        (None, "does not say what it takes"),
        ({"format": 99}, "has format 99"),
        ({"format": 1, "program": {}}, "signature is missing"),
        ({"format": 1, "program": {"signature": {"image_size": [8, 8]}, "outputs": ["depth"]}}, "cannot be read"),
    ):
        with zipfile.ZipFile(tmp_path / "x.pt2", "w") as file:
            if record is not None:
                file.writestr("x/extra/four_d.json", json.dumps(record))
        refused(message)
    with pytest.raises(UserError, match="is a program, whose weights cannot be trained or exported"):
        checkpoints.read(tmp_path / "x.pt2")


@pytest.mark.filterwarnings("ignore")
def test_a_program_damaged_inside_is_refused(posed: Both, tmp_path: Path) -> None:
    path = posed[1].path
    assert path is not None
    with zipfile.ZipFile(path) as file:
        entries = {name: file.read(name) for name in file.namelist()}
    pickled = [name for name in entries if name.endswith(".pt")]
    assert pickled
    for bad in pickled:
        with zipfile.ZipFile(tmp_path / "x.pt2", "w") as file:
            for name, data in entries.items():
                file.writestr(name, b"\x80nonsense" if name == bad else data)
        with pytest.raises(UserError, match=r"x\.pt2 cannot be read \(.*\); export it again"):
            four_d.load(tmp_path / "x.pt2")


@pytest.mark.slow
def test_the_command_line_takes_programs(moving: Both, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, data = moving[1].path, make_data(tmp_path / "shards")
    assert file is not None
    infer = [
        "infer",
        "tests/data/bikes.mp4",
        "--model",
        str(file),
        "--device",
        "cpu",
        "--no-novel-views",
        "--no-tracks",
    ]
    assert cli.main([*infer, "--out", str(tmp_path / "seen"), "--max-frames", "4"]) == 0
    with np.load(tmp_path / "seen/prediction.npz") as found:
        assert found["depth"].shape == (4, *SIZE)
    assert cli.main([*infer, "--out", str(tmp_path / "no"), "--precision", "bf16"]) == 2
    assert "a program computes in fp32" in capsys.readouterr().err
    settings = EvaluationConfig(data=str(data), frames=3, clips=2, size=SIZE, device="cpu")
    wanted, scored = (
        {name: score.mean for name, score in run(each, settings).rows["model"].items() if name != "seconds_per_clip"}
        for each in moving
    )
    assert scored == pytest.approx(wanted, rel=1e-3, abs=1e-4)
    scores = tmp_path / "scores.json"
    assert (
        cli.main(["eval", str(file), f"data={data}", "frames=3", "clips=2", "device=cpu", "--json", str(scores)]) == 0
    )
    depth = json.loads(scores.read_text())["summary"]["depth_absrel_median_frame"]
    assert depth == pytest.approx(wanted["depth_absrel_median_frame"], rel=1e-3)


def test_required_hints_are_inputs(tmp_path: Path) -> None:
    hints = HintsConfig(intrinsics="required", depth="required", masks="required")
    backbone = dataclasses.replace(BACKBONE, correlation=None, hints=hints)
    # a clip longer than those of training, of which it is first asked whether it fits into memory
    model, program = exported(tmp_path, ModelConfig(backbone=backbone, heads={"depth": HEADS["depth"]}))
    described = program.info.model
    assert isinstance(described, programs.ProgramConfig)
    assert described.signature.inputs == ("images", "times", "intrinsics", "depth", "dynamic")
    assert program.abilities.masks, "else inference refuses the mask that it requires"
    clip = clips(1)
    lens = torch.tensor([[20.0, 0, 12], [0, 20.0, 8], [0, 0, 1]]).expand(1, 5, 3, 3)
    poses, there = torch.eye(4).expand(1, 5, 4, 4), torch.ones(1, 5, dtype=torch.bool)
    cameras = Cameras(world_from_camera=poses, intrinsics=lens, known=~there, intrinsics_known=there)
    depth = 1 + torch.rand(1, 5, *SIZE, generator=torch.Generator().manual_seed(2))
    given = dataclasses.replace(clip, cameras=cameras, depth=depth, valid=depth > 1.2, dynamic=depth > 1.5)
    assert_close(program(given), fields.delivered(model(given)))
    with pytest.raises(UserError, match="takes intrinsics and depth and masks of every frame"):
        program(clip)


def test_values_are_made_of_their_names_again() -> None:
    whole = full(Prediction, batch=(2,))
    assert_close(fields.of_names(Prediction, fields.named(whole)), whole)
    assert fields.of_names(Prediction, {"depth": torch.ones(1, 2, 3)}).cameras is None
    assert labels(Prediction)["cameras"] == {"world_from_camera", "intrinsics", "known", "intrinsics_known"}
    with pytest.raises(ValueError, match="gaussian_quats of Gaussians is missing"):
        fields.of_names(Prediction, {"gaussian_means": torch.ones(1, 3)})
    with pytest.raises(ValueError, match="means of Gaussians is missing"):
        fields.of_names(Gaussians, {})


def test_a_class_of_ones_own_must_be_there(moving: Both) -> None:
    described = moving[1].info.model
    assert isinstance(described, programs.ProgramConfig)
    with pytest.raises(UserError, match="declared by Lost of away; import it before loading"):
        _ = dataclasses.replace(described, predictions=("away:Lost",)).abilities
    with pytest.raises(UserError, match="cannot be trained"):
        described.build()


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfAScript(Prediction):
    """Stands for the class of a program that a script wrote, which another script has imported."""


def test_a_class_of_the_script_that_exported_is_found_by_its_name(moving: Both) -> None:
    described = moving[1].info.model
    assert isinstance(described, programs.ProgramConfig)
    assert dataclasses.replace(described, predictions=("__main__:OfAScript",)).abilities.predictions == (OfAScript,)

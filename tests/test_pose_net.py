"""PoseNet: poses as numbers of a crop, the loss, training from renders, and poses throughout a video."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import cast

import pytest
import roma
import torch
from torch import Tensor

import four_d
from four_d import checkpoints, schema
from four_d.abilities import ModelModule
from four_d.config import RunConfig, load, load_plain
from four_d.data.loading import ValidationClips
from four_d.errors import UserError
from four_d.evaluation import EvaluationConfig, PublishedConfig, run, run_protocol
from four_d.exporting import export
from four_d.geometry import invert_pose, make_pose, rotation_angle
from four_d.losses.object_pose import ObjectPoseLossConfig, class_divergence, hypothesis_angle
from four_d.losses.term import LossInputs
from four_d.objects import read_object
from four_d.pose_net import PoseNetConfig, PosePrediction, follow_object
from four_d.training.record import read_metrics
from four_d.types import Cameras, Clip, Prediction
from four_d.viewpoints import FOCAL, decode_pose, encode_pose, soft_classes, view_angles, view_classes
from tests.object_scene import write_box
from tests.training.runs import assert_same, crash, last

SMALL = PoseNetConfig(width=32, hidden=64, depth=1)


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_box(tmp_path_factory.mktemp("object") / "box.ply")


def some_cameras(count: int = 5, size: tuple[int, int] = (32, 48), focal: float = FOCAL) -> Cameras:
    """Cameras in float64 that see the world's origin."""
    torch.manual_seed(1)
    shift = torch.randn(count, 3, dtype=torch.float64) / 5 + torch.tensor([0, 0, 3])
    side = max(size)
    lens = [[focal * side, 0, size[1] / 2], [0, focal * side, size[0] / 2], [0, 0, 1]]
    return Cameras(
        world_from_camera=invert_pose(make_pose(roma.random_rotmat(count, dtype=torch.float64), shift)),
        intrinsics=torch.tensor(lens, dtype=torch.float64).expand(count, 3, 3),
    )


def test_poses_come_back_from_their_numbers() -> None:
    cameras = some_cameras()
    again = decode_pose(encode_pose(cameras, (32, 48)), (32, 48))
    assert torch.allclose(again.world_from_camera, cameras.world_from_camera)
    assert torch.allclose(again.intrinsics, cameras.intrinsics)


def test_of_another_lens_place_and_size_come_back() -> None:
    longer = some_cameras(focal=3 * FOCAL)
    again = decode_pose(encode_pose(longer, (32, 48)), (32, 48))
    before, after = (invert_pose(each.world_from_camera)[:, :3, 3] for each in (longer, again))
    assert torch.allclose(after[:, 2], before[:, 2] / 3)
    assert torch.allclose(after[:, :2], before[:, :2])


def test_classes_divide_the_directions_and_their_soft_targets_prefer_the_near() -> None:
    classes = view_classes(8, 3, 45.0)
    angles = view_angles(classes, classes)
    assert torch.allclose(angles.diagonal(), torch.zeros(24, dtype=torch.float64), atol=1e-6)
    assert float((angles + 10 * torch.eye(24)).min()) > math.radians(25)
    assert torch.allclose(view_classes(1, 1, 45.0), torch.eye(3, dtype=torch.float64)[None])
    turned = roma.rotvec_to_rotmat(torch.tensor([0, 0, 1.0], dtype=torch.float64)) @ classes
    assert torch.allclose(view_angles(turned, classes), angles, atol=1e-6), "roll is no other view"
    soft = soft_classes(classes, classes, 8.0)
    assert torch.equal(soft.argmax(-1), torch.arange(24))
    assert torch.allclose(soft.sum(-1), torch.ones(24, dtype=torch.float64))
    assert float(soft_classes(classes, classes, 2.0).max()) < float(soft.max())


def truth_of(targets: Clip, classes: Tensor, sharpness: float) -> PosePrediction:
    """The prediction that is right."""
    assert targets.cameras is not None
    size = (targets.images.shape[-2], targets.images.shape[-1])
    pose = encode_pose(targets.cameras, size)
    return PosePrediction(
        cameras=decode_pose(pose, size),
        pose_uncertainty=torch.zeros_like(pose.log_distance),
        pose_logits=soft_classes(pose.rotation, classes, sharpness).log(),
        pose_rotations=pose.rotation[..., None, :, :].expand(*pose.rotation.shape[:2], len(classes), 3, 3),
        pose_classes=classes.expand(*pose.rotation.shape[:2], -1, -1, -1),
        pose_offset=pose.offset,
        pose_log_distance=pose.log_distance,
    )


def targets() -> Clip:
    cameras = some_cameras(6)
    return Clip(
        images=torch.rand(3, 2, 3, 32, 48, dtype=torch.float64),
        times=torch.arange(2.0).expand(3, 2),
        camera_ids=torch.zeros(3, 2, dtype=torch.int64),
        cameras=Cameras(
            world_from_camera=cameras.world_from_camera.unflatten(0, (3, 2)),
            intrinsics=cameras.intrinsics.unflatten(0, (3, 2)),
        ),
    )


FIELDS = ("uncertainty", "logits", "rotations", "offset", "log_distance")


def test_the_loss_is_zero_at_the_truth_and_each_output_raises_it() -> None:
    term, clip = ObjectPoseLossConfig().build(), targets()
    right = truth_of(clip, view_classes(6, 2, 45.0), 8.0)
    assert float(term(LossInputs(prediction=right, targets=clip))) == pytest.approx(0, abs=1e-6)
    turn = roma.rotvec_to_rotmat(torch.tensor([0.0, 0.3, 0.0], dtype=torch.float64))
    wrong: dict[str, Tensor] = {
        "pose_uncertainty": torch.full((3, 2), 0.4).double(),
        "pose_logits": torch.zeros_like(cast(Tensor, right.pose_logits)),
        "pose_rotations": turn @ cast(Tensor, right.pose_rotations),
        "pose_offset": cast(Tensor, right.pose_offset) + 0.1,
        "pose_log_distance": cast(Tensor, right.pose_log_distance) + 0.1,
    }
    values = {
        name: float(term(LossInputs(prediction=dataclasses.replace(right, **{name: value}), targets=clip)))
        for name, value in wrong.items()
    }
    assert values["pose_rotations"] == pytest.approx(0.3 + 0.1 * 0.3**2)
    assert values["pose_uncertainty"] == pytest.approx(0.1 * 0.4**2)
    assert values["pose_log_distance"] == pytest.approx(0.1 - 0.025)
    assert values["pose_offset"] == pytest.approx(2 * (0.1 - 0.025))
    assert values["pose_logits"] > 0.1


def test_gradients_of_the_loss() -> None:
    torch.manual_seed(0)
    classes = view_classes(3, 2, 45.0)
    truth = roma.random_rotmat(2, dtype=torch.float64)
    target = soft_classes(truth, classes, 2.0)
    vectors = torch.randn(2, 6, 3, dtype=torch.float64, requires_grad=True)
    logits = torch.randn(2, 6, dtype=torch.float64, requires_grad=True)

    def both(turns: Tensor, scores: Tensor) -> Tensor:
        return hypothesis_angle(roma.rotvec_to_rotmat(turns), truth, target) + class_divergence(scores, target)

    assert torch.autograd.gradcheck(both, (vectors, logits))


def test_frames_of_unknown_cameras_do_not_count() -> None:
    term, clip = ObjectPoseLossConfig().build(), targets()
    model = SMALL.build()
    images = torch.rand(3, 2, 3, 32, 48)
    prediction = model(dataclasses.replace(clip, images=images, cameras=None))
    bare = dataclasses.replace(clip, cameras=None)
    assert term(LossInputs(prediction=prediction, targets=bare)).detach() == 0
    assert clip.cameras is not None
    known = torch.tensor([[True, False], [True, True], [False, False]])
    some = dataclasses.replace(clip, cameras=dataclasses.replace(clip.cameras, known=known))
    value = term(LossInputs(prediction=prediction, targets=some))
    moved = clip.cameras.world_from_camera.clone()
    moved[~known] = torch.eye(4, dtype=moved.dtype)
    placeholders = dataclasses.replace(clip.cameras, world_from_camera=moved, known=known)
    other = dataclasses.replace(some, cameras=placeholders)
    assert torch.equal(value, term(LossInputs(prediction=prediction, targets=other)))
    value.backward()
    assert all(each.grad is not None and bool(each.grad.isfinite().all()) for each in model.parameters())
    with pytest.raises(UserError, match=r"set model\.kind=pose_net"):
        term(LossInputs(prediction=Prediction(), targets=clip))


def test_every_output_is_of_its_own_frame_and_the_cameras_are_the_likeliest() -> None:
    torch.manual_seed(0)
    model = SMALL.build().eval()
    images = torch.rand(2, 3, 3, 32, 32)
    clip = Clip(images=images, times=torch.zeros(2, 3), camera_ids=torch.zeros(2, 3, dtype=torch.int64))
    found = model(clip)
    assert isinstance(found, PosePrediction)
    changed = images.clone()
    changed[1, 2] = 0
    other = model(dataclasses.replace(clip, images=changed))
    assert isinstance(other, PosePrediction)
    differs = (cast(Tensor, found.pose_logits) != cast(Tensor, other.pose_logits)).any(-1)
    assert differs.tolist() == [[False] * 3, [False, False, True]]
    assert found.cameras is not None
    best = cast(Tensor, found.pose_logits).argmax(-1)
    rotation = cast(Tensor, found.pose_rotations)[1, 2, best[1, 2]]
    assert torch.allclose(found.cameras.world_from_camera[1, 2, :3, :3], rotation.mT, atol=1e-6)
    assert torch.allclose(rotation @ rotation.mT, torch.eye(3), atol=1e-5)
    with pytest.raises(UserError, match="not multiples of the model's patch size 8"):
        model(dataclasses.replace(clip, images=images[..., :30]))


def test_settings_that_do_not_fit_are_named() -> None:
    for setting, message in (
        ("width=20", "width is 20; choose a multiple of 16"),
        ("azimuths=0", "azimuths"),
        ("elevation=90", r"elevation is 90\.0; choose degrees above 0 and below 90"),
    ):
        with pytest.raises(UserError, match=message):
            load(["pose_net"], [f"model.{setting}"])
    plain = load_plain(["pose_net"], ["data.world=first_camera"])
    with pytest.raises(UserError, match=r"data\.world=stored"):
        schema.build(RunConfig, plain, "config")
    with pytest.raises(UserError, match=r"data\.normalisation=stored"):
        load(["pose_net"], ["data.normalisation=mean_distance"])
    with pytest.raises(UserError, match=r"set augment\.mirror_share=0"):
        load(["pose_net"], ["data.augment.mirror_share=0.5"])
    with pytest.raises(UserError, match=r"data\.world=first_camera"):
        load(["vggt"], ["data.world=stored", "data.sources.a.path=x"])


def run_of(file: Path, folder: Path, steps: int, *more: str) -> RunConfig:
    loop = f"loop={{max_steps: {steps}, epoch_steps: {max(steps // 2, 1)}, accelerator: cpu}}"
    source = [f"data.sources.renders.path={file}", "data.sources.renders.gaussians=600", "logging.every=1"]
    return load(["pose_net"], [f"folder={folder}", *source, loop, *more])


def test_the_shipped_config_trains_resumes_and_is_read_back(
    file: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    small = ["model.width=32", "model.hidden=64", "model.depth=1", "data.images_per_batch=4", "data.validation_clips=2"]
    source = ["data.sources.renders.size=32", "data.sources.renders.licence=CC0-1.0"]
    config, broken = (run_of(file, tmp_path / name, 3, *small, *source) for name in ("whole", "broken"))
    result = four_d.train(config)
    crash(monkeypatch, 2, lambda: four_d.train(broken))
    four_d.train(broken)
    assert_same(last(broken)["state_dict"], last(config)["state_dict"])
    assert result.steps == 3
    assert result.validation["pose"] > 0
    assert 0 < result.validation["object_rot_deg"] <= 180
    assert result.best is not None
    lines = [line for line in read_metrics(config.run_folder) if line["split"] == "train"]
    assert [line["step"] for line in lines] == [1, 2, 3]
    checkpoint = checkpoints.read(config.run_folder)
    assert checkpoint.info.normalisation == "stored"
    assert checkpoint.info.trained_on == {"renders": "CC0-1.0"}
    assert checkpoint.model.abilities.world == "stored"
    out = export(config.run_folder, tmp_path / "out")
    assert "follow_object(model, gaussians, images, masks, intrinsics)" in (out / "README.md").read_text()
    for file_or_folder in (config.run_folder, out, out / "model.pt2"):
        with pytest.raises(UserError, match=r"four_d\.pose_net\.follow_object"):
            four_d.load(file_or_folder)(torch.rand(2, 3, 32, 32))
    model = four_d.load(out)
    with pytest.raises(UserError, match=r"four_d\.pose_net\.follow_object"):
        run(model, EvaluationConfig(data="nowhere"))
    with pytest.raises(UserError, match=r"four_d\.pose_net\.follow_object"):
        run_protocol(model, PublishedConfig(protocol="sintel", root="nowhere"), patch=8, trained=(32, 32))
    gaussians = read_object(file).gaussians
    images, masks = torch.rand(2, 3, 40, 60), torch.zeros(2, 40, 60, dtype=torch.bool)
    masks[:, 10:30, 20:50] = True
    found = follow_object(model, gaussians, images, masks, size=32)
    assert bool(found.cameras.world_from_camera.isfinite().all())


def test_the_encoder_may_be_a_vision_transformer() -> None:
    """Of timm, as DINOv2 is, here a small one without its weights."""
    small = {
        "kind": "timm",
        "model": "vit_tiny_patch16_224",
        "image_size": 32,
        "depth": 1,
        "embed_width": 32,
        "heads": 2,
    }
    plain = {"kind": "pose_net", "patches": small, "patch_size": 16, "width": 32, "hidden": 32}
    config = schema.build(PoseNetConfig, plain, "model")
    images = torch.rand(1, 2, 3, 64, 64)
    found = config.build()(
        Clip(images=images, times=torch.zeros(1, 2), camera_ids=torch.zeros(1, 2, dtype=torch.int64))
    )
    assert isinstance(found, PosePrediction)
    assert cast(Tensor, found.pose_logits).shape == (1, 2, 36)


def rotation_errors(model: ModelModule, config: RunConfig) -> Tensor:
    """Errors in degrees on pictures that training did not see."""
    steps = ValidationClips(config.data)
    errors: list[Tensor] = []
    with torch.no_grad():
        for index in range(len(steps)):
            example = steps[index].batches[0]
            found, truth = model(example.inputs).cameras, example.targets.cameras
            assert found is not None
            assert truth is not None
            turn = found.world_from_camera[..., :3, :3].mT @ truth.world_from_camera[..., :3, :3]
            errors.append(rotation_angle(turn).rad2deg().flatten())
    return torch.cat(errors)


@pytest.mark.slow
def test_it_learns_the_poses_of_a_box(file: Path, tmp_path: Path) -> None:
    """Any constant pose is off by about 90°."""
    config = run_of(file, tmp_path, 150, "data.sources.renders.bend=0")
    four_d.train(config)
    errors = rotation_errors(checkpoints.read(config.run_folder).model, config)
    assert float(errors.median()) < 30

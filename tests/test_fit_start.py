"""Beginnings of a fit other than an object's file: a feed-forward model's key frame, and objects of the generator."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from data_prep.synthetic.objects import KINDS, SyntheticObject, parse_synthetic
from four_d import checkpoints, cli, fields
from four_d.abilities import Abilities, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.cli.program import main
from four_d.errors import UserError
from four_d.fitting import FitRequest, fit
from four_d.fitting.clip import FittedClip, write_clip
from four_d.fitting.feed_forward import LEAST, SOLID, begin, named_model, part, run, window_of
from four_d.fitting.stages import pinhole
from four_d.geometry import invert_pose, make_pose, pixel_centres, rays
from four_d.inference import LoadedModel
from four_d.objects import ObjectFile, ObjectProvider, read_object
from four_d.pose_net import place_object
from four_d.rendering import render
from four_d.rendering.harmonics import constant
from four_d.scene import DeformableScene, DeformableSceneConfig
from four_d.types import Cameras, Clip, Gaussians, Prediction
from tests.test_scene import FRAMES, SIZE, SMALL, TIMES, cameras, footage, masks_of, thing

NEAR, FAR = 3.0, 30.0


class Seer(ModelModule):
    """A model that knows the poses of the test's video, and sees a wall with one Gaussian a pixel."""

    def __init__(self, near: bool = True) -> None:
        super().__init__()
        self.register_buffer("here", torch.zeros(()))
        self.near = near

    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"cameras", "gaussians", "key_frames", "depth"}))

    def forward(self, clip: Clip) -> Prediction:
        count, (height, width) = clip.images.shape[1], clip.images.shape[-2:]
        frames = torch.round(clip.times * 25).long().clamp_max(FRAMES - 1)  # of arrays: 25 a second, from the first
        own = cameras()
        poses = (invert_pose(own.world_from_camera[0]) @ own.world_from_camera)[frames[0]]
        lens = own.intrinsics[:1].expand(count, 3, 3)
        seen = rays(lens[0], pixel_centres(height, width, torch.zeros(())).flatten(0, 1))
        depth = torch.full((len(seen),), NEAR)
        depth[1::7] = FAR  # one in seven looks through to what is behind
        if not self.near:
            seen = -seen
        gaussians = Gaussians(
            means=(seen * depth[:, None])[None],
            quats=torch.tensor([1.0, 0, 0, 0]).repeat(1, len(seen), 1),
            scales=torch.full((1, len(seen), 3), 0.05),
            opacities=torch.full((1, len(seen)), 0.3),
            harmonics=constant(clip.images[0, 0].flatten(1).T)[None],
        )
        return Prediction(
            cameras=Cameras(world_from_camera=poses[None], intrinsics=lens[None]),
            depth=torch.full((1, count, height, width), NEAR),
            gaussians=gaussians,
            key_frames=torch.zeros(1, 1, dtype=torch.long),
        )


def loaded(near: bool = True) -> LoadedModel:
    spec = DeformableSceneConfig(frames=4, gaussians=1, image_size=(SIZE, SIZE))  # of its facts only the sizes count
    return LoadedModel(Seer(near), ModelInfo(model=spec, image_size=(SIZE, SIZE), frames=FRAMES), Path("seer"))


@pytest.fixture(scope="module")
def request_(tmp_path_factory: pytest.TempPathFactory) -> FitRequest:
    return footage(tmp_path_factory.mktemp("video"))


@pytest.fixture
def clip(request_: FitRequest, tmp_path: Path) -> FittedClip:
    return write_clip(request_.video, masks_of(request_), SIZE, tmp_path / "clip")


def test_it_begins_with_the_masks_gaussians_of_the_key_frame_and_the_turns_of_the_cameras(clip: FittedClip) -> None:
    lens = pinhole(1.25, (SIZE, SIZE))
    begun = begin(loaded(), loaded(), clip, lens)
    assert begun.key == int(clip.masks.sum((1, 2)).argmax())
    inside = int(clip.masks[begun.key].sum())
    assert 0.6 * inside < len(begun.gaussians.means) < inside, "without those that look through"
    assert begun.gaussians.means.norm(dim=-1).max() < 2 * NEAR
    assert begun.gaussians.opacities.min() >= SOLID
    own = cameras().world_from_camera[:, :3, :3]
    torch.testing.assert_close(begun.turns, own.mT @ own[begun.key], atol=1e-4, rtol=0)
    made = begun.provide()
    assert isinstance(begun, ObjectProvider)
    assert made.gaussians.means.norm(dim=-1).max() == pytest.approx(1, abs=0.05)
    back = fields.move(made.gaussians, made.file_from_object)
    torch.testing.assert_close(back.means, begun.gaussians.means, atol=1e-4, rtol=0)


def test_the_model_sees_the_videos_own_times(clip: FittedClip) -> None:
    slow = replace(clip, times=np.arange(len(clip.times)) / 12)
    assert np.allclose(part(slow, [3, 4, 5]).times, [0, 1 / 12, 2 / 12])
    assert np.allclose(part(slow, [3, 2, 1]).times, [0, 1 / 12, 2 / 12])
    seer = loaded()
    seen = list[torch.Tensor]()
    seer.model.register_forward_pre_hook(lambda _, given: seen.append(given[0].times))
    run(seer, slow, [0, 1, 2], (1.0, 1.0, 0.5, 0.5))
    assert torch.allclose(seen[0][0].cpu(), torch.arange(3) / 12)


def test_a_key_frame_at_an_end_has_a_window_that_begins_with_it() -> None:
    assert window_of(2, 20, 6) == [2, 3, 4, 5, 6, 7]
    assert window_of(18, 20, 6) == [18, 17, 16, 15, 14, 13]
    assert window_of(1, 3, 6) == [1, 2]


def test_cameras_of_known_turns_are_placed_where_the_masks_say() -> None:
    seen = cameras()
    stacked = fields.stack([thing()]), fields.stack([seen])
    alpha = render(*stacked, TIMES[None], (SIZE, SIZE)).alpha[0]
    turns = seen.world_from_camera[:, :3, :3].mT
    found = place_object(thing(), turns, alpha > 0.5, seen.intrinsics)
    again = render(stacked[0], fields.stack([found]), TIMES[None], (SIZE, SIZE)).alpha[0]
    both = ((again > 0.5) & (alpha > 0.5)).sum() / ((again > 0.5) | (alpha > 0.5)).sum()
    assert both > 0.85
    torch.testing.assert_close(found.world_from_camera[:, :3, :3].mT, turns, atol=1e-4, rtol=0)
    empty = torch.zeros_like(alpha, dtype=torch.bool)
    with pytest.raises(UserError, match="no mask shows the object"):
        place_object(thing(), turns, empty, seen.intrinsics)


def test_models_that_cannot_begin_a_fit_are_refused_with_what_can(clip: FittedClip) -> None:
    lens = pinhole(1.25, (SIZE, SIZE))
    with pytest.raises(UserError, match=r"makes 0 Gaussians of the object, which covers \d+ pixels.*--object"):
        begin(loaded(near=False), loaded(), clip, lens)
    blind = LoadedModel(Blind(), loaded().info, Path("blind"))
    with pytest.raises(UserError, match="blind makes no Gaussians of videos"):
        begin(blind, loaded(), clip, lens)
    with pytest.raises(UserError, match="blind finds no cameras by itself; name a model that does with --model"):
        begin(loaded(), blind, clip, lens)
    with pytest.raises(UserError, match=r"init is 'unifed', which is neither a reference model \(unified, dgs_lrm"):
        named_model("unifed")
    assert named_model("unified").name == "unified-base"
    assert LEAST > 1


class Blind(Seer):
    @property
    def abilities(self) -> Abilities:
        return Abilities(outputs=frozenset({"depth"}))


def test_a_fit_from_a_model_is_one_command(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_: Path) -> LoadedModel:
        return loaded()

    monkeypatch.setattr("four_d.fitting.stages.load", found)
    monkeypatch.setattr("four_d.fitting.stages.named_model", Path)
    given, out = replace(request_, object=None, init="seer", pose_steps=None, steps=1), tmp_path / "fit"
    assert given.trained == 0
    assert fit(given, out, SMALL).exit_code == 0
    scene = checkpoints.read(out / "start").model
    assert isinstance(scene, DeformableScene)
    assert scene.means.norm(dim=-1).max() == pytest.approx(1, abs=0.05)
    own = cameras().world_from_camera
    turned = scene.poses[:, :3, :3].mT @ scene.poses[0, :3, :3]
    torch.testing.assert_close(turned, own[:, :3, :3].mT @ own[0, :3, :3], atol=1e-3, rtol=0)
    assert "init" in json.loads((out / "fit.json").read_text())


def test_a_model_that_nothing_asks_is_refused_before_anything_is_written(
    request_: FitRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def found(_: Path) -> LoadedModel:
        return loaded()

    monkeypatch.setattr("four_d.fitting.stages.load", found)
    given = replace(request_, object=None, init="unified", model=Path("other"), pose_steps=None, steps=1)
    with pytest.raises(UserError, match=r"nothing asks --model other; leave it out"):
        fit(given, tmp_path / "fit", SMALL)
    assert not (tmp_path / "fit").exists()


def test_what_a_request_must_say_of_its_object(request_: FitRequest) -> None:
    with pytest.raises(UserError, match=r"give the object's file .* neither is given"):
        replace(request_, object=None)
    begun = replace(request_, object=None, init=str(request_.video))
    assert begun.files.count(request_.video) == 2, "a model's folder is kept apart from the fit's too"
    assert Path("unified") not in replace(begun, init="unified").files
    with pytest.raises(UserError, match="both are given"):
        replace(request_, init="unified")
    with pytest.raises(UserError, match="up is for the file of an object"):
        replace(request_, object=SyntheticObject(kind="animal"), up="y")


@pytest.mark.parametrize("kind", ["animal", "person", "chain", "knot"])
def test_objects_of_the_generator_are_covered_by_six_gaussians_a_triangle(kind: str) -> None:
    made = SyntheticObject(kind=kind, seed=3).provide()
    again = parse_synthetic(f"{kind}@3").provide()
    torch.testing.assert_close(made.gaussians.means, again.gaussians.means, rtol=0, atol=0)
    assert made.faces is not None
    assert made.vertices is not None
    assert made.vertices.norm(dim=-1).max() == pytest.approx(1, abs=1e-5)
    assert len(made.gaussians.means) >= 6 * len(made.faces) * 0.99
    assert made.coloured
    few = SyntheticObject(kind=kind, seed=3).provide(500)
    assert len(few.gaussians.means) <= 500
    camera = make_pose(torch.eye(3), torch.tensor([0.0, 0, -4]))
    seen = Cameras(world_from_camera=camera[None, None], intrinsics=pinhole(1.5, (48, 48))[None, None])
    alpha = render(fields.stack([made.gaussians]), seen, torch.zeros(1, 1), (48, 48)).alpha
    assert 0.02 < (alpha > 0.5).float().mean() < 0.6


def test_an_animal_stands_on_its_feet() -> None:
    made = SyntheticObject(kind="animal", seed=1).provide()
    assert made.vertices is not None
    low = made.vertices[made.vertices[:, 1] > made.vertices[:, 1].max() - 0.05]  # y points down
    assert len(low) > 10
    assert low[:, 2].max() - low[:, 2].min() + low[:, 0].max() - low[:, 0].min() > 0.3


def test_providers_are_one_interface_and_a_fit_takes_any(request_: FitRequest, tmp_path: Path) -> None:
    assert isinstance(request_.object, Path)
    file = ObjectFile(path=request_.object)
    assert isinstance(file, ObjectProvider)
    torch.testing.assert_close(file.provide(50).gaussians.means, read_object(file.path, gaussians=50).gaussians.means)
    made = SyntheticObject(kind="box", seed=1)
    assert isinstance(made, ObjectProvider)
    given = replace(request_, object=made, steps=1, gaussians=300)
    assert fit(given, tmp_path / "fit", SMALL).exit_code == 0
    assert json.loads((tmp_path / "fit" / "fit.json").read_text())["object"] == "synthetic:box@1"
    assert (tmp_path / "fit" / "object.ply").is_file()
    with pytest.raises(UserError, match="with object synthetic:box@1, and now it is synthetic:box@2"):
        fit(replace(given, object=SyntheticObject(kind="box", seed=2)), tmp_path / "fit", SMALL)


def test_the_command_line_names_objects_of_the_generator(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["fit", "video.mp4", "--mask", "m", "--out", "fit", "--object"]
    assert cli.parse([*words, "synthetic:animal@3"]).object == SyntheticObject(kind="animal", seed=3)
    for wrong, told in (("synthetic:unicorn", "choose one of animal, person"), ("synthetic:box@x", "is no number")):
        with pytest.raises(SystemExit):
            cli.parse([*words, wrong])
        assert told in capsys.readouterr().err
    assert main(words[:-1]) != 0
    assert "neither is given" in capsys.readouterr().err
    assert len(set(KINDS)) == len(KINDS)

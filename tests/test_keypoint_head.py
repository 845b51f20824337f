"""Keypoints by name: the head, its loss, and both in training, on long videos and in exports."""

from __future__ import annotations

import argparse
import dataclasses
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn import functional

from four_d import fields
from four_d.abilities import Abilities, ModelModule
from four_d.checkpoints import ModelInfo
from four_d.cli.values import instance
from four_d.config import load
from four_d.data.crops import CropRule, crop
from four_d.data.sampling import collate, normalise, to_clip, to_example
from four_d.data.shards import finalise, write_shard
from four_d.errors import UserError
from four_d.exporting import export
from four_d.formats.keypoints import read_keypoints
from four_d.geometry import project
from four_d.heads.keypoint import KeypointHead, KeypointHeadConfig, KeypointPrediction, check_names
from four_d.inference import Instance, LoadedModel, Request, infer
from four_d.inference import load as load_model
from four_d.inference.keypoints import Boxes
from four_d.keypoints import encode_names
from four_d.layers import NameEmbedding
from four_d.losses.keypoint import OUTPUTS, KeypointLossConfig
from four_d.losses.siren_pose import SirenPoseLossConfig
from four_d.metrics.comparison import Comparison
from four_d.parts import TokenShape
from four_d.schema import to_plain
from four_d.training import train
from four_d.training.module import TrainingModule
from four_d.training.record import read_metrics
from four_d.training.run import RunData
from four_d.training.variation import rows
from four_d.trajectories import predicted
from four_d.types import Cameras, Clip, Example, Prediction, Tokens, map_tensors
from four_d.video.footage import Selection, read
from four_d.viewer import report
from tests.helpers import box_clip, loss_value
from tests.keypoint_scene import EDGES, NAMES, chain_clip
from tests.test_export import TINY
from tests.training.runs import tiny

SMALL: dict[str, object] = {"kind": "keypoints", "width": 32, "depth": 1, "heads": 2, "groups": 512}


@pytest.fixture(scope="module")
def example() -> Example:
    clips = [normalise(to_clip(chain_clip(seed))) for seed in range(2)]
    return collate([to_example(clip, "key", ["boxes"]) for clip in clips])


def head(seed: int = 0, **settings: Any) -> KeypointHead:
    torch.manual_seed(seed)
    config = KeypointHeadConfig(**{"width": 32, "depth": 2, "heads": 2, "groups": 512, **settings})
    built = config.build(TokenShape(width=24, rounds=2, patch_size=8))
    for layer in (built.step, built.position, built.depth, built.visible, built.confidence):
        torch.nn.init.normal_(layer.weight, std=0.3)  # so that all of it matters
    return built.eval()


def tokens(clip: Clip) -> Tokens:
    b, f = clip.images.shape[:2]
    patches = torch.randn(b, f, 16, 24, generator=torch.Generator().manual_seed(1))
    special = torch.randn(b, f, 2, 24)
    return Tokens(patches=(patches,), special=(special,), grid=(4, 4), frames=torch.arange(f), rounds=(1,))


def truly(example: Example) -> KeypointPrediction:
    """A prediction that is the truth."""
    truth = example.targets.keypoints
    cameras = example.targets.cameras
    assert truth is not None
    assert cameras is not None
    return KeypointPrediction(
        keypoints=truth.points.clone(),
        keypoint_pixels=truth.pixels.clone(),
        keypoint_depth=project(truth.points, cameras)[1],
        keypoint_visible_logits=torch.where(truth.visible, 50.0, -50.0),
        keypoint_confidence_logits=torch.full_like(truth.pixels[..., 0], 50.0),
        keypoint_patch_logits=certain(truth.pixels),
    )


def certain(pixels: Tensor) -> Tensor:
    """Logits of the 4 × 4 patches of an image of 32 × 32 for those that pixels are in."""
    column, row = (pixels.nan_to_num() // 8).long().clamp(0, 3).unbind(-1)
    return 50 * functional.one_hot(4 * row + column, 16).to(pixels).unflatten(-1, (4, 4))


def test_names_that_read_alike_are_alike() -> None:
    embed = NameEmbedding(512, 16)
    same = embed(encode_names(["left_eye", "Left Eye", "left-eye"])[None])[0].detach()
    torch.testing.assert_close(same[1:], same[:1].expand(2, -1))
    other = embed(encode_names(["right_eye", "eye_left", "nose"])[None])[0].detach()
    assert float((other - same[0]).norm(dim=-1).min()) > 0.1
    assert not embed(torch.zeros(1, 1, 32, dtype=torch.int64)).any()


def test_neither_the_order_of_names_nor_padding_matters(example: Example) -> None:
    clip, built = example.inputs, head()
    assert clip.keypoint_names is not None
    assert clip.keypoint_boxes is not None
    whole = built(tokens(clip), clip)
    order = torch.tensor([3, 0, 4, 2, 1])
    turned = dataclasses.replace(
        clip, keypoint_names=clip.keypoint_names[:, order], keypoint_boxes=clip.keypoint_boxes[:, order]
    )
    names, boxes = torch.zeros(2, 3, 32, dtype=torch.int64), torch.zeros(2, 3, 2, 2)
    longer = dataclasses.replace(
        clip,
        keypoint_names=torch.cat([clip.keypoint_names, names], 1),
        keypoint_boxes=torch.cat([clip.keypoint_boxes, boxes], 1),
    )
    for name, value in fields.named(whole).items():
        expected = value[:, :, order]
        torch.testing.assert_close(getattr(built(tokens(turned), turned), name), expected, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(getattr(built(tokens(longer), longer), name)[:, :, :5], value, atol=1e-5, rtol=1e-5)
    assert float((whole.keypoint_pixels[:, :, 0] - whole.keypoint_pixels[:, :, 1]).abs().detach().min()) > 0


def test_a_keypoint_answers_its_name_its_box_and_its_company(example: Example) -> None:
    clip, built = example.inputs, head()
    assert clip.keypoint_names is not None
    assert clip.keypoint_boxes is not None
    before = built(tokens(clip), clip).keypoint_pixels
    unboxed = dataclasses.replace(clip, keypoint_boxes=None)
    whole = torch.tensor([[0.0, 0], [32, 32]]).expand(2, 5, 2, 2)
    torch.testing.assert_close(
        built(tokens(clip), unboxed).keypoint_pixels,
        built(tokens(clip), dataclasses.replace(clip, keypoint_boxes=whole)).keypoint_pixels,
    )
    assert not torch.allclose(built(tokens(clip), unboxed).keypoint_pixels, before, atol=1e-4)
    swapped = dataclasses.replace(clip, keypoint_boxes=clip.keypoint_boxes.flip(-2))
    torch.testing.assert_close(built(tokens(clip), swapped).keypoint_pixels, before)
    alone = dataclasses.replace(
        clip, keypoint_names=clip.keypoint_names[:, :1], keypoint_boxes=clip.keypoint_boxes[:, :1]
    )
    assert not torch.allclose(built(tokens(clip), alone).keypoint_pixels, before[:, :, :1], atol=1e-5)


def test_without_names_nothing_is_found_but_training_has_its_gradients(example: Example) -> None:
    clip, built = dataclasses.replace(example.inputs, keypoint_names=None), head()
    assert fields.named(built(tokens(clip), clip)) == {}
    built.train()
    targets = dataclasses.replace(example.targets, keypoints=None)
    value = loss_value(KeypointLossConfig(), built(tokens(clip), clip), targets)
    value.backward()
    assert float(value.detach()) == 0
    assert all(p.grad is not None and not p.grad.any() for p in built.parameters())
    nobody = loss_value(KeypointLossConfig(), built.eval()(tokens(clip), clip), targets)
    assert float(nobody.detach()) == 0, "validation on clips without keypoints"


def test_queries_of_another_shape_are_refused(example: Example) -> None:
    names = torch.zeros(2, 5, 8, dtype=torch.int64)
    with pytest.raises(UserError, match=r"keypoint_names are \(2, 5, 8\); give \(2, n, 32\)"):
        check_names(names, example.inputs)
    with pytest.raises(UserError, match=r"keypoint_boxes are \(2, 5, 2, 2\) for 4 names"):
        check_names(torch.zeros(2, 4, 32, dtype=torch.int64), example.inputs)


def test_sizes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(UserError, match="3 heads do not divide width 32"):
        head(heads=3)
    with pytest.raises(UserError, match="groups is 0"):
        head(groups=0)


@pytest.mark.parametrize("by", ["box", "image"])
def test_the_truth_costs_nothing_and_each_part_counts_alone(example: Example, by: Any) -> None:
    right, targets = truly(example), example.targets
    config = KeypointLossConfig(by=by)
    assert float(loss_value(config, right, targets)) == pytest.approx(0, abs=1e-5)
    alone = {"pixels": 0.0, "patch": 0.0, "depth": 0.0, "points": 0.0, "visibility": 0.0, "confidence": 0.0}
    wrong: dict[str, tuple[str, Any]] = {
        "pixels": ("keypoint_pixels", lambda x: x + 3.2),
        "patch": ("keypoint_patch_logits", lambda x: -x),
        "depth": ("keypoint_depth", lambda x: x * 2),
        "points": ("keypoints", lambda x: x + 0.5),
        "visibility": ("keypoint_visible_logits", lambda x: -x),
        "confidence": ("keypoint_confidence_logits", lambda x: -x),
    }
    for part, (name, change) in wrong.items():
        moved = dataclasses.replace(right, **{name: change(getattr(right, name))})
        for other in alone:
            value = float(loss_value(dataclasses.replace(config, **(alone | {other: 1.0})), moved, targets))
            expected_off = part == "pixels" and other == "confidence"  # what is off is not to be sure
            assert (value > 1e-3) == (other == part or expected_off), (part, other)
        spoilt = dataclasses.replace(right, **{name: torch.full_like(getattr(right, name), torch.nan)})
        without = dict.fromkeys(alone, 1.0) | {part: 0.0}
        assert np.isfinite(float(loss_value(dataclasses.replace(config, **without), spoilt, targets))), part
    if by == "image":
        shifted = dataclasses.replace(right, keypoint_pixels=truly(example).keypoint_pixels + 3.2)  # pyright: ignore[reportOptionalOperand]
        found = loss_value(KeypointLossConfig(by=by, **(alone | {"pixels": 1.0})), shifted, targets)
        assert float(found) == pytest.approx(3.2 * 2**0.5 / 32)
    doubled = dataclasses.replace(right, keypoint_depth=2 * right.keypoint_depth)  # pyright: ignore[reportOptionalOperand]
    found = loss_value(KeypointLossConfig(**(alone | {"depth": 1.0})), doubled, targets)
    assert float(found) == pytest.approx(float(np.log(2)), rel=1e-4)


def test_every_output_has_its_gradient_and_what_is_unknown_has_none(example: Example) -> None:
    truth = example.targets.keypoints
    assert truth is not None
    keep = torch.ones_like(truth.valid)
    keep[:, :, 2] = False
    hidden = dataclasses.replace(
        truth, valid=keep, pixels_valid=keep, visible=truth.visible & keep, points=truth.points * keep[..., None]
    )
    targets = dataclasses.replace(example.targets, keypoints=hidden)
    generator = torch.Generator().manual_seed(0)
    right = truly(example)
    values = {
        name: (getattr(right, name).clamp(-3, 3) + 0.3 * torch.rand(getattr(right, name).shape, generator=generator))
        .double()
        .requires_grad_()
        for name in OUTPUTS
    }
    targets = fields.apply(targets, lambda _, t: t.double() if t.is_floating_point() else t)

    def term(*outputs: torch.Tensor) -> torch.Tensor:
        return loss_value(KeypointLossConfig(), KeypointPrediction(**dict(zip(OUTPUTS, outputs))), targets)

    assert torch.autograd.gradcheck(term, tuple(values.values()), fast_mode=True)
    term(*values.values()).backward()
    for name, value in values.items():
        assert value.grad is not None
        assert value.grad.isfinite().all(), name
        assert value.grad.any(), name
        assert not value.grad[:, :, 2].any(), name


def test_what_cannot_be_compared_is_said(example: Example) -> None:
    with pytest.raises(UserError, match=r"needs keypoints; add a head \{kind: keypoints\}"):
        loss_value(KeypointLossConfig(), Prediction(), example.targets)
    few = fields.take(truly(example), "joints", [0, 1])
    with pytest.raises(UserError, match="name 5 keypoints, and a model was asked for 2"):
        loss_value(KeypointLossConfig(), few, example.targets)


def elsewhere(example: Example, order: list[int]) -> tuple[KeypointPrediction, Clip]:
    """The truth, and targets that say that the model was asked for it in another order."""
    names = example.inputs.keypoint_names
    assert names is not None
    return truly(example), dataclasses.replace(example.targets, keypoint_names=names[:, order])


SPOKEN = "asked for keypoint 'left_knee' where the truth has keypoint 'root'"


def test_an_elbow_is_never_compared_with_a_knee(example: Example) -> None:
    """By no loss, metric or measure: names in another order than the truth's are an answer of one line."""
    said, targets = elsewhere(example, [1, 0, 2, 3, 4])
    with pytest.raises(UserError, match=SPOKEN):
        loss_value(KeypointLossConfig(), said, targets)
    with pytest.raises(UserError, match=SPOKEN):
        loss_value(SirenPoseLossConfig(source="keypoints"), said, targets)
    single, clip = fields.unstack(said, 0), fields.unstack(targets, 0)
    with pytest.raises(UserError, match=SPOKEN):
        Comparison(single, clip).keypoints  # noqa: B018 - which compares
    with pytest.raises(UserError, match=SPOKEN):
        rows(*(fields.take(each, "b", slice(1)) for each in (said, targets)))
    few = elsewhere(example, [0, 1, 2])[1]
    with pytest.raises(UserError, match="asked for none where the truth has keypoint 'right_knee'"):
        loss_value(KeypointLossConfig(), said, few)
    same = elsewhere(example, [0, 1, 2, 3, 4])
    assert float(loss_value(KeypointLossConfig(), *same)) == pytest.approx(0, abs=1e-5)
    found = Comparison(*(fields.unstack(each, 0) for each in same)).keypoints
    assert found is not None
    assert (found.mpjpe, found.pck) == (0, 1)


def test_clips_of_a_batch_may_ask_by_themselves_or_leave_it_to_the_truth() -> None:
    """One asks for its five by name, one leaves that open, one asks for six and has no truth."""
    whole, bare = (normalise(to_clip(chain_clip(seed))) for seed in (0, 1))
    asks = dataclasses.replace(whole, keypoint_names=encode_names(NAMES))
    free = dataclasses.replace(bare, keypoints=None, keypoint_names=encode_names([*NAMES, "tail"]))
    batch = collate([to_example(clip, "key") for clip in (asks, bare, free)])
    assert batch.inputs.keypoint_names is not None
    assert torch.equal(batch.inputs.keypoint_names, batch.targets.keypoint_names)  # pyright: ignore[reportArgumentType]
    right = truly(collate([to_example(clip, "key") for clip in (whole, bare)]))
    said = KeypointPrediction(
        keypoints=functional.pad(right.keypoints, (0, 0, 0, 1, 0, 0, 0, 1)),  # pyright: ignore[reportArgumentType]
        keypoint_pixels=functional.pad(right.keypoint_pixels, (0, 0, 0, 1, 0, 0, 0, 1)),  # pyright: ignore[reportArgumentType]
        **{
            name: functional.pad(getattr(right, name), (0, 1, 0, 0, 0, 1), value=1.0)
            for name in ("keypoint_depth", "keypoint_visible_logits", "keypoint_confidence_logits")
        },
    )
    assert float(loss_value(KeypointLossConfig(), said, batch.targets)) == pytest.approx(0, abs=1e-5)
    direct = dict.fromkeys(("siren", "graph"), 0.0)
    assert float(loss_value(SirenPoseLossConfig(source="keypoints", **direct), said, batch.targets)) < 1e-5


def test_predicted_keypoints_are_trajectories_with_bones(example: Example) -> None:
    found = predicted(truly(example), example.targets, torch.zeros(2, 1, 3))["keypoints"]
    assert found.points.shape == (2, 5, 4, 3)
    assert found.valid.all()
    assert found.edges is not None
    assert found.edges[0].tolist() == [list(edge) for edge in EDGES]
    assert "keypoints" not in predicted(Prediction(), example.targets, torch.zeros(2, 1, 3))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three clips of chains, one of boxes without any."""
    folder = tmp_path_factory.mktemp("chains")
    clips = [chain_clip(seed, frames=4, surface=True) for seed in range(3)]
    write_shard(folder, 0, [*clips, box_clip(9, frames=4, cameras=1, size=32)])
    finalise(folder, "chains")
    return folder


def config(data: Path, folder: Path, **loop: object) -> Any:
    heads: Any = to_plain(tiny(data, folder).model)["heads"]  # pyright: ignore[reportArgumentType, reportCallIssue, reportIndexIssue]
    return tiny(
        data,
        folder,
        model={"heads": {**heads, "keypoints": SMALL}},
        losses={"keypoints": {"kind": "keypoints"}},
        loop={"max_steps": 3, "epoch_steps": 3, "precision": "fp32", "accelerator": "cpu", **loop},
    )


@pytest.mark.slow
def test_three_steps_export_and_a_call(data: Path, tmp_path: Path) -> None:
    run = config(data, tmp_path / "runs")
    assert train(run).exit_code == 0
    lines = [line for line in read_metrics(run.run_folder) if line["split"] == "train"]
    assert len(lines) == 3
    assert all(np.isfinite(line["keypoints"]) for line in lines)
    assert any(line["keypoints"] > 0 for line in lines)
    out = export(run.run_folder, tmp_path / "model")
    model = load_model(out)
    clip = collate([to_example(crop(normalise(to_clip(chain_clip(0))), CropRule(size=(16, 16))), "key")]).inputs
    found = model(clip)
    assert isinstance(found, KeypointPrediction)
    assert found.keypoints is not None
    assert found.keypoints.shape == (1, 4, 5, 3)
    assert model(dataclasses.replace(clip, keypoint_names=None)).keypoints is None  # pyright: ignore[reportAttributeAccessIssue]
    program = torch.export.load(out / "model.pt2").module()
    assert "keypoints" not in program(clip.images, clip.times), "a program takes no names"


def test_a_clip_is_learnt(example: Example) -> None:
    torch.manual_seed(0)
    one = fields.take(example.inputs, "b", slice(1)), fields.take(example.targets, "b", slice(1))
    built = KeypointHeadConfig(width=32, depth=1, heads=2, groups=512).build(
        TokenShape(width=192, rounds=1, patch_size=8)
    )
    patches = one[0].images.unfold(-2, 8, 8).unfold(-2, 8, 8).permute(0, 1, 3, 4, 2, 5, 6).flatten(4).flatten(2, 3)
    seen = Tokens(patches=(patches,), special=(patches[:, :, :1],), grid=(4, 4), frames=torch.arange(4), rounds=(0,))
    optimiser = torch.optim.Adam(built.parameters(), lr=3e-3)
    first = None
    for _ in range(150):
        value = loss_value(KeypointLossConfig(), built(seen, one[0]), one[1])
        first = value.detach() if first is None else first
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
    found, truth = built.eval()(seen, one[0]), one[1].keypoints
    assert truth is not None
    assert first is not None
    assert float(value.detach()) < 0.25 * float(first)  # pyright: ignore[reportPossiblyUnboundVariable]
    away = (found.keypoint_pixels - truth.pixels).detach().norm(dim=-1)[truth.visible]
    assert float(away.mean()) < 1.5, "pixels, of 32"


class Placed(ModelModule):
    """A model of one camera that moves along x, which finds every keypoint where it stands in the world."""

    def __init__(self, size: tuple[int, int]) -> None:
        super().__init__()
        self.unused, self.size = torch.nn.Parameter(torch.zeros(1)), size

    @property
    def abilities(self) -> Abilities:
        outputs = frozenset({"depth", "cameras", *KeypointHeadConfig().provides})
        return Abilities(outputs=outputs, predictions=(KeypointPrediction,))

    def forward(self, clip: Clip) -> Prediction:
        # the first two pixels' colours are the frame's number in the video, and the unit changes with each window
        numbers = (clip.images[0, :, 0, 0, 0] * 255).round()
        scale = 1.0 + float(numbers[0]) / 40
        poses = torch.eye(4).repeat(len(numbers), 1, 1)
        poses[:, 0, 3] = (numbers - numbers[0]) * 0.05 / scale
        lens = torch.tensor([[30.0, 0, self.size[1] / 2], [0, 30, self.size[0] / 2], [0, 0, 1]])
        cameras = Cameras(world_from_camera=poses, intrinsics=lens.expand(len(numbers), 3, 3))
        columns = torch.arange(self.size[1]) / self.size[1]
        depth = (2 + columns).expand(len(numbers), *self.size) / scale
        found: dict[str, torch.Tensor] = {}
        if clip.keypoint_names is not None:
            count = clip.keypoint_names.shape[1]
            own = torch.stack([torch.tensor([0.2 * i, 0.1 * i, 3.0]) for i in range(count)])
            points = (own - torch.stack([numbers[0] * 0.05, *torch.zeros(2)])) / scale
            points = points.expand(len(numbers), count, 3)
            pixels, z = project(points, cameras)
            sure = torch.full_like(z, 0.75)
            found = {"keypoints": points, "keypoint_pixels": pixels, "keypoint_depth": z}
            found |= {"keypoint_visible": sure, "keypoint_confidence": sure}
        value = KeypointPrediction(depth=depth, cameras=cameras, **found)  # pyright: ignore[reportArgumentType]
        return map_tensors(value, lambda tensor: tensor[None])


def test_keypoints_of_a_long_video_are_those_of_its_first_window(tmp_path: Path) -> None:
    size = (24, 32)
    frames = np.zeros((20, *size, 3), np.uint8)
    frames[..., 0] = np.arange(20)[:, None, None]
    for index, frame in enumerate(frames):
        (tmp_path / "video").mkdir(exist_ok=True)
        Image.fromarray(frame).save(tmp_path / "video" / f"{index:03d}.png")
    model = LoadedModel(Placed(size), ModelInfo(model=TINY, image_size=size, frames=8))
    asked: Any = {"keypoints": ["root", "foot"], "keypoint_edges": [("foot", "root")], "window": 8, "overlap": 2}
    every = Selection(max_frames=20)
    infer(model, tmp_path / "video", tmp_path / "out", selection=every, **asked)
    told = json.loads((tmp_path / "out" / "windows.json").read_text())
    assert len(told["windows"]) == 3
    table = read_keypoints(tmp_path / "out" / "keypoints.json")
    assert (table.names, table.edges, len(table.frames)) == (["root", "foot"], [(1, 0)], 20)
    for index, frame in enumerate(table.frames):
        assert frame.points is not None
        np.testing.assert_allclose(frame.points, [[0, 0, 3], [0.2, 0.1, 3]], atol=2e-3)
        np.testing.assert_allclose(frame.pixels[0], [16 - 30 * 0.05 * index / 3, 12], atol=1e-2)
        np.testing.assert_allclose(frame.visible, [0.75, 0.75])  # pyright: ignore[reportArgumentType]
    drawn = sorted(path.name for path in (tmp_path / "out" / "keypoints").iterdir())
    assert drawn == [f"{index:06d}.jpg" for index in range(20)]
    moving = read(tmp_path / "out" / "keypoints.mp4", every)
    assert np.shape(moving.frames) == (20, *size, 3)
    np.testing.assert_allclose(np.diff(moving.times), 0.04, atol=1e-3)
    for index in (0, 19):
        with Image.open(tmp_path / "out" / "keypoints" / drawn[index]) as still:
            assert np.abs(moving.frames[index].astype(int) - np.asarray(still)).mean() < 6
    whole = model(tmp_path / "video", selection=every, **asked)
    report(tmp_path / "report.html", whole, title="x")
    assert ">Keypoints<" in (tmp_path / "report.html").read_text()
    report(tmp_path / "plain.html", model(tmp_path / "video", selection=every, window=8), title="x")
    assert ">Keypoints<" not in (tmp_path / "plain.html").read_text()
    assert whole.keypoint_pixels is not None
    np.testing.assert_allclose(whole.keypoint_pixels, np.stack([f.pixels for f in table.frames]), atol=1e-4)
    assert whole.keypoint_names == ("root", "foot")


def test_keypoints_of_a_rig_are_a_video_each_and_of_a_moment_none(tmp_path: Path) -> None:
    sizes = {"left": (24, 32), "right": (48, 64)}
    for name, size in sizes.items():
        (tmp_path / name).mkdir()
        for index in range(3):
            Image.fromarray(np.full((*size, 3), 9 * index, np.uint8)).save(tmp_path / name / f"{index}.png")
    model = LoadedModel(Placed((24, 32)), ModelInfo(model=TINY, image_size=(24, 32), frames=8))
    infer(model, [tmp_path / name for name in sizes], tmp_path / "out", keypoints=["root"], page=None)
    for camera, size in enumerate(sizes.values()):
        assert np.shape(read(tmp_path / "out" / "keypoints" / f"camera{camera}.mp4").frames) == (3, *size, 3)
        assert (tmp_path / "out" / "keypoints" / f"camera{camera}" / "000002.jpg").is_file()
    first = Selection(max_frames=1)
    infer(model, tmp_path / "left", tmp_path / "one", keypoints=["root"], selection=first, page=None)
    assert (tmp_path / "one" / "keypoints" / "000000.jpg").is_file()
    assert not (tmp_path / "one" / "keypoints.mp4").exists()


def walkers(number: float) -> torch.Tensor:
    """Centres (x, y) in model pixels of two who pass each other, the first at the left at first."""
    return torch.tensor([[8 + 1.2 * number, 20.0], [32 - 1.2 * number, 22.0]])


class Walkers(ModelModule):
    """A model that finds head and feet of whichever of `walkers` its box is at, 3 pixels above and below the centre.

    The first pixel's colour is the frame's number. It keeps the boxes that it was given.
    """

    def __init__(self) -> None:
        super().__init__()
        self.unused, self.boxes = torch.nn.Parameter(torch.zeros(1)), list[torch.Tensor | None]()

    @property
    def abilities(self) -> Abilities:
        outputs = frozenset({"depth", "cameras", *KeypointHeadConfig().provides})
        return Abilities(outputs=outputs, predictions=(KeypointPrediction,), hints={"boxes": "optional"}, multiple=8)

    def forward(self, clip: Clip) -> Prediction:
        self.boxes.append(clip.keypoint_boxes)
        numbers = (clip.images[0, :, 0, 4, 4] * 255).round()
        f, (h, w) = len(numbers), clip.images.shape[-2:]
        lens = torch.tensor([[30.0, 0, w / 2], [0, 30, h / 2], [0, 0, 1]])
        cameras = Cameras(world_from_camera=torch.eye(4).expand(f, 4, 4), intrinsics=lens.expand(f, 3, 3))
        found: dict[str, torch.Tensor] = {}
        if clip.keypoint_names is not None:
            n = clip.keypoint_names.shape[1]
            boxes = torch.tensor([[0.0, 0], [w, h]]).expand(n, 2, 2)
            centres = (boxes if clip.keypoint_boxes is None else clip.keypoint_boxes[0]).mean(1)
            who = torch.cdist(centres, walkers(float(numbers[0]))).argmin(1)
            pixels = torch.stack([walkers(float(number))[who] for number in numbers])
            pixels = pixels + torch.stack([torch.zeros(n), 3.0 * (-1) ** torch.arange(1, n + 1)], -1)
            found = {"keypoint_pixels": pixels, "keypoints": torch.ones(f, n, 3), "keypoint_depth": torch.ones(f, n)}
            found |= {"keypoint_visible": torch.ones(f, n), "keypoint_confidence": torch.ones(f, n)}
        value = KeypointPrediction(depth=torch.ones(f, h, w), cameras=cameras, **found)  # pyright: ignore[reportArgumentType]
        return map_tensors(value, lambda tensor: tensor[None])


def passing(folder: Path, count: int = 20) -> tuple[Path, LoadedModel, Walkers]:
    """A video of 84 × 64 pixels that the model sees at 40 × 32, without half a pixel at the top and 2 at each side."""
    (folder / "video").mkdir()
    for index in range(count):
        Image.fromarray(np.full((64, 84, 3), index, np.uint8)).save(folder / "video" / f"{index:03d}.png")
    module = Walkers()
    return folder / "video", LoadedModel(module, ModelInfo(model=TINY, image_size=(32, 40), frames=8)), module


def box_at(centre: torch.Tensor) -> tuple[int, int, int, int]:
    """The user's box around a walker, in original pixels: 6 model pixels to the sides, 5 above and below."""
    x, y = centre.int().tolist()
    return 2 * (x - 6) + 2, 2 * (y - 5), 2 * (x + 6) + 2, 2 * (y + 5)


def test_two_who_pass_each_other_are_told_apart_by_their_boxes_through_a_long_video(tmp_path: Path) -> None:
    video, model, module = passing(tmp_path)
    asked = [Instance(names=["head", "feet"], box=box_at(centre)) for centre in walkers(0)]
    settings: Any = {"selection": Selection(max_frames=20), "window": 8, "overlap": 2, "page": None}
    edges: Any = {"keypoint_edges": [("head", "feet")]}
    result = infer(model, video, tmp_path / "out", keypoints=asked, **edges, **settings)
    table = read_keypoints(tmp_path / "out" / "keypoints.json")
    assert (table.names, table.instances) == (["head", "feet"] * 2, [0, 0, 1, 1])
    assert table.edges == [(0, 1), (2, 3)]
    assert result.keypoint_instances == (0, 0, 1, 1)
    for index, frame in enumerate(table.frames):
        centres = frame.pixels.reshape(2, 2, 2).mean(1)
        np.testing.assert_allclose(centres, 2 * walkers(index).numpy() + [2, 0], atol=1e-3)
    starts = [entry["frames"][0] for entry in json.loads((tmp_path / "out" / "windows.json").read_text())["windows"]]
    assert len(starts) == len(module.boxes) == 3
    for start, boxes in zip(starts, module.boxes, strict=True):
        assert boxes is not None
        around = walkers(start)[:, None] + torch.tensor([[-6.0, -5], [6, 5]])  # the margins are the user's
        torch.testing.assert_close(
            boxes[0], around.clamp_min(0).minimum(torch.tensor([40.0, 32])).repeat_interleave(2, 0)
        )
    # without boxes, or with those of the first frame alone, the model takes one for the other
    assert torch.cdist(walkers(0), walkers(starts[-1])).argmin(1).tolist() == [1, 0]
    alone = model(video, keypoints=["head", "feet"], selection=settings["selection"])
    assert alone.keypoint_instances == (0, 0)
    assert module.boxes[-1] is None


def test_a_box_is_carried_by_few_points_and_by_none_that_is_no_number() -> None:
    boxes = Boxes(torch.tensor([[[4.0, 4], [12, 20]]]), [Instance(names=["nose"])], (32, 40))
    assert boxes.at(range(4)).tolist() == [[[4, 4], [12, 20]]]
    boxes.add(range(4), torch.tensor([[8.0, 6], [0, 0], [18, 10], [0, 0]])[:, None])
    assert boxes.at(range(2, 6)).tolist() == [[[14, 8], [22, 24]]], "as far around the nose as the user's"
    boxes.add(range(2, 6), torch.full((4, 1, 2), torch.nan))
    assert boxes.at(range(4, 8)).tolist() == [[[14, 8], [22, 24]]]
    boxes.add(range(4, 8), torch.tensor([[90.0, 10]]).expand(4, 1, 2))
    assert boxes.at(range(6, 10)).tolist() == [[[40, 8], [40, 24]]], "what has left the image is at its edge"


BOX = (10.0, 10.0, 40.0, 50.0)


@pytest.mark.parametrize(
    ("box", "message"),
    [
        ((-1.0, 5.0, 20.0, 30.0), r"the box -1,5,20,30 of head reaches outside the first frame; .* 84×64 picture"),
        ((60.0, 5.0, 84.5, 30.0), "reaches outside the first frame"),
        ((0.0, 5.0, 1.5, 30.0), "outside what the model sees"),
    ],
)
def test_a_box_outside_the_picture_is_refused_before_anything_is_written(
    box: Any, message: str, tmp_path: Path
) -> None:
    video, model, module = passing(tmp_path, 2)
    with pytest.raises(UserError, match=message):
        infer(model, video, tmp_path / "out", keypoints=[Instance(names=["head"], box=box)], page=None)
    assert not (tmp_path / "out").exists()
    assert not module.boxes


def test_boxes_that_a_model_does_not_take_are_refused() -> None:
    request = Request(video=np.zeros((1, 8, 8, 3), np.uint8), keypoints=[Instance(names=["a"], box=BOX)])
    with pytest.raises(UserError, match="finds no keypoints"):
        request.check_for(Abilities(outputs=frozenset({"depth"}), hints={"boxes": "optional"}))
    with pytest.raises(UserError, match="takes no hints, not boxes; ask for names alone"):
        request.check_for(Abilities(outputs=frozenset({"depth", "keypoints"})))


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"names": [], "box": BOX}, "the box 10,10,40,50 has no list of names"),
        ({"names": "nose"}, "has no list of names"),
        ({"names": ["a"], "box": (40.0, 10.0, 10.0, 50.0)}, r"box 40,10,10,50 of a has its corners reversed"),
        ({"names": ["a"], "box": (10.0, 10.0, 40.0, 10.0)}, "corners reversed"),
        ({"names": ["a"], "box": (10.0, 10.0, 40.0, np.nan)}, "not of four finite numbers"),
        ({"names": ["a"], "box": (10.0, 10.0, 40.0)}, "not of four finite numbers"),
    ],
)
def test_an_instance_that_is_none(asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Instance(**asked)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("nose,tail@1,2,3", "is not NAME,NAME or NAME,NAME@X0,Y0,X1,Y1"),
        ("nose@a,b,c,d", "is not NAME,NAME or"),
        ("@1,2,3,4", "is a box without names"),
        ("nose@5,5,1,9", "the box 5,5,1,9 of nose has its corners reversed"),
    ],
)
def test_boxes_on_the_command_line(text: str, message: str) -> None:
    assert instance("nose,tail@1,2,3.5,4") == Instance(names=("nose", "tail"), box=(1, 2, 3.5, 4))
    assert instance("nose,tail") == Instance(names=("nose", "tail"))
    with pytest.raises(argparse.ArgumentTypeError, match=message):
        instance(text)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"keypoints": "nose"}, "keypoints are a text, 'nose'"),
        ({"keypoints": ["a", Instance(names=["b"])]}, "instances, and the name 'a'"),
        ({"keypoints": [Instance(names=["a"], box=BOX), Instance(names=["b"])]}, "an instance of b has no box"),
        ({"keypoints": [Instance(names=["a", "a"], box=BOX)]}, "instance 0 has two keypoints 'a'"),
        (
            {
                "keypoints": [Instance(names=[name], box=BOX) for name in "ab"],
                "keypoint_edges": [("a", "b")],
            },
            "no instance has both ends of the bone a:b",
        ),
        ({"keypoints": ["a", "a"]}, "two keypoints 'a'"),
        ({"keypoints": ["a", "x" * 40]}, "is of 40 bytes"),
        ({"keypoints": ["a", "b"], "keypoint_edges": [("a", "c")]}, "a bone ends at 'c', which is not among"),
        ({"keypoints": ["a", "b"], "keypoint_edges": [("a", "a")]}, "joins 'a' with itself"),
        ({"keypoint_edges": [("a", "b")]}, "a bone ends at 'a'"),
    ],
)
def test_keypoints_that_cannot_be_asked_for(asked: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        Request(video=np.zeros((1, 8, 8, 3), np.uint8), **asked)


def test_a_model_without_the_head_says_so() -> None:
    with pytest.raises(UserError, match="finds no keypoints"):
        Request(video=np.zeros((1, 8, 8, 3), np.uint8), keypoints=["a"]).check_for(
            Abilities(outputs=frozenset({"depth"}))
        )


@pytest.mark.slow
def test_the_head_fits_onto_unified(tmp_path: Path) -> None:
    write_shard(tmp_path, 0, [chain_clip(seed, frames=6, cameras=2, size=64, surface=True) for seed in range(2)])
    finalise(tmp_path, "chains")
    small = ["loop.compile=false", "data.images_per_batch=6", "data.workers=0", "weights=null"]
    sampling = ["data.sampling.min_frames=6", "data.sampling.max_frames=6", f"data.sources.chains.path={tmp_path}"]
    added = ["model.heads.keypoints={kind: keypoints, width: 64}", "losses.keypoints={kind: keypoints}"]
    module = TrainingModule(load(["overlays/unified_mini"], [*small, *sampling, *added]))
    step = RunData(module.config).training[0].batches[0]
    terms = module.terms(step)[1]
    terms["loss"].backward()
    assert float(terms["keypoints"].detach()) > 0
    assert all(p.grad is not None for p in module.model.get_submodule("heads.keypoints").parameters())

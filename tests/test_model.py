from __future__ import annotations

import dataclasses
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from jaxtyping import Float
from torch import Tensor, nn

from four_d.backbones.alternating import AlternatingBackbone, AlternatingConfig
from four_d.backbones.patches import (
    ConvPatchConfig,
    FeaturePatchConfig,
    PatchConfig,
    StemPatchConfig,
    TimmPatchConfig,
)
from four_d.encoders import UNKNOWN_LICENCE, EncoderConfig
from four_d.errors import UserError
from four_d.geometry import encode_cameras, make_pose
from four_d.heads import HeadConfig
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.features import add_position, spread_rounds
from four_d.losses import CameraLossConfig, DepthLossConfig, PointsLossConfig
from four_d.matching import MatchingConfig, describe, match, pooled
from four_d.model import FourD, ModelConfig, compile_blocks
from four_d.parts import HeadSpec, TokenShape
from four_d.types import LENGTH, NONE, POINT, Cameras, Clip, Prediction, Tokens, map_tensors
from tests.helpers import loss_value

DENSE = DenseHeadConfig(channels=(8, 8, 8, 8), features=16, last_features=8)
HEADS: dict[str, HeadConfig] = {
    "camera": CameraHeadConfig(width=32, depth=1, heads=2, start=(0.0, 0.0, 0.0, 1.0, 0.0, 0.0, 0.0, 1.0, 1.0)),
    "depth": DENSE,
    "points": dataclasses.replace(DENSE, output="points"),
}
BACKBONE = AlternatingConfig(patch_size=8, width=32, rounds=3, heads=2, registers=2, layer_scale=0.5, special_std=0.5)
VIT = TimmPatchConfig(model="vit_tiny_patch16_224", depth=1, embed_width=24, heads=2)
FEATURES = FeaturePatchConfig(
    encoder=EncoderConfig(model="test_efficientnet", strides=(4, 8, 16), frozen=False)  # timm's smallest, for tests
)


def build(backbone: AlternatingConfig = BACKBONE, heads: dict[str, HeadConfig] = HEADS) -> FourD:
    torch.manual_seed(0)
    return ModelConfig(backbone=backbone, heads=heads).build()


def make_clip(b: int = 1, f: int = 3, h: int = 16, w: int = 24) -> Clip:
    generator = torch.Generator().manual_seed(1)
    return Clip(
        images=torch.rand(b, f, 3, h, w, generator=generator),
        times=torch.arange(f).float().expand(b, -1),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
    )


def make_targets(clip: Clip) -> Clip:
    b, f, _, h, w = clip.images.shape
    generator = torch.Generator().manual_seed(2)
    intrinsics = torch.tensor([[float(w), 0, w / 2], [0, float(w), h / 2], [0, 0, 1]]).expand(b, f, -1, -1)
    translation = torch.randn(b, f, 3, generator=generator) * 0.2
    pose = make_pose(torch.eye(3).expand(b, f, -1, -1), translation)
    return dataclasses.replace(
        clip,
        cameras=Cameras(world_from_camera=pose, intrinsics=intrinsics),
        depth=1 + torch.rand(b, f, h, w, generator=generator),
        valid=torch.ones(b, f, h, w, dtype=torch.bool),
    )


def total_loss(prediction: Prediction, targets: Clip) -> Tensor:
    terms = (CameraLossConfig(), DepthLossConfig(), PointsLossConfig())
    return torch.stack([term.weight * loss_value(term, prediction, targets) for term in terms]).sum()


def frames(value: Prediction, order: list[int]) -> list[Tensor]:
    """All outputs with frames in another order."""
    outputs = [value.depth, value.depth_confidence, value.points, value.points_confidence]
    outputs += [value.cameras.world_from_camera, value.cameras.intrinsics, *value.pose_encodings]
    return [each[:, order] for each in outputs]


@pytest.mark.parametrize("matching", [None, MatchingConfig(), MatchingConfig(pooled=2)])
def test_permuting_frames_other_than_the_first_permutes_outputs(matching: MatchingConfig | None) -> None:
    model, clip, order = build(dataclasses.replace(BACKBONE, matching=matching)).double(), make_clip(f=4), [0, 3, 1, 2]
    clip = dataclasses.replace(clip, images=clip.images.double())
    with torch.no_grad():
        straight = model(clip)
        permuted = model(dataclasses.replace(clip, images=clip.images[:, order]))
        swapped = model(dataclasses.replace(clip, images=clip.images[:, [1, 0, 2, 3]]))
    for one, two in zip(frames(straight, order), frames(permuted, [0, 1, 2, 3])):
        torch.testing.assert_close(one, two)
    assert (swapped.depth[:, [1, 0]] - straight.depth[:, :2]).abs().max() > 1e-6, "the first frame must be special"


PATCHES = [ConvPatchConfig(), StemPatchConfig(channels=(4, 8)), VIT, FEATURES]


@pytest.mark.parametrize("patches", PATCHES, ids=lambda p: p.kind)
@pytest.mark.parametrize(
    ("checkpointing", "matching"), [(False, None), (True, None), (False, MatchingConfig(pooled=2))]
)
def test_every_parameter_gets_a_gradient(
    patches: PatchConfig, checkpointing: bool, matching: MatchingConfig | None
) -> None:
    changes = {"patches": patches, "checkpointing": checkpointing, "matching": matching}
    model = build(dataclasses.replace(BACKBONE, **changes))
    clip = make_clip(b=2)
    total_loss(model(clip), make_targets(clip)).backward()
    without = [
        name
        for name, parameter in model.named_parameters()
        if parameter.grad is None or not parameter.grad.isfinite().all() or not parameter.grad.any()
    ]
    # The last class and register tokens of an encoder are dropped, so that nothing pulls at that position's embedding.
    assert [name for name in without if "encoder.norm" not in name] == []


def test_checkpointing_changes_no_gradient() -> None:
    gradients: list[list[Tensor]] = []
    clip = make_clip()
    for checkpointing in (False, True):
        model = build(dataclasses.replace(BACKBONE, checkpointing=checkpointing))
        model(clip).depth.sum().backward()
        gradients.append([p.grad for p in model.backbone.parameters() if p.grad is not None])
    for one, two in zip(*gradients, strict=True):
        torch.testing.assert_close(one, two)


@pytest.mark.parametrize(("height", "width"), [(40, 16), (16, 56), (8, 8)])
@pytest.mark.parametrize("down_ratio", [1, 2])
def test_shapes(height: int, width: int, down_ratio: int) -> None:
    heads = HEADS | {"depth": dataclasses.replace(DENSE, down_ratio=down_ratio)}
    prediction = build(heads=heads)(make_clip(2, 3, height, width))
    assert prediction.depth.shape == prediction.depth_confidence.shape == (2, 3, height, width)
    assert prediction.points.shape == (2, 3, height, width, 3)
    assert prediction.pose_encodings.shape == (4, 2, 3, 9)
    assert prediction.cameras.world_from_camera.shape == (2, 3, 4, 4)
    assert (prediction.depth > 0).all()
    assert (prediction.depth_confidence > 1).all()


def test_cameras_are_the_last_encoding() -> None:
    clip = make_clip()
    prediction = build()(clip)
    again = encode_cameras(prediction.cameras, *clip.images.shape[-2:])
    last = prediction.pose_encodings[-1].clone()
    last[..., 3:7] = nn.functional.normalize(last[..., 3:7], dim=-1) * last[..., 3:4].sign()
    last[..., 7:] = last[..., 7:].clamp_min(2e-3)  # a field of view of zero has no intrinsics
    torch.testing.assert_close(again, last, atol=1e-5, rtol=1e-4)


def test_one_frame_is_a_clip() -> None:
    prediction = build()(make_clip(f=1))
    assert all(each.isfinite().all() for each in frames(prediction, [0]))


def test_bf16_autocast_is_finite_and_heads_stay_in_full_precision() -> None:
    model, clip = build(), make_clip()
    with torch.autocast("cpu", torch.bfloat16):
        prediction = model(clip)
    targets = make_targets(clip)
    total_loss(prediction, targets).backward()
    assert {each.dtype for each in frames(prediction, [0])} == {torch.float32}
    assert all(each.isfinite().all() for each in frames(prediction, [0]))
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())
    torch.testing.assert_close(prediction.depth, model(clip).depth, atol=0.1, rtol=0.1)


def test_chunks_change_only_rounding() -> None:
    clip, model = make_clip(b=2, f=5), build()
    whole = model(clip).depth
    model.heads["depth"].chunk = 3
    torch.testing.assert_close(model(clip).depth, whole)


def test_attention_backends_give_the_same_model() -> None:
    clip = make_clip()
    one = build(dataclasses.replace(BACKBONE, attention="matmul"))(clip)
    torch.testing.assert_close(one.depth, build()(clip).depth, atol=1e-5, rtol=1e-4)


def test_only_rounds_that_heads_read_are_given() -> None:
    camera_only = build(heads={"camera": HEADS["camera"]})
    assert len(camera_only.backbone(make_clip(), camera_only.rounds).patches) == 1
    assert build().rounds == (0, 1, 2)
    picky = build(heads={"depth": dataclasses.replace(DENSE, rounds=(0, 0, 2, 2))})
    assert picky.backbone(make_clip(), picky.rounds).rounds == (0, 2)


def test_kept_rounds_do_not_depend_on_what_else_is_kept() -> None:
    backbone, clip = build(dataclasses.replace(BACKBONE, rounds=4, group=2)).backbone, make_clip()
    assert isinstance(backbone, AlternatingBackbone)
    everything, some = backbone(clip, (0, 1, 2, 3)), backbone(clip, (1, 2))
    assert torch.equal(some.patches[0], everything.patches[1])
    assert torch.equal(some.special[1], everything.special[2])


def test_builds_without_memory() -> None:
    with torch.device("meta"):
        model = ModelConfig(backbone=dataclasses.replace(BACKBONE, width=1024, heads=16), heads=HEADS).build()
    assert {p.device.type for p in model.parameters()} == {"meta"}
    assert {b.device.type for b in model.buffers()} <= {"meta"}


def test_vggt_1b_sizes_give_vggt_1b_parameter_counts() -> None:
    """Parameters of the three parts that are built: blocks, camera head, dense heads (methods/vggt.md §1.0)."""
    heads: dict[str, HeadConfig] = {"camera": CameraHeadConfig(), "depth": DenseHeadConfig(rounds=(4, 11, 17, 23))}
    with torch.device("meta"):
        model = ModelConfig(backbone=AlternatingConfig(), heads=heads).build()

    def millions(module: nn.Module) -> float:
        return sum(p.numel() for p in module.parameters()) / 1e6

    assert millions(model.backbone.frame_blocks) == pytest.approx(302.4, abs=0.1)
    assert millions(model.heads["camera"]) == pytest.approx(216.2, abs=0.1)
    assert millions(model.heads["depth"]) == pytest.approx(32.65, abs=0.01)


def test_state_dict_has_no_buffers() -> None:
    model = build()
    assert set(model.state_dict()) == {name for name, _ in model.named_parameters()}


def test_position_embedding_knows_left_from_right_and_the_aspect() -> None:
    zero = torch.zeros(1, 8, 2, 3)
    embedded = add_position(zero.clone(), 1.5)
    assert (embedded[..., 0] - embedded[..., 2]).abs().max() > 0.01
    assert (embedded - add_position(zero.clone(), 1.0)).abs().max() > 0.001
    assert embedded.abs().max() <= 0.1


def test_spread_rounds() -> None:
    assert spread_rounds(24) == (5, 11, 17, 23)
    assert spread_rounds(3) == (0, 1, 2, 2)
    assert spread_rounds(1) == (0, 0, 0, 0)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"width": 30}, "heads"),
        ({"rounds": 3, "group": 2}, "group 2"),
        ({"patches": StemPatchConfig(channels=(4, 4, 4, 4))}, "patch_size 8"),
        ({"matching": MatchingConfig(cells=3)}, "cells 3"),
        ({"matching": MatchingConfig(pooled=0)}, "pooled must be at least 1"),
        ({"patches": TimmPatchConfig(model="no_such_vit")}, "no_such_vit"),
    ],
)
def test_sizes_that_do_not_fit_are_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(dataclasses.replace(BACKBONE, **change))


@pytest.mark.parametrize(
    ("head", "message"),
    [
        (CameraHeadConfig(width=30, heads=4), "4 heads"),
        (CameraHeadConfig(width=32, heads=2, start=(0.0,)), "give 9"),
        (dataclasses.replace(DENSE, rounds=(0, 1, 2, 7)), "round 7"),
        (dataclasses.replace(DENSE, rounds=(0, 1)), "4 numbers"),
        (dataclasses.replace(DENSE, features=20), "multiples of 4"),
    ],
)
def test_heads_that_do_not_fit_are_named(head: HeadConfig, message: str) -> None:
    with pytest.raises(UserError, match=message):
        build(heads={"head": head})


def test_bad_models_and_images_are_refused_with_the_remedy() -> None:
    with pytest.raises(UserError, match="heads is empty"):
        build(heads={})
    with pytest.raises(UserError, match=r"20 × 24.*patch size 8.*16 × 24"):
        build()(make_clip(h=20))
    with pytest.raises(ValueError, match="two heads write"):
        build(heads={"one": DENSE, "two": DENSE})(make_clip())


EXPORT = """
import sys
sys.path.insert(0, {root!r})
import torch
from torch import nn
from tests.test_model import build, BACKBONE, DENSE, FEATURES, HEADS, VIT
from four_d.matching import MatchingConfig
from four_d.backbones.patches import StemPatchConfig
from four_d.types import Clip
import dataclasses
torch.set_num_threads(1)

class Plain(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.model = model
    def forward(self, images):
        b, f = images.shape[:2]
        empty = images.new_zeros(b, f)
        out = self.model(Clip(images=images, times=empty, camera_ids=empty.long()))
        return dict(depth=out.depth, points=out.points, poses=out.pose_encodings, k=out.cameras.intrinsics)

stem = dict(patches=StemPatchConfig(channels=(4, 8)), matching=MatchingConfig())
for changes in (stem, dict(patches=VIT), dict(patches=FEATURES)):
    detail = changes.get("patches") is FEATURES
    heads = HEADS | dict(depth=dataclasses.replace(DENSE, detail=detail))
    plain = Plain(build(dataclasses.replace(BACKBONE, **changes), heads)).eval()
    f = torch.export.Dim("f", min=1, max=64)
    program = torch.export.export(plain, (torch.rand(1, 4, 3, 16, 24),), dynamic_shapes=({{1: f}},))
    for count in (1, 2, 11):
        images = torch.rand(1, count, 3, 16, 24)
        eager, exported = plain(images), program.module()(images)
        for name in eager:
            torch.testing.assert_close(exported[name], eager[name], atol=1e-5, rtol=1e-5)
"""


@pytest.mark.slow
def test_exports_with_any_number_of_frames() -> None:
    """In a process of its own, without the run-time type checks of the tests."""
    root = str(Path(__file__).parents[1])
    subprocess.run([sys.executable, "-c", EXPORT.format(root=root)], check=True)


def test_learns_to_overfit_depth_of_one_clip() -> None:
    torch.manual_seed(0)
    model, clip = build(), make_clip(h=16, w=16)
    ramp = torch.linspace(0.5, 2, 16).expand(1, 3, 16, 16)
    optimiser = torch.optim.AdamW(model.parameters(), lr=3e-3)
    errors: list[float] = []
    for _ in range(60):
        depth = model(clip).depth
        error = ((depth - ramp).abs() / ramp).mean()
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        errors.append(error.item())
    assert min(errors[-5:]) < errors[0] / 10


def test_map_tensors_keeps_the_names_of_rounds() -> None:
    tokens = build().backbone(make_clip())
    assert map_tensors(tokens, torch.Tensor.detach).rounds == tokens.rounds


def test_encoder_weights_come_from_a_local_file(tmp_path: Path) -> None:
    sizes = dataclasses.replace(VIT, image_size=32)
    with pytest.raises(UserError, match=r"no file nowhere\.bin"):
        dataclasses.replace(sizes, pretrained="nowhere.bin").build(8, 24).load_pretrained()
    torch.manual_seed(3)
    saved = sizes.build(8, 24)
    path = tmp_path / "encoder.pth"
    torch.save(saved.encoder.state_dict(), path)
    torch.manual_seed(4)
    loaded = dataclasses.replace(sizes, pretrained=str(path)).build(8, 24)
    assert loaded.load_pretrained() == {"encoder.pth (vit_tiny_patch16_224)": UNKNOWN_LICENCE}
    images = make_clip(h=32, w=32).images[0]
    torch.testing.assert_close(loaded.eval()(images), saved.eval()(images))


def test_matching_finds_how_far_the_picture_moved() -> None:
    """Content that moves right by two cells and down by one is found two to the left and one up in the first frame."""
    generator = torch.Generator().manual_seed(5)
    scene = torch.rand(1, 3, 24, 32, generator=generator)
    scene = nn.functional.interpolate(scene, scale_factor=4, mode="bilinear")
    frames = torch.cat([scene[..., 8:56, 16:80], scene[..., 4:52, 8:72]])
    found = match(describe(frames, 4, 7).unflatten(0, (1, 2)), (12, 16), torch.tensor(200.0))
    inside = found.unflatten(2, (12, 16))[0, :, 3:-3, 3:-3]
    moved = inside[1, ..., :2].flatten(0, 1).median(0).values * (12 * 16) ** 0.5 / 4
    assert moved.tolist() == pytest.approx([-2, -1], abs=0.1)
    assert inside[0, ..., :2].abs().max() < 0.05
    assert inside[1, ..., 2].median() > 0.95


def test_matching_does_not_mind_brightness_and_contrast() -> None:
    generator = torch.Generator().manual_seed(6)
    images = torch.rand(2, 3, 32, 32, generator=generator)
    away_from_the_border = slice(2 * 8 + 2, 2 * 8 + 6)
    one, two = (describe(x, 4, 7)[..., away_from_the_border] for x in (images, 3 * images + 1))
    torch.testing.assert_close(one, two)


def test_what_was_not_found_hardly_counts_in_pooled_matches() -> None:
    matches = torch.zeros(1, 3, 4, 6)
    matches[:, 0], matches[:, 2] = 0.5, 1.0  # all moved by 0.5 to the right
    matches[:, 0, 1, 1], matches[:, 2, 1, 1] = -9.0, 0.1  # but for one cell, found by chance
    mean = pooled(matches, 2).unflatten(1, (3, 2, 2))
    torch.testing.assert_close(mean[0, 0], torch.full((2, 2), 0.5), atol=1e-3, rtol=0.0)
    assert mean[0, 1].abs().max() == 0
    assert mean[0, 2].flatten().tolist() == pytest.approx([5.1 / 6, 1, 1, 1])


@dataclasses.dataclass(frozen=True, kw_only=True)
class Body(Prediction):
    body: Float[Tensor, "*b f joints 3"] | None = dataclasses.field(default=None, metadata=POINT)


@dataclasses.dataclass(frozen=True, kw_only=True)
class Later(Prediction):
    depth_then: Float[Tensor, "*b q f h w"] | None = dataclasses.field(default=None, metadata=LENGTH)
    sure: Float[Tensor, "*b f"] | None = dataclasses.field(default=None, metadata=NONE)


@dataclasses.dataclass(frozen=True, kw_only=True)
class SaysConfig(HeadSpec):
    """A head that says what it is told to."""

    provides: tuple[str, ...] = ()
    prediction: type[Prediction] = Body
    said: Callable[[Clip], Prediction]
    queried: bool = False
    gaussian_times: int | None = None

    def build(self, shape: TokenShape) -> Says:  # noqa: ARG002
        return Says(self)


class Says(nn.Module):
    rounds = (0,)

    def __init__(self, config: SaysConfig) -> None:
        super().__init__()
        self.config = config

    def forward(self, tokens: Tokens, clip: Clip) -> Prediction:  # noqa: ARG002
        return self.config.said(clip)


def body(clip: Clip) -> Prediction:
    return Body(body=torch.ones(*clip.times.shape, 17, 3))


def then(clip: Clip) -> Prediction:
    assert clip.query_times is not None
    return Later(depth_then=clip.query_times[:, :, None, None, None] + torch.zeros(1, 1, 3, 16, 24))


def test_passes_are_of_the_class_of_all_heads_whichever_answer() -> None:
    """Predictions of one class can be joined, also where heads that answer once have fields of their own."""
    heads = {"body": SaysConfig(provides=("body",), said=body)}
    later = {"then": SaysConfig(provides=("depth_then",), prediction=Later, said=then, queried=True)}
    clip = dataclasses.replace(make_clip(), query_times=torch.tensor([[0.0, 2.0]]))
    said = build(heads=heads | later)(clip)
    assert isinstance(said, Body)
    assert isinstance(said, Later)
    assert said.body is not None
    assert said.depth_then is not None
    assert said.depth_then[0, :, 0, 0, 0].tolist() == [0.0, 2.0]


def test_what_answers_query_times_has_an_axis_for_them() -> None:
    head = SaysConfig(provides=("sure",), prediction=Later, said=lambda clip: Later(sure=clip.times), queried=True)
    with pytest.raises(TypeError, match=r"Later\.sure answers query times and has no axis q"):
        build(heads={"sure": head})(make_clip())


def test_what_a_model_says_is_what_its_parts_provide() -> None:
    with pytest.raises(TypeError, match=r"the model predicts Body\.body, which its abilities\.outputs"):
        build(heads={"body": SaysConfig(provides=("depth",), said=body)})(make_clip())


def test_what_a_head_provides_is_declared_by_the_class_that_it_names() -> None:
    with pytest.raises(UserError, match=r"heads\.body provides boddy, which Body does not declare; let the head's"):
        build(heads={"body": SaysConfig(provides=("boddy",), said=body)})


def test_compiling_nothing_is_refused() -> None:
    with pytest.raises(UserError, match=r"the model has none; set loop\.compile=false"):
        compile_blocks(nn.Linear(2, 2))


def test_times_are_of_gaussians_only() -> None:
    """A video of another number of times is cut for Gaussians alone, so no other head may ask for it."""
    with pytest.raises(UserError, match=r"heads\.body makes no Gaussians, and gaussian_times is 4; remove it"):
        build(heads={"body": SaysConfig(provides=("body",), said=body, gaussian_times=4)})

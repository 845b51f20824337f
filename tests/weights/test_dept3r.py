"""A DePT3R from VGGT's weights says what VGGT says, until it has learned something."""

from __future__ import annotations

import dataclasses
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from four_d import checkpoints, config, schema
from four_d.backbones.hints import HintsConfig
from four_d.config import WeightsConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.query_decoder import QueryDecoderConfig
from four_d.model import FourD, ModelConfig
from four_d.query import QueryConfig
from four_d.types import Cameras, Clip, Prediction
from four_d.weights import KINDS
from four_d.weights.cases import Case, read_case
from four_d.weights.convert import target_of
from four_d.weights.verify import FLOORS, MIN_TOLERANCE, clip_of, in_their_terms
from tests.weights.test_weights import noisy, sizes

GOLDEN = Path(__file__).parents[3] / "shared" / "reference" / "vggt_tiny"
VARIANTS = {"early": "dept3r", "late": "overlays/dept3r_late"}
EVERYTHING = HintsConfig(intrinsics="optional", poses="optional", depth="optional", masks="optional")


def parts(vggt: ModelConfig, variant: str) -> ModelConfig:
    """What DePT3R has beside VGGT's."""
    points = vggt.heads["points"]
    assert isinstance(points, DenseHeadConfig)
    decoder = QueryDecoderConfig(width=16, depth=1, heads=2) if variant == "late" else None
    query = QueryConfig() if variant == "early" else None
    return ModelConfig(
        backbone=replace(vggt.backbone, hints=EVERYTHING, query=query),
        heads={**vggt.heads, "motion": replace(points, output="motion", decoder=decoder)},
    )


def recipe(variant: str) -> WeightsConfig:
    """What the shipped configs say of weights; of both phases at once, here."""
    plain = config.load_plain([VARIANTS[variant]])["weights"]
    chosen = schema.build(WeightsConfig, plain, "weights")
    return replace(chosen, fresh=(*chosen.fresh, "backbone.hints.*"))


def started(vggt: ModelConfig, theirs: dict[str, Tensor], variant: str) -> tuple[FourD, FourD]:
    """VGGT, and the DePT3R that begins with its weights, out of a file's."""
    state = KINDS["vggt"].adapter.to_ours(theirs, target_of(KINDS["vggt"], vggt), "theirs")
    plain, model, chosen = vggt.build().eval(), parts(vggt, variant).build().eval(), recipe(variant)
    plain.load_state_dict(state)
    checkpoints.fill(model, state, "vggt", fresh=chosen.fresh, dropped=chosen.dropped, copies=chosen.copies)
    return plain, model


def clips(images: Tensor, query_points: Tensor | None = None) -> dict[str, Clip]:
    """The same video, asked in several ways."""
    b, f, _, h, w = images.shape
    bare = Clip(
        images=images,
        times=torch.arange(f).float().expand(b, f),
        camera_ids=torch.zeros(b, f, dtype=torch.long),
        query_points=query_points,
    )
    intrinsics = torch.tensor([[0.9 * w, 0, 0.5 * w], [0, 0.9 * w, 0.45 * h], [0, 0, 1.0]]).expand(b, f, 3, 3)
    poses = torch.eye(4).expand(b, f, 4, 4).clone()
    poses[:, :, 0, 3] = torch.arange(f)
    no, yes = torch.zeros(b, f, dtype=torch.bool), torch.ones(b, f, dtype=torch.bool)
    cameras = Cameras(world_from_camera=poses, intrinsics=intrinsics, known=no, intrinsics_known=yes)
    depth = torch.linspace(1, 3, b * f * h * w).reshape(b, f, h, w)
    return {
        "bare": bare,
        "last time": replace(bare, query_times=bare.times[:, -1:]),
        "intrinsics unknown": replace(bare, cameras=replace(cameras, intrinsics_known=no)),
        "intrinsics known": replace(bare, cameras=cameras, query_times=bare.times[:, 1:2]),
        "some known": replace(bare, cameras=replace(cameras, intrinsics_known=torch.arange(f).expand(b, f) > 0)),
        "everything known": replace(
            bare, cameras=replace(cameras, known=yes), depth=depth, valid=depth > 1.5, dynamic=depth > 2
        ),
    }


def assert_equal(found: Prediction, expected: Prediction) -> None:
    """Field by field, to the bit; motion is what the copied head says."""
    for field in dataclasses.fields(Prediction):
        value = getattr(expected, field.name)
        if isinstance(value, Tensor):
            assert torch.equal(getattr(found, field.name), value), field.name
    assert found.motion is not None
    assert found.motion_confidence is not None
    assert expected.points is not None
    assert expected.points_confidence is not None
    for time in range(found.motion.shape[1]):
        assert torch.equal(found.motion[:, time], expected.points)
        assert torch.equal(found.motion_confidence[:, time], expected.points_confidence)


@pytest.fixture(scope="module")
def small() -> tuple[ModelConfig, dict[str, Tensor], Tensor, Tensor]:
    """Of our own making, so that the test runs everywhere."""
    model = sizes()
    images = torch.rand(1, 3, 3, 28, 28, generator=torch.Generator().manual_seed(0))
    theirs = KINDS["vggt"].adapter.to_theirs(noisy(model).state_dict(), "ours")
    return model, theirs, images, torch.tensor([[[0.0, 3.0, 4.0], [0.0, 20.0, 9.0]]])


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_start_it_says_what_vggt_says(
    small: tuple[ModelConfig, dict[str, Tensor], Tensor, Tensor], variant: str
) -> None:
    vggt, theirs, images, points = small
    plain, model = started(vggt, theirs, variant)
    asked = clips(images, points)
    with torch.no_grad():
        expected = plain(asked["bare"])
        assert expected.pixel_tracks is not None
        for name, clip in asked.items():
            found = model(clip)
            assert_equal(found, expected)
            assert torch.isfinite(found.motion_visible).all(), name
        every = replace(asked["bare"], query_times=asked["bare"].times)
        assert_equal(model(every), expected)


@pytest.mark.parametrize("variant", VARIANTS)
def test_after_one_step_of_what_is_new_it_says_something_else(
    small: tuple[ModelConfig, dict[str, Tensor], Tensor, Tensor], variant: str
) -> None:
    vggt, theirs, images, _ = small
    plain, model = started(replace(vggt, heads=without_track(vggt)), without_track_weights(theirs), variant)
    asked = clips(images)
    place = "backbone.query." if variant == "early" else "heads.motion.decoder."
    for given, name in (("last time", place), ("intrinsics known", "backbone.hints.encoders.intrinsics.")):
        new = [value for key, value in model.named_parameters() if key.startswith(name)]
        with torch.no_grad():
            assert_equal(model(asked[given]), plain(asked["bare"]))
        step(model, asked[given], new)
        with torch.no_grad():
            found, other = model(asked[given]), model(asked["bare"])
            assert not torch.equal(found.motion[:, 0], plain(asked["bare"]).points)
            assert not torch.equal(found.motion, other.motion)
        model = started(replace(vggt, heads=without_track(vggt)), without_track_weights(theirs), variant)[1]


def without_track(vggt: ModelConfig) -> dict[str, object]:
    return {name: head for name, head in vggt.heads.items() if name != "track"}


def without_track_weights(theirs: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: value for name, value in theirs.items() if not name.startswith("track_head.")}


def step(model: FourD, clip: Clip, parameters: list[Tensor]) -> None:
    """One step of gradient descent."""
    grads = torch.autograd.grad(model(clip).motion.square().mean(), parameters, allow_unused=True)
    assert any(grad is not None and grad.abs().max() > 0 for grad in grads)
    with torch.no_grad():
        for parameter, grad in zip(parameters, grads, strict=True):
            if grad is not None:
                parameter -= 0.1 * grad / grad.norm().clamp_min(1e-12)


@pytest.fixture(scope="module")
def golden() -> Case:
    if not GOLDEN.exists():
        pytest.skip("../shared/reference is not there")
    return read_case(GOLDEN)


@pytest.mark.parametrize("variant", VARIANTS)
def test_at_the_start_it_gives_the_published_codes_outputs(golden: Case, variant: str) -> None:
    plain, model = started(golden.model, golden.weights, variant)
    given = clip_of(golden, torch.float32)
    with torch.no_grad():
        expected = plain(given)
        asked = clips(given.images, given.query_points)
        for name in ("last time", "everything known"):
            found = model(asked[name])
            assert_equal(found, expected)
            ours = in_their_terms(found)
            compared = {key: value for key, value in ours.items() if key in golden.outputs}
            assert compared.keys() >= {"pose_enc", "depth", "depth_conf", "world_points", "world_points_conf", "track"}
            for key, value in compared.items():
                error = (value - golden.outputs[key]).abs().max()
                assert error <= max(FLOORS * golden.noise.get(key, 0.0), MIN_TOLERANCE), (name, key)

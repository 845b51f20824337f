"""Losses of Gaussians: values by hand, what they ask for, and zeros with a gradient path where truth is missing."""

from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Literal

import pytest
import torch
from torch import Tensor

from four_d import geometry
from four_d.errors import UserError
from four_d.losses import (
    GaussianDepthLossConfig,
    GaussianFlowLossConfig,
    LossConfig,
    OpacityLossConfig,
    PhotometricLossConfig,
)
from four_d.losses.gaussian import NEAREST, in_space
from four_d.losses.supervision import supervised
from four_d.schema import build
from four_d.similarity import LPIPS, LPIPS_WEIGHTS, load_lpips, structure
from four_d.types import Cameras, Clip, Gaussians, Prediction, Views, map_tensors
from tests.helpers import loss_value

B, F, H, W, V = 2, 4, 12, 14, 2
KEYS = [0, 2]
N = len(KEYS) * H * W
TERMS: list[LossConfig] = [
    PhotometricLossConfig(perceptual="structure"),
    GaussianDepthLossConfig(),
    GaussianDepthLossConfig(space="disparity"),
    GaussianFlowLossConfig(),
    GaussianFlowLossConfig(balance=0.5, huber=0.1),
]


def draw(*shape: int, seed: int) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


def make_targets() -> Clip:
    poses = torch.eye(4).repeat(B, F, 1, 1)
    poses[:, :, :3, 3] = 0.1 * draw(B, F, 3, seed=1)
    poses[:, 0] = torch.eye(4)
    intrinsics = torch.tensor([[12.0, 0, W / 2], [0, 12, H / 2], [0, 0, 1]]).expand(B, F, 3, 3)
    times = torch.arange(F).float().expand(B, F) / 10
    motion = draw(B, F, F, H, W, 3, seed=3) * (draw(B, 1, F, H, W, 1, seed=4) > 0.7)
    own = torch.arange(F)
    motion[:, own, own] = 0
    lenses = torch.eye(3).expand(B, V, 3, 3).clone()
    cameras = Cameras(world_from_camera=torch.eye(4).expand(B, V, 4, 4).clone(), intrinsics=lenses)
    views = Clip(
        images=draw(B, V, 3, H, W, seed=5), times=times[:, :V], camera_ids=torch.zeros(B, V).long(), cameras=cameras
    )
    return Clip(
        images=draw(B, F, 3, H, W, seed=6),
        times=times,
        camera_ids=torch.zeros(B, F, dtype=torch.long),
        cameras=Cameras(world_from_camera=poses, intrinsics=intrinsics, known=torch.ones(B, F, dtype=torch.bool)),
        depth=draw(B, F, H, W, seed=2) + 0.5,
        valid=draw(B, F, H, W, seed=7) > 0.1,
        query_times=times,
        motion=motion,
        motion_valid=draw(B, F, F, H, W, seed=8) > 0.1,
        views=views,
    )


def truth(targets: Clip) -> Prediction:
    """Gaussians at the true points of the key frames, with the true motion; every third is moved at its own time."""
    places = geometry.unproject(targets.depth, targets.cameras)[:, KEYS].reshape(B, N, 3)
    offsets = targets.motion[:, :, KEYS].reshape(B, F, N, 3)
    gauge = 0.3 * draw(B, N, 3, seed=9) * (torch.arange(N) % 3 == 0)[:, None]
    return Prediction(
        gaussians=Gaussians(
            means=(places - gauge).requires_grad_(),
            quats=draw(B, N, 4, seed=10).requires_grad_(),
            scales=draw(B, N, 3, seed=11).requires_grad_(),
            opacities=draw(B, N, seed=12).requires_grad_(),
            harmonics=draw(B, N, 1, 3, seed=13).requires_grad_(),
            offsets=(offsets + gauge[:, None]).requires_grad_(),
            offset_times=targets.times,
            turns=torch.nn.functional.normalize(draw(B, F, N, 4, seed=14), dim=-1).requires_grad_(),
        ),
        key_frames=torch.tensor(KEYS).expand(B, -1),
    )


def leaves(prediction: Prediction) -> list[Tensor]:
    return [value for name, value in vars(prediction.gaussians).items() if name != "offset_times"]


def pictures(colour: Tensor) -> Views:
    return Views(colour=colour, alpha=colour[:, :, 0], depth=colour[:, :, 0])


def moved(prediction: Prediction, **changes: Tensor) -> Prediction:
    return dataclasses.replace(prediction, gaussians=dataclasses.replace(prediction.gaussians, **changes))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
def test_zero_at_truth_and_every_output_has_a_path(term: LossConfig) -> None:
    targets = make_targets()
    prediction = truth(targets)
    loss = loss_value(term, prediction, targets, pictures(targets.views.images))
    assert loss.item() == pytest.approx(0, abs=1e-5)
    loss.backward()
    assert all(leaf.grad is not None and bool(leaf.grad.isfinite().all()) for leaf in leaves(prediction))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
@pytest.mark.parametrize("missing", ["fields", "valid"])
def test_without_truth_exactly_zero_with_zero_gradients(term: LossConfig, missing: str) -> None:
    targets = make_targets()
    if missing == "fields":
        targets = dataclasses.replace(targets, depth=None, motion=None, views=None)
    else:
        nothing = torch.zeros_like
        targets = dataclasses.replace(
            targets, valid=nothing(targets.valid), motion_valid=nothing(targets.motion_valid), views=None
        )
    prediction = moved(truth(targets if missing == "valid" else make_targets()))
    loss = loss_value(term, prediction, targets)
    assert loss.item() == 0
    assert not supervised(targets, term.needs).any()
    loss.backward()
    assert all(torch.equal(leaf.grad, torch.zeros_like(leaf)) for leaf in leaves(prediction))


@pytest.mark.parametrize("term", TERMS, ids=lambda term: term.kind)
def test_a_model_without_gaussians_is_told_so(term: LossConfig) -> None:
    with pytest.raises(UserError, match=rf"the {term.kind} loss needs Gaussians; add a head \{{kind: gaussian\}}"):
        loss_value(term, Prediction(), make_targets())


def test_photometric_by_hand() -> None:
    targets = make_targets()
    prediction, true = truth(targets), targets.views.images
    colour = (true + 0.1 * draw(*true.shape, seed=20)).requires_grad_()
    squared = float((colour.detach() - true).square().mean())
    plain = loss_value(PhotometricLossConfig(perceptual="none"), prediction, targets, pictures(colour))
    assert plain.item() == pytest.approx(squared, rel=1e-5)
    loss = loss_value(
        PhotometricLossConfig(perceptual="structure", perceptual_weight=0.5), prediction, targets, pictures(colour)
    )
    look = float(structure(colour.detach().flatten(0, 1), true.flatten(0, 1)).mean())
    assert loss.item() == pytest.approx(squared + 0.5 * look, rel=1e-5)
    loss.backward()
    assert colour.grad is not None
    assert float(colour.grad.abs().max()) > 0


@pytest.mark.parametrize("perceptual", ["none", "structure"])
def test_views_of_unknown_cameras_are_not_compared(perceptual: Literal["none", "structure"]) -> None:
    targets = make_targets()
    prediction, views = truth(targets), targets.views
    known = torch.ones(B, V, dtype=torch.bool)
    known[0, 1:] = False
    cameras = dataclasses.replace(views.cameras, known=known)
    term, colour = PhotometricLossConfig(perceptual=perceptual), draw(*views.images.shape, seed=20).requires_grad_()
    some = dataclasses.replace(targets, views=dataclasses.replace(views, cameras=cameras))
    loss = loss_value(term, prediction, some, pictures(colour))
    loss.backward()
    assert torch.equal(colour.grad.flatten(2).abs().amax(-1) > 0, known)

    def alone(clip: int, count: int) -> float:
        part = map_tensors(views, lambda tensor: tensor[clip : clip + 1, :count])
        shown = pictures(colour.detach()[clip : clip + 1, :count])
        return loss_value(term, prediction, dataclasses.replace(targets, views=part), shown).item()

    assert loss.item() == pytest.approx((alone(0, 1) + alone(1, V)) / 2, rel=1e-5), "clips count alike"
    none = dataclasses.replace(cameras, known=torch.zeros_like(known))
    never = dataclasses.replace(targets, views=dataclasses.replace(views, cameras=none))
    assert loss_value(term, prediction, never, pictures(colour)).item() == 0


def test_the_perceptual_term_is_the_one_that_the_config_names(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever lies on the disk. Without LPIPS's weights asking for it is an error before the first step."""
    monkeypatch.chdir(tmp_path)
    chosen = build(PhotometricLossConfig, {"perceptual": "lpips"}, "loss")
    with pytest.raises(UserError, match=r"no weights of LPIPS at .*; put torchvision's"):
        chosen.build()
    network = LPIPS("alex")
    saved = {name.replace("linear.", "lin"): value for name, value in network.state_dict().items()}
    saved = {f"{name}.model.1.weight" if name.startswith("lin") else name: value for name, value in saved.items()}
    Path(LPIPS_WEIGHTS).mkdir(parents=True)
    torch.save(saved, Path(LPIPS_WEIGHTS) / "alex.pth")
    load_lpips.cache_clear()
    assert build(PhotometricLossConfig, {}, "loss").perceptual == "structure"
    wide = torch.nn.functional.interpolate
    targets = make_targets()
    true = wide(targets.views.images.flatten(0, 1), (40, 40)).unflatten(0, (B, V))
    targets = dataclasses.replace(targets, views=dataclasses.replace(targets.views, images=true))
    colour = draw(*true.shape, seed=21).requires_grad_()
    loss = loss_value(chosen, truth(targets), targets, pictures(colour))
    look = network(colour.detach().flatten(0, 1), true.flatten(0, 1)).mean().item()
    assert loss.item() == pytest.approx(float((colour.detach() - true).square().mean()) + 0.5 * look, rel=1e-4)
    loss.backward()
    assert float(colour.grad.abs().max()) > 0
    assert not chosen.build().state_dict(), "what judges is not saved with what is judged"
    load_lpips.cache_clear()  # of other tests, another folder is the working one
    with pytest.raises(UserError, match="no weights of LPIPS at None"):
        PhotometricLossConfig(perceptual="lpips", lpips_weights=None).build()


def test_depth_by_hand() -> None:
    """Twice the distance from each key frame's camera is log 2 off; half is 1 / z off in disparity."""
    targets = make_targets()
    prediction = moved(truth(targets), offsets=torch.zeros(B, F, N, 3))
    for factor, term in ((2.0, GaussianDepthLossConfig()), (0.5, GaussianDepthLossConfig(space="disparity"))):
        far = dataclasses.replace(targets, depth=factor * targets.depth)
        places = geometry.unproject(far.depth, far.cameras)[:, KEYS].reshape(B, N, 3)
        loss = loss_value(term, moved(prediction, means=places.requires_grad_()), targets)
        valid, inverse = targets.valid[:, KEYS], 1 / targets.depth[:, KEYS]
        clips = [math.log(2) if factor == 2 else float(inverse[i][valid[i]].mean()) for i in range(B)]
        assert loss.item() == pytest.approx(sum(clips) / B, rel=1e-4)


def test_unknown_cameras_and_another_number_of_gaussians() -> None:
    targets = make_targets()
    known = torch.ones(B, F, dtype=torch.bool)
    known[:, KEYS] = False
    cameras = dataclasses.replace(targets.cameras, known=known)
    doubled = moved(truth(targets), means=2 * truth(targets).gaussians.means)
    assert loss_value(GaussianDepthLossConfig(), doubled, targets).item() > 0.1
    assert loss_value(GaussianDepthLossConfig(), doubled, dataclasses.replace(targets, cameras=cameras)).item() == 0
    one = dataclasses.replace(truth(targets), key_frames=torch.zeros(B, 1, dtype=torch.long))
    for term in (GaussianDepthLossConfig(), GaussianFlowLossConfig()):
        with pytest.raises(UserError, match=f"{N} Gaussians for 1 key frames of {H * W} pixels"):
            loss_value(term, one, targets)


def test_depth_behind_the_camera_has_a_gradient_that_leads_out() -> None:
    for space, sign in (("log", 1), ("disparity", -1)):
        depth = torch.tensor([-1.0, 0.0, NEAREST - 1e-4, NEAREST + 1e-4, 3.0], requires_grad=True)
        values = in_space(depth, space)
        assert bool((sign * values.diff() > 0).all())
        values.sum().backward()
        assert bool((sign * depth.grad > 0).all())
        assert depth.grad[2].item() == pytest.approx(depth.grad[3].item(), rel=0.05)


def test_flow_by_hand() -> None:
    """Of what stands still the error is the length of the true motion, over other times than the pixel's own."""
    targets = make_targets()
    still = moved(truth(targets), offsets=torch.ones(B, F, N, 3).requires_grad_())
    length = targets.motion[:, :, KEYS].norm(dim=-1)
    keep = targets.motion_valid[:, :, KEYS].clone()
    for at, key in enumerate(KEYS):
        keep[:, key, at] = False
    clips = [float(length[i][keep[i]].mean()) for i in range(B)]
    assert loss_value(GaussianFlowLossConfig(), still, targets).item() == pytest.approx(sum(clips) / B, rel=1e-4)
    moves = length > 0.01
    shares = [0.8 * float(length[i][keep[i] & moves[i]].mean()) for i in range(B)]
    found = loss_value(GaussianFlowLossConfig(balance=0.8), still, targets).item()
    assert found == pytest.approx(sum(shares) / B, rel=1e-4)
    huber = torch.where(length < 0.5, length.square(), length - 0.25)
    clips = [float(huber[i][keep[i]].mean()) for i in range(B)]
    assert loss_value(GaussianFlowLossConfig(huber=0.5), still, targets).item() == pytest.approx(
        sum(clips) / B, rel=1e-4
    )
    none = moved(truth(targets), offsets=None, offset_times=None)
    assert loss_value(GaussianFlowLossConfig(), none, targets).item() == pytest.approx(
        loss_value(GaussianFlowLossConfig(), still, targets).item()
    )


def test_flow_needs_the_motion_of_key_frames_only() -> None:
    targets = make_targets()
    moving = moved(truth(targets), offsets=draw(B, F, N, 3, seed=30).requires_grad_())
    order = [KEYS[1], KEYS[0]]
    some = dataclasses.replace(
        targets,
        motion=targets.motion[:, :, order],
        motion_valid=targets.motion_valid[:, :, order],
        motion_frames=torch.tensor(order).expand(B, -1),
    )
    for term in (GaussianFlowLossConfig(), GaussianFlowLossConfig(balance=0.5)):
        assert loss_value(term, moving, some).item() == pytest.approx(
            loss_value(term, moving, targets).item(), rel=1e-6
        )
    other = dataclasses.replace(some, motion_frames=torch.tensor([0, 1]).expand(B, -1))
    with pytest.raises(UserError, match=r"set data\.motion_every to the backbone's stride"):
        loss_value(GaussianFlowLossConfig(), moving, other)


def test_flow_at_times_without_an_offset_does_not_count() -> None:
    targets = make_targets()
    prediction = truth(targets)
    gaussians = dataclasses.replace(
        prediction.gaussians,
        offsets=prediction.gaussians.offsets[:, :3].detach().requires_grad_(),
        offset_times=targets.times[:, :3],
        turns=prediction.gaussians.turns[:, :3].detach(),
    )
    fewer = dataclasses.replace(prediction, gaussians=gaussians)
    assert loss_value(GaussianFlowLossConfig(), fewer, targets).item() == pytest.approx(0, abs=1e-5)


def test_settings_that_mean_nothing() -> None:
    for settings, message in (({"balance": 1.0}, "balance is 1"), ({"huber": -1.0}, "huber is -1")):
        with pytest.raises(UserError, match=message):
            GaussianFlowLossConfig(**settings)


def test_opacities_are_regularised_by_their_mean_or_by_their_entropy() -> None:
    """No truth is asked for; an entropy's gradient goes to the nearer of 0 and 1, and stays finite there."""
    targets, prediction = make_targets(), truth(make_targets())
    opacities = prediction.gaussians.opacities.detach()
    assert loss_value(OpacityLossConfig(), prediction, targets).item() == pytest.approx(opacities.mean().item())
    ends = torch.tensor([0.0, 1.0, 0.2, 0.8]).repeat(B, N // 4).requires_grad_()
    found = loss_value(OpacityLossConfig(form="entropy"), moved(prediction, opacities=ends), targets)
    each = -0.2 * math.log(0.2) - 0.8 * math.log(0.8)
    assert found.item() == pytest.approx(each / 2, rel=5e-3)
    found.backward()
    assert ends.grad.isfinite().all()
    assert (ends.grad[:, 2::4] > 0).all()
    assert (ends.grad[:, 3::4] < 0).all()
    with pytest.raises(UserError, match="the opacity loss needs Gaussians"):
        loss_value(OpacityLossConfig(), Prediction(), targets)

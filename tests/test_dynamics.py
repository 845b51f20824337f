"""PAGE-4D's dynamics-aware attention: the bias, its schedule, the user's own mask, the mask as an output."""

from __future__ import annotations

import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from four_d.backbones.alternating import AlternatingConfig
from four_d.backbones.dynamics import Dynamics, DynamicsConfig, patch_fractions, schedule
from four_d.errors import UserError
from four_d.heads.camera import CameraHeadConfig
from four_d.heads.dense import DenseHeadConfig
from four_d.heads.dynamic import DynamicHeadConfig
from four_d.layers import attention
from four_d.losses.dynamic import DynamicLossConfig
from four_d.model import FourD, ModelConfig
from four_d.types import Clip, Prediction
from tests.helpers import loss_value


def draw(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=dtype)


def clip_of(images: Tensor, **fields: Tensor) -> Clip:
    b, f = images.shape[:2]
    return Clip(images=images, times=torch.zeros(b, f), camera_ids=torch.zeros(b, f, dtype=torch.long), **fields)


def make_model(seed: int = 0) -> FourD:
    torch.manual_seed(seed)
    backbone = AlternatingConfig(
        patch_size=8,
        width=16,
        rounds=4,
        heads=2,
        registers=1,
        layer_scale=1.0,
        special_std=1.0,
        dynamics=DynamicsConfig(after=1, rounds=(2, 2), hidden=8, hold=(4, 8)),
    )
    dense = DenseHeadConfig(channels=(8, 8, 8, 8), features=8, last_features=8)
    heads = {"camera": CameraHeadConfig(depth=1, heads=2), "depth": dense, "dynamic": DynamicHeadConfig()}
    return ModelConfig(backbone=backbone, heads=heads).build().double()


@pytest.mark.parametrize("backend", ["sdpa", "matmul"])
def test_a_rank_one_bias_equals_an_explicit_additive_mask(backend: str) -> None:
    q, k, v = (draw(2, 3, n, 16, seed=n).requires_grad_() for n in (7, 9, 9))
    k.data, v.data = k.data + 0.1, v.data - 0.1
    rows, keys = draw(2, 7, seed=1).requires_grad_(), draw(2, 9, seed=2).requires_grad_()
    leaves = (q, k, v, rows, keys)
    folded = attention(q, k, v, backend, (rows, keys))
    mask = (rows[:, :, None] * keys[:, None, :])[:, None]
    explicit = torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    torch.testing.assert_close(folded, explicit, atol=1e-12, rtol=0)
    for one, two in zip(
        torch.autograd.grad(folded.sin().sum(), leaves), torch.autograd.grad(explicit.sin().sum(), leaves)
    ):
        torch.testing.assert_close(one, two, atol=1e-12, rtol=0)


def test_a_biased_attention_needs_no_mask_and_runs_on_the_fused_kernel() -> None:
    q, k, v, rows, keys = (draw(*shape, dtype=torch.float32) for shape in [(1, 2, 9, 16)] * 3 + [(1, 9)] * 2)
    with sdpa_kernel(SDPBackend.FLASH_ATTENTION):  # which takes no mask, and raises where it cannot run
        fused = attention(q, k, v, "sdpa", (rows, keys))
    torch.testing.assert_close(fused, attention(q, k, v, "matmul", (rows, keys)))


@pytest.mark.gpu
@pytest.mark.parametrize("biased", [False, True])
def test_xformers_equals_sdpa(biased: bool) -> None:
    pytest.importorskip("xformers")
    results: list[list[Tensor]] = []
    for backend in ("sdpa", "xformers"):
        q, k, v, rows, keys = (
            draw(*shape, seed=n, dtype=torch.float32).cuda().requires_grad_()
            for n, shape in enumerate([(2, 3, 40, 64), (2, 3, 56, 64), (2, 3, 56, 64), (2, 40), (2, 56)])
        )
        out = attention(q, k, v, backend, (rows, keys) if biased else None)
        results.append([out, *torch.autograd.grad(out.sin().sum(), (q, k, v))])
    for one, two in zip(*results):
        torch.testing.assert_close(one, two, atol=2e-4, rtol=2e-4)


def test_xformers_that_is_not_installed_is_one_clear_error() -> None:
    try:
        import xformers  # noqa: F401
    except ImportError:
        q = draw(1, 1, 2, 8)
        with pytest.raises(UserError, match="pip install 'four_d\\[xformers\\]' or choose sdpa"):
            attention(q, q, q, "xformers")
    else:
        pytest.skip("xformers is installed")


def test_alpha_falls_from_one_to_zero_by_half_a_cosine() -> None:
    hold = (6000, 10000)
    assert [schedule(step, hold) for step in (0, 5999, 10000, 10**6)] == [1, 1, 0, 0]
    assert schedule(8000, hold) == pytest.approx(0.5)
    assert schedule(7000, hold) == pytest.approx((2 + 2**0.5) / 4)
    assert schedule(10**9, None) == 1
    assert schedule(0, (0, 0)) == 0


@given(step=st.integers(0, 100), first=st.integers(0, 40), length=st.integers(0, 40))
def test_alpha_never_rises(step: int, first: int, length: int) -> None:
    hold = (first, first + length)
    assert 0 <= schedule(step + 1, hold) <= schedule(step, hold) <= 1


def test_alpha_is_stored_with_the_weights() -> None:
    model = make_model()
    model.at_step(6)
    other = make_model()
    other.load_state_dict(model.state_dict())
    assert other.backbone.dynamics.alpha.item() == pytest.approx(0.5)


def test_bias_is_for_special_queries_and_patch_keys_only() -> None:
    dynamics = Dynamics(4, after=0, masked=range(1, 2), scale=10.0)
    dynamics.alpha.fill_(0.5)
    logits = torch.tensor([[[-100.0, 0.0, 100.0], [0.0, 0.0, 0.0]]])
    rows, keys = dynamics.bias(logits, special=2)
    assert rows.tolist() == [[5, 5, 0, 0, 0, 5, 5, 0, 0, 0]]
    assert keys.tolist() == [[0, 0, 0.5, 0, -0.5, 0, 0, 0, 0, 0]]


def test_the_users_mask_replaces_the_prediction_where_given() -> None:
    dynamics = Dynamics(4, after=0, masked=range(1, 2))
    shares = torch.tensor([[[1.0, 0.25], [1.0, 1.0]]])
    _, keys = dynamics.bias(torch.zeros(1, 2, 2), 0, shares, torch.tensor([[True, False]]))
    assert keys.tolist() == [[-0.5, 0.25, 0, 0]]


@pytest.mark.parametrize(("alpha", "given", "predicted"), [(1.0, [-5.0, 5.0], 2.5), (0.0, [-10.0, 0.0], 0.0)])
def test_the_users_mask_leaves_out_what_moves_however_far_the_prediction_was_faded(
    alpha: float, given: list[float], predicted: float
) -> None:
    dynamics = Dynamics(4, after=0, masked=range(1, 2), scale=10.0)
    dynamics.alpha.fill_(alpha)
    logits = torch.full((1, 2, 2), 0.25).logit()
    shares = torch.tensor([[[1.0, 0.0], [1.0, 1.0]]])
    rows, keys = dynamics.bias(logits, 1, shares, torch.tensor([[True, False]]))
    bias = rows[0, 0] * keys[0]
    torch.testing.assert_close(bias, torch.tensor([0, *given, 0, predicted, predicted]))
    assert (rows[0, 1:3] == 0).all(), "patches attend to what they did"


def test_shares_of_patches() -> None:
    mask = torch.zeros(1, 1, 4, 6, dtype=torch.bool)
    mask[0, 0, :2, 2:4] = True
    mask[0, 0, 3, 5] = True
    assert patch_fractions(mask, (2, 3)).tolist() == [[[0, 1, 0, 0, 0, 0.25]]]


@pytest.mark.parametrize("step", [0, 8], ids=["full", "faded"])
def test_a_users_mask_changes_the_cameras_and_one_of_another_size_is_an_error(step: int) -> None:
    """The shipped recipe ends with its own mask faded out: the user's still counts."""
    model, images = make_model(), draw(1, 3, 3, 16, 24).sigmoid()
    model.at_step(step)
    mask = torch.zeros(1, 3, 16, 24, dtype=torch.bool)
    mask[..., :12] = True
    free, led = model(clip_of(images)), model(clip_of(images, dynamic=mask))
    assert (free.cameras.world_from_camera - led.cameras.world_from_camera).abs().max() > 1e-6
    torch.testing.assert_close(free.dynamic, led.dynamic)  # what is predicted stays an output
    small = clip_of(images, dynamic=mask)
    object.__setattr__(small, "dynamic", mask[:, :, :8])  # past the type checks that only tests have
    with pytest.raises(UserError, match=r"8 × 24 and 16 × 24 .*resize the mask"):
        model(small)


def test_without_alpha_the_model_is_the_plain_one() -> None:
    model, images = make_model(), draw(1, 3, 3, 16, 24).sigmoid()
    model.at_step(8)
    faded = model(clip_of(images))
    still = model(clip_of(images, dynamic=torch.zeros(1, 3, 16, 24, dtype=torch.bool)))
    torch.testing.assert_close(still.cameras.world_from_camera, faded.cameras.world_from_camera)
    model.backbone.dynamics = None
    del model.heads["dynamic"]
    plain = model(clip_of(images))
    torch.testing.assert_close(faded.cameras.world_from_camera, plain.cameras.world_from_camera)
    torch.testing.assert_close(faded.depth, plain.depth)


def test_gradient_reaches_the_head_through_the_cameras_and_stops_before_the_tokens() -> None:
    model, images = make_model(), draw(1, 3, 3, 16, 24).sigmoid()
    model(clip_of(images)).cameras.world_from_camera.sum().backward()
    assert all(p.grad is not None and p.grad.abs().max() > 0 for p in model.backbone.dynamics.parameters())
    model.zero_grad()
    model(clip_of(images)).dynamic_logits.square().sum().backward()
    reached = {name for name, p in model.named_parameters() if p.grad is not None and p.grad.abs().max() > 0}
    assert reached
    assert all(name.startswith("backbone.dynamics.head") for name in reached)


def test_the_mask_has_the_images_size_and_is_a_probability() -> None:
    prediction = make_model()(clip_of(draw(1, 3, 3, 16, 24).sigmoid()))
    assert prediction.dynamic.shape == (1, 3, 16, 24)
    assert prediction.dynamic_logits.shape == (1, 3, 2, 3)
    assert 0 < prediction.dynamic.min() < prediction.dynamic.max() < 1


def test_the_mask_follows_the_frames_but_for_the_first() -> None:
    model, images = make_model(), draw(1, 4, 3, 16, 24).sigmoid()
    order = [0, 3, 1, 2]
    torch.testing.assert_close(model(clip_of(images[:, order])).dynamic, model(clip_of(images)).dynamic[:, order])


def test_images_with_an_alpha_channel_are_one_clear_error() -> None:
    clip = clip_of(draw(1, 2, 3, 16, 24).sigmoid())
    object.__setattr__(clip, "images", torch.rand(1, 2, 4, 16, 24))  # past the type checks that only tests have
    with pytest.raises(UserError, match="4 channels, the model takes RGB"):
        make_model()(clip)


@pytest.mark.parametrize("wrong", [{"after": 3}, {"rounds": (1, 1)}, {"rounds": (2, 4)}, {"hold": (5, 2)}])
def test_settings_that_do_not_fit_are_refused(wrong: dict[str, object]) -> None:
    config = dataclasses.replace(DynamicsConfig(after=1, rounds=(2, 3)), **wrong)
    with pytest.raises(UserError, match="dynamics: "):
        AlternatingConfig(width=16, heads=2, rounds=4, dynamics=config).build()


def test_a_mask_head_without_a_mask_is_an_error() -> None:
    config = ModelConfig(
        backbone=AlternatingConfig(width=16, heads=2, rounds=2), heads={"dynamic": DynamicHeadConfig()}
    )
    with pytest.raises(
        UserError, match=r"heads\.dynamic requires a mask of what moves, .*model\.backbone\.dynamics=\{\}"
    ):
        config.build()(clip_of(torch.rand(1, 2, 3, 14, 14)))


def targets(dynamic: Tensor, known: Tensor | None = None) -> Clip:
    return clip_of(torch.zeros(*dynamic.shape[:2], 3, *dynamic.shape[2:]), dynamic=dynamic, dynamic_known=known)


def test_loss_is_least_at_the_truth_and_known_by_hand() -> None:
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    mask[..., :2, :2] = True
    right = torch.tensor([[20.0, -20.0], [-20.0, -20.0]]).expand(1, 2, 2, 2)
    assert loss_value(DynamicLossConfig(), Prediction(dynamic_logits=right), targets(mask)) < 1e-6
    assert loss_value(DynamicLossConfig(), Prediction(dynamic_logits=-right), targets(mask)) == pytest.approx(
        20, rel=1e-4
    )
    half = Prediction(dynamic_logits=torch.zeros(1, 2, 2, 2))
    assert loss_value(DynamicLossConfig(), half, targets(mask)).item() == pytest.approx(0.6931, abs=1e-4)
    assert loss_value(DynamicLossConfig(positive=3.0), half, targets(mask)).item() == pytest.approx(
        0.6931 * 1.5, abs=1e-4
    )


def test_loss_ignores_frames_without_truth_and_is_zero_without_any() -> None:
    mask = torch.zeros(1, 2, 4, 4, dtype=torch.bool)
    logits = torch.stack([torch.full((2, 2), -20.0), torch.full((2, 2), 20.0)])[None].requires_grad_()
    prediction = Prediction(dynamic_logits=logits)
    assert loss_value(DynamicLossConfig(), prediction, targets(mask, torch.tensor([[True, False]]))) < 1e-6
    nothing = loss_value(DynamicLossConfig(), prediction, targets(mask, torch.tensor([[False, False]])))
    assert nothing == 0
    nothing.backward()
    assert logits.grad is not None
    with pytest.raises(UserError, match="add a head"):
        loss_value(DynamicLossConfig(), Prediction(), targets(mask))

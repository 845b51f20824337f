from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable

import pytest
import roma
import torch
from gsplat.cuda import _torch_impl as gsplat_torch
from torch import Tensor

from four_d import fields
from four_d.geometry import Similarity, quaternion_product
from four_d.rendering import compositing, harmonics, render, tiles
from four_d.rendering.compiled import CompiledRasteriser, library
from four_d.rendering.in_torch import TorchRasteriser
from four_d.rendering.projection import project
from four_d.rendering.scene import make_scene, means_at
from four_d.types import Cameras, Gaussians, Views, map_tensors
from tests.rendering.scenes import cloud, constant_colour, dense, one, straight, together

SIZE = (17, 19)


@pytest.fixture(params=["torch", "compiled"])
def backend(request: pytest.FixtureRequest) -> str:
    if request.param == "compiled" and isinstance(reason := library(), str):
        pytest.skip(reason)
    return request.param


def test_one_isotropic_gaussian_is_its_closed_form(backend: str) -> None:
    cameras, times = straight(focal=20.0)
    view = render(one(2.0, opacity=0.8, scale=0.1), cameras, times, (9, 11), backend=backend)
    variance = (20.0 * 0.1 / 2.0) ** 2 + 0.3
    y, x = torch.meshgrid(torch.arange(9.0) - 4, torch.arange(11.0) - 5, indexing="ij")
    alpha = 0.8 * torch.exp(-(x**2 + y**2).double() / (2 * variance))
    alpha = torch.where(alpha < 1 / 255, 0, alpha)
    assert 0 < (alpha == 0).sum() < alpha.numel()
    torch.testing.assert_close(view.alpha[0, 0], alpha)
    colour = torch.tensor([0.9, 0.5, 0.1], dtype=torch.float64)
    torch.testing.assert_close(view.colour[0, 0], alpha * colour[:, None, None])
    torch.testing.assert_close(view.depth[0, 0], torch.where(alpha > 0, 2.0, 0.0).double())


@pytest.mark.parametrize("types", [("float", "double"), ("double", "float"), ("bfloat16", "float"), ("half", "double")])
def test_types_need_not_agree(backend: str, types: tuple[str, str]) -> None:
    gaussians, cameras, times = cloud(20, moves=True, size=0.2)
    exact = render(gaussians, cameras, times, SIZE, backend=backend)
    own, others = (getattr(torch, name) for name in types)
    gaussians = map_tensors(gaussians, lambda tensor: tensor.to(own))
    cameras = map_tensors(cameras, lambda tensor: tensor.to(others) if tensor.is_floating_point() else tensor)
    found = render(gaussians, cameras, times.to(others), SIZE, backend=backend, features=torch.ones(1, 20, 1))
    assert found.colour.dtype == (torch.float64 if own == torch.float64 else torch.float32)
    rough = 1e-5 if own.itemsize >= 4 else 0.05
    torch.testing.assert_close(found.colour.double(), exact.colour, atol=rough, rtol=rough)


def test_times_keep_their_digits() -> None:
    gaussians, cameras, _ = cloud(5, size=0.2, moves=True)
    assert gaussians.offset_times is not None
    late = 1.7e9 + gaussians.offset_times
    narrow = dataclasses.replace(map_tensors(gaussians, torch.Tensor.float), offset_times=late)
    first, second = (
        render(narrow, cameras, torch.tensor([[1.7e9 + second]], dtype=torch.float64), SIZE).colour for second in (0, 1)
    )
    expected = render(gaussians, cameras, torch.tensor([[1.0]]), SIZE).colour
    torch.testing.assert_close(second.double(), expected, atol=1e-5, rtol=1e-5)
    assert (second - first).abs().max() > 0.05


@pytest.mark.parametrize("swapped", [False, True])
def test_the_nearer_of_two_covers_the_farther(backend: str, swapped: bool) -> None:
    near, far = one(2.0, 0.6, 0.2, (1.0, 0.0, 0.0)), one(3.0, 0.5, 0.3, (0.0, 1.0, 0.0))
    cameras, times = straight()
    parts = (far, near) if swapped else (near, far)
    view = render(together(*parts), cameras, times, (9, 11), backend=backend)
    expected = torch.tensor([0.6, 0.4 * 0.5, 0.0], dtype=torch.float64)
    torch.testing.assert_close(view.colour[0, 0, :, 4, 5], expected)
    torch.testing.assert_close(view.depth[0, 0, 4, 5], torch.tensor((0.6 * 2 + 0.2 * 3) / 0.8, dtype=torch.float64))


@pytest.mark.parametrize("k", [1, 16])
def test_agrees_with_gsplat_projection_and_a_plain_loop(backend: str, k: int) -> None:
    gaussians, cameras, times = cloud(150, k=k, size=0.15)
    view = render(gaussians, cameras, times, SIZE, backend=backend)
    colour, depth, alpha, _ = dense(gaussians, cameras, SIZE)
    assert alpha.min() < 0.5 < alpha.max()
    torch.testing.assert_close(view.colour[0, 0], colour.permute(2, 0, 1), atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(view.depth[0, 0], depth, atol=1e-9, rtol=1e-9)
    torch.testing.assert_close(view.alpha[0, 0], alpha, atol=1e-9, rtol=1e-9)


def test_ends_before_the_gaussian_that_would_make_it_dark(backend: str) -> None:
    gaussians, cameras, times = cloud(300, size=0.4)
    gaussians = dataclasses.replace(gaussians, opacities=gaussians.opacities.clamp_min(0.7))
    opacities = gaussians.opacities.clone().requires_grad_()
    view = render(dataclasses.replace(gaussians, opacities=opacities), cameras, times, SIZE, backend=backend)
    _, _, alpha, weights = dense(gaussians, cameras, SIZE)
    _, _, whole, _ = dense(gaussians, cameras, SIZE, stop=False)
    assert (whole - alpha).max() > 1e-6
    torch.testing.assert_close(view.alpha[0, 0], alpha, atol=1e-9, rtol=1e-9)
    view.colour.sum().backward()
    hidden = weights.flatten(0, 1).amax(0) == 0
    assert hidden.any()
    assert opacities.grad is not None
    assert (opacities.grad[0, hidden] == 0).all()


def _sums(view: Views) -> list[Tensor]:
    """Every picture's pixels added up with random weights: few numbers, so that derivatives by all are cheap."""
    generator = torch.Generator().manual_seed(1)
    pictures = [picture for picture in (view.colour, view.alpha, view.depth, view.features) if picture is not None]
    weights = [torch.rand(picture.shape, generator=generator, dtype=torch.float64) for picture in pictures]
    return [(picture * weight.to(picture)).sum() for picture, weight in zip(pictures, weights)]


FIELDS = ("means", "quats", "scales", "opacities", "harmonics", "offsets", "turns")
INPUTS = (*FIELDS, "features", "background", "poses")


@pytest.mark.parametrize("name", INPUTS)
def test_gradients_are_those_of_finite_differences(backend: str, name: str) -> None:
    gaussians, cameras, times = cloud(3, views=2, k=4, size=0.3, moves=True, turns=True)
    generator = torch.Generator().manual_seed(3)
    values = {
        **{field: getattr(gaussians, field) for field in FIELDS},
        "features": torch.rand(1, 3, 2, generator=generator, dtype=torch.float64),
        "background": torch.rand(3, generator=generator, dtype=torch.float64),
        "poses": cameras.world_from_camera,
    }

    def function(value: Tensor) -> tuple[Tensor, ...]:
        now = {**values, name: value}
        view = render(
            Gaussians(**{f: now[f] for f in FIELDS}, offset_times=gaussians.offset_times),
            Cameras(world_from_camera=now["poses"], intrinsics=cameras.intrinsics),
            times,
            (6, 7),
            features=now["features"],
            background=now["background"],
            backend=backend,
        )
        return tuple(_sums(view))

    value = values[name].clone().requires_grad_()
    assert torch.autograd.gradcheck(function, (value,), eps=1e-6, atol=1e-6, rtol=1e-5)
    gradient = torch.autograd.grad(torch.stack(function(value)).sum(), value)[0]
    assert gradient.abs().max() > 0


def _gradients(gaussians: Gaussians, cameras: Cameras, times: Tensor, draw: Callable[..., Views]) -> list[Tensor]:
    leaves = [getattr(gaussians, name).clone().requires_grad_() for name in INPUTS[:5]]
    pose = cameras.world_from_camera.clone().requires_grad_()
    view = draw(
        dataclasses.replace(gaussians, **dict(zip(INPUTS[:5], leaves))),
        dataclasses.replace(cameras, world_from_camera=pose),
        times,
    )
    return list(torch.autograd.grad(torch.stack(_sums(view)).sum(), [*leaves, pose]))


def test_both_backends_agree_in_single_precision_forward_and_backward() -> None:
    if isinstance(reason := library(), str):
        pytest.skip(reason)
    gaussians, cameras, times = (map_tensors(part, Tensor.float) for part in cloud(900, batch=2, views=2, k=4))
    size = (37, 50)
    pictures = [render(gaussians, cameras, times, size, backend=name) for name in ("torch", "compiled")]
    for field in ("colour", "alpha", "depth"):
        first, second = (getattr(picture, field) for picture in pictures)
        assert (first - second).abs().max() < 1e-4
    both = [
        _gradients(gaussians, cameras, times, lambda *a, b=name: render(*a, size, backend=b))
        for name in ("torch", "compiled")
    ]
    for name, first, second in zip(INPUTS, *both):
        cosine = torch.nn.functional.cosine_similarity(first.flatten(), second.flatten(), dim=0)
        assert cosine > 0.99999, name
        torch.testing.assert_close(first.norm(), second.norm(), rtol=1e-4, atol=0)


def test_the_number_of_threads_changes_nothing() -> None:
    if isinstance(reason := library(), str):
        pytest.skip(reason)
    gaussians, cameras, times = cloud(400, views=2)
    runs = []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        runs.append(_gradients(gaussians, cameras, times, lambda *a: render(*a, (40, 33), backend="compiled")))
    assert all(torch.equal(first, second) for first, second in zip(*runs))


def test_gaussians_of_no_opacity_change_nothing(backend: str) -> None:
    gaussians, cameras, times = cloud(40)
    more, _, _ = cloud(25, seed=5)
    padded = together(gaussians, dataclasses.replace(more, opacities=torch.zeros_like(more.opacities)))
    first, second = (render(g, cameras, times, SIZE, backend=backend) for g in (gaussians, padded))
    # not to the bit: processors add a longer row of zeros in another order
    torch.testing.assert_close(first.colour, second.colour, rtol=0, atol=1e-12)
    torch.testing.assert_close(first.depth, second.depth, rtol=0, atol=1e-12)


def test_the_order_of_gaussians_does_not_matter(backend: str) -> None:
    gaussians, cameras, times = cloud(60)
    order = torch.randperm(60, generator=torch.Generator().manual_seed(0))
    shuffled = Gaussians(**{name: getattr(gaussians, name)[:, order] for name in INPUTS[:5]})
    first, second = (render(g, cameras, times, SIZE, backend=backend) for g in (gaussians, shuffled))
    torch.testing.assert_close(first.colour, second.colour)


@pytest.mark.parametrize("tile", [4, 16, 32])
def test_the_size_of_tiles_does_not_matter(tile: int) -> None:
    gaussians, cameras, times = cloud(120)
    scene = make_scene(gaussians, cameras, times, None)
    first, second = (TorchRasteriser(tile=t)(scene, SIZE) for t in (8, tile))
    torch.testing.assert_close(first.values, second.values)
    torch.testing.assert_close(first.depth, second.depth)


def test_long_lists_are_drawn_to_the_end_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    gaussians, cameras, times = cloud(700, size=0.6)
    gaussians = dataclasses.replace(gaussians, opacities=gaussians.opacities * 0.01 + 0.004)

    def draw() -> list[Tensor]:
        return [
            render(gaussians, cameras, times, SIZE, backend="torch").alpha,
            *_gradients(gaussians, cameras, times, lambda *a: render(*a, SIZE, backend="torch")),
        ]

    whole = draw()
    monkeypatch.setattr(compositing, "WORK", 64 * 50)
    steps = list(compositing.pieces(_one_cell(700)))
    assert len(steps) == 14
    for first, second in zip(whole, draw()):
        torch.testing.assert_close(first, second, atol=1e-9, rtol=1e-7)
    _, _, alpha, _ = dense(gaussians, cameras, SIZE)
    torch.testing.assert_close(whole[0][0, 0], alpha, atol=1e-9, rtol=1e-9)


def _one_cell(length: int) -> compositing.Cells:
    return compositing.Cells(
        offsets=torch.zeros(64, 2),
        centres=torch.zeros(1, 2),
        members=torch.arange(length),
        begins=torch.tensor([0]),
        ends=torch.tensor([length]),
        lengths=torch.tensor([length]),
    )


def test_what_is_not_covered_shows_the_background(backend: str) -> None:
    gaussians, cameras, times = cloud(50, batch=2, views=2)
    white = dataclasses.replace(gaussians, harmonics=constant_colour(torch.ones(2, 50, 3, dtype=torch.float64)))
    view = render(white, cameras, times, SIZE, background=torch.ones(3), backend=backend)
    torch.testing.assert_close(view.colour, torch.ones_like(view.colour))
    black = dataclasses.replace(gaussians, harmonics=constant_colour(torch.zeros(2, 50, 3, dtype=torch.float64)))
    each = torch.rand(2, 2, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    view = render(black, cameras, times, SIZE, background=each, backend=backend)
    torch.testing.assert_close(view.colour, each[..., None, None] * (1 - view.alpha[:, :, None]))


def test_a_sheet_parallel_to_the_picture_has_its_depth(backend: str) -> None:
    x, y = torch.meshgrid(torch.linspace(-2, 2, 21), torch.linspace(-2, 2, 21), indexing="ij")
    n = x.numel()
    sheet = Gaussians(
        means=torch.stack([x.flatten(), y.flatten(), torch.full((n,), 2.5)], dim=-1)[None].double(),
        quats=torch.tensor([1.0, 0, 0, 0], dtype=torch.float64).repeat(1, n, 1),
        scales=torch.tensor([0.15, 0.15, 0.0], dtype=torch.float64).repeat(1, n, 1),
        opacities=torch.full((1, n), 0.7, dtype=torch.float64),
        harmonics=torch.zeros(1, n, 1, 3, dtype=torch.float64),
    )
    cameras, times = straight()
    view = render(sheet, cameras, times, (9, 11), backend=backend)
    assert view.alpha.min() > 0.9
    torch.testing.assert_close(view.depth, torch.full_like(view.depth, 2.5))


def test_features_are_blended_as_colours(backend: str) -> None:
    gaussians, cameras, times = cloud(80)
    directions = gaussians.means - cameras.world_from_camera[:, :1, :3, 3]
    features = harmonics.colours(gaussians.harmonics, directions)
    view = render(gaussians, cameras, times, SIZE, features=features, background=torch.ones(3), backend=backend)
    assert view.features is not None
    torch.testing.assert_close(view.features + 1 - view.alpha[:, :, None], view.colour)


def test_each_scene_and_view_is_drawn_as_if_alone(backend: str) -> None:
    gaussians, cameras, times = cloud(60, batch=2, views=3, k=4, moves=True)
    view = render(gaussians, cameras, times, SIZE, backend=backend)
    alone = render(
        map_tensors(gaussians, lambda t: t[1:]),
        map_tensors(cameras, lambda t: t[1:, 2:]),
        times[1:, 2:],
        SIZE,
        backend=backend,
    )
    torch.testing.assert_close(view.colour[1, 2], alone.colour[0, 0])
    torch.testing.assert_close(view.depth[1, 2], alone.depth[0, 0])


def test_a_camera_that_is_not_known_sees_nothing(backend: str) -> None:
    gaussians, cameras, times = cloud(20, batch=2, views=2, size=0.3)
    gaussians = dataclasses.replace(gaussians, means=gaussians.means.requires_grad_())
    known = torch.tensor([[True, False], [False, False]])
    some = dataclasses.replace(cameras, known=known)
    view = render(gaussians, some, times, (9, 11), backend=backend)
    assert torch.equal(view.alpha.flatten(2).amax(-1) > 0, known)
    every = render(gaussians, cameras, times, (9, 11), backend=backend)
    torch.testing.assert_close(view.colour[0, 0], every.colour[0, 0])
    view.colour.sum().backward()
    assert torch.equal(gaussians.means.grad[1], torch.zeros(20, 3).double())


def test_nothing_to_draw_is_the_background(backend: str) -> None:
    gaussians, cameras, times = cloud(3)
    none = Gaussians(**{name: getattr(gaussians, name)[:, :0] for name in INPUTS[:5]})
    behind = dataclasses.replace(gaussians, means=gaussians.means * torch.tensor([1.0, 1.0, -1.0]))
    for empty in (none, behind):
        view = render(empty, cameras, times, SIZE, background=torch.ones(3), backend=backend)
        assert (view.colour == 1).all()
        assert (view.alpha == 0).all()
        assert (view.depth == 0).all()


def test_needles_and_giants_stay_finite_in_single_precision(backend: str) -> None:
    gaussians, cameras, times = (map_tensors(part, Tensor.float) for part in cloud(50))
    scales = torch.tensor([30.0, 1e-5, 1e-5]).repeat(1, 50, 1)
    gaussians = dataclasses.replace(gaussians, scales=scales)
    gradients = _gradients(gaussians, cameras, times, lambda *a: render(*a, SIZE, backend=backend))
    assert all(torch.isfinite(gradient).all() for gradient in gradients)


@pytest.mark.parametrize(
    ("time", "expected"), [(-1.0, 0.0), (0.0, 0.0), (0.25, 1.0), (0.5, 2.0), (0.9, 2.8), (1.0, 3.0), (7.0, 3.0)]
)
def test_offsets_are_linear_between_times_and_the_nearest_outside(time: float, expected: float) -> None:
    gaussians = one(2.0)
    offsets = torch.tensor([0.0, 2.0, 3.0], dtype=torch.float64)[None, :, None, None].expand(1, 3, 1, 3)
    known = torch.tensor([[0.0, 0.5, 1.0]], dtype=torch.float64)
    if expected == 2.8:
        expected = 2.0 + (0.9 - 0.5) / 0.5
    moving = dataclasses.replace(gaussians, offsets=offsets, offset_times=known)
    means = means_at(moving, torch.tensor([[time]], dtype=torch.float64))
    torch.testing.assert_close(means[0, 0], gaussians.means[0] + expected)


def test_a_moving_gaussian_is_drawn_where_it_is_at_the_time(backend: str) -> None:
    cameras, _ = straight()
    shift = torch.tensor([0.2, -0.1, 0.5], dtype=torch.float64)
    moving = dataclasses.replace(
        one(2.0), offsets=torch.stack([0 * shift, shift])[None, :, None], offset_times=torch.tensor([[0.0, 2.0]])
    )
    moved = dataclasses.replace(one(2.0), means=one(2.0).means + shift / 2)
    first = render(moving, cameras, torch.ones(1, 1), (9, 11), backend=backend)
    second = render(moved, cameras, torch.zeros(1, 1), (9, 11), backend=backend)
    torch.testing.assert_close(first.colour, second.colour)
    torch.testing.assert_close(first.depth, second.depth)


def _needle(**changes: Tensor) -> Gaussians:
    """A long Gaussian on the axis of `straight`, along x."""
    long = torch.tensor([[[0.4, 0.03, 0.05]]], dtype=torch.float64)
    return dataclasses.replace(one(2.0), scales=long, **changes)


def _about(axis: tuple[float, float, float], degrees: float) -> Tensor:
    half = math.radians(degrees) / 2
    return torch.tensor([math.cos(half), *(math.sin(half) * part for part in axis)], dtype=torch.float64)


@pytest.mark.parametrize(
    ("time", "degrees"), [(-1.0, 20.0), (0.0, 20.0), (1.0, 45.0), (2.0, 70.0), (2.5, 85.0), (3.0, 100.0), (8.0, 100.0)]
)
def test_a_turning_gaussian_is_drawn_as_one_that_is_turned(backend: str, time: float, degrees: float) -> None:
    """Between two times halfway, the shorter way although the quaternions have opposite signs, and outside not."""
    cameras, _ = straight()
    axis, own = (0.36, 0.48, 0.8), _about((0.0, 0.6, 0.8), 30.0)
    turns = torch.stack([_about(axis, 20.0), -_about(axis, 70.0), _about(axis, 100.0)])[None, :, None]
    turning = _needle(
        quats=3 * own[None, None],
        offsets=torch.zeros(1, 3, 1, 3, dtype=torch.float64),
        offset_times=torch.tensor([[0.0, 2.0, 3.0]]),
        turns=turns,
    )
    turned = _needle(quats=quaternion_product(_about(axis, degrees), own)[None, None])
    first = render(turning, cameras, torch.full((1, 1), time), (9, 11), backend=backend)
    second = render(turned, cameras, torch.zeros(1, 1), (9, 11), backend=backend)
    torch.testing.assert_close(first.colour, second.colour)
    still = render(_needle(quats=own[None, None]), cameras, torch.zeros(1, 1), (9, 11), backend=backend)
    assert (first.colour - still.colour).abs().max() > 0.05


def test_turns_change_no_colours() -> None:
    """Harmonics stay in the world's axes: a ball that turns looks as one that stands."""
    gaussians, cameras, times = cloud(8, k=16, size=0.3, moves=True, turns=True)
    ball = dataclasses.replace(gaussians, scales=torch.full_like(gaussians.scales, 0.2))
    first, second = (render(each, cameras, times, SIZE) for each in (ball, dataclasses.replace(ball, turns=None)))
    torch.testing.assert_close(first.colour, second.colour)


@pytest.mark.parametrize("change", ["moved", "mirrored"])
def test_a_world_that_is_moved_with_its_cameras_looks_the_same(change: str) -> None:
    gaussians, cameras, times = cloud(40, views=2, size=0.2, moves=True, turns=True)
    before = render(gaussians, cameras, times, SIZE).colour
    if change == "mirrored":
        after = render(fields.mirror(gaussians, SIZE[1]), fields.mirror(cameras, SIZE[1]), times, SIZE).colour.flip(-1)
    else:
        rotation = roma.random_rotmat(generator=torch.Generator().manual_seed(4), dtype=torch.float64)
        shift = torch.tensor([3.0, -1.0, 2.0], dtype=torch.float64)
        move = Similarity(scale=2.5, rotation=rotation, shift=shift)
        after = render(fields.move(gaussians, move), fields.move(cameras, move), times, SIZE).colour
    torch.testing.assert_close(after, before)


@pytest.mark.parametrize("k", [1, 4, 9, 16])
def test_harmonics_are_those_of_gsplat(k: int) -> None:
    unit = torch.nn.functional.normalize(torch.randn(50, 3, dtype=torch.float64), dim=-1)
    torch.testing.assert_close(
        harmonics.basis(unit, k), gsplat_torch._eval_sh_bases_fast(k, unit), atol=1e-6, rtol=1e-6
    )


def test_projection_is_that_of_gsplat_also_beside_the_picture() -> None:
    gaussians, cameras, times = cloud(200)
    gaussians = dataclasses.replace(gaussians, means=gaussians.means * torch.tensor([3.0, 3.0, 1.0]))
    splats = project(make_scene(gaussians, cameras, times, None), SIZE)
    covariances, _ = gsplat_torch._quat_scale_to_covar_preci(gaussians.quats[0], gaussians.scales[0], True, False)
    radii, centres, depths, conics, _ = gsplat_torch._fully_fused_projection(
        gaussians.means[0],
        covariances,
        torch.linalg.inv(cameras.world_from_camera[0]),
        cameras.intrinsics[0],
        SIZE[1],
        SIZE[0],
    )
    torch.testing.assert_close(splats.centres, centres)
    torch.testing.assert_close(splats.conics, conics)
    torch.testing.assert_close(splats.depths, depths)
    assert (splats.reach[radii > 0] <= radii[radii > 0]).all()


def test_reach_is_where_alpha_becomes_too_faint() -> None:
    gaussians, cameras, times = cloud(1, size=0.5)
    splats = project(make_scene(gaussians, cameras, times, None), SIZE)
    xx, xy, yy = splats.conics[0, 0]
    extreme = torch.tensor([splats.reach[0, 0, 0], -xy / yy * splats.reach[0, 0, 0]])
    sigma = 0.5 * (xx * extreme[0] ** 2 + yy * extreme[1] ** 2) + xy * extreme[0] * extreme[1]
    assert math.isclose(float(splats.opacities[0, 0] * torch.exp(-sigma)), 1 / 255, rel_tol=1e-6)


def test_autocast_changes_neither_pictures_nor_gradients(backend: str) -> None:
    """Half precision is for networks: the loop's autocast is on around rendering, a caller's around the backward."""
    gaussians, cameras, times = (map_tensors(each, lambda x: x.float()) for each in cloud(20, k=4))

    def drawn(*, autocast: bool) -> tuple[Tensor, Tensor]:
        leaf = dataclasses.replace(gaussians, means=gaussians.means.clone().requires_grad_())
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            colour = render(leaf, cameras, times, (9, 11), backend=backend).colour
            colour.square().sum().backward()
        assert leaf.means.grad is not None
        return colour.detach(), leaf.means.grad

    exact, found = drawn(autocast=False), drawn(autocast=True)
    assert found[0].dtype == torch.float32
    torch.testing.assert_close(found[0], exact[0])
    error = (found[1] - exact[1]).norm() / exact[1].norm()
    assert float(error) < (
        1e-4 if backend == "compiled" else 2e-2
    )  # torch's own backward of the projection follows autocast


def test_no_gaussians_at_all_have_a_gradient_path(backend: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """gsplat 1.5.3 would divide by zero: no kernel is asked."""
    for rasteriser in (TorchRasteriser, CompiledRasteriser):
        monkeypatch.setattr(rasteriser, "__call__", _never)
    few, cameras, times = cloud(3, batch=2, views=2)
    none = map_tensors(few, lambda tensor: tensor[:, :0].requires_grad_())
    background = torch.tensor([0.2, 0.4, 0.6], dtype=torch.float64)
    features = torch.zeros(2, 0, 5, dtype=torch.float64)
    views = render(none, cameras, times, (5, 7), background=background, features=features, backend=backend)
    assert torch.equal(views.colour, background[:, None, None].expand(2, 2, 3, 5, 7))
    assert views.features is not None
    assert views.features.shape == (2, 2, 5, 5, 7)
    assert not views.alpha.any()
    assert not views.depth.any()
    (views.colour.sum() + views.depth.sum()).backward()
    assert all(getattr(none, name).grad is not None for name in ("means", "quats", "scales", "opacities", "harmonics"))


def _never(*_: object) -> None:
    raise AssertionError("a kernel was asked to draw nothing")


@pytest.mark.parametrize("field", ["means", "opacities", "offsets", "cameras"])
def test_what_is_not_read_back_shows_as_nan_in_images_and_gradients(backend: str, field: str) -> None:
    """So a step of training is left out, as one whose gradient is not finite, and no host waited."""
    gaussians, cameras, times = cloud(20, moves=True, size=0.2)
    gaussians = dataclasses.replace(gaussians, means=gaussians.means.requires_grad_())
    sound = render(gaussians, cameras, times, SIZE, backend=backend, read_back=False)
    torch.testing.assert_close(sound.colour, render(gaussians, cameras, times, SIZE, backend=backend).colour)
    if field == "cameras":
        cameras = dataclasses.replace(cameras, world_from_camera=cameras.world_from_camera * torch.inf)
    else:
        values = getattr(gaussians, field).clone()
        values.view(-1)[3] = torch.nan
        gaussians = dataclasses.replace(gaussians, **{field: values})
    view = render(gaussians, cameras, times, SIZE, backend=backend, read_back=False)
    assert view.colour.isnan().all()
    assert view.depth.isnan().all()
    (gradient,) = torch.autograd.grad(view.colour.square().sum(), gaussians.means)
    assert not gradient.isfinite().all()


def test_the_lengths_of_lists_are_known_before_the_lists() -> None:
    gaussians, cameras, times = cloud(60, moves=True, size=0.3)
    scene = make_scene(gaussians, cameras, times, None)
    lists = tiles.make_lists(project(scene, (70, 90)), tiles.make_grid((70, 90), 4))
    assert lists.lengths.sum() == len(lists.members) > 60
    assert torch.equal(lists.lengths, lists.starts.diff())
    assert 0 < (lists.lengths == 0).sum() < len(lists.lengths)

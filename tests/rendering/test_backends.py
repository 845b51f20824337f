from __future__ import annotations

import dataclasses
import inspect
import warnings
from typing import Any

import gsplat
import pytest
import torch
from torch import Tensor

from four_d.errors import UserError
from four_d.rendering import backends, compiled, memory, on_cuda, render
from four_d.rendering.compiled import CompiledRasteriser, library
from four_d.rendering.in_torch import TorchRasteriser
from four_d.rendering.on_cuda import GsplatRasteriser
from four_d.rendering.scene import make_scene
from four_d.types import Cameras, Gaussians, map_tensors
from tests.rendering.scenes import cloud

CPU = torch.device("cpu")
SIZE = (9, 11)


def _no_compiler() -> str:
    return "Ninja is required to load C++ extensions"


@pytest.fixture
def _without_compiler(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(backends, "library", _no_compiler)
    backends._warn_slow.cache_clear()


def test_the_automatic_choice_on_a_cpu_is_the_compiled_one_where_it_builds() -> None:
    if isinstance(reason := library(), str):
        pytest.skip(reason)
    assert isinstance(backends.choose("auto", CPU), CompiledRasteriser)


@pytest.mark.usefixtures("_without_compiler")
def test_without_a_compiler_torch_draws_and_says_so_once() -> None:
    with pytest.warns(UserWarning, match=r"slow: no compiled: Ninja is required.*install a C\+\+ compiler"):
        assert isinstance(backends.choose("auto", CPU), TorchRasteriser)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        backends.choose("auto", CPU)


@pytest.mark.usefixtures("_without_compiler")
def test_a_backend_asked_for_by_name_is_never_replaced() -> None:
    with pytest.raises(UserError, match="'compiled' is not available: Ninja"):
        backends.choose("compiled", CPU)
    with pytest.raises(UserError, match="choose one of auto, gsplat, compiled, torch"):
        backends.choose("taichi", CPU)
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="'gsplat' is not available: torch sees no CUDA device"):
            backends.choose("gsplat", CPU)


def test_a_kernel_that_does_not_build_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(flags: tuple[str, ...]) -> str:
        raise RuntimeError(f"no compiler\nfor {flags}")

    monkeypatch.setattr(compiled, "_build", fail)
    assert compiled.library.__wrapped__() == "no compiler"


def _fake(**arguments: Any) -> tuple[Tensor, Tensor, dict[str, Any]]:
    """Stand-in for gsplat, in its shapes, by our own arithmetic; its own signature checks the names."""
    names = inspect.signature(gsplat.rasterization).bind(**arguments).arguments
    assert (names["near_plane"], names["eps2d"], names["render_mode"]) == (0.01, 0.3, "RGB+ED")
    assert all(value.dtype == torch.float32 for value in names.values() if isinstance(value, Tensor))
    pictures, n, _ = names["means"].shape
    assert names["viewmats"].shape == (pictures, 1, 4, 4)
    assert names["Ks"].shape == (pictures, 1, 3, 3)
    assert names["colors"].shape[:2] == names["opacities"].shape == (pictures, n)
    gaussians = Gaussians(
        means=names["means"],
        quats=names["quats"],
        scales=names["scales"],
        opacities=names["opacities"],
        harmonics=torch.zeros(pictures, n, 1, 3),
    )
    cameras = Cameras(world_from_camera=torch.linalg.inv(names["viewmats"]), intrinsics=names["Ks"])
    size = (names["height"], names["width"])
    times = torch.zeros(pictures, 1)
    view = render(gaussians, cameras, times, size, features=names["colors"], backend="torch")
    assert view.features is not None
    values = torch.cat([view.features, view.depth[:, :, None]], dim=2).movedim(2, -1)
    return values, view.alpha[..., None], {}


def test_gsplat_gets_the_scene_in_its_own_terms() -> None:
    gaussians, cameras, times = cloud(40, batch=2, views=3, k=4, moves=True)
    scene = make_scene(gaussians, cameras, times, torch.ones(2, 40, 2, dtype=torch.float64))
    raster = GsplatRasteriser(rasterization=_fake)(scene, SIZE)
    expected = TorchRasteriser()(scene, SIZE)
    for field in ("values", "depth", "alpha"):
        first, second = getattr(raster, field), getattr(expected, field)
        assert first.dtype == torch.float64
        torch.testing.assert_close(first, second, atol=1e-4, rtol=1e-4)


def test_gsplat_without_kernels_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setitem(__import__("sys").modules, "gsplat", None)
    reason = on_cuda.rasterization.__wrapped__()
    assert isinstance(reason, str)
    assert reason.startswith("gsplat does not load")


@pytest.mark.gpu
def test_gsplat_and_torch_agree_on_a_gpu_forward_and_backward() -> None:
    gaussians, cameras, times = (map_tensors(part, lambda t: t.float().cuda()) for part in cloud(2000, views=2, k=4))
    results = []
    for name in ("gsplat", "torch"):
        leaves = {f: getattr(gaussians, f).clone().requires_grad_() for f in ("means", "quats", "scales", "opacities")}
        pose = cameras.world_from_camera.clone().requires_grad_()
        view = render(
            dataclasses.replace(gaussians, **leaves),
            dataclasses.replace(cameras, world_from_camera=pose),
            times,
            (64, 80),
            backend=name,
        )
        weight = torch.linspace(-1, 1, view.colour.numel(), device="cuda").reshape(view.colour.shape)
        gradients = torch.autograd.grad((view.colour * weight).sum() + view.depth.sum(), [*leaves.values(), pose])
        results.append((view, gradients))
    (first, first_gradients), (second, second_gradients) = results
    assert (first.colour - second.colour).abs().max() < 2e-4
    assert (first.alpha - second.alpha).abs().max() < 2e-4
    for one, other in zip(first_gradients, second_gradients):
        assert torch.nn.functional.cosine_similarity(one.flatten(), other.flatten(), dim=0) > 0.999


def _bad(field: str, change: float, index: int = 0) -> Gaussians:
    gaussians, _, _ = cloud(4, moves=True, turns=True)
    value = getattr(gaussians, field).clone()
    value.view(-1)[index] = change
    return dataclasses.replace(gaussians, **{field: value})


@pytest.mark.parametrize(
    ("gaussians", "message"),
    [
        (_bad("means", torch.nan), "gaussians.means has values that are not finite"),
        (_bad("harmonics", torch.inf), "gaussians.harmonics has values that are not finite"),
        (_bad("offsets", -torch.inf), "gaussians.offsets has values that are not finite"),
        (_bad("opacities", 1.5), r"opacities are .* give them in \[0, 1\], not as logits"),
        (_bad("opacities", -0.1), r"opacities are -0.1 to"),
        (_bad("scales", -1.0), "give lengths, not logarithms"),
        (_bad("offset_times", 0.7), "must ascend"),
        (dataclasses.replace(cloud(4)[0], offset_times=torch.zeros(1, 1)), "give both or neither"),
        (_bad("turns", torch.inf), "turns has values that are not finite"),
        (dataclasses.replace(cloud(4)[0], turns=torch.zeros(1, 3, 4, 4)), "give offsets too"),
        (dataclasses.replace(cloud(4)[0], harmonics=torch.ones(1, 4, 3, 3)), "3 harmonics per Gaussian"),
        (map_tensors(cloud(4)[0], lambda t: t[0]), "give one batch axis"),
    ],
)
def test_gaussians_that_cannot_be_drawn_are_refused(gaussians: Gaussians, message: str) -> None:
    _, cameras, times = cloud(4)
    with pytest.raises(UserError, match=message):
        render(gaussians, cameras, times, SIZE, backend="torch")


def test_gaussians_of_two_counts_are_refused() -> None:
    gaussians, cameras, times = cloud(4, moves=True)
    for name, value in (
        ("quats", torch.ones(1, 5, 4)),
        ("offsets", torch.zeros(1, 3, 5, 3)),
        ("offsets", torch.zeros(1, 2, 4, 3)),
        ("offset_times", torch.zeros(3)),
    ):
        wrong = dataclasses.replace(gaussians)
        object.__setattr__(wrong, name, value)  # as outside of tests, where nothing else checks shapes
        with pytest.raises(UserError, match=name):
            render(wrong, cameras, times, SIZE, backend="torch")


@pytest.mark.parametrize(
    ("at", "change", "message"),
    [
        (("world_from_camera", 0, 3), torch.nan, "not finite"),
        (("world_from_camera", 0, 0), 3.0, "not a rotation and a translation"),
        (("intrinsics", 0, 0), 0.0, "focal length is not above 0"),
        (("intrinsics", 1, 1), -20.0, "focal length is not above 0"),
        (("intrinsics", 0, 2), torch.inf, "not finite"),
    ],
)
def test_cameras_that_cannot_see_are_refused(at: tuple[str, int, int], change: float, message: str) -> None:
    gaussians, cameras, times = cloud(4)
    name, row, column = at
    value = getattr(cameras, name).clone()
    value[0, 0, row, column] = change
    with pytest.raises(UserError, match=message):
        render(gaussians, dataclasses.replace(cameras, **{name: value}), times, SIZE, backend="torch")


def test_a_pose_of_zeros_and_a_mirror_are_refused() -> None:
    gaussians, cameras, times = cloud(4)
    for pose in (torch.zeros(1, 1, 4, 4), torch.diag(torch.tensor([1.0, -1.0, 1.0, 1.0]))[None, None]):
        with pytest.raises(UserError, match="not a rotation and a translation"):
            render(gaussians, dataclasses.replace(cameras, world_from_camera=pose.double()), times, SIZE)


def test_shapes_that_do_not_belong_together_are_refused() -> None:
    gaussians, cameras, times = cloud(4, views=2)
    with pytest.raises(UserError, match=r"must both be \(b, v\)"):
        render(gaussians, cameras, times[:, :1], SIZE)
    with pytest.raises(UserError, match="times has values that are not finite"):
        render(gaussians, cameras, times * torch.nan, SIZE)
    with pytest.raises(UserError, match="features is"):
        render(gaussians, cameras, times, SIZE, features=torch.zeros(1, 5, 2))
    with pytest.raises(UserError, match="features has values that are not finite"):
        render(gaussians, cameras, times, SIZE, features=torch.full((1, 4, 2), torch.nan))
    for background, message in (((5,), "one colour"), ((1, 3), "one per image"), ((2, 3), "one per image")):
        with pytest.raises(UserError, match=message):
            render(gaussians, cameras, times, SIZE, background=torch.zeros(background))
    with pytest.raises(UserError, match="background has values that are not finite"):
        render(gaussians, cameras, times, SIZE, background=torch.full((3,), torch.nan))


@pytest.mark.parametrize("name", ["torch", "compiled"])
def test_more_than_the_memory_holds_is_refused_before_drawing(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    if name == "compiled" and isinstance(reason := library(), str):
        pytest.skip(reason)
    gaussians, cameras, times = cloud(30, size=0.5)
    cost = backends.choose(name, CPU).cost
    fixed = 30 * cost.per_gaussian * 8
    monkeypatch.setattr(memory, "FEW", 0)
    monkeypatch.setattr(memory, "free_bytes", lambda _: fixed - 1)
    with pytest.raises(UserError, match=r"rendering 30 Gaussians in 1 images needs about .* GB"):
        render(gaussians, cameras, times, (64, 64), backend=name)
    monkeypatch.setattr(memory, "free_bytes", lambda _: fixed + 30 * cost.per_pair * 8)
    with pytest.raises(UserError, match="fewer or smaller images"):
        render(gaussians, cameras, times, (64, 64), backend=name)
    monkeypatch.setattr(memory, "free_bytes", lambda _: None)
    render(gaussians, cameras, times, (64, 64), backend=name)

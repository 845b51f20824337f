"""SSIM, the structure term and LPIPS against their definitions, and LPIPS's files."""

from __future__ import annotations

from functools import cache
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional
from torchmetrics.functional.image import structural_similarity_index_measure
from torchmetrics.functional.image.lpips import _LPIPS

from four_d.errors import UserError
from four_d.similarity import LPIPS, Network, blur, gaussian_window, has_lpips, load_lpips, ssim_map, structure


def pictures(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_ssim_is_its_definition_at_a_pixel() -> None:
    one, other = pictures(1, 3, 15, 18, seed=1), pictures(1, 3, 15, 18, seed=2)
    at = torch.arange(11, dtype=torch.float64) - 5
    weights = torch.exp(-(at[:, None] ** 2 + at[None] ** 2) / (2 * 1.5**2))
    weights /= weights.sum()
    a, b = one[0, 2, 3:14, 4:15], other[0, 2, 3:14, 4:15]
    mean_a, mean_b = (weights * a).sum(), (weights * b).sum()
    var_a, var_b = (weights * (a - mean_a) ** 2).sum(), (weights * (b - mean_b) ** 2).sum()
    both = (weights * (a - mean_a) * (b - mean_b)).sum()
    expected = (2 * mean_a * mean_b + 1e-4) * (2 * both + 9e-4)
    expected /= (mean_a**2 + mean_b**2 + 1e-4) * (var_a + var_b + 9e-4)
    found = ssim_map(one, other)
    assert found.shape == (1, 3, 5, 8)
    torch.testing.assert_close(found[0, 2, 3, 4], expected)


def test_ssim_agrees_with_torchmetrics_but_for_the_border() -> None:
    one, other = pictures(4, 3, 30, 25, seed=3), pictures(4, 3, 30, 25, seed=4)
    other = 0.7 * one + 0.3 * other
    _, theirs = structural_similarity_index_measure(other, one, data_range=1.0, return_full_image=True)
    torch.testing.assert_close(ssim_map(one, other), theirs[..., 5:-5, 5:-5], atol=1e-6, rtol=0)


def test_blurring_in_strips_and_its_gradients_are_those_of_a_convolution() -> None:
    values = torch.rand(1, 2, 75, 34, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    weights = gaussian_window(75, 34, values)
    square = torch.outer(weights, weights).expand(2, 1, -1, -1)
    one, other = values.clone().requires_grad_(), values.clone().requires_grad_()
    found, expected = blur(one, weights), functional.conv2d(other, square, groups=2)
    torch.testing.assert_close(found, expected)
    first = [torch.autograd.grad(y.pow(3).sum(), x, create_graph=True)[0] for y, x in ((found, one), (expected, other))]
    torch.testing.assert_close(*first)
    second = [torch.autograd.grad(g.pow(2).sum(), x)[0] for g, x in zip(first, (one, other), strict=True)]
    torch.testing.assert_close(*second)


def test_ssim_of_constant_pictures_and_small_ones() -> None:
    grey, dark = (torch.full((1, 3, 12, 12), value, dtype=torch.float64) for value in (0.5, 0.25))
    torch.testing.assert_close(
        ssim_map(grey, dark), torch.full_like(grey, (0.25 + 1e-4) / (0.3125 + 1e-4))[..., :2, :2]
    )
    assert ssim_map(grey[..., :4], grey[..., :4]).shape == (1, 3, 10, 2)
    assert [len(gaussian_window(side, 99, grey)) for side in (1, 2, 3, 10, 11, 12)] == [1, 1, 3, 9, 11, 11]


def test_structure_by_hand() -> None:
    """A step of 0.5 between the third and the fourth of 12 columns, in one picture only."""
    flat = torch.full((1, 3, 12, 12), 0.25, dtype=torch.float64)
    stepped = flat.clone()
    stepped[..., 3:] += 0.5
    expected = (1 - ssim_map(flat, stepped).mean()) / 2 + 0.5 / 11
    torch.testing.assert_close(structure(stepped, flat), expected[None])
    torch.testing.assert_close(structure(stepped.mT, flat), expected[None])
    assert structure(flat, flat).item() == pytest.approx(0, abs=1e-12)


def test_structure_has_a_gradient_also_on_flat_pictures() -> None:
    drawn = torch.zeros(1, 3, 12, 14, requires_grad=True)
    structure(drawn, torch.rand(1, 3, 12, 14)).sum().backward()
    assert drawn.grad is not None
    assert bool(drawn.grad.isfinite().all())
    assert float(drawn.grad.abs().max()) > 0


@cache
def reference(network: Network) -> _LPIPS:
    """Another implementation, with random weights; its large classifier, which nothing uses, is not filled."""
    torch.manual_seed(0)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.nn.Linear, "reset_parameters", lambda *_: None)
        patch.setattr(torch.nn.init, "normal_", lambda *_, **__: None)
        made = _LPIPS(pretrained=False, net=network, pnet_rand=True, use_dropout=True)
    for layer in made.lins:
        torch.nn.init.uniform_(layer.model[-1].weight)
    return made.eval()


def parts(made: _LPIPS) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """As published: torchvision's trunk with a classifier, and LPIPS's own weights."""
    convolutions = {name.replace("slice", "x."): value for name, value in made.net.state_dict().items()}
    trunk = {"features." + ".".join(name.split(".")[-2:]): value for name, value in convolutions.items()}
    linear = {name: value for name, value in made.state_dict().items() if name.startswith("lin") and "lins" not in name}
    return trunk | {"classifier.0.weight": torch.zeros(2, 2)}, linear


@pytest.mark.parametrize("network", ["vgg", "alex"])
def test_lpips_agrees_with_another_implementation(network: Network, tmp_path: Path) -> None:
    made = reference(network)
    trunk, linear = parts(made)
    torch.save(trunk, tmp_path / f"{network}-397923af.pth")
    save_file({name: value.contiguous() for name, value in linear.items()}, tmp_path / "linear.safetensors")
    ours = load_lpips(str(tmp_path))
    assert ours.network == network
    assert not ours.training
    assert not any(parameter.requires_grad for parameter in ours.parameters())
    one, other = pictures(1, 3, 40, 36, seed=5).float(), pictures(1, 3, 40, 36, seed=6).float()
    theirs = made(one, other, normalize=True).flatten()
    torch.testing.assert_close(ours(one, other), theirs, rtol=1e-4, atol=1e-6)
    assert float(theirs.min()) > 0.01
    assert float(ours(one, one).abs().max()) == 0
    if network == "vgg":
        return
    torch.save(made.state_dict(), tmp_path / "all.pt")
    torch.testing.assert_close(load_lpips(str(tmp_path / "all.pt"))(one, other), theirs, rtol=1e-4, atol=1e-6)


def test_lpips_is_its_definition() -> None:
    network = LPIPS("alex")
    one, other = pictures(1, 3, 40, 40, seed=7).float(), pictures(1, 3, 40, 40, seed=8).float()

    def first(picture: Tensor) -> Tensor:
        scaled = (2 * picture - 1 - torch.tensor([-0.03, -0.088, -0.188])[:, None, None]) / torch.tensor(
            [0.458, 0.448, 0.45]
        )[:, None, None]
        found = functional.relu(
            functional.conv2d(scaled, network.features[0].weight, network.features[0].bias, stride=4, padding=2)
        )
        return found / found.norm(dim=1, keepdim=True).clamp_min(1e-10)

    expected = ((first(one) - first(other)) ** 2 * network.linear[0][:, None, None]).sum(1)
    torch.testing.assert_close(network.layers(one, other)[0][:, 0], expected)
    total = torch.stack([layer.mean() for layer in network.layers(one, other)]).sum()
    torch.testing.assert_close(network(one, other)[0], total)
    assert network.spatial(one, other).shape == (1, 40, 40)
    torch.testing.assert_close(network.spatial(one, other).mean(), total, rtol=0.05, atol=0)


def test_published_names_of_the_layers() -> None:
    names = [name for name in LPIPS("vgg").state_dict() if name.endswith("weight")]
    assert names == [f"features.{i}.weight" for i in (0, 2, 5, 7, 10, 12, 14, 17, 19, 21, 24, 26, 28)]
    shapes = [tuple(value.shape) for name, value in LPIPS("alex").state_dict().items() if name.endswith("weight")]
    assert shapes == [(64, 3, 11, 11), (192, 64, 5, 5), (384, 192, 3, 3), (256, 384, 3, 3), (256, 256, 3, 3)]


def test_what_is_wrong_with_files_is_said(tmp_path: Path) -> None:
    assert not has_lpips(None)
    assert not has_lpips(str(tmp_path))
    with pytest.raises(UserError, match=r"no weights of LPIPS at .*put torchvision's vgg16"):
        load_lpips(str(tmp_path / "nowhere"))
    trunk, linear = parts(reference("alex"))
    torch.save(linear, tmp_path / "alex.pth")
    assert has_lpips(str(tmp_path))
    with pytest.raises(UserError, match=r"lacks features\.0\.weight"):
        load_lpips(str(tmp_path))
    (tmp_path / "broken.pth").write_bytes(b"no weights")
    with pytest.raises(UserError, match=r"broken\.pth is not a file of weights"):
        load_lpips(str(tmp_path / "broken.pth"))
    torch.save(trunk, tmp_path / "trunk.pth")
    with pytest.raises(UserError, match=r"lacks linear\.0"):
        load_lpips(str(tmp_path / "trunk.pth"))

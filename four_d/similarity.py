"""How alike two pictures look: structural similarity, a term of structure, and LPIPS where its weights are.

The perceptual measures of losses and metrics, in one place so that a figure and a training term of one name are the
same. Pictures are RGB in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError

Pictures = Float[Tensor, "b 3 h w"]
Network = Literal["vgg", "alex"]

WINDOW = 11
"""Taps of SSIM's window."""
SIGMA = 1.5
"""Its standard deviation, in pixels."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants for values in [0, 1]."""

LPIPS_WEIGHTS = "weights/lpips"
"""Where LPIPS's weights are looked for when nothing else is said, from where the program runs."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
REMEDY = (
    "put torchvision's vgg16 or alexnet file and LPIPS 0.1's vgg.pth or alex.pth together into one folder, or save "
    "state_dict() of the lpips package"
)
SHIFT, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""What LPIPS takes from pictures in [-1, 1], and divides by, per channel."""
_CONVOLUTION = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
_LINEAR = re.compile(r"lin(\d)\.model\.\d\.weight")


def gaussian_window(height: int, width: int, like: Tensor) -> Float[Tensor, "k"]:
    """SSIM's window, its sum 1; pictures with a shorter side get the longest odd one that fits."""
    taps = min(WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    at = torch.arange(taps, device=like.device, dtype=like.dtype) - (taps - 1) / 2
    weights = torch.exp(-0.5 * (at / SIGMA).square())
    return weights / weights.sum()


def blur(values: Float[Tensor, "b c h w"], weights: Float[Tensor, "k"]) -> Float[Tensor, "b c y x"]:
    """Rows and columns weighted by a window, where it fits: a border of half its length is gone."""
    # As two products: on a CPU many times faster, forwards and backwards, than convolutions of single channels.
    return _band(weights, values.shape[-2]) @ values @ _band(weights, values.shape[-1]).mT


def _band(weights: Float[Tensor, "k"], size: int) -> Float[Tensor, "o n"]:
    """The matrix that weighs ``size`` values by a window at each place where it fits."""
    places = size - len(weights) + 1
    band = weights.new_zeros(places, size + 1)
    # Row after row of one value more than there are: each begins one column further on.
    band[:, : len(weights)] = weights
    return band.flatten()[: places * size].view(places, size)


def ssim_map(one: Pictures, other: Pictures) -> Float[Tensor, "b 3 y x"]:
    """Structural similarity in [-1, 1] around each pixel, per channel (Wang et al. 2004).

    Gaussian window of 11 pixels, σ 1.5, K 0.01 and 0.03, population moments, no border.
    """
    moments = torch.cat([one, other, one.square(), other.square(), one * other], dim=1)
    blurred = blur(moments, gaussian_window(one.shape[-2], one.shape[-1], one))
    mean1, mean2, square1, square2, product = blurred.split(one.shape[1], dim=1)
    variances = square1 - mean1.square() + square2 - mean2.square()
    return similarity(mean1, mean2, variances, product - mean1 * mean2)


def similarity(mean1: Tensor, mean2: Tensor, variances: Tensor, covariance: Tensor) -> Tensor:
    """SSIM of means, the sum of both variances, and the covariance."""
    light = (2 * mean1 * mean2 + C1) / (mean1.square() + mean2.square() + C1)
    return light * (2 * covariance + C2) / (variances + C2)


def structure(one: Pictures, other: Pictures) -> Float[Tensor, "b"]:
    """(1 − SSIM) / 2 + |∂x(a − b)| + |∂y(a − b)|, each a mean: 0 where pictures are the same, at most 3. Ours.

    What stands in for LPIPS where its weights are not. Differences are from pixel to pixel.
    """
    error = one - other
    edges = error.diff(dim=-1).abs().flatten(1).mean(-1) + error.diff(dim=-2).abs().flatten(1).mean(-1)
    return (1 - ssim_map(one, other).flatten(1).mean(-1)) / 2 + edges


def _vgg16() -> nn.Sequential:
    """VGG-16 up to its last activation (Simonyan and Zisserman 2015), layers numbered as torchvision's."""
    layers: list[nn.Module] = []
    before = 3
    for block, (width, count) in enumerate([(64, 2), (128, 2), (256, 3), (512, 3), (512, 3)]):
        layers += [nn.MaxPool2d(2)] if block else []
        for _ in range(count):
            layers += [nn.Conv2d(before, width, 3, padding=1), nn.ReLU()]
            before = width
    return nn.Sequential(*layers)


def _alexnet() -> nn.Sequential:
    """AlexNet up to its last activation (Krizhevsky 2014), layers numbered as torchvision's."""
    first = [nn.Conv2d(3, 64, 11, stride=4, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    second = [nn.Conv2d(64, 192, 5, padding=2), nn.ReLU(), nn.MaxPool2d(3, 2)]
    third = [nn.Conv2d(192, 384, 3, padding=1), nn.ReLU(), nn.Conv2d(384, 256, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*first, *second, *third, nn.Conv2d(256, 256, 3, padding=1), nn.ReLU())


TAPS: dict[Network, tuple[int, ...]] = {"vgg": (3, 8, 15, 22, 29), "alex": (1, 4, 7, 9, 11)}
"""Layers whose activations are compared."""
WIDTHS: dict[Network, tuple[int, ...]] = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1 (Zhang et al. 2018, arXiv 1801.03924); random until weights are loaded.

    ``network`` is what the features are of; figures of "alex" (DyCheck, NSFF) and "vgg" do not compare.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network: Network = network
        self.features = _vgg16() if network == "vgg" else _alexnet()
        self.linear = nn.ParameterList([nn.Parameter(torch.rand(width)) for width in WIDTHS[network]])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None], persistent=False)

    def activations(self, pictures: Pictures) -> list[Float[Tensor, "b c y x"]]:
        """The compared layers', each pixel's vector of length 1."""
        x = (2 * pictures - 1 - self.get_buffer("shift")) / self.get_buffer("spread")
        found: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS[self.network]:
                found.append(functional.normalize(x, dim=1, eps=1e-10))
        return found

    def layers(self, one: Pictures, other: Pictures) -> list[Float[Tensor, "b 1 y x"]]:
        """Weighted squared distances of each compared layer."""
        pairs = zip(self.linear, self.activations(one), self.activations(other), strict=True)
        return [((a - b).square() * weight[:, None, None]).sum(1, keepdim=True) for weight, a, b in pairs]

    def forward(self, one: Pictures, other: Pictures) -> Float[Tensor, "b"]:
        """Sum over layers of mean distances: 0 where pictures are the same, usually below 1."""
        return torch.stack([layer.mean((1, 2, 3)) for layer in self.layers(one, other)]).sum(0)

    def spatial(self, one: Pictures, other: Pictures) -> Float[Tensor, "b h w"]:
        """The distance around each pixel: each layer's brought to the pictures' size (bilinear), then summed."""
        size = one.shape[-2:]
        layers = self.layers(one, other)
        return torch.stack([functional.interpolate(part, size, mode="bilinear")[:, 0] for part in layers]).sum(0)


def has_lpips(path: str | None) -> bool:
    """Whether ``path`` is a file, or a folder that holds files of weights."""
    return path is not None and bool(_files(Path(path)))


def _files(path: Path) -> list[Path]:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [each for each in found if each.is_file() and each.suffix in WEIGHT_FILES]


@cache
def load_lpips(path: str | None) -> LPIPS:
    """The network of a file, or of the files of a folder, ready for use: nothing in it trains.

    Names are those of torchvision's VGG-16 or AlexNet (``features.0.weight`` …; its classifier is left out) with
    LPIPS's ``lin0.model.1.weight`` …, or of the lpips package's ``state_dict()``. Shapes say which network it is.

    UserError where there is no such file, it cannot be read, or weights are missing.
    """
    files = [] if path is None else _files(Path(path))
    if not files:
        raise UserError(f"there are no weights of LPIPS at {path}; {REMEDY}")
    weights: dict[str, Tensor] = {}
    for file in files:
        weights |= _known(_read(file))
    first = weights.get("features.0.weight")
    network = LPIPS("alex" if first is not None and first.shape[-1] == 11 else "vgg")
    expected = {name: value.shape for name, value in network.state_dict().items()}
    wrong = [name for name, shape in expected.items() if name not in weights or weights[name].shape != shape]
    if wrong:
        raise UserError(f"{path} lacks {wrong[0]} ({len(wrong)} weights in all) of LPIPS; {REMEDY}")
    network.load_state_dict({name: weights[name] for name in expected})
    return network.eval().requires_grad_(False)


def _read(file: Path) -> Mapping[str, Tensor]:
    try:
        return load_file(file) if file.suffix == ".safetensors" else torch.load(file, "cpu", weights_only=True)
    except Exception as error:
        raise UserError(f"{file} is no file of weights ({type(error).__name__}); {REMEDY}") from error


def _known(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Those that LPIPS has, by the names here."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if match := _CONVOLUTION.fullmatch(name):
            found[f"features.{match[1]}.{match[2]}"] = value
        elif match := _LINEAR.fullmatch(name):
            found[f"linear.{match[1]}"] = value.flatten()
    return found

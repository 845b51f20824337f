"""Perceptual similarity of two images: SSIM, a structure term, and LPIPS where its weights are available.

Losses and metrics share these measures, so that a figure and a training term of one name are the same. Images are RGB
in [0, 1].
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.nn import functional

from four_d.errors import UserError

Images = Float[Tensor, "b 3 h w"]
Network = Literal["vgg", "alex"]

WINDOW = 11
"""Length of SSIM's window."""
SIGMA = 1.5
"""Standard deviation of SSIM's window, in pixels."""
STRIP = 32
"""Rows that a CPU filters at a time."""
C1, C2 = 0.01**2, 0.03**2
"""SSIM's constants for values in [0, 1]."""

LPIPS_WEIGHTS = "weights/lpips"
"""Default folder of LPIPS's weights, relative to the working directory."""
WEIGHT_FILES = (".safetensors", ".pth", ".pt")
REMEDY = (
    "put torchvision's vgg16 or alexnet file and LPIPS 0.1's vgg.pth or alex.pth together into one folder, or save "
    "state_dict() of the lpips package"
)
SHIFT, SPREAD = (-0.030, -0.088, -0.188), (0.458, 0.448, 0.450)
"""Mean and standard deviation per channel by which LPIPS normalises images in [-1, 1]."""
_CONVOLUTION = re.compile(r"(?:features|net\.slice\d)\.(\d+)\.(weight|bias)")
_LINEAR = re.compile(r"lin(\d)\.model\.\d\.weight")


def gaussian_window(height: int, width: int, example: Tensor) -> Float[Tensor, "k"]:
    """SSIM's window, with sum 1; images with a shorter side get the longest odd one that fits."""
    taps = min(WINDOW, height - 1 + height % 2, width - 1 + width % 2)
    at = torch.arange(taps, device=example.device, dtype=example.dtype) - (taps - 1) / 2
    weights = torch.exp(-0.5 * (at / SIGMA).square())
    return weights / weights.sum()


def blur(values: Float[Tensor, "b c h w"], weights: Float[Tensor, "k"]) -> Float[Tensor, "b c y x"]:
    """Filter rows and columns by a symmetric window, where it fits: the result lacks a border of half its length."""
    return cast(Tensor, _Blur.apply(values, weights))


class _Blur(torch.autograd.Function):
    """`blur`, whose gradient is itself: autograd of the slices that overlap would cost more than all else."""

    @staticmethod
    def forward(context: Any, values: Tensor, weights: Tensor) -> Tensor:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        context.save_for_backward(weights)
        return _filter_rows(_filter_rows(values, weights).mT, weights).mT

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401  # pyright: ignore[reportIncompatibleMethodOverride]
        (weights,) = context.saved_tensors
        border = len(weights) - 1
        return cast(Tensor, _Blur.apply(functional.pad(gradient, (border,) * 4), weights)), None


def _filter_rows(values: Tensor, weights: Tensor) -> Tensor:
    """Filter along the rows' axis, the last but one.

    On a CPU products with band matrices are many times faster than single-channel convolutions, and those of `STRIP`
    rows at a time several times faster than of all.
    """
    border = len(weights) - 1
    size = values.shape[-2] - border
    step = STRIP if values.device.type == "cpu" else size
    ends = ((first, min(first + step, size)) for first in range(0, size, step))
    strips = [_band(weights, last - first + border) @ values[..., first : last + border, :] for first, last in ends]
    return torch.cat(strips, dim=-2)


def _band(weights: Tensor, size: int) -> Tensor:
    """Band matrix that filters ``size`` values by a window, where it fits."""
    rows = size - len(weights) + 1
    band = weights.new_zeros(rows, size + 1)
    # Rows of one value more than ``size``, flattened: each begins one column further on.
    band[:, : len(weights)] = weights
    return band.flatten()[: rows * size].view(rows, size)


def ssim_map(a: Images, b: Images) -> Float[Tensor, "b 3 y x"]:
    """Structural similarity in [-1, 1] around each pixel, per channel (Wang et al. 2004).

    Gaussian window of 11 pixels, σ 1.5, K 0.01 and 0.03, population moments, no border.
    """
    moments = torch.cat([a, b, a.square() + b.square(), a * b], dim=1)  # of the squares only the sum counts
    blurred = blur(moments, gaussian_window(a.shape[-2], a.shape[-1], a))
    mean1, mean2, squares, product = blurred.split(a.shape[1], dim=1)
    variances = squares - mean1.square() - mean2.square()
    return similarity(mean1, mean2, variances, product - mean1 * mean2)


def similarity(mean1: Tensor, mean2: Tensor, variances: Tensor, covariance: Tensor) -> Tensor:
    """Compute SSIM from means, the sum of both variances, and the covariance."""
    light = (2 * mean1 * mean2 + C1) / (mean1.square() + mean2.square() + C1)
    return light * (2 * covariance + C2) / (variances + C2)


def structure(a: Images, b: Images) -> Float[Tensor, "b"]:
    """(1 − SSIM) / 2 + |∂x(a − b)| + |∂y(a − b)|, each a mean: 0 where images are the same, at most 3. Ours.

    Substitute for LPIPS without its weights. Differences are between neighbouring pixels.
    """
    error = a - b
    edges = error.diff(dim=-1).abs().flatten(1).mean(-1) + error.diff(dim=-2).abs().flatten(1).mean(-1)
    return (1 - ssim_map(a, b).flatten(1).mean(-1)) / 2 + edges


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
"""Indices of the layers whose activations are compared."""
WIDTHS: dict[Network, tuple[int, ...]] = {"vgg": (64, 128, 256, 512, 512), "alex": (64, 192, 384, 256, 256)}


class LPIPS(nn.Module):
    """Learned perceptual distance, version 0.1 (Zhang et al. 2018, arXiv 1801.03924); random until weights are loaded.

    ``network`` computes the features; figures of "alex" (DyCheck, NSFF) and "vgg" are not comparable.
    """

    def __init__(self, network: Network) -> None:
        super().__init__()
        self.network: Network = network
        self.features = _vgg16() if network == "vgg" else _alexnet()
        self.linear = nn.ParameterList([nn.Parameter(torch.rand(width)) for width in WIDTHS[network]])
        self.register_buffer("shift", torch.tensor(SHIFT)[:, None, None], persistent=False)
        self.register_buffer("spread", torch.tensor(SPREAD)[:, None, None], persistent=False)

    def activations(self, images: Images) -> list[Float[Tensor, "b c y x"]]:
        """Activations of the compared layers, normalised to unit length per pixel."""
        x = (2 * images - 1 - self.get_buffer("shift")) / self.get_buffer("spread")
        activations: list[Tensor] = []
        for index, layer in enumerate(self.features):
            x = layer(x)
            if index in TAPS[self.network]:
                activations.append(functional.normalize(x, dim=1, eps=1e-10))
        return activations

    def layers(self, one: Images, other: Images) -> list[Float[Tensor, "b 1 y x"]]:
        """Weighted squared distances of each compared layer."""
        pairs = zip(self.linear, self.activations(one), self.activations(other), strict=True)
        return [((a - b).square() * weight[:, None, None]).sum(1, keepdim=True) for weight, a, b in pairs]

    def forward(self, one: Images, other: Images) -> Float[Tensor, "b"]:
        """Sum over layers of mean distances: 0 where images are the same, usually below 1."""
        return torch.stack([layer.mean((1, 2, 3)) for layer in self.layers(one, other)]).sum(0)

    def spatial(self, one: Images, other: Images) -> Float[Tensor, "b h w"]:
        """Distance map: each layer's resized to the images' size (bilinear), then summed."""
        size = one.shape[-2:]
        layers = self.layers(one, other)
        return torch.stack([functional.interpolate(part, size, mode="bilinear")[:, 0] for part in layers]).sum(0)


def has_lpips(path: str | None) -> bool:
    """True if ``path`` is a weight file or a folder that holds weight files."""
    return path is not None and bool(_files(Path(path)))


def _files(path: Path) -> list[Path]:
    found = sorted(path.iterdir()) if path.is_dir() else [path]
    return [each for each in found if each.is_file() and each.suffix in WEIGHT_FILES]


@cache
def load_lpips(path: str | None) -> LPIPS:
    """Load the network from a file or a folder's files, frozen.

    Names are those of torchvision's VGG-16 or AlexNet (``features.0.weight`` …; its classifier is left out) with
    LPIPS's ``lin0.model.1.weight`` …, or of the lpips package's ``state_dict()``. Shapes determine the network.

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
        raise UserError(f"{file} is not a file of weights ({type(error).__name__}); {REMEDY}") from error


def _known(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Weights of LPIPS, by our names."""
    found: dict[str, Tensor] = {}
    for name, value in weights.items():
        if match := _CONVOLUTION.fullmatch(name):
            found[f"features.{match[1]}.{match[2]}"] = value
        elif match := _LINEAR.fullmatch(name):
            found[f"linear.{match[1]}"] = value.flatten()
    return found

"""How near rendered pictures are to those that were taken: all pixels, or those of a mask.

Pictures are RGB in [0, 1] and ``b 3 h w``; every figure is one number per picture. Masked figures are DyCheck's (Gao et
al. 2022, arXiv 2210.13445, and its code): over the pixels of a test picture that training frames see too.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d import similarity
from four_d.similarity import LPIPS, Pictures

Mask = Bool[Tensor, "b h w"]
Values = Float[Tensor, "b"]

LEAST_ERROR = 1e-10
"""Mean squared errors count as at least this: PSNR ends at 100 dB."""


def psnr(pictures: Pictures, truth: Pictures, where: Mask | None = None) -> Values:
    """Peak signal to noise ratio: −10 log₁₀ of the mean squared error of the channels. dB, higher is better, ≤ 100.

    With ``where``, over the pixels there, of which every picture needs one: DyCheck's mPSNR, or PSNR of what moves.
    """
    errors = (pictures - truth).square().mean(1)
    mean = errors.mean((1, 2)) if where is None else _mean(errors, where)
    return -10 * mean.clamp_min(LEAST_ERROR).log10()


def ssim(pictures: Pictures, truth: Pictures) -> Values:
    """Structural similarity (Wang et al. 2004), the mean over pixels and channels. In [-1, 1], higher is better.

    Gaussian window of 11 pixels, σ 1.5, no border, as DyCheck and tf.image. (torchmetrics also counts a reflected
    border; NSFF and DynamicNeRF use scikit-image's default, a box of 7 pixels: other figures.)
    """
    return similarity.ssim_map(pictures, truth).flatten(1).mean(-1)


def mssim(pictures: Pictures, truth: Pictures, where: Mask) -> Values:
    """DyCheck's mSSIM, in [-1, 1], higher is better: SSIM with partial convolutions, mean over the whole map.

    Rows, then columns: a window sees only pixels of the mask, and its sum is multiplied by the window's length over
    their number; where it sees none, all moments are 0, and so SSIM is 1. Negative variances count as 0, and the
    covariance as at most the root of their product. With a full mask it is `ssim`.
    """
    one, other = pictures.double(), truth.double()
    moments = torch.cat([one, other, one.square(), other.square(), one * other], dim=1)
    blurred = _partial_blur(moments, where.double(), similarity.gaussian_window(*where.shape[1:], like=one))
    mean1, mean2, square1, square2, product = blurred.split(one.shape[1], dim=1)
    variance1, variance2 = (square1 - mean1.square()).clamp_min(0), (square2 - mean2.square()).clamp_min(0)
    covariance = product - mean1 * mean2
    covariance = covariance.sign() * torch.minimum((variance1 * variance2).sqrt(), covariance.abs())
    found = similarity.similarity(mean1, mean2, variance1 + variance2, covariance)
    return found.flatten(1).mean(-1).to(pictures)


def _partial_blur(
    values: Float[Tensor, "b c h w"], seen: Float[Tensor, "b h w"], weights: Float[Tensor, "k"]
) -> Float[Tensor, "b c y x"]:
    """Rows, then columns (Liu et al. 2018, arXiv 1804.07723 §3.1)."""
    taps = len(weights)
    for shape in ((1, 1, 1, taps), (1, 1, taps, 1)):
        total = functional.conv2d((values * seen[:, None]).flatten(0, 1)[:, None], weights.view(shape))
        count = functional.conv2d(seen[:, None], torch.ones_like(weights).view(shape))
        values = total[:, 0].unflatten(0, values.shape[:2]) * taps / count.clamp_min(1)
        seen = (count[:, 0] > 0.5).to(values)
    return values


def structure(pictures: Pictures, truth: Pictures) -> Values:
    """(1 − SSIM) / 2 + differences of image gradients (`similarity.structure`). In [0, 3], lower is better. Ours.

    What is given where LPIPS has no weights; never called LPIPS.
    """
    return similarity.structure(pictures, truth)


def mstructure(pictures: Pictures, truth: Pictures, where: Mask) -> Values:
    """`structure` with `mssim`, and with differences between neighbours that are both in the mask. In [0, 3]. Ours."""
    error = (pictures - truth) * where[:, None]
    pairs = ((error.diff(dim=-1), where[..., 1:] & where[..., :-1]), (error.diff(dim=-2), where[:, 1:] & where[:, :-1]))
    sums = [(step.abs().mean(1) * both).sum((1, 2)) / both.sum((1, 2)).clamp_min(1) for step, both in pairs]
    return (1 - mssim(pictures, truth, where)) / 2 + sums[0] + sums[1]


def lpips(network: LPIPS, pictures: Pictures, truth: Pictures) -> Values:
    """LPIPS 0.1 (Zhang et al. 2018), about [0, 1], lower is better. ``network`` has loaded weights; "alex" is usual."""
    with torch.no_grad():
        return network(pictures, truth)


def mlpips(network: LPIPS, pictures: Pictures, truth: Pictures, where: Mask) -> Values:
    """DyCheck's mLPIPS, about [0, 1], lower is better: pictures black outside the mask, the map's mean inside it.

    Published figures are of "alex".
    """
    with torch.no_grad():
        kept = where[:, None].to(pictures)
        return _mean(network.spatial(pictures * kept, truth * kept), where)


def _mean(values: Float[Tensor, "b h w"], where: Mask) -> Values:
    """Over the pixels of each picture's mask."""
    count = where.sum((1, 2))
    assert bool((count > 0).all()), "a picture has no pixel that counts"
    return torch.where(where, values, 0).sum((1, 2)) / count

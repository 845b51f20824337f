"""Image metrics of renders against captured images, over all pixels or those of a mask.

Images are RGB in [0, 1] and ``b 3 h w``; every figure is one number per image. Masked figures are DyCheck's (Gao et
al. 2022, arXiv 2210.13445, and its code): over the pixels of a test image that training frames see too.
"""

from __future__ import annotations

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional

from four_d import similarity
from four_d.similarity import LPIPS, Images

Mask = Bool[Tensor, "b h w"]
Values = Float[Tensor, "b"]

MIN_ERROR = 1e-10
"""Lower limit of the mean squared error, so that PSNR is at most 100 dB."""


def psnr(images: Images, truth: Images, mask: Mask | None = None) -> Values:
    """Peak signal to noise ratio: −10 log₁₀ of the mean squared error of the channels. dB, higher is better, ≤ 100.

    With ``mask``, over its pixels, of which every image needs one: DyCheck's mPSNR, or PSNR of moving pixels.
    """
    errors = (images - truth).square().mean(1)
    mean = errors.mean((1, 2)) if mask is None else _mean(errors, mask)
    return -10 * mean.clamp_min(MIN_ERROR).log10()


def ssim(images: Images, truth: Images) -> Values:
    """Structural similarity (Wang et al. 2004), the mean over pixels and channels. In [-1, 1], higher is better.

    Gaussian window of 11 pixels, σ 1.5, no border, as DyCheck and tf.image. (torchmetrics also counts a reflected
    border; NSFF and DynamicNeRF use scikit-image's default, a box of 7 pixels: other figures.)
    """
    return similarity.ssim_map(images, truth).flatten(1).mean(-1)


def mssim(images: Images, truth: Images, mask: Mask) -> Values:
    """DyCheck's mSSIM, in [-1, 1], higher is better: SSIM with partial convolutions, mean over the whole map.

    Rows, then columns: a window sees only pixels of the mask, and its sum is multiplied by the window's length over
    their number; where it sees none, all moments are 0, and so SSIM is 1. Negative variances count as 0, and the
    covariance as at most the root of their product. With a full mask it is `ssim`.
    """
    x, y = images.double(), truth.double()
    moments = torch.cat([x, y, x.square(), y.square(), x * y], dim=1)
    blurred = _partial_blur(moments, mask.double(), similarity.gaussian_window(*mask.shape[1:], example=x))
    mean1, mean2, square1, square2, product = blurred.split(x.shape[1], dim=1)
    variance1, variance2 = (square1 - mean1.square()).clamp_min(0), (square2 - mean2.square()).clamp_min(0)
    covariance = product - mean1 * mean2
    covariance = covariance.sign() * torch.minimum((variance1 * variance2).sqrt(), covariance.abs())
    values = similarity.similarity(mean1, mean2, variance1 + variance2, covariance)
    return values.flatten(1).mean(-1).to(images)


def _partial_blur(
    values: Float[Tensor, "b c h w"], valid: Float[Tensor, "b h w"], weights: Float[Tensor, "k"]
) -> Float[Tensor, "b c y x"]:
    """Blur by partial convolution, rows, then columns (Liu et al. 2018, arXiv 1804.07723 §3.1)."""
    taps = len(weights)
    for shape in ((1, 1, 1, taps), (1, 1, taps, 1)):
        total = functional.conv2d((values * valid[:, None]).flatten(0, 1)[:, None], weights.view(shape))
        count = functional.conv2d(valid[:, None], torch.ones_like(weights).view(shape))
        values = total[:, 0].unflatten(0, values.shape[:2]) * taps / count.clamp_min(1)
        valid = (count[:, 0] > 0.5).to(values)
    return values


def structure(images: Images, truth: Images) -> Values:
    """(1 − SSIM) / 2 + differences of image gradients (`similarity.structure`). In [0, 3], lower is better. Ours.

    Substitute where LPIPS has no weights; never called LPIPS.
    """
    return similarity.structure(images, truth)


def mstructure(images: Images, truth: Images, mask: Mask) -> Values:
    """`structure` with `mssim`, and with differences between neighbours that are both in the mask. In [0, 3]. Ours."""
    error = (images - truth) * mask[:, None]
    pairs = ((error.diff(dim=-1), mask[..., 1:] & mask[..., :-1]), (error.diff(dim=-2), mask[:, 1:] & mask[:, :-1]))
    sums = [(step.abs().mean(1) * both).sum((1, 2)) / both.sum((1, 2)).clamp_min(1) for step, both in pairs]
    return (1 - mssim(images, truth, mask)) / 2 + sums[0] + sums[1]


def lpips(network: LPIPS, images: Images, truth: Images) -> Values:
    """LPIPS 0.1 (Zhang et al. 2018), about [0, 1], lower is better. ``network`` has loaded weights; "alex" is usual."""
    with torch.no_grad():
        return network(images, truth)


def mlpips(network: LPIPS, images: Images, truth: Images, mask: Mask) -> Values:
    """DyCheck's mLPIPS, about [0, 1], lower is better: images black outside the mask, the map's mean inside it.

    Published figures are of "alex".
    """
    with torch.no_grad():
        inside = mask[:, None].to(images)
        return _mean(network.spatial(images * inside, truth * inside), mask)


def _mean(values: Float[Tensor, "b h w"], mask: Mask) -> Values:
    """Mean over the pixels of each image's mask."""
    count = mask.sum((1, 2))
    assert bool((count > 0).all()), "an image has no pixel in its mask"
    return torch.where(mask, values, 0).sum((1, 2)) / count

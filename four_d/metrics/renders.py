"""Scores of renders: over all pixels, moving pixels, and masks."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from four_d.errors import UserError
from four_d.metrics import images
from four_d.similarity import LPIPS, has_lpips, load_lpips
from four_d.types import Clip, Views

Images = Float[Tensor, "v 3 h w"]
Masks = Bool[Tensor, "v h w"]
Score = Callable[..., Float[Tensor, "v"]]
"""Function of images, truth and optionally masks that gives one number per image."""
AT_ONCE = 8
"""Number of images scored together."""


def lpips_at(path: str | None, device: str | torch.device = "cpu") -> LPIPS | None:
    """Load the LPIPS network of a file or folder onto a device; None where there are no weights.

    UserError for weights that are not LPIPS's.
    """
    return load_lpips(path).to(device) if has_lpips(path) else None


def score_renders(
    rendered: Views,
    target: Clip,
    masks: Bool[Tensor, "*b v h w"] | None = None,
    lpips: LPIPS | None = None,
    prefix: str = "render_",
) -> dict[str, float]:
    """Mean scores over images, by the names of `metrics.catalogue.RENDERS`.

    ``psnr``, ``ssim``, and ``lpips`` where its network is given, else ``structure``; ``psnr_dynamic`` over pixels
    that move at the image's own time; with ``masks`` also ``mpsnr``, ``mssim``, and ``mlpips`` or ``mstructure``.
    Images without a pixel that counts (or without truth) are left out of a mean; a mean without images is left out.
    Rendered colours are first clamped to [0, 1], as in a stored image.

    Args:
        rendered: renders at the target's cameras and times, of the same size.
        target: the true images; ``dynamic`` is the mask of moving pixels.
        masks: co-visible pixels.
        lpips: a network with loaded weights (`similarity.load_lpips`).
        prefix: prefix of the names.

    Raises:
        UserError: images of another number or size, or colours that are not finite.

    """
    renders, truth = (
        _flat(colours, 3).float().to(rendered.colour.device) for colours in (rendered.colour, target.images)
    )
    if renders.shape != truth.shape:
        raise UserError(
            f"rendered images are {tuple(renders.shape)}, the true ones {tuple(truth.shape)}; they must agree"
        )
    if not bool(renders.isfinite().all()):
        raise UserError("rendered images are not finite: the model has diverged, or its Gaussians are damaged")
    renders = renders.clamp(0, 1)
    scores = {"psnr": _mean(images.psnr, renders, truth), "ssim": _mean(images.ssim, renders, truth)}
    scores |= {_perceptual_name(lpips): _mean(_perceptual_score(lpips), renders, truth)}
    moves = _dynamic(target)
    if moves is not None and bool(moves.any()):
        moves = moves.to(renders.device)
        has_moving = moves.flatten(1).any(1)
        scores["psnr_dynamic"] = _mean(images.psnr, renders[has_moving], truth[has_moving], moves[has_moving])
    if masks is not None:
        scores |= _masked(renders, truth, _flat(masks, 2).to(renders.device), lpips)
    return {prefix + name: value for name, value in scores.items()}


def _masked(renders: Images, truth: Images, masks: Masks, lpips: LPIPS | None) -> dict[str, float]:
    """Scores under masks, over images with a mask that is not empty."""
    has_pixels = masks.flatten(1).any(1)
    if not bool(has_pixels.any()):
        return {}
    chosen = renders[has_pixels], truth[has_pixels], masks[has_pixels]
    perceptual = images.mstructure if lpips is None else partial(images.mlpips, lpips)
    return {
        "mpsnr": _mean(images.psnr, *chosen),
        "mssim": _mean(images.mssim, *chosen),
        f"m{_perceptual_name(lpips)}": _mean(perceptual, *chosen),
    }


def _perceptual_name(lpips: LPIPS | None) -> str:
    return "structure" if lpips is None else "lpips"


def _perceptual_score(lpips: LPIPS | None) -> Score:
    return images.structure if lpips is None else partial(images.lpips, lpips)


def _dynamic(target: Clip) -> Masks | None:
    """Masks of moving pixels in each image; None where unknown."""
    if target.dynamic is None:
        return None
    moves = _flat(target.dynamic, 2)
    known = target.dynamic_known
    return moves if known is None else moves & known.flatten()[:, None, None]


def _flat(values: Tensor, last: int) -> Tensor:
    """Flatten all axes before the ``last`` ones."""
    return values.reshape(-1, *values.shape[-last:])


def _mean(score: Score, *values: Tensor) -> float:
    """Mean score of all images, a few at a time."""
    chunks = zip(*(value.split(AT_ONCE) for value in values), strict=True)
    return float(torch.cat([score(*chunk).double() for chunk in chunks]).mean())

"""The scores of rendered pictures: as they are, of what moves, and under masks."""

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

Pictures = Float[Tensor, "v 3 h w"]
Masks = Bool[Tensor, "v h w"]
Score = Callable[..., Float[Tensor, "v"]]
"""One number per picture, of pictures, truth and perhaps masks."""
AT_ONCE = 8
"""Pictures that are scored together."""


def lpips_at(path: str | None, device: str | torch.device = "cpu") -> LPIPS | None:
    """The network of a file or folder, on a device; None where there are no weights.

    UserError where there are some, and they are not LPIPS's.
    """
    return load_lpips(path).to(device) if has_lpips(path) else None


def score_pictures(
    rendered: Views, target: Clip, masks: Bool[Tensor, "*b v h w"] | None = None, lpips: LPIPS | None = None
) -> dict[str, float]:
    """Means over pictures, by name (`metrics.images` says units and ranges).

    ``psnr`` (dB), ``ssim``, and ``lpips`` where its network is given, else ``structure``; ``psnr_dynamic`` over pixels
    that move at the picture's own time; with ``masks`` also ``mpsnr``, ``mssim``, and ``mlpips`` or ``mstructure``.
    Pictures without a pixel that counts (or whose truth is not known) are left out of a mean; without any, its name is.
    Rendered colours are first brought into [0, 1], as in a picture that is stored.

    Args:
        rendered: of the target's cameras and times, of the same size.
        target: the true pictures; ``dynamic`` says what moves.
        masks: co-visible pixels.
        lpips: a network with loaded weights (`similarity.load_lpips`).

    Raises:
        UserError: pictures of another number or size, or colours that are not finite.

    """
    pictures, truth = (_flat(each, 3).float().to(rendered.colour.device) for each in (rendered.colour, target.images))
    if pictures.shape != truth.shape:
        raise UserError(f"rendered pictures are {tuple(pictures.shape)}, the true ones {tuple(truth.shape)}")
    if not bool(pictures.isfinite().all()):
        raise UserError("rendered pictures are not finite: the model has diverged, or its Gaussians are damaged")
    pictures = pictures.clamp(0, 1)
    scores = {"psnr": _mean(images.psnr, pictures, truth), "ssim": _mean(images.ssim, pictures, truth)}
    scores |= {_look(lpips): _mean(_plain(lpips), pictures, truth)}
    moves = _dynamic(target)
    if moves is not None and bool(moves.any()):
        moves = moves.to(pictures.device)
        some = moves.flatten(1).any(1)
        scores["psnr_dynamic"] = _mean(images.psnr, pictures[some], truth[some], moves[some])
    return scores if masks is None else scores | _masked(pictures, truth, _flat(masks, 2).to(pictures.device), lpips)


def _masked(pictures: Pictures, truth: Pictures, masks: Masks, lpips: LPIPS | None) -> dict[str, float]:
    """The scores under masks, of pictures whose mask holds something."""
    some = masks.flatten(1).any(1)
    if not bool(some.any()):
        return {}
    chosen = pictures[some], truth[some], masks[some]
    look = images.mstructure if lpips is None else partial(images.mlpips, lpips)
    return {
        "mpsnr": _mean(images.psnr, *chosen),
        "mssim": _mean(images.mssim, *chosen),
        f"m{_look(lpips)}": _mean(look, *chosen),
    }


def _look(lpips: LPIPS | None) -> str:
    return "structure" if lpips is None else "lpips"


def _plain(lpips: LPIPS | None) -> Score:
    return images.structure if lpips is None else partial(images.lpips, lpips)


def _dynamic(target: Clip) -> Masks | None:
    """What moves in each picture; nothing where that is not known."""
    if target.dynamic is None:
        return None
    moves = _flat(target.dynamic, 2)
    known = target.dynamic_known
    return moves if known is None else moves & known.flatten()[:, None, None]


def _flat(values: Tensor, last: int) -> Tensor:
    """All axes before the ``last`` as one."""
    return values.reshape(-1, *values.shape[-last:])


def _mean(score: Score, *parts: Tensor) -> float:
    """Of all pictures, a few at a time."""
    chunks = zip(*(part.split(AT_ONCE) for part in parts), strict=True)
    return float(torch.cat([score(*chunk).double() for chunk in chunks]).mean())

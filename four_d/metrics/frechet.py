"""Fréchet distances between features of rendered and of real images (FID) or videos (FVD).

The features come from the networks that published figures use, given by path: the TorchScript files
``inception-2015-12-05.pt`` (FID; Heusel et al. 2017, arXiv 1706.08500) and ``i3d_torchscript.pt`` (FVD; Unterthiner et
al. 2018, arXiv 1812.01717). Without the file there is no figure: features of another network give another number.
"""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from four_d.errors import UserError

Kind = Literal["fid", "fvd"]
FILES: dict[Kind, str] = {"fid": "inception-2015-12-05.pt", "fvd": "i3d_torchscript.pt"}
FEWEST_FRAMES = 10
"""Minimum length of a video for I3D, which halves time three times."""
AT_ONCE = 16
"""Number of images of one pass."""


@dataclass(frozen=True, kw_only=True)
class Extractor:
    """Network that gives one feature vector per image or video."""

    kind: Kind
    network: nn.Module
    digest: str
    """First 12 digits of the file's sha256, to be told with the figure."""
    device: torch.device

    def images(self, images: Float[Tensor, "n 3 h w"]) -> Float[Tensor, "n d"]:
        """Features of RGB images in [0, 1]; the network resizes them itself (to 299²)."""
        found = [
            self._features((part.clamp(0, 1) * 255).round().to(torch.uint8), return_features=True)
            for part in images.split(AT_ONCE)
        ]
        return torch.cat(found)

    def video(self, video: Float[Tensor, "f 3 h w"]) -> Float[Tensor, "1 d"]:
        """Features of one RGB video in [0, 1] of at least `FEWEST_FRAMES`; the network resizes it itself (to 224²)."""
        if len(video) < FEWEST_FRAMES:
            raise UserError(f"FVD needs videos of {FEWEST_FRAMES} frames, not {len(video)}; give more frames")
        frames = (video.clamp(0, 1) * 255).round().transpose(0, 1)[None]
        return self._features(frames, rescale=True, resize=True, return_features=True)

    def _features(self, pictures: Tensor, **options: bool) -> Float[Tensor, "n d"]:
        with torch.inference_mode():
            return self.network(pictures.to(self.device), **options).double().cpu()


def load_extractor(kind: Kind, path: str | Path, device: str | torch.device = "cpu") -> Extractor:
    """Load the network of a TorchScript file. UserError if it is missing or none.

    Its code is run, restricted to TorchScript's operators: take files only from where published figures took theirs.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"there are no weights of {kind.upper()} at {path}; put {FILES[kind]} there")
    try:
        with warnings.catch_warnings():
            # the published files are TorchScript, whatever succeeds it
            warnings.simplefilter("ignore", FutureWarning)
            network = torch.jit.load(file, map_location=device)
    except RuntimeError as error:
        raise UserError(f"{path} is no TorchScript file; {kind.upper()} takes {FILES[kind]}") from error
    digest = hashlib.sha256(file.read_bytes()).hexdigest()[:12]
    return Extractor(kind=kind, network=network.eval(), digest=digest, device=torch.device(device))


def frechet_distance(one: Float[Tensor, "n d"], other: Float[Tensor, "m d"]) -> float:
    """Squared Fréchet distance of the normal distributions fitted to two sets of at least two vectors each.

    ‖μ₁ − μ₂‖² + tr(Σ₁ + Σ₂ − 2 (Σ₁ Σ₂)^½), with unbiased covariances. With fewer vectors than dimensions it is biased
    upwards: figures of different numbers of vectors do not compare.
    """
    if min(len(one), len(other)) < 2:
        raise UserError(
            f"a Fréchet distance needs two images or videos on either side, not {len(one)} and {len(other)}"
        )
    first, second = one.double(), other.double()
    shift = (first.mean(0) - second.mean(0)).square().sum()
    covariances = torch.atleast_2d(first.mT.cov()), torch.atleast_2d(second.mT.cov())
    root = _square_root(covariances[0])
    # tr (Σ₁ Σ₂)^½ by the eigenvalues of the symmetric Σ₁^½ Σ₂ Σ₁^½: no complex root, also of singular matrices
    mixed = torch.linalg.eigvalsh(root @ covariances[1] @ root).clamp_min(0).sqrt().sum()
    traces = covariances[0].trace() + covariances[1].trace()
    return max(float(shift + traces - 2 * mixed), 0.0)


def _square_root(matrix: Float[Tensor, "d d"]) -> Float[Tensor, "d d"]:
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp_min(0).sqrt()) @ vectors.mT


def fid(extractor: Extractor, rendered: Iterable[Tensor], real: Iterable[Tensor]) -> float:
    """FID of two sets of images, given in parts n 3 h w in [0, 1]."""
    return frechet_distance(*(torch.cat([extractor.images(part) for part in parts]) for parts in (rendered, real)))


def fvd(extractor: Extractor, rendered: Iterable[Tensor], real: Iterable[Tensor]) -> float:
    """FVD of two sets of videos f 3 h w in [0, 1]."""
    return frechet_distance(*(torch.cat([extractor.video(each) for each in videos]) for videos in (rendered, real)))

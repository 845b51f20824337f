from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from four_d.errors import UserError
from four_d.metrics import frechet


class Inception(nn.Module):
    """Mean colours, by the interface of the published file."""

    def forward(self, x: Tensor, return_features: bool = False) -> Tensor:
        assert return_features
        assert x.dtype == torch.uint8
        return x.float().mean([2, 3])


class I3D(nn.Module):
    def forward(self, x: Tensor, rescale: bool = False, resize: bool = False, return_features: bool = False) -> Tensor:
        assert rescale
        assert resize
        assert return_features
        return x.float().mean([3, 4]).diff(dim=2).abs().mean(2)


def saved(folder: Path, network: nn.Module) -> Path:
    path = folder / f"{type(network).__name__}.pt"
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.jit.script(network).save(str(path))
    return path


def normal(seed: int, count: int, mean: list[float], root: list[list[float]]) -> Tensor:
    rng = np.random.default_rng(seed)
    return torch.from_numpy(rng.normal(size=(count, len(mean))) @ np.array(root).T + mean)


def test_equal_sets_have_no_distance() -> None:
    one = normal(0, 50, [0, 1, 2], [[1, 0, 0], [0.5, 1, 0], [0, 0, 2]])
    assert frechet.frechet_distance(one, one) == pytest.approx(0, abs=1e-9)
    assert frechet.frechet_distance(one[:2], one[:2]) == pytest.approx(0, abs=1e-6)  # singular


def test_commuting_covariances_by_hand() -> None:
    """For diagonal covariances: ‖μ₁ − μ₂‖² + Σ (σ₁ − σ₂)², here of the sets' own moments."""
    one = torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]], dtype=torch.float64)
    other = one * torch.tensor([2.0, 5.0]) + torch.tensor([3.0, 4.0])
    spread = float(one[:, 0].var()) ** 0.5
    assert frechet.frechet_distance(one, other) == pytest.approx(25 + (spread**2) * (1 + 16))


def test_a_distance_of_general_covariances_is_that_of_the_matrix_root() -> None:
    one, other = (
        normal(seed, 400, [0.0] * 3, np.random.default_rng(seed).normal(size=(3, 3)).tolist()) for seed in (1, 2)
    )
    values = torch.linalg.eigvals(one.mT.cov() @ other.mT.cov())  # of the product itself, which is not symmetric
    expected = (one.mean(0) - other.mean(0)).square().sum() + one.mT.cov().trace() + other.mT.cov().trace()
    expected = expected - 2 * values.sqrt().real.sum()
    assert frechet.frechet_distance(one, other) == pytest.approx(float(expected), rel=1e-9)
    assert frechet.frechet_distance(other, one) == pytest.approx(float(expected), rel=1e-9)


def test_files_with_the_published_interfaces_are_run(tmp_path: Path) -> None:
    images = torch.rand(40, 3, 6, 8, generator=torch.Generator().manual_seed(0))
    inception = frechet.load_extractor("fid", saved(tmp_path, Inception()))
    assert frechet.fid(inception, [images[:20], images[20:]], [images]) == pytest.approx(0, abs=1e-6)
    assert frechet.fid(inception, [images * 0.5], [images]) > 100
    videos = [torch.rand(12, 3, 4, 4, generator=torch.Generator().manual_seed(i)) for i in range(3)]
    i3d = frechet.load_extractor("fvd", saved(tmp_path, I3D()))
    assert len(i3d.digest) == 12
    assert frechet.fvd(i3d, videos, videos) == pytest.approx(0, abs=1e-6)
    assert frechet.fvd(i3d, [each[:1].expand(12, -1, -1, -1) for each in videos], videos) > 1  # frozen ones
    with pytest.raises(UserError, match="videos of 10 frames, not 9"):
        i3d.video(videos[0][:9])


def test_what_is_no_such_file_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no weights of FID at .*nowhere.pt; put inception-2015-12-05.pt there"):
        frechet.load_extractor("fid", tmp_path / "nowhere.pt")
    (tmp_path / "other.pt").write_bytes(b"PK\x03\x04 not a program")
    with pytest.raises(UserError, match=r"no TorchScript file; FVD takes i3d_torchscript.pt"):
        frechet.load_extractor("fvd", tmp_path / "other.pt")
    with pytest.raises(UserError, match="two images or videos on either side, not 1 and 3"):
        frechet.frechet_distance(torch.zeros(1, 4), torch.zeros(3, 4))

"""What all tests share. Shapes and types are checked at run time in tests only: see `jaxtyping` in pyproject.toml."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(autouse=True)
def _one_thread_per_worker() -> None:
    """Two test workers on two cores: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

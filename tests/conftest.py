"""Fixtures and settings of all tests."""

from __future__ import annotations

import pytest
import torch
from hypothesis import HealthCheck, settings

from four_d.logs import to_stderr

# how long an example takes says how busy the machine is, nothing else
settings.register_profile("unhurried", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("unhurried")


@pytest.fixture(autouse=True)
def _one_thread_per_worker() -> None:
    """Two test workers on two cores: more threads would only wait for each other."""
    torch.set_num_threads(1)


@pytest.fixture(autouse=True)
def _messages_on_stderr() -> None:
    """As the program has them: pytest's own handler keeps `logging` from showing them by itself."""
    to_stderr()


@pytest.fixture
def generator() -> torch.Generator:
    return torch.Generator().manual_seed(0)

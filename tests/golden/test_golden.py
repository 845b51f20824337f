from __future__ import annotations

import json

import pytest

from tests.golden.update import PATH, measure


def test_the_small_model_says_what_it_said() -> None:
    """For a change that is meant: ``python -m tests.golden.update``, and say why in the commit."""
    assert measure() == pytest.approx(json.loads(PATH.read_text()), rel=1e-7)

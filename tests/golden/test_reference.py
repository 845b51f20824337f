from __future__ import annotations

import json

import pytest

pytest.importorskip("data_prep.synthetic", reason="needs the extra synth")
pytest.importorskip("av", reason="needs the extra video")

from tests.golden.reference import PATH, measure

COUNTED = 2e-4
"""Relative tolerance of scores. Some count pixels by a threshold, where the last bit of a float decides, and processors
differ in it: between two families of one maker's, with the same code and data, by up to 8e-5."""


@pytest.mark.slow
def test_the_reference_models_say_and_score_what_they_did() -> None:
    """For a change that is meant: ``python -m tests.golden.reference``, and say why in the commit."""
    found, recorded = measure(), json.loads(PATH.read_text())
    assert found.keys() == recorded.keys()
    scores = {name for name in recorded if name.startswith(("unified-small/", "dgs_lrm-small/"))}
    for names, tolerance in ((recorded.keys() - scores, 1e-6), (scores, COUNTED)):
        measured, expected = ({name: each[name] for name in names} for each in (found, recorded))
        assert measured == pytest.approx(expected, rel=tolerance, abs=1e-6)

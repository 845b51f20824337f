"""Weights of other projects: known files, safe reading, and maps between their names and ours."""

from four_d.state_dicts.reading import read_state
from four_d.weights.convert import KINDS, convert, convert_back
from four_d.weights.table import KNOWN, KnownWeights, show
from four_d.weights.verify import Report, Row, verify

__all__ = ["KINDS", "KNOWN", "KnownWeights", "Report", "Row", "convert", "convert_back", "read_state", "show", "verify"]

"""Command line `four-d VERB …`: each verb is one importable function of a dataclass."""

from four_d.cli.program import main, parse

__all__ = ["main", "parse"]

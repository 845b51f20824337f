"""Command line `four-d VERB …`: each verb is one importable function of a dataclass."""

from four_d.cli.program import main, parse, run

__all__ = ["main", "parse", "run"]

"""State dicts of other projects: reading them safely, and total maps between their names and ours."""

from four_d.state_dicts.reading import read_state

__all__ = ["read_state"]

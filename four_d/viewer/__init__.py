"""One self-contained page that shows what a model says of a video: `report`."""

from four_d.viewer.page import Picture, Playable, Section, Table, report

__all__ = ["Picture", "Playable", "Section", "Table", "report"]

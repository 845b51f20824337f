"""Viewers of a model's outputs: a self-contained page of a video (`report`), Gaussians live in a browser (`serve`)."""

from four_d.viewer.live import Live, serve, wait
from four_d.viewer.page import Figure, Playable, Section, Table, report
from four_d.viewer.scene import check_viser

__all__ = ["Figure", "Live", "Playable", "Section", "Table", "check_viser", "report", "serve", "wait"]

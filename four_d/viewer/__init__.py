"""What a model says, to look at: a self-contained page of a video (`report`), Gaussians live in a browser (`serve`)."""

from four_d.viewer.live import Live, serve, wait
from four_d.viewer.page import Picture, Playable, Section, Table, report

__all__ = ["Live", "Picture", "Playable", "Section", "Table", "report", "serve", "wait"]

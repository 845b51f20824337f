"""Long video in overlapping windows: cut, align, join and track. Shared by inference and evaluation."""

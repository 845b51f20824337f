"""Run a model on a video."""

"""Metrics of predictions as pure functions, without models or files (except trajectories)."""

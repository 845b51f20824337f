"""Scores of predictions as pure functions: `depth`, `pose`, `points`, `masks`. No files but trajectories, no models."""

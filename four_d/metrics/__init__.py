"""Scores of predictions as pure functions: `depth` and `pose`. No files but trajectories, no models, no state."""

"""Train, evaluate and export feed-forward 4D models."""

__version__ = "0.1.0.dev0"

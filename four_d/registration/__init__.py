"""Cameras of a video from its pixels and the depth that a model gives: matches, pairs of frames, all frames (ours)."""

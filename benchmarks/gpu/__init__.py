"""Measurements on one GPU, each a section with a time box of its own: ``benchmarks/gpu.sh`` runs them."""

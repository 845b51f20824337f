"""Turning sources into shards: one subpackage or script per source. Of `four_d` only types, geometry and data."""

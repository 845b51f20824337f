"""Turning sources into shards: one subpackage or script per source. Imports only `four_d`'s types, geometry and data."""

"""Conversion of sources into shards: one subpackage or script per source. Imports only lower layers of `four_d`."""

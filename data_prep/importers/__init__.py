"""Importers: other projects' data into shards."""

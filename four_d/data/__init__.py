"""Data sets as shards: the layout, reading and writing, checking, statistics, pictures, sampling and loading."""

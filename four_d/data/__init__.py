"""Data sets as shards: the layout, reading and writing, checking, statistics, images, sampling and loading."""

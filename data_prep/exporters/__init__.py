"""Export of shards in the layouts that other projects' trainers read."""

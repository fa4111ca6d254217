"""Streams: datasets that are read from front to back, shard by shard."""

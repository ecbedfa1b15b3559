"""Records: what every method said about every image, kept in shards, computed here or on a cluster.

Uses `project` and `data`; methods are handed to it.
"""

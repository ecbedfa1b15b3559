"""Records: what every method said about every image, kept in shards, computed here or on a cluster.

Uses `project`; methods and datasets are handed to it. Offers `records` (`run`, `run_all`, `load`, where rows come from); below it stand
`shards`, one unit of work from the plan to its file, and `cluster`, which computes them on many workers.
"""

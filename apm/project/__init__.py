"""The project around the science: folders and files, what made something, profiles, progress, running notebooks.

Uses nothing else of the package. Offers the folders (`root`, `cache_dir`, `data_dir`, `results_dir`), atomic files, hashes and the error
for an unknown name; its modules are `identity`, `profiles`, `progress`, `depends`, `manifest`, `kernel`, `run` and `clean`.
"""

from apm.project.paths import (
    among,
    atomic_path,
    atomic_write,
    cache_dir,
    data_dir,
    facts,
    located,
    locked,
    plain,
    portable,
    results_dir,
    root,
    sha256_file,
    sha256_of,
    unknown,
)

__all__ = [
    "among",
    "atomic_path",
    "atomic_write",
    "cache_dir",
    "data_dir",
    "facts",
    "located",
    "locked",
    "plain",
    "portable",
    "results_dir",
    "root",
    "sha256_file",
    "sha256_of",
    "unknown",
]

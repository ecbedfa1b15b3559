"""The project around the science: folders and atomic files, hashes and clear errors (`paths`), what made something (`identity`), profiles,
progress, running notebooks. Uses nothing else of the package but `typed`."""

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

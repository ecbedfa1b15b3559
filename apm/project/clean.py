"""Delete the records of a profile and the cache: `python -m apm.project.clean PROFILE`, or `make clean-records PROFILE=...`.

Only files whose names this package gives are deleted, and only right inside its own folders: whatever else lies there, or behind a link,
is somebody's own. What will go, and how much, is said first.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path

from apm.project import cache_dir, located, profiles, results_dir, root

# all that is computed has the hash of what determines it in its name
MADE = re.compile(r".*(^|[.-])[0-9a-f]{16,64}\.(npy|parquet|safetensors|json)(\.\w+)?|times\.json|\..*\.tmp")
CACHED = ("features", "field", "fingerprints", "prompts", "records", "teachers")


def made(profile: str) -> Iterator[tuple[Path, list[Path], int]]:
    """(folder, files in it that this package made, number of others) of each folder to clean. Raises ValueError for an unknown profile."""
    profiles.folder_of(profile)
    trained = set[Path]()  # by `make teacher`
    for name in profiles.names():
        if (profiles.folder_of(name) / "teacher.yaml").is_file():
            trained.add(root() / located(profiles.load_teacher(name)[1]))
    places = [(results_dir(profile), "records"), *((cache_dir(), name) for name in CACHED)]
    for base, name in places:
        folder = base / name
        if folder.is_symlink() or not folder.is_dir():
            continue
        files = sorted(path for path in folder.iterdir() if path.is_file() and not path.is_symlink())
        own = [path for path in files if MADE.fullmatch(path.name) or path in trained]
        yield folder, own, sum(1 for _ in folder.iterdir()) - len(own)
    stamps = root() / ".make" / profile
    if stamps.is_dir() and not stamps.is_symlink():
        yield stamps, sorted([*stamps.glob("*.done"), *stamps.glob("rules.mk*")]), 0


def main(profile: str) -> int:
    """Command line; returns the exit status: 0 done, 2 bad input or what cannot be deleted."""
    try:
        found = list(made(profile))
        for folder, own, others in found:
            size = sum(path.stat().st_size for path in own) / 1e6
            rest = f"; {others} others are not this package's and stay" if others else ""
            print(f"deleting {len(own)} files ({size:.1f} MB) of {folder}{rest}", flush=True)
        for _, own, _ in found:
            for path in own:
                path.unlink()
    except (ValueError, OSError) as error:
        print(f"clean-records: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

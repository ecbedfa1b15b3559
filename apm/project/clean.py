"""Delete the records of a profile and the cache: `python -m apm.project.clean PROFILE`, or `make clean-records PROFILE=...`.

Only files whose names this package gives, right inside its own folders: whatever else lies there, or behind a link, is somebody's own.
"""

import re
import sys
from pathlib import Path

from apm.project import cache_dir, located, profiles, results_dir, root

# all that is computed has the hash of what determines it in its name
MADE = re.compile(r".*(^|[.-])[0-9a-f]{16,64}\.(npy|parquet|safetensors|json)(\.\w+)?|times\.json|\..*\.tmp")
CACHED = ("features", "field", "fingerprints", "prompts", "records", "teachers")


def made(profile: str) -> dict[Path, list[Path]]:
    """Folder -> the files in it that this package made. Raises ValueError for an unknown profile."""
    stamps = profiles.folder_of(profile) and root() / ".make" / profile
    own = [name for name in profiles.names() if (profiles.folder_of(name) / "teacher.yaml").is_file()]
    named = {root() / located(profiles.load_teacher(name)[1]) for name in own}  # by `make teacher`
    named |= {*stamps.glob("*.done"), *stamps.glob("rules.mk*")}
    folders, found = [results_dir(profile) / "records", *(cache_dir() / name for name in CACHED), stamps], {}
    for folder in (folder for folder in folders if folder.is_dir() and not folder.is_symlink()):
        files = (path for path in sorted(folder.iterdir()) if path.is_file() and not path.is_symlink())
        found[folder] = [path for path in files if MADE.fullmatch(path.name) or path in named]
    return found


def main(profile: str) -> int:
    """Command line; returns the exit status: 0 done, 2 bad input or what cannot be deleted."""
    try:
        for folder, own in (found := made(profile)).items():
            others = sum(1 for _ in folder.iterdir()) - len(own)
            rest = f"; {others} others are not this package's and stay" if others else ""
            size = sum(path.stat().st_size for path in own) / 1e6
            print(f"deleting {len(own)} files ({size:.1f} MB) of {folder}{rest}", flush=True)
        for own in found.values():
            for path in own:
                path.unlink()
    except (ValueError, OSError) as error:
        print(f"clean-records: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))

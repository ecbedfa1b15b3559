"""The manifest of a results folder: every table and figure that its notebooks published, in order.

    results/<profile>/manifest.json   {"version", "notebooks": {name: {"complete", "entries", "earlier"}}}

An entry is {name, kind, caption, notes, files}, a table's also has its rows. earlier: files of a run before, until this one has ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apm.project import atomic_write, locked
from apm.project.paths import kept

VERSION = 1
NAME = "manifest.json"


def read(folder: Path | str) -> dict[str, Any]:
    """What a results folder holds. Raises FileNotFoundError where there is no manifest; ValueError for one that is damaged or of
    another version."""
    path = Path(folder) / NAME
    try:
        return _sound(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: run the notebooks first, `make reproduce`") from error
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{path} cannot be read ({error}): `make reproduce` makes it anew") from error


def _sound(text: str) -> dict[str, Any]:
    found = json.loads(text)
    if found["version"] != VERSION:
        raise ValueError(f"it is of version {found['version']}, this package writes {VERSION}")
    for part in found["notebooks"].values():
        if part["complete"] is None or any(
            not {"name", "kind", "caption", "notes"} <= e.keys() for e in part["entries"]
        ):
            raise ValueError("an entry is not whole")
        if any(Path(file).is_absolute() or ".." in Path(file).parts for file in _files(part)):
            raise ValueError("a file outside the folder")
    return found


def notebooks(folder: Path | str) -> dict[str, Any]:
    """What each notebook published; nothing where there is no manifest, and, which is said, where it cannot be read."""
    return kept(Path(folder) / NAME, _sound, {"notebooks": {}})["notebooks"]


def _files(part: dict[str, Any]) -> list[str]:
    return [*(file for entry in part["entries"] for file in entry["files"]), *part.get("earlier", ())]


def files(folder: Path | str, notebook: str) -> list[str]:
    """Files that a notebook published, in this run and in one before it, relative to the folder; none without a sound manifest."""
    made = notebooks(folder)
    return _files(made[notebook]) if notebook in made else []


def note(folder: Path | str, notebook: str, entries: list[dict[str, Any]], *, complete: bool) -> None:
    """Write what a notebook has published so far; notebooks that run at the same time wait for each other."""
    folder = Path(folder)
    with locked(folder / f".{NAME}.lock.tmp"):
        made = notebooks(folder)
        left = set(files(folder, notebook)) - {file for entry in entries for file in entry["files"]}
        earlier = {"earlier": sorted(left)} if left and not complete else {}
        made[notebook] = {"complete": complete, "entries": entries, **earlier}
        found = {"version": VERSION, "notebooks": dict(sorted(made.items()))}
        atomic_write(folder / NAME, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

"""The manifest of a results folder: every table and figure that its notebooks published, in order. Standard library only.

    results/<profile>/manifest.json   {"version", "notebooks": {name: {"complete", "entries", "earlier"}}}

An entry is {name, kind, caption, notes, files}, a table's also has its number of rows. earlier: files of a run before this one, until
this one has ended.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from apm.project import atomic_write, locked

VERSION = 1
NAME = "manifest.json"


def read(folder: Path | str) -> dict[str, Any]:
    """What a results folder holds.

    Raises FileNotFoundError where there is no manifest; ValueError for one that is damaged or of another version.
    """
    path = Path(folder) / NAME
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
        version = found["version"]
    except FileNotFoundError as error:
        raise FileNotFoundError(f"{path} does not exist: run the notebooks first, `make reproduce`") from error
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} cannot be read: remove it and run `make reproduce` again") from error
    if version != VERSION:
        raise ValueError(f"{path} is of version {version}, this package writes {VERSION}: run `make reproduce` again")
    return found


def files(folder: Path | str, notebook: str) -> list[str]:
    """Files that a notebook published, in this run and in one before it, relative to the folder; none without a sound manifest."""
    try:
        made = read(folder)["notebooks"][notebook]
        return [*(file for entry in made["entries"] for file in entry["files"]), *made.get("earlier", ())]
    except (OSError, ValueError, KeyError, TypeError):
        return []


def note(folder: Path | str, notebook: str, entries: list[dict[str, Any]], *, complete: bool) -> None:
    """Write what a notebook has published so far; notebooks that run at the same time wait for each other.

    A manifest that cannot be read is made anew.
    """
    folder = Path(folder)
    with locked(folder / f".{NAME}.lock"):
        try:
            made = read(folder)["notebooks"]
        except (FileNotFoundError, ValueError):
            made = {}
        left = set(files(folder, notebook)) - {file for entry in entries for file in entry["files"]}
        earlier = {"earlier": sorted(left)} if left and not complete else {}
        made[notebook] = {"complete": complete, "entries": entries, **earlier}
        found = {"version": VERSION, "notebooks": dict(sorted(made.items()))}
        atomic_write(folder / NAME, json.dumps(found, indent=1, ensure_ascii=False) + "\n")

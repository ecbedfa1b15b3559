"""Run notebooks with the parameters of a profile: `python -m apm.project.run --profile mini 02_corruptions`.

Papermill executes into results/<profile>/notebooks/<name>.partial.ipynb, which gets its final name when every cell has succeeded.
The executed copy holds no times and no paths of this machine, so that two runs differ only where results do.
"""

from __future__ import annotations

import argparse
import functools
import itertools
import json
import re
import shutil
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from apm.project import depends, locked, manifest, portable, profiles, results_dir, root, sha256_file
from apm.project.paths import atomic_path, atomic_write, explained, kept, say


def run(notebook: str, profile: str) -> Path:
    """Execute one notebook; returns the path of the executed copy. Raises as `profiles.load`, OSError for a results folder that
    cannot be written, papermill.PapermillExecutionError when a cell fails (the half-executed copy stays beside the final name)."""
    import papermill as pm

    from apm.project import kernel

    source = profiles.notebook_path(notebook)
    defaults = profiles.notebook_parameters(source)
    # what differs from the cell above it: a reader sees what the profile changes
    parameters = {name: value for name, value in profiles.load(profile, notebook).items() if value != defaults[name]}
    folder = results_dir(profile) / "notebooks"
    partial, final = folder / f"{notebook}.partial.ipynb", folder / f"{notebook}.ipynb"
    atomic_write(partial, source.read_bytes())  # a folder that cannot be written is said now, not after the run
    how = {"parameters": parameters, "cwd": str(root()), "progress_bar": False, "autosave_cell_every": 10}
    what = {"kernel_name": "python3", "language": "python", "extra_arguments": ["--IPKernelApp.log_level=40"]}
    with explained(partial):
        pm.execute_notebook(str(source), str(partial), kernel_manager_class=kernel.Manager, **what, **how)
    atomic_write(final, clean(partial))
    partial.unlink()
    return final


def clean(path: Path) -> str:
    """An executed notebook as text, without what changes from run to run: times, paths of this machine, papermill's notes."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = {"tags": tags} if tags else {}
        if "injected-parameters" in tags:
            cell.source = re.sub(r"^# Parameters\n", "# from the profile\n", cell.source)
            cell.id = "injected-parameters"
    spec = {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"}
    book.metadata = {"kernelspec": spec, "language_info": {"name": "python"}}
    return nbformat.writes(nbformat.from_dict(_portable(book)), indent=1) + "\n"


def _portable(value: Any) -> Any:
    """A notebook with portable text everywhere but in images, whose base64 may hold anything."""
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return portable(value) if isinstance(value, str) else value


def times(results: Path) -> dict[str, dict[str, float]]:
    """How long runs of notebooks took: {notebook: {last, longest}}, seconds, of records/times.json. The longest run since the records
    were cleared is the one that computed them; later ones read what is there."""
    return kept(results / "records" / "times.json", _times, {})


def _times(text: str) -> dict[str, dict[str, float]]:
    known = json.loads(text).items()
    return {name: took for name, took in known if isinstance(took, dict) and took.keys() == {"last", "longest"}}


def note_time(results: Path, name: str, seconds: float) -> None:
    """Keep how long a notebook's run took, for the report (`times`)."""
    path = results / "records" / "times.json"
    with locked(path.with_name(".times.lock.tmp")):  # under make -j notebooks end side by side
        known, last = times(results), round(seconds, 1)
        known[name] = {"last": last, "longest": max(last, known.get(name, {}).get("longest", last))}
        atomic_write(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser("python -m apm.project.run", description="Execute notebooks by a profile.")
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="such as 02_corruptions")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--stamp", type=Path, help="file to write when done; an identical stamp means nothing changed")
    options = parser.parse_args(arguments)
    for name in options.notebooks:
        try:
            _work(name, options.profile, options.stamp)
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted; run again to go on where it stopped", file=sys.stderr)
            return 130
        except (ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except Exception as error:
            if not (isinstance(error, RuntimeError) or type(error).__name__ == "PapermillExecutionError"):
                raise  # neither of a cell nor of the kernel
            partial = results_dir(options.profile) / "notebooks" / f"{name}.partial.ipynb"
            text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rstrip()  # the end of a cell's traceback, without colours
            print(*text.splitlines()[-25:], sep="\n", file=sys.stderr)
            print(portable(f"{name}: failed. The half-executed notebook is {partial}"), file=sys.stderr)
            return 1
    return 0


def _work(name: str, profile: str, stamp: Path | None) -> None:
    """Run a notebook where its stamp is not that of today, when no other run of it is at work."""
    start = time.monotonic()
    profiles.load(profile, name)  # bad values are said before anything is hashed or locked
    results = results_dir(profile)
    waiting = functools.partial(print, f"{name}: another run of it is at work; waiting for it to end", flush=True)
    with locked(results / "notebooks" / f".{name}.lock.tmp", waiting):  # a run may outlive its make
        wanted = depends.state(profile, name)
        stamped = depends.stamped(stamp) if stamp else []
        if stamp and stamped == [wanted, *depends.left(results, name)]:
            print(f"{name}: nothing changed")
            return stamp.touch()
        print(f"{name}: running with profile {profile} ...", flush=True)
        _put_aside(results, stamped[1:])
        before = depends.outputs(results, name)
        executed = run(name, profile)
        _completed(results, name, before)
        try:  # what is only noted fails no finished work
            note_time(results, name, time.monotonic() - start)
            if stamp:
                atomic_write(stamp, "\n".join([wanted, *depends.left(results, name)]) + "\n")
        except OSError as error:
            say(f"{name}: done, but {error}")
    print(portable(f"{name}: done in {time.monotonic() - start:.0f} s, {executed}"), flush=True)


def _put_aside(results: Path, stamped: list[str]) -> None:
    """Copy what is another file now than the last run left: somebody may have worked on it, and this run writes it again."""
    for digest, _, name in (line.partition("  ") for line in stamped):
        path = results / name
        if path.is_file() and name != manifest.NAME and sha256_file(path) != digest:
            places = (results / "by-hand" / f"{path.stem}-{n}{path.suffix}" for n in itertools.count(1))
            free = next(place for place in places if not place.exists())
            with atomic_path(free) as temporary:
                shutil.copyfile(path, temporary)
            print(portable(f"{path} is not as it was made: a copy of it is {free}"), flush=True)


def _completed(results: Path, name: str, before: list[Path]) -> None:
    """Note in the manifest that a notebook ran to its end, and remove what only an earlier run of it published: files inside the
    folder that the manifest named, as others are somebody's own."""
    if name not in (made := manifest.notebooks(results)):
        return
    earlier = {*before, *depends.outputs(results, name)}
    manifest.note(results, name, made[name]["entries"], complete=True)
    for path in sorted(earlier - set(depends.outputs(results, name))):
        if path.is_file() and path.resolve().is_relative_to(results.resolve()):
            path.unlink()
            print(portable(f"{name}: removed {path}, which these settings do not make"))


if __name__ == "__main__":
    sys.exit(main())

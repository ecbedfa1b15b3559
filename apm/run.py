"""Run notebooks with the parameters of a profile: `python -m apm.run --profile mini 02_corruptions`.

Each notebook is executed by papermill into results/<profile>/notebooks/<name>.partial.ipynb, which gets its final name when
every cell has succeeded. The executed copy holds no times and no paths of this machine, so that two runs differ only where
results do.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import sys
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from apm import depends, profiles
from apm.project import atomic_write, locked, portable, results_dir, root


def run(notebook: str, profile: str) -> Path:
    """Execute one notebook; returns the path of the executed copy.

    Raises ValueError for an unknown notebook, profile or parameter, OSError for a results folder that cannot be written,
    papermill.PapermillExecutionError when a cell fails (the half-executed copy stays beside the final name).
    """
    import papermill as pm

    parameters = profiles.load(profile, notebook)
    source = profiles.notebook_path(notebook)
    folder = results_dir(profile) / "notebooks"
    partial, final = folder / f"{notebook}.partial.ipynb", folder / f"{notebook}.ipynb"
    atomic_write(partial, source.read_bytes())  # a folder that cannot be written is said now, not after the run
    os.environ.setdefault("JUPYTER_PREFER_ENV_PATH", "1")
    os.environ.setdefault("APM_PROGRESS", _terminal())
    pm.execute_notebook(
        str(source),
        str(partial),
        parameters=parameters,
        cwd=str(root()),
        kernel_name="python3",
        progress_bar=False,
        log_output=False,
        autosave_cell_every=10,
        execution_timeout=None,
        extra_arguments=["--IPKernelApp.log_level=40"],
    )
    atomic_write(final, clean(partial))
    partial.unlink()
    return final


def clean(path: Path) -> str:
    """An executed notebook as text, without what changes from run to run: times, paths of this machine, papermill's notes."""
    import nbformat

    book = nbformat.read(path, as_version=4)
    book.metadata.pop("papermill", None)
    for cell in book.cells:
        tags = cell.metadata.get("tags", [])
        cell.metadata = nbformat.from_dict({"tags": tags} if tags else {})
        if "injected-parameters" in tags:
            cell.source = re.sub(r"^# Parameters\n", "# from the profile\n", cell.source)
            cell.id = "injected-parameters"
    if "widgets" in book.metadata:
        del book.metadata["widgets"]
    book.metadata = nbformat.from_dict(
        {
            "kernelspec": {"display_name": "Python 3 (ipykernel)", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    return nbformat.writes(nbformat.from_dict(_portable(book)), indent=1) + "\n"


def _portable(value: Any) -> Any:
    """A notebook with portable text everywhere but in images, whose base64 may hold anything."""
    if isinstance(value, dict):
        return {key: item if key.startswith("image/") else _portable(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_portable(item) for item in value]
    return portable(value) if isinstance(value, str) else value


def export_html(executed: Path, target: Path) -> Path:
    """The executed notebook as one HTML page without code cells and without anything loaded from elsewhere.

    target: in the profile's results folder, beside `notebooks/`, which the page's links to notebooks then lead to.
    """
    from nbconvert import HTMLExporter
    from traitlets.config import Config

    settings: Any = Config()
    settings.HTMLExporter.exclude_input = True
    settings.HTMLExporter.exclude_input_prompt = True
    settings.HTMLExporter.exclude_output_prompt = True
    settings.HTMLExporter.mathjax_url = ""
    settings.HTMLExporter.require_js_url = ""
    settings.HTMLExporter.jquery_url = ""
    settings.HTMLExporter.embed_images = True
    page, _ = HTMLExporter(config=settings).from_filename(str(executed))
    page = re.sub(
        r"<title>.*?</title>",
        f"<title>APM, done again: profile {target.parent.name}</title>",
        page,
        count=1,
        flags=re.S,
    )
    # formula and diagram scripts of nbconvert's template, which this page does not use; their addresses are empty or elsewhere
    page = re.sub(r"<script\b[^>]*\bsrc=[^>]*>.*?</script>", "", page, flags=re.S)
    page = re.sub(r"<script type=\"(?:module|text/x-mathjax-config)\">.*?</script>", "", page, flags=re.S)
    page = re.sub(r'href="(\d\d_\w+\.ipynb)"', r'href="notebooks/\1"', page)
    return atomic_write(target, page)


def note_time(folder: Path, name: str, seconds: float) -> Path:
    """Keep how long a notebook's runs took, for the report: {notebook: {last, longest}}, seconds, in records/times.json.

    It stands with the records, outside version control: a time belongs to a machine. The longest run since the records were
    cleared is the one that computed them; later ones read what is there.
    """
    path = folder / "records" / "times.json"
    with locked(path.with_name(".times.lock.tmp")):  # under make -j notebooks end side by side
        known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        last = round(seconds, 1)
        known[name] = {"last": last, "longest": max(last, known.get(name, {}).get("longest", last))}
        return atomic_write(path, json.dumps(known, indent=1, sort_keys=True) + "\n")


def _terminal() -> str:
    """A path through which a kernel can write to the standard error of this process; "" where there is none."""
    if sys.stderr.isatty():
        return os.ttyname(sys.stderr.fileno())
    own = Path(f"/proc/{os.getpid()}/fd/2")
    return str(own) if own.exists() else ""


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 done, 1 a cell failed, 2 bad input, 130 interrupted."""
    parser = argparse.ArgumentParser(
        prog="python -m apm.run", description="Execute notebooks with a profile's parameters."
    )
    parser.add_argument("notebooks", nargs="+", metavar="NOTEBOOK", help="such as 02_corruptions")
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--stamp", type=Path, help="file to write when done; an identical stamp means nothing changed")
    options = parser.parse_args(arguments)
    for name in options.notebooks:
        start = time.monotonic()
        try:
            profiles.load(options.profile, name)  # bad values are said before anything is hashed or locked
            results = results_dir(options.profile)
            with _alone(name, options.profile):
                wanted = depends.state(root(), options.profile, profiles.notebook_path(name))
                if options.stamp and depends.is_done(options.stamp, wanted, results):
                    print(f"{name}: nothing changed")
                    options.stamp.touch()
                    continue
                print(f"{name}: running with profile {options.profile} ...", flush=True)
                before = _signatures(depends.outputs(results, name))
                executed = run(name, options.profile)
                made = [executed, *_remove_left_over(results, name, before)]
                if name.startswith("99_"):
                    made.append(export_html(executed, results / "report.html"))
                    print(f"{name}: wrote {_shown(made[-1])}")
                note_time(results, name, time.monotonic() - start)
                if options.stamp:
                    left = [path.relative_to(results).as_posix() for path in made]
                    atomic_write(options.stamp, "\n".join([wanted, *left]) + "\n")
        except KeyboardInterrupt:
            print(f"\n{name}: interrupted; run again to go on where it stopped", file=sys.stderr)
            return 130
        except (ValueError, OSError) as error:
            print(f"{name}: {error}", file=sys.stderr)
            return 2
        except Exception as error:
            if type(error).__name__ not in ("PapermillExecutionError", "DeadKernelError", "CellTimeoutError"):
                raise
            partial = results_dir(options.profile) / "notebooks" / f"{name}.partial.ipynb"
            print(_failure(error), file=sys.stderr)
            print(f"{name}: failed. The half-executed notebook is {_shown(partial)}", file=sys.stderr)
            return 1
        print(f"{name}: done in {time.monotonic() - start:.0f} s, {_shown(executed)}", flush=True)
    return 0


def _alone(name: str, profile: str) -> AbstractContextManager[None]:
    """The notebook's lock: a run that outlived its make and the next one must not write the same file."""

    def say() -> None:
        print(f"{name}: another run of it is at work; waiting for it to end", flush=True)

    return locked(results_dir(profile) / "notebooks" / f".{name}.lock.tmp", say)


def _signatures(paths: list[Path]) -> dict[Path, tuple[int, int]]:
    return {path: (path.stat().st_ino, path.stat().st_mtime_ns) for path in paths}


def _remove_left_over(results: Path, name: str, before: dict[Path, tuple[int, int]]) -> list[Path]:
    """Delete the notebook's tables and figures that the run did not write: they are of earlier settings, and the report would
    show them. Returns those that it wrote. Does nothing where another notebook has the same number."""
    made = depends.outputs(results, name)
    if sum(other.split("_")[0] == name.split("_")[0] for other in profiles.notebooks()) > 1:
        return []
    stale = [path for path, signature in _signatures(made).items() if before.get(path) == signature]
    for path in stale:
        path.unlink()
        print(f"{name}: removed {_shown(path)}, which these settings do not make")
    return [path for path in made if path not in stale]


def _failure(error: Exception) -> str:
    """The end of a failing cell's traceback, without terminal colours."""
    text = re.sub(r"\x1b\[[0-9;]*m", "", str(error)).rstrip()
    return "\n".join(text.splitlines()[-25:])


def _shown(path: Path) -> Path:
    return path.relative_to(root()) if path.is_relative_to(root()) else path


if __name__ == "__main__":
    sys.exit(main())

"""One call for every table and figure of a notebook: its numbers written down, its files made, the result shown."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
from IPython.display import display
from matplotlib.figure import Figure

from apm import project
from apm.analysis import figures, numbers, tables
from apm.project import manifest


class Publisher:
    """Publishes what one notebook makes into a profile's results folder; run by hand, into its folder `by-hand`.

    publish = Publisher(profile, "02_corruptions")
    publish(table, "02_paired", "APM against its teacher", footer)
    publish(figure, "02_accuracy", "Accuracy per condition")
    """

    def __init__(self, profile: str, notebook: str) -> None:
        self.folder: Path = project.results_dir(profile) / project.paths.by_hand()
        self.notebook = notebook
        self.entries: list[dict[str, Any]] = []
        self.rows: list[pd.DataFrame] = []
        machine = json.dumps(numbers.machine(), indent=1, sort_keys=True)
        project.atomic_write(self.folder / "numbers" / "machine.json", machine + "\n")

    def __call__(
        self,
        what: pd.DataFrame | Figure | bytes,
        name: str,
        caption: str,
        notes: str | Sequence[str] = (),
        *,
        kinds: Mapping[str, str] | str = "measure",
        bold: tables.Bold | None = None,
        upright: bool = False,
    ) -> None:
        """Write a table (tidy numbers; CSV, Markdown, LaTeX), a figure (PNG, PDF) or an animation (the bytes of a GIF), and show it.

        what: a table has its rows' names in the index; its cells are `numbers.Number`s, plain numbers or words. name: file name without
        suffix, beginning with the notebook's number. kinds: as of `numbers.tidy`; bold, upright: of `tables.show`.

        Raises ValueError for a name that was published already, belongs to another notebook or is no plain file name, an empty
        table, rows or columns that stand twice; OSError for a folder that cannot be written.
        """
        if name.split("_")[0] != self.notebook.split("_")[0] or name != Path(name).name:
            raise ValueError(f"{name!r} is no file name that begins with the number of its notebook {self.notebook}")
        if name in {entry["name"] for entry in self.entries}:
            raise ValueError(f"{name!r} was published already: give each table and figure a name of its own")
        caption = project.portable(caption)
        note = project.portable(notes if isinstance(notes, str) else " ".join(part for part in notes if part))
        entry: dict[str, Any] = {"name": name, "kind": "figure", "caption": caption, "notes": note}
        if isinstance(what, pd.DataFrame):
            rows = numbers.tidy(what, name, kinds=kinds)
            shown = tables.show(what, caption, note, bold=bold, upright=upright)
            paths = tables.save(what, name, self.folder / "tables", caption, note, page=shown.html)
            self.rows.append(rows)
            numbers.write(pd.concat(self.rows, ignore_index=True), numbers.numbers_of(self.folder, self.notebook))
            entry |= {"kind": "table", "rows": len(what)}
        else:
            paths = figures.save(what, name, self.folder / "figures")
        entry["files"] = [path.relative_to(self.folder).as_posix() for path in paths.values()]
        self.entries.append(entry)
        manifest.note(self.folder, self.notebook, self.entries, complete=False)
        if isinstance(what, pd.DataFrame):
            display(shown)
            return
        if not isinstance(what, bytes):
            plt.close(what)  # left open it would come after its cell's text
        figures.display(next(iter(paths.values())), caption, note)

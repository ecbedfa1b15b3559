"""The report page: every table and figure that the notebooks of a profile left, with captions and provenance.

`99_report` shows it; `apm.run` exports that notebook as results/<profile>/report.html, one page without anything loaded from
elsewhere.
"""

from __future__ import annotations

import base64
import html
import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from apm import records, tables
from apm.project import root
from apm.tables import Shown

LONG = 25  # rows from which a table is folded away
STYLE = """<style>
  .apm-nav a { display: inline-block; margin-right: 1.2em; }
  .apm-section { border-top: 1px solid #ccc; margin-top: 2.5em; padding-top: .5em; }
  .apm-figure { margin: 1.5em 0; break-inside: avoid; }
  .apm-figure img { max-width: 100%; height: auto; }
  .apm-figure figcaption { color: #444; font-size: 90%; max-width: 60em; }
  .apm-section details { margin: 1em 0; }
  .apm-section summary { cursor: pointer; }
  @media print { details > *:not(summary) { display: block; } .apm-nav { display: none; } }
</style>"""


@dataclass(frozen=True)
class Section:
    """What one notebook left."""

    notebook: str  # "02_corruptions"
    title: str  # first heading of the notebook
    question: str  # its paragraph that begins with **Question.**
    tables: tuple[Path, ...]  # CSV files, in the order in which the notebook makes them
    figures: tuple[Path, ...]  # PNG files, likewise


def sections(folder: Path, notebooks: list[str]) -> list[Section]:
    """One section per notebook that left a table or a figure in a profile's results folder.

    Raises FileNotFoundError when none did.
    """
    found = []
    for notebook in notebooks:
        prefix = f"{notebook.split('_')[0]}_*"
        source = (root() / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")

        def place(path: Path, source: str = source) -> tuple[int, str]:
            """In the order in which the notebook makes them."""
            at = source.find(path.stem)
            return at if at >= 0 else len(source), path.name

        left = [
            tuple(sorted((folder / kind).glob(f"{prefix}.{end}"), key=place))
            for kind, end in (("tables", "csv"), ("figures", "png"))
        ]
        if any(left):
            title, question = _heading(root() / "notebooks" / f"{notebook}.ipynb")
            found.append(Section(notebook, title, question, *left))
    if not found:
        raise FileNotFoundError(f"no tables and no figures in {folder}: run the notebooks first, `make reproduce`")
    return found


def _heading(path: Path) -> tuple[str, str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    title = text.splitlines()[0].lstrip("# ").strip()
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    question = next((p.removeprefix("**Question.**").strip() for p in paragraphs if p.startswith("**Question.**")), "")
    return title, question.replace("*", "").replace("`", "")  # shown as plain text


def read_table(path: Path) -> tuple[pd.DataFrame, str, str]:
    """A saved table (its CSV), its caption and its footer (from the Markdown beside it)."""
    lines = path.with_suffix(".md").read_text(encoding="utf-8").splitlines()
    text = [line for line in lines if line and not line.startswith("|")]
    return pd.read_csv(path, keep_default_na=False, na_values=["NaN"]), text[0].strip("*"), " ".join(text[1:])


def navigation(found: list[Section]) -> Shown:
    """Links to the sections."""
    links = [f'<a href="#{s.notebook}">{html.escape(s.title)}</a>' for s in found]
    links.append('<a href="#provenance">Provenance</a>')
    return Shown(f'{STYLE}<p class="apm-nav">{" ".join(links)}</p>', "\n".join(s.title for s in found))


def show(section: Section) -> Shown:
    """One section: question, tables, figures with their captions. Long tables are folded away."""
    parts = [
        f'<div class="apm-section" id="{section.notebook}"><h2>{html.escape(section.title)}</h2>',
        f'<p>{html.escape(section.question)} <a href="notebooks/{section.notebook}.ipynb">Executed notebook</a></p>',
    ]
    for path in section.tables:
        table, caption, footer = read_table(path)
        shown = tables.show(tables.upright(table), caption, footer)._repr_html_()
        if len(table) > LONG:
            shown = f"<details><summary>{html.escape(caption)} ({len(table)} rows)</summary>{shown}</details>"
        parts.append(shown)
    for path in section.figures:
        caption = (
            path.with_suffix(".txt").read_text(encoding="utf-8").strip() if path.with_suffix(".txt").is_file() else ""
        )
        data = base64.b64encode(path.read_bytes()).decode()
        parts.append(
            f'<figure class="apm-figure"><img src="data:image/png;base64,{data}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    names = ", ".join(p.stem for p in (*section.tables, *section.figures))
    return Shown("\n".join([*parts, "</div>"]), f"{section.title}: {names}")


def provenance(folder: Path) -> pd.DataFrame:
    """Where the records of a profile come from: one row per dataset, method and seed, over all shards.

    Columns: dataset, method, seed, conditions, predictions, shards, commit, device, machine, python, torch, open_clip.
    Raises FileNotFoundError when there are no records.
    """
    shards = records.provenance_table(folder)
    by = ["dataset", "method", "seed"]
    same = ["commit", "device", "machine", "python", "torch", "open_clip_torch"]
    groups = shards.groupby(by, sort=True, dropna=False)
    table = groups.agg(
        conditions=("corruption", lambda c: len(set(zip(c, shards.loc[c.index, "severity"], strict=True)))),
        predictions=("n", "sum"),
        shards=("shard", "size"),
        **{name: (name, lambda values: ", ".join(sorted(set(map(str, values))))) for name in same if name in shards},
    )
    return table.reset_index()

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
from PIL import Image

from apm import records, tables
from apm.project import root
from apm.tables import Shown

LONG = 25  # rows from which a table is folded away
MEDIA = {".png": "image/png", ".gif": "image/gif"}

# The paper's tables and figures, and where each is done again.
PAPER = (
    ("Table 1", "natural distribution shifts", "01_natural_shifts"),
    ("Table 2, Tables 11 to 14", "ImageNet-C at severity 5, and 1 to 4", "02_corruptions"),
    ("Table 3", "cross-dataset generalisation", "03_cross_dataset"),
    ("Table 4, Figure 2", "parameters, GFLOPs, memory, time", "04_compute"),
    ("Table 5a", "other students: MLP, ResNets", "05_ablations"),
    ("Table 5b, section 6", "losses, local patch, routed tokens, kernels", "05_ablations"),
    ("Section 4", "augmentation during test-time training", "05_ablations"),
    ("Tables 8, 9", "iterations, size of the student", "05_ablations"),
    ("Table 10", "CIFAR-10-C", "02_corruptions"),
    ("Figures 1, 3, 5 (top), 7, 8", "one image; islands of agreement over the iterations", "06_islands"),
    ("Figures 4, 5 (rest), 6, App. F", "dataset scale: features, decoded colours, interpolation", "07_field"),
    ("Abstract", "the claims", "08_claims_audit"),
)

STYLE = """<style>
  html { scroll-behavior: smooth; scroll-padding-top: 1em; }
  .apm-nav { line-height: 1.9; }
  .apm-nav a { display: inline-block; margin-right: 1.2em; }
  .apm-section { border-top: 1px solid #ccc; margin-top: 2.5em; padding-top: .5em; }
  .apm-figure { margin: 1.5em 0; break-inside: avoid; }
  .apm-figure img { max-width: 100%; height: auto; }
  .apm-figure figcaption { color: #444; font-size: 90%; max-width: 60em; }
  .apm-section details { margin: 1em 0; }
  .apm-section summary { cursor: pointer; }
  .apm-up { font-size: 85%; }
  @media screen and (min-width: 1500px) {
    body.jp-Notebook, body main { margin-left: 0; }
    .apm-nav { position: fixed; top: 0; left: 0; bottom: 0; width: 15em; overflow: auto; padding: 1.5em 1em; margin: 0;
               background: #fafafa; border-right: 1px solid #ddd; font-size: 90%; z-index: 2; }
    .apm-nav a { display: block; margin: 0 0 .6em; line-height: 1.35; }
    body { padding-left: 17em !important; max-width: 88em; }
  }
  @media print {
    .apm-nav, .apm-up { display: none; }
    .apm-section { break-before: page; border: 0; margin-top: 0; }
    table, tr { break-inside: avoid; }
    details::details-content { content-visibility: visible; }
    details > *:not(summary) { display: block; }
    a { color: inherit; text-decoration: none; }
  }
</style>"""


@dataclass(frozen=True)
class Section:
    """What one notebook left."""

    notebook: str  # "02_corruptions"
    title: str  # first heading of the notebook
    question: str  # its paragraph that begins with **Question.**
    tables: tuple[Path, ...]  # CSV files, in the order in which the notebook makes them
    figures: tuple[Path, ...]  # PNG and GIF files, likewise


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
            tuple(sorted((p for end in ends for p in (folder / kind).glob(f"{prefix}{end}")), key=place))
            for kind, ends in (("tables", (".csv",)), ("figures", tuple(MEDIA)))
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
    """Links to the sections: beside the page where it is wide, on top where it is not."""
    links = [("summary", "In short"), *((s.notebook, s.title) for s in found)]
    links += [("paper", "Paper to notebook"), ("times", "Time"), ("provenance", "Provenance")]
    shown = " ".join(f'<a href="#{target}">{html.escape(text)}</a>' for target, text in links)
    return Shown(f'{STYLE}<nav class="apm-nav" id="contents">{shown}</nav>', "\n".join(text for _, text in links))


BENCHMARKS = (  # heading, table, column of the mean
    ("natural shifts (shifted sets)", "01_natural_shifts", "OOD Average"),
    ("corruptions", "02_corruptions", "Mean"),
    ("cross-dataset", "03_cross_dataset", "Average"),
)


def in_short(folder: Path) -> pd.DataFrame:
    """The headline: per benchmark the mean accuracy of teacher, final and any, and final - teacher; text with intervals.

    Read from the tables of 01, 02 and 03; benchmarks that have not been run are left out. Raises FileNotFoundError when none
    has.
    """
    rows = []
    for name, table, column in BENCHMARKS:
        path = folder / "tables" / f"{table}.csv"
        if not path.is_file():
            continue
        cells = pd.read_csv(path, dtype=str, keep_default_na=False).set_index(["method", "counting rule"])[column]
        rows.append(
            {
                "benchmark": name,
                "teacher, zero-shot": cells["teacher", "zero-shot"],
                "APM, final": cells["APM", "final"],
                "final - teacher": cells["APM", tables.DIFFERENCE],
                "any (upper bound, uses labels)": cells["APM", tables.HEADERS["any"]],
                "notebook": table,
            }
        )
    if not rows:
        raise FileNotFoundError(
            f"no benchmark tables in {folder / 'tables'}: run the notebooks first, `make reproduce`"
        )
    return pd.DataFrame(rows)


def methods_in_short(folder: Path) -> pd.DataFrame:
    """Every method of the comparisons in 01, 02 and 03: its difference from the teacher in each, state and teacher passes.

    Text with intervals; empty where a notebook did not run a method. An empty frame where no comparison has been run.
    """
    found: dict[str, dict[str, str]] = {}
    for name, table, _ in BENCHMARKS:
        path = folder / "tables" / f"{table.split('_')[0]}_methods.csv"
        if not path.is_file():
            continue
        for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
            line = found.setdefault(
                row["method"],
                {"method": row["method"], "state": row["state"], "teacher passes": row["teacher passes"]},
            )
            line[f"{name.split(' (')[0]}: difference from teacher"] = row["difference from teacher"]
    return pd.DataFrame(list(found.values())).fillna("")


def paper_map(found: list[Section]) -> Shown:
    """The paper's tables and figures with links to the sections that do them again; plain text where a notebook has not run."""
    known = {section.notebook: section.title for section in found}
    rows = [
        f"<tr><td>{html.escape(item)}</td><td>{html.escape(what)}</td><td>"
        + (
            f'<a href="#{notebook}">{html.escape(known[notebook])}</a>'
            if notebook in known
            else f"{notebook} (not run)"
        )
        + "</td></tr>"
        for item, what, notebook in PAPER
    ]
    head = "<tr><th>paper</th><th>what</th><th>here</th></tr>"
    return Shown(
        f'<table class="apm-paper"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>',
        "\n".join(f"{item}: {notebook}" for item, _, notebook in PAPER),
    )


def times(folder: Path, notebooks: list[str]) -> pd.DataFrame:
    """How long the last run of each notebook took, in seconds, and their sum: columns notebook, seconds.

    From records/times.json, which `apm.run` keeps; notebooks without an entry are left out, and without the file the table is
    one row that says so.
    """
    path = folder / "records" / "times.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    rows = [{"notebook": name, "seconds": f"{known[name]:.0f}"} for name in notebooks if name in known]
    if not rows:
        return pd.DataFrame([{"notebook": "not measured in this folder", "seconds": ""}])
    total = sum(known[name] for name in notebooks if name in known)
    return pd.DataFrame([*rows, {"notebook": "together", "seconds": f"{total:.0f}"}])


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
            f'<figure class="apm-figure"><img style="width: {_width(path)}px" '
            f'src="data:{MEDIA[path.suffix]};base64,{data}" alt="{html.escape(caption)}">'
            f"<figcaption>{html.escape(caption)}</figcaption></figure>"
        )
    names = ", ".join(p.stem for p in (*section.tables, *section.figures))
    parts.append('<p class="apm-up"><a href="#contents">Contents</a></p>')
    return Shown("\n".join([*parts, "</div>"]), f"{section.title}: {names}")


def _width(path: Path) -> int:
    """Width of a figure on the page, in CSS pixels: as in a notebook, where a figure's inch has about 100 of them."""
    with Image.open(path) as image:
        dpi = float(image.info.get("dpi", (100.0, 100.0))[0])
        return round(image.width * 100.0 / dpi)


def verdicts(folder: Path) -> pd.DataFrame:
    """The claims audit in short: columns claim, figure, verdict. Raises FileNotFoundError where the audit has not been run."""
    path = folder / "tables" / "08_claims.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run `make reproduce ONLY=08_claims_audit`")
    return pd.read_csv(path, dtype=str, keep_default_na=False)[["claim", "figure", "verdict"]]


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

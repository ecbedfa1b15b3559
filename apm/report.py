"""The report page: every table and figure that the notebooks of a profile left, with captions and provenance.

`99_report` shows it; `apm.run` exports that notebook as results/<profile>/report.html, one page without anything loaded from
elsewhere.
"""

from __future__ import annotations

import base64
import html
import json
import re
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
from PIL import Image

from apm import profiles, records, tables, text
from apm.project import root
from apm.tables import Shown

LONG = 25  # rows from which a table is folded away
MEDIA = {".png": "image/png", ".gif": "image/gif"}

# The paper's tables and figures, and the notebook that does each again; without one, why there is none.
PAPER = (
    ("Abstract", "the claims", "08_claims_audit"),
    ("Section 3, Figure 1", "the machine, step by step on one image", "00_quickstart"),
    ("Table 1", "natural distribution shifts", "01_natural_shifts"),
    ("Table 2", "ImageNet-C at severity 5", "02_corruptions"),
    ("Table 3", "cross-dataset generalisation", "03_cross_dataset"),
    ("Section 4", "augmentation during test-time training", "05_ablations"),
    ("Table 4", "GFLOPs and memory of 20 iterations", "04_compute"),
    ("Table 5a", "other students: MLP, ResNets", "05_ablations"),
    ("Section 6, Table 5b", "losses, local patch, routed tokens, kernels", "05_ablations"),
    ("Table 6", "an image in the paper, which gives no text: its settings (image size, grid) are unknown", ""),
    ("Table 7", "an image in the paper, which gives no text: its settings (optimiser, rate) are unknown", ""),
    ("Table 8", "iterations", "05_ablations"),
    ("Table 9", "size of the student", "05_ablations"),
    ("Table 10", "CIFAR-10-C", "02_corruptions"),
    ("Tables 11, 12, 13, 14", "ImageNet-C at severities 1 to 4", "02_corruptions"),
    ("Figure 2", "GFLOPs and time against the patches processed at a time", "04_compute"),
    ("Figure 3", "islands of agreement and the loss over 250 iterations", "06_islands"),
    ("Figure 4", "colours decoded from the trigger column", "07_field"),
    ("Figure 5, top", "features of one image as colour", "06_islands"),
    ("Figure 5, rest", "the teacher's grid beside the student's, error map", "07_field"),
    ("Figure 6", "classes apart in one forward pass", "07_field"),
    ("Figure 7", "islands on CIFAR and COCO, here on the images of the profile", "06_islands"),
    ("Figure 8", "islands on CIFAR and COCO, here on the images of the profile", "06_islands"),
    ("Interpolation", "interpolating the trigger column of two images", "07_field"),
    ("App. C", "when to stop; left open in the paper, here the accuracy after every iteration", "05_ablations"),
    ("App. E.1", "colours with one kernel and with more", "07_field"),
    ("App. F", "reconstruction without a teacher", "07_field"),
)

STYLE = """<style>
  html { scroll-behavior: smooth; scroll-padding-top: 1em; }
  .apm-lead { font-size: 115%; line-height: 1.5; max-width: 56em; margin: .4em 0; }
  .apm-about { color: #444; max-width: 66em; }
  .apm-nav { line-height: 1.9; }
  .apm-nav a { display: inline-block; margin-right: 1.2em; }
  .apm-section { border-top: 1px solid #ccc; margin-top: 2.5em; padding-top: .5em; }
  .apm-figure { margin: 1.5em 0; break-inside: avoid; }
  .apm-figure img { max-width: 100%; height: auto; }
  .apm-figure figcaption { color: #444; font-size: 90%; max-width: 60em; }
  .apm-section details { margin: 1em 0; }
  .apm-section summary { cursor: pointer; }
  .apm-up { font-size: 85%; }
  .apm-paper th, .apm-paper td { text-align: left !important; vertical-align: top; }
  /* a shadow at the side where there is more of a wide table or figure; a cover that scrolls along hides it at the end */
  .apm-scroll {
    overflow-x: auto;
    background:
      linear-gradient(to right, #fff 40%, rgba(255, 255, 255, 0)) left / 2.5em 100% no-repeat local,
      linear-gradient(to left, #fff 40%, rgba(255, 255, 255, 0)) right / 2.5em 100% no-repeat local,
      linear-gradient(to right, rgba(0, 0, 0, .28), rgba(0, 0, 0, 0)) left / 1em 100% no-repeat scroll,
      linear-gradient(to left, rgba(0, 0, 0, .28), rgba(0, 0, 0, 0)) right / 1em 100% no-repeat scroll;
  }
  .apm-scroll table tr, .apm-scroll table tr:hover { background: none !important; }
  @media screen and (max-width: 700px) {
    body.jp-Notebook, body main { padding: 0 .4em; margin: 0; }
    .jp-OutputPrompt, .jp-InputPrompt, .jp-Collapser { display: none !important; }
    .jp-Cell { padding-left: 0; padding-right: 0; }
    h1 { font-size: 150% !important; }
    .apm-scroll thead th:first-child, .apm-scroll tbody td:first-child {
      position: sticky; left: 0; background: #fff; box-shadow: 1px 0 0 #ccc; z-index: 1;
      white-space: normal !important; min-width: 8.5em !important; max-width: 10em; overflow-wrap: break-word;
    }
    .apm-scroll td { white-space: normal !important; min-width: 5.5em; }
    .apm-figure img { width: 100% !important; max-width: var(--width); min-width: calc(.6 * var(--width)); }
  }
  @media screen and (min-width: 1500px) {
    body.jp-Notebook, body main { margin-left: 0; }
    .apm-nav { position: fixed; top: 0; left: 0; bottom: 0; width: 15em; overflow: auto; padding: 1.5em 1em; margin: 0;
               background: #fafafa; border-right: 1px solid #ddd; font-size: 90%; z-index: 2; }
    .apm-nav a { display: block; margin: 0 0 .6em; line-height: 1.35; }
    body { padding-left: 17em !important; max-width: 88em; }
  }
  @page { size: A4 landscape; margin: 12mm; }
  @media print {
    .apm-nav, .apm-up, .jp-OutputPrompt, .jp-InputPrompt, .jp-Collapser { display: none !important; }
    /* boxes of flexible height are not divided between pages */
    body, main, .jp-Cell, .jp-Cell-outputWrapper, .jp-Cell-outputArea, .jp-OutputArea, .jp-OutputArea-child,
    .jp-OutputArea-output, .jp-Cell-inputWrapper, .jp-InputArea, .jp-RenderedHTMLCommon {
      display: block !important; overflow: visible !important; padding: 0 !important; margin: 0 !important;
      width: auto !important; max-width: none !important;
    }
    .apm-section { border: 0; margin-top: 0; }
    .apm-section:not(:first-child), .jp-OutputArea-child + .jp-OutputArea-child .apm-section { break-before: page; }
    h1, h2, h3, summary, .apm-table figcaption { break-after: avoid; }
    figure, .apm-table { margin: 6pt 0 !important; break-inside: auto; }
    .apm-scroll { overflow: visible !important; background: none; }
    .apm-table p { font-size: 7.5pt !important; max-width: none !important; }
    .apm-scroll table { font-size: 7.5pt !important; max-width: 100%; }
    .apm-scroll th, .apm-scroll td {
      white-space: normal !important; min-width: 2.5em !important; padding: 1pt 3pt !important; font-size: 7.5pt !important;
    }
    thead { display: table-header-group; }
    thead { break-after: avoid; }
    tbody tr:first-child { break-before: avoid; }
    tr { break-inside: avoid; height: auto !important; }
    .apm-figure { break-inside: avoid; }
    .apm-figure img { max-height: 125mm; width: auto !important; max-width: min(100%, var(--width)); }
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
    parts: tuple[Path, ...]  # tables (CSV) and figures (PNG, GIF), in the order in which the notebook makes them

    @property
    def tables(self) -> tuple[Path, ...]:
        return tuple(path for path in self.parts if path.suffix == ".csv")

    @property
    def figures(self) -> tuple[Path, ...]:
        return tuple(path for path in self.parts if path.suffix in MEDIA)


def sections(folder: Path, notebooks: list[str]) -> list[Section]:
    """One section per notebook that left a table or a figure in a profile's results folder.

    Raises FileNotFoundError when none did.
    """
    found = []
    for notebook in notebooks:
        prefix = f"{notebook.split('_')[0]}_*"
        source = (root() / "notebooks" / f"{notebook}.ipynb").read_text(encoding="utf-8")
        patterns = [f"tables/{prefix}.csv", *(f"figures/{prefix}{end}" for end in MEDIA)]
        left = [path for pattern in patterns for path in folder.glob(pattern)]
        if left:
            title, question = _heading(root() / "notebooks" / f"{notebook}.ipynb")
            left.sort(key=lambda path: (_place(path.stem, source), path.suffix == ".csv", path.name))
            found.append(Section(notebook, title, question, tuple(left)))
    if not found:
        raise FileNotFoundError(f"no tables and no figures in {folder}: run the notebooks first, `make reproduce`")
    return found


def _place(stem: str, source: str) -> int:
    """Where a notebook makes a file: its name in quotes, or the beginning of one that is put together ("00_photo_")."""
    while stem:
        if named := re.search(rf'["/]{re.escape(stem)}(?:\W|_\{{)', source):
            return named.start()
        stem = stem.rpartition("_")[0]
    return len(source)


def _heading(path: Path) -> tuple[str, str]:
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    text = next("".join(c["source"]) for c in cells if c["cell_type"] == "markdown")
    title = text.splitlines()[0].lstrip("# ").strip()
    paragraphs = [" ".join(p.split()) for p in text.split("\n\n")]
    question = next((p.removeprefix("**Question.**").strip() for p in paragraphs if p.startswith("**Question.**")), "")
    return title, question.replace("*", "").replace("`", "")  # shown as plain text


def navigation(found: list[Section]) -> Shown:
    """Links to the sections: beside the page where it is wide, on top where it is not."""
    links = [("summary", "In short"), *((s.notebook, s.title) for s in found)]
    links += [("paper", "Paper to notebook"), ("times", "Time"), ("provenance", "Provenance")]
    shown = " ".join(f'<a href="#{target}">{html.escape(text)}</a>' for target, text in links)
    return Shown(f'<nav class="apm-nav" id="contents">{shown}</nav>', "\n".join(text for _, text in links))


BENCHMARKS = (  # heading, table, column of the mean
    ("natural shifts, shifted sets", "01_natural_shifts", "OOD Average"),
    ("natural shifts, all sets", "01_natural_shifts", "Average"),
    ("corruptions", "02_corruptions", "Mean"),
    ("cross-dataset", "03_cross_dataset", "Average"),
)
COMPARISONS = (  # heading, table of the methods, whose means are over all sets
    ("natural shifts, all sets", "01_methods"),
    ("corruptions", "02_methods"),
    ("cross-dataset", "03_methods"),
)
GAIN = "final - teacher (points)"
SYMBOLS = {text.HOLDS: "\N{CHECK MARK}", text.FAILS: "\N{MULTIPLICATION SIGN}", text.UNTESTED: "?"}


def headline(folder: Path, profile: str) -> Shown:
    """The finding in two sentences, and what it rests on: profile, teacher, images, commit. All of it computed.

    From the tables of 01, 02, 03 and 08 and the records of a profile's results folder. Raises FileNotFoundError where no
    benchmark or no audit has been run.
    """
    short = in_short(folder)
    gains = [f"{row['benchmark']} {row[GAIN]}" for row in short.to_dict("records")]
    bounds = short[GAIN].str.extract(r"\[(\S+), (\S+)\]").astype(float)
    above, below = int((bounds[0] > 0).sum()), int((bounds[1] < 0).sum())
    counts = Counter(audited(folder)["verdict"])
    verdicts = ", ".join(
        f"{SYMBOLS.get(verdict, '')} {verdict}: {counts[verdict]}" for verdict in sorted(counts, key=_rank)
    )
    sentences = (
        f"The student's score (final) minus its teacher's, in points, with 95 % interval: {'; '.join(gains)}. The interval "
        f"excludes 0 in {above + below} of these {len(short)} means ({above} above, {below} below).",
        f"Of the {counts.total()} claims of the abstract: {verdicts}.",
    )
    about = [f"profile {profile}", f"teacher {_teacher(profile, short['notebook'].iloc[0])}"]
    for table in dict.fromkeys(short["notebook"]):
        n = re.match(r"n = [^.]+", tables.read(folder / "tables" / table)[2])
        about += [f"{table}: {n.group()}"] if n else []
    about.append(f"commit {_commits(folder / 'records')}")
    shown = "".join(f'<p class="apm-lead">{html.escape(sentence)}</p>' for sentence in sentences)
    shown += f'<p class="apm-about">{html.escape(" · ".join(about))}</p>'
    return Shown(f"{STYLE}{shown}", "\n".join([*sentences, " · ".join(about)]))


def _rank(verdict: str) -> int:
    return [*SYMBOLS, verdict].index(verdict)


def _teacher(profile: str, notebook: str) -> str:
    parameters = profiles.load(profile, notebook)
    weights = parameters.get("pretrained")
    return f"{parameters['teacher']}, {Path(weights).name}" if weights else str(parameters["teacher"])


def _commits(folder: Path) -> str:
    """The commits whose code made the records, shortened."""
    try:
        return _joined(current_shards(folder)["commit"])
    except FileNotFoundError:
        return "unknown: no records here"


def in_short(folder: Path) -> pd.DataFrame:
    """Per benchmark the mean accuracy of teacher, final and any, and final - teacher in points; text with intervals.

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
                GAIN: cells["APM", tables.DIFFERENCE],
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
    for name, table in COMPARISONS:
        path = folder / "tables" / f"{table}.csv"
        if not path.is_file():
            continue
        for row in pd.read_csv(path, dtype=str, keep_default_na=False).to_dict("records"):
            line = found.setdefault(
                row["method"],
                {"method": row["method"], "state": row["state"], "teacher passes": row["teacher passes"]},
            )
            line[f"{name}: method - teacher (points)"] = row["difference from teacher"]
    return pd.DataFrame(list(found.values())).fillna("")


def paper_map(found: list[Section]) -> Shown:
    """The paper's tables and figures with links to the sections that do them again; plain text where a notebook has not run."""
    known = {section.notebook: section.title for section in found}

    def here(notebook: str) -> str:
        if notebook in known:
            return f'<a href="#{notebook}">{html.escape(known[notebook])}</a>'
        return f"{notebook} (not run)" if notebook else "none"

    rows = [
        f"<tr><td>{html.escape(item)}</td><td>{html.escape(what)}</td><td>{here(notebook)}</td></tr>"
        for item, what, notebook in PAPER
    ]
    head = "<tr><th>paper</th><th>what</th><th>here</th></tr>"
    return Shown(
        f'<table class="apm-paper"><thead>{head}</thead><tbody>{"".join(rows)}</tbody></table>',
        "\n".join(f"{item}: {notebook or what}" for item, what, notebook in PAPER),
    )


def times(folder: Path, notebooks: list[str]) -> pd.DataFrame:
    """How long the last and the longest run of each notebook took, in seconds, and their sums.

    From records/times.json, which `apm.run` keeps; notebooks without an entry are left out, and without the file the table is
    one row that says so.
    """
    path = folder / "records" / "times.json"
    known = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    measured = [name for name in notebooks if name in known]
    columns = {"longest": "longest run (s)", "last": "last run (s)"}
    if not measured:
        return pd.DataFrame([{"notebook": "not measured in this folder", **dict.fromkeys(columns.values(), "")}])
    lines = {name: known[name] for name in measured}
    lines["together"] = {which: sum(known[name][which] for name in measured) for which in columns}
    return pd.DataFrame(
        {"notebook": name, **{title: f"{line[which]:.0f}" for which, title in columns.items()}}
        for name, line in lines.items()
    )


def emphasis(row: pd.Series) -> bool | tuple[str, ...]:
    """What stands out in a row of a table of results: scores and means as a whole, of a verdict only its cell."""
    if "verdict" in row:
        return ("verdict",)
    if "agrees" in row:
        return ("agrees",) if row["agrees"] == "no" else False
    if "counting rule" in row:
        return bool(row["counting rule"] == "final")
    if "condition" in row:  # a turned table: means at the end
        mean = str(row["condition"]).lower() in ("mean", "average", "ood average")
        return mean or tuple(str(name) for name in row.index if str(name).endswith("· final"))
    return str(row.iloc[0]) == "APM" or ("row" in row and str(row["row"]).startswith(("APM", "final")))


def show(section: Section) -> Shown:
    """One section: question, then tables and figures with their captions in the notebook's order. Long tables are folded away.

    Links to notebooks are as seen from the executed report, which lies beside them.
    """
    blocks = [
        f'<div class="apm-section" id="{section.notebook}"><h2>{html.escape(section.title)}</h2>',
        f'<p>{html.escape(section.question)} <a href="{section.notebook}.ipynb">Executed notebook</a></p>',
        *(_table(path) if path.suffix == ".csv" else _figure(path) for path in section.parts),
        '<p class="apm-up"><a href="#contents">Contents</a></p>',
        "</div>",
    ]
    return Shown("\n".join(blocks), f"{section.title}: {', '.join(path.stem for path in section.parts)}")


def _table(path: Path) -> str:
    table, caption, footer = tables.read(path)
    shown = tables.show(tables.upright(table), caption, footer, bold=emphasis)._repr_html_()
    if len(table) > LONG:
        return f"<details><summary>{html.escape(caption)} ({len(table)} rows)</summary>{shown}</details>"
    return shown


def _figure(path: Path) -> str:
    text = path.with_suffix(".txt")
    caption = html.escape(text.read_text(encoding="utf-8").strip() if text.is_file() else "")
    data = base64.b64encode(path.read_bytes()).decode()
    width = _width(path)
    return (
        f'<figure class="apm-figure"><div class="apm-scroll"><img style="width: {width}px; --width: {width}px" '
        f'src="data:{MEDIA[path.suffix]};base64,{data}" alt="{caption}"></div><figcaption>{caption}</figcaption></figure>'
    )


def _width(path: Path) -> int:
    """Width of a figure on the page, in CSS pixels: as in a notebook, where a figure's inch has about 100 of them."""
    with Image.open(path) as image:
        dpi = float(image.info.get("dpi", (100.0, 100.0))[0])
        return round(image.width * 100.0 / dpi)


def audited(folder: Path) -> pd.DataFrame:
    """The claims audit as text: columns claim, verdict, figure. Raises FileNotFoundError where the audit has not been run."""
    path = folder / "tables" / "08_claims.csv"
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist: run `make reproduce ONLY=08_claims_audit`")
    return pd.read_csv(path, dtype=str, keep_default_na=False)[["claim", "verdict", "figure"]]


def verdicts(folder: Path) -> pd.DataFrame:
    """The claims audit in short, each verdict with a symbol before its words. Raises FileNotFoundError as `audited` does."""
    claims = audited(folder)
    return claims.assign(verdict=[f"{SYMBOLS.get(verdict, '')} {verdict}".strip() for verdict in claims["verdict"]])


def current_shards(folder: Path) -> pd.DataFrame:
    """`records.provenance_table` without the shards of code that has changed since. Raises FileNotFoundError for no records."""
    current = {
        meta["key"][:16]
        for meta in map(records._metadata, records._shard_files(folder))
        if meta["code"] == records._current_code(meta)
    }
    shards = records.provenance_table(folder)
    return shards[shards["shard"].isin(current)].reset_index(drop=True)


def provenance(folder: Path) -> Shown:
    """Where the records of a profile come from: what all share in a sentence, then, folded, a row per dataset, method and seed.

    Columns: dataset, method, seed, conditions, predictions, shards. Shards that other code made, which no table can use, are
    counted apart. Raises FileNotFoundError when there are no records of the present code.
    """
    shards = current_shards(folder)
    if shards.empty:
        raise FileNotFoundError(
            f"no records of the present code in {folder}: run the notebooks first, `make reproduce`"
        )
    old = len(records.provenance_table(folder)) - len(shards)
    by = ["dataset", "method", "seed"]
    table = shards.groupby(by, sort=True, dropna=False).agg(
        conditions=("corruption", lambda c: len(set(zip(c, shards.loc[c.index, "severity"], strict=True)))),
        predictions=("n", "sum"),
        shards=("shard", "size"),
    )
    same = {"commit": "commit", "machine": "machine", "device": "device", "python": "Python"}
    same |= {"torch": "torch", "open_clip_torch": "open_clip"}
    facts = [f"{label} {_joined(shards[name])}" for name, label in same.items() if name in shards]
    text = f"{len(shards)} record shards, {int(shards['n'].sum())} predictions: {'; '.join(facts)}."
    if old:
        text += f" Left out: {old} shards of other code, which no table can use."
    shown = tables.show(table.reset_index(), "Records by dataset, method and seed")
    return Shown(
        f'<p>{html.escape(text)}</p><details class="apm-records"><summary>Records by dataset, method and seed '
        f"({len(table)} rows)</summary>{shown._repr_html_()}</details>",
        f"{text}\n\n{shown!r}",
    )


def _joined(values: pd.Series) -> str:
    """The different values of a column, hashes shortened as git does."""
    return ", ".join(sorted({re.sub(r"\b([0-9a-f]{7})[0-9a-f]{33}\b", r"\1", str(value)) for value in values}))

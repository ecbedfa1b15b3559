"""The report page: every table and figure that the notebooks of a profile published, with captions and provenance.

Tables stand in it as they were shown; figures are the files beside it.
"""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

import jinja2
import pandas as pd
import yaml

from apm import project
from apm.analysis import figures, numbers, stats, tables, verify
from apm.analysis.numbers import NoSuchNumber
from apm.analysis.text import FAILS, HOLDS, UNTESTED
from apm.project import manifest, profiles, run
from apm.runs import records

LONG = 25  # rows from which a table is folded away
TEMPLATE = Path(__file__).with_name("report.html.j2")
FIRST = ("00_islands", "02_photographs")  # what natural images show stands before all else
BENCHMARKS = (  # heading, table, column of the mean
    ("photographs, corruptions", "02_photographs", "Mean"),
    ("natural shifts, shifted sets", "01_natural_shifts", "OOD Average"),
    ("natural shifts, all sets", "01_natural_shifts", "Average"),
    ("corruptions", "02_corruptions", "Mean"),
    ("cross-dataset", "03_cross_dataset", "Average"),
)
GAIN = "final - teacher (points)"
ROWS = {  # heading here: row of the benchmarks' tables
    "teacher, zero-shot": f"teacher{numbers.SEPARATOR}zero-shot",
    "APM, final": f"APM{numbers.SEPARATOR}final",
    GAIN: f"APM{numbers.SEPARATOR}{stats.DIFFERENCE}",
    "any (upper bound, uses labels)": f"APM{numbers.SEPARATOR}{tables.RULE_LABELS['any']}",
}
CLAIMS = ("08_claims", "08_text")
SYMBOLS = {HOLDS: "\N{CHECK MARK}", FAILS: "\N{MULTIPLICATION SIGN}", UNTESTED: "?"}


def index() -> dict[str, Any]:
    """notebooks/index.yaml: {"notebooks": {name: {title, question}}, "paper": [{item, what, notebook}]}."""
    return yaml.safe_load((project.root() / "notebooks" / "index.yaml").read_text(encoding="utf-8"))


def in_short(rows: pd.DataFrame) -> pd.DataFrame:
    """Per benchmark that has been run the mean accuracy of teacher, final and any, final - teacher in points, and its verdict."""
    lines = {}
    for name, table, column in BENCHMARKS:
        with contextlib.suppress(NoSuchNumber):
            lines[name] = {heading: numbers.find(rows, table, row, column) for heading, row in ROWS.items()}
    found = pd.DataFrame.from_dict(lines, orient="index", columns=list(ROWS)).rename_axis("benchmark")
    return found.assign(verdict=found[GAIN].map(numbers.verdict))


def claims(rows: pd.DataFrame) -> pd.DataFrame:
    """The audit's verdicts, in its order; empty where it has not run."""
    there = rows[rows["table"].isin(CLAIMS)].set_index(["table", "row"])
    columns = {name: there.loc[there["column"] == name, "text"] for name in ("verdict", "counted as")}
    return pd.DataFrame(columns).reset_index("row").rename(columns={"row": "claim"}).reset_index(drop=True)


def _verified(profile: str) -> str:
    try:
        found = verify.summary(verify.judge(profile, made=True)[0])
        return f"Held against the expected numbers of this profile: {found}."
    except FileNotFoundError:
        return "No expected numbers are kept for this profile, so these were not held against any."


def _part(folder: Path, entry: dict[str, Any]) -> dict[str, Any]:
    """What the template needs of one table or figure."""
    files = {Path(file).suffix: file for file in entry["files"]}
    if entry["kind"] == "table":
        page = (folder / files[".html"]).read_text(encoding="utf-8")
        return entry | {"html": page, "long": entry["rows"] > LONG}
    file = files.get(".gif") or files[".png"]
    return entry | {"file": file, "width": figures.page_width(folder / file)}


def times(folder: Path, notebooks: list[str]) -> pd.DataFrame:
    """How long the last and the longest run of each notebook took, in seconds, and their sums; empty where nothing was measured."""
    known = run.times(folder)
    rows = {name: known[name] for name in notebooks if name in known}
    table = pd.DataFrame(rows, ["longest", "last"]).T.add_suffix(" run (s)").rename_axis("notebook")
    if rows:
        table.loc["together"] = table.sum()
    return table.round().astype(int)


def origins(folder: Path) -> tuple[pd.DataFrame, pd.DataFrame, list[str]]:
    """Of the records that the present code made: what made them, what they are about, and remarks on the images. Empty for none."""
    try:
        shards = records.provenance_table(folder)
    except FileNotFoundError:
        return pd.DataFrame(), pd.DataFrame(), []
    shards = shards[shards["current"]].fillna("")
    made_by = [name for name in ("commit", "machine", "device", "python", "torch", "open_clip_torch") if name in shards]
    count = {"shards": ("shard", "size"), "predictions": ("n", "sum")}
    parts = (shards.groupby(by).agg(**count) for by in (made_by, ["dataset", "method", "seed"]))
    return *parts, sorted(set(shards["remark"]) - {""})


def _shown(frame: pd.DataFrame, caption: str) -> str:
    return tables.show(frame, caption).html if len(frame) else ""


def write(profile: str) -> Path:
    """Make results/<profile>/report.html, or report.by-hand.html where the notebook is run by hand; returns its path.

    Raises FileNotFoundError when no notebook has published anything, ValueError for an unknown profile or a damaged manifest.
    """
    known, folder = index(), project.results_dir(profile)
    wanted = profiles.runs(profile)
    made = {name: part["entries"] for name, part in manifest.read(folder)["notebooks"].items() if name in wanted}
    rows = numbers.read(folder)
    sections = [
        {"notebook": name, "title": name, "question": "", **known["notebooks"].get(name, {})}
        | {"parts": [_part(folder, entry) for entry in entries]}
        for name, entries in made.items()
        if entries
    ]
    if not sections:
        raise FileNotFoundError(f"nothing is published in {folder}: run the notebooks first, `make reproduce`")
    made_by, about_what, remarks = origins(folder / "records")
    audited = claims(rows)
    audited["verdict"] = [f"{SYMBOLS.get(v, '')} {v}".strip() for v in audited["verdict"]]
    settings = [profiles.load(profile, section["notebook"]) for section in sections]
    named = [(own["teacher"], Path(own.get("pretrained") or "").name) for own in settings if own.get("teacher")]
    taught = " and ".join(f"{name} ({weights})" if weights else name for name, weights in dict.fromkeys(named))
    about = [f"profile {profile}", f"teacher {taught}", *(f"images: {remark}" for remark in remarks)]
    options: dict[str, Any] = {"trim_blocks": True, "lstrip_blocks": True, "undefined": jinja2.StrictUndefined}
    template = jinja2.Environment(autoescape=True, **options).from_string(TEMPLATE.read_text(encoding="utf-8"))
    page = template.render(
        profile=profile,
        verified=_verified(profile),
        about=about,
        sections=sections,
        first=[part for section in sections for part in section["parts"] if part["name"] in FIRST],
        made=set(made),
        index=known["notebooks"],
        paper=[{"notebook": "", **row} for row in known["paper"]],
        short=_shown(in_short(rows), f"Student and teacher, profile {profile}"),
        claims=_shown(audited, f"Claims of the paper, profile {profile}; rule, figure and source stand in section 08"),
        times=_shown(times(folder, wanted), f"How long the notebooks took, profile {profile}"),
        made_by=_shown(made_by, "What made the records") or "No records of the present code here.",
        records=_shown(about_what, "Records by dataset, method and seed"),
    )
    name = ".".join(filter(None, ("report", project.paths.by_hand(), "html")))
    return project.atomic_write(folder / name, page + "\n")

"""The paper's numbers, and those it is compared with, from `data/published/*.csv`. The only source of published numbers.

A value nobody found is empty, never guessed. Every row says where its value was read.
"""

from __future__ import annotations

from typing import Any

import pandas as pd

from apm import project

COLUMNS = ["table", "row", "column", "value", "unit", "source"]
_OTHERS = project.facts(__file__)
OPEN_CLIP: dict[str, dict[str, Any]] = _OTHERS.pop(
    "open_clip"
)  # sets on which a CLIP can be held against open_clip's list
OTHERS_NOTES: dict[str, str] = {benchmark: found["note"] for benchmark, found in _OTHERS.items()}


def load(name: str) -> pd.DataFrame:
    """One file of published numbers, one row per value.

    name: the file's stem, or a beginning that fits one file only, such as "table1".
    Returns columns table, row, column, value (float; NaN where the source gives no plain number), text (the value as
    written), unit, source.

    Raises ValueError for an unknown or ambiguous name, for other columns than expected, and for a number without a source;
    FileNotFoundError when there are no files.
    """
    folder = project.root() / "data" / "published"
    known = sorted(path.stem for path in folder.glob("*.csv"))
    if not known:
        raise FileNotFoundError(f"no published tables (*.csv) in {folder}: restore data/published from the repository")
    fitting = [name] if name in known else [stem for stem in known if name and stem.startswith(name)]
    if not fitting:
        raise project.unknown("published table", name, known)
    if len(fitting) > 1:
        raise ValueError(f"published table {name!r} fits several: {', '.join(fitting)}. Name one of them")
    path = folder / f"{fitting[0]}.csv"
    frame = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8")
    if list(frame) != COLUMNS:
        raise ValueError(f"{path}: expected the columns {', '.join(COLUMNS)}; found {', '.join(frame)}")
    text = frame["value"].str.strip()
    frame["value"] = pd.to_numeric(text, errors="coerce").astype(float)
    frame.insert(4, "text", text)
    homeless = frame.index[frame["value"].notna() & (frame["source"].str.strip() == "")]
    if len(homeless):
        raise ValueError(f"{path}, line {homeless[0] + 2}: the value {text[homeless[0]]} has no source")
    return frame


def number(text: str) -> float:
    """The number that a published cell begins with: 241.7 of "241.7 (s+u)", 10 of "10 (s)"; NaN where it begins with none."""
    return float(pd.to_numeric(text.partition(" ")[0], errors="coerce"))


def wide(published: pd.DataFrame, table: str | None = None) -> pd.DataFrame:
    """Published values in the paper's layout: its rows and columns in their order, NaN where no number is known.

    table: which of the tables in the file, by the column `table`; needed when the file holds several. Raises ValueError when
    it is missing or unknown, or a cell is given twice.
    """
    known = list(published["table"].unique())
    if table is None and len(known) > 1:
        raise ValueError(f"this file holds several tables: choose one of {', '.join(known)}")
    table = table or known[0]
    if table not in known:
        raise project.unknown("table", table, known)
    cells = published[published["table"] == table]
    layout = cells.pivot(index="row", columns="column", values="value")  # noqa: PD010 - pivot_table would average cells given twice
    return layout.reindex(index=cells["row"].unique(), columns=cells["column"].unique())


def other_methods(benchmark: str) -> pd.DataFrame:
    """What the papers and releases of the methods that the APM is compared with publish themselves.

    benchmark: "natural shifts" (ImageNet and its versions), "cross-dataset" or "corruptions" (CIFAR-10-C). One line per source and
    method, one column per set, NaN where a source has none; OTHERS_NOTES[benchmark] belongs under it. Raises ValueError for another
    benchmark.
    """
    if benchmark not in _OTHERS:
        raise project.unknown("benchmark of other methods", benchmark, _OTHERS)
    parts = {said: wide(load(name), table) for name, table, said in _OTHERS[benchmark]["tables"]}
    return pd.concat(parts, names=["published in", "method"]).rename_axis(columns=None).reset_index()

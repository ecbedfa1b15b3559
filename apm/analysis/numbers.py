"""Numbers: an estimate with its interval, and the tidy rows that a results folder keeps.

A number has one home. Tables hold `Number`s as they are; `apm.analysis.publish` writes them down before any of them becomes text. Report,
audit, README and `apm.analysis.verify` read these rows; nobody reads a formatted cell, a caption or a footer back.

    results/<profile>/numbers/<notebook>.csv   tidy: table, row, column, value, low, high, n, df, unit, kind, decimals, text
    results/<profile>/numbers/machine.json     the machine that made them
"""

from __future__ import annotations

import io
import math
import numbers
import platform
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import total_ordering
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from apm import project
from apm.project import manifest

# "exact": counted or computed in closed form, the same on every machine; "count": so and whole; "cost": of the machine (seconds, memory);
# "word": text, "verdict" that of a rule
KINDS = ("accuracy", "difference", "measure", "exact", "count", "loss", "p", "cost", "published", "verdict", "word")
COLUMNS = ("table", "row", "column", "value", "low", "high", "n", "df", "unit", "kind", "decimals", "text")
FLOATS = ("value", "low", "high", "df")
FINE = ("ratio", "cosine")  # units of numbers about 1, shown with three significant digits
SEPARATOR = " · "  # between the parts of a row's name


@total_ordering
@dataclass(frozen=True)
class Number:
    """An estimate, its 95 % interval where it has one, and the number of images behind it.

    Ordered by value. Raises ValueError for an unknown kind and for an interval that is not one.
    """

    value: float
    low: float = math.nan
    high: float = math.nan
    n: int | None = None
    unit: str = "%"
    kind: str = "accuracy"
    brief: bool = False  # shown without its interval
    df: float | None = None  # degrees of freedom of the interval, where they are not n - 1

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise project.unknown("kind of number", self.kind, KINDS)
        if self.low > self.high:
            raise ValueError(f"an interval needs low <= high, found [{self.low}, {self.high}] around {self.value}")

    def __float__(self) -> float:
        return float(self.value)

    def __lt__(self, other: Any) -> bool:
        return self.value < float(other)

    def __str__(self) -> str:
        return text(self)

    @property
    def short(self) -> Number:
        """The same, shown without its interval."""
        return replace(self, brief=True)

    @property
    def bounds(self) -> tuple[float, float]:
        """The interval, or the value twice where it has none."""
        return (self.value, self.value) if math.isnan(self.low) else (self.low, self.high)


def average(cells: Iterable[Number]) -> Number:
    """Mean of estimates, empty ones left out, shown without its interval, which is as wide as theirs on average: estimates on the same
    images vary together, and no mean of them more than that."""
    there = [cell for cell in cells if not is_empty(cell)]
    if not there:
        return Number(math.nan)
    value, low, high = np.mean([(cell.value, cell.low, cell.high) for cell in there], axis=0)
    return replace(there[0], value=float(value), low=float(low), high=float(high)).short


def verdict(difference: Number) -> str:
    """The one rule for "better" and "worse": "above" or "below" where the whole interval is, not rounded, else "undecided"."""
    low, high = difference.bounds
    return "above" if low > 0 else "below" if high < 0 else "undecided"


def is_empty(cell: Any) -> bool:
    """Whether a cell holds nothing: None, NA, NaN, "" or a Number without value."""
    value = cell.value if isinstance(cell, Number) else cell
    return value == "" if isinstance(value, str) else pd.api.types.is_scalar(value) and bool(pd.isna(value))


def decimals(value: float, *, small: bool = False) -> int:
    """Digits after the point that a number is shown with: one, or three significant ones in a column of small numbers."""
    if not small or value == 0 or not math.isfinite(value) or abs(value) >= 100:
        return 1
    return max(1, 2 - math.floor(math.log10(abs(value))))


def text(cell: Any, *, small: bool = False) -> str:
    """A cell as a table shows it: "60.5 [57.3, 63.6]", "0.031", "1.2e-08", "yes", "" for an empty one; small: of an `is_small` column."""
    if is_empty(cell):
        return ""
    if isinstance(cell, Number):
        if cell.kind == "p":
            return "< 0.001" if cell.value < 0.001 else f"{cell.value:.3f}"
        if cell.kind == "count":
            return f"{cell.value:.0f}"
        if cell.brief or math.isnan(cell.low):
            return _digits(cell.value, small)
        # an estimate near 0 with a wide interval has the digits of its interval
        places = decimals(max(cell.value, cell.low, cell.high, key=abs), small=small)
        value, low, high = (_digits(number, small, places) for number in (cell.value, cell.low, cell.high))
        return f"{value} [{low}, {high}]"
    if isinstance(cell, (bool, np.bool_)):
        return "yes" if cell else "no"
    if isinstance(cell, numbers.Integral):
        return str(int(cell))
    if isinstance(cell, numbers.Real):
        return _digits(float(cell), small)
    return str(cell)


def _digits(value: float, small: bool, places: int | None = None) -> str:
    places = decimals(value, small=small) if places is None else places
    shown = f"{value:.2e}" if places > 5 else f"{value:.{places}f}"
    return shown[1:] if shown.startswith("-") and float(shown) == 0 else shown


def is_small(column: pd.Series) -> bool:
    """Whether a column holds a number that one decimal would show as 0.0, or a measure below 1 such as a cosine."""
    for cell in column:
        if isinstance(cell, Number) and cell.unit in FINE and not is_empty(cell):
            return True
        kind = cell.kind if isinstance(cell, Number) else "" if isinstance(cell, (float, np.floating)) else "count"
        least = 1.0 if kind in ("measure", "exact") else 0.05
        if kind not in ("p", "count", "accuracy", "difference") and 0.0 < abs(float(cell)) < least:
            return True
    return False


def tidy(frame: pd.DataFrame, table: str, *, kinds: Mapping[str, str] | str = "measure") -> pd.DataFrame:
    """A table as tidy rows, one per filled cell (`COLUMNS`); levels of index and headings are joined.

    kinds: of the cells that are plain numbers, one for all or by column. Words in a column "verdict" are verdicts. Raises ValueError for a
    name that stands twice, and for an unknown kind.
    """
    rows, columns = [_joined(name) for name in frame.index], [_joined(name) for name in frame.columns]
    for what, names in (("row", rows), ("column", columns)):
        if twice := sorted({name for name in names if names.count(name) > 1}):
            stands = f"{what} {twice[0]!r} stands there more than once"
            raise ValueError(f"table {table}: {stands}: name what tells them apart")
    kind_of = dict.fromkeys(columns, kinds) if isinstance(kinds, str) else dict(kinds)
    if kind_of.get("verdict", "measure") == "measure":
        kind_of["verdict"] = "verdict"
    project.among(f"kind of number of table {table}", kind_of.values(), KINDS)
    cells = []
    for column, (_, values) in zip(columns, frame.items(), strict=True):
        kind, small = kind_of.get(column, "measure"), is_small(values)
        for row, cell in zip(rows, values, strict=True):
            if not is_empty(cell):
                cells.append({"table": table, "row": row, "column": column, **_tidy_cell(cell, kind, small)})
    return pd.DataFrame(cells, columns=list(COLUMNS)).astype({"n": "Int64"})


def _joined(name: Any) -> str:
    return SEPARATOR.join(str(part) for part in name if str(part)) if isinstance(name, tuple) else str(name)


def _tidy_cell(cell: Any, kind: str, small: bool) -> dict[str, Any]:
    if isinstance(cell, (str, bool, np.bool_)):
        return {"unit": "", "kind": kind if kind in ("verdict", "cost") else "word", "decimals": 0, "text": text(cell)}
    if isinstance(cell, Number):
        places = {"p": 3, "count": 0}.get(cell.kind)
    else:
        places = 0 if isinstance(cell, numbers.Integral) else None
        cell = Number(float(cell), unit="", kind="count" if kind == "measure" and places == 0 else kind)
    places = decimals(cell.value, small=small) if places is None else places
    return {**vars(cell), "decimals": places, "text": ""}


def numbers_of(folder: Path, notebook: str) -> Path:
    """Where a notebook's tidy rows are in a results folder."""
    return folder / "numbers" / f"{notebook}.csv"


def write(rows: pd.DataFrame, path: Path | str, head: str = "") -> Path:
    """Tidy rows as CSV, seven significant digits, after a first line `head`; whole or not at all."""
    body = rows.to_csv(index=False, float_format="%.7g", lineterminator="\n")
    return project.atomic_write(path, f"{head}\n{body}" if head else body)


def parse(text: str, source: str) -> pd.DataFrame:
    """Tidy rows of a CSV's text (without a head). Raises ValueError, naming the source, for what is no such file."""
    types = {**dict.fromkeys(COLUMNS, str), **dict.fromkeys(FLOATS, float), "n": "Int64", "decimals": "Int64"}
    empty = {name: [""] for name in (*FLOATS, "n", "decimals")}
    try:
        rows = pd.read_csv(io.StringIO(text), dtype=types, keep_default_na=False, na_values=empty)
        if list(rows) != list(COLUMNS):
            raise ValueError(f"found the columns {', '.join(rows)}")
        project.among("kind of number", set(rows["kind"]), KINDS)
    except ValueError as error:
        raise ValueError(f"{source}: expected rows of numbers ({', '.join(COLUMNS)}): {error}") from error
    return rows


def read(folder: Path) -> pd.DataFrame:
    """The tidy rows of a results folder, in the order of the manifest. Raises FileNotFoundError for one without manifest or numbers."""
    made = manifest.read(folder)["notebooks"]
    paths = [numbers_of(folder, name) for name in made if any(e["kind"] == "table" for e in made[name]["entries"])]
    if gone := [path for path in paths if not path.is_file()]:
        raise FileNotFoundError(f"{gone[0]} does not exist, it is not kept in the repository: run `make reproduce`")
    parts = [parse(path.read_text(encoding="utf-8"), str(path)) for path in paths]
    return pd.concat(parts, ignore_index=True) if parts else pd.DataFrame(columns=list(COLUMNS))


class NoSuchNumber(ValueError):
    """A results folder has no number of that name: this profile did not make it."""


def find(rows: pd.DataFrame, table: str, row: str, column: str) -> Number:
    """One number of tidy rows. Raises NoSuchNumber, with what there is, when it is not there; ValueError when it is a word."""
    there = rows[rows["table"] == table]
    found = there[(there["row"] == row) & (there["column"] == column)]
    if there.empty:
        raise NoSuchNumber(f"no table {table!r}: run the notebook that begins with {table.split('_')[0]}_ first")
    if found.empty:
        columns = there.loc[there["row"] == row, "column"]
        part, name, have = ("column", column, columns) if len(columns) else ("row", row, there["row"])
        raise NoSuchNumber(str(project.unknown(f"{part} of table {table}", name, dict.fromkeys(have))))
    cell = found.iloc[0]
    if math.isnan(cell["value"]):
        what = f"the {cell['kind']} {cell['text']!r}"
        raise ValueError(f"table {table}, {row}, {column}: expected a number, found {what}")
    n, df = None if pd.isna(cell["n"]) else int(cell["n"]), None if pd.isna(cell["df"]) else float(cell["df"])
    return Number(cell["value"], cell["low"], cell["high"], n, cell["unit"], cell["kind"], df=df)


def machine() -> dict[str, str]:
    """What of this machine can change a number's last digits: processor, instruction set, torch. No part of any key."""
    import torch

    info = Path("/proc/cpuinfo")
    said = info.read_text(encoding="utf-8") if info.is_file() else ""
    named = re.search(r"^model name\s*: *(.*)", said, re.MULTILINE)
    model = named[1].strip() if named else platform.processor()
    gpu = {"gpu": torch.cuda.get_device_name()} if torch.cuda.is_available() else {}
    return {"cpu": model, "capability": torch.backends.cpu.get_cpu_capability(), "torch": torch.__version__, **gpu}

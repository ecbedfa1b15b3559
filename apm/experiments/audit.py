"""The claims audit: what the paper says, which number tests it, by which rule, and the verdict.

A claim is data (data/claims.yaml). It "holds" where the whole 95 % interval of its estimate satisfies the rule, "does not hold" where the
whole interval contradicts it, "cannot be tested" where it reaches to both sides, and is "not tested here" where this profile does not
make the estimate. What follows from how the package is built is "by construction", not counted with what was tested. Where many claims
are tested, some hold by chance: Holm's correction says which verdicts survive.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from apm import project
from apm.analysis import numbers, stats
from apm.analysis.numbers import NoSuchNumber, Number
from apm.analysis.text import CONSTRUCTION, FAILS, HOLDS, NOT_RUN, UNTESTED
from apm.data import published
from apm.typed import checked

RULES = ("above", "below", "within", "all_below")
CLOCK = 2.0  # a time repeats on one machine to within this factor: its interval where a rule judges it
SURVIVES = 1 - stats.CONFIDENCE
NEAR = 0.01  # how far from the limit "within" reaches
Place = tuple[str, str, str]  # table, row, column


@checked
@dataclass(frozen=True)
class Claim:
    """One claim as written in data/claims.yaml. Raises ValueError for what makes no sense."""

    id: str
    section: str
    claim: str
    needs: str
    estimate: tuple[str, str | None, str]  # table, row (None for "all_below"), column
    rule: str
    limit: float | Place = 0.0  # a number or an estimate
    state: str | None = None  # of "all_below": the methods in this state count, such as "online"
    leave_out: tuple[str, ...] = ()  # of them
    only: tuple[str, ...] = ()  # table, row, column, word: tested only where the results say that word
    unless: tuple[str, ...] = ()  # the same: not refuted where they say it
    construction: str = ""  # why it holds however the run ends; "" for a claim that can fail
    optional: bool = False  # a profile may run the table without this row
    beside: dict[str, Any] = field(
        default_factory=dict
    )  # further estimates shown, by label, where a profile makes their table
    published: tuple[Place, ...] = ()  # what the paper prints (table of data/published)

    def __post_init__(self) -> None:
        project.among("rule", [self.rule], RULES)
        if len({self.rule == "all_below", self.estimate[1] is None, self.state is not None}) > 1:
            found = f"{self.state}, {self.estimate}"
            raise ValueError(f"a state, and an estimate without row, belong to all_below, found {found}")


def load(path: Path | str | None = None) -> list[Claim]:
    """The claims of data/claims.yaml, in order. Raises ValueError, naming claim and field, for a file that says something else."""
    path = project.root() / "data" / "claims.yaml" if path is None else Path(path)
    claims: list[Claim] = []
    lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not lines:
        raise ValueError(f"{path}: no claims: nothing to audit")
    for line in lines:
        try:
            claims.append(Claim(**line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, claim {line.get('id')}: {error}") from error
        if claims[-1].id in [claim.id for claim in claims[:-1]]:
            raise ValueError(f"{path}: the claim {claims[-1].id} stands there twice")
    return claims


def judge(number: Number, rule: str, limit: float) -> str:
    """The verdict of a rule on a number with its interval; a time is taken to within a factor `CLOCK`.

    above, below, all_below: the whole interval lies on that side of the limit. within: it is nowhere further than `NEAR` from it.
    """
    low, high = number.bounds
    if number.kind == "cost" and math.isnan(number.low):
        low, high = number.value / CLOCK, number.value * CLOCK
    reach = {"above": (limit, math.inf), "within": (limit - NEAR, limit + NEAR)}
    start, end = reach.get(rule, (-math.inf, limit))
    return HOLDS if start < low and high < end else FAILS if high <= start or low >= end else UNTESTED


def chosen(claim: Claim, rows: pd.DataFrame) -> dict[str, Number]:
    """The numbers that a claim rests on, by row. Raises NoSuchNumber where the results hold none of them."""
    table, row, column = claim.estimate
    names: list[Any] = [row]
    if row is None:
        there = rows[rows["table"] == table]
        state = there[there["column"] == "state"].set_index("row")["text"]
        names = [name for name in there.loc[there["column"] == column, "row"] if state.get(name) == claim.state]
        names = [name for name in names if name not in claim.leave_out]
        if not names:
            raise NoSuchNumber(f"no row of table {table!r} with the state {claim.state!r}")
    return {name: numbers.find(rows, table, name, column) for name in names}


def said(rows: pd.DataFrame, where: Sequence[str]) -> bool:
    """Whether a cell [table, row, column, word] holds the word."""
    return bool(where) and bool((rows[["table", "row", "column", "text"]] == list(where)).all(axis="columns").any())


def evaluate(claims: Sequence[Claim], rows: pd.DataFrame) -> pd.DataFrame:
    """The audit of tidy numbers as a table, a row a claim. p: of the figure being at the limit; p (Holm): corrected for the number of tests.

    Raises ValueError, naming the claim, for an estimate that its table does not have.
    """
    there = set(rows["table"])
    lines = []
    for claim in claims:
        line: dict[str, Any] = {"section": claim.section, "claim": claim.claim, "rule": claim.needs}
        line |= {"from": claim.estimate[0], "verdict": NOT_RUN, "counted as": NOT_RUN, "published": _published(claim)}
        try:
            line |= _line(claim, rows)
        except NoSuchNumber as error:
            if claim.estimate[0] in there and not claim.optional:
                raise ValueError(f"claim {claim.id}: {error}") from error
        lines.append(line)
    columns = ["section", "verdict", "figure", "limit", "rule", "beside", "published", "p", "p (Holm)", "counted as", "from"]  # fmt: skip
    table = pd.DataFrame(lines).set_index("claim").reindex(columns=columns)
    table["p (Holm)"] = stats.holm(table["p"].astype(float))
    for name in ("p", "p (Holm)"):
        table[name] = [None if pd.isna(p) else Number(float(p), unit="", kind="p") for p in table[name]]
    return table


def _line(claim: Claim, rows: pd.DataFrame) -> dict[str, Any]:
    """What the results say of a claim; nothing where they do not say the word that it asks for."""
    found = chosen(claim, rows)
    if claim.only and not said(rows, claim.only):
        return {}
    limit = claim.limit if isinstance(claim.limit, float) else float(numbers.find(rows, *claim.limit))
    verdicts = {judge(number, claim.rule, limit) for number in found.values()}
    # of several, one that fails refutes the claim, and all that hold prove it
    verdict = FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else UNTESTED
    if verdict == FAILS and said(rows, claim.unless):
        verdict = UNTESTED
    # the one that decides: the farthest beyond the limit
    name = max(found, key=lambda row: found[row].value)
    beside = found if len(found) > 1 else {}
    there = set(rows["table"])
    beside = beside | {label: numbers.find(rows, *at) for label, at in claim.beside.items() if at[0] in there}
    words = [f"{label} {numbers.text(n, small=n.unit not in ('%', 'points'))}" for label, n in beside.items()]
    return {
        "verdict": CONSTRUCTION if claim.construction and verdict == HOLDS else verdict,
        "figure": found[name],
        "limit": limit,
        "beside": "; ".join(filter(None, [*words, claim.construction])),
        "counted as": CONSTRUCTION if claim.construction else "tested",
        "p": math.nan if claim.construction or len(found) > 1 else stats.p_value(found[name], limit),
    }


def _published(claim: Claim) -> str:
    """What the paper prints, as it prints it."""
    words = []
    for table, row, column in claim.published:
        frame = published.load(table)
        cell = frame[(frame["row"] == row) & (frame["column"] == column)]
        if len(cell) != 1:
            wanted = f"one published {row!r} / {column!r} in {table}"
            raise ValueError(f"claim {claim.id}: expected {wanted}, found {len(cell)}")
        words.append(str(cell.iloc[0]["text"]))
    return " against ".join(words)


def scoreboard(audited: pd.DataFrame) -> pd.DataFrame:
    """How many claims hold, do not, cannot be tested, of those that were tested; and those that were not, apart.

    survive Holm: verdicts "holds" and "does not hold" whose corrected p is below 0.05, of those with an interval.
    """
    counted, verdict = audited["counted as"], audited["verdict"]
    lines = {f"tested: {word}": (counted == "tested") & (verdict == word) for word in (HOLDS, FAILS, UNTESTED)}
    lines["tested, together"] = counted == "tested"
    lines[CONSTRUCTION] = verdict == CONSTRUCTION
    lines["by construction: does not hold, or open"] = (counted == CONSTRUCTION) & (verdict != CONSTRUCTION)
    lines[NOT_RUN] = verdict == NOT_RUN
    which = pd.DataFrame(lines)
    corrected = audited["p (Holm)"].map(float, na_action="ignore").astype(float)
    tested, survive = which[corrected.notna()].sum(), which[corrected < SURVIVES].sum()
    table = pd.DataFrame({"claims": which.sum(), "with an interval": tested, "survive Holm": survive})
    table = table.astype("Int64").rename_axis("counted")
    table.iloc[4:, 1] = table.iloc[2:, 2] = pd.NA  # columns of those that were tested, and of those that were decided
    return table

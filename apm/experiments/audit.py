"""The claims audit: what the paper says, which number tests it, by which rule, and the verdict.

A claim is data (data/claims.yaml): words, the estimate that tests it, a rule with its limit. A verdict is computed from the
estimate's 95 % interval, and rules have one meaning each:

    holds              the whole interval satisfies the rule
    does not hold      the whole interval contradicts it
    cannot be tested   the interval reaches to both sides of the limit
    not tested here    this profile does not make the estimate

A claim that follows from how the package is built is marked "by construction" and not counted with those that were tested. Where many
claims are tested, some hold by chance: Holm's correction says which verdicts survive.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml

from apm import project
from apm.analysis import numbers, stats, tables
from apm.analysis.numbers import NoSuchNumber, Number
from apm.analysis.text import CONSTRUCTION, FAILS, HOLDS, NOT_RUN, UNTESTED
from apm.data import published
from apm.typed import checked

RULES = ("above", "below", "within", "all_below")
CLOCK = 2.0  # a time repeats on one machine to within this factor: its interval where a rule judges it
SURVIVES = 1 - stats.CONFIDENCE


@checked
@dataclass(frozen=True)
class Claim:
    """One claim as written in data/claims.yaml. Raises ValueError for what makes no sense.

    estimate: [table, row, column]. rule: one of `RULES`. limit: a number or an estimate. margin: of "within", which needs one.
    where: of "all_below": {column: word}, which rows of the estimate's table count; their row name is None there. leave_out: not these.
    only: [table, row, column, word]: tested only where the results say that word. unless: where they do, it is not refuted.
    construction: why it holds however the run ends; "" for a claim that can fail.
    optional: a profile may run the table without this row. beside: further estimates shown, {label: [table, row, column]}.
    published: what the paper prints, [[table of data/published, row, column], ...].
    """

    id: str
    section: str
    claim: str
    needs: str
    estimate: tuple[str | None, ...]
    rule: str
    limit: float | tuple[str, ...] = 0.0
    margin: float | None = None
    where: dict[str, Any] | None = None
    leave_out: tuple[str, ...] = ()
    only: tuple[str, ...] = ()
    unless: tuple[str, ...] = ()
    construction: str = ""
    optional: bool = False
    beside: dict[str, Any] | None = None
    published: tuple[tuple[str, ...], ...] = ()

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise project.unknown("rule", self.rule, RULES)
        if (self.rule == "within") != (self.margin is not None) or (self.margin or 1.0) <= 0:
            raise ValueError(f"the rule within, and no other, needs a margin above 0, found {self.margin}")
        if len(self.estimate) != 3 or (self.estimate[1] is None) != (self.rule == "all_below"):
            raise ValueError(f"expected an estimate [table, row, column], found {list(self.estimate)}")
        if isinstance(self.limit, tuple) and len(self.limit) != 3:
            raise ValueError(f"expected a limit that is a number or [table, row, column], found {list(self.limit)}")


def load(path: Path | str | None = None) -> list[Claim]:
    """The claims of data/claims.yaml, in order. Raises ValueError, naming claim and field, for a file that says something else."""
    path = project.root() / "data" / "claims.yaml" if path is None else Path(path)
    claims: list[Claim] = []
    lines = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not lines:
        raise ValueError(f"{path}: expected a list of claims, found none: nothing to audit")
    for line in lines:
        try:
            claims.append(Claim(**line))
        except (TypeError, ValueError) as error:
            raise ValueError(f"{path}, claim {line.get('id')}: {error}") from error
    (name, count), *_ = Counter(claim.id for claim in claims).most_common(1)
    if count > 1:
        raise ValueError(f"{path}: the claim {name} stands there twice")
    return claims


def judge(number: Number, rule: str, limit: float, margin: float = 0.0) -> str:
    """The verdict of a rule on a number with its interval; a time is taken to within a factor `CLOCK`.

    above, below: the whole interval lies on that side of the limit. within: it is nowhere further than the margin from the limit.
    """
    low, high = number.bounds
    if number.kind == "cost" and math.isnan(number.low):
        low, high = number.value / CLOCK, number.value * CLOCK
    if rule == "above":
        holds, fails = low > limit, high <= limit
    elif rule == "within":
        holds = limit - margin <= low and high <= limit + margin
        fails = high < limit - margin or low > limit + margin
    else:
        holds, fails = high < limit, low >= limit
    return HOLDS if holds else FAILS if fails else UNTESTED


def chosen(claim: Claim, rows: pd.DataFrame) -> dict[str, Number]:
    """The numbers that a claim rests on, by row. Raises NoSuchNumber where the results hold none of them."""
    table, row, column = claim.estimate
    if row is not None:
        return {row: numbers.find(rows, str(table), row, str(column))}
    there = rows[rows["table"] == table]
    names = list(there.loc[there["column"] == column, "row"])
    for other, word in (claim.where or {}).items():
        words = there[there["column"] == other].set_index("row")["text"]
        names = [name for name in names if words.get(name) == word and name not in claim.leave_out]
    if not names:
        raise NoSuchNumber(f"no row of table {table!r} with {claim.where}")
    return {name: numbers.find(rows, str(table), name, str(column)) for name in names}


def said(rows: pd.DataFrame, where: Sequence[str]) -> bool:
    """Whether a cell [table, row, column, word] holds the word."""
    if not where:
        return False
    table, row, column, word = where
    cell = rows[(rows["table"] == table) & (rows["row"] == row) & (rows["column"] == column)]
    return bool((cell["text"] == word).any())


def evaluate(claims: Sequence[Claim], rows: pd.DataFrame) -> pd.DataFrame:
    """The audit as a table, a row a claim: verdict, figure, rule, limit, beside, published, p, p (Holm), counted as, from.

    rows: tidy numbers of a results folder. p: of the figure being at the limit; p (Holm): corrected for the number of tests.
    Raises ValueError, naming the claim, for an estimate that its table does not have.
    """
    there = set(rows["table"])
    lines = []
    for claim in claims:
        line: dict[str, Any] = {"section": claim.section, "claim": claim.claim, "rule": claim.needs}
        line |= {"from": claim.estimate[0], "verdict": NOT_RUN, "counted as": NOT_RUN}
        try:
            line |= {"published": _published(claim), **_line(claim, rows)}
        except ValueError as error:
            not_made = isinstance(error, NoSuchNumber) and (claim.estimate[0] not in there or claim.optional)
            if not not_made:
                raise ValueError(f"claim {claim.id}: {error}") from error
            line["published"] = _published(claim)
        lines.append(line)
    columns = ["section", "verdict", "figure", "limit", "rule", "beside", "published", "p", "p (Holm)", "counted as", "from"]  # fmt: skip
    table = pd.DataFrame(lines).set_index("claim").reindex(columns=columns)
    table["p (Holm)"] = stats.holm(table["p"].astype(float))
    for name in ("p", "p (Holm)"):
        table[name] = [None if pd.isna(p) else Number(float(p), unit="", kind="p") for p in table[name]]
    return table


def _line(claim: Claim, rows: pd.DataFrame) -> dict[str, Any]:
    """What the results say of a claim; nothing where it is tested only if they say a word that they do not."""
    found = chosen(claim, rows)
    if claim.only and not said(rows, claim.only):
        return {}
    limit = claim.limit if isinstance(claim.limit, float) else float(numbers.find(rows, *claim.limit))
    verdicts = {judge(number, claim.rule, limit, claim.margin or 0.0) for number in found.values()}
    # of several, one that fails refutes the claim, and all that hold prove it
    verdict = FAILS if FAILS in verdicts else HOLDS if verdicts == {HOLDS} else UNTESTED
    if verdict == FAILS and said(rows, claim.unless):
        verdict = UNTESTED
    # the one that decides: the farthest beyond the limit
    name = max(found, key=lambda row: found[row].value)
    beside = found if len(found) > 1 else {}
    beside = beside | {label: numbers.find(rows, *where) for label, where in (claim.beside or {}).items()}
    words = [f"{label} {numbers.text(n, small=n.unit not in ('%', 'points'))}" for label, n in beside.items()]
    return {
        "verdict": CONSTRUCTION if claim.construction and verdict == HOLDS else verdict,
        "figure": found[name],
        "limit": limit,
        "beside": "; ".join([*words, claim.construction] if claim.construction else words),
        "counted as": CONSTRUCTION if claim.construction else "tested",
        "p": math.nan if claim.construction or len(found) > 1 else tables.p_value(found[name], limit),
    }


def _published(claim: Claim) -> str:
    """What the paper prints, as it prints it."""
    words = []
    for table, row, column in claim.published:
        frame = published.load(table)
        cell = frame[(frame["row"] == row) & (frame["column"] == column)]
        if len(cell) != 1:
            raise ValueError(f"expected one published value {row!r} / {column!r} in {table}, found {len(cell)}")
        words.append(str(cell.iloc[0]["text"]))
    return " against ".join(words)


def scoreboard(audited: pd.DataFrame) -> pd.DataFrame:
    """How many claims hold, do not, cannot be tested, of those that were tested; and those that were not, apart.

    survives Holm: verdicts "holds" and "does not hold" whose corrected p is below 0.05, of those with an interval.
    """
    counted, verdict = audited["counted as"], audited["verdict"]
    corrected = audited["p (Holm)"].map(float, na_action="ignore").astype(float)

    def count(which: pd.Series) -> dict[str, int]:
        return {"claims": int(which.sum()), "with an interval": int(corrected[which].notna().sum())}

    tested = counted == "tested"
    lines = {f"tested: {word}": count(tested & (verdict == word)) for word in (HOLDS, FAILS, UNTESTED)}
    for word in (HOLDS, FAILS):
        survived = tested & (verdict == word) & (corrected < SURVIVES)
        lines[f"tested: {word}"]["survive Holm"] = int(survived.sum())
    lines["tested, together"] = count(tested)
    lines[CONSTRUCTION] = {"claims": int((verdict == CONSTRUCTION).sum())}
    open_or_not = (counted == CONSTRUCTION) & (verdict != CONSTRUCTION)
    lines["by construction: does not hold, or open"] = {"claims": int(open_or_not.sum())}
    lines[NOT_RUN] = {"claims": int((verdict == NOT_RUN).sum())}
    return pd.DataFrame.from_dict(lines, orient="index").astype("Int64").rename_axis("counted")

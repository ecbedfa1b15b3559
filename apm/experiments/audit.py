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

RULES = ("above", "below", "within", "all_below")
CLOCK = 2.0  # a time repeats on one machine to within this factor: its interval where a rule judges it
SURVIVES = 1 - stats.CONFIDENCE

LISTS = ("estimate", "published", "limit", "leave_out", "only", "unless")


@dataclass(frozen=True)
class Claim:
    """One claim as written in data/claims.yaml. Raises ValueError, naming the claim, for what makes no sense.

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
    beside: dict[str, Sequence[str]] | None = None
    published: tuple[Sequence[str], ...] = ()

    def __post_init__(self) -> None:
        problem = None
        if self.rule not in RULES:
            problem = str(project.unknown("rule", self.rule, RULES))
        elif (self.rule == "within") != (self.margin is not None):
            problem = "the rule within needs a margin, and no other has one"
        elif self.margin is not None and self.margin <= 0:
            problem = f"the margin must be positive, found {self.margin}"
        elif len(self.estimate) != 3 or (self.estimate[1] is None) != (self.rule == "all_below"):
            problem = f"expected an estimate [table, row, column], found {list(self.estimate)}"
        elif isinstance(self.limit, tuple) and len(self.limit) != 3:
            problem = f"expected a limit that is a number or [table, row, column], found {list(self.limit)}"
        if problem:
            raise ValueError(f"claim {self.id}: {problem}")


def load(path: Path | str | None = None) -> list[Claim]:
    """The claims of data/claims.yaml, in order. Raises ValueError, naming claim and field, for a file that says something else."""
    path = project.root() / "data" / "claims.yaml" if path is None else Path(path)
    claims: list[Claim] = []
    for line in yaml.safe_load(path.read_text(encoding="utf-8")):
        given: dict[str, Any] = {
            name: tuple(value) if name in LISTS and isinstance(value, list) else value for name, value in line.items()
        }
        if unknown := sorted(set(given) - set(Claim.__dataclass_fields__)):
            raise ValueError(
                f"{path}, claim {line.get('id')}: {project.unknown('field', unknown[0], Claim.__dataclass_fields__)}"
            )
        try:
            claims.append(Claim(**given))
        except TypeError as error:
            raise ValueError(f"{path}, claim {line.get('id')}: {error}") from error
    twice = [name for name, count in Counter(claim.id for claim in claims).items() if count > 1]
    if twice:
        raise ValueError(f"{path}: the claim {twice[0]} stands there twice")
    return claims


# ------------------------------------------------------------------------------------------------------------------ rules


def above(low: float, high: float, limit: float) -> str:
    """Whether a number with the interval [low, high] lies above the limit."""
    return HOLDS if low > limit else FAILS if high <= limit else UNTESTED


def below(low: float, high: float, limit: float) -> str:
    """Whether a number with the interval [low, high] lies below the limit."""
    return HOLDS if high < limit else FAILS if low >= limit else UNTESTED


def within(low: float, high: float, limit: float, margin: float) -> str:
    """Whether a number with the interval [low, high] is no further than the margin from the limit."""
    if limit - margin <= low and high <= limit + margin:
        return HOLDS
    return FAILS if high < limit - margin or low > limit + margin else UNTESTED


def together(verdicts: Sequence[str]) -> str:
    """The verdict of a claim that needs each of several: one that fails refutes it, all that hold prove it."""
    return FAILS if FAILS in verdicts else HOLDS if set(verdicts) == {HOLDS} else UNTESTED


def judge(number: Number, rule: str, limit: float, margin: float | None = None) -> str:
    """The verdict of one rule on one number; a time is taken to within a factor `CLOCK`."""
    low, high = number.bounds
    if number.kind == "cost" and math.isnan(number.low):
        low, high = number.value / CLOCK, number.value * CLOCK
    if rule == "above":
        return above(low, high, limit)
    return within(low, high, limit, margin) if margin is not None else below(low, high, limit)


# ------------------------------------------------------------------------------------------------------------------ audit


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
    Raises ValueError, naming the claim, for an estimate that its table does not have, and for no claims.
    """
    if not claims:
        raise ValueError("no claims: nothing to audit")
    there = set(rows["table"])
    lines = []
    for claim in claims:
        line: dict[str, Any] = {"section": claim.section, "claim": claim.claim}
        try:
            line |= _line(claim, rows)
        except NoSuchNumber as error:
            if claim.estimate[0] in there and not claim.optional:
                raise ValueError(f"claim {claim.id}: {error}") from error
            line |= {"verdict": NOT_RUN, "counted as": NOT_RUN}
        except ValueError as error:
            raise ValueError(f"claim {claim.id}: {error}") from error
        line |= {"rule": claim.needs, "published": _published(claim), "from": claim.estimate[0]}
        lines.append(line)
    table = pd.DataFrame(lines).set_index("claim")
    table = table.reindex(
        columns=["section", "verdict", "figure", "limit", "rule", "beside", "published", "p", "counted as", "from"]
    )
    corrected = pd.Series(stats.holm(table["p"].dropna().astype(float)), index=table["p"].dropna().index)
    table.insert(8, "p (Holm)", corrected.reindex(table.index))
    for name in ("p", "p (Holm)"):
        table[name] = [None if pd.isna(p) else Number(float(p), unit="", kind="p") for p in table[name]]
    return table


def _line(claim: Claim, rows: pd.DataFrame) -> dict[str, Any]:
    found = chosen(claim, rows)
    if claim.only and not said(rows, claim.only):
        return {"verdict": NOT_RUN, "counted as": NOT_RUN}
    limit = claim.limit if isinstance(claim.limit, (int, float)) else float(numbers.find(rows, *claim.limit))
    verdicts = {name: judge(number, claim.rule, limit, claim.margin) for name, number in found.items()}
    verdict = together(list(verdicts.values()))
    if verdict == FAILS and said(rows, claim.unless):
        verdict = UNTESTED
    # of several, the one that decides: the farthest beyond the limit
    name = max(found, key=lambda row: found[row].value)
    others = {label: numbers.find(rows, *where) for label, where in (claim.beside or {}).items()}
    others = (found if len(found) > 1 else {}) | others
    beside = [f"{label} {numbers.text(n, small=n.unit not in ('%', 'points'))}" for label, n in others.items()]
    built = bool(claim.construction) and verdict == HOLDS
    return {
        "verdict": CONSTRUCTION if built else verdict,
        "figure": found[name],
        "limit": limit,
        "beside": "; ".join([*beside, claim.construction] if claim.construction else beside),
        "counted as": CONSTRUCTION if claim.construction else "tested",
        "p": math.nan if claim.construction or len(found) > 1 else tables.p_value(found[name], limit),
    }


def _published(claim: Claim) -> str:
    """What the paper prints, as it prints it."""
    said = []
    for table, row, column in claim.published:
        frame = published.load(table)
        cell = frame[(frame["row"] == row) & (frame["column"] == column)]
        if len(cell) != 1:
            raise ValueError(
                f"claim {claim.id}: expected one published value {row!r} / {column!r} in {table}, found {len(cell)}"
            )
        said.append(str(cell.iloc[0]["text"]))
    return " against ".join(said)


def scoreboard(audited: pd.DataFrame) -> pd.DataFrame:
    """How many claims hold, do not, cannot be tested, of those that were tested; and those that were not, apart.

    survives Holm: verdicts "holds" and "does not hold" whose corrected p is below 0.05, of those with an interval.
    """
    tested = audited[audited["counted as"] == "tested"]
    lines: dict[str, dict[str, Any]] = {}
    for verdict in (HOLDS, FAILS, UNTESTED):
        part = tested[tested["verdict"] == verdict]
        corrected = [float(p) for p in part["p (Holm)"] if p is not None]
        decided = {} if verdict == UNTESTED else {"survive Holm": sum(p < SURVIVES for p in corrected)}
        lines[f"tested: {verdict}"] = {"claims": len(part), "with an interval": len(corrected), **decided}
    lines["tested, together"] = {"claims": len(tested), "with an interval": int(tested["p (Holm)"].notna().sum())}
    lines[CONSTRUCTION] = {"claims": int((audited["verdict"] == CONSTRUCTION).sum())}
    lines["by construction: does not hold, or open"] = {
        "claims": int(((audited["counted as"] == CONSTRUCTION) & (audited["verdict"] != CONSTRUCTION)).sum())
    }
    lines[NOT_RUN] = {"claims": int((audited["verdict"] == NOT_RUN).sum())}
    return pd.DataFrame.from_dict(lines, orient="index").astype("Int64").rename_axis("counted")

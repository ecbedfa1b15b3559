"""Does it come out again? Every number of a results folder against data/expected/<profile>.csv (`make verify`, `make accept`).

A number is the same when it equals the expected one to the printed digits, "within" when it lies in the expected 95 % interval, else
"outside". Losses and measures follow a training, which another processor rounds otherwise, and an interval over images, where they have
one, does not know that: for them within is also as near as `NEAR`, relative. What is computed in closed form ("exact") is the same to the
digits that are stored, or outside. A p-value says again what the estimates of its row say: it is within when all of them are.
Costs of the machine (seconds, memory) are counted apart. A verdict that is another word has turned; other words have changed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pandas as pd

from apm import project
from apm.analysis import numbers
from apm.project import depends, manifest

KEY = ["table", "row", "column"]
STATUS = ("same", "within", "outside", "missing", "new", "turned", "changed", "cost")
FAILING = ("outside", "missing", "turned")
WORST = 10
NEAR = {"loss": 0.1, "measure": 0.05}  # of the expected one: what rounding makes of a training
ROUNDING = 1e-12  # below it, a loss in float32 is rounding alone
HEAD = "# expected numbers "


def path_of(profile: str) -> Path:
    """The file of a profile's expected numbers."""
    return project.root() / "data" / "expected" / f"{profile}.csv"


def expected(profile: str) -> tuple[pd.DataFrame, dict[str, str]]:
    """The numbers that a profile should give, and the machine that gave them. Raises FileNotFoundError for none, ValueError for a file of
    another profile or version, or one cut off."""
    path = path_of(profile)
    if not path.is_file():
        accept = f"`make accept PROFILE={profile}` makes the present numbers the expected ones"
        raise FileNotFoundError(f"{path} does not exist: {accept}")
    first, _, body = path.read_text(encoding="utf-8").partition("\n")
    try:
        head = json.loads(first.removeprefix(HEAD))
        found, count, machine = (head["version"], head["profile"]), head["rows"], head["machine"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path}: expected a first line {HEAD!r} and what it holds, found {first[:60]!r}") from error
    restore = "restore it from the repository, or write it anew with `make accept`"
    if found != (manifest.VERSION, profile):
        what = f"version {found[0]} and profile {found[1]}, not of {manifest.VERSION} and {profile}"
        raise ValueError(f"{path} holds numbers of {what}: {restore}")
    if not body.endswith("\n") or len(rows := numbers.parse(body, str(path))) != count:
        raise ValueError(f"{path} is cut off: expected {count} numbers; {restore}")
    return rows, machine


def compare(wanted: pd.DataFrame, found: pd.DataFrame) -> pd.DataFrame:
    """Tidy rows against tidy rows, each with its `STATUS`; distance: in half-widths of the interval, or in printed units without one."""
    both = wanted.merge(found, on=KEY, how="outer", suffixes=("", "_found"), indicator=True, sort=False)
    kind = both["kind"].fillna(both["kind_found"])
    unit = 0.5 * 10.0 ** -both["decimals"].astype(float)
    gap = (both["value"] - both["value_found"]).abs()
    # values are stored with seven significant digits, which is what an exact one is held to
    near = gap <= np.maximum(unit.where(kind != "exact", 0.0), 1e-6 * both["value"].abs()) + ROUNDING
    inside = (both["value_found"] >= both["low"]) & (both["value_found"] <= both["high"])
    inside |= gap <= kind.map(NEAR).astype(float).fillna(0.0) * both["value"].abs()
    is_number = both["value"].notna() & both["value_found"].notna()
    equal_words = both["value"].isna() & both["value_found"].isna() & (both["text"] == both["text_found"])
    chosen = {
        "cost": kind == "cost",
        "missing": both["_merge"] == "left_only",
        "new": both["_merge"] == "right_only",
        "same": is_number & near | equal_words,
        "within": is_number & inside,
        "turned": kind == "verdict",
        "changed": kind == "word",
    }
    status = np.select(list(chosen.values()), list(chosen), "outside")
    met = pd.Series(np.isin(status, ("same", "within"))).where(both["low"].notna())
    met = met.groupby([both["table"], both["row"]]).transform("min")
    status[(kind == "p") & (status == "outside") & (met == 1)] = "within"
    half = ((both["high"] - both["low"]) / 2).where(lambda h: h > 0, unit)
    shown = {
        heading: both[f"value{end}"].map("{:.6g}".format).where(both[f"value{end}"].notna(), both[f"text{end}"])
        for heading, end in (("expected", ""), ("found", "_found"))
    }
    distance = (gap / half).where(is_number, np.inf)
    return both[KEY].assign(kind=kind, **shown, status=status, distance=distance)


def summary(compared: pd.DataFrame) -> str:
    """One line: how many numbers have which status."""
    count = compared["status"].value_counts().reindex(STATUS, fill_value=0)
    judged = len(compared) - count["cost"] - count["new"]
    return (
        f"{judged:,} numbers and words: {count['same']:,} same, {count['within']:,} within the expected interval, "
        f"{count['outside']:,} outside, {count['missing']:,} missing, {count['turned']:,} verdicts turned, "
        f"{count['changed']:,} other words changed; {count['new']:,} new; {count['cost']:,} costs of the machine apart"
    )


def worst(compared: pd.DataFrame) -> pd.DataFrame:
    """The rows that fail or have changed, the farthest first; at most `WORST`."""
    order = ["turned", "outside", "missing", "changed", "within"]
    chosen = compared[compared["status"].isin(order)].sort_values("distance", ascending=False)
    return chosen.sort_values("status", key=lambda status: status.map(order.index), kind="stable")[:WORST]


def judge(profile: str, *, made: bool = False) -> tuple[pd.DataFrame, dict[str, str]]:
    """A profile's results compared with its expected numbers, and the machine of those; made: only the tables that are there, and the audit
    only where all are. Raises as `expected` and `present`."""
    rows, machine = expected(profile)
    found = present(profile, whole=not made)
    if made:
        there = set(found["table"])
        if set(rows["table"]) - there:  # what reads the results of others is another where some are not there
            there = {table for table in there if not depends.reads_results(table)}
        rows, found = (part[part["table"].isin(there)] for part in (rows, found))
    return compare(rows, found), machine


def present(profile: str, *, whole: bool = True) -> pd.DataFrame:
    """The numbers of a profile's results. Raises as `numbers.read`; whole: ValueError where a notebook did not run to its end."""
    folder = project.results_dir(profile)
    half = [name for name, part in manifest.read(folder)["notebooks"].items() if not part["complete"]]
    if whole and half:
        what = f"{', '.join(half)} did not run to its end"
        raise ValueError(f"{folder}: {what}: `make reproduce PROFILE={profile}` goes on with it")
    return numbers.read(folder)


def machine_of(profile: str) -> dict[str, str]:
    """The machine that a profile's results were made on; empty where that is not noted."""
    return project.paths.kept(
        project.results_dir(profile) / "numbers" / "machine.json", lambda text: dict(json.loads(text)), {}
    )


def accept(profile: str) -> Path:
    """Make the present numbers the expected ones. Raises as `present`."""
    rows = present(profile)
    head = {"version": manifest.VERSION, "profile": profile, "rows": len(rows), "machine": machine_of(profile)}
    return numbers.write(rows, path_of(profile), HEAD + json.dumps(head, sort_keys=True))


def main(arguments: Sequence[str] | None = None) -> int:
    """Command line; returns the exit status: 0 all as expected, 1 something is not, 2 cannot be judged."""
    parser = argparse.ArgumentParser(prog="python -m apm.analysis.verify", description=__doc__.splitlines()[0])
    parser.add_argument("--profile", default="mini")
    parser.add_argument("--accept", action="store_true", help="make the present numbers the expected ones")
    parser.add_argument("--made", action="store_true", help="judge only the tables that are there")
    options = parser.parse_args(arguments)
    failed = False
    try:
        if not options.accept or path_of(options.profile).is_file():
            compared, theirs = judge(options.profile, made=options.made)
            failed = bool(compared["status"].isin(FAILING).any())
            print(f"verify: {summary(compared)}")
            if len(rows := worst(compared)):
                shown = rows.assign(distance=rows["distance"].map("{:.2g}".format))
                print(shown.to_string(index=False, max_colwidth=60))
            for said, machine in (("expected on: ", theirs), ("found on:    ", machine_of(options.profile))):
                print(said + ", ".join(f"{name} {value}" for name, value in machine.items()))
        if options.accept:
            print(f"accepted: {accept(options.profile)}")
    except (FileNotFoundError, ValueError) as error:
        print(f"verify: {error}", file=sys.stderr)
        return 2
    return int(failed and not options.accept)


if __name__ == "__main__":
    sys.exit(main())

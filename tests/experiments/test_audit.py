"""Rules have one meaning each, a verdict can fail, and a claim that names what is not there is said when the audit is built."""

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
import yaml

from apm.analysis import lineup, numbers
from apm.analysis.numbers import Number
from apm.analysis.text import CONSTRUCTION, FAILS, HOLDS, NOT_RUN, UNTESTED
from apm.data import published_sets
from apm.experiments import audit, published_checks
from apm.experiments.audit import Claim


@pytest.mark.parametrize(
    ("rule", "interval", "limit", "verdict"),
    [
        ("above", (0.1, 0.3), 0.0, HOLDS),
        ("above", (-0.05, 0.21), 0.0, UNTESTED),  # 0.08, which may well be above
        ("above", (-0.3, -0.1), 0.0, FAILS),
        ("above", (0.0, 0.0), 0.0, FAILS),
        ("above", (-0.1, 0.2), 5.6, FAILS),  # excludes a step of the published size
        ("below", (-0.3, -0.1), 0.0, HOLDS),
        ("below", (-0.3, 0.1), 0.0, UNTESTED),
        ("all_below", (0.1, 0.3), 0.0, FAILS),
        ("within", (0.995, 1.005), 1.0, HOLDS),
        ("within", (-30.0, 30.0), 1.0, UNTESTED),  # a wide interval proves nothing
        ("within", (0.995, 1.1), 1.0, UNTESTED),
        ("within", (1.5, 2.5), 1.0, FAILS),
        ("within", (-9.0, -5.0), 1.0, FAILS),
    ],
)
def test_a_rule_decides_by_the_whole_interval(rule: str, interval: tuple, limit: float, verdict: str) -> None:
    assert audit.judge(Number(sum(interval) / 2, *interval, kind="difference"), rule, limit) == verdict


@pytest.mark.parametrize(("seconds", "verdict"), [(0.4, HOLDS), (0.9, UNTESTED), (1.8, UNTESTED), (2.5, FAILS)])
def test_a_time_is_judged_with_what_a_clock_varies(seconds: float, verdict: str) -> None:
    assert audit.judge(Number(seconds, unit="s", kind="cost"), "below", 1.0) == verdict


def claim(**options: object) -> Claim:
    given: dict = {"id": "x", "section": "abstract", "claim": "X", "needs": "x above 0", "rule": "above"}
    return Claim(**(given | {"estimate": ("02_x", "APM", "gain")} | options))


def made() -> pd.DataFrame:
    """Numbers of a table in which APM gains and TDA may."""
    gains = [Number(2.0, 1.0, 3.0, 192), Number(0.1, -0.2, 0.4, 192), Number(2.0, 1.0, 3.0, 192)]
    table = pd.DataFrame({"gain": gains, "state": ["episodic", "online", "online"]}, index=["APM", "TDA", "again"])
    return numbers.tidy(table, "02_x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rul": "above"}, "claim y: .*unexpected keyword argument 'rul'"),
        ({"id": "x"}, "the claim x stands there twice"),
        ({"rule": "abvoe"}, "claim y: unknown rule 'abvoe'. .*Did you mean 'above'"),
        ({"rule": "all_below"}, "claim y: a state, and an estimate without row, belong to all_below"),
        ({"estimate": ["02_x", None, "gain"]}, "claim y: a state, and an estimate without row, belong to all_below"),
        ({"estimate": ["02_x", "APM"]}, "claim y: Claim: estimate: expected a list of 3"),
        ({"limit": ["02_x"]}, "claim y: Claim: limit: expected a number or a list of 3"),
        (None, "nothing to audit"),
    ],
)
def test_a_file_of_claims_that_makes_no_sense_is_said(tmp_path: Path, change: dict | None, message: str) -> None:
    line = {"id": "x", "section": "text", "claim": "X", "needs": "n", "estimate": ["02_x", "a", "b"], "rule": "above"}
    lines = [] if change is None else [line, line | {"id": "y"} | change]
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump(lines))
    with pytest.raises(ValueError, match=message):
        audit.load(tmp_path / "claims.yaml")


@pytest.mark.parametrize("estimate", [("02_x", "AMP", "gain"), ("02_x", "APM", "gian")])
def test_an_estimate_that_its_table_does_not_have_is_an_error_that_names_the_claim(estimate: tuple) -> None:
    with pytest.raises(ValueError, match=r"claim x: .*Did you mean"):
        audit.evaluate([claim(estimate=estimate)], made())
    assert audit.evaluate([claim(estimate=estimate, optional=True)], made())["verdict"].item() == NOT_RUN


def test_a_verdict_comes_from_the_number_and_what_is_built_in_is_not_counted() -> None:
    online = {"rule": "all_below", "estimate": ("02_x", None, "gain"), "state": "online"}
    told = {"only": ("02_x", "APM", "state", "episodic")}
    claims_and_verdicts = [
        (claim(), HOLDS),
        (claim(estimate=("02_x", "TDA", "gain")), UNTESTED),
        (claim(construction="always so"), CONSTRUCTION),
        (claim(construction="always so", limit=9.0), FAILS),
        (claim(estimate=("09_never", "APM", "gain")), NOT_RUN),
        (claim(limit=("02_x", "TDA", "gain")), HOLDS),
        (claim(**online, limit=1.0), FAILS),  # the second one
        (claim(**online, limit=1.0, leave_out=("again",)), HOLDS),
        (claim(**online, limit=2.5), UNTESTED),
        (claim(**told), HOLDS),
        (claim(only=(*told["only"][:3], "episodi")), NOT_RUN),  # a word that begins alike is another
        (claim(limit=9.0, unless=told["only"]), UNTESTED),
    ]
    claims = [replace(one, id=str(i), claim=str(i)) for i, (one, _) in enumerate(claims_and_verdicts)]
    table = audit.evaluate(claims, made())
    assert table["verdict"].to_list() == [verdict for _, verdict in claims_and_verdicts]
    assert table["beside"].iloc[6] == "TDA 0.1 [-0.2, 0.4]; again 2.0 [1.0, 3.0]"
    further = {"here": ("02_x", "TDA", "gain"), "of another profile": ("09_never", "APM", "gain")}
    assert audit.evaluate([claim(beside=further)], made())["beside"].iloc[0] == "here 0.1 [-0.2, 0.4]"
    assert table["figure"].iloc[6].value == 2.0
    board = audit.scoreboard(table)
    assert board["claims"].to_list() == [4, 1, 3, 8, 1, 1, 2]
    assert board["with an interval"].dropna().to_list() == [4, 0, 2, 6]


def test_holm_leaves_what_chance_explains() -> None:
    names = [f"m{i}" for i in range(30)]
    rows = numbers.tidy(pd.DataFrame({"gain": [Number(1.02, 0.02, 2.02, 100)] * 30}, index=names), "02_x")
    claims = [claim(id=name, claim=name, estimate=("02_x", name, "gain")) for name in names]
    for some, survive in ((claims, 0), (claims[:1], 1)):
        table = audit.evaluate(some, rows)
        assert set(table["verdict"]) == {HOLDS}
        assert audit.scoreboard(table).loc["tested: holds", "survive Holm"] == survive


def test_the_published_value_is_read_from_its_file_and_a_wrong_name_is_said() -> None:
    cell = ("table4", "APM Peak Use", "GFlops_meas")
    table = audit.evaluate([claim(published=(cell,))], made())
    assert table["published"].item().startswith("241.7")
    with pytest.raises(ValueError, match="claim x: expected one published 'APM Peek'"):
        audit.evaluate([claim(published=(("table4", "APM Peek", "GFlops_meas"),))], made())


def test_every_claim_names_a_number_that_profile_mini_makes_or_says_that_it_is_optional(accepted) -> None:
    claims = audit.load()
    table = audit.evaluate(claims, accepted)
    assert set(table["section"]) == {"abstract", "text"}
    assert (table["verdict"] != NOT_RUN).mean() > 0.8
    assert {one.only[3] for one in claims if one.only} <= set(published_sets.SETS)  # words that results can say
    others = [one for one in claims if one.state == "episodic"]
    own = {*lineup.FIXED, "APM, views", lineup.target_row("APM, views")}  # no other methods
    assert len(others) == 3
    assert all(set(one.leave_out) == own for one in others)


def test_checks_of_the_published_numbers_are_those_that_were_accepted(same_as_accepted) -> None:
    made = {
        "08_published_steps": published_checks.published_steps(),
        "08_published_means": published_checks.published_means().set_index(["table", "row", "mean of"]),
        "08_published_sums": published_checks.published_arithmetic().set_index(["table", "check"]),
        "08_published_teachers": published_checks.published_teachers().set_index(["teacher", "set"]),
    }
    same_as_accepted(made, kinds="published")

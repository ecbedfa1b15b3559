"""Rules have one meaning each, a verdict can fail, and a claim that names what is not there is said when the audit is built."""

from pathlib import Path

import pandas as pd
import pytest
import yaml

from apm.analysis import lineup, numbers, tables
from apm.analysis.numbers import Number
from apm.analysis.text import CONSTRUCTION, FAILS, HOLDS, NOT_RUN, UNTESTED
from apm.data import published, published_sets
from apm.experiments import audit, published_checks
from apm.experiments.audit import Claim

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.parametrize(
    ("rule", "interval", "limit", "margin", "verdict"),
    [
        ("above", (0.1, 0.3), 0.0, None, HOLDS),
        ("above", (-0.05, 0.21), 0.0, None, UNTESTED),  # 0.08, which may well be above
        ("above", (-0.3, -0.1), 0.0, None, FAILS),
        ("above", (0.0, 0.0), 0.0, None, FAILS),
        ("above", (-0.1, 0.2), 5.6, None, FAILS),  # excludes a step of the published size
        ("below", (-0.3, -0.1), 0.0, None, HOLDS),
        ("below", (-0.3, 0.1), 0.0, None, UNTESTED),
        ("below", (0.1, 0.3), 0.0, None, FAILS),
        ("within", (-0.5, 0.5), 0.0, 1.0, HOLDS),
        ("within", (-30.0, 30.0), 0.0, 1.0, UNTESTED),  # a wide interval proves nothing
        ("within", (1.5, 2.5), 0.0, 1.0, FAILS),
        ("within", (-9.0, -5.0), 0.0, 1.0, FAILS),
        ("within", (0.5, 1.5), 0.0, 1.0, UNTESTED),
        ("within", (9.6, 10.9), 10.4, 2.0, HOLDS),
    ],
)
def test_a_rule_decides_by_the_whole_interval(rule: str, interval: tuple, limit: float, margin: float | None, verdict: str) -> None:  # fmt: skip
    number = Number(sum(interval) / 2, *interval)
    assert audit.judge(number, rule, limit, margin) == verdict


def test_wider_intervals_never_decide_more() -> None:
    for rule, margin in (("above", None), ("below", None), ("within", 1.0)):
        for centre in (-2.0, -0.4, 0.0, 0.4, 2.0):
            found = [
                audit.judge(Number(centre, centre - h, centre + h), rule, 0.0, margin) for h in (0.0, 0.3, 3.0, 30.0)
            ]
            first_open = found.index(UNTESTED) if UNTESTED in found else len(found)
            assert set(found[first_open:]) <= {UNTESTED}


@pytest.mark.parametrize(("seconds", "verdict"), [(0.4, HOLDS), (0.9, UNTESTED), (1.8, UNTESTED), (2.5, FAILS)])
def test_a_time_is_judged_with_what_a_clock_varies(seconds: float, verdict: str) -> None:
    assert audit.judge(Number(seconds, unit="s", kind="cost"), "below", 1.0) == verdict


def claim(**options: object) -> Claim:
    given: dict = {
        "id": "x",
        "section": "abstract",
        "claim": "X",
        "needs": "x above 0",
        "estimate": ("02_x", "APM", "gain"),
    }
    return Claim(**(given | {"rule": "above"} | options))


def made() -> pd.DataFrame:
    table = pd.DataFrame(
        {"gain": [Number(2.0, 1.0, 3.0, 192), Number(0.1, -0.2, 0.4, 192)], "kind": ["episodic", "online"]},
        index=pd.Index(["APM", "TDA"], name="method"),
    )
    return numbers.tidy(table, "02_x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rul": "above"}, "claim y: .*unexpected keyword argument 'rul'"),
        ({"id": "x"}, "the claim x stands there twice"),
        ({"rule": "abvoe"}, "claim y: unknown rule 'abvoe'. .*Did you mean 'above'"),
        ({"rule": "within"}, "claim y: the rule within, and no other, needs a margin above 0, found None"),
        ({"margin": 1.0}, "claim y: the rule within, and no other, needs a margin"),
        (
            {"rule": "within", "margin": -1.0},
            "claim y: the rule within, and no other, needs a margin above 0, found -1",
        ),
        ({"estimate": ["02_x", "APM"]}, "claim y: expected an estimate"),
        ({"estimate": ["02_x", None, "gain"]}, "claim y: expected an estimate"),
        ({"limit": ["02_x"]}, "claim y: expected a limit"),
        ({"limit": "1e-5"}, "claim y: Claim: limit: expected a number"),
    ],
)
def test_a_file_of_claims_that_makes_no_sense_is_said(tmp_path: Path, change: dict, message: str) -> None:
    line = {"id": "x", "section": "text", "claim": "X", "needs": "n", "estimate": ["02_x", "a", "b"], "rule": "above"}
    (tmp_path / "claims.yaml").write_text(yaml.safe_dump([line, line | {"id": "y"} | change]))
    with pytest.raises(ValueError, match=message):
        audit.load(tmp_path / "claims.yaml")


def test_no_claims_are_no_audit(tmp_path: Path) -> None:
    (tmp_path / "claims.yaml").write_text("# none yet")
    with pytest.raises(ValueError, match="nothing to audit"):
        audit.load(tmp_path / "claims.yaml")


@pytest.mark.parametrize("estimate", [("02_x", "AMP", "gain"), ("02_x", "APM", "gian")])
def test_an_estimate_that_its_table_does_not_have_is_an_error_that_names_the_claim(estimate: tuple) -> None:
    with pytest.raises(ValueError, match=r"claim x: .*Did you mean"):
        audit.evaluate([claim(estimate=estimate)], made())
    (row,) = audit.evaluate([claim(estimate=estimate, optional=True)], made()).itertuples()
    assert row.verdict == NOT_RUN


def test_a_verdict_comes_from_the_number_and_what_is_built_in_is_not_counted() -> None:
    claims = [
        claim(id="a", claim="A"),
        claim(id="b", claim="B", estimate=("02_x", "TDA", "gain")),
        claim(id="c", claim="C", construction="always so"),
        claim(id="d", claim="D", construction="always so", limit=9.0),
        claim(id="e", claim="E", estimate=("09_never", "APM", "gain")),
        claim(id="f", claim="F", limit=("02_x", "TDA", "gain")),
        claim(id="g", claim="G", rule="all_below", estimate=("02_x", None, "gain"), limit=1.0),
        claim(id="h", claim="H", rule="all_below", estimate=("02_x", None, "gain"), where={"kind": "online"}, limit=1),
        claim(id="i", claim="I", rule="all_below", estimate=("02_x", None, "gain"), limit=2.5),
    ]
    table = audit.evaluate(claims, made())
    expected = [HOLDS, UNTESTED, CONSTRUCTION, FAILS, NOT_RUN, HOLDS, FAILS, HOLDS, UNTESTED]
    assert table["verdict"].to_list() == expected
    board = audit.scoreboard(table)["claims"]
    assert board["tested: holds"] == 3
    assert board["tested: does not hold"] == 1
    assert board["tested, together"] == 6
    assert board["by construction"] == 1
    assert board["by construction: does not hold, or open"] == 1
    assert board["not tested here"] == 1


def test_a_word_of_the_results_must_be_the_one_that_a_claim_names() -> None:
    words = pd.DataFrame({"images": ["coco-value", "coco-val"]}, index=["a", "b"])
    rows = numbers.tidy(words, "07_x")
    assert audit.said(rows, ("07_x", "b", "images", "coco-val"))
    assert not audit.said(rows, ("07_x", "a", "images", "coco-val"))  # another one that begins alike
    assert not audit.said(rows, ("07_x", "c", "images", "coco-val"))
    assert not audit.said(rows, ())


def test_every_word_that_a_claim_names_is_one_that_results_can_say() -> None:
    for named in (c.only for c in audit.load() if c.only):
        assert named[3] in published_sets.SETS


def test_holm_leaves_what_chance_explains() -> None:
    rows = numbers.tidy(
        pd.DataFrame({"gain": [Number(1.02, 0.02, 2.02, 100)] * 30}, index=pd.Index([f"m{i}" for i in range(30)])),
        "02_x",
    )
    claims = [claim(id=f"c{i}", claim=f"C{i}", estimate=("02_x", f"m{i}", "gain")) for i in range(30)]
    table = audit.evaluate(claims, rows)
    assert set(table["verdict"]) == {HOLDS}
    board = audit.scoreboard(table)
    assert board.loc["tested: holds", "survive Holm"] == 0
    alone = audit.scoreboard(audit.evaluate(claims[:1], rows))
    assert alone.loc["tested: holds", "survive Holm"] == 1


def test_p_agrees_with_the_interval() -> None:
    assert tables.p_value(Number(1.0, 0.0, 2.0), 0.0) == pytest.approx(0.05)
    assert pd.isna(tables.p_value(Number(1.0), 0.0))
    assert pd.isna(tables.p_value(Number(1.0, 1.0, 1.0), 0.0))  # no width: it says nothing of its spread


def test_few_seeds_make_an_interval_say_less() -> None:
    many, few = Number(1.0, 0.0, 2.0, 900), Number(1.0, 0.0, 2.0, 900, df=2.0)
    assert tables.p_value(few, -1.0) > 3 * tables.p_value(many, -1.0)
    rows = numbers.tidy(pd.DataFrame({"gain": [few]}, index=pd.Index(["APM"])), "02_x")
    assert numbers.find(rows, "02_x", "APM", "gain").df == 2.0


def test_rows_of_our_own_are_no_other_methods() -> None:
    claims = [one for one in audit.load() if one.rule == "all_below" and one.where == {"state": "episodic"}]
    views = "APM, views"
    own = {*lineup.FIXED, views, lineup.target_row(views)}
    assert len(claims) == 3
    assert all(set(one.leave_out) == own for one in claims)


@pytest.mark.parametrize(("interval", "word"), [((0.1, 0.3), HOLDS), ((-0.1, 0.3), UNTESTED), ((-0.3, -0.1), FAILS)])
def test_audit_and_benchmarks_have_one_rule_for_better(interval: tuple, word: str) -> None:
    number = Number(sum(interval) / 2, *interval, kind="difference")
    said = {HOLDS: "above", UNTESTED: "undecided", FAILS: "below"}
    assert audit.judge(number, "above", 0.0) == word
    assert numbers.verdict(number) == said[word]


def test_the_published_value_is_read_from_its_file_and_a_wrong_name_is_said() -> None:
    cell = ("table4", "APM Peak Use", "GFlops_meas")
    table = audit.evaluate([claim(published=(cell,))], made())
    assert table["published"].item().startswith("241.7")
    with pytest.raises(ValueError, match="claim x: expected one published value 'APM Peek'"):
        audit.evaluate([claim(published=(("table4", "APM Peek", "GFlops_meas"),))], made())


def test_every_claim_names_a_number_that_profile_mini_makes_or_says_that_it_is_optional() -> None:
    path = ROOT / "data" / "expected" / "mini.csv"
    rows = numbers.parse(path.read_text().partition("\n")[2], str(path))
    table = audit.evaluate(audit.load(), rows)
    assert set(table["section"]) == {"abstract", "text"}
    assert (table["verdict"] != NOT_RUN).mean() > 0.8


def test_published_steps_are_over_the_columns_that_both_rows_show() -> None:
    steps = published_checks.published_steps()
    assert steps.loc["cross-dataset (Table 3)", "step"] == pytest.approx(1.133, abs=1e-3)  # not the printed 0.9
    assert steps["over"].to_list() == ["4 columns", "15 columns", "9 columns"]
    assert steps.loc["corruptions (Table 2)", "step"] == pytest.approx(5.527, abs=1e-3)


def test_recomputed_published_sums_are_those_of_the_consistency_file() -> None:
    noted = published.load("consistency")
    means = published_checks.published_means().set_index(["table", "row", "mean of"])
    one = noted[noted["table"] == "Table 2"].iloc[4]  # OpenCLIP ViT-L/14: "44.19 vs 42.1"
    computed, printed = (float(part) for part in one["text"].split(" vs "))
    row = means.loc[("Table 2", "OpenCLIP ViT-L/14", "15 columns")]
    assert (row["computed"], row["printed"]) == pytest.approx((computed, printed), abs=0.005)
    assert row["agrees"] == "no"
    assert (means.loc["Table 1"]["agrees"] == "yes").all()
    assert means.loc[("Table 3", "TPT", "9 columns"), "computed"] == pytest.approx(64.91, abs=0.005)
    sums = published_checks.published_arithmetic().set_index("check")
    assert sums.loc["teacher once + 19 x student, GFLOPs", "computed"] == pytest.approx(20.5 + 19 * 10)
    measured = sums.loc["teacher once + 19 x student, against the measured GFLOPs of APM: not reconstructable"]
    assert (measured["computed"], measured["printed"], measured["agrees"]) == (210.5, 241.7, "no")
    ratio = sums.loc["measured over ideal GFLOPs, TPT, %: no common factor"]
    assert (ratio["computed"], ratio["agrees"]) == (pytest.approx(100 * 529 / 476), "")
    assert sums.loc["corruptions (of 15) in which APM is above TTT-MAE", "computed"] == 11
    assert sums.loc["TPT: mean over the ten sets of the TPT paper, Cars included", "agrees"] == "yes"
    assert sums.loc["TPT: mean over the nine sets that the table shows", "agrees"] == "no"


def test_published_teachers_are_held_against_open_clips_values() -> None:
    table = published_checks.published_teachers().set_index(["teacher", "set"])
    row = table.loc[("ViT-L-14 / openai", "ImageNet-R")]
    assert row["open_clip"] == pytest.approx(87.84)
    assert row["printed APM"] == pytest.approx(87.1)
    assert row["APM - open_clip"] == pytest.approx(87.1 - 87.84)
    assert len(table) == 20

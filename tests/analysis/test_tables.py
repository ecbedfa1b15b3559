"""Tables: every number recomputed by hand from a small record set; layouts, files and footnotes that do not mislead."""

import re

import numpy as np
import pandas as pd
import pytest
from fakes import records

from apm.analysis import stats, tables
from apm.analysis.numbers import Number, text
from apm.analysis.stats import DIFFERENCE
from apm.analysis.tables import accuracies, estimates, footer, save, show, summary, wide

ANY = "any (upper bound, uses labels)"


def condition(corruption="none", severity=0, *, flips=0, teacher_wrong=4, failed=0, dataset="digits-test"):
    """20 images of class sample % 2, K = 3.

    The teacher is wrong on the last `teacher_wrong` images. The student ends where the teacher is, but for the first `flips`
    of the images that the teacher has wrong, which it has right; it passes class 1 at k = 1, and the first `failed` images fail.
    """
    sample = np.arange(20)
    label, wrong, fails = sample % 2, sample >= 20 - teacher_wrong, sample < failed
    teacher = np.where(wrong, 1 - label, label)
    final = np.where(wrong & (sample < 20 - teacher_wrong + flips), label, teacher)
    path = np.stack([np.zeros(20), np.where(fails, -1, 1), *[np.where(fails, -1, final)] * 2], axis=1)
    prediction = np.where(fails, -1, final)
    asked = {"teacher_prediction": pd.array(teacher, dtype="Int32"), "path": list(path.astype(np.int16))}
    asked["minimum_loss_prediction"] = pd.array(prediction, dtype="Int32")
    told = {
        "status": np.where(fails, "non-finite loss at iteration 1", "ok"),
        "shard": f"{dataset}-{corruption}-{severity}",
    }
    return records(prediction, dataset=dataset, corruption=corruption, severity=severity, label=label, **asked, **told)


def zero_shot(frame: pd.DataFrame) -> pd.DataFrame:
    """The teacher's own row."""
    said = frame["teacher_prediction"].astype("int32")
    none = pd.array([None] * len(frame), dtype="Int32")
    return frame.assign(method="zero-shot", prediction=said, path=None, minimum_loss_prediction=none, status="ok")


@pytest.fixture
def two():
    """Clean: teacher and student wrong on 4 of 20. Fog: teacher wrong on 10, student on 8 (2 gained), 1 of them failed."""
    return pd.concat([condition(), condition("fog", 5, teacher_wrong=10, flips=3, failed=1)], ignore_index=True)


def values(row, *names):
    return [row[name] if isinstance(row[name], int | np.integer) else row[name].value for name in names]


def test_summary_by_hand(two):
    table = summary(two)
    assert list(table["corruption"]) == ["none", "fog"]
    clean, fog = table.iloc[0], table.iloc[1]
    # class 1 at k = 1 makes the odd ones of the four wrong images right once: 16 + 2 of 20
    counted = values(clean, "n", "n_failed", "seeds", "final", "teacher", "minimum loss", "any")
    assert counted == [20, 0, 1, 80, 80, 80, 90]
    assert values(clean, "agreement", DIFFERENCE, "p (McNemar)") == [100, 0, 1]
    assert clean[DIFFERENCE].low < 0 < clean[DIFFERENCE].high  # no image differs among 20, up to some per cent may
    # teacher: 10 right; student: 10 + 3 gained - 1 failed (image 0, which the teacher has right) = 12. Of the 7 still wrong (images
    # 13 to 19) the odd ones 13, 15, 17, 19 pass their class; image 0 never
    assert values(fog, "n", "n_failed", "teacher", "final", "minimum loss", "any") == [20, 1, 50, 60, 60, 80]
    assert values(fog, "agreement", DIFFERENCE, "p (McNemar)") == pytest.approx([80, 10, 2 * (1 + 4) / 2**4])
    assert fog["final"].bounds == pytest.approx(stats.accuracy(np.arange(20) < 12).bounds)
    assert fog[DIFFERENCE].bounds == pytest.approx(stats.mean(np.array([-1, 1, 1, 1] + [0] * 16)).bounds)
    (row,) = summary(two, by=("dataset", "method")).to_dict("records")  # averages the conditions
    assert values(row, "n", "final", "teacher") == pytest.approx([20, 70.0, 65.0])


def test_what_records_cannot_answer_is_empty(two):
    table = summary(zero_shot(two))
    assert table[["any", "minimum loss"]].isna().all(axis=None)
    assert not {ANY, "failed", "seeds"} & set(estimates(table).columns)
    assert [cell.value for cell in table["final"]] == [80.0, 50.0]
    assert [cell.value for cell in table[DIFFERENCE]] == [0.0, 0.0]
    table = summary(two.assign(teacher_prediction=pd.array([None] * 40, dtype="Int32")))
    assert table[["teacher", DIFFERENCE, "agreement", "p (McNemar)"]].isna().all(axis=None)
    assert table["final"].notna().all()


def test_without_labels_there_is_agreement_and_no_accuracy(two):
    """A failed image, whose prediction is -1 as every label is, is not right."""
    shown = estimates(summary(two.assign(label=-1)))
    assert list(shown) == ["n", "failed", "agreement"]
    assert shown["agreement"].tolist() == summary(two)["agreement"].tolist()
    assert stats.estimate(two.assign(label=-1), DIFFERENCE) is None


def test_several_seeds_are_not_more_images(two):
    fog = two[two["corruption"] == "fog"]
    once, thrice = summary(fog).iloc[0], summary(pd.concat([fog.assign(seed=s) for s in range(3)])).iloc[0]
    assert values(thrice, "n", "seeds", "final") == pytest.approx([20, 3, once["final"].value])
    assert thrice["p (McNemar)"] is None  # three answers to one image are not independent


def test_summary_of_too_little(two):
    with pytest.raises(ValueError, match=r"corruption none.*at least 10 images, found 5"):
        summary(two[two["sample"] < 5])
    with pytest.raises(ValueError, match="no records"):
        summary(two.iloc[:0])


def test_estimates_have_a_verdict_and_leave_out_what_says_nothing(two):
    table = estimates(summary(two).drop(columns=["dataset", "method"]))
    assert list(table.index) == [("none", 0), ("fog", 5)]
    assert list(table["failed"]) == [0, 1]
    fog = table.loc[("fog", 5)]
    assert text(fog["final"]) == "60.0 [38.7, 78.1]"
    assert (fog["final"].n, fog[DIFFERENCE].unit, fog["p (McNemar)"].kind) == (20, "points", "p")
    assert fog["verdict"] == "undecided"
    assert {ANY, "teacher (zero-shot)"} < set(table.columns)
    shown = accuracies(summary(two), "corruption", ("teacher", "any")).map(text)
    assert shown.to_dict() == {"none": {"teacher": "80.0", "any": "90.0"}, "fog": {"teacher": "50.0", "any": "80.0"}}


def test_wide_by_hand(two):
    table = wide(pd.concat([two, zero_shot(two)]))
    assert list(table.columns) == ["digits-test", "fog 5", "Mean"]
    rules = ("final", "minimum loss", ANY, DIFFERENCE)
    assert list(table.index) == [("teacher", "zero-shot"), *(("APM", rule) for rule in rules)]
    shown = table.map(text)
    assert list(shown["digits-test"]) == ["80.0", "80.0", "80.0", "90.0", "0.0"]
    assert list(shown["fog 5"]) == ["50.0", "60.0", "60.0", "80.0", "10.0"]
    assert [cell.split()[0] for cell in shown["Mean"]] == ["65.0", "70.0", "70.0", "85.0", "5.0"]
    assert shown.loc[("APM", "final"), "Mean"] == text(stats.estimate(two, "final"))
    cell = table.loc[("APM", DIFFERENCE), "fog 5"]
    assert cell.low < cell.value < cell.high  # not shown, yet written down
    assert "printed-digits, fog 5" in wide(pd.concat([two, condition("fog", 5, dataset="printed-digits")])).columns
    grouped = two[two["severity"] == 0].assign(group=["even", "odd"] * 10)
    assert list(wide(grouped, columns="group").columns) == ["even", "odd", "Mean"]


def test_wide_means_are_those_asked_for(two):
    two = pd.concat([two, condition("snow", 5, teacher_wrong=2)])
    table = wide(two, means={"Mean corrupted": ["fog 5", "snow 5"]})
    assert list(table.columns) == ["digits-test", "fog 5", "snow 5", "Mean corrupted"]
    assert text(table.loc[("APM", "final"), "Mean corrupted"]).startswith("75.0 [")
    with pytest.raises(ValueError, match=r"fogg 5.*fog 5"):
        wide(two, means={"Mean": ["fogg 5"]})
    few = two[two["sample"] < 3]
    wide(few, means={})  # no interval shown, no minimum
    with pytest.raises(ValueError, match="at least 10 images"):
        wide(few)


def test_no_mean_over_conditions_that_a_method_has_not_run(two):
    table = wide(pd.concat([two, two[two["severity"] == 0].assign(method="B")]))
    assert table.loc[("B", "final"), ["fog 5", "Mean"]].isna().all()
    assert table.loc[("APM", "final"), "Mean"] is not None


def test_the_teacher_has_one_row_where_all_methods_share_it(two):
    other = two.assign(method="B", teacher_prediction=pd.array([0] * 40, dtype="Int32"))
    names = [name for name, rule in wide(pd.concat([two, other])).index if rule == "teacher (zero-shot)"]
    assert names == ["APM", "B"]
    table = wide(pd.concat([two[two["sample"] < 12].assign(method="B"), two]))
    assert [name for name in table.index if name[0] == "teacher"] == [("teacher", "zero-shot")]
    assert text(table.loc[("teacher", "zero-shot"), "fog 5"]) == "50.0"
    assert table.loc[("B", "final"), "Mean"].n == 12


def test_any_is_never_shown_without_saying_what_it_is(two, tmp_path):
    note = footer(two)
    for table in (wide(two), estimates(summary(two))):
        for path in save(table, "t", tmp_path, "T", note).values():
            said = path.read_text()
            for hit in re.finditer(r"\bany\b(?!:)", said):
                assert said[hit.start() :].startswith(ANY), path


def test_footer_says_what_applies_and_no_more(two):
    text = footer(two)
    assert "n = 20 images per condition." in text
    assert "1 of 40 predictions failed and count as wrong: non-finite loss at iteration 1 (1)." in text
    assert "after 3 iterations, fixed beforehand" in text
    assert re.search(r"Made from records [0-9a-f]{12} \(2 shards\)\.$", text)
    assert footer(two.sample(frac=1, random_state=0)) == text
    text = footer(zero_shot(two[two["severity"] == 0]), notes=["Prompts: one template."])
    assert text.startswith("n = 20 images. Accuracy")
    assert "Prompts: one template. Made from" in text
    assert "images per condition, seeds 0, 1." in footer(pd.concat([two, two.assign(seed=1)]))
    ordered = [two, two.assign(method="TDA"), two.assign(method="TDA", seed=1)]
    assert "images per condition; TDA: seeds 0, 1. " in footer(pd.concat(ordered))


def test_saved_tables_repeat_byte_for_byte(two, tmp_path):
    for table in (summary(two), wide(two), estimates(summary(two))):
        paths = save(table, "t", tmp_path, "Caption", footer(two))
        first = {suffix: path.read_bytes() for suffix, path in paths.items()}
        save(table.copy(), "t", tmp_path, "Caption", footer(two))
        assert {suffix: path.read_bytes() for suffix, path in paths.items()} == first
        assert len(pd.read_csv(paths["csv"])) == len(table)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["t.csv", "t.md", "t.tex"]
    with pytest.raises(ValueError, match="is empty"):
        save(table.iloc[:0], "t", tmp_path, "c")
    with pytest.raises(OSError, match=r"t\.csv"):
        save(table, "t", paths["csv"], "c")


def test_csv_and_markdown_show_the_same_cells(tmp_path):
    p = [Number(0.0004, kind="p"), Number(0.5, kind="p")]
    # a column with small numbers keeps their digits
    cells = {"method": ["a|b", "c"], "final": [60.4567, np.nan], "n": [3, 4], "p": p, "low": [1.1e-14, 2.9]}
    paths = save(pd.DataFrame(cells), "t", tmp_path, "Caption", "Footer.")
    assert paths["csv"].read_text() == "method,final,n,p,low\na|b,60.5,3,< 0.001,1.10e-14\nc,,4,0.500,2.90\n"
    lines = paths["md"].read_text().splitlines()
    assert (lines[0], lines[-1]) == ("**Caption**", "Footer.")
    cells = [[cell.strip() for cell in line.replace("\\|", "/").strip("|").split("|")] for line in lines[4:6]]
    assert cells == [["a/b", "60.5", "3", "\\< 0.001", "1.10e-14"], ["c", "", "4", "0.500", "2.90"]]


def cells_of(shown):
    rows = shown.html.split("<table")[1].split("<tr")[1:]
    return [re.findall(r"<t[hd]>(.*?)</t[hd]>", row) for row in rows]


def test_numbers_stand_right_and_long_words_wrap_by_a_rule_for_their_column():
    long, p = "a sentence " * 30, [Number(0.0001, kind="p"), None]
    cells = {"claim": [long, ""], "final": [1.0, None], "from": ["04_x.csv", "5"], "p": p, "ok": [True, False]}
    html = show(pd.DataFrame(cells), "T").html
    assert re.findall(r"td:nth-child\((\d)\)\) {text-align: right", html) == ["2", "4"]
    assert ":is(td:nth-child(1)) {white-space: normal" in html
    assert set(re.findall(r"<td.*?>", html)) == {"<td>"}  # nothing but their text
    assert long.strip() in html  # never cut


def test_a_table_wider_than_a_page_is_turned_for_reading_only():
    wide_one = pd.DataFrame({f"set {i}": [Number(i, i - 1, i + 1, brief=i > 0), i / 2] for i in range(12)})
    wide_one.index = pd.MultiIndex.from_tuples([("APM", "final"), ("teacher", "")], names=["method", "rule"])
    lines = cells_of(show(wide_one, "T", upright=True))
    assert lines[0] == ["condition", "APM · final", "teacher"]
    assert lines[1:3] == [["set 0", "0.0 [-1.0, 1.0]", "0.0"], ["set 1", "1.0", "0.5"]]
    fits = wide_one.iloc[:, :9]
    assert show(fits, "T", upright=True).html == show(fits, "T").html


def test_latex_is_escaped_and_uses_booktabs(tmp_path):
    table = pd.DataFrame({"a_b": ["x & y", "50 %"], "p": [Number(0.0001, kind="p"), Number(0.5, kind="p")]})
    text = save(table, "t", tmp_path, "A_b & c", "100 % of $n$")["tex"].read_text()
    cells = (r"\toprule", r"a\_b & p", r"x \& y & \textless{} 0.001")
    for piece in (*cells, r"\caption{A\_b \& c}", r"100 \% of \$n\$", r"\label{tab:t}"):
        assert piece in text, piece


def test_shown_table_is_stable_escaped_and_scrolls(two):
    table = wide(two).rename(columns={"fog 5": "<fog>"})
    html = show(table, "A < B", "n > 1").html
    assert html == show(table.copy(), "A < B", "n > 1").html
    for said in ("overflow-x: auto", "A &lt; B", "n &gt; 1", "&lt;fog&gt;", ANY, "60.0"):
        assert said in html
    assert repr(show(table, "A", "B")) == f"A: {len(table)} rows"  # a notebook keeps the cells once, as HTML
    assert repr(show(table.iloc[:0], "A", bold=lambda row: True)) == "A: 0 rows"


def test_rows_stand_out_and_intervals_of_a_table_wider_than_a_page_break_below_their_estimates():
    table = pd.DataFrame({"method": ["a", "b"], "final": [1.0, 2.0]})
    strong = ["<strong>b</strong>", "<strong>2.0</strong>"]
    assert cells_of(show(table, "T", bold=lambda row: row["method"] == "b"))[1:] == [["a", "1.0"], strong]
    cells = pd.DataFrame({f"c{i}": [Number(50.0, 40.0, 60.0, 20)] for i in range(tables.WIDE + 1)})
    assert "50.0 [40.0,\u00a060.0]" in show(cells, "T").html
    assert "50.0 [40.0, 60.0]" in show(cells.iloc[:, :3], "T").html

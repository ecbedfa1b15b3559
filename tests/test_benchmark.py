"""Benchmarks over many datasets: every number recomputed by hand; sets and references that do not fit are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from apm import benchmark, datasets, published, stats, tables

SETS = {
    "digits-test": (0, 1, 2, 3),
    "digits-inverted": (8, 9, 10, 11, 12, 13),
}  # set -> images that the ensemble has wrong


def records(n=20, *, seeds=(0,)):
    """Two sets of the same n images. "one" has image 0 wrong as well; "APM" has images 4 and 5 wrong and mends image 3."""
    frames = []
    for name, wrong in SETS.items():
        for method, failures in (("ensemble", {*wrong}), ("one", {*wrong, 0}), ("APM", {*wrong, 4, 5} - {3})):
            label = np.arange(n) % 2
            prediction = np.array([1 - y if i in failures else y for i, y in enumerate(label)])
            teacher = np.array([1 - y if i in wrong else y for i, y in enumerate(label)])
            for seed in seeds:
                frames.append(
                    pd.DataFrame(
                        {
                            "dataset": name,
                            "corruption": "none",
                            "severity": 0,
                            "sample": np.arange(n),
                            "method": method,
                            "seed": seed,
                            "label": label,
                            "prediction": prediction,
                            "teacher_prediction": pd.array(teacher, dtype="Int32"),
                            "minimum_loss_prediction": pd.array([None] * n, dtype="Int32"),
                            "path": None,
                            "status": "ok",
                            "shard": f"{name}-{method}-{seed}",
                        }
                    )
                )
    return pd.concat(frames, ignore_index=True)


@pytest.fixture(scope="module")
def sets():
    return benchmark.load_sets(list(SETS), 20)


# ------------------------------------------------------------------------------------------------------------------ sets


def test_sets_are_stratified_choices_and_small_ones_are_taken_whole():
    some, hard = benchmark.load_sets(["digits-test", "digits-hard"], 150)
    assert len(some) == 150
    np.testing.assert_array_equal(some.indices, datasets.load("digits-test").subset(150, seed=0).indices)
    assert len(hard) == len(datasets.load("digits-hard")) < 150
    assert len(benchmark.load_sets(["digits-test"], "all")[0]) == 899


@pytest.mark.parametrize(
    ("names", "samples", "message"),
    [
        ([], 20, "each once"),
        (["digits-test", "digits-test"], 20, "each once"),
        (["digits-tset"], 20, "unknown dataset 'digits-tset'.*digits-test"),
        (["digits-test"], 5, "at least 10 images"),
        (["digits-test"], "every", '"all" or at least'),
    ],
)
def test_impossible_choices_of_sets_are_refused(names, samples, message):
    with pytest.raises(ValueError, match=message):
        benchmark.load_sets(names, samples)


def test_chance_is_the_share_of_the_largest_class(sets):
    labels = np.array([0, 0, 0, 1, 2], dtype=np.int64)
    five = sets[0].subset(5)
    assert benchmark.chance(replace(five, labels=labels)) == 60.0


def test_overview_says_what_stands_for_what(sets):
    table = benchmark.overview(sets, {"digits-test": "ImageNet"})
    assert list(table["stands for"]) == ["ImageNet", "none"]
    assert list(table["images"]) == [20, 20]
    assert list(table["classes"]) == [10, 10]
    assert "black on white" in table["notes"].iloc[1]
    assert "stands for" not in benchmark.overview(sets)
    with pytest.raises(ValueError, match="unknown dataset with a counterpart 'imagenet'"):
        benchmark.overview(sets, {"imagenet": "ImageNet"})


def test_overview_is_the_same_wherever_the_datasets_lie(sets, monkeypatch, tmp_path):
    told = []
    for place in ("here", "there"):
        monkeypatch.setenv("DATA", str(tmp_path / place))
        data = replace(sets[0], notes=f"Read from {tmp_path / place / 'set'}.")
        told.append(benchmark.overview([data])["notes"].iloc[0])
    assert told == ["Read from DATA/set."] * 2


# ---------------------------------------------------------------------------------------------------- paired differences


def test_paired_by_hand():
    table = benchmark.paired(records(), "APM", ["ensemble", "one"]).set_index(["dataset", "reference"])
    row = table.loc[("digits-test", "ensemble")]
    assert (row["n"], row["gained"], row["lost"]) == (20, 1, 2)
    assert row["reference accuracy"] == pytest.approx(80.0)
    assert row["final"] == pytest.approx(75.0)
    assert row["difference"] == pytest.approx(-5.0)
    assert row["p"] == pytest.approx(1.0)  # 1 of 3 discordant pairs
    expected = stats.bootstrap_mean(np.array([1, -1, -1] + [0] * 17))
    assert (row["low"], row["high"]) == pytest.approx((expected.low, expected.high))
    other = table.loc[("digits-inverted", "one")]  # one is wrong on 8..13 and 0, APM on 8..13, 4 and 5
    assert (other["gained"], other["lost"]) == (1, 2)
    assert other["reference accuracy"] == pytest.approx(65.0)


def test_paired_does_not_depend_on_the_order_of_rows():
    rows = records()
    shuffled = rows.sample(frac=1, random_state=0)
    key = ["dataset", "reference"]
    one, other = (
        benchmark.paired(r, "APM", ["ensemble"]).set_index(key).sort_index()[["difference", "gained", "lost", "p"]]
        for r in (rows, shuffled)
    )
    pd.testing.assert_frame_equal(one, other)


def test_several_seeds_are_not_more_images_and_have_no_p():
    row = benchmark.paired(records(seeds=(0, 1, 2)), "APM", ["ensemble"]).iloc[0]
    assert (row["n"], row["gained"], row["lost"]) == (20, 3, 6)
    assert row["difference"] == pytest.approx(-5.0)
    assert np.isnan(row["p"])


def test_methods_on_other_images_cannot_be_paired():
    rows = records()
    missing = rows[~((rows["method"] == "one") & (rows["sample"] == 7))]
    with pytest.raises(ValueError, match="20 images and one on 19"):
        benchmark.paired(missing, "APM", ["one"])
    moved = rows.assign(sample=rows["sample"].where(rows["method"] != "one", rows["sample"] + 1))
    with pytest.raises(ValueError, match="not on the same ones"):
        benchmark.paired(moved, "APM", ["one"])
    with pytest.raises(ValueError, match="unknown method of the records 'TPT'"):
        benchmark.paired(rows, "APM", ["TPT"])


def test_compact_keeps_every_row_and_shows_interval_and_p():
    shown = benchmark.compact(benchmark.paired(records(), "APM", ["ensemble"]))
    assert list(shown.columns) == [
        *("dataset", "reference", "n", "reference accuracy", "final", "final - reference", "gained", "lost"),
        "p (McNemar)",
    ]
    assert shown["final - reference"].iloc[0].startswith("-5.0 [")
    assert shown["p (McNemar)"].iloc[0] == "1.000"


def test_versions_of_one_image_are_drawn_together(sets):
    rows = records()
    ours = benchmark.by_origin(rows, sets)
    assert set(ours["dataset"]) == {"digits-test"}
    assert list(ours["set"]) == list(rows["dataset"])
    assert not ours.duplicated(["dataset", "corruption", "severity", "sample", "method", "seed"]).any()
    table = tables.wide(ours, columns="set")
    plain = tables.wide(rows)
    for name in SETS:
        assert list(table[name]) == list(plain[name])
    # same means; APM mends image 3 in one set only and loses images 4 and 5 in both, so the copies agree and the interval is wider
    together = stats.mean_difference(ours[ours["method"] == "APM"])
    apart = stats.mean_difference(rows[rows["method"] == "APM"])
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > apart.high - apart.low
    with pytest.raises(ValueError, match="unknown dataset of the records 'digits-inverted'"):
        benchmark.by_origin(rows, sets[:1])


# -------------------------------------------------------------------------------------------------------- published steps


@pytest.fixture
def theirs():
    return pd.DataFrame(
        {"A": [50.0, 49.9], "B": [70.0, 73.2], "Average": [60.0, 61.6]}, index=pd.Index(["Ensemble", "APM"], name="row")
    )


def test_published_steps_and_their_signs_by_hand(theirs):
    steps = benchmark.published_steps(theirs, {"Ensemble": ("APM", "Ensemble")}, ["A", "B"])
    assert list(steps["difference"].round(6)) == [-0.1, 3.2]
    row = benchmark.signs(steps, "published").iloc[0]
    assert row["final - reference"] == pytest.approx(1.55)
    assert (row["sets"], row["higher in"], row["equal in"], row["lower in"]) == (2, 1, 0, 1)
    assert (row["smallest"], row["largest"]) == pytest.approx((-0.1, 3.2))
    with pytest.raises(ValueError, match="unknown published row 'TPT'"):
        benchmark.published_steps(theirs, {"x": ("APM", "TPT")}, ["A"])
    with pytest.raises(ValueError, match="unknown published column 'C'"):
        benchmark.published_steps(theirs, {"x": ("APM", "Ensemble")}, ["C"])


def test_equal_printed_values_are_no_step():
    table = pd.DataFrame({"A": [0.1 + 0.2, 0.3]}, index=["APM", "Ensemble"])
    row = benchmark.signs(benchmark.published_steps(table, {"x": ("APM", "Ensemble")}, ["A"]), "published").iloc[0]
    assert (row["higher in"], row["equal in"], row["lower in"]) == (0, 1, 0)


def test_our_signs_come_from_the_paired_table():
    row = benchmark.signs(benchmark.paired(records(), "APM", ["ensemble"]), "ours", by="reference").iloc[0]
    assert row["sets"] == 2
    assert row["final - reference"] == pytest.approx((-5.0 - 10.0) / 2)
    assert row["lower in"] == 2


def test_beside_puts_each_set_in_the_column_that_it_stands_for(theirs):
    ours = pd.DataFrame({"mine": [20.0, 21.0], "other": [1.0, 2.0]}, index=["teacher", "final"])
    means = {"Average": ["A", "B"]}
    both = benchmark.beside(theirs, ours, {"mine": "B"}, means=means)
    assert both.loc[("published", "APM"), "B"] == "73.2"
    assert list(both.loc[("ours", "set")]) == ["", "mine", ""]
    assert list(both.loc[("ours", "final")]) == [
        "",
        "21.0",
        "21.0",
    ]  # the average is over B alone: nothing stands for A
    with pytest.raises(ValueError, match="unknown set of ours 'yours'"):
        benchmark.beside(theirs, ours, {"yours": "B"}, means=means)
    with pytest.raises(ValueError, match="unknown published column 'C'"):
        benchmark.beside(theirs, ours, {"mine": "C"}, means=means)
    with pytest.raises(ValueError, match="same published column"):
        benchmark.beside(theirs, ours, {"mine": "B", "other": "B"}, means=means)


def test_the_papers_steps_can_be_read_from_its_tables():
    table = published.wide(published.load("table1"))
    pair = {"Ensemble": ("APM (Ours) [teacher CLIP ViT-B/16]", "Ensemble")}
    steps = benchmark.published_steps(table, pair, ["ImageNet", "ImageNet-A"])
    assert list(steps["difference"].round(1)) == [-0.2, 2.3]


def test_corruptions_come_from_our_code_or_from_the_published_download(monkeypatch: pytest.MonkeyPatch) -> None:
    data = datasets.load("digits-test").subset([5, 2, 9])
    own = benchmark.corrupted_sets(data, ["fog", "snow"], [3, 5])
    assert [(d.corruption, d.severity) for d in own] == [("fog", 3), ("snow", 3), ("fog", 5), ("snow", 5)]
    whole = datasets.load("digits-test")
    monkeypatch.setattr(datasets, "load", lambda name: whole if name == "cifar10-c/fog/5" else None)
    (read,) = benchmark.corrupted_sets(data, ["fog"], [5], source="cifar10-c")
    assert read.indices.tolist() == data.indices.tolist()
    monkeypatch.setattr(datasets, "load", lambda name: whole.subset(4))
    with pytest.raises(ValueError, match="cifar10-c/fog/5 has 4 images, digits-test refers to image"):
        benchmark.corrupted_sets(data, ["fog"], [5], source="cifar10-c")

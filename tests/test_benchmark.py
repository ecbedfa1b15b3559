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


def test_a_download_in_another_order_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Class folders are sorted by class, CIFAR-10-C is not: image i of one is not image i of the other."""
    published_order = datasets.load("digits-test")
    by_class = replace(
        published_order.subset(np.argsort(published_order.labels, kind="stable")),
        indices=np.arange(len(published_order)),
    )
    monkeypatch.setattr(datasets, "load", lambda name: published_order)
    (made,) = benchmark.corrupted_sets(published_order.subset(20), ["fog"], [5], source="cifar10-c")
    assert len(made) == 20
    with pytest.raises(
        ValueError, match=r"cifar10-c/fog/5 and digits-test have the same label on \d+\.\d %.*torchvision"
    ):
        benchmark.corrupted_sets(by_class.subset(20), ["fog"], [5], source="cifar10-c")


# ------------------------------------------------------------------------------------------------- images that cannot be read


@pytest.fixture
def tree(tmp_path):
    """Two classes of ten images; the second file of the first class is cut off."""
    from PIL import Image

    for name in ("a", "b"):
        folder = tmp_path / name
        folder.mkdir()
        for i in range(10):
            Image.fromarray(np.full((8, 8, 3), 20 * i, dtype=np.uint8)).save(folder / f"{i}.png")
    broken = tmp_path / "a" / "1.png"
    broken.write_bytes(broken.read_bytes()[:50])
    return datasets.load(f"folder:{tmp_path}")


def test_pictures_of_a_set_leave_a_grey_square_for_an_image_that_cannot_be_read(tree):
    shown = benchmark.examples(tree, 20)
    assert len(shown) == 20
    assert [i for i, image in enumerate(shown) if image.shape != (8, 8, 3)] == [1]
    assert (shown[1] == 128).all()
    assert len(benchmark.examples(tree, 30)) == 20


def test_readable_images_are_chosen_or_the_broken_one_is_named(tree):
    rest = benchmark.readable(tree, on_error="record")
    assert rest.indices.tolist() == [0, *range(2, 20)]
    assert benchmark.readable(tree, on_error="record", most=2).indices.tolist() == [0, 2]
    assert benchmark.readable(tree, most=1).indices.tolist() == [0]
    with pytest.raises(datasets.UnreadableImage, match=r"1\.png"):
        benchmark.readable(tree)
    with pytest.raises(ValueError, match="none of the 1 images"):
        benchmark.readable(tree.subset([1]), on_error="record")
    with pytest.raises(ValueError, match="unknown on_error 'skip'"):
        benchmark.readable(tree, on_error="skip")


# ------------------------------------------------------------------------------------------------------------- in sentences


def test_notes_that_sets_share_are_said_once():
    table = pd.DataFrame(
        {
            "set": ["x", "y", "z"],
            "notes": ["Drawn by hand. CC BY 4.0, by A.", "Inverted. CC BY 4.0, by A.", "Other. Of 3.5 px."],
        }
    )
    assert benchmark.notes(table) == [
        "x: Drawn by hand.",
        "y: Inverted.",
        "z: Other. Of 3.5 px.",
        "x, y: CC BY 4.0, by A.",
    ]
    assert benchmark.notes(table.assign(notes="The same."))[-1] == "All sets: The same."


def with_paths(n=20):
    """One set: the teacher has images 0..4 wrong, final 5 more, and 15 was right on the way."""
    label = np.zeros(n, dtype=int)
    teacher = np.where(np.arange(n) < 5, 1, 0)
    final = np.where(np.arange(n) < 10, 1, 0)
    rows = records(n)
    rows = rows[(rows["method"] == "APM") & (rows["dataset"] == "digits-test")].copy()
    path = [[1, 0 if i in (0, 7) else f, f] for i, f in enumerate(final)]
    return rows.assign(label=label, prediction=final, teacher_prediction=pd.array(teacher, dtype="Int32"), path=path)


def test_a_conclusion_has_the_difference_with_its_interval_and_the_published_step_beside():
    rows = with_paths()
    expected = stats.mean_difference(rows)
    told = benchmark.conclusion(rows, "one set", {"Table 1": 1.25})
    assert f"Over one set (20 distinct images): final - teacher = {tables.percent(expected)} points" in told[0]
    assert expected.value == -25
    assert told[0].endswith("the student is worse than its teacher.")
    assert told[1].startswith("any - final = 10.0 [")  # images 0 and 7
    assert "+1.2 (Table 1)" in told[2]
    assert len(benchmark.conclusion(rows, "one set")) == 2
    same = rows.assign(teacher_prediction=pd.array(rows["prediction"], dtype="Int32"))
    assert "cannot be told from its teacher" in benchmark.conclusion(same, "one set")[0]
    swapped = rows.assign(
        teacher_prediction=pd.array(rows["prediction"], dtype="Int32"),
        prediction=rows["teacher_prediction"].astype(int),
    )
    assert "better than its teacher" in benchmark.conclusion(swapped, "one set")[0]
    with pytest.raises(ValueError, match="predictions and those of every iteration"):
        benchmark.conclusion(rows.assign(path=None), "one set")
    with pytest.raises(ValueError, match="one method, found APM, other"):
        benchmark.conclusion(pd.concat([rows, rows.assign(method="other")]), "one set")


def test_one_ensemble_can_stand_for_every_sets_own_prompts() -> None:
    own, chosen = (benchmark.load_sets(["digits-test"], 20, ensemble=name)[0] for name in (None, "imagenet-7"))
    assert own.templates != chosen.templates
    assert len(chosen.templates) == 7
    assert np.array_equal(own.indices, chosen.indices)
    assert "7 templates (imagenet-7)" in benchmark.prompts_note([chosen])
    with pytest.raises(ValueError, match=r"unknown.*'imagenet-8'"):
        benchmark.load_sets(["digits-test"], 20, ensemble="imagenet-8")

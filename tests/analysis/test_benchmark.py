"""Benchmarks over many datasets: every number recomputed by hand; sets and references that do not fit are refused."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from colours import Colour, noise

from apm import methods
from apm.analysis import benchmark, numbers, stats, tables
from apm.data import datasets, published
from apm.model import APMConfig
from apm.ttt import TTTConfig

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


def test_overview_says_what_stands_for_what_and_whose_images_they_are(sets):
    table = benchmark.overview(sets, {"digits-test": "ImageNet"}, taught=datasets.load("digits-train"))
    assert list(table["stands for"]) == ["ImageNet", "none"]
    assert list(table["images"]) == [20, 20]
    assert list(table["made from"]) == ["own images", "digits-test"]
    assert list(table["classes the teacher was taught"]) == [10, 10]
    assert "black on white" in table["notes"].iloc[1]
    assert "stands for" not in benchmark.overview(sets)
    assert "classes the teacher was taught" not in benchmark.overview(sets)
    assert benchmark.made_note(sets).startswith("1 of the 2 sets are images of digits-test")
    assert benchmark.made_note(sets[:1]) == ""
    with pytest.raises(ValueError, match="unknown dataset with a counterpart 'imagenet'"):
        benchmark.overview(sets, {"imagenet": "ImageNet"})


def test_zero_shot_is_said_to_be_supervised_where_the_teacher_was_taught(sets):
    assert "trained on the labels of digits-train" in benchmark.taught_note(datasets.load("digits-train"))
    assert benchmark.taught_note(None) == ""


def test_copies_are_said_to_be_copies(sets):
    assert benchmark.copies_note(sets) == ""
    said = [benchmark.copies_note([replace(sets[0], remark=remark)]) for remark in ("JPEG copies", "class folders")]
    assert ["will differ" in text for text in said] == [True, False]
    assert all("torchvision" in text and "clean" in text for text in said)


def test_a_teacher_at_chance_is_said_to_be(sets):
    rows = records()
    rows = rows[rows["method"] == "APM"]
    rows.loc[rows["dataset"] == "digits-inverted", "teacher_prediction"] = -1
    table = benchmark.zero_shot(rows, sets)
    assert table["above chance"].tolist() == ["yes", "no: as by chance"]
    assert float(table.loc["digits-test", "zero-shot"]) == pytest.approx(80.0)
    with pytest.raises(ValueError, match="digits-test: no predictions of the teacher"):
        benchmark.zero_shot(rows.assign(teacher_prediction=pd.array([None] * len(rows), dtype="Int32")), sets)


@pytest.mark.parametrize(
    ("low", "high", "expected"), [(51, 60, "yes"), (45, 55, "no: as by chance"), (30, 40, "no: below chance")]
)
def test_above_chance(low, high, expected):
    assert benchmark.above_chance(low, high, 50.0) == expected


def test_overview_is_the_same_wherever_the_datasets_lie(sets, monkeypatch, tmp_path):
    told = []
    for place in ("here", "there"):
        monkeypatch.setenv("DATA", str(tmp_path / place))
        data = replace(sets[0], notes=f"Read from {tmp_path / place / 'set'}.")
        told.append(benchmark.overview([data])["notes"].iloc[0])
    assert told == ["Read from DATA/set."] * 2


# ---------------------------------------------------------------------------------------------------- paired differences


REFERENCES = {"teacher": "ensemble", "one prompt": "one"}


def test_paired_by_hand():
    table = benchmark.paired(records(), "APM", REFERENCES)
    row = table.loc[("digits-test", "teacher")]
    assert (row["n"], row["gained"], row["lost"], row["verdict"]) == (20, 1, 2, "undecided")
    assert [float(row[name]) for name in ("reference accuracy", "final", "step", "p")] == pytest.approx([80, 75, -5, 1])
    expected = stats.paired_difference(np.arange(20) == 1, np.isin(np.arange(20), (2, 3)))
    assert row["step"].bounds == pytest.approx((expected.low, expected.high))
    assert (row["step"].n, row["step"].unit, row["step"].kind) == (20, "points", "difference")
    other = table.loc[("digits-inverted", "one prompt")]  # one is wrong on 8..13 and 0, APM on 8..13, 4 and 5
    assert (other["gained"], other["lost"]) == (1, 2)
    assert float(other["reference accuracy"]) == pytest.approx(65.0)


def test_paired_does_not_depend_on_the_order_of_rows():
    rows = records()
    one, other = (
        benchmark.paired(r, "APM", REFERENCES).sort_index() for r in (rows, rows.sample(frac=1, random_state=0))
    )
    pd.testing.assert_frame_equal(one, other)


def test_several_seeds_are_not_more_images_and_have_no_p():
    row = benchmark.paired(records(seeds=(0, 1, 2)), "APM", {"teacher": "ensemble"}).iloc[0]
    assert (row["n"], row["gained"], row["lost"]) == (20, 3, 6)
    assert float(row["step"]) == pytest.approx(-5.0)
    assert row["p"] is None


def test_methods_on_other_images_cannot_be_paired():
    rows = records()
    missing = rows[~((rows["method"] == "one") & (rows["sample"] == 7))]
    with pytest.raises(ValueError, match="20 images and one on 19"):
        benchmark.paired(missing, "APM", REFERENCES)
    moved = rows.assign(sample=rows["sample"].where(rows["method"] != "one", rows["sample"] + 1))
    with pytest.raises(ValueError, match="not on the same ones"):
        benchmark.paired(moved, "APM", REFERENCES)
    with pytest.raises(ValueError, match="unknown method of the records 'TPT'"):
        benchmark.paired(rows, "APM", {"x": "TPT"})


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


def test_published_steps_and_their_mean_by_hand(theirs):
    sets = benchmark.published_steps(theirs, {"Ensemble": ("APM", "Ensemble")}, ["A", "B"])
    assert [float(step) for step in sets["step"]] == pytest.approx([-0.1, 3.2])
    row = benchmark.steps(sets, "published").loc[("published", "Ensemble")]
    assert (row["step"].value, row["step"].kind) == (pytest.approx(1.55), "published")
    assert (row["sets"], row["higher in"], row["equal in"], row["lower in"]) == (2, 1, 0, 1)
    assert row["verdict"] == ""  # no interval, no verdict
    with pytest.raises(ValueError, match="unknown published row 'TPT'"):
        benchmark.published_steps(theirs, {"x": ("APM", "TPT")}, ["A"])
    with pytest.raises(ValueError, match="unknown published column 'C'"):
        benchmark.published_steps(theirs, {"x": ("APM", "Ensemble")}, ["C"])


def test_a_mean_step_is_over_the_sets_that_both_rows_have(theirs):
    theirs.loc["Ensemble", "A"] = np.nan
    sets = benchmark.published_steps(theirs, {"x": ("APM", "Ensemble")}, ["A", "B"])
    row = benchmark.steps(sets, "published").iloc[0]
    assert (row["sets"], float(row["step"]), float(row["final"])) == (1, pytest.approx(3.2), pytest.approx(73.2))


def test_equal_printed_values_are_no_step():
    table = pd.DataFrame({"A": [0.1 + 0.2, 0.3]}, index=["APM", "Ensemble"])
    row = benchmark.steps(benchmark.published_steps(table, {"x": ("APM", "Ensemble")}, ["A"]), "published").iloc[0]
    assert (row["higher in"], row["equal in"], row["lower in"]) == (0, 1, 0)


def test_our_mean_step_has_the_interval_of_images_with_all_their_copies(sets):
    ours = benchmark.by_origin(records(), sets)
    mean = benchmark.mean_step(ours, "APM", "ensemble")
    row = benchmark.steps(benchmark.paired(records(), "APM", {"teacher": "ensemble"}), "ours", {"teacher": mean}).iloc[
        0
    ]
    expected = stats.mean_difference(ours[ours["method"] == "APM"])
    assert (mean.value, *mean.bounds) == pytest.approx(expected[:3])
    assert (row["sets"], row["lower in"], str(row["gained"]), str(row["lost"])) == (2, 2, "1", "4")
    assert row["step"] == mean
    assert row["verdict"] == numbers.verdict(mean) == "undecided"


def test_the_rule_is_on_unrounded_numbers():
    for low, high, said in (
        (0.01, 0.5, "above"),
        (0.0, 0.5, "undecided"),
        (-0.5, -0.01, "below"),
        (-0.5, 0.0, "undecided"),
    ):
        assert numbers.verdict(numbers.Number(low / 2 + high / 2, low, high)) == said


def test_beside_puts_each_set_in_the_column_that_it_stands_for(theirs):
    ours = pd.DataFrame({"mine": [20.0, 21.0], "other": [1.0, 2.0]}, index=["teacher", "final"]).map(numbers.Number)
    means = {"Average": ["A", "B"]}
    both = benchmark.beside(theirs, ours, {"mine": "B"}, means=means)
    assert both.loc[("published", "APM"), "B"] == numbers.Number(73.2, kind="published")
    assert both.loc[("ours", "set")].fillna("").tolist() == ["", "mine", ""]
    # the average is over B alone: nothing stands for A
    assert [numbers.text(cell) for cell in both.loc[("ours", "final")]] == ["", "21.0", "21.0"]
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
    assert [float(step) for step in steps["step"]] == pytest.approx([-0.2, 2.3])


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
            "notes": ["Drawn by hand.", "Other. Of 3.5 px.", "Other. Of 3.5 px."],
        }
    ).set_index("set")
    assert benchmark.notes(table) == ["x: Drawn by hand.", "y, z: Other. Of 3.5 px."]
    assert benchmark.notes(table.assign(notes="The same.")) == ["x, y, z: The same."]


def test_the_setting_and_where_it_came_from_are_said() -> None:
    ours = TTTConfig(iterations=50, learning_rate=2e-3)
    said = benchmark.setting_note(ours, {"set": "digits-train", "samples": 64})
    assert "rate 0.002, K = 50, chosen on 64 images of digits-train, which no table scores" in said
    assert "published are 0.0001 and 20" in said
    assert "as published" in benchmark.setting_note(TTTConfig(), None)
    assert "the profile's; published are" in benchmark.setting_note(ours, None)


def test_the_grid_of_settings_holds_what_a_run_of_each_gives() -> None:
    teacher, data = Colour(), noise(12)
    teacher.feature_dtype = "float32"
    student = APMConfig(grid=(2, 2), patch=4, hidden=(16, 8), width=2, position_width=8)
    config = TTTConfig(student, iterations=3, learning_rate=5e-3)
    grid = benchmark.settings_grid(teacher, data, config, [5e-3, 5e-2], [1, 3])
    assert grid.index.tolist() == [(5e-3, 1), (5e-3, 3), (5e-2, 1), (5e-2, 3)]
    alone = methods.APM(teacher, config).predict(data, np.arange(12), 0)
    row = grid.loc[(5e-3, 3)]
    assert float(row["mean loss"]) == pytest.approx(alone.last_loss.mean())
    same = methods.ZeroShot(teacher).predict(data, np.arange(12), 0).prediction == alone.prediction
    assert float(row["agreement with the teacher"]) == pytest.approx(100 * same.mean())
    assert grid["in use"].tolist() == ["", "yes", "", ""]
    assert (grid["lowest at this K"] == "yes").groupby(level="K").sum().tolist() == [1, 1]
    # labels have no effect
    blind = benchmark.settings_grid(teacher, replace(data, labels=1 - data.labels), config, [5e-3, 5e-2], [1, 3])
    pd.testing.assert_frame_equal(grid, blind)
    with pytest.raises(ValueError, match=r"the setting in use, rate 0.005 and K = 3, is not among"):
        benchmark.settings_grid(teacher, data, config, [5e-2], [3])


def test_one_ensemble_can_stand_for_every_sets_own_prompts() -> None:
    own, chosen = (benchmark.load_sets(["digits-test"], 20, ensemble=name)[0] for name in (None, "imagenet-7"))
    assert own.templates != chosen.templates
    assert len(chosen.templates) == 7
    assert np.array_equal(own.indices, chosen.indices)
    assert "7 templates (imagenet-7)" in benchmark.prompts_note([chosen])
    with pytest.raises(ValueError, match=r"unknown.*'imagenet-8'"):
        benchmark.load_sets(["digits-test"], 20, ensemble="imagenet-8")

"""Methods beside each other and beside published numbers: every number recomputed by hand on a handful of records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
from fakes import records as rows_of_images

from apm import data as datasets
from apm import methods
from apm.analysis import compare, lineup, numbers, stats
from apm.data import prompts, published
from apm.data.published_sets import SETS as SETS_ON_DISK
from apm.ttt import TTTConfig

SETS = {
    "digits-test": (0, 1, 2, 3),
    "digits-inverted": (8, 9, 10, 11, 12, 13),
}  # set -> images that zero-shot has wrong
OURS = TTTConfig(iterations=50, learning_rate=2e-3)


def rows_of(method: str, right, *, dataset: str = "digits-test", **columns) -> pd.DataFrame:
    """Records of images 0, 1, ... of a set, of which these answers are right (1) or not (0)."""
    return rows_of_images(right, method=method, dataset=dataset, **{"set": dataset, "milliseconds": 2.0, **columns})


def records(seeds=(0,)) -> pd.DataFrame:
    """One prompt has image 0 wrong as well; the APM has images 4 and 5 wrong and mends image 3."""
    parts = []
    for name, wrong in SETS.items():
        failures = {"zero-shot": {*wrong}, lineup.ONE_PROMPT: {*wrong, 0}, "APM": {*wrong, 4, 5} - {3}}
        asked = pd.array([int(i not in wrong) for i in range(20)], dtype="Int32")
        for method, wrongs in failures.items():
            right = [int(i not in wrongs) for i in range(20)]
            parts += [rows_of(method, right, dataset=name, seed=seed, teacher_prediction=asked) for seed in seeds]
    return pd.concat(parts, ignore_index=True)


def test_overview_says_what_stands_for_what_and_whose_images_they_are(sets, monkeypatch, tmp_path) -> None:
    monkeypatch.setenv("DATA", str(tmp_path))
    placed = [replace(sets[0], notes=f"Read from {tmp_path / 'set'}."), sets[1]]
    table = compare.overview(placed, {"digits-test": "ImageNet"}, taught=datasets.load("digits-train"))
    assert table["stands for"].tolist() == ["ImageNet", "none"]
    assert table["made from"].tolist() == ["own images", "digits-test"]
    assert table["classes the teacher was taught"].tolist() == [10, 10]
    assert table["notes"].iloc[0] == "Read from DATA/set."  # the same wherever the sets lie
    assert not {"stands for", "classes the teacher was taught"} & set(compare.overview(sets))
    with pytest.raises(ValueError, match="unknown dataset with a counterpart 'imagenet'"):
        compare.overview(sets, {"imagenet": "ImageNet"})


def test_a_teacher_at_chance_is_said_to_be(sets) -> None:
    labels = np.array([0, 0, 0, 1, 2], dtype=np.int64)
    assert compare.chance(replace(sets[0].subset(5), labels=labels)) == 60.0
    said = [compare.above_chance(low, low + 10, 50.0) for low in (51, 45, 30)]
    assert said == ["yes", "no: as by chance", "no: below chance"]
    rows = records()[lambda r: r["method"] == "APM"]
    rows.loc[rows["dataset"] == "digits-inverted", "teacher_prediction"] = -1
    table = compare.zero_shot(rows, sets)
    assert table["above chance"].tolist() == ["yes", "no: as by chance"]
    assert float(table.loc["digits-test", "zero-shot"]) == pytest.approx(80.0)
    with pytest.raises(ValueError, match="digits-test: no predictions of the teacher"):
        compare.zero_shot(rows.assign(teacher_prediction=pd.array([None] * len(rows), dtype="Int32")), sets)


def test_versions_of_one_image_are_drawn_together(sets) -> None:
    rows = records()[lambda r: r["method"] == "APM"].drop(columns="set")
    ours = compare.by_origin(rows, sets)
    assert set(ours["dataset"]) == {"digits-test"}
    assert ours["set"].tolist() == rows["dataset"].tolist()
    # same means; the copies agree on images 4 and 5, so the interval is wider than that of independent images
    together, apart = (stats.estimate(part, stats.DIFFERENCE) for part in (ours, rows))
    assert together.value == pytest.approx(apart.value)
    assert together.high - together.low > apart.high - apart.low
    with pytest.raises(KeyError, match="digits-inverted"):
        compare.by_origin(rows, sets[:1])


def test_notes_say_prompts_setting_and_what_the_teacher_was_taught(teacher, sets) -> None:
    one, other = replace(sets[0], templates=("a {}",)), replace(sets[1], templates=("a {}", "the {}"))
    said = compare.notes([one, other], TTTConfig())
    assert said.startswith('Prompts: "a {}" on digits-test; "a {}" and "the {}" on digits-inverted.')
    assert said.endswith("as published.")
    lines = [
        {"method": "zero", "prompts": "original"},
        {"method": "zero", "name": "own"},
        {"method": "mta", "prompts": "original"},
    ]
    entries = lineup.parse(lines, teacher, OURS)
    selection = {"set": "digits-train", "samples": 64}
    said = compare.notes([one], OURS, entries=entries, selection=selection, taught=datasets.load("digits-train"))
    assert 'Prompts of ZERO and MTA: "a photo of a {}.".' in said
    assert "rate 0.002, K = 50, chosen on 64 images of digits-train" in said
    assert "trained on the labels of digits-train" in said


def test_the_grid_of_settings_holds_what_a_run_of_each_gives(teacher, config, sets) -> None:
    data = sets[0].subset(12, seed=0)
    grid = compare.settings_grid(teacher, data, config, [5e-3, 5e-2], [1, 3])
    assert grid.index.tolist() == [(5e-3, 1), (5e-3, 3), (5e-2, 1), (5e-2, 3)]
    alone = methods.APM(teacher, config).predict(data, np.arange(12), 0)
    row = grid.loc[(5e-3, 3)]
    assert float(row["mean loss"]) == pytest.approx(alone.last_loss.mean())
    same = methods.ZeroShot(teacher).predict(data, np.arange(12), 0).prediction == alone.prediction
    assert float(row["agreement with the teacher"]) == pytest.approx(100 * same.mean())
    assert grid["in use"].tolist() == ["", "yes", "", ""]
    assert (grid["lowest at this K"] == "yes").groupby(level="K").sum().tolist() == [1, 1]
    blind = compare.settings_grid(teacher, replace(data, labels=9 - data.labels), config, [5e-3, 5e-2], [1, 3])
    pd.testing.assert_frame_equal(grid, blind)  # labels have no effect
    assert 0 < compare.pass_milliseconds(teacher, data) < 10_000
    with pytest.raises(ValueError, match=r"unknown rate of selection '?0.005"):
        compare.settings_grid(teacher, data, config, [5e-2], [3])


def test_measured_accuracy_stands_beside_open_clips_for_the_same_weights() -> None:
    rows = rows_of("zero-shot", [1] * 40, dataset="pets", label=[1] * 30 + [2] * 10)  # 30 of 30 and 0 of 10
    made = compare.against_open_clip({("ViT-B-16-quickgelu", "openai"): rows, ("mini", None): rows})
    assert made.index.tolist() == [("ViT-B-16 / openai", "pets")]
    (row,) = made.to_dict("records")
    theirs = published.wide(published.load("teacher_zero_shot_openclip")).loc["ViT-B-16 / openai", "Pets"]
    found = [float(row[name]) for name in ("measured", "mean per class", "open_clip", "difference")]
    assert found == pytest.approx([75.0, 50.0, theirs, 75.0 - theirs])
    assert compare.against_open_clip({("ViT-B-16-quickgelu", "openai"): rows.assign(dataset="digits")}).empty


@pytest.fixture
def listed(sets):
    """A set as open_clip's list has it: name, prompts."""

    def made(which: str, **changes):
        templates = prompts.templates(published.OPEN_CLIP[which]["prompts"])
        return replace(sets[0], **{"name": which, "templates": templates, **changes})

    return made


@pytest.mark.parametrize(("name", "column"), [("cifar10", "CIFAR-10"), ("flowers102-official", "Flower102")])
def test_a_teacher_more_than_three_standard_errors_off_its_published_value_ends_the_run(listed, name, column) -> None:
    """4 classes of 10 and of 40 images in turn: the mean per class has fewer images in it than there are."""
    theirs = published.wide(published.load("teacher_zero_shot_openclip")).loc["ViT-B-32 / openai", column]
    labels = np.repeat([0, 1, 2, 3], [10, 40, 10, 40])
    images = 100 if name == "cifar10" else 4 / np.mean([1 / 10, 1 / 40, 1 / 10, 1 / 40])
    error = np.sqrt(theirs * (100 - theirs) / images)

    def measure(share: float, teacher=("ViT-B-32-quickgelu", "openai"), **changes):
        answers = np.concatenate([np.arange(n) < round(share * n) for n in (10, 40, 10, 40)])
        rows = rows_of("zero-shot", answers, dataset=name, label=labels).assign(prediction=np.where(answers, labels, 9))
        return compare.against_open_clip({teacher: rows}, [listed(name, **changes)])

    near = measure(round(theirs / 10) / 10)
    assert float(near["standard errors"].iloc[0]) == pytest.approx((10 * round(theirs / 10) - theirs) / error)
    wrong = rf"{name}: the zero-shot accuracy 10.0 % \(100 images.* {(theirs - 10) / error:.1f} standard errors from the {theirs:.1f} %"
    with pytest.raises(ValueError, match=wrong):
        measure(0.1)
    # nothing is published of these, so that nothing is held against anything
    assert measure(0.1, ("ViT-B-32-quickgelu", "laion9b")).empty
    for changes in (
        {"templates": ("a {}.",)},
        {"name": "pets-of-mine"},
        {"remark": "JPEG copies"},
        {"notes": "ONLY A PART: 3 images."},
    ):
        assert "standard errors" not in measure(0.1, **changes)


def test_every_set_that_can_be_held_has_a_column_and_these_are_its_own_prompts() -> None:
    theirs = published.wide(published.load("teacher_zero_shot_openclip"))
    for name, said in published.OPEN_CLIP.items():
        assert said["column"] in theirs
        assert SETS_ON_DISK[name].prompts == said["prompts"]
        assert theirs.loc["ViT-B-32 / openai", said["column"]] > 0


def test_paired_by_hand_whatever_the_order_of_rows() -> None:
    table = compare.paired(records().sample(frac=1, random_state=0))
    row = table.loc[("digits-test", "teacher")]
    assert (row["n"], row["gained"], row["lost"], row["verdict"]) == (20, 1, 2, "undecided")
    assert [float(row[name]) for name in ("reference accuracy", "final", "step", "p")] == pytest.approx([80, 75, -5, 1])
    assert row["step"].bounds == stats.paired_difference(np.arange(20) == 1, np.isin(np.arange(20), (2, 3))).bounds
    assert float(table.loc[("digits-inverted", "one prompt"), "reference accuracy"]) == pytest.approx(65.0)
    several = compare.paired(records(seeds=(0, 1, 2))).loc[("digits-test", "teacher")]
    assert (several["n"], several["gained"], several["p"]) == (20, 3, None)  # seeds are not more images


def test_the_mean_step_has_the_interval_of_images_with_all_their_copies(sets) -> None:
    ours = compare.by_origin(records(), sets)
    row = compare.steps(compare.paired(records()), "ours", ours).loc[("ours", "teacher")]
    assert row["step"] == stats.estimate(ours[ours["method"] == "APM"], stats.DIFFERENCE)
    assert (row["sets"], row["lower in"], str(row["gained"]), str(row["lost"])) == (2, 2, "1", "4")
    assert row["verdict"] == "undecided"


def test_published_steps_are_over_the_sets_that_both_rows_have() -> None:
    theirs = pd.DataFrame({"A": [50.0, 49.9], "B": [70.0, 73.2], "C": [0.3, 0.1 + 0.2]}, index=["r", "s"])
    theirs.loc["r", "D"] = 1.0
    printed = compare.published_steps(theirs, list("ABCD"), {"x": ("s", "r"), "absent": ("t", "r")})
    row = compare.steps(printed, "p").iloc[0]
    assert (row["sets"], row["higher in"], row["equal in"], row["lower in"]) == (3, 1, 1, 1)
    assert (row["step"].value, row["step"].kind, row["verdict"]) == (pytest.approx(3.1 / 3), "published", "")


def test_beside_puts_each_set_in_the_column_that_it_stands_for() -> None:
    theirs = pd.DataFrame({"A": [49.9], "B": [73.2], "Average": [61.6]}, index=["APM"])
    ours = pd.DataFrame({"mine": [21.0], "other": [2.0]}, index=["final"]).map(numbers.Number)
    both = compare.beside(theirs, ours, {"mine": "B"}, means={"Average": ["A", "B"]})
    assert both.loc[("published", "APM"), "B"] == numbers.Number(73.2, kind="published")
    assert both.loc[("ours", "set")].fillna("").tolist() == ["", "mine", ""]
    # the average is over B alone: nothing stands for A
    assert [numbers.text(cell) for cell in both.loc[("ours", "final")]] == ["", "21.0", "21.0"]
    for counterparts, message in (
        ({"yours": "B"}, "unknown set of ours 'yours'"),
        ({"mine": "C"}, "unknown published column 'C'"),
        ({"mine": "B", "other": "B"}, "same published column"),
    ):
        with pytest.raises(ValueError, match=message):
            compare.beside(theirs, ours, counterparts, means={})


ZERO_SHOT = [1, 0, 1, 1, 0, 1, 1, 1, 0, 1] * 4  # 28 of 40
MINE = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1] * 2  # 20 of the first 24, of which zero-shot has 17


@pytest.fixture
def every() -> pd.DataFrame:
    mine = {"confidence": [0.65, 0.65, 0.95, 0.95] * 6, "teacher_passes": 64.0, "saved_milliseconds": 5.0}
    parts = [
        rows_of("zero-shot", ZERO_SHOT, confidence=0.9, teacher_passes=1.0),
        rows_of(lineup.ONE_PROMPT, ZERO_SHOT),
        rows_of("APM", ZERO_SHOT, path=[[0, 1, 1]] * 40),
        rows_of("CoOp", MINE, state="trained once", prompts_read=20.0),
        *(rows_of("TDA", [k] * 2 + ZERO_SHOT[2:24], seed=seed, state="online") for seed, k in enumerate((1, 0, 1))),
        rows_of("Mine", MINE, **mine),
        rows_of("Mine: target, no student", [1, 0, *MINE[2:]]),
    ]
    return pd.concat(parts, ignore_index=True)


def test_every_number_of_the_table_by_hand(every: pd.DataFrame) -> None:
    made = compare.table(every, pass_milliseconds=0.5)
    reference, mine, tda = made.loc["zero-shot"], made.loc["Mine"], made.loc["TDA"]
    assert made["state"].tolist() == ["episodic"] * 5 + ["trained once", "online"]
    assert (float(reference["accuracy"]), float(mine["accuracy"])) == pytest.approx((70.0, 100 * 20 / 24))
    assert reference.isna()["difference from teacher"]  # the reference itself
    assert float(mine["teacher on the same images"]) == pytest.approx(100 * 17 / 24)
    step = mine["difference from teacher"]
    assert (step.value, step.n, step.unit, step.kind) == (pytest.approx(100 * 3 / 24), 24, "points", "difference")
    assert step.low < step.value < step.high
    assert float(mine["difference from its target"]) == pytest.approx(100 / 24)  # one image more is right
    assert made["difference from its target"].notna().sum() == 1
    # its own time and what another method's views saved it; a teacher pass that was read from the cache
    assert (float(mine["ms per image"]), float(reference["ms per image"])) == pytest.approx((7.0, 2.5))
    # two bins: 8 of 12 right at 0.65, 12 of 12 at 0.95; the teacher's on the 24 images that it saw
    assert float(mine["ECE"]) == pytest.approx(100 * (12 * abs(8 / 12 - 0.65) + 12 * abs(1 - 0.95)) / 24)
    assert float(mine["ECE of teacher"]) == pytest.approx(100 * abs(17 / 24 - 0.9))
    costs = mine["image passes"], made.loc["CoOp", "prompts read"], made.loc["APM", "student updates"]
    assert [float(cost) for cost in costs] == [64, 20, 2]
    high, low = 100 * np.mean([1, 1, *ZERO_SHOT[2:24]]), 100 * np.mean([0, 0, *ZERO_SHOT[2:24]])
    assert (float(tda["highest order"]), float(tda["lowest order"])) == pytest.approx((high, low))
    assert (tda["n"], float(tda["accuracy"])) == (24, pytest.approx((2 * high + low) / 3))
    assert made["highest order"].notna().sum() == 1
    assert "failed" not in made
    every.loc[every.index[-1], "prediction"] = -1
    assert compare.table(every)["failed"].tolist().count(1) == 1


def test_sets_count_alike_whatever_their_size(every: pd.DataFrame) -> None:
    rows = every[every["method"].isin(lineup.FIXED)]
    rows = rows.assign(set=np.where(rows["sample"] < 11, "b", "a"))
    accuracies = [100 * (part["prediction"] == 1).mean() for _, part in rows.groupby("set")]
    assert float(compare.table(rows).loc["APM", "accuracy"]) == pytest.approx(np.mean(accuracies))
    cells = compare.by_set(rows, ["b", "a"]).loc["APM"]
    assert [(float(cell), cell.n) for cell in cells] == [
        (pytest.approx(a), n) for a, n in zip(accuracies[::-1], (11, 29), strict=True)
    ]


def test_images_that_a_reference_lacks_are_errors(every: pd.DataFrame) -> None:
    far = rows_of("Far", MINE, sample=np.arange(100, 124))
    with pytest.raises(ValueError, match="Far saw 24 images that teacher did not"):
        compare.table(pd.concat([every, far], ignore_index=True))
    rows = records()
    with pytest.raises(ValueError, match="APM saw 1 images that zero-shot did not"):
        compare.paired(rows[~((rows["method"] == "zero-shot") & (rows["sample"] == 7))])


def test_published_steps_stand_beside_ours(every: pd.DataFrame) -> None:
    compared = compare.table(every)
    both = compare.methods_beside(compared, published.wide(published.load("table3")))
    assert both.index.tolist() == [name for name in compare.PUBLISHED_ROWS if name != "TPT + CoOp"]
    assert both.loc["CoOp", "our step"] == compared.loc["CoOp", "difference from one prompt"]
    assert both.loc["CoOp", "verdict"] == numbers.verdict(both.loc["CoOp", "our step"])
    printed = both.loc[["CoOp", lineup.ONE_PROMPT], "published"].map(float)
    assert float(both.loc["CoOp", "published step"]) == pytest.approx(printed.iloc[0] - printed.iloc[1])
    assert pd.isna([both.loc["TPT", "ours"], *both.loc[lineup.ONE_PROMPT, ["published step", "our step"]]]).all()


def test_the_figure_of_costs_has_a_line_per_method(every: pd.DataFrame) -> None:
    made = compare.table(every, pass_milliseconds=0.5)
    figure = compare.cost_figure(made)
    assert [text.get_text() for text in figure.axes[0].get_yticklabels()] == made.index.tolist()
    assert [text.get_text() for text in figure.legends[0].get_texts()] == list(lineup.STATES)

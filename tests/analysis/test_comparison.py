"""Methods side by side: which lines a profile may have, and every number of the table on a handful of records."""

from dataclasses import replace

import numpy as np
import pandas as pd
import pytest
import torch
from colours import Colour, noise, nothing_kept  # noqa: F401

from apm import methods, project
from apm.analysis import benchmark, comparison, numbers, stats
from apm.data.datasets import Dataset, UnreadableImage
from apm.methods import views
from apm.model import APMConfig
from apm.runs import records
from apm.ttt import TTTConfig

CONFIG = TTTConfig(
    APMConfig(grid=(2, 2), patch=4, hidden=(16, 8), width=2, position_width=8), iterations=3, learning_rate=5e-3
)


# --------------------------------------------------------------------------------------------------------- lines of a profile


def test_a_line_is_a_method_with_its_options() -> None:
    lines = [
        {"method": "zero", "samples": 32, "flip": False, "views": 20},
        {"method": "zero", "name": "ZERO, 10 views", "views": 10},
        {"method": "tda", "orders": [0, 5]},
        {"method": "apm-views", "views": 1},
    ]
    entries = comparison.parse(lines, Colour(), CONFIG)
    assert [e.name for e in entries] == ["ZERO", "ZERO, 10 views", "TDA", "APM, views"]
    assert [e.samples for e in entries] == [32, None, None, None]
    assert entries[0].runs[0][0].views == 20
    assert [(m.order_seed, seed) for m, seed in entries[2].runs] == [(0, 0), (5, 5)]
    assert entries[3].runs[0][0].config is CONFIG


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zero", "line 1: expected {method: NAME, ...} with one of apm-views, coop, mta"),
        ({"views": 3}, "line 1: expected {method: NAME"),
        ({"method": "zeo"}, "line 1: unknown baseline 'zeo'.*Did you mean 'zero'"),
        ({"method": "zero", "veiws": 3}, "line 1: unknown option of baseline 'zero' 'veiws'"),
        ({"method": "zero", "views": 2}, "line 1: zero confident views"),
        ({"method": "zero", "samples": 3}, 'line 1: samples must be "all" or a whole number of at least 10 images'),
        ({"method": "zero", "samples": "many"}, "line 1: samples must be"),
        ({"method": "zero", "orders": [0, 1]}, "line 1: zero is episodic"),
        ({"method": "tda", "orders": [1, 1]}, "line 1: orders must be different"),
        (
            {"method": "tda", "orders": 3},
            "line 1: orders must be different seeds, a list of whole numbers from 0, found 3",
        ),
        ({"method": "tda", "orders": [0, 1.5]}, "line 1: orders must be different seeds"),
        (
            {"method": "tda", "orders": [0, 1], "order_seed": 2},
            "line 1: order_seed: is one order and orders: are several",
        ),
        ({"method": "zero", "samples": 12.7}, "line 1: samples must be .* found 12.7"),
        ({"method": "zero", "samples": True}, "line 1: samples must be .* found True"),
        (
            {"method": "zero", "views": 10.5},
            "line 1: option views of baseline 'zero': expected a whole number, found 10.5",
        ),
        ({"method": "zero", "share": "0.1"}, "line 1: option share of baseline 'zero': expected a number, found '0.1'"),
        ({"method": "mta", "name": "APM"}, "line 1: there is a row 'APM' of the notebooks already"),
        ({"method": "mta", "name": "zero-shot"}, "line 1: there is a row 'zero-shot' of the notebooks already"),
    ],
)
def test_a_bad_line_is_named(line: object, message: str) -> None:
    with pytest.raises(ValueError, match=message.replace("{", r"\{").replace("}", r"\}")):
        comparison.parse([line], Colour(), CONFIG)


def test_fixed_rows_are_those_of_the_notebooks() -> None:
    assert set(comparison.FIXED) >= {methods.ZeroShot(Colour()).name, methods.APM(Colour(), CONFIG).name}
    assert comparison.at_published(Colour(), CONFIG)[0].name in comparison.FIXED
    for path in (project.root() / "notebooks").glob("0[123]*.ipynb"):
        assert 'name="zero-shot, one prompt"' in path.read_text().replace('\\"', '"')


def test_two_rows_of_one_name_are_refused() -> None:
    with pytest.raises(ValueError, match="line 2: there is a row 'MTA' of line 1 already"):
        comparison.parse([{"method": "mta"}, {"method": "mta", "views": 10}], Colour(), CONFIG)
    clash = {"method": "mta", "name": "APM, views: target, no student"}
    with pytest.raises(ValueError, match="line 2: there is a row 'APM, views: target, no student' of line 1"):
        comparison.parse([{"method": "apm-views"}, clash], Colour(), CONFIG)


# ------------------------------------------------------------------------------------------------------------------- running


def test_methods_share_the_views_of_one_set_before_the_next_one(tmp_path, monkeypatch) -> None:
    calls = []
    original = records.run_all
    monkeypatch.setattr(
        records,
        "run_all",
        lambda methods, sets, **options: (
            calls.append((methods[0].name, sets[0].name, options["seed"])) or original(methods, sets, **options)
        ),
    )
    one, two = noise(12), replace(noise(14), name="two", fingerprint="two")
    lines = [{"method": "zero", "views": 10}, {"method": "tda", "samples": 10, "orders": [4, 2]}]
    rows = comparison.run(comparison.parse(lines, Colour(), CONFIG), [one, two], folder=tmp_path, seed=7)
    per_set = [("ZERO", 7), ("TDA", 4), ("TDA", 2)]
    assert calls == [(method, d.name, seed) for d in (one, two) for method, seed in per_set]
    # the rows are in the order of the entries, then of the orders, whatever ran first
    order = rows.groupby(["method", "seed", "dataset"], sort=False).size()
    assert list(order.items()) == [
        *((("ZERO", 7, d.name), len(d)) for d in (one, two)),
        *((("TDA", seed, d.name), 10) for seed in (4, 2) for d in (one, two)),
    ]


def test_a_comparison_on_no_sets_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="expected at least one dataset"):
        comparison.run(comparison.parse([{"method": "tda"}], Colour(), CONFIG), [], folder=tmp_path)


def test_every_entry_runs_on_its_part_of_the_images(tmp_path) -> None:
    data = noise(24)
    lines = [
        {"method": "zero", "samples": 10, "views": 10},
        {"method": "tda", "samples": 12, "orders": [0, 1, 2]},
        {"method": "apm-views", "samples": 10, "views": 10},
    ]
    rows = comparison.run(comparison.parse(lines, Colour(), CONFIG), [data], folder=tmp_path)
    assert rows.groupby("method", sort=False).size().to_dict() == {
        "ZERO": 10,
        "TDA": 36,
        "APM, views": 10,
        "APM, views: target, no student": 10,
    }
    assert rows.groupby("method")["state"].unique().map(list).to_dict()["TDA"] == ["online"]
    assert set(rows[rows["method"] == "ZERO"]["state"]) == {"episodic"}
    assert set(rows[rows["method"] == "TDA"]["seed"]) == {0, 1, 2}
    own, target = (rows[rows["method"] == name] for name in ("APM, views", "APM, views: target, no student"))
    assert target["prediction"].tolist() == own["target_prediction"].tolist()
    assert target["confidence"].tolist() == own["target_confidence"].tolist()
    assert target["milliseconds"].tolist() == own["target_milliseconds"].tolist()
    assert (target["milliseconds"] > 0).all()
    assert (target["milliseconds"].to_numpy() < own["milliseconds"].to_numpy()).all()


def test_no_lines_give_no_rows(tmp_path) -> None:
    assert comparison.run([], [noise(12)], folder=tmp_path).empty


def test_an_image_that_fails_is_recorded_as_failed(tmp_path) -> None:
    data = noise(12)
    data.images[4] = 255  # a white image has no feature
    rows = comparison.run(
        comparison.parse([{"method": "zero", "views": 10}], Colour(), CONFIG), [data], folder=tmp_path
    )
    assert (rows["prediction"] < 0).sum() == 1
    assert rows["status"].str.startswith("non-finite").sum() == 1


def test_the_caller_says_what_an_image_with_an_error_does(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = views.encoded

    def failing(teacher, data, positions, *arguments, **options):
        if 4 in positions:
            raise RuntimeError("no")
        return original(teacher, data, positions, *arguments, **options)

    monkeypatch.setattr("apm.methods.method.encoded", failing)
    entries = comparison.parse([{"method": "zero", "views": 10}], Colour(), CONFIG)
    rows = comparison.run(entries, [noise(12)], folder=tmp_path)
    assert rows.loc[rows["prediction"] < 0, "sample"].tolist() == [4]
    with pytest.raises(records.RecordError, match="image 4"):
        comparison.run(entries, [noise(12)], folder=tmp_path, on_error="raise")


def test_the_time_of_a_teacher_pass_is_measured() -> None:
    assert 0 < comparison.pass_milliseconds(Colour(), noise(6), images=4, repeats=1) < 1000


def test_the_time_of_a_teacher_pass_does_not_need_images_that_cannot_be_read(tmp_path) -> None:
    class Damaged(list):
        def __getitem__(self, i):
            if i < broken:
                raise UnreadableImage(tmp_path / f"{i}.png", "cut off")
            return super().__getitem__(i)

    data = noise(6)
    data = replace(data, images=Damaged(data.images))
    broken = 2
    assert comparison.pass_milliseconds(Colour(), data, images=4, repeats=1) > 0
    broken = 6
    with pytest.raises(UnreadableImage, match=r"5\.png"):
        comparison.pass_milliseconds(Colour(), data, repeats=1)


# --------------------------------------------------------------------------------------------------------------- the table


def rows_of(method: str, right: list[int], *, seed: int = 0, start: int = 0, **columns) -> pd.DataFrame:
    n = len(right)
    return pd.DataFrame(
        {
            "dataset": ["toy-a", "toy-b"] * (n // 2),
            "corruption": "none",
            "severity": 0,
            "set": ["a", "b"] * (n // 2),
            "sample": np.arange(start, start + n),
            "method": method,
            "seed": seed,
            "label": 1,
            "prediction": right,
            "milliseconds": 2.0,
            "path": None,
            **columns,
        }
    )


REFERENCE = [1, 0, 1, 1, 0, 1, 1, 1, 0, 1] * 4  # 28 of 40: a 12 of 20, b 16 of 20
MINE = [1, 1, 1, 1, 1, 1, 1, 1, 0, 0, 1, 1] * 2  # 20 of the first 24: a 10 of 12, b 10 of 12; the reference: 8 and 9


@pytest.fixture
def every() -> pd.DataFrame:
    return pd.concat(
        [
            rows_of("zero-shot", REFERENCE, confidence=0.9, teacher_passes=1.0),
            rows_of(
                "Mine",
                MINE,
                confidence=[0.65, 0.65, 0.95, 0.95] * 6,
                teacher_passes=64.0,
                saved_milliseconds=5.0,
                state="episodic",
            ),
        ],
        ignore_index=True,
    )


def test_every_number_of_the_table_by_hand(every: pd.DataFrame) -> None:
    made = comparison.table(every, {"teacher": "zero-shot"}, pass_milliseconds=0.5)
    reference, mine = made.loc["zero-shot"], made.loc["Mine"]
    assert float(reference["accuracy"]) == pytest.approx(70.0)
    assert reference.isna()["difference from teacher"]  # the reference itself
    assert float(mine["accuracy"]) == pytest.approx(100 * 20 / 24)
    assert float(mine["teacher on the same images"]) == pytest.approx(100 * 17 / 24)
    step = mine["difference from teacher"]
    assert (step.value, step.n, step.unit, step.kind) == (pytest.approx(100 * 3 / 24), 24, "points", "difference")
    assert step.low < step.value < step.high
    assert mine["n"] == 24
    assert "failed" not in made
    assert mine["image passes"].value == 64
    cost = mine["ms per image"]
    # its own and those that another method's views saved it
    assert (cost.value, cost.kind) == (pytest.approx(7.0), "cost")
    assert float(reference["ms per image"]) == pytest.approx(2.5)  # a teacher pass, which was read from the cache
    disturbed = every.assign(milliseconds=every["milliseconds"].where(every["sample"] > 3, 5000.0))
    again = comparison.table(disturbed, {"teacher": "zero-shot"}, pass_milliseconds=0.5)
    assert again["ms per image"].equals(made["ms per image"])
    # two bins: 8 of 12 right at 0.65, 12 of 12 at 0.95
    assert float(mine["ECE"]) == pytest.approx(100 * (12 * abs(8 / 12 - 0.65) + 12 * abs(1 - 0.95)) / 24)
    assert float(reference["ECE"]) == pytest.approx(100 * abs(0.7 - 0.9))
    assert float(mine["ECE of teacher"]) == pytest.approx(100 * abs(17 / 24 - 0.9))  # on the 24 images that it saw


def test_passes_of_images_prompts_and_updates_are_different_things(every: pd.DataFrame) -> None:
    apm = rows_of("APM", MINE, teacher_passes=1.0, path=[[0, 1, 1]] * 24)
    tpt = rows_of("TPT", MINE, teacher_passes=64.0, prompts_read=20.0)
    made = comparison.table(pd.concat([every, apm, tpt], ignore_index=True), {"teacher": "zero-shot"})
    costs = made[["image passes", "prompts read", "student updates"]].map(lambda c: "" if pd.isna(c) else str(c))
    assert costs.loc["APM"].tolist() == ["1", "", "2"]
    assert costs.loc["TPT"].tolist() == ["64", "20", ""]


def test_methods_are_told_apart_by_what_they_know(every: pd.DataFrame, tmp_path) -> None:
    class Learned:
        online = False

        def data_identity(self, dataset: Dataset) -> str | None:
            return "split"

    assert comparison._state(Learned(), noise(10)) == "trained once"
    assert comparison._state(methods.ZeroShot(Colour()), noise(10)) == "episodic"
    rows = [rows_of(name, MINE, state=state) for name, state in (("TDA", "online"), ("CoOp", "trained once"))]
    both = pd.concat([*rows, every], ignore_index=True)
    made = comparison.table(both, {"teacher": "zero-shot"})
    assert made["state"].tolist() == ["episodic", "episodic", "trained once", "online"]
    assert made.index.tolist()[2:] == ["CoOp", "TDA"]
    assert comparison.LEARNED_NOTE in comparison.notes(both)
    assert comparison.LEARNED_NOTE not in comparison.notes(every)


def test_the_published_setting_is_a_row_unless_it_is_ours() -> None:
    (entry,) = comparison.at_published(Colour(), CONFIG, 12)
    method = entry.runs[0][0]
    assert (entry.name, entry.samples) == ("APM, published rate and K", 12)
    assert (method.config.iterations, method.config.learning_rate) == (20, 1e-4)
    assert method.config.student == CONFIG.student
    assert comparison.at_published(Colour(), method.config) == []
    assert comparison.at_published(Colour(), CONFIG)[0].samples is None
    with pytest.raises(ValueError, match="samples must be"):
        comparison.at_published(Colour(), CONFIG, 3)


def test_what_a_student_adds_to_its_target_is_a_paired_difference(every: pd.DataFrame) -> None:
    target = rows_of("Mine: target, no student", [1, 0, *MINE[2:]], confidence=0.5)
    made = comparison.table(pd.concat([every, target], ignore_index=True), {"teacher": "zero-shot"})
    step = made.loc["Mine", "difference from its target"]
    assert step.value == pytest.approx(100 / 24)  # one image more is right
    assert step.low <= step.value <= step.high
    assert made.loc[["zero-shot", "Mine: target, no student"], "difference from its target"].isna().all()
    assert "difference from its target" not in comparison.table(every, {"teacher": "zero-shot"})


def test_notes_are_those_that_the_rows_call_for(every: pd.DataFrame) -> None:
    assert comparison.notes(every) == list(comparison.NOTES)
    target = rows_of("Mine: target, no student", MINE)
    assert comparison.notes(pd.concat([every, target])) == [*comparison.NOTES, comparison.TARGET_NOTE]
    for value, said in ((0.0, False), (1.0, True)):
        tent = rows_of("TENT", MINE, batch_statistics=value)
        assert (comparison.STATISTICS_NOTE in comparison.notes(pd.concat([every, tent]))) == said


def test_sets_count_alike_whatever_their_size() -> None:
    part = rows_of("zero-shot", REFERENCE)
    part = part[~((part["set"] == "b") & (part["sample"] > 21))]  # a 20 images, b 11
    made = comparison.table(part, {"teacher": "zero-shot"})
    accuracies = [100 * (g["prediction"] == 1).mean() for _, g in part.groupby("set")]
    assert float(made.loc["zero-shot", "accuracy"]) == pytest.approx(np.mean(accuracies))
    assert float(made.loc["zero-shot", "accuracy"]) != pytest.approx(100 * (part["prediction"] == 1).mean())


def test_orders_have_a_mean_and_a_span() -> None:
    online = [
        rows_of("TDA", [k] * 2 + REFERENCE[2:24], seed=order, state="online") for order, k in enumerate((1, 0, 1))
    ]
    made = comparison.table(
        pd.concat([rows_of("zero-shot", REFERENCE), *online], ignore_index=True), {"teacher": "zero-shot"}
    )
    tda = made.loc["TDA"]
    values = [100 * np.mean([1, 1, *REFERENCE[2:24]]), 100 * np.mean([0, 0, *REFERENCE[2:24]])]
    assert tda["n"] == 24
    assert (float(tda["highest order"]), float(tda["lowest order"])) == pytest.approx(tuple(values))
    assert float(tda["accuracy"]) == pytest.approx((2 * values[0] + values[1]) / 3)
    assert pd.isna(made.loc["zero-shot", "highest order"])


def test_unknown_references_and_images_that_a_reference_lacks_are_errors(every: pd.DataFrame) -> None:
    with pytest.raises(ValueError, match="unknown method of the records 'zero shot'"):
        comparison.table(every, {"teacher": "zero shot"})
    elsewhere = pd.concat([every, rows_of("Far", MINE, start=100)], ignore_index=True)
    with pytest.raises(ValueError, match="Far saw 24 images that teacher did not"):
        comparison.table(elsewhere, {"teacher": "zero-shot"})


def test_failures_have_a_column_where_there_are_some(every: pd.DataFrame) -> None:
    every.loc[every.index[-1], "prediction"] = -1
    assert comparison.table(every, {"teacher": "zero-shot"})["failed"].tolist() == [0, 1]


def test_accuracy_per_set(every: pd.DataFrame) -> None:
    made = comparison.by_set(every, ["b", "a"])
    assert list(made.columns) == ["b", "a"]
    assert [(cell.value, cell.n) for cell in made.loc["Mine"]] == [(pytest.approx(100 * 10 / 12), 12)] * 2
    assert float(made.loc["zero-shot", "a"]) == pytest.approx(60.0)


def test_published_steps_stand_beside_ours() -> None:
    frames = [rows_of("one", REFERENCE), rows_of("zero-shot", REFERENCE), rows_of("Mine", MINE)]
    compared = comparison.table(pd.concat(frames, ignore_index=True), {"teacher": "zero-shot", "one prompt": "one"})
    theirs = pd.DataFrame({"Average": [59.0, 62.5, 60.0]}, index=["CLIP", "TPT", "CoOp"])
    rows = {"one": "CLIP", "Mine": "TPT", "absent": "CoOp"}
    both = comparison.beside_published(compared, theirs, rows, "Average")
    step = both.loc["Mine", "published step"]
    assert (step.value, step.kind) == (pytest.approx(3.5), "published")
    assert both.loc["Mine", "our step"] == compared.loc["Mine", "difference from one prompt"]
    assert both.loc["Mine", "verdict"] == numbers.verdict(both.loc["Mine", "our step"])
    assert [c for c in compared if c.startswith("difference")] == [
        "difference from teacher",
        "difference from one prompt",
    ]
    assert pd.isna(both.loc["one", "our step"])
    assert pd.isna(both.loc["absent", "ours"])
    assert float(both.loc["absent", "published step"]) == pytest.approx(1.0)
    assert len(numbers.tidy(both, "t")) > 8
    with pytest.raises(ValueError, match="unknown published row 'TTP'"):
        comparison.beside_published(compared, theirs, {"one": "TTP"}, "Average")


def test_the_cost_figure_shows_every_method(every: pd.DataFrame) -> None:
    made = comparison.table(every, {"teacher": "zero-shot"}, pass_milliseconds=0.5)
    figure, caption = comparison.cost_figure(made, "2 sets")
    gain, passes, spent = figure.axes
    assert [text.get_text() for text in gain.get_yticklabels()] == ["zero-shot", "Mine"]
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["zero-shot", "episodic"]
    # costs stand where they are, whoever else has the same
    assert [line.get_xdata()[0] for line in passes.lines] == [1.0, 64.0]
    assert [line.get_xdata()[0] for line in spent.lines] == [2.5, 7.0]
    assert gain.get_xscale() == "linear"
    assert "Mean over 2 sets" in caption
    assert "n = 24 to 40" in caption
    assert "logarithmic" not in caption
    with pytest.raises(ValueError, match="at least two methods"):
        comparison.cost_figure(made[:1], "2 sets")


def test_how_a_row_is_drawn_follows_from_what_it_is_not_from_its_name(every: pd.DataFrame) -> None:
    target = rows_of("Mine: target, no student", MINE)
    named = rows_of("APM in name only", MINE)
    lonely = rows_of("Else: target, no student", MINE)  # of no method here: a method of that name
    rows = pd.concat([every, target, named, lonely], ignore_index=True)
    student = rows_of("Its own student", MINE)
    student["path"] = [[0, 1]] * len(student)
    made = comparison.table(pd.concat([rows, student], ignore_index=True), {"teacher": "zero-shot"})
    figure, _ = comparison.cost_figure(made, "2 sets")
    places = {text.get_text(): place for place, text in enumerate(figure.axes[0].get_yticklabels())}
    colours = {line.get_ydata()[0]: line.get_color() for line in figure.axes[2].lines}
    drawn = {name: colours[place] for name, place in places.items() if place in colours}
    looks = {kind: colour for kind, (colour, _) in comparison._LOOKS.items()}
    assert drawn["Mine: target, no student"] == looks["its target"]
    assert drawn["APM in name only"] == drawn["Else: target, no student"] == looks["episodic"]
    assert drawn["Its own student"] == looks["APM"]


def test_a_method_looks_the_same_whatever_rows_are_beside_it(every: pd.DataFrame) -> None:
    rest = [rows_of(name, MINE, state=state) for name, state in (("TDA", "online"), ("Other", "episodic"))]
    looks = []
    for rows in (every, pd.concat([rest[0], every]), pd.concat([rest[1], every, rest[0]])):
        made = comparison.table(rows.reset_index(drop=True), {"teacher": "zero-shot"}, pass_milliseconds=0.5)
        figure, _ = comparison.cost_figure(made, "2 sets")
        spent = figure.axes[2]
        place = [text.get_text() for text in figure.axes[0].get_yticklabels()].index("Mine")
        looks += [(line.get_color(), line.get_marker()) for line in spent.lines if line.get_ydata()[0] == place]
    assert len(looks) == 3
    assert len(set(looks)) == 1
    assert len(set(comparison._LOOKS.values())) == len(comparison._LOOKS)


def test_a_scale_that_turns_logarithmic_is_marked_where_it_does(every: pd.DataFrame) -> None:
    made = comparison.table(every, {"teacher": "zero-shot"}, pass_milliseconds=0.5)
    column = "difference from teacher"

    def other(name: str, value: float) -> pd.DataFrame:
        step = numbers.Number(value, value - 4, value + 4, 24, "points", "difference")
        return pd.DataFrame([made.loc["Mine"].to_dict() | {column: step}], index=[name])

    near = [other(f"m{i}", 0.5 * i) for i in range(6)]
    figure, caption = comparison.cost_figure(pd.concat([made.loc[["zero-shot"]], *near, other("far", -40.0)]), "2 sets")
    gain = figure.axes[0]
    assert gain.get_xscale() == "symlog"
    assert "log scale" in [text.get_text() for text in gain.texts]
    assert any(patch.get_x() + patch.get_width() == -5 or patch.get_x() == -5 for patch in gain.patches)
    assert "beyond 5 points, the scale is logarithmic" in caption


# ------------------------------------------------------------------------------------------- further teachers, open_clip's list


def test_measured_accuracy_stands_beside_open_clips_for_the_same_weights() -> None:
    rows = rows_of("zero-shot", REFERENCE).assign(dataset="imagenet")
    made = benchmark.against_open_clip({("ViT-B-16-quickgelu", "openai"): rows, ("mini", None): rows})
    assert made.index.tolist() == [("ViT-B-16 / openai", "imagenet")]
    assert [float(cell) for cell in made["open_clip"]] == [68.34]
    assert [float(cell) for cell in made["difference"]] == [pytest.approx(70 - 68.34)]
    assert benchmark.against_open_clip({("ViT-B-16-quickgelu", "openai"): rows.assign(dataset="digits")}).empty


def test_mean_per_class_weighs_classes_alike() -> None:
    rows = rows_of("zero-shot", REFERENCE).assign(dataset="pets", label=[0] * 10 + [1] * 30)
    rows["prediction"] = 1  # 0 of 10 and 30 of 30
    made = benchmark.against_open_clip({("ViT-L-14-quickgelu", "openai"): rows})
    assert [float(cell) for cell in made["measured"]] == [pytest.approx(75.0)]
    assert [float(cell) for cell in made["mean per class"]] == [pytest.approx(50.0)]


def test_prompts_are_said_in_words() -> None:
    one = noise(10)
    two = Dataset("other", one.images, one.labels, one.classnames, ("a {}", "the {}"), "f" * 8, one.indices)
    assert benchmark.prompts_note([one], "x {}.") == 'Prompts: "a {}". One prompt: "x {}.".'
    third = replace(one, name="third")
    said = 'Prompts: "a {}" on toy, third; "a {}" and "the {}" on other.'
    assert benchmark.prompts_note([one, two, third]) == said


def test_rows_with_other_prompts_than_the_sets_are_named() -> None:
    lines = [
        {"method": "zero", "prompts": "original"},
        {"method": "zero", "name": "ZERO, the set's"},
        {"method": "mta", "prompts": "original"},
        {"method": "tda", "prompts": "original"},
        {"method": "tpt"},
    ]
    sets = [noise(10), replace(noise(10), name="dtd")]
    assert benchmark.prompts_note(sets, "x {}.", comparison.parse(lines, Colour(), CONFIG)) == (
        'Prompts: "a {}". One prompt: "x {}.". Prompts of ZERO and MTA: "a photo of a {}.". Prompts of TDA: "a {}" on toy; '
        '"{} texture." on dtd. Prompts of TPT: one, tuned from "a photo of a {}.".'
    )
    assert benchmark.prompts_note(sets, None, comparison.parse(lines[1:2], Colour(), CONFIG)) == 'Prompts: "a {}".'


def test_further_teachers_run_the_benchmark_again(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    from apm import teachers

    asked = []

    def load(name: str, **options):
        asked.append((name, options))
        return Colour()

    monkeypatch.setattr(teachers, "load", load)
    student = {"grid": [2, 2], "patch": 4, "hidden": [16, 8], "position_width": 8}
    options = {"student": student, "training": {"iterations": 2}, "device": "cpu", "folder": tmp_path, "seed": 0}
    lines = [{"teacher": "ViT-L-14", "pretrained": "openai", "name": "L"}, {"teacher": "H", "precision": "bf16"}]
    found = benchmark.further_teachers(lines, [noise(12)], "a photo of a {}.", **options)
    assert list(found) == ["L", "H"]
    assert asked == [
        ("ViT-L-14", {"device": "cpu", "pretrained": "openai", "precision": "fp32", "feature_dtype": "float32"}),
        ("H", {"device": "cpu", "precision": "bf16", "feature_dtype": "float32"}),
    ]
    assert list(dict.fromkeys(found["L"]["method"])) == ["zero-shot, one prompt", "zero-shot", "APM"]
    with pytest.raises(ValueError, match=r"expected \{teacher: NAME"):
        benchmark.further_teachers([{"name": "x"}], [noise(12)], "a {}", **options)
    with pytest.raises(ValueError, match="two lines are named 'L'"):
        benchmark.further_teachers([lines[0], lines[0]], [noise(12)], "a {}", **options)


def test_rows_of_a_table_carry_the_teachers_name() -> None:
    index = pd.MultiIndex.from_tuples([("teacher", "zero-shot"), ("APM", "final")], names=["method", "counting rule"])
    made = benchmark.with_teacher(pd.DataFrame({"a": ["1", "2"]}, index=index), "ViT-L/14")
    assert list(made.index) == [("teacher, ViT-L/14", "zero-shot"), ("APM, ViT-L/14", "final")]


def test_preparing_is_done_once_before_the_images_and_not_where_records_exist(tmp_path) -> None:
    prepared = []

    class Careful:
        name = "careful"
        modules = ("stats",)

        def settings(self):
            return {}

        def prepare(self, dataset):
            prepared.append(dataset.name)

        def predict(self, dataset, positions, seed):
            assert prepared
            from apm.methods import Predictions

            return Predictions(np.zeros(len(positions), dtype=np.int64))

    for _ in range(2):
        records.run(Careful(), noise(12), folder=tmp_path, shard_size=4)
    assert prepared == ["toy"]


def test_views_are_shared_between_methods_of_a_comparison(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn = []
    true = views.view_pixels
    monkeypatch.setattr(views, "view_pixels", lambda *a, **o: drawn.append(1) or true(*a, **o))
    lines = [{"method": "zero", "views": 10}, {"method": "mta", "views": 10}]
    rows = comparison.run(comparison.parse(lines, Colour(), CONFIG), [noise(12)], folder=tmp_path)
    assert len(drawn) == 12
    assert torch.tensor(rows[rows["method"] == "MTA"]["saved_milliseconds"].to_numpy()).gt(0).all()
    assert stats.MINIMUM_SAMPLES <= 12

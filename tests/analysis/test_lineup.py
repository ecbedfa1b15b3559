"""The other methods of a profile: which lines it may have, and what running them leaves."""

import numpy as np
import pytest

from apm import teachers
from apm.analysis import compare, lineup
from apm.methods import views
from apm.runs import records


@pytest.fixture
def data(sets):
    return [one.subset(12, seed=0) for one in sets]


def test_a_line_is_a_method_with_its_options(teacher, config) -> None:
    lines = [
        {"method": "zero", "samples": 32, "flip": False, "views": 20},
        {"method": "zero", "name": "ZERO, 10 views", "views": 10},
        {"method": "tda", "orders": [0, 5]},
        {"method": "apm-views", "views": 1},
    ]
    entries = lineup.parse(lines, teacher, config)
    assert [e.name for e in entries] == ["ZERO", "ZERO, 10 views", "TDA", "APM, views"]
    assert [e.samples for e in entries] == [32, "all", "all", "all"]
    assert entries[0].runs[0][0].views == 20
    assert [(m.order_seed, seed) for m, seed in entries[2].runs] == [(0, 0), (5, 5)]
    assert entries[3].runs[0][0].config is config


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("zero", "expected {method: NAME, ...} with one of apm-mirror, apm-views, coop, mta"),
        ({"views": 3}, "expected {method: NAME"),
        ({"method": "zeo"}, "unknown baseline 'zeo'.*Did you mean 'zero'"),
        ({"method": "zero", "veiws": 3}, "unknown option of baseline 'zero' 'veiws'"),
        ({"method": "zero", "views": 10.5}, "Zero: views: expected a whole number, found 10.5"),
        ({"method": "zero", "samples": 3}, 'samples must be "all" or a whole number of at least 10 images'),
        ({"method": "zero", "samples": True}, "samples must be .* found True"),
        ({"method": "zero", "orders": [0, 1]}, "zero is episodic"),
        ({"method": "tda", "orders": [1, 1]}, "orders must be different seeds"),
        ({"method": "tda", "orders": [0, 1.5]}, "orders must be different seeds"),
        ({"method": "tda", "orders": 3}, "orders must be different seeds, a list of whole numbers from 0, found 3"),
        ({"method": "tda", "orders": [0, 1], "order_seed": 2}, "order_seed: is one order and orders: are several"),
        ({"method": "mta", "name": "zero-shot"}, "there is a row 'zero-shot' of the notebooks already"),
        ({"method": "apm-views", "views": 10}, "there is a row 'APM, views' of line 1 already"),
        ({"method": "mta", "name": "APM, views: target, no student"}, "there is a row '.*' of line 1 already"),
    ],
)
def test_a_bad_line_is_named(line: object, message: str, teacher, config) -> None:
    message = "baselines, line 2: " + message.replace("{", r"\{").replace("}", r"\}")
    with pytest.raises(ValueError, match=message):
        lineup.parse([{"method": "apm-views"}, line], teacher, config)


def test_the_rows_of_every_benchmark_and_the_published_setting(teacher, config) -> None:
    own = lineup.own_rows(teacher, config, "a {}.")
    (entry,) = lineup.at_published(teacher, config, 12)
    assert [*(method.name for method in own), entry.name] == list(lineup.FIXED)
    assert own[0].templates == ("a {}.",)
    assert set(compare.REFERENCES.values()) < set(lineup.FIXED)
    method = entry.runs[0][0]
    assert (method.config.iterations, method.config.learning_rate, entry.samples) == (20, 1e-4, 12)
    assert method.config.student == config.student
    assert lineup.at_published(teacher, method.config) == []
    with pytest.raises(ValueError, match="samples must be"):
        lineup.at_published(teacher, config, 3)


def test_further_teachers_have_the_options_of_their_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(teachers, "load", lambda name, **options: (name, options))
    lines = [{"teacher": "ViT-L-14", "pretrained": "openai", "name": "L"}, {"teacher": "H", "precision": "bf16"}]
    assert lineup.further_teachers(lines, device="cpu", precision="fp32") == {
        "L": ("ViT-L-14", {"device": "cpu", "precision": "fp32", "pretrained": "openai"}),
        "H": ("H", {"device": "cpu", "precision": "bf16"}),
    }
    with pytest.raises(ValueError, match=r"expected \{teacher: NAME"):
        lineup.further_teachers([{"name": "x"}])
    with pytest.raises(ValueError, match="two lines are named 'L'"):
        lineup.further_teachers([lines[0], lines[0]])


def test_every_entry_runs_on_its_part_of_every_set(tmp_path, monkeypatch, teacher, config, data) -> None:
    ran, drawn, original, pixels = [], [], records.run, views.view_pixels

    def spied(method, dataset, **options):
        ran.append((method.name, dataset.name, options["seed"]))
        return original(method, dataset, **options)

    monkeypatch.setattr(records, "run", spied)
    monkeypatch.setattr(views, "view_pixels", lambda *a, **o: drawn.append(1) or pixels(*a, **o))
    lines = [
        {"method": "zero", "samples": 10, "views": 10},
        {"method": "tda", "orders": [4, 2]},
        {"method": "apm-views", "samples": 10, "views": 10},
    ]
    rows = lineup.run(lineup.parse(lines, teacher, config), data, folder=tmp_path, seed=7)
    # set by set, so that methods share the views of an image
    per_set = [("ZERO", 7), ("TDA", 4), ("TDA", 2), ("APM, views", 7)]
    assert ran == [(method, d.name, seed) for d in data for method, seed in per_set]
    assert len(drawn) == 20
    own, target = (rows[rows["method"] == name] for name in ("APM, views", "APM, views: target, no student"))
    assert (own["saved_milliseconds"] > 0).all()
    sizes = rows.groupby(["method", "seed"], sort=False).size().to_dict()
    expected = {("ZERO", 7): 20, ("TDA", 4): 24, ("TDA", 2): 24, ("APM, views", 7): 20}
    assert list(sizes.items()) == [*expected.items(), (("APM, views: target, no student", 7), 20)]
    states = rows.groupby("method")["state"].unique().map(list)
    assert states[["ZERO", "TDA"]].to_list() == [["episodic"], ["online"]]
    for name in ("prediction", "confidence", "milliseconds"):
        assert target[name].tolist() == own[f"target_{name}"].tolist()
    assert target["path"].isna().all()


def test_the_caller_says_what_an_image_with_an_error_does(tmp_path, monkeypatch, teacher, config, data) -> None:
    assert lineup.run([], data, folder=tmp_path).empty
    original = views.encoded

    def failing(teacher, dataset, positions, *arguments, **options):
        if 4 in positions:
            raise RuntimeError("no")
        return original(teacher, dataset, positions, *arguments, **options)

    monkeypatch.setattr("apm.methods.method.encoded", failing)
    entries = lineup.parse([{"method": "zero", "views": 10}], teacher, config)
    with pytest.raises(ValueError, match="expected at least one dataset"):
        lineup.run(entries, [], folder=tmp_path)
    rows = lineup.run(entries, data[:1], folder=tmp_path)
    assert np.flatnonzero(rows["prediction"] < 0).tolist() == [4]
    with pytest.raises(records.RecordError, match="image"):
        lineup.run(entries, data[:1], folder=tmp_path, on_error="raise")

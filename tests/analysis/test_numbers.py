"""Numbers keep their value, interval, n and kind until a table is shown; the manifest lists what a notebook made."""

import math
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest

from apm import project
from apm.analysis import numbers
from apm.analysis.numbers import Number
from apm.analysis.publish import Publisher
from apm.project import manifest


@pytest.fixture
def folder() -> Path:
    return project.results_dir("mini")


def table() -> pd.DataFrame:
    final, p = [Number(60.5, 57.0, 63.64, 192), Number(1.0)], [Number(0.0312, unit="", kind="p"), None]
    cells = {"final": final, "loss": [1.26e-8, 2.0], "p": p, "images": [3, 4], "verdict": ["holds", "does not hold"]}
    index = pd.MultiIndex.from_tuples([("APM", "final"), ("teacher", "")], names=["method", "rule"])
    return pd.DataFrame(cells, index=index)


@pytest.mark.parametrize(
    ("cell", "small", "shown"),
    [
        (Number(60.5, 57.0, 63.64), False, "60.5 [57.0, 63.6]"),
        (Number(60.5, 57.0, 63.64).short, False, "60.5"),
        (Number(-0.04, -0.3, 0.2), False, "0.0 [-0.3, 0.2]"),
        (Number(math.nan), False, ""),
        (Number(0.0004, kind="p"), False, "< 0.001"),
        (Number(12.0, kind="count"), False, "12"),
        (Number(0.0003, -0.011, 0.02, unit="", kind="measure"), True, "0.0003 [-0.0110, 0.0200]"),
        (1.26e-8, True, "1.26e-08"),
        (np.float32(12.34), False, "12.3"),
        (np.int64(1234), False, "1234"),
        (True, False, "yes"),
        (pd.NA, False, ""),
        ("a < b", False, "a < b"),
    ],
)
def test_a_cell_is_shown_with_the_digits_that_it_needs(cell: object, small: bool, shown: str) -> None:
    assert numbers.text(cell, small=small) == shown


@pytest.mark.parametrize(("kind", "small"), [("measure", True), ("difference", False), ("accuracy", False)])
def test_a_measure_below_1_needs_more_than_one_decimal_and_a_percentage_does_not(kind: str, small: bool) -> None:
    assert numbers.is_small(pd.Series([Number(0.571, 0.535, 0.606, 64, "", kind), Number(2.0, kind=kind)])) == small
    assert not numbers.is_small(pd.Series([Number(2.0, kind=kind), 0.571]))


def test_numbers_are_ordered_by_value_and_what_is_none_is_refused() -> None:
    assert max(Number(1.0, 0.0, 9.0), Number(2.0)).value == 2.0
    with pytest.raises(ValueError, match="low <= high"):
        Number(1.5, 2.0, 1.0)
    with pytest.raises(ValueError, match="Did you mean 'accuracy'"):
        Number(1.5, kind="acuracy")


def test_tidy_rows_hold_what_the_cells_hold_and_come_back_from_their_file(tmp_path: Path) -> None:
    rows = numbers.tidy(table(), "02_x", kinds={"loss": "loss", "verdict": "verdict"})
    path = numbers.write(rows, tmp_path / "x.csv")
    back = numbers.parse(path.read_text(), str(path))
    assert list(back.columns) == list(numbers.COLUMNS)
    assert numbers.find(back, "02_x", "APM · final", "final") == Number(60.5, 57.0, 63.64, 192)
    kinds, words = (back.set_index(["row", "column"])[name] for name in ("kind", "text"))
    assert kinds["APM · final"][["loss", "images", "verdict"]].tolist() == ["loss", "count", "verdict"]
    assert words["teacher", "verdict"] == "does not hold"
    assert len(back) == 9  # the empty p-value is no number


def test_a_number_that_is_not_there_is_said_with_the_nearest() -> None:
    rows = numbers.tidy(table(), "02_x")
    for where, message in (
        (("03_x", "teacher", "final"), "run the notebook that begins with 03_"),
        (("02_x", "techer", "final"), "Did you mean 'teacher'"),
        (("02_x", "teacher", "finale"), "Did you mean 'final'"),
    ):
        with pytest.raises(numbers.NoSuchNumber, match=message):
            numbers.find(rows, *where)
    with pytest.raises(ValueError, match="expected a number, found the verdict 'holds'"):
        numbers.find(rows, "02_x", "APM · final", "verdict")


@pytest.mark.parametrize("axis", [0, 1])
def test_names_that_stand_twice_are_refused(axis: int) -> None:
    frame = pd.DataFrame([[1.0, 2.0], [3.0, 4.0]], index=["a", "b"], columns=["c", "d"])
    twice = frame.set_axis(["a", "a"], axis=axis)
    with pytest.raises(ValueError, match="'a' stands there more than once"):
        numbers.tidy(twice, "02_x")


def test_publish_writes_numbers_files_and_manifest_and_shows(folder: Path, capsys: pytest.CaptureFixture) -> None:
    publish = Publisher("mini", "02_corruptions")
    publish(table(), "02_x", "A caption", ["One note.", "", "Another."], kinds={"verdict": "verdict"})
    figure, _ = plt.subplots()
    publish(figure, "02_f", "A figure")
    made = manifest.read(folder)["notebooks"]["02_corruptions"]
    assert not made["complete"]  # whoever ran the notebook to its end says so
    assert [(e["name"], e["kind"], e["caption"], e["notes"]) for e in made["entries"]] == [
        ("02_x", "table", "A caption", "One note. Another."),
        ("02_f", "figure", "A figure", ""),
    ]
    assert all((folder / file).is_file() for entry in made["entries"] for file in entry["files"])
    assert len(numbers.read(folder)) == 9
    assert "A caption: 2 rows" in capsys.readouterr().out
    assert "60.5 [57.0, 63.6]" in (folder / "tables" / "02_x.html").read_text()
    assert "60.5 [57.0, 63.6]" in (folder / "tables" / "02_x.csv").read_text()


def test_what_is_published_holds_no_path_of_the_machine(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", str(tmp_path / "sets"))
    Publisher("mini", "02_corruptions")(table(), "02_x", "A caption", f"Ten images, {tmp_path}/sets/cifar10/test.")
    (entry,) = manifest.read(folder)["notebooks"]["02_corruptions"]["entries"]
    assert entry["notes"] == "Ten images, DATA/cifar10/test."
    assert "DATA/cifar10/test" in (folder / "tables" / "02_x.md").read_text()


def test_publish_refuses_names_that_do_not_fit_and_numbers_that_are_gone_are_said(folder: Path) -> None:
    publish = Publisher("mini", "02_corruptions")
    publish(table(), "02_x", "")
    for name, message in (("02_x", "published already"), ("03_x", "number of its notebook"), ("02_/x", "no file name")):
        with pytest.raises(ValueError, match=message):
            publish(table(), name, "")
    numbers.numbers_of(folder, "02_corruptions").unlink()
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        numbers.read(folder)

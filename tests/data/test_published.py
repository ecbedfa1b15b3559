"""Published numbers: the committed files are what they were, and every number says where it was read."""

import hashlib

import pandas as pd
import pytest

from apm.data import published
from apm.project import root

PUBLISHED = (
    "9953629f7be92a76a65cf7d880f4fb6ab4a4abc04881a6d139bd4c0ae4eec318"  # of all names and bytes: not edited by accident
)


@pytest.mark.parametrize(
    ("text", "expected"), [("241.7 (s+u)", 241.7), ("0.4", 0.4), ("-1.5", -1.5), ("", None), ("about 3", None)]
)
def test_the_number_that_a_cell_begins_with(text, expected):
    assert published.number(text) == pytest.approx(float("nan") if expected is None else expected, nan_ok=True)


def test_files_are_unchanged_and_every_number_has_a_source():
    files = sorted((root() / "data" / "published").glob("*.csv"))
    assert hashlib.sha256(b"".join(path.name.encode() + path.read_bytes() for path in files)).hexdigest() == PUBLISHED
    for path in files:
        frame = published.load(path.stem)
        assert list(frame.columns) == ["table", "row", "column", "value", "text", "unit", "source"]
        assert not frame.duplicated(["table", "row", "column"]).any()


def test_values_are_numbers_or_nan_with_their_text_and_wide_is_the_papers_layout():
    frame, several = published.load("table1"), published.load("table5")
    cell = frame[(frame["row"] == "CLIP-ViT-B/16") & (frame["column"] == "ImageNet-A")].iloc[0]
    assert (cell["value"], cell["text"], cell["unit"]) == (47.8, "47.8", "% top-1")
    flag = frame[frame["unit"] == "flag"].iloc[0]
    assert (pd.isna(flag["value"]), flag["text"]) == (True, "no")
    table = published.wide(published.load("table2"))
    assert table.shape[1] == 17  # the flag, 15 corruptions, the printed average
    assert (table.loc["Joint Train", "brightness"], table.index[0]) == (62.3, "Joint Train")
    for wrong, table, message in (
        (several, None, "several tables: choose one of"),
        (several, "Table 77", "unknown table 'Table 77'"),
        (pd.concat([frame, frame.iloc[:1]]), None, "duplicate"),
    ):
        with pytest.raises(ValueError, match=message):
            published.wide(wrong, table)


def test_unknown_ambiguous_missing_and_malformed_files_are_refused(tmp_path, monkeypatch):
    with pytest.raises(ValueError, match=r"unknown published table 'table7'.*table1_natural_shifts"):
        published.load("table7")
    with pytest.raises(ValueError, match="fits several"):
        published.load("t")
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    with pytest.raises(FileNotFoundError, match="no published tables"):
        published.load("table1")
    (tmp_path / "data" / "published").mkdir(parents=True)
    for text, message in (
        ("table,row,value\nT,a,1\n", "columns table, row, column, value, unit, source; found table, row, value"),
        ("table,row,column,value,unit,source\nT,a,x,no,,\nT,a,b,1.5,%,\n", "line 3: the value 1.5 has no source"),
    ):
        (tmp_path / "data" / "published" / "bad.csv").write_text(text)
        with pytest.raises(ValueError, match=message):
            published.load("bad")


def test_numbers_of_other_methods_stand_together() -> None:
    shifts, crossed = (
        published.other_methods(benchmark).set_index(["published in", "method"])
        for benchmark in ("natural shifts", "cross-dataset")
    )
    assert shifts.loc[("TDA's README, RN50", "TDA"), "ImageNet-Sketch"] == 38.12
    assert shifts.loc[("TPT's README, RN50", "TPT RN50"), "ImageNet"] == 60.74
    assert crossed.loc[("TDA's README, RN50", "TDA"), "Average (10 sets)"] == 61.03
    corrupted = published.other_methods("corruptions").set_index("method")
    assert corrupted["mean"].to_dict() == {"source": 43.5, "norm": 20.4, "tent": 18.6}
    with pytest.raises(ValueError, match="unknown benchmark of other methods 'shifts'"):
        published.other_methods("shifts")

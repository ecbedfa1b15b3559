"""Published numbers: the committed files are what they were, and every number says where it was read."""

import hashlib

import pandas as pd
import pytest

from apm.data import published
from apm.project import root

EXPECTED = {  # rows and sha256 of each file: published numbers are not edited by accident
    "usual_accuracy": (1, "9c227af82f03e3e77873b06fd8d198e6c5cceb3c8b73350dded0d90ffd2bc8e9"),
    "consistency_checks": (33, "6ad93643f197d5c83bc9a23b2919046bd2321cd1f3538283e147e7c6655dd4d2"),
    "settings": (37, "60843eddd2347f9d8f46f53d38924d6893845563dd39384541226c32e938afdf"),
    "table1_natural_shifts": (96, "95f4a75133cd1c03d637ad13bc552e3c74689e309dd5b5219a6f514ca58be15a"),
    "table2_imagenet_c_level5": (102, "02ea443055044dd02fbcba4e1d1b34d9615d7441f4ac56887ff7e070b1aadad7"),
    "table3_cross_dataset": (66, "d1089efebcf667ef3e90af212aca6e565ab5a704d4be55fd03d96416fb9ea6bc"),
    "table4_compute": (52, "9f9e6a3992c2731d0fcb65f259334c2fd9efa084b13c7ce349417cd663a9eba1"),
    "table5_and_appendix": (43, "41ac8f5fa263664ef6a765cab0ecb553f69f7251226206b2d323fc8912624f46"),
    "teacher_zero_shot_openclip": (75, "f96494c70efdf007b9998b0e7685740727ab444dedd59b2f9e1e38a800305fe4"),
    "tda_settings": (45, "01ebc51ce8c777c347578d31345bdab8db03b67bfda39b0962c812c7e757948b"),
    "tda_reference": (119, "b7918cc77609a5678c8a7463daeb48676b3fd05ae65c454a91e22731e88589c3"),
    "tent_reference": (48, "75ffc265a561113c6a8646dc158d8ea8baf60b64e6481ee9a0f83b929892ee69"),
    "tpt_reference": (85, "ff91f974aa77b39d6329056c5780f2ca87662ad38742c54534de5587526ba164"),
}


@pytest.mark.parametrize(
    ("text", "expected"), [("241.7 (s+u)", 241.7), ("0.4", 0.4), ("-1.5", -1.5), ("", None), ("about 3", None)]
)
def test_the_number_that_a_cell_begins_with(text, expected):
    assert published.number(text) == pytest.approx(float("nan") if expected is None else expected, nan_ok=True)


def test_files_are_unchanged_and_every_number_has_a_source():
    files = sorted((root() / "data" / "published").glob("*.csv"))
    assert {path.stem for path in files} == set(EXPECTED)
    for path in files:
        frame = published.load(path.stem)
        assert (len(frame), hashlib.sha256(path.read_bytes()).hexdigest()) == EXPECTED[path.stem], path.stem
        assert list(frame.columns) == ["table", "row", "column", "value", "text", "unit", "source"]
        assert (frame.loc[frame["value"].notna(), "source"].str.len() > 0).all()
        assert not frame.duplicated(["table", "row", "column"]).any()


def test_values_are_numbers_or_nan_with_their_text_and_wide_is_the_papers_layout():
    frame = published.load("table1")
    cell = frame[(frame["row"] == "CLIP-ViT-B/16") & (frame["column"] == "ImageNet-A")].iloc[0]
    assert (cell["value"], cell["text"], cell["unit"]) == (47.8, "47.8", "% top-1")
    flag = frame[frame["unit"] == "flag"].iloc[0]
    assert (pd.isna(flag["value"]), flag["text"]) == (True, "no")
    table = published.wide(published.load("table2"))
    assert table.shape[1] == 17  # the flag, 15 corruptions, the printed average
    assert (table.loc["Joint Train", "brightness"], table.index[0]) == (62.3, "Joint Train")
    several = published.load("table5")
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

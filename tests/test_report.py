"""The report page holds every table and figure that was left, in the notebooks' order, with captions."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from apm import figures, report, tables


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    (tmp_path / "profiles").mkdir()
    (tmp_path / "notebooks").mkdir()
    cells = [
        new_markdown_cell("# 01 · A title & more\n\n**Question.** Does it\nhold?"),
        new_code_cell('save("01_second")\nsave("01_first")\nsave("01_picture")'),
    ]
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "01_a.ipynb")
    nbformat.write(new_notebook(cells=cells), tmp_path / "notebooks" / "02_b.ipynb")
    out = tmp_path / "results" / "mini"
    for name in ("01_first", "01_second"):
        table = pd.DataFrame({"method": ["APM"], "final": [61.25]})
        tables.save(table, name, out / "tables", f"Caption of {name}", "n = 3 images.")
    figure, _ = figures.image_strip([np.zeros((4, 4))])
    figures.save(figure, "01_picture", out / "figures", "Caption of the picture")
    return out


def test_sections_follow_the_notebooks_and_their_order_of_saving(folder: Path) -> None:
    (section,) = report.sections(folder, ["01_a", "02_b"])  # 02_b left nothing
    assert section.title == "01 · A title & more"
    assert section.question == "Does it hold?"
    assert [p.stem for p in section.tables] == ["01_second", "01_first"]
    assert [p.stem for p in section.figures] == ["01_picture"]


def test_a_section_shows_tables_with_caption_and_footer_and_figures_inside_the_page(folder: Path) -> None:
    page = report.show(report.sections(folder, ["01_a"])[0])._repr_html_()
    for text in ("Caption of 01_first", "n = 3 images.", "61.2", "Caption of the picture", "data:image/png;base64,"):
        assert text in page
    assert "A title &amp; more" in page
    assert "http" not in page


def test_long_tables_are_folded_away(folder: Path) -> None:
    table = pd.DataFrame({"method": ["APM"] * 40, "final": np.arange(40.0)})
    tables.save(table, "01_first", folder / "tables", "Long", "")
    page = report.show(report.sections(folder, ["01_a"])[0])._repr_html_()
    assert "<summary>Long (40 rows)</summary>" in page


def test_a_report_without_results_says_what_to_run(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        report.sections(folder / "nothing", ["01_a"])


def test_wide_tables_are_turned_for_reading_and_narrow_or_long_ones_are_not() -> None:
    wide = pd.DataFrame(
        {"method": ["APM", "teacher"], "rule": ["final", ""], **{f"c{i}": [i, i + 0.5] for i in range(12)}}
    )
    turned = tables.upright(wide)
    assert list(turned.columns) == ["condition", "APM · final", "teacher"]
    assert turned["condition"].tolist() == [f"c{i}" for i in range(12)]
    assert turned["teacher"].tolist() == [i + 0.5 for i in range(12)]
    assert tables.upright(wide.iloc[:, :5]) is not None
    assert list(tables.upright(wide.iloc[:, :5]).columns) == list(wide.columns[:5])
    long = pd.concat([wide] * 20)
    assert len(tables.upright(long)) == 40

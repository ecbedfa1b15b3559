"""The report page holds every table and figure that was left, in the notebooks' order, with captions."""

from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from apm import figures, report, run, tables


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


def test_a_gif_is_embedded_as_one_and_figures_have_the_width_of_a_notebook(folder: Path) -> None:
    from PIL import Image

    frames = [Image.new("P", (30, 20), color) for color in (0, 1)]
    frames[0].save(folder / "figures" / "01_moving.gif", save_all=True, append_images=frames[1:])
    section = report.sections(folder, ["01_a"])[0]
    assert [p.name for p in section.figures] == ["01_picture.png", "01_moving.gif"]
    page = report.show(section)._repr_html_()
    assert "data:image/gif;base64," in page
    assert 'style="width: 30px"' in page


def test_the_headline_takes_its_numbers_from_the_benchmark_tables(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        report.in_short(folder)
    rows = [("teacher", "zero-shot", "70.1 [60.0, 80.0]"), ("APM", "final", "69.9"), ("APM", "final - teacher", "-0.2")]
    rows.append(("APM", tables.HEADERS["any"], "80.0"))
    table = pd.DataFrame(rows, columns=["method", "counting rule", "Mean"])
    tables.save(table, "02_corruptions", folder / "tables", "Caption")
    (line,) = report.in_short(folder).to_dict("records")
    assert line["teacher, zero-shot"] == "70.1 [60.0, 80.0]"
    assert line["APM, final"] == "69.9"
    assert line["final - teacher"] == "-0.2"
    assert line["any (upper bound, uses labels)"] == "80.0"


def test_every_table_and_figure_of_the_paper_leads_to_a_notebook_that_exists(folder: Path) -> None:
    from apm.depends import PACKAGE

    known = {path.stem for path in (PACKAGE.parent / "notebooks").glob("*.ipynb")}
    assert {notebook for _, _, notebook in report.PAPER} <= known
    page = report.paper_map(report.sections(folder, ["01_a"]))._repr_html_()
    assert "01_natural_shifts (not run)" in page


def test_times_are_those_that_the_runner_noted(folder: Path) -> None:
    assert report.times(folder, ["01_a"])["notebook"].tolist() == ["not measured in this folder"]
    run.note_time(folder, "02_b", 2.26)
    run.note_time(folder, "01_a", 61.4)
    table = report.times(folder, ["01_a", "02_b", "03_c"])
    assert table["notebook"].tolist() == ["01_a", "02_b", "together"]
    assert table["seconds"].tolist() == ["61", "2", "64"]


def test_verdicts_come_from_the_audit_and_ask_for_it_where_it_is_missing(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ONLY=08_claims_audit"):
        report.verdicts(folder)
    tables.save(
        pd.DataFrame({"claim": ["c"], "figure": ["1.0"], "verdict": ["holds"]}), "08_claims", folder / "tables", "C"
    )
    assert report.verdicts(folder).to_dict("records") == [{"claim": "c", "figure": "1.0", "verdict": "holds"}]


def test_methods_of_all_comparisons_stand_in_one_table(tmp_path: Path) -> None:
    (tmp_path / "tables").mkdir()
    head = "method,state,n,accuracy,difference from teacher,teacher passes\n"
    (tmp_path / "tables" / "01_methods.csv").write_text(
        head + 'APM,episodic,9,50.0,"-0.1 [-0.5, 0.2]",1\nTDA,online,9,51.0,"0.4 [0.0, 0.9]",1\n'
    )
    (tmp_path / "tables" / "03_methods.csv").write_text(head + 'APM,episodic,9,50.0,"0.3 [0.1, 0.4]",1\n')
    made = report.methods_in_short(tmp_path).set_index("method")
    assert list(made.columns) == [
        "state",
        "teacher passes",
        "natural shifts: difference from teacher",
        "cross-dataset: difference from teacher",
    ]
    assert made.loc["APM"].tolist() == ["episodic", "1", "-0.1 [-0.5, 0.2]", "0.3 [0.1, 0.4]"]
    assert made.loc["TDA"].tolist() == ["online", "1", "0.4 [0.0, 0.9]", ""]
    assert report.methods_in_short(tmp_path / "nothing").empty

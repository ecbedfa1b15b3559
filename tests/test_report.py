"""The report page holds every table and figure that was left, in the notebooks' order, with captions."""

import html
import re
from pathlib import Path

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbformat.v4 import new_code_cell, new_markdown_cell, new_notebook

from apm import audit, figures, report, run, tables

RESULTS = Path(__file__).resolve().parents[1] / "results"


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
    assert [p.stem for p in section.parts] == ["01_second", "01_first", "01_picture"]


def test_tables_and_figures_stand_in_the_order_of_the_notebook(folder: Path) -> None:
    notebook = folder.parents[1] / "notebooks" / "01_a.ipynb"
    cells = ["# 01", 'save(f"01_each_{name}")\nsave("01_picture")', 'save("01_second")', 'save("01_first")']
    nbformat.write(new_notebook(cells=[new_markdown_cell(cells[0]), *map(new_code_cell, cells[1:])]), notebook)
    figure, _ = figures.image_strip([np.zeros((4, 4))])
    for name in ("01_each_cat", "01_first"):
        figures.save(figure, name, folder / "figures", "Caption")
    (section,) = report.sections(folder, ["01_a"])
    assert [p.name for p in section.parts] == [
        "01_each_cat.png",
        "01_picture.png",
        "01_second.csv",
        "01_first.png",
        "01_first.csv",
    ]


def _cells(page: str) -> list[str]:
    found = re.findall(r"<t[dh]\b[^>]*>(.*?)</t[dh]>", page, flags=re.S)
    return sorted(html.unescape(cell).replace("\xa0", "").strip() for cell in found)


@pytest.mark.parametrize("path", sorted(RESULTS.glob("*/tables/*.md")), ids=lambda p: f"{p.parts[-3]}-{p.stem}")
def test_the_report_shows_the_cells_that_the_notebook_saved(path: Path) -> None:
    lines = [line for line in path.read_text().splitlines() if line.startswith("|")]
    rows = [
        [cell.strip().replace("\\|", "|") for cell in re.split(r"(?<!\\)\|", line)[1:-1]]
        for i, line in enumerate(lines)
        if i != 1
    ]
    shown = _cells(report._table(path.with_suffix(".csv")))
    if len(rows[0]) <= 12 or len(rows) - 1 > 12:
        assert shown == sorted(cell for row in rows for cell in row)
    else:  # turned: the names of the rows are joined
        names = next(i for i, cell in enumerate(zip(*rows[1:], strict=True)) if re.match(r"[-+]?\d", "".join(cell)))
        joined = [" · ".join(cell for cell in row[:names] if cell) for row in rows[1:]]
        assert shown == sorted(["condition", *joined, *(cell for row in rows for cell in row[names:])])


def test_the_report_keeps_small_numbers_and_headings_as_saved(folder: Path) -> None:
    table = pd.DataFrame({"": ["L_rgb"], "loss": ["1.1e-14"], "ratio": ["0.57"], "sum": ["410.0"]})
    tables.save(table, "01_first", folder / "tables", "Caption")
    shown = _cells(report.show(report.sections(folder, ["01_a"])[0])._repr_html_())
    assert {"1.1e-14", "0.57", "410.0"} <= set(shown)
    assert not [cell for cell in shown if "Unnamed" in cell]


def test_links_to_notebooks_lead_to_those_beside_the_executed_report(folder: Path) -> None:
    page = report.show(report.sections(folder, ["01_a"])[0])._repr_html_()
    assert 'href="01_a.ipynb"' in page


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
    assert turned["APM · final"].tolist() == ["0.0", *(f"{i}.0" for i in range(1, 12))]
    counts = wide.assign(c11=[256, 32])
    assert tables.upright(counts)["teacher"].tolist() == [*(f"{i}.5" for i in range(11)), "32"]
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
    assert 'style="width: 30px; --width: 30px"' in page
    assert 'alt="Caption of the picture"' in page


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
    assert line["final - teacher (points)"] == "-0.2"
    assert line["any (upper bound, uses labels)"] == "80.0"


def benchmark(folder: Path, name: str, column: str, difference: str) -> None:
    rows = [("teacher", "zero-shot", "70.1"), ("APM", "final", "69.9"), ("APM", "final - teacher", difference)]
    rows.append(("APM", tables.HEADERS["any"], "80.0"))
    table = pd.DataFrame(rows, columns=["method", "counting rule", column])
    tables.save(table, name, folder / "tables", "Caption", "n = 30 images per condition. More.")


def test_the_finding_is_computed_from_the_benchmarks_and_the_audit(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(report, "_teacher", lambda profile, notebook: "small")
    benchmark(folder, "02_corruptions", "Mean", "1.5 [0.5, 2.5]")
    benchmark(folder, "03_cross_dataset", "Average", "-0.2 [-0.4, -0.1]")
    verdicts = [audit.HOLDS, audit.HOLDS, audit.FAILS, audit.UNTESTED]
    claims = pd.DataFrame({"claim": list("abcd"), "figure": "1", "verdict": verdicts})
    tables.save(claims, "08_claims", folder / "tables", "C")
    text = repr(report.headline(folder, "mini"))
    assert "corruptions 1.5 [0.5, 2.5]; cross-dataset -0.2 [-0.4, -0.1]." in text
    assert "excludes 0 in 2 of these 2 means (1 above, 1 below)" in text
    assert (
        "Of the 4 claims of the abstract: ✓ holds: 2, × does not hold: 1, ? cannot be tested in this profile: 1."
        in text
    )
    assert "profile mini · teacher small · 02_corruptions: n = 30 images per condition" in text
    benchmark(folder, "02_corruptions", "Mean", "0.1 [-0.1, 0.2]")
    assert "in 1 of these 2 means (0 above, 1 below)" in repr(report.headline(folder, "mini"))


def test_the_teacher_is_that_of_the_profile() -> None:
    assert report._teacher("mini", "01_natural_shifts") == "mini"
    assert report._teacher("cifar10", "01_natural_shifts") == "apm-cifar10, apm-cifar10.safetensors"


def test_the_tables_on_top_say_over_which_sets_their_means_are(tmp_path: Path) -> None:
    labels = [name for name, _, _ in report.BENCHMARKS]
    assert len(set(labels)) == len(labels)
    assert {name for name, _ in report.COMPARISONS} <= set(labels)
    columns = {name: column for name, _, column in report.BENCHMARKS}
    for profile in sorted(p.parent.parent for p in RESULTS.glob("*/tables/01_methods.csv")):
        short = report.in_short(profile).set_index("benchmark")["final - teacher (points)"]
        methods = report.methods_in_short(profile).set_index("method").loc["APM"]
        assert columns["natural shifts, all sets"] == "Average"
        for name, _ in report.COMPARISONS:
            both = (short[name], methods[f"{name}: method - teacher (points)"])
            assert both[0].split()[0] == both[1].split()[0], (profile, name, both)


def test_every_table_and_figure_of_the_paper_leads_to_a_notebook_that_exists(folder: Path) -> None:
    from apm.depends import PACKAGE

    known = {path.stem for path in (PACKAGE.parent / "notebooks").glob("*.ipynb")}
    assert {notebook for _, _, notebook in report.PAPER} - {""} <= known
    named = " ".join(item for item, _, _ in report.PAPER)
    for number in range(1, 15):
        assert re.search(rf"Tables? (?:\d+, )*{number}[ab]?\b", named), f"Table {number}"
    for number in range(1, 9):
        assert f"Figure {number}" in named
    page = report.paper_map(report.sections(folder, ["01_a"]))._repr_html_()
    assert "01_natural_shifts (not run)" in page


def test_times_are_those_that_the_runner_noted(folder: Path) -> None:
    assert report.times(folder, ["01_a"])["notebook"].tolist() == ["not measured in this folder"]
    run.note_time(folder, "02_b", 2.26)
    run.note_time(folder, "01_a", 61.4)
    table = report.times(folder, ["01_a", "02_b", "03_c"])
    assert table["notebook"].tolist() == ["01_a", "02_b", "together"]
    assert table["last run (s)"].tolist() == ["61", "2", "64"]
    run.note_time(folder, "01_a", 3.0)  # from the records
    table = report.times(folder, ["01_a", "02_b", "03_c"])
    assert table["last run (s)"].tolist() == ["3", "2", "5"]
    assert table["longest run (s)"].tolist() == ["61", "2", "64"]


def test_verdicts_come_from_the_audit_and_ask_for_it_where_it_is_missing(folder: Path) -> None:
    with pytest.raises(FileNotFoundError, match="ONLY=08_claims_audit"):
        report.verdicts(folder)
    tables.save(
        pd.DataFrame({"claim": ["c"], "figure": ["1.0"], "verdict": ["holds"]}), "08_claims", folder / "tables", "C"
    )
    made = report.verdicts(folder)
    assert list(made.columns) == ["claim", "verdict", "figure"]
    assert made.to_dict("records") == [{"claim": "c", "figure": "1.0", "verdict": "✓ holds"}]
    assert report.emphasis(made.iloc[0]) == ("verdict",)


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
        "natural shifts, all sets: method - teacher (points)",
        "cross-dataset: method - teacher (points)",
    ]
    assert made.loc["APM"].tolist() == ["episodic", "1", "-0.1 [-0.5, 0.2]", "0.3 [0.1, 0.4]"]
    assert made.loc["TDA"].tolist() == ["online", "1", "0.4 [0.0, 0.9]", ""]
    assert report.methods_in_short(tmp_path / "nothing").empty


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"method": "APM", "counting rule": "final"}, True),
        ({"method": "APM", "counting rule": "final - teacher"}, False),
        ({"condition": "OOD Average", "APM \N{MIDDLE DOT} final": "1"}, True),
        ({"condition": "fog 5", "APM \N{MIDDLE DOT} final": "1", "teacher": "2"}, ("APM \N{MIDDLE DOT} final",)),
        ({"method": "APM", "n": "3"}, True),
        ({"method": "TPT", "n": "3"}, False),
        ({"source": "published", "row": "APM (Ours)"}, True),
        ({"table": "Table 1", "agrees": "no"}, ("agrees",)),
    ],
)
def test_scores_means_and_verdicts_stand_out(row: dict[str, str], expected: bool | tuple[str, ...]) -> None:
    assert report.emphasis(pd.Series(row)) == expected


def test_provenance_says_once_what_all_share_and_counts_shards_of_this_code_only(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = "0123456789abcdef0123456789abcdef01234567"
    shards = pd.DataFrame(
        {
            "shard": ["a", "b", "old"],
            "dataset": "digits",
            "method": "APM",
            "seed": 0,
            "corruption": ["none", "fog", "fog"],
            "severity": [0, 5, 5],
            "n": [10, 20, 40],
            "commit": commit,
            "machine": "Linux x86_64",
            "device": "cpu",
            "python": "3.11.0",
            "torch": "2.0",
            "open_clip_torch": "3.0",
        }
    )
    metas = [{"key": shard, "code": "old" if shard == "old" else "new"} for shard in shards["shard"]]
    monkeypatch.setattr(report.records, "provenance_table", lambda folder: shards)
    monkeypatch.setattr(report.records, "_shard_files", lambda folder: range(3))
    monkeypatch.setattr(report.records, "_metadata", metas.__getitem__)
    monkeypatch.setattr(report.records, "_current_code", lambda meta: "new")
    page = report.provenance(tmp_path)._repr_html_()
    assert page.count("0123456") == page.count("Linux x86_64") == 1
    assert commit not in page
    assert "2 record shards, 30 predictions" in page
    assert "1 shards of other code" in page
    assert page.index("<details") < page.index("<table")
    assert {"30", "2"} <= set(_cells(page))
    monkeypatch.setattr(report.records, "_current_code", lambda meta: "newer")
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        report.provenance(tmp_path)

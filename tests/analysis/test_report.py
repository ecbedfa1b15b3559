"""The report shows what the manifest lists, computes its first lines from numbers, and refers to the figures beside it."""

import shutil
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from apm import project
from apm.analysis import numbers, report, tables
from apm.analysis.numbers import Number
from apm.analysis.publish import Publisher
from apm.project import manifest, profiles

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APM_RESULTS", str(tmp_path))
    publish_all()
    return tmp_path / "mini"


def publish_all(gain: float = 0.1) -> None:
    rows = {"teacher · zero-shot": 76.5, "APM · final": 76.6, "APM · any (upper bound, uses labels)": 84.2}
    cells = {tuple(row.split(" · ")): Number(value, value - 2, value + 2, 192) for row, value in rows.items()}
    cells["APM", tables.DIFFERENCE] = Number(gain, gain - 0.2, gain + 0.2, 192, "points", "difference")
    index = pd.MultiIndex.from_tuples(list(cells), names=["method", "rule"])
    publish = Publisher("mini", "02_corruptions")
    publish(
        pd.DataFrame({"Mean": list(cells.values())}, index=index), "02_corruptions", "Corruptions <&>", "Made from x."
    )
    publish(pd.DataFrame({"n": range(40)}, index=[f"row {i}" for i in range(40)]), "02_long", "A long one")
    figure, _ = plt.subplots(figsize=(6.0, 2.0))
    publish(figure, "02_accuracy", "Accuracy <b>", "n = 192.")
    publish = Publisher("mini", "08_claims_audit")
    audit = pd.DataFrame(
        {"verdict": ["holds", "does not hold", "does not hold"], "counted as": ["tested", "tested", "by construction"]},
        index=pd.Index(["A", "B", "C"], name="claim"),
    )
    publish(audit, "08_claims", "Claims", kinds={"verdict": "verdict"})


def test_the_first_lines_are_computed_from_numbers(folder: Path) -> None:
    first, claims, verified = report.lead(numbers.read(folder), "Verified.")
    assert "corruptions 0.1 [-0.1, 0.3]" in first
    assert "excludes 0 in 0 of 1." in first
    assert claims.startswith(
        "Of 2 claims that were tested 1 hold, 1 do not hold and 0 cannot be told here; 1 more follow"
    )
    assert verified == "Verified."
    publish_all(gain=0.5)
    assert "excludes 0 in 1 of 1: corruptions." in report.lead(numbers.read(folder), "")[0]


def test_without_benchmarks_and_audit_the_first_lines_say_nothing_of_them(folder: Path) -> None:
    assert report.lead(pd.DataFrame(columns=list(numbers.COLUMNS)), "Verified.") == ["Verified."]


def test_the_page_shows_what_was_published_and_embeds_no_figure(folder: Path) -> None:
    (folder / "figures" / "02_my_own.png").write_bytes((folder / "figures" / "02_accuracy.png").read_bytes())
    page = report.write("mini").read_text()
    assert page.count("Corruptions &lt;&amp;&gt;") >= 1  # text is never mark-up
    assert 'src="figures/02_accuracy.png"' in page
    assert 'style="width: ' in page
    assert "base64" not in page
    assert "02_my_own" not in page
    assert "<summary>A long one (40 rows)</summary>" in page
    assert page.index('id="02_corruptions"') < page.index('id="08_claims_audit"')
    assert "(not run)" in page  # in the map of the paper
    assert "&lt;figure" not in page  # tables stand there as tables


def test_remarks_on_the_images_stand_near_the_head(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shards = pd.DataFrame(
        {"shard": ["a", "b"], "dataset": "d", "corruption": "none", "severity": 0, "method": "m", "seed": 0, "n": 3}
    )
    monkeypatch.setattr(report, "current_shards", lambda _: shards.assign(remark=["", "copies <1>"]))
    page = report.write("mini").read_text()
    assert page.index("images: copies &lt;1&gt;") < page.index('id="02_corruptions"')


def test_pages_of_the_same_results_are_the_same(folder: Path) -> None:
    assert report.write("mini").read_bytes() == report.write("mini").read_bytes()


def test_nothing_published_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("APM_RESULTS", str(tmp_path / "empty"))
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        report.write("mini")
    manifest.note(tmp_path / "empty" / "mini", "02_corruptions", [], complete=True)
    with pytest.raises(FileNotFoundError, match="make reproduce"):
        report.write("mini")


def test_times_are_of_the_notebooks_that_ran(folder: Path) -> None:
    assert report.times(folder, ["02_corruptions"]).empty
    (folder / "records").mkdir()
    (folder / "records" / "times.json").write_text('{"02_corruptions": {"last": 2.0, "longest": 100.4}}')
    table = report.times(folder, ["01_natural_shifts", "02_corruptions"])
    assert table.loc["together"].to_dict() == {"longest run (s)": 100, "last run (s)": 2}


def test_every_notebook_has_its_title_and_question_and_the_map_names_notebooks_that_exist() -> None:
    known = report.index()
    assert list(known["notebooks"]) == profiles.notebooks()
    assert all(about["title"].startswith(name[:2]) for name, about in known["notebooks"].items() if name[:2] != "99")
    assert {row["notebook"] for row in known["paper"] if "notebook" in row} <= set(profiles.notebooks())


def test_the_page_needs_only_what_is_beside_it(folder: Path, tmp_path: Path) -> None:
    page = report.write("mini").read_text()
    assert "<script" not in page
    moved = tmp_path / "moved"
    shutil.copytree(folder, moved)
    for part in page.split('src="')[1:]:
        assert (moved / part.split('"')[0]).is_file()
    assert str(project.root()) not in page

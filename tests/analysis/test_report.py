"""The report shows what the manifest lists, the finding first, and refers to the figures beside it."""

from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest

from apm import project
from apm.analysis import numbers, report, stats
from apm.analysis.numbers import Number
from apm.analysis.publish import Publisher
from apm.project import manifest, profiles


@pytest.fixture
def folder() -> Path:
    """A results folder with a benchmark, a long table, a figure and an audit."""
    rows = {"teacher · zero-shot": 76.5, "APM · final": 76.6, "APM · any (upper bound, uses labels)": 84.2}
    cells = {tuple(row.split(" · ")): Number(value, value - 2, value + 2, 192) for row, value in rows.items()}
    cells["APM", stats.DIFFERENCE] = Number(0.1, -0.1, 0.3, 192, "points", "difference")
    index = pd.MultiIndex.from_tuples(list(cells), names=["method", "rule"])
    publish = Publisher("mini", "02_corruptions")
    means = pd.DataFrame({"Mean": list(cells.values())}, index=index)
    publish(means, "02_corruptions", "Corruptions <&>", "Made from x.")
    publish(pd.DataFrame({"n": range(40)}, index=[f"row {i}" for i in range(40)]), "02_long", "A long one")
    figure, _ = plt.subplots(figsize=(6.0, 2.0))
    publish(figure, "02_accuracy", "Accuracy <b>", "n = 192.")
    publish = Publisher("mini", "08_claims_audit")
    verdicts = {"verdict": ["holds", "does not hold", "does not hold"], "counted as": ["tested"] * 3}
    publish(pd.DataFrame(verdicts, index=pd.Index(["A", "B", "C"], name="claim")), "08_claims", "Claims")
    return publish.folder


def test_the_finding_is_the_mean_of_each_benchmark_and_the_audits_verdicts(folder: Path) -> None:
    rows = numbers.read(folder)
    short = report.in_short(rows)
    assert short.index.tolist() == ["corruptions"]
    assert (str(short[report.GAIN].iloc[0]), short["verdict"].iloc[0]) == ("0.1 [-0.1, 0.3]", "undecided")
    assert report.claims(rows)["verdict"].tolist() == ["holds", "does not hold", "does not hold"]
    nothing = pd.DataFrame(columns=list(numbers.COLUMNS))
    assert report.in_short(nothing).empty
    assert report.claims(nothing).empty


def test_the_page_shows_what_was_published_and_needs_only_what_is_beside_it(folder: Path, tmp_path: Path) -> None:
    (folder / "figures" / "02_my_own.png").write_bytes((folder / "figures" / "02_accuracy.png").read_bytes())
    page = report.write("mini").read_text()
    for said in ("Corruptions &lt;&amp;&gt;", 'src="figures/02_accuracy.png"', 'style="width: ', "(not run)"):
        assert said in page  # text is never mark-up; what was not run is said in the map of the paper
    for absent in ("base64", "02_my_own", "&lt;figure", "<script", str(project.root())):
        assert absent not in page
    assert "<summary>A long one (40 rows)</summary>" in page
    assert page.index('id="02_corruptions"') < page.index('id="08_claims_audit"')
    assert report.write("mini").read_text() == page
    moved = folder.rename(tmp_path / "moved")
    assert all((moved / part.split('"')[0]).is_file() for part in page.split('src="')[1:])


def test_natural_images_come_before_all_else(folder: Path) -> None:
    figure, _ = plt.subplots(figsize=(2.0, 2.0))
    publish = Publisher("mini", "00_quickstart")
    publish(figure, "00_islands", "Islands of a photograph")
    page = report.write("mini").read_text()
    assert page.index('src="figures/00_islands.png"') < page.index('id="summary"') < page.index('id="00_quickstart"')
    assert page.count('src="figures/00_islands.png"') == 2


def test_origin_of_the_records_and_remarks_on_the_images(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    named = {"dataset": "d", "method": "m", "seed": 0, "n": 3, "machine": "here", "current": [True, True, False]}
    shards = pd.DataFrame({"shard": ["a", "b", "c"], "remark": ["", "copies <1>", "old"], "commit": None, **named})
    monkeypatch.setattr("apm.runs.records.provenance_table", lambda _: shards)
    made_by, about, remarks = report.origins(folder / "records")
    assert remarks == ["copies <1>"]
    assert made_by.loc[("", "here")].to_dict() == about.loc[("d", "m", 0)].to_dict() == {"shards": 2, "predictions": 6}
    page = report.write("mini").read_text()
    assert page.index("images: copies &lt;1&gt;") < page.index('id="02_corruptions"')


def test_nothing_published_is_said() -> None:
    for _ in range(2):  # without a manifest, and with one that lists nothing
        with pytest.raises(FileNotFoundError, match="make reproduce"):
            report.write("mini")
        manifest.note(project.results_dir("mini"), "02_corruptions", [], complete=True)


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

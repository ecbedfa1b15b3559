"""`make verify` finds what changed, says where, and fails when it must."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from apm import project
from apm.analysis import numbers, verify
from apm.analysis.numbers import Number
from apm.analysis.publish import Publisher
from apm.project import manifest


def frame(value: float = 60.5, verdict: str = "holds", seconds: float = 3.0, word: str = "conv") -> pd.DataFrame:
    cells = {"final": Number(value, value - 3, value + 3, 192), "loss": 1.26e-3, "s": seconds}
    return pd.DataFrame([cells | {"verdict": verdict, "best": word}], index=pd.Index(["APM"], name="method"))


KINDS = {"verdict": "verdict", "s": "cost", "loss": "loss"}


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A project with expected numbers for `mini`, and a results folder that holds the same ones."""
    for name in ("notebooks", "profiles"):
        (tmp_path / name).mkdir()
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.delenv("APM_RESULTS", raising=False)
    make(frame())
    assert verify.main(["--accept"]) == 0
    return tmp_path


def make(table: pd.DataFrame, *, complete: bool = True) -> None:
    publish = Publisher("mini", "02_corruptions")
    publish(table, "02_x", "caption", kinds=KINDS)
    manifest.note(publish.folder, "02_corruptions", publish.entries, complete=complete)


def status() -> dict[str, str]:
    compared, _ = verify.judge("mini")
    return dict(zip(compared["column"], compared["status"], strict=True))


def test_the_same_numbers_are_the_same(place: Path, capsys: pytest.CaptureFixture) -> None:
    assert verify.main([]) == 0
    out = capsys.readouterr().out
    assert "4 numbers and words: 4 same, 0 within" in out
    assert "1 costs of the machine apart" in out
    assert "torch" in out.split("found on:")[1]


@pytest.mark.parametrize(
    ("changed", "column", "expected", "code"),
    [
        (frame(60.54), "final", "same", 0),  # to the printed digit
        (frame(62.0), "final", "within", 0),
        (frame(64.0), "final", "outside", 1),
        (frame(seconds=99.0), "s", "cost", 0),
        (frame(seconds=np.nan), "s", "cost", 0),  # not measured on every machine
        (frame(verdict="does not hold"), "verdict", "turned", 1),
        (frame(word="vit"), "best", "changed", 0),
        (frame().assign(loss=1.3e-3), "loss", "within", 0),  # of one run: another processor's rounding
        (frame().assign(loss=1.5e-3), "loss", "outside", 1),
        (frame().drop(columns="loss"), "loss", "missing", 1),
        (frame().assign(more=1.0), "more", "new", 0),
        (frame().assign(verdict=[None]), "verdict", "missing", 1),
    ],
)
def test_what_changed_is_found_by_name(place, changed: pd.DataFrame, column: str, expected: str, code: int, capsys):
    make(changed)
    found = status()
    assert found[column] == expected
    assert {s for name, s in found.items() if name != column} <= {"same", "cost"}
    capsys.readouterr()
    assert verify.main([]) == code
    rows = capsys.readouterr().out.split("\n", 1)[1].split("expected on")[0]
    assert (column in rows) == (expected not in ("same", "new", "cost"))


def rows_of(**cells: Number | float) -> pd.DataFrame:
    return numbers.tidy(pd.DataFrame([cells], index=["APM"]), "02_x")


@pytest.mark.parametrize(
    ("value", "found", "kind", "expected"),
    [
        (1.0e-3, 1.08e-3, "loss", "within"),
        (1.0e-3, 1.2e-3, "loss", "outside"),
        (8.4e-15, 9.2e-14, "loss", "same"),  # rounding
        (24.0, 24.3, "measure", "within"),
        (24.0, 26.0, "measure", "outside"),
        (60.0, 60.6, "accuracy", "outside"),  # of images: it comes out, or it has an interval
        (60.0, 61.0, "count", "outside"),
        (423.607, 423.61, "exact", "outside"),  # no machine counts other operations; both are printed as 423.6
        (423.607, 423.6071, "exact", "same"),  # to the digits that are stored
        (423.607, 423.61, "measure", "same"),
    ],
)
def test_a_number_of_a_training_may_differ_by_rounding(value: float, found: float, kind: str, expected: str) -> None:
    narrow = Number(value, value, value * 1.000001, kind=kind)  # over images, which says nothing about rounding
    for wanted in (Number(value, kind=kind), narrow):
        compared = verify.compare(rows_of(a=wanted), rows_of(a=Number(found, kind=kind)))
        assert list(compared["status"]) == [expected]


@pytest.mark.parametrize(("final", "expected"), [(60.5, "within"), (62.0, "within"), (64.0, "outside")])
def test_a_p_value_is_within_when_the_estimates_of_its_row_are(final: float, expected: str) -> None:
    wanted, found = (
        rows_of(final=Number(value, value - 3, value + 3), p=Number(p, kind="p"))
        for value, p in ((60.5, 0.4), (final, 0.6))
    )
    assert verify.compare(wanted, found).set_index("column")["status"]["p"] == expected
    alone = verify.compare(wanted[wanted["column"] == "p"], found[found["column"] == "p"])
    assert list(alone["status"]) == ["outside"]  # nothing stands beside it


def test_a_half_made_folder_is_not_judged_and_not_accepted(place: Path, capsys: pytest.CaptureFixture) -> None:
    before = verify.path_of("mini").read_bytes()
    make(frame(64.0), complete=False)
    capsys.readouterr()
    for arguments in ([], ["--accept"]):
        assert verify.main(arguments) == 2
        assert "02_corruptions did not run to its end" in capsys.readouterr().err
    assert verify.main(["--made"]) == 1  # but the tables that are there can be
    assert verify.path_of("mini").read_bytes() == before
    make(frame(64.0))
    assert verify.main(["--accept"]) == 0  # shows what changes
    assert "1 outside" in capsys.readouterr().out
    assert verify.main([]) == 0


def test_without_results_or_expected_numbers_it_says_what_to_do(place: Path, capsys: pytest.CaptureFixture) -> None:
    (project.results_dir("mini") / manifest.NAME).unlink()
    assert verify.main([]) == 2
    assert "make reproduce" in capsys.readouterr().err
    verify.path_of("mini").unlink()
    assert verify.main([]) == 2
    assert "make accept" in capsys.readouterr().err


def head(text: str, **change: object) -> str:
    first, _, body = text.partition("\n")
    return f"{verify.HEAD}{json.dumps(json.loads(first.removeprefix(verify.HEAD)) | change)}\n{body}"


@pytest.mark.parametrize(
    ("spoiled", "message"),
    [
        (lambda text: head(text, profile="paper"), "profile paper, not of 1 and mini"),
        (lambda text: head(text, version=0), "of version 0"),
        (lambda text: "\n".join(text.splitlines()[:-2]) + "\n", "cut off: expected 5 numbers"),
        (lambda text: text[:-30], "cut off: expected 5 numbers"),  # within a row
        (lambda text: text.replace("loss,", "lost,"), "unknown kind of number 'lost'"),
        (lambda text: "table,row\n", "expected a first line"),
    ],
)
def test_an_expected_file_that_is_none_is_said_and_left_alone(place, spoiled, message: str, capsys) -> None:
    path = verify.path_of("mini")
    path.write_text(spoiled(path.read_text()))
    before = path.read_bytes()
    assert verify.main([]) == 2
    assert message in capsys.readouterr().err
    assert path.read_bytes() == before


def test_the_audit_of_a_part_of_the_notebooks_is_not_judged(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def audit(verdict: str, notebooks: list[str]) -> None:
        publish = Publisher("mini", "08_claims_audit")
        publish(pd.DataFrame({"verdict": [verdict]}, index=["X"]), "08_claims", "")
        for notebook in notebooks:
            manifest.note(publish.folder, notebook, publish.entries if notebook[:2] == "08" else [], complete=True)

    audit("holds", ["08_claims_audit"])
    make(frame())
    assert verify.main(["--accept"]) == 0
    monkeypatch.setenv("APM_RESULTS", str(place / "part"))
    audit("not tested here", ["08_claims_audit"])  # without what it reads
    assert verify.main(["--made"]) == 0
    make(frame())
    assert verify.main(["--made"]) == 1  # with it, a verdict has turned

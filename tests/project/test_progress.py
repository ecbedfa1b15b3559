"""Progress goes to the terminal or log that runs the work, with a rate; never into a notebook, never into pytest's output."""

import sys
from pathlib import Path

import pytest

from apm.project import progress as module
from apm.project.progress import progress


@pytest.fixture
def log(tmp_path: Path, monkeypatch) -> Path:
    path = tmp_path / "terminal"
    path.write_text("before\n")
    monkeypatch.setenv("APM_PROGRESS", str(path))
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    return path


def test_a_log_gets_plain_lines_with_count_and_rate_after_what_it_held(log: Path, monkeypatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    with progress(total=4, desc="APM: digits", unit="image") as bar:
        bar.update(2)
        bar.update(2)
    first, *lines = log.read_text().splitlines()
    assert first == "before"
    assert all(line.startswith("APM: digits:") and "image/s" in line for line in lines)
    assert "2/4" in lines[-2]
    assert "4/4" in lines[-1]
    assert "\r" not in log.read_text()


def test_lines_are_rare_in_a_log(log: Path, monkeypatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(module, "LOG_EVERY", 3600.0)
    assert list(progress([1, 2, 3], desc="x")) == [1, 2, 3]
    assert log.read_text() == "before\n"


@pytest.mark.parametrize("where", ["pytest", "a notebook run by hand", "/no/such/terminal", "/dev/full"])
def test_work_goes_on_where_nothing_can_or_shall_be_shown(where: str, monkeypatch, capfd) -> None:
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    monkeypatch.delenv("APM_PROGRESS", raising=False)
    if where != "pytest":
        monkeypatch.delenv("PYTEST_CURRENT_TEST")
    if where.startswith("a notebook"):
        monkeypatch.setitem(sys.modules, "ipykernel", sys)
    elif where.startswith("/"):
        monkeypatch.setenv("APM_PROGRESS", where)  # a terminal that has gone away
    assert list(progress([1, 2], desc="silent")) == [1, 2]
    assert capfd.readouterr() == ("", "")


def test_a_cell_that_somebody_waits_for_shows_its_bar_and_leaves_no_trace(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.delenv("APM_PROGRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    with module.live(), progress(total=2, desc="kernels = 5") as bar:
        bar.update()
    assert list(progress([1, 2])) == [1, 2]  # not one of a cell that nobody waits for
    out, err = capfd.readouterr()
    assert out == ""
    assert "kernels = 5:   0%|" in err
    assert err.rpartition("\r")[0].rpartition("\r")[2].strip() == ""

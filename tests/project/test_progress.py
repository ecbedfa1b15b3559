"""Progress goes to the terminal or log that runs the work, with a rate; never into a notebook, never into pytest's output."""

import sys
from pathlib import Path

import pytest

from apm.project import progress as module
from apm.project.progress import progress


@pytest.fixture
def log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "terminal"
    path.write_text("before\n")
    monkeypatch.setenv("APM_PROGRESS", str(path))
    monkeypatch.setattr(module, "LOG_EVERY", 0.0)
    return path


def test_a_log_gets_plain_lines_with_count_and_rate_after_what_it_held(
    log: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
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


def test_lines_are_rare_in_a_log(log: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST")
    monkeypatch.setattr(module, "LOG_EVERY", 3600.0)
    assert list(progress([1, 2, 3], desc="x")) == [1, 2, 3]
    assert log.read_text() == "before\n"


def test_nothing_is_shown_under_pytest(capfd: pytest.CaptureFixture[str]) -> None:
    for _ in progress(range(3), desc="silent"):
        pass
    assert capfd.readouterr() == ("", "")


def test_a_terminal_that_has_gone_away_does_not_stop_the_work(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    for gone in (tmp_path / "no" / "such" / "terminal", Path("/dev/full")):
        monkeypatch.setenv("APM_PROGRESS", str(gone))
        monkeypatch.setattr(module, "LOG_EVERY", 0.0)
        assert list(progress([1, 2])) == [1, 2]


def test_a_notebook_run_by_hand_stays_clean(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    monkeypatch.delenv("PYTEST_CURRENT_TEST", raising=False)
    monkeypatch.delenv("APM_PROGRESS", raising=False)
    monkeypatch.setitem(sys.modules, "ipykernel", sys)
    assert list(progress([1, 2])) == [1, 2]
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

"""Running notebooks: by dependency, whole or not at all, with an error that can be acted on."""

import os
import re
import signal
import subprocess
import sys
import time
from pathlib import Path

import nbformat
import pytest
from nbformat.v4 import new_code_cell, new_notebook

from apm import depends, run

ROOT = Path(__file__).resolve().parents[1]


def write_notebook(path: Path, *cells: str, parameters: str = 'profile = "mini"') -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")
    book = new_notebook(cells=[tagged, *(new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells))])
    book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
    nbformat.write(book, path)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    monkeypatch.setenv("APM_RESULTS", str(tmp_path / "results"))
    (tmp_path / "profiles" / "mini").mkdir(parents=True)
    (tmp_path / "profiles" / "mini" / "common.yaml").write_text("")
    (tmp_path / "apm").mkdir()
    (tmp_path / "apm" / "__init__.py").write_text("")
    return tmp_path


def test_a_run_leaves_the_executed_notebook_with_the_profile_values_and_nothing_volatile(project: Path) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb", "print(2 * n)\n__file__ = 1", parameters='profile = "mini"\nn = 1'
    )
    (project / "profiles" / "mini" / "01_a.yaml").write_text("n: 21\n")
    assert run.main(["01_a"]) == 0
    path = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    first = path.read_text()
    book = nbformat.reads(first, 4)
    assert book.cells[2].outputs[0].text == "42\n"
    for word in ("duration", "start_time", str(project), "papermill"):
        assert word not in first
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["01_a.ipynb"]
    assert run.main(["01_a"]) == 0
    assert path.read_text() == first


def test_a_failing_cell_gives_exit_status_1_the_error_and_the_half_executed_notebook(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb", "print('reached')", "raise ValueError('the reason')", "print('never')"
    )
    final = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    final.parent.mkdir(parents=True)
    final.write_text("an earlier result")
    stamp = project / ".make" / "mini" / "01_a.done"
    assert run.main(["01_a", "--stamp", str(stamp)]) == 1
    error = capfd.readouterr().err
    assert "ValueError: the reason" in error
    assert "results/mini/notebooks/01_a.partial.ipynb" in error
    assert final.read_text() == "an earlier result"
    assert not stamp.exists()
    book = nbformat.read(final.with_name("01_a.partial.ipynb"), 4)
    assert any("reached" in str(cell.get("outputs")) for cell in book.cells)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["01_b"], "unknown notebook '01_b'. Known: 01_a"),
        (["01_a", "--profile", "maxi"], "unknown profile 'maxi'. Known: mini"),
    ],
)
def test_unknown_names_end_with_status_2_and_the_known_ones(
    project: Path, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    write_notebook(project / "notebooks" / "01_a.ipynb", "print(1)")
    assert run.main(arguments) == 2
    assert message in capfd.readouterr().err


def test_a_results_folder_that_cannot_be_written_is_said_before_anything_runs(
    project: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_notebook(project / "notebooks" / "01_a.ipynb", "open('ran', 'w')")
    (project / "results").write_text("a file, not a folder")
    assert run.main(["01_a"]) == 2
    assert "a file stands where a folder is needed" in capfd.readouterr().err
    assert not (project / "ran").exists()


def test_a_touched_but_unchanged_notebook_is_not_run_again(project: Path, capfd: pytest.CaptureFixture[str]) -> None:
    write_notebook(project / "notebooks" / "01_a.ipynb", "print(1)")
    stamp = project / ".make" / "mini" / "01_a.done"
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    (project / "notebooks" / "01_a.ipynb").touch()
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    assert "only touched" in capfd.readouterr().out
    write_notebook(project / "notebooks" / "01_a.ipynb", "print(2)")
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    assert "2" in (project / "results" / "mini" / "notebooks" / "01_a.ipynb").read_text()


def test_after_a_kill_in_the_middle_the_next_run_finishes(project: Path) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb",
        "import time, pathlib\nif not pathlib.Path('again').exists():\n    pathlib.Path('started').touch(); time.sleep(60)",
        "print('finished')",
    )
    process = subprocess.Popen([sys.executable, "-m", "apm.run", "01_a"], env={**os.environ}, start_new_session=True)
    deadline = time.monotonic() + 60
    while not (project / "started").exists() and time.monotonic() < deadline:
        time.sleep(0.1)
    os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    final = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    assert not final.exists()
    (project / "again").touch()
    assert run.main(["01_a"]) == 0
    assert "finished" in final.read_text()


def test_two_runs_of_one_notebook_take_turns(project: Path) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb",
        "import time, pathlib\nfree = not pathlib.Path('busy').exists()\npathlib.Path('busy').touch(); time.sleep(2)",
        "pathlib.Path('busy').unlink()\nprint('alone:', free)",
    )
    command = [sys.executable, "-m", "apm.run", "01_a"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("waiting for it to end" in text for text in said) == 1
    assert "alone: True" in (project / "results" / "mini" / "notebooks" / "01_a.ipynb").read_text()


def test_a_deleted_result_is_made_again(project: Path) -> None:
    write_notebook(project / "notebooks" / "01_a.ipynb", "print(1)")
    stamp = project / ".make" / "mini" / "01_a.done"
    final = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    final.unlink()
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    assert final.exists()


def test_the_report_page_loads_nothing_from_elsewhere(project: Path) -> None:
    write_notebook(project / "notebooks" / "99_report.ipynb", "print('page')")
    assert run.main(["99_report"]) == 0
    page = (project / "results" / "mini" / "report.html").read_text()
    assert "page" in page
    assert "print(" not in page
    assert not re.findall(r"<(?:script|link|img|iframe)[^>]*(?:src|href)=[\"']?https?:", page)
    assert not re.search(r"import\s*\(?[\"']https?:", page)


# ------------------------------------------------------------------------------------------------------- dependencies


@pytest.fixture
def package(project: Path) -> Path:
    for name, source in {
        "base": "x = 1",
        "middle": "from apm.base import x",
        "late": "def f():\n    from apm import middle\n    return middle",
        "other": "y = 2",
    }.items():
        (project / "apm" / f"{name}.py").write_text(source)
    write_notebook(project / "notebooks" / "01_a.ipynb", "%matplotlib inline\nfrom apm import late")
    write_notebook(project / "notebooks" / "02_b.ipynb", "import apm.other")
    write_notebook(project / "notebooks" / "03_not_of_this_profile.ipynb", "import apm.other")
    write_notebook(project / "notebooks" / "99_report.ipynb", "print(1)")
    for name in ("01_a", "02_b"):
        (project / "profiles" / "mini" / f"{name}.yaml").write_text("")
    return project


def needs(package: Path, notebook: str) -> set[str]:
    paths = depends.inputs(package, "mini", package / "notebooks" / f"{notebook}.ipynb")
    return {p.name for p in paths if p.parent.name == "apm"}


def test_a_notebook_depends_on_exactly_the_modules_it_imports_directly_or_not(package: Path) -> None:
    assert needs(package, "01_a") == {"__init__.py", "late.py", "middle.py", "base.py"}
    assert needs(package, "02_b") == {"__init__.py", "other.py"}


def test_a_notebook_that_reads_results_depends_on_those_before_it_and_a_list_file_on_its_own_notebook(
    package: Path,
) -> None:
    write_notebook(package / "notebooks" / "08_audit.ipynb", "print(1)")
    for name in ("08_audit", "01_a.lines"):
        (package / "profiles" / "mini" / f"{name}.yaml").write_text("")
    rules = dict(line.split(": ", 1) for line in depends.rules(package, "mini").splitlines() if ": " in line)
    assert "01_a.done" in rules[".make/mini/08_audit.done"]
    assert "99_report.done" not in rules[".make/mini/08_audit.done"]
    assert "08_audit.done" in rules[".make/mini/99_report.done"]
    assert "01_a.lines.yaml" in rules[".make/mini/01_a.done"]
    assert "01_a.lines.yaml" not in rules[".make/mini/02_b.done"]


def test_make_reruns_what_depends_on_a_changed_file_and_nothing_else(package: Path) -> None:
    (package / "run.mk").write_text(
        "all: .make/mini/01_a.done .make/mini/02_b.done .make/mini/99_report.done\ninclude rules.mk\n"
        ".make/mini/%.done:\n\t@mkdir -p .make/mini; echo ran $*; touch $@\n"
    )

    def make() -> set[str]:
        (package / "rules.mk").write_text(depends.rules(package, "mini"))
        done = subprocess.run(["make", "-f", "run.mk"], cwd=package, capture_output=True, text=True, check=True)
        return set(re.findall(r"ran (\S+)", done.stdout))

    now = time.time()

    def change(path: str) -> None:
        for stamp in (package / ".make" / "mini").glob("*"):
            os.utime(stamp, (now - 50, now - 50))
        os.utime(package / path, (now - 10, now - 10))

    for path in package.rglob("*"):
        os.utime(path, (now - 100, now - 100))
    assert make() == {"01_a", "02_b", "99_report"}  # a profile without a file for 03 does not run it
    assert make() == set()
    change("apm/base.py")
    assert make() == {"01_a", "99_report"}
    os.utime(package / "apm" / "base.py", (now - 100, now - 100))
    change("apm/other.py")
    assert make() == {"02_b", "99_report"}
    os.utime(package / "apm" / "other.py", (now - 100, now - 100))
    change("profiles/mini/common.yaml")
    assert make() == {"01_a", "02_b", "99_report"}
    os.utime(package / "profiles" / "mini" / "common.yaml", (now - 100, now - 100))
    change("notebooks/02_b.ipynb")
    assert make() == {"02_b", "99_report"}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "PROFILE=maxi"], r"unknown profile 'maxi'\. Known: .*mini"),
        (["reproduce", "ONLY=02_corruption"], r"unknown notebook '02_corruption'\. Known: .*02_corruptions"),
    ],
)
def test_make_refuses_unknown_names_with_the_known_ones(arguments: list[str], message: str) -> None:
    done = subprocess.run(["make", "--dry-run", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert re.search(message, done.stderr)


def test_make_help_names_every_documented_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "reproduce", "test", "bench", "lab", "report", "lint", "types", "lock"):
        assert re.search(rf"^  {target} ", done.stdout, flags=re.M)

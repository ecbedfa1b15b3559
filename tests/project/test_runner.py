"""Running notebooks: by dependency, whole or not at all, with an error that can be acted on."""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import nbformat
import pytest

from apm.project import depends, run

ROOT = Path(__file__).resolve().parents[2]


def test_a_run_leaves_the_executed_notebook_with_the_profile_values_and_nothing_volatile(
    project: Path, notebook, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DATA", "/d")
    show = "from IPython.display import display\ndisplay({'image/png': '/d/AA', 'text/plain': 'from /d/a'}, raw=True)"
    notebook("01_a", "print(2 * n, '/d/set and a/d/b')\n__file__ = 1", show, parameters='profile = "mini"\nn = 1')
    (project / "profiles" / "mini" / "01_a.yaml").write_text("n: 21\n")
    assert run.main(["01_a"]) == 0
    path = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    first = path.read_text()
    book = nbformat.reads(first, 4)
    assert book.cells[2].outputs[0].text == "42 DATA/set and a/d/b\n"
    assert book.cells[3].outputs[0].data == {"image/png": "/d/AA", "text/plain": "from DATA/a"}  # an image is no text
    for word in ("duration", "start_time", str(project), "papermill"):
        assert word not in first
    assert [p.name for p in path.parent.iterdir() if not p.name.startswith(".")] == ["01_a.ipynb"]
    assert run.main(["01_a"]) == 0
    assert path.read_text() == first


def test_a_failing_cell_gives_exit_status_1_the_error_and_the_half_executed_notebook(
    project: Path, notebook, capfd: pytest.CaptureFixture[str]
) -> None:
    notebook("01_a", "print('reached')", "raise ValueError('the reason')", "print('never')")
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
        (["01_a"], "a file stands where a folder is needed"),
    ],
)
def test_what_cannot_run_ends_with_status_2_and_a_sentence_before_anything_runs(
    project: Path, notebook, capfd: pytest.CaptureFixture[str], arguments: list[str], message: str
) -> None:
    notebook("01_a", "open('ran', 'w')")
    (project / "results").write_text("a file, not a folder")
    assert run.main(arguments) == 2
    assert message in capfd.readouterr().err
    assert not (project / "ran").exists()


def test_only_what_changed_or_is_gone_is_run_again(project: Path, notebook, capfd: pytest.CaptureFixture[str]) -> None:
    notebook("01_a", "print(1)")
    final = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    again = ["01_a", "--stamp", str(project / ".make" / "mini" / "01_a.done")]
    assert run.main(again) == 0
    (project / "notebooks" / "01_a.ipynb").touch()
    assert run.main(again) == 0
    assert "01_a: nothing changed" in capfd.readouterr().out
    final.unlink()
    notebook("01_a", "print(2)")
    assert run.main(again) == 0
    assert "2" in final.read_text()


def test_after_a_kill_in_the_middle_the_next_run_finishes(project: Path, notebook) -> None:
    waits = "import time, pathlib\nif not pathlib.Path('again').exists():\n    pathlib.Path('started').touch(); time.sleep(60)"
    notebook("01_a", waits, "print('finished')")
    process = subprocess.Popen([sys.executable, "-m", "apm.project.run", "01_a"], start_new_session=True)
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


def test_two_runs_of_one_notebook_take_turns(project: Path, notebook) -> None:
    busy = "import time, pathlib\nfree = not pathlib.Path('busy').exists()\npathlib.Path('busy').touch(); time.sleep(2)"
    notebook("01_a", busy, "pathlib.Path('busy').unlink()\nprint('alone:', free)")
    command = [sys.executable, "-m", "apm.project.run", "01_a"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    said = [process.communicate(timeout=120)[0] for process in both]
    assert [process.returncode for process in both] == [0, 0]
    assert sum("waiting for it to end" in text for text in said) == 1
    assert "alone: True" in (project / "results" / "mini" / "notebooks" / "01_a.ipynb").read_text()


def test_times_of_notebooks_that_end_together_are_all_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    slow = Path.read_text

    def read(self: Path, *args: str, **options: str) -> str:
        text = slow(self, *args, **options)
        time.sleep(0.05)
        return text

    monkeypatch.setattr(Path, "read_text", read)
    ends = [threading.Thread(target=run.note_time, args=(tmp_path, f"0{i}_a", float(i))) for i in range(5)]
    for end in ends:
        end.start()
    for end in ends:
        end.join()
    assert run.times(tmp_path) == {f"0{i}_a": {"last": float(i), "longest": float(i)} for i in range(5)}


# ------------------------------------------------------------------------------------------------------- dependencies


def files(notebook: str) -> set[str]:
    return {path.name for path in depends.inputs("mini", notebook)}


def test_a_notebook_depends_on_exactly_the_modules_it_imports_directly_or_not(package: Path) -> None:
    (package / "data" / "published").mkdir(parents=True)
    (package / "data" / "published" / "table1.csv").write_text("")
    own = {"common.yaml", "__init__.py"}
    assert files("01_a") == {"01_a.ipynb", "01_a.yaml", "late.py", "middle.py", "base.py", *own}
    assert files("02_b") == {"02_b.ipynb", "02_b.yaml", "other.py", *own}
    (package / "apm" / "data").mkdir()
    for name in ("__init__", "published"):
        (package / "apm" / "data" / f"{name}.py").write_text("")
    (package / "apm" / "middle.py").write_text("from apm.data import published")
    assert "table1.csv" in files("01_a") - files("02_b")  # also where another module reads the published numbers


def test_islands_and_audit_depend_on_the_published_numbers() -> None:
    for notebook in ("06_islands", "08_claims_audit"):
        assert ROOT / "data" / "published" / "settings.csv" in depends.inputs("mini", notebook)


def test_checkpoints_are_found_wherever_a_profile_names_them(package: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = package / "profiles" / "mini"
    (folder / "common.yaml").write_text("teacher: a\npretrained: cache/a.safetensors   # comment\n")
    (folder / "01_a.yaml").write_text(
        'further: [{teacher: b, pretrained: "/w w/b.pt", name: B}, {pretrained: openai}, {pretrained: openai=/w/c.pt}]\n'
    )
    assert set(depends.weights("mini", "01_a")) == {Path("/w w/b.pt"), Path("/w/c.pt"), package / "cache/a.safetensors"}
    (folder / "common.yaml").write_text("pretrained: data/cache/teachers/a.safetensors\n")
    (folder / "01_a.yaml").write_text("pretrained: [\n")  # no YAML: the run says so
    monkeypatch.setenv("APM_CACHE", "/elsewhere")
    assert depends.weights("mini", "01_a") == [Path("/elsewhere/teachers/a.safetensors")]
    monkeypatch.delenv("APM_CACHE")
    assert depends.weights("mini", "01_a") == [package / "data" / "cache" / "teachers" / "a.safetensors"]


def test_a_changed_teacher_makes_stale_what_uses_teachers_and_nothing_else(package: Path) -> None:
    (package / "apm" / "teachers").mkdir()
    (package / "apm" / "teachers" / "__init__.py").write_text("z = 3")
    (package / "apm" / "other.py").write_text("from apm import teachers")
    (package / "data" / "teachers").mkdir(parents=True)
    (package / "data" / "teachers" / "mini.yaml").write_text("sha256: 1\n")
    assert "mini.yaml" in files("02_b") - files("01_a")


# ----------------------------------------------------------------------------------------------------- the true Makefile


def test_make_runs_every_notebook_of_the_profile_once(clone: Path, make, would_run, finish) -> None:
    everything = {"01_a", "02_b", "99_report"}  # a profile without a file for 03 does not run it
    assert would_run() == everything
    assert would_run("ONLY=02_b") == {"02_b"}
    finish()
    assert would_run() == set()
    for path in ("notebooks/01_a.ipynb", "apm/other.py", "profiles/mini/common.yaml"):
        (clone / path).touch()
    assert would_run() == set()
    assert "nothing changed" not in make("reproduce").stdout  # it starts no runner


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("apm/base.py", {"01_a"}),
        ("apm/other.py", {"02_b"}),
        ("apm/project/run.py", {"01_a", "02_b"}),
        ("profiles/mini/common.yaml", {"01_a", "02_b"}),
        ("profiles/mini/02_b.yaml", {"02_b"}),
        ("profiles/mini/01_a.lines.yaml", {"01_a"}),
        ("notebooks/02_b.ipynb", {"02_b"}),
        ("data/published/settings.csv", {"01_a"}),
        ("requirements.lock", {"01_a", "02_b"}),
        ("notebooks/index.yaml", set()),
        ("data/expected/mini.csv", set()),
        ("-data/published/more.csv", {"01_a"}),
        ("-profiles/mini/01_a.lines.yaml", {"01_a"}),
        ("-apm/middle.py", {"01_a"}),
        ("-notebooks/02_b.ipynb", set()),
        ("-results/mini/notebooks/01_a.ipynb", {"01_a"}),
        ("-results/mini/tables/02_table.csv", {"02_b"}),
        ("-results/mini/report.html", set()),
    ],
)
def test_what_depends_on_a_changed_or_removed_file_is_stale_and_nothing_else(
    clone: Path, stale_of, finish, path: str, stale: set[str]
) -> None:
    finish()
    assert stale_of() == set()
    if path.startswith("-"):
        (clone / path[1:]).unlink()
    else:
        (clone / path).parent.mkdir(parents=True, exist_ok=True)
        with (clone / path).open("a") as file:
            file.write("\n")
    assert stale_of() == {*stale, "99_report"}  # it shows the results of all


def test_a_notebook_of_another_profile_makes_nothing_stale(clone: Path, stale_of, finish) -> None:
    finish()
    (clone / "notebooks" / "03_not_of_this_profile.ipynb").unlink()
    assert stale_of() == set()


def test_a_dry_run_deletes_no_stamp(clone: Path, would_run, finish) -> None:
    finish()
    before = sorted((clone / ".make").rglob("*.done"))
    (clone / "results" / "mini" / "report.html").unlink()
    assert would_run() == {"99_report"}
    assert sorted((clone / ".make").rglob("*.done")) == before


def test_another_results_folder_is_another_result(clone: Path, make, would_run, finish) -> None:
    finish()
    elsewhere = clone / "else where"
    everything = {"01_a", "02_b", "99_report"}
    assert would_run(APM_RESULTS=str(elsewhere)) == everything
    finish(elsewhere)
    assert would_run(f"APM_RESULTS={elsewhere}") == set()
    assert f"up to date: {elsewhere}/mini/notebooks" in make("reproduce", APM_RESULTS=str(elsewhere)).stdout
    shutil.rmtree(elsewhere)
    assert would_run(APM_RESULTS=str(elsewhere)) == everything


def test_other_data_and_a_part_of_it_make_results_stale(clone: Path, would_run, finish) -> None:
    everything = {"01_a", "02_b", "99_report"}
    finish(data=str(clone / "sets"))
    assert would_run("DATA=sets") == set()  # the same folder
    assert would_run("DATA=other sets") == everything
    assert would_run("DATA=sets", PARTIAL="1") == everything


def test_a_retrained_teacher_makes_results_stale(clone: Path, stale_of, finish) -> None:
    (clone / "profiles" / "mini" / "02_b.yaml").write_text("pretrained: data/cache/mine.safetensors\n")
    finish()
    assert stale_of() == set()
    weights = clone / "data" / "cache" / "mine.safetensors"
    weights.parent.mkdir()
    for trained in (lambda: weights.write_text("first"), lambda: os.utime(weights, (1, 1))):
        trained()
        assert stale_of() == {"02_b", "99_report"}
        finish()


def test_make_runs_what_is_stale_and_then_nothing(clone: Path, make) -> None:
    (clone / "profiles" / "mini" / "01_a.yaml").unlink()
    (clone / "profiles" / "mini" / "02_b.yaml").unlink()
    first = make("reproduce")
    assert (first.returncode, "99_report: done" in first.stdout) == (0, True), first.stderr
    assert "report.html" not in first.stdout  # this report's notebook makes none
    assert make("reproduce").stdout.startswith("up to date: results/mini/notebooks")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "ONLY=02_a"], r"unknown notebook '02_a'\. Known: 01_a 02_b 99_report"),
        (["teacher"], "profile mini trains no teacher of its own"),
    ],
)
def test_make_refuses_unknown_names_with_the_known_ones(clone: Path, make, arguments: list[str], message: str) -> None:
    done = make(*arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)
    shown = make("check-data", "DATA=my sets")  # a folder with spaces reaches the check; mini needs none
    assert (shown.returncode, shown.stdout) == (0, "profile mini needs no downloaded set\n")


def test_make_help_names_every_documented_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "reproduce", "test", "bench", "lab", "report", "lint", "types", "lock"):
        assert re.search(rf"^  {target} ", done.stdout, flags=re.M)

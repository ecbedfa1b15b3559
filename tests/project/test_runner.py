"""Running notebooks: by dependency, whole or not at all, with an error that can be acted on."""

import json
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
from nbformat.v4 import new_code_cell, new_notebook

from apm.project import depends, manifest, profiles, run

ROOT = Path(__file__).resolve().parents[2]


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
    assert "01_a: nothing changed" in capfd.readouterr().out
    write_notebook(project / "notebooks" / "01_a.ipynb", "print(2)")
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    assert "2" in (project / "results" / "mini" / "notebooks" / "01_a.ipynb").read_text()


def test_after_a_kill_in_the_middle_the_next_run_finishes(project: Path) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb",
        "import time, pathlib\nif not pathlib.Path('again').exists():\n    pathlib.Path('started').touch(); time.sleep(60)",
        "print('finished')",
    )
    process = subprocess.Popen(
        [sys.executable, "-m", "apm.project.run", "01_a"], env={**os.environ}, start_new_session=True
    )
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
    command = [sys.executable, "-m", "apm.project.run", "01_a"]
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


def test_what_the_settings_no_longer_make_is_removed_and_nothing_else(project: Path) -> None:
    write_notebook(
        project / "notebooks" / "01_a.ipynb",
        "import pandas as pd\nfrom apm.analysis.publish import Publisher\npublish = Publisher(profile, '01_a')\n"
        "for name in names:\n    publish(pd.DataFrame({'n': [1]}, index=['a']), name, '')",
        "assert names != ['01_wrong']",
        parameters='profile = "mini"\nnames = []',
    )
    tables = project / "results" / "mini" / "tables"
    stamp = project / ".make" / "mini" / "01_a.done"

    def left(names: list[str]) -> set[str]:
        (project / "profiles" / "mini" / "01_a.yaml").write_text(f"names: {names}\n")
        run.main(["01_a", "--stamp", str(stamp)])
        return {path.name for path in tables.glob("*.csv")}

    tables.mkdir(parents=True)
    own = {"02_other.csv", "01_my_notes.csv"}  # somebody's, one of them with the notebook's number
    for name in own:
        (tables / name).touch()
    assert left(["01_table", "01_curves"]) == {"01_table.csv", "01_curves.csv", *own}
    failed = {"01_table.csv", "01_curves.csv", "01_wrong.csv", *own}
    assert left(["01_wrong"]) == failed  # nothing goes
    assert left(["01_table"]) == {"01_table.csv", *own}
    named = stamp.read_text().splitlines()[1:]
    assert {"notebooks/01_a.ipynb", "numbers/01_a.csv", "tables/01_table.csv"} <= set(named)
    assert not [name for name in named if "curves" in name or "wrong" in name]


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
    assert json.loads((tmp_path / "records" / "times.json").read_text()) == {
        f"0{i}_a": {"last": float(i), "longest": float(i)} for i in range(5)
    }


def test_an_image_is_left_as_it_is_where_text_loses_the_folder(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DATA", "/d")
    write_notebook(
        project / "notebooks" / "01_a.ipynb",
        "from IPython.display import display",
        "print('\\n/d/set and a/d/b')\ndisplay({'image/png': '/d/AAAA', 'text/plain': 'from /d/a'}, raw=True)",
    )
    assert run.main(["01_a"]) == 0
    text, image = nbformat.read(project / "results" / "mini" / "notebooks" / "01_a.ipynb", 4).cells[-1].outputs
    assert text.text == "\nDATA/set and a/d/b\n"
    assert image.data == {"image/png": "/d/AAAA", "text/plain": "from DATA/a"}


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


def needs(notebook: str) -> set[str]:
    return {p.name for p in depends.inputs("mini", notebook) if p.parent.name == "apm"}


def test_a_notebook_depends_on_exactly_the_modules_it_imports_directly_or_not(package: Path) -> None:
    assert needs("01_a") == {"__init__.py", "late.py", "middle.py", "base.py"}
    assert needs("02_b") == {"__init__.py", "other.py"}


def names_of(notebook: str) -> set[str]:
    return {path.name for path in depends.inputs("mini", notebook)}


def test_published_numbers_count_also_where_another_module_reads_them(package: Path) -> None:
    (package / "data" / "published").mkdir(parents=True)
    (package / "data" / "published" / "table1.csv").write_text("")
    assert "table1.csv" not in names_of("01_a")
    (package / "apm" / "data").mkdir()
    for name in ("__init__", "published"):
        (package / "apm" / "data" / f"{name}.py").write_text("")
    (package / "apm" / "middle.py").write_text("from apm.data import published")
    assert "table1.csv" in names_of("01_a")
    assert "table1.csv" not in names_of("02_b")


def test_islands_and_audit_depend_on_the_published_numbers() -> None:
    for notebook in ("06_islands", "08_claims_audit"):
        assert ROOT / "data" / "published" / "settings.csv" in depends.inputs("mini", notebook)


def test_checkpoints_are_found_wherever_a_profile_names_them(package: Path) -> None:
    folder = package / "profiles" / "mini"
    (folder / "common.yaml").write_text("teacher: a\npretrained: cache/a.safetensors   # comment\n")
    (folder / "01_a.yaml").write_text(
        'further: [{teacher: b, pretrained: "/w w/b.pt", name: B}, {pretrained: openai}, {pretrained: openai=/w/c.pt}]\n'
        "pretrained: null\n"
    )
    assert set(depends.weights("mini", "01_a")) == {Path("/w w/b.pt"), Path("/w/c.pt"), package / "cache" / "a.safetensors"}


# ----------------------------------------------------------------------------------------------------- the true Makefile


def test_weights_in_the_cache_are_looked_for_where_the_cache_is(
    package: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (package / "profiles" / "mini" / "01_a.yaml").write_text("pretrained: data/cache/teachers/a.safetensors  # ours\n")
    monkeypatch.setenv("APM_CACHE", str(tmp_path / "elsewhere"))
    assert depends.weights("mini", "01_a") == [tmp_path / "elsewhere" / "teachers" / "a.safetensors"]
    monkeypatch.delenv("APM_CACHE")
    assert depends.weights("mini", "01_a") == [package / "data" / "cache" / "teachers" / "a.safetensors"]
    (package / "profiles" / "mini" / "01_a.yaml").write_text("pretrained: [\n")
    assert depends.weights("mini", "01_a") == []  # no YAML: the run says so


def test_a_changed_teacher_makes_stale_what_uses_teachers_and_nothing_else(package: Path) -> None:
    (package / "apm" / "teachers").mkdir()
    (package / "apm" / "teachers" / "__init__.py").write_text("z = 3")
    (package / "apm" / "other.py").write_text("from apm import teachers")
    card = package / "data" / "teachers" / "mini.yaml"
    card.parent.mkdir(parents=True)
    card.write_text("sha256: 1\n")
    before = [depends.state("mini", name) for name in ("01_a", "02_b")]
    card.write_text("sha256: 2\n")
    after = [depends.state("mini", name) for name in ("01_a", "02_b")]
    assert [a == b for a, b in zip(before, after, strict=True)] == [True, False]


@pytest.fixture
def clone(package: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The project with our Makefile and apm, notebooks of one cell, and an environment that is this one."""
    for name in ("APM_ROOT APM_RESULTS APM_CACHE DATA PARTIAL MAKEFLAGS MFLAGS MAKELEVEL PROFILE ONLY ENV").split():
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "requirements.lock", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, package)
    shutil.copytree(ROOT / "apm", package / "apm", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (package / "apm" / "base.py").write_text("from apm.data import published")
    (package / "data" / "published").mkdir(parents=True)
    for name in ("settings.csv", "more.csv"):
        (package / "data" / "published" / name).write_text("a,b\n")
    (package / "profiles" / "mini" / "01_a.lines.yaml").write_text("- {a: 1}\n")
    python = package / ".venv" / "bin" / "python"
    python.parent.mkdir(parents=True)
    python.write_text(f'#!/bin/sh\nPYTHONPATH="{package}" exec "{sys.executable}" "$@"\n')
    python.chmod(0o755)
    (package / ".make").mkdir()
    (package / ".make" / "venv").touch()
    return package


def make(clone: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["make", "ENV=venv", *arguments],
        cwd=clone, env={**os.environ, **environment}, capture_output=True, text=True, check=False,
    )  # fmt: skip


def would_run(clone: Path, *arguments: str, **environment: str) -> set[str]:
    """The notebooks that `make reproduce` would run."""
    done = make(clone, "--dry-run", "reproduce", *arguments, **environment)
    assert done.returncode == 0, done.stderr
    return set(re.findall(r"-m apm\.project\.run .* (\S+)$", done.stdout, flags=re.M))


def finish(clone: Path, monkeypatch: pytest.MonkeyPatch, results: Path | None = None, data: str = "") -> None:
    """Leave what a run of every notebook leaves, without running."""
    results = results or clone / "results"
    with monkeypatch.context() as patch:
        patch.setenv("APM_ROOT", str(clone))
        patch.setenv("APM_RESULTS", str(results))
        patch.setenv("DATA", data)
        for notebook in profiles.runs("mini"):
            table = f"tables/{notebook[:2]}_table.csv"
            entry = {"name": "t", "kind": "table", "caption": "", "notes": "", "files": [table]}
            manifest.note(results / "mini", notebook, [entry], complete=True)
            page = ["report.html"] if notebook == "99_report" else []
            for name in [f"notebooks/{notebook}.ipynb", table, *page]:
                (results / "mini" / name).parent.mkdir(parents=True, exist_ok=True)
                (results / "mini" / name).write_text("")
            stamp = clone / ".make" / "mini" / f"{notebook}.done"
            stamp.parent.mkdir(exist_ok=True)
            lines = [depends.state("mini", notebook), *depends.left(results / "mini", notebook)]
            stamp.write_text("\n".join(lines) + "\n")


def test_make_runs_every_notebook_of_the_profile_once(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"01_a", "02_b", "99_report"}  # a profile without a file for 03 does not run it
    assert would_run(clone) == everything
    assert would_run(clone, "ONLY=02_b") == {"02_b"}
    finish(clone, monkeypatch)
    assert would_run(clone) == set()
    for path in ("notebooks/01_a.ipynb", "apm/other.py", "profiles/mini/common.yaml"):
        (clone / path).touch()
    assert would_run(clone) == set()
    assert "nothing changed" not in make(clone, "reproduce").stdout  # it starts no runner


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
    ],
)
def test_make_reruns_what_depends_on_a_changed_file_and_nothing_else(
    clone: Path, monkeypatch: pytest.MonkeyPatch, path: str, stale: set[str]
) -> None:
    finish(clone, monkeypatch)
    (clone / path).write_text((clone / path).read_text() + "\n")
    (clone / ".make" / "venv").touch()  # the environment is not what is asked here
    assert would_run(clone) == {*stale, "99_report"}  # it shows the results of all


@pytest.mark.parametrize(
    ("path", "stale"),
    [
        ("data/published/more.csv", {"01_a"}),
        ("profiles/mini/01_a.lines.yaml", {"01_a"}),
        ("apm/middle.py", {"01_a"}),
        ("notebooks/03_not_of_this_profile.ipynb", set()),
    ],
)
def test_a_removed_file_makes_its_results_stale_and_breaks_nothing(
    clone: Path, monkeypatch: pytest.MonkeyPatch, path: str, stale: set[str]
) -> None:
    finish(clone, monkeypatch)
    assert would_run(clone) == set()
    (clone / path).unlink()
    assert would_run(clone) == ({*stale, "99_report"} if stale else set())


def test_a_removed_notebook_leaves_the_rules(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(clone, monkeypatch)
    assert would_run(clone) == set()
    (clone / "notebooks" / "02_b.ipynb").unlink()
    assert would_run(clone) == {"99_report"}


def test_a_deleted_result_is_stale_and_a_dry_run_deletes_no_stamp(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, stale in {
        "notebooks/01_a.ipynb": "01_a", "tables/02_table.csv": "02_b", "report.html": "99_report"
    }.items():  # fmt: skip
        finish(clone, monkeypatch)
        before = sorted((clone / ".make").rglob("*.done"))
        (clone / "results" / "mini" / name).unlink()
        assert would_run(clone) == {stale, "99_report"}
        assert sorted((clone / ".make").rglob("*.done")) == before


def test_another_results_folder_is_another_result(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    finish(clone, monkeypatch)
    elsewhere = clone / "else where"
    everything = {"01_a", "02_b", "99_report"}
    assert would_run(clone, APM_RESULTS=str(elsewhere)) == everything
    assert would_run(clone, f"APM_RESULTS={elsewhere}") == everything
    finish(clone, monkeypatch, elsewhere)
    assert would_run(clone, APM_RESULTS=str(elsewhere)) == set()
    assert f"up to date: {elsewhere}/mini/notebooks" in make(clone, "reproduce", APM_RESULTS=str(elsewhere)).stdout
    shutil.rmtree(elsewhere)
    assert would_run(clone, APM_RESULTS=str(elsewhere)) == everything


def test_other_data_and_a_part_of_it_make_results_stale(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    everything = {"01_a", "02_b", "99_report"}
    finish(clone, monkeypatch, data=str(clone / "sets"))
    assert would_run(clone, f"DATA={clone}/sets") == set()
    assert would_run(clone, "DATA=sets") == set()  # the same folder
    assert would_run(clone, "DATA=other sets") == everything
    assert would_run(clone, "DATA=sets", PARTIAL="1") == everything


def test_a_retrained_teacher_makes_results_stale(clone: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (clone / "profiles" / "mini" / "02_b.yaml").write_text("pretrained: data/cache/mine.safetensors\n")
    finish(clone, monkeypatch)
    assert would_run(clone) == set()
    weights = clone / "data" / "cache" / "mine.safetensors"
    weights.parent.mkdir()
    weights.write_text("first")
    assert would_run(clone) == {"02_b", "99_report"}
    finish(clone, monkeypatch)
    assert would_run(clone) == set()
    weights.write_text("again")
    os.utime(weights, (1, 1))
    assert would_run(clone) == {"02_b", "99_report"}


@pytest.mark.parametrize("file", ["notebooks/index.yaml", "data/expected/mini.csv"])
def test_what_the_report_is_laid_out_by_and_held_against_changes_it(
    clone: Path, monkeypatch: pytest.MonkeyPatch, file: str
) -> None:
    monkeypatch.setenv("APM_ROOT", str(clone))
    before = depends.state("mini", "99_report")
    (clone / file).parent.mkdir(parents=True, exist_ok=True)
    (clone / file).write_text("another")
    assert depends.state("mini", "99_report") != before


def test_make_runs_what_is_stale_and_then_nothing(clone: Path) -> None:
    (clone / "profiles" / "mini" / "01_a.yaml").unlink()
    (clone / "profiles" / "mini" / "02_b.yaml").unlink()
    first = make(clone, "reproduce")
    assert (first.returncode, "99_report: done" in first.stdout) == (0, True), first.stderr
    again = make(clone, "reproduce")
    assert again.stdout.startswith("up to date: results/mini/notebooks")


def test_datasets_below_a_folder_with_spaces_reach_the_check(clone: Path) -> None:
    shown = make(clone, "check-data", "DATA=my sets")  # mini needs none
    assert (shown.returncode, shown.stdout) == (0, "profile mini needs no downloaded set\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["reproduce", "PROFILE=maxi"], r"unknown profile 'maxi'\. Known, one at a time: mini"),
        (["reproduce", "ONLY=02_a"], r"unknown notebook '02_a'\. Known: 01_a 02_b 99_report"),
        (["teacher"], "profile mini trains no teacher of its own"),
    ],
)
def test_make_refuses_unknown_names_with_the_known_ones(clone: Path, arguments: list[str], message: str) -> None:
    done = make(clone, *arguments)
    assert done.returncode == 2
    assert re.search(message, done.stderr)


def test_make_help_names_every_documented_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "reproduce", "test", "bench", "lab", "report", "lint", "types", "lock"):
        assert re.search(rf"^  {target} ", done.stdout, flags=re.M)

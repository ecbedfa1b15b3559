"""Hard to break: what a user has is left alone, nothing is wrong in silence, the surroundings do not leak in."""

import errno
import fcntl
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import nbformat
import pandas as pd
import papermill.iorw
import pytest

from apm import project as files
from apm.analysis import report, tables
from apm.analysis.publish import Publisher
from apm.project import clean, kernel, manifest, profiles, run
from apm.runs import shards

ROOT = Path(__file__).resolve().parents[2]


def written(folder: Path, *names: str, text: str = "x") -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)


def contents(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


# ------------------------------------------------------------------------------- nothing is deleted that is not ours


@pytest.mark.parametrize(
    "value", ["mini cifar10", "mini ../..", "..", "%", "", "/", "mini/", "*", "mini'", "a\nb", "mini="]
)
def test_a_profile_that_is_not_one_known_name_deletes_nothing(clone: Path, make, value: str) -> None:
    written(clone, "cifar10/mine.txt")
    before = contents(clone)
    done = make("clean-records", f"PROFILE={value}")
    assert (done.returncode, "Known, one at a time: mini" in done.stderr) == (2, True), done.stdout
    assert contents(clone) == before


def test_the_makefile_removes_nothing_by_a_variable_and_calls_no_script_by_its_path() -> None:
    text = (ROOT / "Makefile").read_text()
    assert not re.search(r"rm -r[^\n]*\$", text)
    # the first line of an environment's script names the Python of the place where it was made
    assert not re.search(r"\$\(BIN\)/(?!python$)", text, flags=re.M)
    # JupyterLab keeps what its user has
    assert "ifneq ($(MAKECMDGOALS),lab)\nunexport PYTHONPATH" in text


KEY = "0123456789abcdef" * 4


def test_cleaning_takes_what_the_package_made_and_says_so_first(project: Path, notebook, monkeypatch, capsys) -> None:
    monkeypatch.setenv("APM_RESULTS", str(project / "out"))
    monkeypatch.setenv("APM_CACHE", str(project / "cache"))
    (project / "profiles" / "mini" / "common.yaml").write_text("pretrained: data/cache/teachers/t.safetensors\n")
    (project / "profiles" / "mini" / "teacher.yaml").write_text("data: digits-train\n")
    ours = [f"out/mini/records/set.none.APM.seed0.000000.{KEY[:16]}.parquet", "out/mini/records/times.json"]
    ours += [f"cache/features/set-{KEY[:24]}.npy", f"cache/fingerprints/{KEY}.json", "cache/teachers/t.safetensors"]
    mine = ["out/mini/records/notes.txt", "out/mini/records/mine.parquet", "cache/mine.txt", "cache/features/a.npy"]
    mine += ["out/other/records/b.parquet", "out/mini/tables/00_notes.csv", "cache/teachers/mine.safetensors"]
    mine += [f"elsewhere/{KEY}.npy", "mini/a.txt", f"out/mini/records/folder/{KEY}.json"]
    written(project, *ours, *mine, ".make/mini/01_a.done")
    (project / "cache" / "field").symlink_to(project / "elsewhere")
    assert clean.main("mini") == 0
    assert {name for name in contents(project) if not name.startswith(("profiles", "apm"))} == set(mine)
    said = capsys.readouterr().out
    assert f"deleting 2 files (0.0 MB) of {project}/out/mini/records; 3 others are not this package's and stay" in said
    assert clean.main("../..") == 2


def note(folder: Path, notebook: str, *files: str, complete: bool = True) -> None:
    entry = {"name": "t", "kind": "table", "caption": "", "notes": "", "files": [*files]}
    manifest.note(folder, notebook, [entry], complete=complete)


@pytest.mark.parametrize("file", ["../mine.csv", "/etc/passwd", "tables/../../mine.csv"])
def test_a_manifest_that_names_files_elsewhere_is_none(tmp_path: Path, file: str) -> None:
    note(tmp_path, "01_a", file)
    assert manifest.files(tmp_path, "01_a") == []


def test_the_manifest_knows_files_of_an_earlier_run_until_this_one_has_ended(tmp_path: Path) -> None:
    for notebook in ("02_b", "01_a"):
        note(tmp_path, notebook, "x", "y")
    assert list(manifest.read(tmp_path)["notebooks"]) == ["01_a", "02_b"]
    note(tmp_path, "01_a", "x", complete=False)
    assert set(manifest.files(tmp_path, "01_a")) == {"x", "y"}
    note(tmp_path, "01_a", "x")
    assert manifest.files(tmp_path, "01_a") == ["x"]
    assert manifest.files(tmp_path, "03_c") == []


@pytest.mark.parametrize(("version", "message"), [(None, "does not exist.*make reproduce"), (0, "of version 0")])
def test_a_manifest_that_is_none_is_said(tmp_path: Path, version: int | None, message: str) -> None:
    if version is not None:
        (tmp_path / manifest.NAME).write_text(json.dumps({"version": version, "notebooks": {}}))
    with pytest.raises(FileNotFoundError if version is None else ValueError, match=message):
        manifest.read(tmp_path)


def test_what_the_settings_no_longer_make_is_removed_and_nothing_else(project: Path, notebook) -> None:
    notebook(
        "01_a",
        "import pandas as pd\nfrom apm.analysis.publish import Publisher\npublish = Publisher(profile, '01_a')\n"
        "for name in names:\n    publish(pd.DataFrame({'n': [1]}, index=['a']), name, '')",
        "assert names != ['01_wrong']",
        parameters='profile = "mini"\nnames = []',
    )
    results = project / "results" / "mini"
    own = {"02_other.csv", "01_my_notes.csv"}  # somebody's, one of them with the notebook's number
    written(results / "tables", *own)
    stamp = project / ".make" / "mini" / "01_a.done"

    def left(names: list[str]) -> set[str]:
        (project / "profiles" / "mini" / "01_a.yaml").write_text(f"names: {names}\n")
        run.main(["01_a", "--stamp", str(stamp)])
        return {path.name for path in (results / "tables").glob("*.csv")}

    assert left(["01_table", "01_curves"]) == {"01_table.csv", "01_curves.csv", *own}
    failed = {"01_table.csv", "01_curves.csv", "01_wrong.csv", *own}
    assert left(["01_wrong"]) == failed  # nothing goes
    (results / "tables" / "01_curves.csv").write_text("my remarks")
    assert left(["01_table"]) == {"01_table.csv", *own}
    assert (results / "by-hand" / "01_curves-1.csv").read_text() == "my remarks"
    named = [line.partition("  ")[2] for line in stamp.read_text().splitlines()[1:]]
    assert {"notebooks/01_a.ipynb", "numbers/01_a.csv", "tables/01_table.csv"} <= set(named)
    assert not [name for name in named if "curves" in name or "wrong" in name]


# --------------------------------------------------------------------------------------- stale and called up to date


def test_a_notebook_run_by_hand_writes_beside_what_make_made(tmp_path: Path, monkeypatch, capsys) -> None:
    table = pd.DataFrame({"n": [1]}, index=["a"])
    Publisher("mini", "04_compute")(table, "04_x", "1-fold")
    page = report.write("mini")
    results = files.results_dir("mini")
    before = contents(results)
    monkeypatch.delenv("APM_RUN")
    Publisher("mini", "04_compute")(table * 2, "04_x", "2.3e+12-fold")
    assert report.write("mini") == page.with_name("report.by-hand.html")
    assert {name: text for name, text in contents(results).items() if "by-hand" not in name} == before
    assert (results / "by-hand" / "tables" / "04_x.csv").is_file()


# ------------------------------------------------------------------------------------------------- the surroundings

SHOWS = """import sys, hashlib
import matplotlib.pyplot as plt
print(open.__module__, sys.flags.optimize, sys.flags.utf8_mode, 'foreign' in dir(), sys.executable == PYTHON)
plt.plot([1, 2])
plt.show()"""


def test_the_surroundings_do_not_reach_the_kernel(project: Path, notebook, tmp_path: Path, monkeypatch) -> None:
    notebook("01_a", SHOWS.replace("PYTHON", repr(sys.executable)))
    executed = project / "results" / "mini" / "notebooks" / "01_a.ipynb"
    assert run.main(["01_a"]) == 0
    before = executed.read_bytes()
    assert [output.output_type for output in nbformat.read(executed, 4).cells[-1].outputs] == ["stream", "display_data"]
    spec = {"argv": ["/bin/false"], "display_name": "x", "language": "python"}
    written(tmp_path, "jupyter/kernels/python3/kernel.json", text=json.dumps(spec))
    written(tmp_path, "ipython/profile_default/startup/a.py", text="foreign = 1\nimport nothing_there")
    modules = ("path/numpy.py", "path/sitecustomize.py", "random.py", "matplotlib.py")  # the last two in the project
    written(tmp_path, *modules, text="raise ImportError('foreign')")
    settings = ("matplotlibrc", "config/matplotlib/matplotlibrc")
    written(tmp_path, *settings, text="text.usetex: True\nfigure.facecolor: red\n")
    for name, value in {
        "MPLBACKEND": "agg",
        "MATPLOTLIBRC": str(tmp_path / "matplotlibrc"),
        "XDG_CONFIG_HOME": str(tmp_path / "config"),
        "IPYTHONDIR": str(tmp_path / "ipython"),
        "JUPYTER_PATH": str(tmp_path / "jupyter"),
        "JUPYTER_RUNTIME_DIR": "/proc/none",
        "PYTHONPATH": str(tmp_path / "path"),
        "PYTHONSTARTUP": str(tmp_path / "path" / "numpy.py"),
        "PYTHONOPTIMIZE": "2",
        "PYTHONWARNINGS": "error",
        "LC_ALL": "C",
    }.items():
        monkeypatch.setenv(name, value)
    assert run.main(["01_a"]) == 0
    assert executed.read_bytes() == before


def test_a_kernel_keeps_what_says_where_things_are(monkeypatch) -> None:
    kept = {"TORCH_HOME": "/w", "DATA": "/d", "OMP_NUM_THREADS": "3", "APM_CACHE": "/c", "HF_HOME": "/h"}
    for name, value in {**kept, "TORCH_LOGS": "+all", "SCIPY_ARRAY_API": "1", "PYTHONHOME": "/x"}.items():
        monkeypatch.setenv(name, value)
    own = kernel.environment()
    assert kept.items() <= own.items()
    assert not {"TORCH_LOGS", "SCIPY_ARRAY_API", "PYTHONHOME", "PYTHONPATH"} & own.keys()


# --------------------------------------------------------------------------------------------------- state, damaged

DAMAGES = {
    "empty": b"",
    "half": b'{"version": 1, "noteb',
    "not text": b"\xff\xfe\x00\x80",
    "a list": b"[]",
    "null": b"null",
    "other shapes": b'{"version": 1, "notebooks": {"01_a": 3, "02_b": {"complete": true, "entries": [{"files": 1}]}}}',
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damaged_state_is_said_made_anew_and_fails_no_finished_work(
    clone: Path, stale_of, finish, capsys, damage: str
) -> None:
    results, every = clone / "results" / "mini", {"01_a", "02_b", "99_report"}
    finish()
    files.paths.say.cache_clear()
    (results / manifest.NAME).write_bytes(DAMAGES[damage])
    with pytest.raises(ValueError, match="cannot be read"):
        manifest.read(results)
    assert stale_of() == every
    assert f"{results / manifest.NAME} " in capsys.readouterr().err
    manifest.note(results, "01_a", [], complete=True)
    assert list(manifest.read(results)["notebooks"]) == ["01_a"]
    finish()
    (clone / ".make" / "mini" / "01_a.done").write_bytes(DAMAGES[damage])
    assert stale_of() == {"01_a", "99_report"}
    times = results / "records" / "times.json"
    written(results, "records/times.json")
    times.write_bytes(DAMAGES[damage])
    assert run.times(results) == {}
    run.note_time(results, "02_b", 1.0)
    assert report.times(results, ["01_a", "02_b"]).loc["02_b", "last run (s)"] == 1
    assert json.loads(times.read_text()) == {"02_b": {"last": 1.0, "longest": 1.0}}


def test_state_that_cannot_be_written_fails_no_finished_work(project: Path, notebook, monkeypatch, capsys) -> None:
    notebook("01_a")
    monkeypatch.setattr(run, "run", lambda *_: files.results_dir("mini") / "notebooks" / "01_a.ipynb")
    stamp = project / ".make" / "mini" / "01_a.done"
    (stamp / "a folder").mkdir(parents=True)
    assert run.main(["01_a", "--stamp", str(stamp)]) == 0
    assert str(stamp) in capsys.readouterr().err


# ----------------------------------------------------------------------------- partial profiles, notebooks of others


def test_a_notebook_that_no_profile_names_is_left_alone(clone: Path, stale_of, finish, capsys) -> None:
    finish()
    written(clone, "notebooks/10_scratch.ipynb", "notebooks/99_mine.ipynb")
    (clone / "notebooks" / "11_empty.ipynb").touch()
    assert stale_of() == set()
    assert profiles.runs("mini") == ["01_a", "02_b", "99_report"]
    written(clone, "profiles/mini/02_c.yaml")  # a slip: said, not silently left out
    assert stale_of() == set()
    assert "02_c.yaml: there is no notebook of that name" in capsys.readouterr().err
    (clone / "profiles" / "mini" / "common.yaml").write_text("smaples: 3")
    with pytest.raises(ValueError, match=r"common\.yaml: unknown parameter 'smaples'"):
        profiles.load("mini", "01_a")


def test_the_report_shows_what_there_is(tmp_path: Path) -> None:
    Publisher("mini", "04_compute")(pd.DataFrame({"n": [1]}, index=["a"]), "04_x", "costs")
    page = report.write("mini").read_text()
    assert "costs" in page
    rows = report.numbers.read(files.results_dir("mini"))
    assert tables.show(report.in_short(rows), "short").html  # the last cells of 99_report
    assert tables.show(report.claims(rows).set_index("claim"), "claims").html


# ------------------------------------------------------------------------------------------------------------ places


@pytest.mark.parametrize("variable", ["DATA", "APM_RESULTS", "APM_CACHE"])
def test_a_relative_folder_lies_in_the_project_wherever_the_work_starts(
    clone: Path, monkeypatch, variable: str
) -> None:
    monkeypatch.setenv(variable, "my/sets")
    monkeypatch.chdir(clone / "notebooks")
    found = {"DATA": files.data_dir, "APM_RESULTS": lambda: files.results_dir("").parent, "APM_CACHE": files.cache_dir}
    assert str(found[variable]()).startswith(str(clone / "my"))


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP])
def test_without_locks_it_is_said_once_and_the_work_goes_on(tmp_path: Path, monkeypatch, capsys, code: int) -> None:
    def refuse(*_: object) -> None:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(fcntl, "flock", refuse)
    for _ in range(2):
        manifest.note(tmp_path, "01_a", [], complete=True)
    assert capsys.readouterr().err.count(f"{tmp_path} is on a file system without locks") == 1


def test_a_disk_that_fills_while_a_notebook_runs_is_explained(project: Path, notebook, monkeypatch, capsys) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    notebook("01_a")
    monkeypatch.setattr(papermill.iorw.LocalHandler, "write", full)
    assert run.main(["01_a"]) == 2
    assert re.search(r"01_a.* in .*results/mini/notebooks: the disk is full: free", capsys.readouterr().err)


def git(folder: Path, *arguments: str) -> None:
    who = ["-c", "user.name=a", "-c", "user.email=a@b"]
    subprocess.run(["git", "-C", folder, *who, *arguments], check=True, capture_output=True)


def test_the_commit_of_a_repository_around_the_code_is_not_taken_for_its_own(tmp_path: Path, monkeypatch) -> None:
    written(tmp_path, "own/apm/runs/shards.py", "a.txt")
    monkeypatch.setattr(shards, "__file__", str(tmp_path / "own" / "apm" / "runs" / "shards.py"))
    for home in (tmp_path / "own", tmp_path):
        git(home, "init")
        git(home, "add", "-A")
        git(home, "commit", "-m", "a")
        if home.name == "own":
            assert re.fullmatch("[0-9a-f]{40}", shards._commit())
            (home / ".git").rename(tmp_path / "moved")
    assert shards._commit() == "unknown"
    (tmp_path / "moved").rename(tmp_path / "own" / ".git")
    monkeypatch.setenv("GIT_DIR", str(tmp_path / ".git"))  # as in a hook of another repository
    assert re.fullmatch("[0-9a-f]{40}", shards._commit())


# -------------------------------------------------------------------------------------------------------- installing


@pytest.mark.parametrize("lost", ["gone", "moved"])
def test_an_environment_that_is_gone_or_of_another_place_is_made_again(clone: Path, make, lost: str) -> None:
    asked = clone / "asked"
    stub = clone / "stub"
    stub.write_text(f'#!/bin/sh\necho "$@ $PIP_USER [$PYTHONPATH] [$PIP_TARGET]" >> {asked}\nexit 1\n')
    stub.chmod(0o755)
    python = clone / ".venv" / "bin" / "python"
    assert make("env", f"PYTHON3={stub}").stdout == "make: Nothing to be done for 'env'.\n"
    if lost == "gone":
        python.unlink()
    else:  # the package that it has is in another folder; no pip answers
        python.write_text(python.read_text().replace(str(clone), str(ROOT)).replace("exec", '[ "$2" != pip ] && exec'))
        python.write_text(python.read_text().replace("exec", '[ "$2" != ensurepip ] && exec'))
    done = make("env", f"PYTHON3={stub}", PIP_USER="1", PYTHONPATH="/foreign", PIP_TARGET="/foreign")
    assert done.returncode == 2
    assert "-m venv --clear .venv 0 [] []" in asked.read_text()
    written(clone, "elsewhere/mine.txt")
    (clone / ".venv").rename(clone / "elsewhere" / ".venv")
    (clone / ".venv").symlink_to(clone / "elsewhere" / ".venv")
    asked.write_text("")
    assert make("env", f"PYTHON3={stub}").returncode == 2
    assert "venv" not in asked.read_text()  # a link leads to what may be somebody's

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
    project: Path, notebook, monkeypatch
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
    project: Path, notebook, capfd
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
    project: Path, notebook, capfd, arguments: list[str], message: str
) -> None:
    notebook("01_a", "open('ran', 'w')")
    (project / "results").write_text("a file, not a folder")
    assert run.main(arguments) == 2
    assert message in capfd.readouterr().err
    assert not (project / "ran").exists()


def test_a_kernel_that_is_interrupted_when_its_work_is_done_reports_no_error(project: Path, notebook, capfd) -> None:
    late = "handlers = get_ipython().kernel.shell_handlers\nown = handlers['execute_request']\n"
    late += "async def interrupted(*message):\n    await own(*message)\n    raise KeyboardInterrupt\n"
    late += "handlers['execute_request'] = interrupted"
    notebook("01_a", late, "get_ipython().kernel.log.error('something else')")
    assert run.main(["01_a"]) == 0
    error = capfd.readouterr().err
    assert ("something else" in error, "KeyboardInterrupt" in error) == (True, False)


def test_only_what_changed_or_is_gone_is_run_again(project: Path, notebook, capfd) -> None:
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


def test_times_of_notebooks_that_end_together_are_all_kept(tmp_path: Path, monkeypatch) -> None:
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
    for path, text in {"apm/teachers/__init__.py": "", "data/teachers/mini.yaml": "sha256: 1"}.items():
        (package / path).parent.mkdir(exist_ok=True)
        (package / path).write_text(text)
    (package / "apm" / "other.py").write_text("from apm import teachers")
    assert "mini.yaml" in files("02_b") - files("01_a")


def test_islands_and_audit_depend_on_the_published_numbers() -> None:
    for notebook in ("06_islands", "08_claims_audit"):
        assert "settings.csv" in files(notebook)


def test_checkpoints_are_found_wherever_a_profile_names_them(package: Path, monkeypatch) -> None:
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


# ----------------------------------------------------------------------------------------------------- the true Makefile


def test_make_runs_what_is_stale_and_deletes_no_stamp(clone: Path, make, would_run, finish) -> None:
    assert would_run() == {"01_a", "02_b", "99_report"}  # a profile without a file for 03 does not run it
    assert would_run("ONLY=02_b") == {"02_b"}
    finish()
    before = sorted((clone / ".make").rglob("*.done"))
    for path in ("notebooks/01_a.ipynb", "apm/other.py", "profiles/mini/common.yaml"):
        (clone / path).touch()
    (clone / ".make" / "mini" / "rules.mk").write_bytes(b"\xff garbage\n\tno rule")
    assert would_run() == set()
    assert "nothing changed" not in make("reproduce").stdout  # it starts no runner
    (clone / "results" / "mini" / "report.html").unlink()
    assert would_run() == {"99_report"}
    assert sorted((clone / ".make").rglob("*.done")) == before


# what makes which notebooks stale, besides the report, which shows the results of all: files that change or (-) are removed
STALE = {
    "01_a": "apm/base.py -apm/middle.py data/published/settings.csv -data/published/more.csv results/mini/manifest.json "
    "profiles/mini/01_a.lines.yaml -profiles/mini/01_a.lines.yaml results/mini/tables/01_table.csv "
    "results/mini/notebooks/01_a.ipynb -results/mini/notebooks/01_a.ipynb",
    "02_b": "apm/other.py profiles/mini/02_b.yaml notebooks/02_b.ipynb -results/mini/tables/02_table.csv",
    "01_a 02_b": "apm/project/run.py profiles/mini/common.yaml requirements.lock",
    "": "notebooks/index.yaml data/expected/mini.csv -notebooks/02_b.ipynb -results/mini/report.html",
    "nothing": "-notebooks/03_not_of_this_profile.ipynb",
}


@pytest.mark.parametrize(("path", "stale"), [(path, stale) for stale in STALE for path in STALE[stale].split()])
def test_what_depends_on_a_changed_or_removed_file_is_stale_and_nothing_else(
    clone: Path, stale_of, finish, path: str, stale: str
) -> None:
    finish()
    assert stale_of() == set()
    changed = clone / path.removeprefix("-")
    if path.startswith("-"):
        changed.unlink()
    else:
        changed.parent.mkdir(parents=True, exist_ok=True)
        text = changed.read_text() if changed.exists() else ""
        changed.write_text(text.replace('"caption": ""', '"caption": "2.3e+12-fold"', 1) + "\n")
    assert stale_of() == (set() if stale == "nothing" else {*stale.split(), "99_report"})


TREE = "-dog/2.png cow/1.png @cat/1.png"  # removed, new, of another time


@pytest.mark.parametrize(
    ("data", "named", "place", "changes"),
    [
        ("", "datasets: [folder:sets/own]", "sets/own", TREE),
        ("sets", "datasets: [cifar10-grey]", "sets/cifar10/test", TREE),
        ("", "pretrained: data/cache/a.safetensors", "data/cache", "a.safetensors @a.safetensors -a.safetensors"),
    ],
)
def test_images_and_weights_that_a_profile_names_are_looked_at(
    clone: Path, stale_of, finish, monkeypatch, data: str, named: str, place: str, changes: str
) -> None:
    monkeypatch.setenv("DATA", data)
    (clone / "profiles" / "mini" / "02_b.yaml").write_text(named)
    for name in ("cat/1.png", "dog/1.png", "dog/2.png"):
        (clone / place / name).parent.mkdir(parents=True, exist_ok=True)
        (clone / place / name).touch()
    (clone / place / "cat" / "above").symlink_to(clone / place)
    for change in changes.split():
        finish(data=data)
        assert stale_of() == set()
        path = clone / place / change.lstrip("-@")
        path.parent.mkdir(exist_ok=True)
        {"-": Path.unlink, "@": lambda path: os.utime(path, (1, 1))}.get(change[0], Path.touch)(path)
        assert stale_of() == {"02_b", "99_report"}


def test_another_results_folder_and_other_data_are_another_result(clone: Path, make, would_run, finish) -> None:
    everything, elsewhere = {"01_a", "02_b", "99_report"}, clone / "else where"
    finish()
    assert would_run(APM_RESULTS=str(elsewhere)) == everything
    finish(elsewhere)
    assert would_run(f"APM_RESULTS={elsewhere}") == set()
    assert f"up to date: {elsewhere}/mini/notebooks" in make("reproduce", APM_RESULTS=str(elsewhere)).stdout
    shutil.rmtree(elsewhere)
    assert would_run(APM_RESULTS=str(elsewhere)) == everything
    finish(data=str(clone / "sets"))
    assert would_run("DATA=sets") == set()  # the same folder
    assert would_run("DATA=other sets") == everything
    assert would_run("DATA=sets", PARTIAL="1") == everything


def test_make_runs_what_is_stale_and_then_nothing(clone: Path, make) -> None:
    (clone / "profiles" / "mini" / "01_a.yaml").unlink()
    (clone / "profiles" / "mini" / "02_b.yaml").unlink()
    first = make("reproduce")
    assert (first.returncode, "99_report: done" in first.stdout) == (0, True), first.stderr
    assert "report.html" not in first.stdout  # this report's notebook makes none
    assert make("reproduce").stdout.startswith("up to date: results/mini/notebooks")


def test_make_refuses_unknown_names_with_the_known_ones(clone: Path, make) -> None:
    for arguments, message in (
        (["reproduce", "ONLY=02_a"], "unknown notebook '02_a'. Known: 01_a 02_b 99_report"),
        (["teacher"], "profile mini trains no teacher of its own"),
    ):
        done = make(*arguments)
        assert (done.returncode, message in done.stderr) == (2, True), done.stderr
    shown = make("check-data", "DATA=my sets")  # a folder with spaces reaches the check; mini needs none
    assert (shown.returncode, shown.stdout) == (0, "profile mini needs no downloaded set\n")


def test_a_look_goes_beside_the_results_and_lab_passes_its_options(tmp_path: Path) -> None:
    def asked(*arguments: str, **more: str) -> str:
        own = {"PATH": os.environ["PATH"], **more}
        command = ["make", "-n", "-o", ".make/venv", "ENV=venv", *arguments]
        return subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True, env=own).stdout

    assert "APM_RESULTS=results/by-hand" in asked("quickstart")
    assert re.search(
        r"APM_RESULTS=results/by-hand .*run --profile mini 05_ablations$", asked("reproduce", "LINES=mine"), re.M
    )
    assert "by-hand" not in asked("verify", LINES="24")  # a terminal's
    fetched_first = r"data\.check --profile clip --download\n.*run --profile clip 00_quickstart$"
    assert re.search(fetched_first, asked("quickstart", "PROFILE=clip"), re.M)
    assert "--download" not in asked("quickstart")
    lab = asked("lab", "LAB=--port 8890 --no-browser")
    assert lab.rstrip().endswith("--LabApp.default_url=/lab/tree/notebooks/start.ipynb --port 8890 --no-browser")
    if os.geteuid() == 0:
        assert "root in a container" in asked("lab", container="docker")


def test_notebooks_share_the_cores_and_the_one_that_measures_times_is_alone(clone: Path, make) -> None:
    """With two at a time each has half of the cores; 04 waits for the others and has them all, also where ONLY asks for it."""
    for name in ("04_compute", "08_claims_audit"):
        for file in ("notebooks/{}.ipynb", "profiles/mini/{}.yaml"):
            shutil.copy(clone / file.format("01_a"), clone / file.format(name))

    def asked(*arguments: str) -> list[tuple[str, str]]:
        shown = make("-n", "reproduce", "JOBS=2", "CORES=8", *arguments).stdout
        return re.findall(r"OMP_NUM_THREADS:-(\d)}.* (\w+)(?: 2> .*)?$", shown, re.M)

    first, last = [("4", "02_b"), ("4", "01_a")], [("8", "04_compute"), ("4", "08_claims_audit"), ("4", "99_report")]
    assert asked() == first + last  # 02 takes longest, so it starts first
    assert asked("ONLY=04_compute") == [("8", "04_compute")]
    assert {threads for threads, _ in asked("STALE=01_a")} == {"8"}  # the only one beside those that wait


def test_make_help_names_every_documented_target() -> None:
    done = subprocess.run(["make", "help"], cwd=ROOT, capture_output=True, text=True, check=True)
    for target in ("env", "reproduce", "test", "bench", "lab", "report", "lint", "types", "lock"):
        assert re.search(rf"^  {target} ", done.stdout, flags=re.M)
    settings = "PROFILE ONLY LINES DATA WORKERS JOBS SCHEDULER APM_RESULTS APM_CACHE ENV LAB"
    assert re.findall(r"^  ([A-Z_]+)=\S+ +\S", done.stdout, flags=re.M) == settings.split()

"""Small projects: notebooks of a cell or two, and a clone with our Makefile and package."""

import os
import re
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import nbformat
import pytest
import trees
from nbformat.v4 import new_code_cell, new_notebook

from apm.project import depends, manifest, profiles

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def project(tmp_path: Path, monkeypatch) -> Path:
    monkeypatch.setenv("APM_ROOT", str(tmp_path))
    (tmp_path / "profiles" / "mini").mkdir(parents=True)
    (tmp_path / "profiles" / "mini" / "common.yaml").write_text("")
    (tmp_path / "apm").mkdir()
    (tmp_path / "apm" / "__init__.py").write_text("")
    return tmp_path


@pytest.fixture
def notebook(project: Path) -> Callable[..., None]:
    """Writes a notebook of the project: a parameters cell and further ones."""

    def write(name: str, *cells: str, parameters: str = 'profile = "mini"') -> None:
        tagged = new_code_cell(parameters, metadata={"tags": ["parameters"]}, id="parameters")
        book = new_notebook(cells=[tagged, *(new_code_cell(source, id=f"cell-{i}") for i, source in enumerate(cells))])
        book.metadata["kernelspec"] = {"name": "python3", "display_name": "Python 3", "language": "python"}
        (project / "notebooks").mkdir(exist_ok=True)
        nbformat.write(book, project / "notebooks" / f"{name}.ipynb")

    return write


@pytest.fixture
def package(project: Path, notebook) -> Path:
    for name, source in {
        "base": "x = 1",
        "middle": "from apm.base import x",
        "late": "def f():\n    from apm import middle\n    return middle",
        "other": "y = 2",
    }.items():
        (project / "apm" / f"{name}.py").write_text(source)
    notebook("01_a", "%matplotlib inline\nfrom apm import late")
    notebook("02_b", "import apm.other")
    notebook("03_not_of_this_profile", "import apm.other")
    notebook("99_report", "print(1)")
    for name in ("01_a", "02_b"):
        (project / "profiles" / "mini" / f"{name}.yaml").write_text("")
    return project


@pytest.fixture
def clone(package: Path, monkeypatch) -> Path:
    """The project with our Makefile and apm, notebooks of one cell, and an environment that is this one."""
    outside = "APM_ROOT APM_RESULTS APM_RUN APM_CACHE DATA PARTIAL MAKEFLAGS MFLAGS MAKELEVEL PROFILE ONLY LINES APM_LINES ENV"
    for name in outside.split():
        monkeypatch.delenv(name, raising=False)
    for name in ("Makefile", "requirements.lock", "environment.yml", "pyproject.toml"):
        shutil.copy(ROOT / name, package)
    shutil.copytree(ROOT / "apm", package / "apm", ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
    (package / "apm" / "base.py").write_text("from apm.data import published")
    (package / "data" / "published").mkdir(parents=True)
    for name in ("settings.csv", "more.csv"):
        (package / "data" / "published" / name).write_text("a,b\n")
    (package / "profiles" / "mini" / "01_a.lines.yaml").write_text("- {a: 1}\n")
    trees.environment(package)
    monkeypatch.chdir(package)
    return package


@pytest.fixture
def make(clone: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def call(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
        command, own = ["make", "ENV=venv", *arguments], {**os.environ, **environment}
        return subprocess.run(command, cwd=clone, env=own, capture_output=True, text=True, check=False)

    return call


@pytest.fixture
def would_run(make) -> Callable[..., set[str]]:
    """The notebooks that `make reproduce` would run."""

    def ask(*arguments: str, **environment: str) -> set[str]:
        done = make("--dry-run", "reproduce", *arguments, **environment)
        assert done.returncode == 0, done.stderr
        return set(re.findall(r"-m apm\.project\.run .* (\w+)(?: 2> .*)?$", done.stdout, flags=re.M))

    return ask


@pytest.fixture
def stale_of(clone: Path) -> Callable[[], set[str]]:
    """The notebooks that make's rules call stale, and those that read what these leave, without starting make."""

    def ask() -> set[str]:
        depends.listing.cache_clear()
        text = depends.rules("mini")
        stale = set(re.findall(r"/([^/\s]+)\.done: FORCE", text))
        return stale | ({"99_report"} if stale else set())

    return ask


@pytest.fixture
def finish(clone: Path, monkeypatch) -> Callable[..., None]:
    """Leaves what a run of every notebook leaves, without running."""

    def leave(results: Path | None = None, data: str = "") -> None:
        folder = (results or clone / "results") / "mini"
        depends.listing.cache_clear()
        with monkeypatch.context() as patch:
            patch.setenv("APM_RESULTS", str(folder.parent))
            patch.setenv("DATA", data)
            for name in profiles.runs("mini"):
                table = f"tables/{name[:2]}_table.csv"
                entry = {"name": "t", "kind": "table", "caption": "", "notes": "", "rows": 1, "files": [table]}
                manifest.note(folder, name, [entry], complete=True)
                for file in (f"notebooks/{name}.ipynb", table, *(["report.html"] if name == "99_report" else [])):
                    (folder / file).parent.mkdir(parents=True, exist_ok=True)
                    (folder / file).write_text("")
                stamp = clone / ".make" / "mini" / f"{name}.done"
                stamp.parent.mkdir(exist_ok=True)
                stamp.write_text("\n".join([depends.state("mini", name), *depends.left(folder, name)]) + "\n")

    return leave

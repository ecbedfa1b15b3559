"""One list of dependencies: pyproject.toml, requirements.lock, environment.yml, Makefile and CI agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement

from apm.project import environment

ROOT = Path(__file__).resolve().parents[2]
ASKED = environment.asked_for(ROOT / "pyproject.toml")
LOCKED = environment.locked(ROOT / "requirements.lock")


def test_environment_yml_is_what_pyproject_and_lock_say() -> None:
    assert (ROOT / "environment.yml").read_text() == environment.render(ROOT)


def test_environment_yml_installs_the_lock_file() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert dependencies[0] == "python=3.11"
    assert dependencies[-1] == {"pip": ["--requirement requirements.lock"]}


@pytest.mark.parametrize(("name", "requirement"), ASKED)
def test_locked_version_satisfies_what_is_asked_for(name: str, requirement: str) -> None:
    assert Requirement(requirement).specifier.contains(LOCKED[environment.normal(name)])


def test_every_package_of_the_design_is_asked_for() -> None:
    wanted = {"jupyterlab", "papermill", "torch", "open_clip_torch", "pandas", "seaborn", "nbval"}
    assert wanted <= {name for name, _ in ASKED}


def test_lock_pins_a_matching_torch_and_torchvision_and_hashes_everything() -> None:
    text = (ROOT / "requirements.lock").read_text()
    pins = re.findall(r"^[A-Za-z0-9_.-]+==", text, flags=re.M)
    assert len(pins) == len(re.findall(r"==[^\n]*\\\n    --hash=sha256:", text))
    assert LOCKED["torch"].rsplit(".", 1)[0] == "2.15"
    assert LOCKED["torchvision"].rsplit(".", 1)[0] == "0.29"


def test_makefile_installs_the_lock_and_ci_uses_the_makefile() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert "--requirement requirements.lock" in makefile
    assert "uv pip compile" in makefile
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make env" in ci
    assert "make test" in ci
    assert not re.search(r"\b(pip|uv|conda) install", ci)


def test_a_dependency_that_is_not_locked_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["nosuch>=1"]\noptional-dependencies = {}\n')
    (tmp_path / "requirements.lock").write_text("")
    with pytest.raises(
        ValueError, match=r"nosuch is in pyproject\.toml but not in requirements\.lock: run `make lock`"
    ):
        environment.render(tmp_path)


def test_no_tracked_file_names_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout.split(
        "\n"
    )
    hosts = re.compile("|".join([r"pypi\.", r"pythonhosted\.", r"registry\.npmjs\.", r"deb\.debian\."]))
    named = [
        path
        for path in filter(None, listed)
        if (ROOT / path).suffix not in {".png", ".pdf"} and path != "tests/test_environment.py"
        if (ROOT / path).is_file() and hosts.search((ROOT / path).read_text(encoding="utf-8", errors="ignore"))
    ]
    assert named == []


BLOCKED = """
import importlib, sys
from importlib.machinery import PathFinder
class Hiding(PathFinder):
    @classmethod
    def find_spec(cls, name, path=None, target=None):
        return None if name.split(".")[0] in {blocked!r} else super().find_spec(name, path, target)
sys.meta_path[sys.meta_path.index(PathFinder)] = Hiding
for name in {modules!r}:
    importlib.import_module(name)
from apm.data import datasets
datasets.load("digits-test")
"""


def test_the_extras_are_not_needed_by_training_teachers_data_and_methods() -> None:
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    names = {
        environment.normal(re.split("[^A-Za-z0-9_.-]", r)[0]) for e in ("notebooks", "cluster", "hf") for r in extras[e]
    }
    blocked = {name.replace("-", "_") for name in names} | {"IPython", "jupyter_core", "dask"}
    assert {"matplotlib", "papermill", "jupyterlab", "distributed", "transformers"} <= blocked
    modules = (
        "ttt",
        "model",
        "teachers",
        "datasets",
        "methods",
        "baselines",
        "corruptions",
        "records",
        "stats",
        "benchmark",
        "field",
    )
    code = BLOCKED.format(blocked=blocked, modules=[f"apm.{name}" for name in modules])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_makefile_locks_the_extras_that_environment_yml_shows() -> None:
    (extras,) = re.findall(r"^LOCKED := (.*)$", (ROOT / "Makefile").read_text(), flags=re.M)
    assert tuple(extras.split()) == environment.LOCKED
    assert "transformers" not in LOCKED

"""One list of dependencies: pyproject.toml, requirements.lock, environment.yml, Makefile and CI agree."""

import re
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
LOCK = (ROOT / "requirements.lock").read_text()
MAKEFILE = (ROOT / "Makefile").read_text()
EXTRAS = re.search(r"^LOCKED := (.*)$", MAKEFILE, flags=re.M)[1].split()
ASKED = [
    Requirement(line)
    for line in [*PROJECT["dependencies"], *(one for e in EXTRAS for one in PROJECT["optional-dependencies"][e])]
]
LOCKED = {
    canonicalize_name(name): version
    for name, version in reversed(re.findall(r"^([\w.-]+)==([^ ;\\]+)", LOCK, flags=re.M))
}


def test_environment_yml_installs_the_lock_file() -> None:
    dependencies = yaml.safe_load((ROOT / "environment.yml").read_text())["dependencies"]
    assert dependencies[0] == "python=3.11"
    assert dependencies[-1] == {"pip": ["--requirement requirements.lock"]}


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_locked_version_satisfies_what_is_asked_for(asked: Requirement) -> None:
    assert asked.specifier.contains(LOCKED[canonicalize_name(asked.name)])


def test_lock_pins_a_matching_torch_and_torchvision_and_hashes_everything() -> None:
    pins = re.findall(r"^[\w.-]+==", LOCK, flags=re.M)
    assert len(pins) == len(re.findall(r"==[^\n]*\\\n    --hash=sha256:", LOCK))
    assert LOCKED["torch"].rsplit(".", 1)[0] == "2.15"
    assert "transformers" not in LOCKED  # few want it
    assert LOCKED["torchvision"].rsplit(".", 1)[0] == "0.29"


def test_makefile_installs_the_lock_and_ci_uses_the_makefile() -> None:
    assert "--requirement requirements.lock" in MAKEFILE
    assert "uv pip compile" in MAKEFILE
    ci = (ROOT / ".ci" / "run").read_text()
    assert "make env" in ci
    assert "make test" in ci
    assert not re.search(r"\b(pip|uv|conda) install", ci)


def test_no_tracked_file_names_a_package_registry() -> None:
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    hosts = re.compile("|".join([r"pypi\.", r"pythonhosted\.", r"registry\.npmjs\.", r"deb\.debian\."]))
    files = [ROOT / path for path in listed.splitlines() if not path.endswith((".png", ".pdf", "test_environment.py"))]
    named = [path for path in files if path.is_file() and hosts.search(path.read_text("utf-8", errors="ignore"))]
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
from apm import data as datasets
datasets.load("digits-test")
"""


def test_the_extras_are_not_needed_by_training_teachers_data_and_methods() -> None:
    extras = [one for e in ("notebooks", "cluster", "hf") for one in PROJECT["optional-dependencies"][e]]
    names = {canonicalize_name(Requirement(one).name) for one in extras}
    blocked = {name.replace("-", "_") for name in names} | {"IPython", "jupyter_core", "dask"}
    assert {"matplotlib", "papermill", "jupyterlab", "distributed", "transformers"} <= blocked
    modules = "ttt model teachers data methods data.corruptions runs.records analysis.stats"
    code = BLOCKED.format(blocked=blocked, modules=[f"apm.{name}" for name in modules.split()])
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr

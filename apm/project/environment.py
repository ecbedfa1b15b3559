"""environment.yml as it must read: `python -m apm.project.environment` writes it from pyproject.toml and requirements.lock."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

from apm.project import atomic_write, root

HEAD = """\
# The environment for conda, mamba or micromamba; `make env` uses it when one of them is there, else a virtual environment
# with the same lock file. Written by `make lock` from pyproject.toml, the one list of dependencies.
name: apm
channels:
  - conda-forge
dependencies:
  - python=3.11
  - pip
  - pip:
      # Exact versions, with hashes, of the packages below and of all that they need:
      - --requirement requirements.lock
"""


def normal(name: str) -> str:
    """A distribution's name in its normal form."""
    return re.sub(r"[-_.]+", "-", name).lower()


LOCKED = ("notebooks", "cluster", "dev")  # extras that `make lock` locks and `make env` installs


def asked_for(pyproject: Path) -> list[tuple[str, str]]:
    """(name, requirement) of the dependencies that pyproject.toml lists, those of the extras in `LOCKED` included, in its order."""
    project = tomllib.loads(pyproject.read_text(encoding="utf-8"))["project"]
    extras = project["optional-dependencies"]
    listed = [*project["dependencies"], *(requirement for extra in LOCKED for requirement in extras.get(extra, ()))]
    return [(re.split(r"[^A-Za-z0-9_.-]", requirement, maxsplit=1)[0], requirement) for requirement in listed]


def locked(lock: Path) -> dict[str, str]:
    """Version of every package in the lock file, for Python 3.11 where it differs by version."""
    versions: dict[str, str] = {}
    for line in lock.read_text(encoding="utf-8").splitlines():
        found = re.match(r"([A-Za-z0-9_.-]+)==([^ ;\\]+)\s*(?:;\s*(.*?))?\s*\\?$", line)
        if found and not ("python_full_version >= '3.12'" in (found[3] or "") or "== '3.12" in (found[3] or "")):
            versions.setdefault(normal(found[1]), found[2])
    return versions


def render(folder: Path) -> str:
    """The text of environment.yml. Raises ValueError for a dependency that the lock file does not have."""
    versions = locked(folder / "requirements.lock")
    lines = []
    for name, _ in asked_for(folder / "pyproject.toml"):
        if normal(name) not in versions:
            raise ValueError(f"{name} is in pyproject.toml but not in requirements.lock: run `make lock`")
        lines.append(f"      #   {name}=={versions[normal(name)]}\n")
    return HEAD + "".join(lines)


if __name__ == "__main__":
    print("wrote", atomic_write(root() / "environment.yml", render(root())))

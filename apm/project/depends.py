"""What a notebook's result depends on, and which results are stale.

A result depends on the notebook, its profile's YAML files and local weights, exactly the apm modules that it imports, the
published numbers and the cards of shipped teachers where one of those reads them, the locked versions, and where data and results are. All of that is hashed
into a stamp when a run has ended well; a result is stale when the hash has changed or a file that the run left is gone.
Contents count, not times: a touched file makes nothing stale, a removed one does.

Light imports only, the standard library and PyYAML, so that make can ask at every start:

    python -m apm.project.depends mini      # make rules: which stamps are stale
"""

from __future__ import annotations

import ast
import functools
import hashlib
import json
import os
import sys
from pathlib import Path
from typing import Any

import yaml

from apm.project import data_dir, located, manifest, results_dir
from apm.project import root as project_root

PACKAGE = Path(__file__).resolve().parents[1]
ALWAYS = ("project.run", "project.profiles", "project.progress")  # what runs a notebook
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


@functools.cache
def imported(source: str, package: str = "apm") -> frozenset[str]:
    """Dotted names below the package that a piece of code imports anywhere in it: of modules, rooms, or what these define."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name for a in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
            found |= {f"{node.module}.{a.name}" for a in node.names}
    return frozenset(name.removeprefix(f"{package}.") for name in found if name.startswith(f"{package}."))


def files_of(name: str, folder: Path = PACKAGE) -> list[Path]:
    """The source files that importing a dotted name runs: of the rooms on the way, and of the module."""
    here, files = folder, list[Path]()
    for part in name.split("."):
        if (here / f"{part}.py").is_file():
            return [*files, here / f"{part}.py"]
        here /= part
        if not here.is_dir():  # a name that a room or a module defines
            break
        files.append(here / "__init__.py")
    return [file for file in files if file.is_file()]


def closure(names: frozenset[str] | set[str], folder: Path = PACKAGE) -> list[Path]:
    """All source files that importing the names needs, through imports of imports, and the tables of facts beside them."""
    todo, files = {file for name in names for file in files_of(name, folder)}, {folder / "__init__.py"}
    while todo:
        path = todo.pop()
        files.add(path)
        more = imported(path.read_text(encoding="utf-8"), folder.name)
        todo |= {file for name in more for file in files_of(name, folder)} - files
    configs = folder / "teachers" / "model_configs"
    if folder / "teachers" / "__init__.py" in files and configs.is_dir():
        files |= set(configs.glob("*.json"))
    return sorted(files | {facts for room in {path.parent for path in files} for facts in room.glob("*.yaml")})


def code(notebook: Path) -> str:
    """The code cells of a notebook as one source; lines that only IPython understands are left out."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise SystemExit(f"{notebook}: not a notebook ({error}): restore it from the repository") from error
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def inputs(root: Path, profile: str, notebook: Path) -> list[Path]:
    """Every file whose change makes the notebook's result stale, but for weights and other notebooks' results."""
    modules = closure(imported(code(notebook)) | set(ALWAYS), root / "apm")
    published = (
        sorted((root / "data" / "published").glob("*.csv")) if root / "apm" / "data" / "published.py" in modules else []
    )
    cards = (
        sorted((root / "data" / "teachers").glob("*.yaml"))
        if root / "apm" / "teachers" / "__init__.py" in modules
        else []
    )
    lock = root / "requirements.lock"
    page = [
        root / "notebooks" / "index.yaml",
        root / "apm" / "analysis" / "report.html.j2",
        root / "data" / "expected" / f"{profile}.csv",
    ]
    page = [path for path in page if path.is_file()] if notebook.stem.startswith("99_") else []
    return [
        notebook,
        *page,
        *settings_files(root, profile, notebook),
        *modules,
        *published,
        *cards,
        *([lock] if lock.is_file() else []),
    ]


def settings_files(root: Path, profile: str, notebook: Path) -> list[Path]:
    """The YAML files of a profile that a notebook reads."""
    folder = root / "profiles" / profile
    files = [folder / "common.yaml", folder / f"{notebook.stem}.yaml", *sorted(folder.glob(f"{notebook.stem}.*.yaml"))]
    return [file for file in files if file.is_file()]


def weights(root: Path, profile: str, notebook: Path) -> list[Path]:
    """Local checkpoints that the YAML files of a notebook name, there or not: values of `pretrained` that are paths."""
    named = [
        name
        for file in settings_files(root, profile, notebook)
        for name in _pretrained(_parsed(file.read_text(encoding="utf-8")))
    ]
    files = [located(name).rpartition("=")[2] for name in named]  # FILE or TAG=FILE
    return sorted({root / name for name in files if "/" in name or Path(name).suffix in WEIGHTS})


@functools.cache
def _parsed(text: str) -> Any:
    try:
        return yaml.safe_load(text)
    except yaml.YAMLError:
        return None  # `apm.project.profiles` says what is wrong with it, before the notebook runs


def _pretrained(values: Any) -> list[str]:
    """Every text under a key `pretrained`, however deep."""
    if isinstance(values, list):
        return [name for value in values for name in _pretrained(value)]
    if not isinstance(values, dict):
        return []
    own = values.get("pretrained")
    return ([own] if isinstance(own, str) else []) + _pretrained(list(values.values()))


def notebooks(root: Path, profile: str) -> list[Path]:
    """The notebooks that a profile runs: those for which its folder has a YAML file, and the report."""
    own = {path.stem for path in (root / "profiles" / profile).glob("*.yaml")}
    found = sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
    return [path for path in found if path.stem in own or path.stem.startswith("99_")]


def reads_results(notebook: str) -> bool:
    """Whether a notebook reads what those before it left: the audit and the report."""
    return notebook.split("_")[0] in ("08", "99")


def outputs(results: Path, notebook: str) -> list[Path]:
    """The files in a results folder that its manifest says a notebook made: numbers, tables, figures; the report its page."""
    numbers = results / "numbers" / f"{notebook}.csv"
    page = results / "report.html" if notebook.startswith("99_") else numbers
    return [
        *(path for path in dict.fromkeys((numbers, page)) if path.is_file()),
        *(results / file for file in manifest.files(results, notebook)),
    ]


def state(root: Path, profile: str, notebook: Path) -> str:
    """The hash of all that a notebook's result depends on, as it is now."""
    total, results = hashlib.sha256(), results_dir(profile)
    for value in (str(data_dir()), os.environ.get("PARTIAL", ""), str(results)):
        total.update(value.encode() + b"\0")
    for path in weights(root, profile, notebook):
        # by size and time, as weights are large; what is computed with them is stored under the hash of their contents
        seen = (path.stat().st_size, path.stat().st_mtime_ns) if path.is_file() else None
        total.update(f"{path} {seen}".encode() + b"\0")
    paths = inputs(root, profile, notebook)
    if reads_results(notebook.stem):
        before = [other.stem for other in notebooks(root, profile) if other.stem[:2] < notebook.stem[:2]]
        total.update(" ".join(before).encode() + b"\0")
        paths += [path for other in before for path in outputs(results, other) if path.is_file()]
    for path in paths:
        total.update(path.name.encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def is_done(stamp: Path, wanted: str, results: Path) -> bool:
    """Whether a stamp is of the state `wanted` and every file that it names is still in the results folder."""
    if not stamp.is_file():
        return False
    had, *left = stamp.read_text(encoding="utf-8").splitlines()
    return had == wanted and all((results / name).is_file() for name in left)


def rules(root: Path, profile: str) -> str:
    """Make rules for the notebooks of a profile: FORCE before the stamps that are stale, and for those that read results the
    stamps of the notebooks before them."""
    chosen, results = notebooks(root, profile), results_dir(profile)
    stamps = {path: f".make/{profile}/{path.stem}.done" for path in chosen}
    lines = [f"NOTEBOOKS := {' '.join(path.stem for path in chosen)}"]
    for notebook, stamp in stamps.items():
        if not is_done(root / stamp, state(root, profile, notebook), results):
            lines.append(f"{stamp}: FORCE")
        if reads_results(notebook.stem):
            earlier = [stamps[other] for other in chosen if other.stem[:2] < notebook.stem[:2]]
            lines.append(f"{stamp}: {' '.join(earlier)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(rules(project_root(), sys.argv[1] if len(sys.argv) > 1 else "mini"), end="")

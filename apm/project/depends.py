"""What a notebook's result depends on, and which results are stale.

All of that (`state`) is hashed into a stamp when a run has ended well, with the files that it left (`left`). A result is stale when one
of these is another now. Contents count (of weights and images: sizes and times): a touched file makes nothing stale.

    python -m apm.project.depends mini      # make rules: which stamps are stale; make asks at every start
"""

from __future__ import annotations

import ast
import functools
import hashlib
import os
import re
import sys
from contextlib import suppress
from pathlib import Path

from apm.project import data_dir, facts, located, manifest, profiles, results_dir, root, sha256_file, sha256_of
from apm.project.paths import kept, say

PACKAGE = Path(__file__).resolve().parents[1]
ALWAYS = ("project.run", "project.kernel")  # what runs a notebook
WEIGHTS = (".safetensors", ".pt", ".pth", ".bin")


@functools.cache
def imported(source: str) -> frozenset[str]:
    """Dotted names below apm that a piece of code imports anywhere in it: of modules, rooms, or what these define."""
    found: set[str] = set()
    with suppress(SyntaxError):  # the run says so
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                found |= {a.name for a in node.names}
            elif isinstance(node, ast.ImportFrom) and node.module and not node.level:
                found |= {f"{node.module}.{a.name}" for a in node.names}
    return frozenset(name.removeprefix("apm.") for name in found if name.startswith("apm."))


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
        more = imported(path.read_text(encoding="utf-8"))
        todo |= {file for name in more for file in files_of(name, folder)} - files
    rooms, kinds = {file.parent for file in files}, ("*.yaml", "model_configs/*.json")
    return sorted(files.union(*(room.glob(kind) for room in rooms for kind in kinds)))


def cells(notebook: Path) -> list[str]:
    """The code cells of a notebook; those for another language and lines that only IPython understands are left out."""
    lines = [source.splitlines() for source in profiles.code_cells(notebook) if not source.startswith("%%")]
    return ["\n".join(line for line in cell if not line.lstrip().startswith(("%", "!"))) for cell in lines]


def inputs(profile: str, notebook: str) -> list[Path]:
    """Every file whose change makes the notebook's result stale, but for weights, images and other notebooks' results."""
    home, path = root(), root() / "notebooks" / f"{notebook}.ipynb"
    modules = closure({*ALWAYS}.union(*map(imported, cells(path))), home / "apm")
    files = [path, *settings_files(profile, notebook), *modules, home / "requirements.lock"]
    if home / "apm" / "data" / "published.py" in modules:
        files += sorted((home / "data" / "published").glob("*.csv"))
    if home / "apm" / "teachers" / "__init__.py" in modules:
        files += sorted((home / "data" / "teachers").glob("*.yaml"))
    if notebook == profiles.REPORT:
        page = ("notebooks/index.yaml", "apm/analysis/report.html.j2", f"data/expected/{profile}.csv")
        files += [home / name for name in page]
    return [file for file in files if file.is_file()]


def settings_files(profile: str, notebook: str) -> list[Path]:
    """The YAML files of a profile that a notebook reads."""
    folder = root() / "profiles" / profile
    return [folder / "common.yaml", folder / f"{notebook}.yaml", *sorted(folder.glob(f"{notebook}.*.yaml"))]


def _settings(profile: str, notebook: str) -> set[tuple[str, str]]:
    found: set[tuple[str, str]] = set()
    for file in settings_files(profile, notebook):
        with suppress(ValueError, OSError):  # said before the notebook runs
            found |= set(profiles.texts(profiles.parsed(file)))
    return found


def weights(profile: str, notebook: str) -> list[Path]:
    """Local checkpoints that the YAML files of a notebook name, there or not: values of `pretrained` that are paths."""
    named = [text for key, text in _settings(profile, notebook) if key == "pretrained"]
    files = [located(name).rpartition("=")[2] for name in named]  # FILE or TAG=FILE
    return sorted({root() / name for name in files if "/" in name or Path(name).suffix in WEIGHTS})


def trees(profile: str, notebook: str) -> list[Path]:
    """Folders of images that the YAML files of a notebook name: of class folders, and of published sets below $DATA."""
    base, found = data_dir(), set[Path]()
    for _, text in _settings(profile, notebook):
        if text.startswith("folder:"):
            found.add(Path(base or root(), Path(text.removeprefix("folder:")).expanduser()).resolve())
        elif base:  # the name of a derived set begins with that of the set that it is made from
            names = [name for name in _places() if re.match(rf"{re.escape(name)}([-/?]|$)", text)]
            found |= {base / place for name in names for place in _places()[name]}
    return sorted(found)


@functools.cache
def _places() -> dict[str, list[str]]:
    """Published set -> folders below $DATA in which it is looked for."""
    sets = facts(str(PACKAGE / "data" / "published_sets.py"))
    return {name: about["places"] for name, about in sets.items() if "places" in about}


@functools.cache
def listing(tree: Path) -> str:
    """Hash of the names, sizes and times of all files below a folder, through links too."""
    total, seen = hashlib.sha256(), set[str]()
    for folder, inner, names in os.walk(tree, followlinks=True):
        if (real := os.path.realpath(folder)) in seen:  # a link to a folder above
            inner.clear()
            continue
        seen.add(real)
        inner.sort()
        for name in sorted(names):
            total.update(f"{folder}/{name} {_seen(Path(folder, name))}\0".encode("utf-8", "surrogateescape"))
    return total.hexdigest()


def _seen(path: Path) -> tuple[int, int] | None:
    with suppress(OSError):
        return path.stat().st_size, path.stat().st_mtime_ns
    return None


def reads_results(notebook: str) -> bool:
    """Whether a notebook reads what those before it left: the audit and the report."""
    return notebook.split("_")[0] in ("08", "99")


def outputs(results: Path, notebook: str) -> list[Path]:
    """The files in a results folder that its manifest says a notebook made: numbers, tables, figures; the report its page."""
    own = [results / "numbers" / f"{notebook}.csv", *([results / "report.html"] if notebook == profiles.REPORT else [])]
    return [*filter(Path.is_file, own), *(results / file for file in manifest.files(results, notebook))]


def left(results: Path, notebook: str) -> list[str]:
    """What a run has left, as lines `digest  file`: the executed notebook, what it published, its part of the manifest."""
    paths = [results / "notebooks" / f"{notebook}.ipynb", *outputs(results, notebook)]
    lines = [f"{sha256_file(path)}  {path.relative_to(results).as_posix()}" for path in paths if path.is_file()]
    return [*lines, f"{sha256_of(manifest.notebooks(results).get(notebook))}  {manifest.NAME}"]


def state(profile: str, notebook: str) -> str:
    """The hash of all that a notebook's result depends on, as it is now."""
    results, paths = results_dir(profile), inputs(profile, notebook)
    told = [str(data_dir()), os.environ.get("PARTIAL", ""), str(results)]
    # large files by size and time: what is computed with them is stored under the hash of their contents
    told += [f"{path} {_seen(path)}" for path in weights(profile, notebook)]
    told += [f"{tree} {listing(tree)}" for tree in trees(profile, notebook)]
    if reads_results(notebook):
        told += (before := [other for other in profiles.runs(profile) if other[:2] < notebook[:2]])
        paths += [path for other in before for path in outputs(results, other) if path.is_file()]
    return sha256_of([told, [[path.name, sha256_file(path)] for path in paths]])


def stamped(stamp: Path) -> list[str]:
    """The lines of a stamp, a state and what its run left (`left`); none where there is none, or none that can be read."""
    return kept(stamp, str.splitlines, [])


def rules(profile: str) -> str:
    """Make rules: the notebooks, those that are STALE, FORCE before the stamps of these, and for notebooks that read results the stamps of
    those before them."""
    chosen, results = profiles.runs(profile), results_dir(profile)
    if wrong := [name for name in chosen if not re.fullmatch(r"[\w.+-]+", name)]:
        raise ValueError(f"notebooks/{wrong[0]}.ipynb: make runs names of letters, digits and _ . + - only: rename it")
    for path in profiles.folder_of(profile).glob("[0-9][0-9]_*.yaml"):
        if path.name.split(".")[0] not in chosen:
            say(f"{path}: there is no notebook of that name: it is left out. Known: {', '.join(profiles.notebooks())}")
    stamps = {name: f".make/{profile}/{name}.done" for name in chosen}
    stale = [n for n, stamp in stamps.items() if stamped(root() / stamp) != [state(profile, n), *left(results, n)]]
    lines = [f"NOTEBOOKS := {' '.join(chosen)}", f"STALE := {' '.join(stale)}"]
    for name, stamp in stamps.items():
        if name in stale:
            lines.append(f"{stamp}: FORCE")
        if reads_results(name):
            earlier = [stamps[other] for other in chosen if other[:2] < name[:2]]
            lines.append(f"{stamp}: {' '.join(earlier)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    try:
        print(rules(*sys.argv[1:]), end="")
    except (ValueError, OSError) as error:
        sys.exit(str(error))

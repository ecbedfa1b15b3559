"""Which files a notebook depends on: itself, its profile's YAML files, and exactly the apm modules that it imports.

Standard library only, so that make can ask before an environment exists:

    python -m apm.depends mini      # make rules: one stamp per notebook
"""

from __future__ import annotations

import ast
import hashlib
import json
import sys
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
ALWAYS = ("run", "profiles", "project", "progress")  # what runs a notebook


def imported(source: str, package: str = "apm") -> set[str]:
    """Names of the package's modules that a piece of code imports anywhere in it."""
    found: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith(f"{package}.")}
        elif isinstance(node, ast.ImportFrom) and node.module:
            if node.module == package:
                found |= {a.name for a in node.names}
            elif node.module.startswith(f"{package}."):
                found.add(node.module.split(".")[1])
    return found


def files_of(module: str, folder: Path = PACKAGE) -> list[Path]:
    """The source files of a module or subpackage; none when it is no module (a name from apm/__init__.py)."""
    single, many = folder / f"{module}.py", folder / module
    return [single] if single.is_file() else sorted(many.rglob("*.py"))


def closure(modules: set[str], folder: Path = PACKAGE) -> list[Path]:
    """All source files that the modules need, through imports of imports."""
    todo, done, files = set(modules), set(), {folder / "__init__.py"}
    while todo:
        module = todo.pop()
        done.add(module)
        for path in files_of(module, folder):
            files.add(path)
            todo |= imported(path.read_text(encoding="utf-8"), folder.name) - done
        data = folder / "model_configs"
        if module == "teachers" and data.is_dir():
            files |= set(data.glob("*.json"))
    return sorted(files)


def code(notebook: Path) -> str:
    """The code cells of a notebook as one source; lines that only IPython understands are left out."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    except (ValueError, KeyError) as error:
        raise SystemExit(f"{notebook}: not a notebook ({error}): restore it from the repository") from error
    lines = "\n".join("".join(c["source"]) for c in cells if c["cell_type"] == "code").splitlines()
    return "\n".join(line for line in lines if not line.lstrip().startswith(("%", "!")))


def inputs(root: Path, profile: str, notebook: Path) -> list[Path]:
    """Every file whose change makes the notebook's result stale, but for other notebooks' results."""
    folder = root / "profiles" / profile
    yamls = [folder / "common.yaml", folder / f"{notebook.stem}.yaml", *sorted(folder.glob(f"{notebook.stem}.*.yaml"))]
    modules = imported(code(notebook)) | set(ALWAYS)
    published = sorted((root / "data" / "published").glob("*.csv")) if "published" in modules else []
    return [notebook, *(y for y in yamls if y.is_file()), *closure(modules, root / "apm"), *published]


def digest(paths: list[Path]) -> str:
    """Hash of the contents of files: a touched but unchanged file gives the same."""
    total = hashlib.sha256()
    for path in paths:
        total.update(str(path.name).encode() + b"\0" + path.read_bytes() + b"\0")
    return total.hexdigest()


def reads_results(notebook: str) -> bool:
    """Whether a notebook reads what those before it left: the audit and the report."""
    return notebook.split("_")[0] in ("08", "99")


def rules(root: Path, profile: str) -> str:
    """Make rules for the notebooks of a profile; those that read results also depend on the ones before them.

    A profile runs the notebooks for which its folder has a YAML file, and the report.
    """
    own = {path.stem for path in (root / "profiles" / profile).glob("*.yaml")}
    notebooks = [
        path
        for path in sorted((root / "notebooks").glob("[0-9][0-9]_*.ipynb"))
        if path.stem in own or path.stem.startswith("99_")
    ]
    stamps = {n: f".make/{profile}/{n.stem}.done" for n in notebooks}
    lines = [f"NOTEBOOKS := {' '.join(n.stem for n in notebooks)}"]
    for notebook in notebooks:
        needs = [str(path.relative_to(root)) for path in inputs(root, profile, notebook)]
        if reads_results(notebook.stem):
            needs += [stamp for other, stamp in stamps.items() if other.stem[:2] < notebook.stem[:2]]
        lines.append(f"{stamps[notebook]}: {' '.join(needs)}")
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    print(rules(Path.cwd(), sys.argv[1] if len(sys.argv) > 1 else "mini"), end="")

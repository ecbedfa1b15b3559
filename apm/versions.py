"""What code and which libraries made something: hashes of modules and version numbers, for the keys of what is kept."""

from __future__ import annotations

import ast
import functools
import importlib.metadata
from pathlib import Path

from apm import project


@functools.cache
def code_version(modules: tuple[str, ...], package: Path | None = None) -> str:
    """Hash of the code of modules of this package: comments, docstrings, blank lines and layout do not change it.

    modules: names such as "ttt", or "baselines" for a folder of modules. Computed once per process, so it describes the code
    as imported. Raises FileNotFoundError for a module that does not exist.
    """
    folder = package or Path(__file__).parent
    texts = {}
    for module in sorted(set(modules)):
        base = folder.joinpath(*module.split("."))
        files = sorted(base.rglob("*.py")) if base.is_dir() else [base.with_suffix(".py")]
        for file in files:
            if not file.is_file():
                raise FileNotFoundError(
                    f"no module {module!r} at {file}: correct the list of modules that determine a run"
                )
            tree = ast.parse(file.read_text(encoding="utf-8"), filename=str(file))
            # as text: the tree itself has other fields in other versions of Python
            texts[str(file.relative_to(folder))] = ast.unparse(_without_docstrings(tree))
    return project.sha256_of(texts)


def _without_docstrings(tree: ast.Module) -> ast.Module:
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                node.body = node.body[1:] or [ast.Pass()]
    return tree


def libraries(packages: tuple[str, ...]) -> dict[str, str]:
    """Version of every one of these packages that is installed."""
    versions = {}
    for package in packages:
        try:
            versions[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions

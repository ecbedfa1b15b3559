"""What code and which libraries made something, for the keys of what is kept.

Code is hashed, so that a researcher who edits a method and runs again is never shown the predictions of the code before: the definitions
of a few modules, each by its name and wherever it stands. Comments, docstrings, layout, imports, annotations, messages of errors and
warnings, and the file or the order in which definitions stand, change nothing; nor does `__repr__`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib.metadata
import inspect
import sys
import textwrap
from pathlib import Path
from typing import Any

from apm.project import paths

# The modules whose code determines a prediction, besides those of the method (`modules_of`).
RUN_MODULES = (
    *("model", "lockstep", "ttt", "typed", "methods.method", "methods.views"),
    *("teachers.images", "teachers.teacher", "teachers.timm_models", "teachers.cached"),
    *("data.dataset", "data.files", "data.layouts", "data.derived", "data.prompts"),
)
# Mistakes in code, and what the machine lacks: no property of an image, so no method records one as an image's failure.
STOPS = (
    *(TypeError, AttributeError, NameError, ImportError, AssertionError, NotImplementedError),
    *(OSError, MemoryError),
)
SAID = ("print", "warnings.warn")  # calls whose effect is a message


def modules_of(made: type) -> tuple[str, ...]:
    """`RUN_MODULES` and those where a method's class and its bases are written; ":NAME" for one outside this package."""
    written = {base.__module__ for base in made.__mro__} - sys.stdlib_module_names
    return (*RUN_MODULES, *(m.removeprefix("apm.") if m.startswith("apm.") else f":{m}" for m in sorted(written)))


@functools.cache
def code_version(modules: tuple[str, ...], package: Path | None = None) -> str:
    """Hash of what modules define, for example ("ttt", "methods.zero", ":mine"), here and in a YAML file of their name.

    Computed once per process, so it describes the code as imported. Raises FileNotFoundError for a module without a file.
    """
    folder = package or Path(__file__).parents[1]
    found: set[str] = set()
    for module in set(modules):
        file = folder.joinpath(*module.split(".")).with_suffix(".py")
        if module.startswith(":"):
            file = Path(getattr(sys.modules.get(module[1:]), "__file__", None) or module[1:])
        if not file.is_file():
            what = f"no file {file} of {module.lstrip(':')}, whose code determines predictions: a change of it would go unnoticed"
            advice = "Write a method into a file, not into a notebook, and import it (docs/your-own.md)"
            raise FileNotFoundError(f"{what}. {advice}")
        found |= _definitions(file.read_text(encoding="utf-8"))
        if file.with_suffix(".yaml").is_file():
            found.add(repr(paths.facts(str(file))))
    return paths.sha256_of(sorted(found))


def code_of(*objects: Any) -> str:
    """The same hash, of functions and classes."""
    sources = [textwrap.dedent(inspect.getsource(x)) for x in objects]
    return paths.sha256_of(sorted({text for source in sources for text in _definitions(source)}))


def _definitions(source: str) -> set[str]:
    """The statements of a module that can change what it computes, as text: the tree itself has other fields in other Pythons."""
    statements = _Essence().visit(ast.parse(source)).body
    return {ast.unparse(one) for one in statements if not isinstance(one, ast.Import | ast.ImportFrom | ast.Pass)}


class _Essence(ast.NodeTransformer):
    """Takes away docstrings, annotations and messages."""

    def generic_visit(self, node: ast.AST) -> ast.AST:
        super().generic_visit(node)
        if getattr(node, "body", None) == []:
            node.body = [ast.Pass()]  # type: ignore[attr-defined]
        return node

    def visit_Expr(self, node: ast.Expr) -> ast.AST | None:
        said = isinstance(node.value, ast.Call) and ast.unparse(node.value.func) in SAID
        return None if said or isinstance(node.value, ast.Constant) else self.generic_visit(node)

    def visit_Raise(self, node: ast.Raise) -> ast.AST:
        error = node.exc.func if isinstance(node.exc, ast.Call) else node.exc
        return ast.Raise(error, None)

    def visit_FunctionDef(self, node: ast.FunctionDef) -> ast.AST | None:
        if node.name == "__repr__":  # what a thing says of itself
            return None
        node.returns = None
        return self.generic_visit(node)

    def visit_arg(self, node: ast.arg) -> ast.AST:
        node.annotation = None
        return node


def libraries(packages: tuple[str, ...]) -> dict[str, str]:
    """Version of every one of these packages that is installed."""
    return {package: found for package in packages if (found := _version(package))}


@functools.cache  # it reads files, and every set and condition asks
def _version(package: str) -> str | None:
    with contextlib.suppress(importlib.metadata.PackageNotFoundError):
        return importlib.metadata.version(package)
    return None

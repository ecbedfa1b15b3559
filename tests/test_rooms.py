"""The house: rooms whose imports go one way, few entries on the first floor, no file that is too long."""

import ast
from pathlib import Path

import pytest

from apm.project import depends

PACKAGE = Path(__file__).resolve().parents[1] / "apm"
# each may import what stands before it: lazy imports and those for a type checker included
ORDER = (
    *("typed", "model", "lockstep", "ttt"),
    *("project", "data", "teachers", "methods", "runs", "analysis", "experiments"),
)
FILES = sorted(path.relative_to(PACKAGE) for path in PACKAGE.rglob("*.py"))


def imports(file: Path) -> frozenset[str]:
    """Dotted names below apm that a file imports."""
    source = (PACKAGE / file).read_text(encoding="utf-8")
    relative = [node for node in ast.walk(ast.parse(source)) if isinstance(node, ast.ImportFrom) and node.level]
    assert not relative, f"{file}: imports are absolute"  # `imported` sees no others
    return depends.imported(source)


def room(name: str | Path) -> str:
    return Path(name).parts[0].removesuffix(".py").split(".")[0]


@pytest.mark.parametrize("file", FILES, ids=str)
def test_a_file_imports_from_rooms_before_its_own(file: Path) -> None:
    if file.name == "__init__.py" and len(file.parts) == 1:
        return  # `import apm` loads nothing by itself
    allowed = ORDER[: ORDER.index(room(file)) + 1]
    assert {name for name in imports(file) if room(name) not in allowed} == set()


def module(name: str) -> Path | None:
    """The file of this package that a dotted name is defined in: a module's, or that of a room whose door is used."""
    files = depends.files_of(name)
    return files[-1].relative_to(PACKAGE) if files else None


def test_no_files_import_each_other_in_a_circle() -> None:
    graph = {file: {found for name in imports(file) if (found := module(name)) not in (None, file)} for file in FILES}
    while graph:
        free = {file for file, needs in graph.items() if not needs & graph.keys()}
        assert free, f"a circle among {sorted(map(str, graph))}"
        graph = {file: needs for file, needs in graph.items() if file not in free}


def test_the_first_floor_and_every_file_can_be_looked_over() -> None:
    assert {path.name.removesuffix(".py") for path in PACKAGE.iterdir() if path.name != "__pycache__"} == {
        "__init__",
        *ORDER,
    }
    assert {str(file): n for file in FILES if (n := len((PACKAGE / file).read_text().splitlines())) > 600} == {}

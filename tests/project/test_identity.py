"""What code a key stands for: definitions, not their layout, wherever they stand."""

import importlib
import sys
from pathlib import Path

import pytest

from apm import methods
from apm.methods import prompt_tuning, tda
from apm.project.identity import RUN_MODULES, code_version

METHOD = """
from {base} import {name} as Base


class Mine(Base):
    modules = ("methods.zero",)  # copied from elsewhere: of no effect

    def answer(self):
        return {answer}
"""


def test_code_version_ignores_comments_docstrings_and_layout(tmp_path):
    def version(text: str) -> str:
        (tmp_path / "m.py").write_text(text)
        code_version.cache_clear()
        return code_version(("m",), tmp_path)

    plain = version('"""A."""\n\n\ndef f(x):\n    """B."""\n    return x + 1\n')
    assert version('"""Another."""\ndef f( x ):\n    # why\n\n    return (x + 1)\n') == plain
    assert version("def f(x):\n    return x + 2\n") != plain
    told = [version(f"class A:\n    n = 1\n\n    def __repr__(self):\n        return {text!r}\n") for text in "ab"]
    assert told == [version("class A:\n    n = 1\n")] * 2
    assert version("def f(x):\n    y = 'text'\n    return x + 1\n") != plain
    with pytest.raises(FileNotFoundError, match=r"no file .*gone\.py of gone"):
        code_version(("gone",), tmp_path)


@pytest.fixture
def mine(tmp_path: Path, monkeypatch):
    """Imports a method from a file outside the package: (its modules, the version of their code)."""
    monkeypatch.syspath_prepend(tmp_path)

    def imported(answer: int, name: str = "mine", base: str = "apm.methods", of: str = "ZeroShot"):
        path = tmp_path.joinpath(*name.split(".")).with_suffix(".py")
        path.parent.mkdir(exist_ok=True)
        path.write_text(METHOD.format(base=base, name=of, answer=answer))
        for known in (name, name.split(".")[0]):
            sys.modules.pop(known, None)
        importlib.invalidate_caches()
        code_version.cache_clear()
        modules = importlib.import_module(name).Mine.modules
        return modules, code_version(modules)

    before = set(sys.modules)
    yield imported
    for name in set(sys.modules) - before:
        if str(tmp_path) in str(getattr(sys.modules[name], "__file__", "")):
            del sys.modules[name]
    code_version.cache_clear()


@pytest.mark.parametrize("name", ["mine", "tda"])  # also one that has the name of one of ours
def test_a_method_outside_the_package_is_known_by_its_own_file(mine, name: str) -> None:
    modules, first = mine(1, name)
    assert set(modules) == {*RUN_MODULES, "methods.zero_shot", f":{name}"}
    assert mine(2, name)[1] != first
    assert mine(1, name)[1] == first


@pytest.mark.parametrize("base", [tda.TDA, prompt_tuning.TPT])
def test_a_method_made_from_another_depends_on_that_one_too(base: type, mine) -> None:
    modules, _ = mine(1, base=base.__module__, of=base.__name__)
    assert base.__module__.removeprefix("apm.") in modules


def test_a_method_written_in_a_notebook_is_told_to_move_into_a_file(monkeypatch) -> None:
    made = type("Mine", (methods.ZeroShot,), {"__module__": "__main__"})
    monkeypatch.delattr(sys.modules["__main__"], "__file__", raising=False)  # a kernel's has none
    code_version.cache_clear()
    with pytest.raises(FileNotFoundError, match=r"of __main__.*not into a notebook, and import it"):
        code_version(made.modules)

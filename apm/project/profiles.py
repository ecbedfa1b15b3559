"""Profiles: the numbers of a run, in small YAML files that papermill passes to the notebooks.

`profiles/<profile>/common.yaml` holds what all notebooks share, `<notebook>.yaml` what one changes or adds, of the names in its cell
tagged `parameters`.
"""

from __future__ import annotations

import ast
import contextlib
import functools
import importlib
import json
import re
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml

from apm.project import among, facts, root
from apm.typed import check_fields, fitted, hints, words

REPORT = "99_report"  # comes after every profile's notebooks
# Parameters that a profile may leave to the notebook, as their defaults hold at any scale: the others' are those of `mini`.
OPTIONAL = ("profile", "seed", "on_error", "precision", "feature_dtype", "ensemble")
RULES = facts(__file__)  # what a parameter may be


def names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.parent.name for path in (root() / "profiles").glob("*/common.yaml"))


def notebooks() -> list[str]:
    """The notebooks in the project's folder, in the order in which they are read, whether or not a profile runs them."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def folder_of(profile: str) -> Path:
    """The folder of a profile. Raises ValueError with the list of known ones."""
    among("profile", [profile], names())
    return root() / "profiles" / profile


def runs(profile: str) -> list[str]:
    """The notebooks that a profile runs: those with a YAML file in its folder, and the report."""
    folder = folder_of(profile)
    return [name for name in notebooks() if (folder / f"{name}.yaml").is_file() or name == REPORT]


def notebook_path(notebook: str) -> Path:
    """The clean notebook. Raises ValueError with the list of known ones."""
    among("notebook", [notebook], notebooks())
    return root() / "notebooks" / f"{notebook}.ipynb"


def load(profile: str, notebook: str) -> dict[str, Any]:
    """The parameters of one notebook in one profile, without those of common.yaml that it has no use for.

    Raises ValueError for a name that no notebook, or in <notebook>.yaml this one, knows; for a parameter, other than those of
    `OPTIONAL`, that neither file gives; for a value of another shape than the notebook takes; and as `parsed`.
    """
    folder = folder_of(profile)
    shared, its = folder / "common.yaml", folder / f"{notebook}.yaml"
    known = notebook_parameters(notebook_path(notebook))
    common, own = _read(shared), _read(its)
    if further := [name for name in common if name not in known]:
        _known(shared, "parameter", further, sorted({name for other in notebooks() for name in _names(other)}))
    _known(its, f"parameter of {notebook}", own, known)
    values = {name: value for name, value in common.items() if name in known} | own
    if missing := [name for name in known if name not in values and name not in OPTIONAL]:
        raise ValueError(
            f"profile {profile}: {notebook} needs {', '.join(missing)}: add what is missing to {its}, or, for all notebooks, to "
            f"{shared} (the values in the notebook's parameters cell are those of mini, for running it by hand)"
        )
    classes = RULES["settings"]["any"] | RULES["settings"].get(notebook, {})
    for name, value in values.items():
        _check(name, value, known[name], f"{its if name in own else shared}: {name}", classes)
    if "profile" in known:
        values["profile"] = profile
    return values


def _known(where: object, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    try:
        among(kind, given, known)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _names(notebook: str) -> list[str]:
    with contextlib.suppress(ValueError):  # somebody's scratch notebook, or one that its own run refuses
        return list(notebook_parameters(notebook_path(notebook)))
    return []


def _check(name: str, value: Any, default: Any, where: str, classes: Mapping[str, str]) -> None:
    """Raise ValueError, which begins with `where`, for a value that is none of a parameter with this name and default."""
    null, every = default is None or name in RULES["or_null"], name.endswith(tuple(RULES["or_all"]))
    if (null and value is None) or (every and value == "all"):
        return
    default = RULES["defaults"].get(name, default)
    hint, single, usual = _type(default), *(one if isinstance(one, list) else [one] for one in (value, default))
    least = min([name not in RULES["from_zero"], *(one for one in usual if isinstance(one, int))])
    choices = RULES["choices"].get(name)
    expected = f"{words(hint)}{' or all' * every}{' or null' * null}"
    try:
        fitted(value, hint)
    except ValueError:
        raise ValueError(f"{where}: expected {expected}, found {value!r}") from None
    for one in single:
        if isinstance(one, int) and not isinstance(one, bool) and one < least:
            raise ValueError(f"{where}: expected a whole number from {int(least)}, found {one}")
        if choices and (one.split(":")[0] if name == "device" else one) not in choices:
            raise ValueError(f"{where}: expected one of {', '.join(choices)}, found {one!r}")
    if (part := RULES["holds"].get(name, "")) not in (value if part else ""):
        raise ValueError(f"{where}: expected text with {part}, found {value!r}")
    if name in RULES["filled"] and not value:
        raise ValueError(f"{where}: expected {expected}, found an empty list")
    if name in RULES["keyed"]:
        if value.keys() != default.keys():
            raise ValueError(f"{where}: expected the keys {', '.join(default)}, found {', '.join(value) or 'none'}")
        for key, item in value.items():
            _check(key, item, default[key], f"{where}.{key}", classes)
    for key, item in value.items() if name in RULES["text"] else ():
        _check("", item, "", f"{where}.{key}", {})
    for key, item in value.items() if name in RULES["named"] else ():
        _fields(item, RULES["named"][name], f"{where}.{key}")
    if name in classes:
        _fields(value, classes[name], where)


def _type(default: Any) -> Any:
    """The type of a parameter with this default."""
    if isinstance(default, list):
        return tuple[_type(default[0]) if default else Any, ...]  # type: ignore[misc]
    if isinstance(default, dict):
        return Mapping[str, Any]
    return Any if default is None else int if default == "all" else type(default)


def _fields(values: Any, cls: str, where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping, found {values!r}")
    module, name = cls.split(":")
    if values:  # imported here: make asks for names of profiles and notebooks, and needs no torch for them
        made = getattr(importlib.import_module(f"apm.{module}"), name)
        _known(where, "field", values, [field for field in (*hints(made), "preset") if field != "student"])
        check_fields(values, made, where)


def load_lines(profile: str, file: str) -> list[Any]:
    """A list that a profile keeps in a file of its own, such as the ablations: one `- {...}` line per entry. Raises as `parsed`, and
    FileNotFoundError, with the lists that are there."""
    path = folder_of(profile) / file
    if not path.is_file():
        there = ", ".join(p.name for p in sorted(path.parent.glob("*.*.yaml"))) or "none"
        raise FileNotFoundError(f"{path} does not exist. Lists of profile {profile}: {there}")
    values = parsed(path)
    if not isinstance(values, list) or not values or not all(isinstance(line, dict) for line in values):
        raise ValueError(f"{path}: expected a list of `- {{...}}` lines, found {str(values)[:80]}")
    return values


def load_teacher(profile: str) -> tuple[dict[str, Any], str]:
    """How a profile's teacher is trained: (values of its teacher.yaml, the checkpoint that it uses: what `pretrained` names, else the one
    of the teacher's name in data/teachers). Raises ValueError for a profile that trains none, and another file than .safetensors."""
    folder = folder_of(profile)
    own = [path.parent.name for path in sorted(folder.parent.glob("*/teacher.yaml"))]
    if profile not in own:
        what = f"profile {profile} trains no teacher of its own: it has no teacher.yaml"
        raise ValueError(f"{what}. Profiles that have one: {', '.join(own) or 'none'}")
    common = _read(folder / "common.yaml")
    target = str(common.get("pretrained") or f"data/teachers/{common.get('teacher')}.safetensors")
    if not target.endswith(".safetensors"):
        raise ValueError(f"{folder}/common.yaml: pretrained must name the .safetensors file to train, found {target}")
    return _read(folder / "teacher.yaml"), target


def _read(path: Path) -> dict[str, Any]:
    values = (parsed(path) if path.is_file() else None) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found a {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML in which a key is text and stands once, and 1e-3 is a number."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[str]()
        for key, _ in node.value:
            problem = f"the key {key.value!r} stands twice: keep one of them" if str(key.value) in seen else ""
            if not key.tag.endswith((":str", ":merge")):
                found = self.construct_object(key, deep=True)
                problem = f"expected text as key, found {found!r}: put it in quotation marks"
            if problem:
                raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
            seen.add(key.value)
        return super().construct_mapping(node, deep)


SCIENTIFIC = re.compile(r"[-+]?\d+(\.\d*)?[eE][-+]?\d+$")
_Loader.add_implicit_resolver("tag:yaml.org,2002:float", SCIENTIFIC, list("-+0123456789"))


def parsed(path: Path) -> Any:
    """What a YAML file holds. Raises ValueError, with its path, for text that is no YAML and a key that stands twice or is no text;
    OSError for a file that cannot be read."""
    try:
        values = _loaded(path.read_text(encoding="utf-8"))
        for _ in texts(values):  # it has an end
            pass
        return values
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML here: a value holds itself, or too many others") from None


@functools.lru_cache(maxsize=64)
def _loaded(text: str) -> Any:
    return yaml.load(text, _Loader)


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`, in order. Raises ValueError for a notebook without exactly one such
    cell, or with defaults that are no plain values."""
    tagged = code_cells(path, "parameters")
    if len(tagged) != 1:
        raise ValueError(f"{path}: expected one cell tagged `parameters`, found {len(tagged)}")
    try:
        lines: Any = ast.parse(tagged[0]).body
        return {target.id: ast.literal_eval(line.value) for line in lines for target in line.targets}
    except (SyntaxError, ValueError, AttributeError) as error:
        raise ValueError(f"{path}: the parameters cell may hold only lines `name = plain value` ({error})") from error


def code_cells(notebook: Path, tag: str = "") -> list[str]:
    """The code cells of a notebook: all, or those with a tag. Raises ValueError for a file that is none."""
    try:
        cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
        wanted = [c for c in cells if c["cell_type"] == "code" and (not tag or tag in c["metadata"].get("tags", []))]
        return ["".join(cell["source"]) for cell in wanted]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(f"{notebook}: not a notebook ({error}): restore it from the repository") from error


def texts(value: Any, key: str = "") -> Iterator[tuple[str, str]]:
    """(key, text) of every text in what a YAML file holds."""
    if isinstance(value, str):
        yield key, value
    elif isinstance(value, list | dict):
        for name, item in value.items() if isinstance(value, dict) else ((key, item) for item in value):
            yield from texts(item, name)

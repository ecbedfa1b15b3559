"""Profiles: the numbers of a run, in small YAML files that papermill passes to the notebooks.

`profiles/<profile>/common.yaml` holds what all notebooks share, `<notebook>.yaml` what one notebook changes or adds. The
parameters that a notebook knows are the names in its cell tagged `parameters`.
"""

from __future__ import annotations

import ast
import functools
import importlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from apm.project import among, facts, root
from apm.typed import check_fields, fitted, hints, words

REPORT = "99_report"  # comes after every profile's notebooks
# Parameters that a profile may leave to the notebook: their defaults hold at any scale. All others it must give, as their
# defaults are those of `mini`.
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
    """The parameters of one notebook in one profile.

    Values of common.yaml that this notebook has no use for are left out. Raises ValueError, with the known names, for a name
    in common.yaml that no notebook knows and one in <notebook>.yaml that this notebook does not know; for a parameter, other
    than those of `OPTIONAL`, that neither file gives; for a value of another shape than the notebook takes, and as `parsed`.
    """
    folder = folder_of(profile)
    known = notebook_parameters(notebook_path(notebook))
    common, own = _read(folder / "common.yaml"), _read(folder / f"{notebook}.yaml")
    if further := [name for name in common if name not in known]:
        every = {name for other in notebooks() for name in _names(other)}
        _known(folder / "common.yaml", "parameter", further, sorted(every))
    _known(folder / f"{notebook}.yaml", f"parameter of {notebook}", own, known)
    values = {**{name: value for name, value in common.items() if name in known}, **own}
    if missing := [name for name in known if name not in values and name not in OPTIONAL]:
        raise ValueError(
            f"profile {profile}: {notebook} needs {', '.join(missing)}: add what is missing to {folder / f'{notebook}.yaml'}, or, for "
            f"all notebooks, to {folder / 'common.yaml'} (the values in the notebook's parameters cell are those of mini, for "
            "running it by hand)"
        )
    classes = {**RULES["settings"]["any"], **RULES["settings"].get(notebook, {})}
    for name, value in values.items():
        where = folder / (f"{notebook}.yaml" if name in own else "common.yaml")
        _check(name, value, known[name], f"{where}: {name}", classes)
    if "profile" in known:
        values["profile"] = profile
    return values


def _known(where: object, kind: str, given: Iterable[str], known: Iterable[str]) -> None:
    try:
        among(kind, given, known)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from None


def _names(notebook: str) -> list[str]:
    try:
        return list(notebook_parameters(notebook_path(notebook)))
    except ValueError:
        return []  # somebody's scratch notebook, or one that its own run refuses


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
    if name in RULES["keyed"] and value.keys() != default.keys():
        raise ValueError(f"{where}: expected the keys {', '.join(default)}, found {', '.join(value) or 'none'}")
    for key, item in value.items() if name in RULES["keyed"] else ():
        _check(key, item, default[key], f"{where}.{key}", classes)
    for key, item in value.items() if name in RULES["text"] else ():
        _check("", item, "", f"{where}.{key}", classes)
    for key, item in value.items() if name in RULES["named"] else ():
        _check_fields(item, RULES["named"][name], f"{where}.{key}")
    if name in classes:
        _check_fields(value, classes[name], where)


def _type(default: Any) -> Any:
    """The type of a parameter with this default."""
    if isinstance(default, list):
        return tuple[_type(default[0]) if default else Any, ...]  # type: ignore[misc]
    if isinstance(default, dict):
        return Mapping[str, Any]
    return Any if default is None else int if default == "all" else type(default)


def _check_fields(values: Any, cls: str, where: str) -> None:
    if not isinstance(values, dict):
        raise ValueError(f"{where}: expected a mapping, found {values!r}")
    module, name = cls.split(":")
    if values:  # imported here: make asks for names of profiles and notebooks, and needs no torch for them
        made = getattr(importlib.import_module(f"apm.{module}"), name)
        _known(where, "field", values, [field for field in (*hints(made), "preset") if field != "student"])
        check_fields(values, made, where)


def load_lines(profile: str, file: str) -> list[Any]:
    """A list that a profile keeps in a file of its own, such as the ablations: one `- {...}` line per entry.

    Raises ValueError for an unknown profile, for a file that is no list or an empty one, and for a number that YAML reads as
    text; FileNotFoundError, with the lists that are there, for a file that does not exist.
    """
    path = folder_of(profile) / file
    if not path.is_file():
        there = ", ".join(p.name for p in sorted(path.parent.glob("*.*.yaml"))) or "none"
        raise FileNotFoundError(f"{path} does not exist. Lists of profile {profile}: {there}")
    values = parsed(path)
    if not isinstance(values, list) or not values or not all(isinstance(line, dict) for line in values):
        raise ValueError(f"{path}: expected a list of `- {{...}}` lines, found {str(values)[:80]}")
    return values


def load_teacher(profile: str) -> tuple[dict[str, Any], str]:
    """How a profile's teacher is trained: (values of its teacher.yaml, the checkpoint that it uses: what `pretrained` names,
    or, where that is null, the one of the teacher's name in data/teachers).

    Raises ValueError for an unknown profile, one that trains no teacher, and one whose `pretrained` is no .safetensors file.
    """
    folder = folder_of(profile)
    if not (folder / "teacher.yaml").is_file():
        own = [name for name in names() if (root() / "profiles" / name / "teacher.yaml").is_file()]
        raise ValueError(
            f"profile {profile} trains no teacher of its own: it has no teacher.yaml. Profiles that have one: {', '.join(own) or 'none'}"
        )
    common = _read(folder / "common.yaml")
    target = str(common.get("pretrained") or f"data/teachers/{common.get('teacher')}.safetensors")
    if not target.endswith(".safetensors"):
        raise ValueError(
            f"{folder / 'common.yaml'}: pretrained must name the .safetensors file to train, found {target}"
        )
    return _read(folder / "teacher.yaml"), target


def _read(path: Path) -> dict[str, Any]:
    values = (parsed(path) if path.is_file() else None) or {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found a {type(values).__name__}")
    return values


class _Loader(yaml.SafeLoader):
    """YAML in which a key stands once."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        seen = set[tuple[str, Any]]()
        for key, _ in node.value:
            if isinstance(key, yaml.ScalarNode):
                if (key.tag, key.value) in seen:
                    problem = f"the key {key.value!r} stands twice: keep one of them"
                    raise yaml.constructor.ConstructorError(None, None, problem, key.start_mark)
                seen.add((key.tag, key.value))
        return super().construct_mapping(node, deep)


def parsed(path: Path) -> Any:
    """What a YAML file holds. Raises ValueError, with its path, for text that is no YAML, a key that stands twice or is no text,
    and a number that YAML reads as text; OSError for a file that cannot be read."""
    try:
        values = _loaded(path.read_text(encoding="utf-8"))
        _refuse_numbers_as_text(values, path, "")
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    except RecursionError:
        raise ValueError(f"{path}: not valid YAML here: a value holds itself, or too many others") from None
    return values


@functools.lru_cache(maxsize=64)
def _loaded(text: str) -> Any:
    return yaml.load(text, _Loader)


def _refuse_numbers_as_text(value: Any, path: Path, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            if not isinstance(key, str):
                raise ValueError(
                    f"{path}: {name or 'the file'}: expected text as key, found {key!r}: put it in quotation marks"
                )
            _refuse_numbers_as_text(item, path, f"{name}.{key}" if name else key)
    elif isinstance(value, list):
        for place, item in enumerate(value):
            _refuse_numbers_as_text(item, path, f"{name}[{place}]")
    elif isinstance(value, str) and _looks_like_number(value):
        raise ValueError(
            f"{path}: {name} is the text {value!r}, not a number: write 1.0e-5 with a point (YAML reads 1e-5 as text)"
        )


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def notebook_parameters(path: Path) -> dict[str, Any]:
    """Names and default values in the cell tagged `parameters`, in order.

    Raises ValueError for a notebook without exactly one such cell, or with defaults that are no plain values.
    """
    try:
        cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
        tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
        statements = [ast.parse("".join(cell["source"])).body for cell in tagged]
    except (ValueError, KeyError, TypeError, AttributeError, SyntaxError) as error:
        raise ValueError(f"{path}: not a notebook ({error})") from error
    if len(tagged) != 1:
        raise ValueError(f"{path}: expected one cell tagged `parameters`, found {len(tagged)}")
    values: dict[str, Any] = {}
    for statement in statements[0]:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    values[name] = ast.literal_eval(value)
                except ValueError as error:
                    raise ValueError(f"{path}: the default of parameter {name} must be a plain value") from error
            case _:
                raise ValueError(f"{path}: the parameters cell may hold only lines `name = value`")
    return values

"""Profiles: the numbers of a run, in small YAML files that papermill passes to the notebooks.

`profiles/<profile>/common.yaml` holds what all notebooks share, `<notebook>.yaml` what one notebook changes or adds. The
parameters that a notebook knows are the names in its cell tagged `parameters`.
"""

from __future__ import annotations

import ast
import importlib
import json
from pathlib import Path
from typing import Any

import yaml

from apm.project import root, unknown
from apm.typed import check_fields

# Parameters that a profile may leave to the notebook: their defaults hold at any scale. All others it must give, as their
# defaults are those of `mini`.
OPTIONAL = ("profile", "seed", "on_error", "precision", "feature_dtype", "ensemble")

# Parameters that are fields of a settings class, module:class: checked here, where file and key can be named. "*": any notebook.
SETTINGS = {
    "*": {"student": "model:APMConfig", "photo_student": "model:APMConfig", "training": "ttt:TTTConfig"},
    "06_islands": {"loss_runs": "ttt:TTTConfig", "variants": "model:APMConfig"},  # a mapping of names to fields
    "07_field": dict.fromkeys(("training", "plain", "reconstruction"), "experiments.field:FieldConfig"),
}


def names() -> list[str]:
    """The profiles that exist."""
    return sorted(path.parent.name for path in (root() / "profiles").glob("*/common.yaml"))


def notebooks() -> list[str]:
    """The notebooks, in the order in which they are read; those named 99_* come last and use what the others made."""
    return sorted(path.stem for path in (root() / "notebooks").glob("[0-9][0-9]_*.ipynb"))


def runs(profile: str) -> list[str]:
    """The notebooks that a profile runs: those with a YAML file in its folder, and the report."""
    if profile not in names():
        raise unknown("profile", profile, names())
    folder = root() / "profiles" / profile
    return [name for name in notebooks() if (folder / f"{name}.yaml").is_file() or name.startswith("99_")]


def notebook_path(notebook: str) -> Path:
    """The clean notebook. Raises ValueError with the list of known ones."""
    if notebook not in notebooks():
        raise unknown("notebook", notebook, notebooks())
    return root() / "notebooks" / f"{notebook}.ipynb"


def load(profile: str, notebook: str) -> dict[str, Any]:
    """The parameters of one notebook in one profile.

    Values of common.yaml that this notebook has no use for are left out. Raises ValueError, with the known names, for a name
    in common.yaml that no notebook knows and one in <notebook>.yaml that this notebook does not know; for a parameter, other
    than those of `OPTIONAL`, that neither file gives; for a field of `SETTINGS` of another type than its class says; and for YAML that is no mapping or has a number that YAML reads as text.
    """
    if profile not in names():
        raise unknown("profile", profile, names())
    known = notebook_parameters(notebook_path(notebook))
    folder = root() / "profiles" / profile
    common = _read(folder / "common.yaml")
    own = _read(folder / f"{notebook}.yaml")
    every = {name for other in notebooks() for name in notebook_parameters(notebook_path(other))}
    for name in common:
        if name not in every:
            raise ValueError(f"{folder / 'common.yaml'}: {unknown('parameter', name, sorted(every))}")
    for name in own:
        if name not in known:
            raise ValueError(f"{folder / f'{notebook}.yaml'}: {unknown(f'parameter of {notebook}', name, list(known))}")
    values = {**{name: value for name, value in common.items() if name in known}, **own}
    if missing := [name for name in known if name not in values and name not in OPTIONAL]:
        raise ValueError(
            f"profile {profile}: {notebook} needs {', '.join(missing)}: add what is missing to {folder / f'{notebook}.yaml'}, or, for "
            f"all notebooks, to {folder / 'common.yaml'} (the values in the notebook's parameters cell are those of mini, for "
            "running it by hand)"
        )
    for name, cls in {**SETTINGS["*"], **SETTINGS.get(notebook, {})}.items():
        if isinstance(values.get(name), dict):
            where = folder / (f"{notebook}.yaml" if name in own else "common.yaml")
            _check_types(values[name], cls, f"{where}: {name}")
    if "profile" in known:
        values["profile"] = profile
    return values


def _check_types(values: dict[str, Any], cls: str, where: str) -> None:
    module, name = cls.split(":")
    if all(isinstance(value, dict) for value in values.values()):
        for key, own in values.items():
            _check_types(own, cls, f"{where}.{key}") if own else None
    else:  # imported here: make asks for names of profiles and notebooks, and needs no torch for them
        check_fields(values, getattr(importlib.import_module(f"apm.{module}"), name), where)


def load_lines(profile: str, file: str) -> list[Any]:
    """A list that a profile keeps in a file of its own, such as the ablations: one `- {...}` line per entry.

    Raises ValueError for an unknown profile, for a file that is no list or an empty one, and for a number that YAML reads as
    text; FileNotFoundError, with the lists that are there, for a file that does not exist.
    """
    if profile not in names():
        raise unknown("profile", profile, names())
    path = root() / "profiles" / profile / file
    if not path.is_file():
        there = ", ".join(p.name for p in sorted(path.parent.glob("*.*.yaml"))) or "none"
        raise FileNotFoundError(f"{path} does not exist. Lists of profile {profile}: {there}")
    values = _parsed(path)
    if not isinstance(values, list) or not values:
        raise ValueError(f"{path}: expected a list of `- {{...}}` lines, found {type(values).__name__}")
    return values


def load_teacher(profile: str) -> tuple[dict[str, Any], str]:
    """How a profile's teacher is trained: (values of its teacher.yaml, the checkpoint that it uses: what `pretrained` names,
    or, where that is null, the one of the teacher's name in data/teachers).

    Raises ValueError for an unknown profile, one that trains no teacher, and one whose `pretrained` is no .safetensors file.
    """
    if profile not in names():
        raise unknown("profile", profile, names())
    folder = root() / "profiles" / profile
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
    values = _parsed(path) if path.is_file() else {}
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ValueError(f"{path}: expected `name: value` lines, found a {type(values).__name__}")
    return values


def _parsed(path: Path) -> Any:
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8"))
    except yaml.YAMLError as error:
        raise ValueError(f"{path}: not valid YAML: {error}") from error
    _refuse_numbers_as_text(values, path, "")
    return values


def _refuse_numbers_as_text(value: Any, path: Path, name: str) -> None:
    if isinstance(value, dict):
        for key, item in value.items():
            _refuse_numbers_as_text(item, path, f"{name}.{key}" if name else str(key))
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
    cells = json.loads(path.read_text(encoding="utf-8"))["cells"]
    tagged = [cell for cell in cells if "parameters" in cell["metadata"].get("tags", [])]
    if len(tagged) != 1:
        raise ValueError(f"{path}: expected one cell tagged `parameters`, found {len(tagged)}")
    values: dict[str, Any] = {}
    for statement in ast.parse("".join(tagged[0]["source"])).body:
        match statement:
            case ast.Assign(targets=[ast.Name(id=name)], value=value):
                try:
                    values[name] = ast.literal_eval(value)
                except ValueError as error:
                    raise ValueError(f"{path}: the default of parameter {name} must be a plain value") from error
            case _:
                raise ValueError(f"{path}: the parameters cell may hold only lines `name = value`")
    return values

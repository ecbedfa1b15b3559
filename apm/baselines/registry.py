"""Names of baseline methods: a class becomes known by the decorator `register`, and is built by `create`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable, Mapping
from types import UnionType
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

import numpy as np

from apm.project import unknown

REGISTRY: dict[str, Callable[..., Any]] = {}  # name -> constructor(teacher, **options)
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


def register(name: str) -> Callable[[Constructor], Constructor]:
    """Decorator of a class or function (teacher, **options) -> `apm.methods.Method`: makes `create(name, ...)` call it.

    Raises ValueError for a name that another constructor has.
    """

    def add(constructor: Constructor) -> Constructor:
        other = REGISTRY.get(name)
        if other is not None and (other.__module__, other.__qualname__) != (
            constructor.__module__,
            constructor.__qualname__,
        ):
            raise ValueError(f"the baseline name {name!r} is taken by {other.__module__}.{other.__qualname__}")
        REGISTRY[name] = constructor
        return constructor

    return add


def create(name: str, teacher: Any, /, **options: Any) -> Any:
    """The method of that name. options: fields of its class, such as `views=32`, or `name="ZERO, 32 views"` for its row in tables.

    Raises ValueError for an unknown name or option, with the known ones, and for a value of another type than its field says: a
    number written as text, or half a view, would else fail somewhere inside.
    """
    if name not in REGISTRY:
        raise unknown("baseline", name, sorted(REGISTRY))
    constructor = REGISTRY[name]
    if dataclasses.is_dataclass(constructor):
        known = [field.name for field in dataclasses.fields(constructor) if field.init]
    else:
        known = list(inspect.signature(constructor).parameters)
    known.remove("teacher")
    hints = _hints(constructor)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of baseline {name!r}", option, known)
        if option in hints and not _fits(value, hints[option]):
            raise ValueError(
                f"option {option} of baseline {name!r}: expected {_words(hints[option])}, found {value!r}{_numeric(value)}"
            )
    return constructor(teacher, **options)


def _hints(constructor: Any) -> dict[str, Any]:
    """Types of the options, as far as they can be known."""
    try:
        return get_type_hints(constructor)
    except NameError:  # annotated with what exists for a type checker only
        return {}


_NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def _fits(value: Any, hint: Any) -> bool:
    """Whether a plain value is of the type; types other than those of YAML fit always."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return any(_fits(value, one) for one in arguments)
    if hint in (int, float):
        whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
        return whole or (hint is float and isinstance(value, float | np.floating))
    if hint in (bool, str, type(None)):
        return isinstance(value, hint)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            return False
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        return len(each) == len(value) and all(_fits(v, one) for v, one in zip(value, each, strict=True))
    if origin is Mapping:
        return isinstance(value, Mapping)
    return True


def _words(hint: Any) -> str:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, UnionType):
        return " or ".join(_words(one) for one in arguments)
    if origin is tuple:
        if arguments[1:] == (...,):
            return f"a list, each {_words(arguments[0])}"
        return f"a list of {len(arguments)}, each {_words(arguments[0])}"
    return "a mapping" if origin is Mapping else _NAMES.get(hint, str(hint))


def _numeric(value: Any) -> str:
    """What to do about text that is meant as a number."""
    try:
        float(value)
    except (TypeError, ValueError):
        return ""
    return (
        ""
        if not isinstance(value, str)
        else ": write it without quotation marks and with a decimal point, as in 1.0e-3 (YAML reads 1e-3 as text)"
    )

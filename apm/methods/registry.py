"""Names of baseline methods: a class becomes known by the decorator `register`, and is built by `create`."""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Callable
from typing import Any, TypeVar

from apm.project import unknown
from apm.typed import checked, fitted, hints

REGISTRY: dict[str, Callable[..., Any]] = {}  # name -> constructor(teacher, **options)
Constructor = TypeVar("Constructor", bound=Callable[..., Any])


def register(name: str) -> Callable[[Constructor], Constructor]:
    """Decorator of a class or function (teacher, **options) -> `apm.methods.Method`: makes `create(name, ...)` call it. The values
    that a dataclass is made of are held to its fields' types.

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
        if dataclasses.is_dataclass(constructor) and isinstance(constructor, type):
            checked(constructor)
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
    types = hints(constructor)
    for option, value in options.items():
        if option not in known:
            raise unknown(f"option of baseline {name!r}", option, known)
        try:
            options[option] = fitted(value, types[option]) if option in types else value
        except ValueError as error:
            raise ValueError(f"option {option} of baseline {name!r}: {error}") from None
    return constructor(teacher, **options)

"""Settings classes whose values have the types that their fields say, whether they come from Python or from YAML: the one check of
every settings class (`checked`), and of what builds on it (`fitted`)."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import types
from collections.abc import Mapping
from typing import Any, TypeVar, Union, get_args, get_origin, get_type_hints

Class = TypeVar("Class")
NAMES = {int: "a whole number", float: "a number", bool: "true or false", str: "text", type(None): "null"}


def checked(cls: type[Class]) -> type[Class]:
    """Decorator of a dataclass: every value that it is made of is brought to its field's type, before its own checks.

    A list becomes a tuple, 1 and NumPy's 1.0 become 1.0 where a float belongs; text is never taken for a number. ValueError names
    class, field, value and the type expected. Fields of other types than YAML's and dataclasses (a teacher) are left alone.
    """
    made = cls.__init__
    signature = inspect.signature(made)

    @functools.wraps(made)
    def __init__(self: Any, *values: Any, **named: Any) -> None:
        given = signature.bind(self, *values, **named)
        types: dict[str, Any] = hints(cls)  # type: ignore[arg-type]
        for name, hint in types.items():
            if name in given.arguments:
                try:
                    given.arguments[name] = fitted(given.arguments[name], hint)
                except ValueError as error:
                    raise ValueError(f"{cls.__name__}: {name}: {error}") from None
        made(*given.args, **given.kwargs)

    cls.__init__ = __init__  # type: ignore[method-assign]
    return cls


def check_fields(values: Mapping[str, Any], cls: type, where: str) -> None:
    """Raise ValueError, which begins with `where`, for a value that is not of its field's type; unknown names are others' matter."""
    known = hints(cls)
    for name in values.keys() & known.keys():
        try:
            fitted(values[name], known[name])
        except ValueError as error:
            raise ValueError(f"{where}.{name}: {error}") from None


@functools.cache
def hints(made: Any) -> dict[str, Any]:
    """Name -> type of a dataclass's fields or a function's parameters, as far as they can be known."""
    try:
        return get_type_hints(made)
    except NameError:  # annotated with what exists for a type checker only
        return {}


def fitted(value: Any, hint: Any) -> Any:
    """The value as the type has it. Raises ValueError with what was expected and found where it is of another type."""
    try:
        return _fitted(value, hint)
    except TypeError:
        raise ValueError(f"expected {words(hint)}, found {value!r}{_advice(value, hint)}") from None


def _fitted(value: Any, hint: Any) -> Any:
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        for one in arguments:
            try:
                return _fitted(value, one)
            except TypeError:
                continue
        raise TypeError
    if hint in (int, float):
        if isinstance(value, bool) or not isinstance(value, numbers.Integral if hint is int else numbers.Real):
            raise TypeError
        if not math.isfinite(value):
            raise TypeError
        return hint(value)
    if origin is tuple:
        if not isinstance(value, tuple | list):
            raise TypeError
        each = arguments[:1] * len(value) if arguments[1:] == (...,) else arguments
        if len(each) != len(value):
            raise TypeError
        return tuple(_fitted(one, of) for one, of in zip(value, each, strict=True))
    kind = Mapping if origin is Mapping else hint
    checked = kind in (bool, str, type(None), Mapping) or dataclasses.is_dataclass(kind)
    if checked and not isinstance(value, kind):
        raise TypeError
    return value


def words(hint: Any) -> str:
    """A type in words."""
    origin, arguments = get_origin(hint), get_args(hint)
    if origin in (Union, types.UnionType):
        return " or ".join(words(one) for one in arguments)
    if origin is tuple and arguments[1:] == (...,):
        return f"a list, each {words(arguments[0])}"
    if origin is tuple:
        return f"a list of {len(arguments)}, each {words(arguments[0])}"
    return "a mapping" if origin is Mapping else NAMES.get(hint, getattr(hint, "__name__", str(hint)))


def _advice(value: Any, hint: Any) -> str:
    """What to do about text that is meant as a number."""
    try:
        meant = isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        meant = False
    if not meant:
        return ""
    return ": write it without quotation marks and with a decimal point, as in 1.0e-3 (YAML reads 1e-3 as text)"

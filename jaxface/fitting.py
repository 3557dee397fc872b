"""Values as annotated types have them: of the right kind, made plain, and within the rules that the annotation carries."""

from __future__ import annotations

import numbers
import types
import typing
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from jaxface.errors import UserError


class Rule:
    """What single values of a field are allowed. Called with a value, raises UserError with what was expected instead.

    Attributes:
      says: the same for `--help`, or nothing.
    """

    says = ""

    def __call__(self, value: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Whole(Rule):
    """What is true of all values of a field together: a function that raises UserError where it is not."""

    read: Callable[[Any], Any]

    def __call__(self, value: Any) -> None:
        self.read(value)


class Mismatch(Exception):
    """A value of another type than the field's."""


def fit(kind: Any, value: Any, rules: tuple[Rule, ...] = ()) -> Any:
    """The value as the annotated type has it (a list as a tuple, a text as a path, NumPy's numbers as Python's).

    Raises Mismatch for another type, UserError for a value out of range; both say what was expected.
    """
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return fit(arguments[0], value, (*rules, *(rule for rule in arguments[1:] if isinstance(rule, Rule))))
    if origin in (typing.Union, types.UnionType):
        return _fit_union(arguments, value, rules)
    if origin is Literal:
        if not any(type(value) is type(word) and value == word for word in arguments):
            raise Mismatch(" or ".join(map(str, arguments)))
        return value
    if origin in (tuple, dict):
        return _fit_several(origin, arguments, value, rules)
    value = _fit_single(origin or kind, value)
    for rule in rules:
        rule(value)
    return value


def _fit_union(options: tuple[Any, ...], value: Any, rules: tuple[Rule, ...]) -> Any:
    if value is None and type(None) in options:
        return None
    expected = []
    for option in options:
        if option is not type(None):
            try:
                return fit(option, value, rules)
            except Mismatch as error:
                expected.append(str(error))
    raise Mismatch(" or ".join(expected))


def _fit_several(origin: type, arguments: tuple[Any, ...], value: Any, rules: tuple[Rule, ...]) -> Any:
    whole, single = (tuple(rule for rule in rules if isinstance(rule, Whole) == is_whole) for is_whole in (True, False))
    if origin is dict:
        if not isinstance(value, Mapping):
            raise Mismatch("names and values")
        fitted: Any = {fit(arguments[0], name, single): fit(arguments[1], item, single) for name, item in value.items()}
    else:
        if not isinstance(value, tuple | list):
            raise Mismatch("several values")
        kinds = arguments[:1] * len(value) if arguments[-1] is ... else arguments
        if len(kinds) != len(value):
            raise Mismatch(f"{len(kinds)} values")
        fitted = tuple(fit(kind, item, single) for kind, item in zip(kinds, value, strict=True))
    for rule in whole:
        rule(fitted)
    return fitted


SINGLE: dict[type, tuple[str, Any, Callable[[Any], Any]]] = {
    bool: ("True or False", bool, bool),
    int: ("a whole number", numbers.Integral, int),
    float: ("a number", numbers.Real, float),
    str: ("a text", str, str),
    Path: ("a path", str | Path, Path),
}
"""What single values are called, which types count as them, and how they are made plain."""


LONGEST = 4096
"""Characters of a text."""


def _fit_single(kind: Any, value: Any) -> Any:
    if kind not in SINGLE:
        if kind is not Any and isinstance(kind, type) and not getattr(kind, "_is_protocol", False) and not isinstance(value, kind):
            raise Mismatch(kind.__name__)
        return value
    name, accepted, plain = SINGLE[kind]
    if not isinstance(value, accepted) or (isinstance(value, bool) and kind is not bool):
        raise Mismatch(name)
    if kind in (str, Path) and len(str(value)) > LONGEST:
        raise Mismatch(f"{name} of at most {LONGEST} characters")
    if kind is Path and not str(value):
        raise Mismatch(name)
    try:
        return value if type(value) is kind else plain(value)
    except OverflowError:
        raise Mismatch(name) from None


def require(kind: Any, value: Any, label: str) -> Any:
    """`fit`, whose errors are one line that begins with the label and the value."""
    try:
        return fit(kind, value)
    except (Mismatch, UserError) as error:
        reason = f"expected {error}" if isinstance(error, Mismatch) else error
        raise UserError(f"{label} {_shown(value)}: {reason}") from None


def _shown(value: Any) -> str:
    """A value in a few words of one line."""
    if isinstance(value, tuple | list) and value:
        text = " ".join(map(_shown, value))
    else:
        text = str(value) if isinstance(value, numbers.Number | Path) or (isinstance(value, str) and value.strip()) else repr(value)
    text = text if text.isprintable() else repr(text)
    return text if len(text) <= 100 else f"{text[:97]}..."

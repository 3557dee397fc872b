"""The range of a field stands with the field: one annotation, read by command lines, configurations, Python calls and `--help`.

@ranged("optimizer.")
class OptimizerOptions:
    warmup_steps: Annotated[int, Range(0, 10**7)] = 0

`OptimizerOptions(warmup_steps=-5)` raises `UserError("optimizer.warmup_steps -5: expected 0 to 10000000")`, and a field
of numbers, words or paths without a rule raises TypeError where the class is defined. Functions have their arguments checked by `checked`.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import math
import numbers
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

import tyro

from jaxface.errors import UserError
from jaxface.registry import Registry, require_known

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

RANGED: list[type] = []
"""Every class whose fields have ranges, in the order of their definition."""


class Rule:
    """What single values of a field are allowed. Called with a value, raises UserError with what was expected instead.

    Attributes:
      says: the same for `--help`, or nothing.
    """

    says = ""

    def __call__(self, value: Any) -> None:
        raise NotImplementedError


@dataclass(frozen=True, eq=False)
class Range(Rule):
    """Finite numbers from `low` to `high`, both allowed unless `above` or `below` is set in their place."""

    low: float | None = None
    high: float | None = None
    above: float | None = None
    below: float | None = None

    @property
    def says(self) -> str:
        if self.low is not None and self.high is not None:
            return f"{self.low} to {self.high}"
        words = (("above", self.above), ("at least", self.low), ("at most", self.high), ("below", self.below))
        return " and ".join(f"{word} {number}" for word, number in words if number is not None)

    def __call__(self, value: Any) -> None:
        tests = ((self.low, lambda x: value >= x), (self.high, lambda x: value <= x))
        tests += ((self.above, lambda x: value > x), (self.below, lambda x: value < x))
        if not (isinstance(value, int) or math.isfinite(value)) or not all(test(bound) for bound, test in tests if bound is not None):
            raise UserError(f"expected {self.says or 'a finite number'}")


@dataclass(frozen=True, eq=False)
class Known(Rule):
    """Names of a registry's entries, and one more word where there is `other`."""

    registry: Registry[Any]
    other: str | None = None

    @property
    def says(self) -> str:
        return ", ".join([*filter(None, [self.other]), *self.registry])

    def __call__(self, value: Any) -> None:
        if value != self.other:
            self.registry.get(value)


@dataclass(frozen=True, eq=False)
class OneOf(Rule):
    """Words of a list that stands elsewhere; `kind` is what a message calls one."""

    kind: str
    words: Collection[str]

    @property
    def says(self) -> str:
        return ", ".join(self.words)

    def __call__(self, value: Any) -> None:
        require_known(self.kind, [value], self.words)


@dataclass(frozen=True, eq=False)
class Like(Rule):
    """Values that a function reads without a UserError."""

    read: Callable[[Any], Any]
    says: str = ""

    def __call__(self, value: Any) -> None:
        self.read(value)


@dataclass(frozen=True, eq=False)
class Word(Rule):
    """Texts that a regular expression matches as a whole."""

    pattern: str
    says: str

    def __call__(self, value: Any) -> None:
        if not re.fullmatch(self.pattern, value):
            raise UserError(f"expected {self.says}")


@dataclass(frozen=True, eq=False)
class Place(Rule):
    """Files and folders anywhere; whoever opens one says whether it is there."""

    def __call__(self, value: Any) -> None:
        text = str(value)
        if not text.strip() or not text.isprintable() or any(len(part) > 255 for part in text.split("/")):
            raise UserError("expected a path")


@dataclass(frozen=True, eq=False)
class Inside(Rule):
    """Names of folders below another: relative, none of them `..`."""

    says = "a name below the folder"

    def __call__(self, value: Any) -> None:
        Place()(value)
        path = Path(value)
        if path.is_absolute() or not path.parts or ".." in path.parts or value.endswith("/"):
            raise UserError("expected a name that stays inside its folder, as in run or group/run")


@dataclass(frozen=True, eq=False)
class Whole(Rule):
    """What is true of all values of a field together: a function that raises UserError where it is not."""

    read: Callable[[Any], Any]

    def __call__(self, value: Any) -> None:
        self.read(value)


@dataclass(frozen=True, eq=False)
class Items(Whole):
    """How many values a field of several has, and whether each may come once only."""

    least: int = 0
    once: bool = False
    read: Callable[[Any], Any] = field(default=bool, repr=False)

    def __call__(self, value: Any) -> None:
        if len(value) < self.least:
            raise UserError(f"name at least {self.least}")
        if self.once and len(set(value)) < len(value):
            raise UserError("name each once")


def _name(value: str) -> None:
    if not value.strip() or not value.isprintable() or len(value) > 255:
        raise UserError("expected a name")


def _rising(values: tuple[float, ...]) -> None:
    if list(values) != sorted(values):
        raise UserError("expected the smaller one first")


RISING = Whole(_rising)
"""Of a range that is drawn from."""
Count = Annotated[int, Range(1, 2**20)]
"""How many of something."""
Rounds = Annotated[int, Range(1, 100_000)]
"""How often something is timed."""
Seed = Annotated[int, Range(0, 2**31 - 1)]
"""Of random numbers."""
Share = Annotated[float, Range(0, 1)]
"""A part of a whole, or a probability."""
Where = Annotated[Path, Place()]
"""A file or folder anywhere."""
PathLike = Annotated[Path | str, Place()]
"""The same for Python callers, who may write it as a text; it is made a path."""
Name = Annotated[str, Like(_name)]
"""A word that is looked up later, where what it names is at hand."""


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


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def ranged(where: str = "", *, frozen: bool = True) -> Callable[[type[T]], type[T]]:
    """Makes a class a dataclass whose fields are checked, before its own `__post_init__`, against the rules of their annotations.

    Args:
      where: what stands before a field's name in an error, such as "optimizer.".

    Raises TypeError for a field of numbers, words or paths that has no rule.
    """

    def decorate(cls: type[T]) -> type[T]:
        own = cls.__dict__.get("__post_init__", getattr(super(cls, cls), "__post_init__", None))
        hints = typing.get_type_hints(cls, include_extras=True)
        for name, hint in hints.items():
            if name in inspect.get_annotations(cls):
                if not has_rule(hint):
                    raise TypeError(f"{cls.__qualname__}.{name}: {hint} has no range")
                cls.__annotations__[name] = with_help(hint)

        def post_init(self: Any) -> None:
            for name in (entry.name for entry in dataclasses.fields(self)):
                value = getattr(self, name)
                fitted = require(hints[name], value, f"{where}{name}")
                if fitted is not value:
                    object.__setattr__(self, name, fitted)
            if own is not None:
                own(self)

        setattr(cls, "__post_init__", post_init)  # noqa: B010  no type knows it
        RANGED.append(cls)
        return dataclass(frozen=frozen)(cls)

    return decorate


def checked(function: F) -> F:
    """Checks the arguments before a function is called: their types, and the rules of their annotations."""
    signature = inspect.signature(function)
    named = {
        name for name, parameter in signature.parameters.items() if parameter.kind in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD)
    }

    @functools.cache
    def hints() -> dict[str, Any]:
        return typing.get_type_hints(function, include_extras=True)

    def call(*args: Any, **options: Any) -> Any:
        bound = signature.bind(*args, **options)
        for name in bound.arguments.keys() & hints().keys() - named:
            bound.arguments[name] = require(hints()[name], bound.arguments[name], name)
        return function(*bound.args, **bound.kwargs)

    return cast(F, functools.wraps(function)(call))


def rules_of(kind: Any) -> list[Rule]:
    """All rules in an annotation, the types inside it included."""
    found = [rule for rule in typing.get_args(kind)[1:] if isinstance(rule, Rule)] if typing.get_origin(kind) is Annotated else []
    return found + [rule for inner in typing.get_args(kind) for rule in rules_of(inner)]


def has_rule(kind: Any, rules: bool = False) -> bool:
    """Whether every number, text and path in an annotation has a rule; words of a Literal and dataclasses with ranges need none."""
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    if origin is Annotated:
        return has_rule(arguments[0], rules or any(isinstance(rule, Rule) and not isinstance(rule, Whole) for rule in arguments[1:]))
    if origin is Literal or kind in (bool, type(None), ...):
        return True
    if arguments:
        return all(has_rule(inner, rules) for inner in arguments)
    return rules or kind in RANGED


def with_help(kind: Any) -> Any:
    """The annotation with its range behind the default in `--help`."""
    rules = rules_of(kind)

    def hint(default: str) -> str:
        says = dict.fromkeys(rule.says for rule in rules if rule.says)  # only now: registries grow
        return f"({'; '.join([f'default: {default}', *says])})"

    return Annotated[kind, tyro.conf.arg(help_behavior_hint=hint)] if rules else kind

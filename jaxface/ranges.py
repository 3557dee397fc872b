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
import re
import typing
from collections.abc import Callable, Collection
from contextvars import ContextVar
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar, cast, dataclass_transform

import tyro

from jaxface.errors import UserError
from jaxface.fitting import Rule, Whole, require
from jaxface.registry import Registry, require_known

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., Any])

RANGED: list[type] = []
"""Every class whose fields have ranges, in the order of their definition."""


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


class Known(Rule):
    """Names of a registry's entries, and the `others`."""

    def __init__(self, registry: Registry[Any], *others: str) -> None:
        self.registry, self.others = registry, others

    @property
    def says(self) -> str:
        return ", ".join([*filter(None, self.others), *self.registry])

    def __call__(self, value: Any) -> None:
        if value not in self.others:
            self.registry.get(value)


class Listed(Known):
    """Names of a registry's entries, and any other of letters, digits, _ and -: what it names is known later."""

    def __call__(self, value: Any) -> None:
        if not re.fullmatch(r"\w[\w-]*", value):
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
    """Files and folders anywhere; whoever opens one says whether it is there.

    Attributes:
      urls: whether it may be an address as well (`gs://...`), which a path of a file system is not.
    """

    urls: bool = False

    def __call__(self, value: Any) -> None:
        text = str(value)
        if not self.urls and re.match(r"[A-Za-z][A-Za-z0-9+.-]+:/", text):
            raise UserError("expected a path of a file system, not an address")
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


@dataclass_transform(frozen_default=True, field_specifiers=(dataclasses.field,))
def ranged(where: str = "", *, frozen: bool = True) -> Callable[[type[T]], type[T]]:
    """Makes a class a dataclass whose fields are checked, before its own `__post_init__`, against the rules of their annotations.

    Args:
      where: what stands before a field's name in an error, such as "optimizer.".

    Raises TypeError for a field of numbers, words or paths that has no rule.
    """

    def decorate(cls: type[T]) -> type[T]:
        own = cls.__dict__.get("__post_init__", getattr(super(cls, cls), "__post_init__", None))
        own = getattr(own, "after", own)  # fields of a ranged class above are checked here, by the rules that they have here
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

        setattr(post_init, "after", own)  # noqa: B010  no type knows it
        setattr(cls, "__post_init__", post_init)  # noqa: B010
        RANGED.append(cls)
        return dataclass(frozen=frozen)(cls)

    return decorate


GIVEN: ContextVar[Collection[str]] = ContextVar("names of the options on the command line that is read", default=())


def refuse_idle(options: Any, used: bool, why: str, *names: str, prefix: str = "") -> None:
    """Raises UserError for the first of the options that was given, or is not as usual, where none of them is used.

    Args:
      why: they have no effect then.
      names: of the options; all if none is named.
      prefix: of their names on the command line.
    """
    for entry in () if used else [entry for entry in dataclasses.fields(options) if entry.name in names or not names]:
        usual = entry.default if entry.default_factory is dataclasses.MISSING else entry.default_factory()
        value, given = getattr(options, entry.name), {entry.name, prefix + entry.name} & set(GIVEN.get())
        if given or value != usual:
            shown = " ".join(map(str, value)) if isinstance(value, tuple) else value
            raise UserError(f"{next(iter(given), prefix + entry.name)} {shown}: it has no effect, {why}: leave it out")


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

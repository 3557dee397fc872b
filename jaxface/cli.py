"""Command lines: typed values from options, every mistake as one line, and the user's own files that `--import` names."""

from __future__ import annotations

import contextlib
import io
import os
import re
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, TypeVar

import tyro

from jaxface.errors import UserError
from jaxface.imports import IMPORT_HELP, take_imports
from jaxface.ranges import GIVEN, RANGED, has_rule

T = TypeVar("T")


def parse(
    kind: Callable[..., T],
    *,
    args: Sequence[str] | None = None,
    default: T | None = None,
    prog: str | None = None,
    description: str | None = None,
) -> T:
    """A value of a dataclass, or what a function returns, from the command line.

    Files that `--import` and `--trust` name are seen to first (see `jaxface.imports`), and what they register is known.

    Raises UserError with one line for what cannot be parsed, is given twice or has no effect; `--help` prints and exits as usual. Raises
    TypeError for a kind without ranges.
    """
    if not has_rule(kind):
        raise TypeError(f"{kind}: make it a class with ranges (jaxface.ranges.ranged)")
    words = take_imports(sys.argv[1:] if args is None else args)
    options: dict[str, Any] = {} if default is None else {"default": default}
    if {"-h", "--help"} & set(words):
        try:
            return tyro.cli(kind, args=words, prog=prog, description=description, **options)
        finally:
            print(IMPORT_HELP)
    _require_once(words)
    printed = io.StringIO()
    try:
        with contextlib.redirect_stderr(printed), _wide_terminal():
            value = tyro.cli(kind, args=words, prog=prog, description=description, **options)
    except SystemExit:
        raise UserError(one_line(printed.getvalue())) from None
    if default is None:  # of a configuration, what is idle shows later
        _check_given(value, given_options(words))
    return value


def _check_given(value: Any, given: Collection[str]) -> None:
    """Checks a command line's value, and those in it, once more: an option that was given is refused where it is idle, even as usual."""
    before = GIVEN.set(given)
    try:
        for part in (value, *getattr(value, "__dict__", {}).values()):
            if type(part) in RANGED:
                part.__post_init__()
    finally:
        GIVEN.reset(before)


def given_options(words: Sequence[str]) -> set[str]:
    """The names of the options on a command line, dotted and with underscores; of `--data.no-augment`, `data.augment` too."""
    return {name for option in _options(words) for name in (_name(option), _switched(option))}


def _options(words: Sequence[str]) -> list[str]:
    """The options on a command line as they are written there."""
    return [word.partition("=")[0] for word in words if word.startswith("--")]


def _name(option: str) -> str:
    return option.removeprefix("--").replace("-", "_")


def _switched(option: str) -> str:
    """The name of what an option sets, whether it switches it on or off."""
    return re.sub(r"(^|\.)no_", r"\1", _name(option))


def _require_once(words: Sequence[str]) -> None:
    """Raises UserError for an option that is given twice, of which only the last would count."""
    options = _options(words)
    same = [_switched(option) for option in options]
    for index, name in enumerate(same):
        if name in same[:index]:
            first = options[same.index(name)]
            raise UserError(f"{options[index]}: given twice{'' if first == options[index] else f', before as {first}'}; say it once")


@contextlib.contextmanager
def _wide_terminal() -> Iterator[None]:
    """Lets tyro believe in a terminal so wide that no message is folded."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = "1000"
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def one_line(box: str) -> str:
    """The message in tyro's box as one line, with its suggestion where it has one."""
    lines = [re.sub(r"^[│╭╰─\s]+|[│╮╯─\s]+$", "", line) for line in box.splitlines()]
    lines = [line for line in lines if re.search(r"\w", line)]  # where the terminal has no box, tyro rules with dashes
    if not lines:
        return "the command line cannot be read; see --help"
    message = lines[1] if len(lines) > 1 else lines[0]
    if message.endswith(":") and len(lines) > 2:  # what is missing stands below
        message = f"{message} {lines[2]}"
    hint = ""
    for index, line in enumerate(lines[:-1]):
        if line.startswith("Perhaps you meant"):
            hint = f"; perhaps you meant {lines[index + 1].split(' ')[0]}"
    return f"{message[0].lower()}{message[1:]}{hint} (see --help)"

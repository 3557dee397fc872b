"""python -m jaxface.bench attention [KERNEL...]: whether attention kernels are right, and their time beside the plain XLA one."""

from __future__ import annotations

import dataclasses
import json
from dataclasses import dataclass, field
from typing import Annotated

import tyro

from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.kernels.attention import KERNELS
from jaxface.kernels.conformance import CASES, DTYPES, check


@dataclass(frozen=True)
class Options:
    """Runs kernels forward and backward through every shape against the formula in float64; exit status 1 if one fails.

    Attributes:
      kernels: names, or FILE.py:FUNCTION for one of your own; all that are known if none is named.
      cases: shapes by name; all if none is named.
      dtypes: fp32, bf16.
      rounds: timed calls of each; 0 times nothing.
      json: print one JSON object a case.
    """

    kernels: Annotated[tuple[str, ...], tyro.conf.Positional] = ()
    cases: tuple[str, ...] = ()
    dtypes: tuple[str, ...] = field(default_factory=lambda: tuple(DTYPES))
    rounds: int = 5
    json: bool = False

    def __post_init__(self) -> None:
        for kind, words, known in (("case", self.cases, [case.name for case in CASES]), ("dtype", self.dtypes, DTYPES)):
            for word in words:
                if word not in known:
                    raise UserError(f"no {kind} {word!r}; known: {', '.join(known)}")


def main(arguments: list[str]) -> int:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench attention")
    cases = [case for case in CASES if not options.cases or case.name in options.cases]
    good = True
    for kernel in options.kernels or tuple(KERNELS):
        report = check(kernel, cases=cases, dtypes=options.dtypes, rounds=options.rounds, show=not options.json)
        good = good and report.ok
        for row in report.rows if options.json else ():
            print(json.dumps({"kernel": kernel, **dataclasses.asdict(row), "ok": row.ok}))
    return 0 if good else 1

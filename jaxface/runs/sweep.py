"""Several runs from one configuration: one for each seed and each point of a grid."""

from __future__ import annotations

import itertools
import json
import re
from dataclasses import replace
from typing import Any

import tyro

from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.runs.config import Config, check_run, with_method
from jaxface.runs.saved_config import to_dict

OF_ALL = ("name", "out", "seeds", "grid", "cluster", "report", "after")
"""Options that a sweep cannot vary: they say where its runs lie, and how they are made."""


def members(config: Config) -> list[Config]:
    """The runs that a configuration stands for, each in a folder of its own below the configuration's; itself where it has no sweep.

    A point of the grid is what its options would make of the command line: `method.name=lp,dora` gives two, and values of several words
    are written with blanks, `tasks=age,age gender`.

    Raises UserError for a grid that cannot be read, or an option or value that the command line would refuse.
    """
    axes = [_axis(word) for word in config.grid] + ([[("seed", str(seed)) for seed in config.seeds]] if config.seeds else [])
    if not axes:
        check_run(config)
        return [config]
    once = f"grid {' '.join(config.grid)}: two of its points are one run: name each option and each value once"
    if len({axis[0][0].replace("-", "_") for axis in axes}) < len(axes):
        raise UserError(once)
    alone = replace(config, seeds=(), grid=())
    runs = [_member(alone, point) for point in itertools.product(*axes)]
    different = {json.dumps(to_dict(replace(run, name="run")), sort_keys=True) for run in runs}
    if min(len(different), len({run.name for run in runs})) < len(runs):
        raise UserError(once)
    for run in runs:
        check_run(run)
    return runs


def _axis(word: str) -> list[tuple[str, str]]:
    option, _, values = word.partition("=")
    if option.replace("-", "_").split(".")[0] in OF_ALL:
        raise UserError(f"grid {word}: {option} is one for all runs of a grid")
    return [(option, value) for value in values.split(",")]


def _member(config: Config, point: tuple[tuple[str, str], ...]) -> Config:
    name = ",".join(re.sub(r"[^\w.=+-]+", "-", f"{option}={value}") for option, value in point)
    words = [word for option, value in point for word in (f"--{option}", *value.split())]
    kind: Any = tyro.conf.FlagConversionOff[Config]
    config = with_method(replace(config, name=f"{config.name}/{name}"), words)
    return parse(kind, args=words, default=config)

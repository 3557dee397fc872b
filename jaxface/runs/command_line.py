"""A run's configuration from the command line: `--config FILE`, and options that change single values of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxface.cli import parse
from jaxface.errors import UserError
from jaxface.imports import imported, take_imports
from jaxface.runs.config import Config, load_config

QUICKSTART = Path(__file__).parents[2] / "configs" / "quickstart.py"


def read_command_line(arguments: list[str], prog: str = "python -m jaxface.train") -> Config:
    """The configuration of `--config FILE` (default: the quickstart), changed by the other options."""
    arguments = take_imports(arguments)  # before the configuration, which may name what they register
    path: str | Path = QUICKSTART
    for index, word in enumerate(arguments):
        if word == "--config" or word.startswith("--config="):
            if word == "--config" and index + 1 == len(arguments):
                raise UserError("--config needs a file")
            path = word.partition("=")[2] or arguments[index + 1]
            del arguments[index : index + (1 if "=" in word else 2)]
            break
    description = "--config FILE names the experiment (default: the quickstart); the options below change single values."
    config = parse(Config, args=arguments, default=load_config(path), prog=prog, description=description)
    config = replace(config, imports=imported())
    if config.after is None or config.encoder.weights is not None:  # other weights were named: the run to start from has no use
        return replace(config, after=None)
    after = replace(config.after, out=config.out, cluster=config.cluster, imports=config.imports)
    return replace(config, after=after, encoder=replace(config.encoder, weights=str(after.folder)))

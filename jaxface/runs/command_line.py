"""A run's configuration from the command line: `--config FILE`, and options that change single values of it."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from jaxface.cli import given_options, parse
from jaxface.errors import UserError, tell
from jaxface.imports import imported, take_imports
from jaxface.runs.config import CONFIGS, RANDOM, Config, load_configs, with_method
from jaxface.runs.own_tasks import settled, tasks_in

QUICKSTART = CONFIGS / "quickstart.py"


def read_command_lines(arguments: list[str], prog: str = "python -m jaxface.train") -> list[Config]:
    """The configurations of `--config FILE` (default: the quickstart), each changed by the other options.

    Raises UserError for what cannot be parsed, or where the options give two experiments one folder.
    """
    words = take_imports(list(arguments))  # before the configuration, which may name what they register
    path: str | Path = QUICKSTART
    for index, word in enumerate(words):
        if word == "--config" or word.startswith("--config="):
            if word == "--config" and index + 1 == len(words):
                raise UserError("--config needs a file")
            path = word.partition("=")[2] or words[index + 1]
            del words[index : index + (1 if "=" in word else 2)]
            break
    configs = [settled(_changed(config, words, prog)) for config in load_configs(path)]
    if len({config.folder for config in configs}) < len(configs):
        raise UserError(f"{path} holds {len(configs)} experiments, which --name would give one folder: take --out DIR")
    return configs


def read_command_line(arguments: list[str], prog: str = "python -m jaxface.train") -> Config:
    """The configuration of `--config FILE` where that is one. Raises UserError as `read_command_lines`, and for a file of several."""
    config, *others = read_command_lines(arguments, prog)
    if others:
        raise UserError(f"the file of --config holds {1 + len(others)} experiments: name the file of one of them")
    return config


def _changed(config: Config, words: list[str], prog: str) -> Config:
    """A configuration with the values that the options give in place of its own, those of its grid too."""
    description = "--config FILE names the experiment (default: the quickstart); the options below change single values."
    given = given_options(words)
    if {"seed", "seeds"} <= given:
        raise UserError("--seed and --seeds: give one of them")
    if "seed" in given:
        config = replace(config, seeds=())
    swept = [axis for axis in config.grid if axis.partition("=")[0].replace("-", "_") in given]
    if swept and "grid" not in given:  # what the command line says of an option holds: the file's grid has no say in it
        config = replace(config, grid=tuple(axis for axis in config.grid if axis not in swept))
    config = parse(Config, args=words, default=with_method(config, words), prog=prog, description=description)
    config = replace(config, imports=imported())
    if "tasks" not in given and (own := tasks_in(config.data.sets, config.tasks)) != config.tasks:
        tell(f"tasks {' '.join(own)}: those of {', '.join(config.data.sets)}")
        config = replace(config, tasks=own)
    for axis in config.grid:
        if (option := axis.partition("=")[0].replace("-", "_")) in given:
            raise UserError(f"--{option} is an option of its own and an axis of --grid, {axis}: give it once")
    if config.after is None or config.encoder.weights is not None:  # other weights were named: the run to start from has no use
        return replace(config, after=None)
    after = replace(config.after, out=config.out, cluster=config.cluster, imports=config.imports)
    if "encoder.variant" in given and after.encoder.weights == RANDOM:
        after = replace(after, encoder=replace(after.encoder, variant=config.encoder.variant))
    return replace(config, after=after, encoder=replace(config.encoder, weights=str(after.folder)))

"""Single-task runs on one frozen encoder as one model of all their tasks (thesis, section 4.4.1): each answers exactly as alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from jaxface.errors import UserError
from jaxface.files import alone_in, write_json
from jaxface.runs.base import base_info, framing_of
from jaxface.runs.best import read_best, save_best
from jaxface.runs.config import Config
from jaxface.runs.folder import read_config
from jaxface.runs.model import load_base, load_trained, make_parts
from jaxface.runs.saved_config import to_dict

ASSEMBLED = {"lp": "lp", "ap": "ap_per_task"}
"""The methods whose runs share every block, and the method of the model that has the parts of all: heads, or pools and heads."""


def assemble(folders: Sequence[Path], out: Path) -> Config:
    """Writes a run folder with the parts of several runs, each of one task, and returns its configuration.

    Raises UserError for runs that do not share encoder, method and head, that have several tasks or the same one, or none finished.
    """
    configs = {folder: read_config(folder) for folder in folders}
    first = next(iter(configs.values()), None)
    if first is None or len(configs) < 2:
        raise UserError("name at least two runs to assemble, each of one task")
    for folder, config in configs.items():
        if len(config.tasks) > 1:
            raise UserError(f"{folder} has several tasks ({' '.join(config.tasks)}): only runs of one task are assembled")
        if config.method.name not in ASSEMBLED:
            raise UserError(f"{folder} is {config.method.name}: only {' and '.join(ASSEMBLED)} leave the blocks as they are")
        for name in ("method", "head", "encoder"):
            if _shape(config, name) != _shape(first, name):
                raise UserError(f"{folder} and {folders[0]} differ in their {name}: they do not fit into one model")
    tasks = [config.tasks[0] for config in configs.values()]
    if len(set(tasks)) < len(tasks):
        raise UserError(f"the runs are of {' '.join(tasks)}: each task once")
    (path, out_name), losses = (out.parent, out.name), {task: loss for config in configs.values() for task, loss in config.losses.items()}
    method = replace(first.method, name=ASSEMBLED[first.method.name])
    sets = tuple(dict.fromkeys(folder for config in configs.values() for folder in config.data.sets))
    data = replace(first.data, sets=sets)
    config = replace(first, name=out_name, out=str(path), tasks=tuple(tasks), method=method, losses=losses, data=data)
    if (out / "config.json").exists() and to_dict(read_config(out)) != to_dict(config):
        raise UserError(f"{out} holds another run: choose another --out, or remove that folder")
    _write(configs, config, out)
    return config


def _shape(config: Config, name: str) -> object:
    """Options of a kind as they decide what a model is made of: where its weights are is no part of that."""
    options = getattr(config, name)
    return replace(options, weights=None) if name == "encoder" else options


def _write(configs: dict[Path, Config], config: Config, out: Path) -> None:
    arrays: dict[str, np.ndarray] = {}
    infos, bases = [], {}
    for folder, own in configs.items():
        trained, best = load_trained(folder), read_best(folder)  # finished, and on the base weights that it names
        infos.append(best.info)
        bases[trained.base_fingerprint] = trained.base
        place = sorted(config.tasks).index(own.tasks[0])
        for name, array in best.arrays.items():
            arrays[name.replace("encoder.pool.", f"encoder.pool.pools.{place}.")] = array
    framing = framing_of(infos[0])
    if any(framing_of(info) != framing for info in infos):
        raise UserError(f"{', '.join(map(str, configs))}: they see faces in different ways ({', '.join(map(framing_of, infos))})")
    if len(bases) > 1:
        raise UserError(f"{', '.join(map(str, configs))}: they were trained on different base weights")
    base = load_base(config, *bases.values())
    parts = make_parts(config, base)
    expected = {**parts.trained, **parts.statistics}
    if {name: array.shape for name, array in arrays.items()} != {name: leaf.shape for name, leaf in expected.items()}:
        raise UserError(f"{', '.join(map(str, configs))}: their parts do not make one model")
    with alone_in(out):
        write_json(out / "config.json", to_dict(config))
        info = {"step": max(info["step"] for info in infos), "epoch": max(info["epoch"] for info in infos)}
        info |= {"accuracy": float(np.mean([info["accuracy"] for info in infos])), **base_info(config, base, out, framing)}
        save_best(out, arrays, info | {"of": [str(folder) for folder in configs]})

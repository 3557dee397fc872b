"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, with the names of timm's modules.

timm's, because Meta's blocks keep the fused kernel as a bare parameter that PEFT cannot adapt as a module. PEFT scales an update by
`lora_alpha / r` (with `use_rslora` by `lora_alpha / sqrt(r)`): it is folded into B on the way in, and is 1 on the way out.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.adapters.low_rank import LowRank
from jaxface.adapters.methods import linears, shallow_copy
from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.files import write_json
from jaxface.models.encoder import Encoder
from jaxface.ranges import PathLike, checked
from weights_convert.layouts import TIMM_VISION
from weights_convert.tensor_files import open_tensors, write_tensors

CONFIG, TENSORS = "adapter_config.json", "adapter_model.safetensors"
PREFIX = "base_model.model."
MODULES = {row.ours.removesuffix(".kernel"): row.theirs.removesuffix(".weight") for row in TIMM_VISION if row.ours.endswith(".kernel")}
"""timm's name of every linear of ours, `{i}` counting blocks."""
MAGNITUDE = "lora_magnitude_vector"


class Update(NamedTuple):
    """One module's adapter, in PEFT's orientation: weight + b a, float32.

    Attributes:
      a: [r, in]
      b: [out, r]
      magnitude: [out] of DoRA, or None.
    """

    a: np.ndarray
    b: np.ndarray
    magnitude: np.ndarray | None


def timm_modules(encoder: Encoder) -> Iterator[tuple[Any, list[str]]]:
    """Every linear of the blocks and the pool, with timm's names for it: one a block where blocks are stacked."""
    first = 0
    for stage in encoder.stages:
        depth = stage.norm1.scale.shape[0]
        for name, linear in linears(stage):
            yield linear, [MODULES[f"blocks.{{i}}.{name}"].format(i=i) for i in range(first, first + depth)]
        first += depth
    if encoder.pool is not None:
        for name, linear in linears(encoder.pool):
            yield linear, [MODULES[f"pool.{name}"]]
    if encoder.projection is not None:
        yield encoder.projection, [MODULES["projection"]]


@checked
def save_peft(encoder: Encoder, folder: PathLike, *, base: str | None = None) -> None:
    """Writes the encoder's LoRA or DoRA adapters as a folder that PEFT loads onto timm's model of the same encoder.

    Args:
      base: name or path of the base weights, for `base_model_name_or_path`.

    Raises UserError if it has none, if a kernel is adapted in a way that PEFT has no place for, or if the folder cannot be written.
    """
    updates = adapter_updates(encoder)
    if not updates:
        raise UserError("the encoder has no LoRA or DoRA adapter to write: adapt it first, and do not merge it")
    with_magnitude = {update.magnitude is not None for update in updates.values()}
    if len(with_magnitude) > 1:
        raise UserError("some kernels have LoRA and some DoRA: PEFT's folder holds one of the two")
    ranks = {module: update.a.shape[0] for module, update in updates.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    pattern = {module: rank for module, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": {"base_model_class": "Eva", "parent_library": "timm.models.eva"},
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(updates),
        "use_dora": True in with_magnitude,
        "use_rslora": False,
        "lora_dropout": max((linear.kernel.dropout for _, linear in linears(encoder) if isinstance(linear.kernel, LowRank)), default=0.0),
        "bias": "none",
        "fan_in_fan_out": False,
        "init_lora_weights": True,
        "inference_mode": True,
    }
    folder = Path(folder)
    tensors = {}
    for module, update in updates.items():
        tensors |= {f"{PREFIX}{module}.lora_A.weight": [update.a], f"{PREFIX}{module}.lora_B.weight": [update.b]}
        if update.magnitude is not None:
            tensors[f"{PREFIX}{module}.{MAGNITUDE}"] = [update.magnitude]
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{folder}: cannot be made: {error.strerror}") from None
    write_tensors(folder / TENSORS, tensors, metadata={"format": "pt"})
    write_json(folder / CONFIG, config)


def adapter_updates(encoder: Encoder) -> dict[str, Update]:
    """The adapter of every adapted module by timm's name. Raises UserError for a kernel that is neither plain nor LoRA nor DoRA."""
    updates = {}
    for linear, modules in timm_modules(encoder):
        kernel = linear.kernel
        if isinstance(kernel, LowRank):
            a, b, magnitude = (None if x is None else np.asarray(x, np.float32) for x in kernel.plain_update())
            stacked = a.ndim == 3
            for i, module in enumerate(modules):
                parts = [x if x is None or not stacked else x[i] for x in (a, b, magnitude)]
                updates[module] = Update(parts[0].T, parts[1].T, parts[2])
        elif isinstance(kernel, nnx.Module):
            raise UserError(f"{modules[0]}: a kernel of kind {type(kernel).__name__} has no place in PEFT's files")
    return updates


@checked
def load_peft(encoder: Encoder, folder: PathLike) -> Encoder:
    """A copy of the encoder with the adapters of a folder that PEFT wrote for timm's model of it; frozen arrays are shared.

    Blocks stand stacked: where only some of them are adapted, or ranks differ, the rest is filled with zeros, which changes no output.

    Raises UserError if the folder is not whole, has what cannot be told here, or does not fit the encoder.
    """
    folder = Path(folder)
    updates = read_updates(folder)
    encoder = shallow_copy(encoder)
    for linear, modules in timm_modules(encoder):
        mine = {module: updates.pop(module) for module in modules if module in updates}
        if not mine:
            continue
        if isinstance(linear.kernel, nnx.Module):
            raise UserError(f"{modules[0]} is adapted already: merge the encoder, or load into a plain one")
        linear.kernel = _kernel(linear.kernel[...], modules, mine, folder)
    if updates:
        raise UserError(f"{folder}: adapts {next(iter(updates))}, which the encoder does not have; expected {', '.join(MODULES.values())}")
    return encoder


def read_updates(folder: Path) -> dict[str, Update]:
    """The adapters of a PEFT folder by module, the scaling folded into B. Raises UserError that names what cannot be read."""
    config = _read_config(folder)
    path = next((path for name in (TENSORS, "adapter_model.bin") if (path := folder / name).exists()), folder / TENSORS)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in open_tensors(path).tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.(lora_A|lora_B|{MAGNITUDE})(?:\.weight)?", name)
        if not match:
            raise UserError(f"{path}: {name} is no part of a LoRA or DoRA adapter of a linear layer")
        parts.setdefault(match[1], {})[match[2]] = np.array(array, np.float32)
    updates = {}
    for module, found in parts.items():
        needed = {"lora_A", "lora_B"} | ({MAGNITUDE} if config.get("use_dora") else set())
        if found.keys() != needed:
            raise UserError(f"{path}: {module} has {', '.join(sorted(found))}; expected {', '.join(sorted(needed))}")
        a, b = found["lora_A"], found["lora_B"]
        if a.ndim != 2 or b.ndim != 2 or a.shape[0] != b.shape[1]:
            raise UserError(f"{path}: {module} has A {a.shape} and B {b.shape}; expected [r, in] and [out, r]")
        updates[module] = Update(a, b * _scaling(config, module, a.shape[0]), found.get(MAGNITUDE))
    return updates


def _read_config(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    check_digest(path)
    try:
        config = json.loads(path.read_text())
    except OSError as error:
        raise UserError(f"{path}: cannot be read: {error.strerror}; expected a folder that PEFT wrote") from None
    except ValueError as error:
        raise UserError(f"{path}: no JSON: {error}") from None
    if not isinstance(config, dict) or config.get("peft_type") != "LORA":
        kind = config.get("peft_type") if isinstance(config, dict) else type(config).__name__
        raise UserError(f"{path}: peft_type {kind!r}; expected 'LORA'")
    plain = {"bias": "none", "fan_in_fan_out": False, "lora_bias": False, "modules_to_save": None, "target_parameters": None}
    for key, value in plain.items():
        if config.get(key) and config[key] != value:
            raise UserError(f"{path}: {key} is {config[key]!r}; only {value!r} can be read")
    return config


def _scaling(config: Mapping[str, Any], module: str, rank: int) -> float:
    """What PEFT multiplies B A by: alpha over the rank, or over its root; a pattern's key is the end of a module's name."""
    alpha = float(config.get("lora_alpha") or 8)
    for key, value in (config.get("alpha_pattern") or {}).items():
        if re.fullmatch(rf"(?:.*\.)?(?:{key})", module):
            alpha = float(value)
            break
    return alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)


def _kernel(base: Any, modules: list[str], updates: Mapping[str, Update], folder: Path) -> LowRank:
    """One kernel [..., in, out] with the updates of its blocks."""
    inputs, outputs = base.shape[-2:]
    for module, update in updates.items():
        shape = (outputs, inputs)
        if (update.b.shape[0], update.a.shape[1]) != shape or (update.magnitude is not None and update.magnitude.shape != (outputs,)):
            got = (update.b.shape[0], update.a.shape[1])
            raise UserError(f"{folder}: {module} adapts a weight of shape {got}; the encoder's is {shape}")
    rank = max(update.a.shape[0] for update in updates.values())
    dora = any(update.magnitude is not None for update in updates.values())
    kernel = LowRank(base, rank, dora=dora, rngs=nnx.Rngs(0))
    a, b = np.zeros((len(modules), inputs, rank), np.float32), np.zeros((len(modules), rank, outputs), np.float32)
    magnitude = np.array(kernel.magnitude[...]).reshape(len(modules), outputs) if dora else None
    for i, module in enumerate(modules):
        if module in updates:
            update = updates[module]
            own = update.a.shape[0]
            a[i, :, :own], b[i, :own] = update.a.T, update.b.T
            if magnitude is not None:
                magnitude[i] = update.magnitude
    kernel.a[...], kernel.b[...] = jnp.asarray(a.reshape(kernel.a.shape)), jnp.asarray(b.reshape(kernel.b.shape))
    if magnitude is not None and kernel.magnitude is not None:
        kernel.magnitude[...] = jnp.asarray(magnitude.reshape(kernel.magnitude.shape))
    return kernel

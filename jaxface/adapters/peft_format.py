"""PEFT's adapter folders: `adapter_config.json` and `adapter_model.safetensors`, with the names of timm's modules.

timm's, because Meta's blocks keep the fused kernel as a bare parameter that PEFT cannot adapt as a module. PEFT scales an update by
`lora_alpha / r` (with `use_rslora` by `lora_alpha / sqrt(r)`): it is folded into B on the way in, and is 1 on the way out.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.adapters.low_rank import GAUSSIAN, INITS, LowRank, Start, start_from
from jaxface.adapters.peft_config import CONFIG, PATCHES, PeftConfig, read_config
from jaxface.adapters.places import as_base, is_adapted, linears
from jaxface.errors import UserError
from jaxface.files import write_json
from jaxface.models.encoder import Encoder
from jaxface.models.tree import shallow_copy
from jaxface.ranges import PathLike, checked
from weights_convert.layouts import TIMM_VISION
from weights_convert.names import timm_class
from weights_convert.tensor_files import open_tensors, write_tensors
from weights_convert.tensor_parts import finite, is_floating

TENSORS = "adapter_model.safetensors"
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
    """Every linear of the encoder that timm has one for, with timm's names for it: one a block where blocks are stacked."""
    first = 0
    for stage in encoder.stages:
        depth = stage.norm1.scale.shape[0]
        for name, linear in linears(stage):
            if timms := MODULES.get(f"blocks.{{i}}.{name}"):
                yield linear, [timms.format(i=i) for i in range(first, first + depth)]
        first += depth
    if encoder.pool is not None:
        for name, linear in linears(encoder.pool):
            if timms := MODULES.get(f"pool.{name}"):
                yield linear, [timms]
    if encoder.projection is not None:
        yield encoder.projection, [MODULES["projection"]]


@checked
def save_peft(encoder: Encoder, folder: PathLike, *, base: str | None = None) -> None:
    """Writes the encoder's LoRA or DoRA adapters as a folder that PEFT loads onto timm's model of the same encoder.

    Args:
      base: name or path of the base weights, for `base_model_name_or_path`.

    timm's models without a bias of keys (`qkv_bias="no key"`) read the base kernel of `attn.qkv` past an adapter unless their attention's
    `qkv_bias_separate` is set; it changes nothing else.

    Raises UserError if it has none, if a kernel is adapted in a way that PEFT has no place for, or if the folder cannot be written.
    """
    updates = adapter_updates(encoder)
    if not updates:
        raise UserError("the encoder has no LoRA or DoRA adapter to write: adapt it first, and do not merge it")
    with_magnitude = {update.magnitude is not None for update in updates.values()}
    if len(with_magnitude) > 1:
        raise UserError("some kernels have LoRA and some DoRA: PEFT's folder holds one of the two")
    dropouts = {linear.kernel.dropout for _, linear in linears(encoder) if isinstance(linear.kernel, LowRank)}
    if len(dropouts) > 1:
        raise UserError(
            f"adapters with dropouts {', '.join(map(str, sorted(dropouts)))}: PEFT's folder has one lora_dropout for all of them"
        )
    ranks = {module: update.a.shape[0] for module, update in updates.items()}
    common = max(set(ranks.values()), key=list(ranks.values()).count)
    pattern = {module: rank for module, rank in ranks.items() if rank != common}
    config = {
        "peft_type": "LORA",
        "task_type": None,
        "auto_mapping": dict(zip(("base_model_class", "parent_library"), timm_class(encoder.config), strict=True)),
        "base_model_name_or_path": base,
        "r": common,
        "lora_alpha": common,
        "rank_pattern": pattern,
        "alpha_pattern": pattern,
        "target_modules": list(updates),
        "use_dora": True in with_magnitude,
        "use_rslora": False,
        "lora_dropout": dropouts.pop(),
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
    """The adapter of every adapted module by timm's name. Raises UserError for an adapted kernel that PEFT has no place for."""
    updates = {}
    placed = set()
    for linear, modules in timm_modules(encoder):
        kernel = linear.kernel
        placed.add(id(linear))
        if isinstance(kernel, LowRank):
            a, b, magnitude = (None if x is None else np.asarray(x, np.float32) for x in kernel.plain_update())
            stacked = a.ndim == 3
            for i, module in enumerate(modules):
                parts = [x if x is None or not stacked else x[i] for x in (a, b, magnitude)]
                updates[module] = Update(parts[0].T, parts[1].T, parts[2])
        elif is_adapted(kernel):
            raise UserError(f"{modules[0]}: a kernel of kind {type(kernel).__name__} has no place in PEFT's files")
    for name, linear in linears(encoder):
        if is_adapted(linear.kernel) and id(linear) not in placed:
            raise UserError(f"{name}: adapted, but no linear layer of timm's model: it has no place in PEFT's files")
    return updates


@checked
def load_peft(encoder: Encoder, folder: PathLike) -> Encoder:
    """A copy of the encoder with the adapters of a folder that PEFT wrote for timm's model of it; frozen arrays are shared.

    Blocks stand stacked: where only some of them are adapted, or ranks differ, the rest is filled with zeros, which changes no output.
    A kernel in fewer bits stays so below its adapter. What PiSSA and OLoRA take out of the base is computed from the encoder's kernels.
    `lora_dropout` acts in training steps that go on from here.

    Raises UserError if the folder is not whole, has what cannot be told here, or does not fit the encoder.
    """
    folder = Path(folder)
    config, updates = read_config(folder), read_updates(folder)
    encoder = shallow_copy(encoder)
    places = list(timm_modules(encoder))
    targets = config.targets([PATCHES, *(module for _, modules in places for module in modules)])
    for module in sorted(targets ^ updates.keys()):
        if module in targets:
            raise UserError(f"{folder}: the configuration adapts {module}, but {TENSORS} has no tensors of it")
        raise UserError(
            f"{folder}: {TENSORS} has tensors of {module}, which the configuration does not adapt, or the encoder does not have"
        )
    for linear, modules in places:
        mine = {module: updates[module] for module in modules if module in updates}
        if not mine:
            continue
        if is_adapted(linear.kernel):
            raise UserError(f"{modules[0]} is adapted already: merge the encoder, or load into a plain one")
        linear.kernel = _kernel(linear.kernel, modules, mine, config)
    return encoder


def read_updates(folder: Path) -> dict[str, Update]:
    """The adapters of a PEFT folder by module, the scaling folded into B. Raises UserError that names what cannot be read."""
    config = read_config(folder)
    path = next((path for name in (TENSORS, "adapter_model.bin") if (path := folder / name).exists()), folder / TENSORS)
    parts: dict[str, dict[str, np.ndarray]] = {}
    for name, array in open_tensors(path).tensors.items():
        match = re.fullmatch(rf"(?:{re.escape(PREFIX)})?(.+)\.(lora_A|lora_B|{MAGNITUDE})(?:\.weight)?", name)
        if not match:
            raise UserError(f"{path}: {name} is no part of a LoRA or DoRA adapter of a linear layer")
        if not is_floating(array.dtype) or not finite(np.ascontiguousarray(array)):
            raise UserError(f"{path}: {name} holds {array.dtype} {'with NaN or infinity' if is_floating(array.dtype) else 'numbers'}")
        if match[2] in parts.setdefault(match[1], {}):
            raise UserError(f"{path}: {match[1]} has {match[2]} twice, under two spellings of its name")
        parts[match[1]][match[2]] = np.array(array, np.float32)
    updates = {}
    for module, found in parts.items():
        needed = {"lora_A", "lora_B"} | ({MAGNITUDE} if config.dora else set())
        if found.keys() != needed:
            raise UserError(f"{path}: {module} has {', '.join(sorted(found))}; expected {', '.join(sorted(needed))}")
        a, b, rank = found["lora_A"], found["lora_B"], config.rank(module)
        if a.ndim != 2 or b.ndim != 2 or not a.shape[0] == b.shape[1] == rank:
            raise UserError(f"{path}: {module} has A {a.shape} and B {b.shape}; expected [{rank}, in] and [out, {rank}]")
        updates[module] = Update(a, b * np.float32(config.scaling(module)), found.get(MAGNITUDE))
    return updates


def _kernel(base: Any, modules: list[str], updates: Mapping[str, Update], config: PeftConfig) -> LowRank:
    """One kernel [..., in, out] with the updates of its blocks."""
    inputs, outputs = base.shape[-2:]
    for module, update in updates.items():
        shape = (outputs, inputs)
        if (update.b.shape[0], update.a.shape[1]) != shape or (update.magnitude is not None and update.magnitude.shape != (outputs,)):
            got = (update.b.shape[0], update.a.shape[1])
            raise UserError(f"{config.path.parent}: {module} adapts a weight of shape {got}; the encoder's is {shape}")
    rank = max(update.a.shape[0] for update in updates.values())
    kernel = LowRank(as_base(base), rank, dora=config.dora, dropout=config.dropout, rngs=nnx.Rngs(0))
    count = len(modules)
    a, b = np.zeros((count, inputs, rank), np.float32), np.zeros((count, rank, outputs), np.float32)
    start_a, start_b = np.zeros_like(a), np.zeros_like(b)
    magnitude = np.array(kernel.magnitude[...]).reshape(count, outputs) if config.dora else None
    plain = np.asarray(base[...], np.float64).reshape(count, inputs, outputs) if config.init != GAUSSIAN else None
    for i, module in enumerate(modules):
        if module in updates:
            update = updates[module]
            own = update.a.shape[0]
            a[i, :, :own], b[i, :own] = update.a.T, update.b.T
            if magnitude is not None:
                magnitude[i] = update.magnitude
            if plain is not None:
                scaling = config.scaling(module)
                first_a, first_b = start_from(plain[i], INITS[config.init], own, 1, scaling)
                start_a[i, :, :own], start_b[i, :own] = first_a, first_b * scaling

    def fill(place: Any, values: np.ndarray) -> None:
        place[...] = jax.device_put(values.reshape(place.shape))  # which compiles nothing

    fill(kernel.a, a)
    fill(kernel.b, b)
    if magnitude is not None:
        fill(kernel.magnitude, magnitude)
    if plain is not None:
        kernel.start_a, kernel.start_b = Start(jnp.zeros_like(kernel.a[...])), Start(jnp.zeros_like(kernel.b[...]))
        fill(kernel.start_a, start_a)
        fill(kernel.start_b, start_b)
    return kernel

"""`adapter_config.json` of PEFT's LoRA: every field is computed as PEFT computes it, or refused by its name and value.

`FIELDS` is the list of all that is understood. A field that is not on it may say "off" (null, false, empty) and nothing else.
"""

from __future__ import annotations

import json
import math
import re
import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import regex

from jaxface.digests import check_digest
from jaxface.errors import UserError
from jaxface.files import read_object

CONFIG = "adapter_config.json"
PATCHES = "patch_embed.proj"
"""timm's one module that is no linear layer and has adapters in PEFT: a convolution, whose A and B are no matrices."""
LIMIT = 2 * 2**20
"""Bytes of a configuration that are read: the largest have a line for every module of a large model."""
MOST = 2000
"""Names or patterns that a field may hold, which is more than any encoder has modules."""
PATIENCE = 1.0
"""Seconds that one regular expression may take on one name."""

Check = Callable[[Any], bool]


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _rank(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value > 0


def _names(value: Any) -> bool:
    return (
        value is None
        or isinstance(value, str)
        or (isinstance(value, list) and len(value) <= MOST and all(isinstance(name, str) for name in value))
    )


def _layers(value: Any) -> bool:
    return value is None or _index(value) or (isinstance(value, list) and all(map(_index, value)))


def _index(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _pattern_of(each: Check) -> Check:
    return lambda value: value is None or (isinstance(value, dict) and len(value) <= MOST and all(map(each, value.values())))


def _off(value: Any) -> bool:
    return value is None or value is False or value in ({}, [], "")


def _flag(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _known_init(value: Any) -> bool:
    return isinstance(value, bool) or init_of(value) is not None


def init_of(value: Any) -> str | None:
    """How the adapter started, in our words (`jaxface.adapters.low_rank.INITS`), or None for a way that changes the base unknowably.

    PEFT's other ways leave the base as it is, and A and B stand in the file: one word does for all of them.
    """
    if value in ("pissa", "gaussian", "orthogonal", "eva"):
        return "pissa" if value == "pissa" else "gaussian"
    if isinstance(value, str) and value.lower() in ("olora", "gaussian", "mica"):  # PEFT reads these in any case
        return "olora" if value.lower() == "olora" else "gaussian"
    return "gaussian" if isinstance(value, bool) else None


ANYTHING: tuple[Check, str] = (lambda value: True, "")
FIELDS: dict[str, tuple[Check, str]] = {
    "peft_type": (lambda value: value == "LORA", "'LORA'"),
    "r": (_rank, "a whole number above 0"),
    "lora_alpha": (_number, "a number"),
    "use_rslora": (_flag, "true or false"),
    "use_dora": (_flag, "true or false"),
    "rank_pattern": (_pattern_of(_rank), f"whole numbers above 0 by the names of at most {MOST} modules"),
    "alpha_pattern": (_pattern_of(_number), f"numbers by the names of at most {MOST} modules"),
    "target_modules": (lambda value: value is not None and _names(value), f"names of at most {MOST} modules, or one regular expression"),
    "exclude_modules": (_names, f"names of at most {MOST} modules, or one regular expression"),
    "layers_to_transform": (_layers, "numbers of blocks"),
    "layers_pattern": (_names, "the name before a block's number"),
    "lora_dropout": (lambda value: value is None or (_number(value) and 0 <= value < 1), "a number from 0 to below 1"),
    "init_lora_weights": (_known_init, "one of true, false, 'gaussian', 'orthogonal', 'eva', 'mica', 'pissa', 'olora'"),
    # a linear layer of torch's is never stored the other way round: PEFT sets this to false by itself
    "fan_in_fan_out": (_flag, "true or false"),
    "bias": (lambda value: value in (None, "none"), "'none'"),
    # of how and where it was made
    **dict.fromkeys(("auto_mapping", "base_model_name_or_path", "inference_mode", "peft_version"), ANYTHING),
    **dict.fromkeys(("revision", "task_type", "runtime_config", "ensure_weight_tying"), ANYTHING),
    # settings of ways to start that `init_lora_weights` names, or of what another field switches on
    **dict.fromkeys(("corda_config", "eva_config", "lora_ga_config", "loftq_config", "qalora_group_size", "megatron_core"), ANYTHING),
}
"""By field: whether a value is understood, and what is, in words."""


OTHERWISE = re.compile(r"(?<!\\)\{(?!\d*,?\d*\})|\[:\^?\w+:\]")
"""What `regex` reads as counts of errors and classes of characters, and Python's `re`, which PEFT takes, as plain text."""


@lru_cache(maxsize=4 * MOST)
def _compiled(pattern: str) -> Any:
    """A regular expression, of a kind that `re` and `regex`, which can be told to stop, read alike. Raises re.error for another.

    A folder may have one for each module, which each other module is compared with.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("error", FutureWarning)  # of sets within sets
        re.compile(pattern)
    if OTHERWISE.search(pattern):
        raise re.error("braces without a count, or a class in colons")
    return regex.compile(pattern)


@dataclass(frozen=True)
class PeftConfig:
    """What a configuration says, checked.

    Attributes:
      path: of its file.
      fields: its fields, as in the file.
    """

    path: Path
    fields: Mapping[str, Any]

    @property
    def dora(self) -> bool:
        return bool(self.fields.get("use_dora"))

    @property
    def dropout(self) -> float:
        return float(self.fields.get("lora_dropout") or 0)

    @property
    def init(self) -> str:
        return init_of(self.fields.get("init_lora_weights", True)) or ""

    def rank(self, module: str) -> int:
        """r of a module's adapter."""
        return self._by_pattern("rank_pattern", module, self.fields.get("r", 8))

    def scaling(self, module: str) -> float:
        """What PEFT multiplies a module's B A by: alpha over the rank, or over its root."""
        alpha, rank = float(self._by_pattern("alpha_pattern", module, self.fields.get("lora_alpha", 8))), self.rank(module)
        return alpha / (math.sqrt(rank) if self.fields.get("use_rslora") else rank)

    def _by_pattern(self, field: str, module: str, otherwise: Any) -> Any:
        """The value of the first pattern that is the end of the module's name, as PEFT looks it up."""
        patterns = self.fields.get(field) or {}
        return next((value for key, value in patterns.items() if self.match(field, rf"(.*\.)?({key})$", module)), otherwise)

    def match(self, field: str, pattern: str, name: str, *, start: bool = False) -> Any:
        """What a regular expression finds in all of a name, or at its start. Raises UserError for a wrong or a slow one."""
        try:
            found = _compiled(pattern)
            return found.match(name, timeout=PATIENCE) if start else found.fullmatch(name, timeout=PATIENCE)
        except (re.error, regex.error, FutureWarning) as error:
            raise UserError(f"{self.path}: {field} has a wrong regular expression {pattern[:60]!r}: {error}") from None
        except TimeoutError:
            raise UserError(f"{self.path}: {field}: the regular expression {pattern[:60]!r} takes too long to match {name!r}") from None

    def targets(self, modules: Iterable[str]) -> set[str]:
        """Those modules that PEFT adapts, of all that a model has."""
        return {module for module in modules if self._targets(module)}

    def _targets(self, module: str) -> bool:
        wanted: Any = self.fields.get("target_modules")
        excluded = self.fields.get("exclude_modules")
        if excluded and self._named("exclude_modules", excluded, module):
            return False
        if wanted == "all-linear":
            return module != PATCHES
        found = self._named("target_modules", wanted, module)
        layers = self.fields.get("layers_to_transform")
        if not found or layers is None or layers == [] or module in wanted:
            return found
        number = self._layer(module)
        return number is not None and number in ([layers] if isinstance(layers, int) else layers)

    def _named(self, field: str, names: str | list[str], module: str) -> bool:
        """A text is a regular expression of a whole name; a list has ends of names."""
        if isinstance(names, str):
            return self.match(field, names, module) is not None
        return any(f".{module}".endswith(f".{name}") for name in names)

    def _layer(self, module: str) -> int | None:
        """The number of the block that a module is in."""
        names = self.fields.get("layers_pattern") or []
        patterns = [rf"(?:^|.*?\.){name}\.(?P<idx>\d+)\." for name in ([names] if isinstance(names, str) else names)]
        found = (self.match("layers_pattern", pattern, module, start=True) for pattern in patterns or [r".*?\.[^.]*\.(?P<idx>\d+)\."])
        number = next((match["idx"] for match in found if match), None)
        return None if number is None else int(number)


def read_config(folder: Path) -> PeftConfig:
    """The configuration of a folder. Raises UserError for a field that is not understood, by its name and value."""
    path = folder / CONFIG
    check_digest(path)
    fields = read_object(path, "; expected a folder that PEFT wrote", LIMIT)
    if "peft_type" not in fields:
        raise UserError(f"{path}: holds no peft_type; expected 'LORA'")
    for name in sorted(fields, key=lambda name: name != "peft_type"):
        understood, expected = FIELDS.get(name, (_off, "off: it is not known here what it changes"))
        if not understood(fields[name]):
            raise UserError(f"{path}: {name} is {_short(fields[name])}; expected {expected}")
    for name, meaningless, why in (
        ("layers_to_transform", isinstance(fields.get("target_modules"), str), "target_modules is one regular expression"),
        ("layers_pattern", isinstance(fields.get("target_modules"), str), "target_modules is one regular expression"),
        ("layers_pattern", fields.get("layers_to_transform") is None, "layers_to_transform names no block"),
    ):
        if meaningless and not _off(fields.get(name)):
            raise UserError(f"{path}: {name} is {_short(fields[name])}; expected null, since {why}")
    return PeftConfig(path, fields)


def _short(value: Any) -> str:
    text = json.dumps(value) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 60 else f"{text[:60]}..."

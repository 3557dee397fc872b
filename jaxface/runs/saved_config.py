"""A configuration as plain JSON values and back, and in what two of them differ."""

from __future__ import annotations

import dataclasses
import json
import types
import typing
from typing import Any

from jaxface.runs.config import Config


def to_dict(config: Config) -> dict[str, Any]:
    """A configuration as plain JSON values."""
    return json.loads(json.dumps(dataclasses.asdict(config)))


def from_dict(kind: Any, value: Any) -> Any:
    """A value of a type made of dataclasses, tuples, unions and plain types, from JSON."""
    if typing.get_origin(kind) is typing.Annotated:
        kind = typing.get_args(kind)[0]
    if typing.get_origin(kind) in (typing.Union, types.UnionType):
        if value is None:
            return None
        kind = next(option for option in typing.get_args(kind) if option is not type(None))
    if dataclasses.is_dataclass(kind):
        hints = typing.get_type_hints(kind, include_extras=True)
        return kind(**{name: from_dict(hints[name], item) for name, item in value.items() if name != "after"})
    if typing.get_origin(kind) is tuple:
        return tuple(value)
    return value


def differences(a: dict[str, Any], b: dict[str, Any], prefix: str = "") -> list[str]:
    """The dotted names under which two configurations differ."""
    names = []
    for key in sorted(set(a) | set(b)):
        left, right = a.get(key), b.get(key)
        if isinstance(left, dict) and isinstance(right, dict):
            names += differences(left, right, f"{prefix}{key}.")
        elif left != right:
            names.append(f"{prefix}{key}")
    return names

"""Probabilities from what heads give, and as answers put them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def digits(value: Any) -> float:
    """A share as answers give it."""
    return round(float(value), 6)


def named(classes: Sequence[str], shares: np.ndarray) -> dict[str, float]:
    """Shares by their classes' names."""
    return {name: digits(share) for name, share in zip(classes, shares, strict=True)}


def softmax(logits: Any) -> np.ndarray:
    """Softmax of logits `[..., C]`, in double precision."""
    shifted = np.asarray(logits, np.float64) - np.max(logits, axis=-1, keepdims=True, initial=-np.inf)
    exponentials = np.exp(shifted)
    return exponentials / exponentials.sum(axis=-1, keepdims=True)


def sigmoid(logits: Any) -> np.ndarray:
    """The logistic function of logits, in double precision."""
    return 0.5 * (1 + np.tanh(0.5 * np.asarray(logits, np.float64)))

"""Two images and their labels mixed: mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), within pairs of neighbours in a batch.

The batch then has "mixed": {"share": [B] float32, the part of its own image that a row keeps (at least half), "labels": the neighbour's}.
"""

from __future__ import annotations

import math
from typing import Any

import cv2
import numpy as np

from jaxface.data.tasks import known


def mix_pairs(
    images: np.ndarray, labels: dict[str, np.ndarray], rngs: list[np.random.Generator], *, mixup: float, cutmix: float
) -> dict[str, Any]:
    """Mixes rows 2 k and 2 k + 1 with each other, in place, where both carry labels of the same tasks.

    Args:
      images: uint8 [B, H, W, 3].
      labels: of each task [B, ...].
      rngs: one for each pair.
      mixup, cutmix: the parameter of the beta distribution that the share is drawn from, 0 for never; with both, each half of the time.

    Returns:
      what the batch has as "mixed".
    """
    share = np.ones(len(images), np.float32)
    other = {task: values.copy() for task, values in labels.items()}
    carried = [known(values) for values in labels.values()]
    for pair, rng in enumerate(rngs):
        a, b = 2 * pair, 2 * pair + 1
        cuts = rng.random() < 0.5 if mixup and cutmix else bool(cutmix)
        alpha = cutmix if cuts else mixup
        drawn = float(rng.beta(alpha, alpha))
        middle = rng.random(2)
        if any(values[a] != values[b] for values in carried):
            continue
        kept = (_cut if cuts else _blend)(images[a], images[b], max(drawn, 1 - drawn), middle)
        share[a] = share[b] = kept
        for values in other.values():
            values[[a, b]] = values[[b, a]]
    return {"share": share, "labels": other}


def _blend(a: np.ndarray, b: np.ndarray, share: float, _: np.ndarray) -> float:
    mixed = cv2.addWeighted(a, share, b, 1 - share, 0)
    b[:] = cv2.addWeighted(b, share, a, 1 - share, 0)
    a[:] = mixed
    return share


def _cut(a: np.ndarray, b: np.ndarray, share: float, middle: np.ndarray) -> float:
    """Swaps a box of the drawn area about a random middle, as far as it lies in the image; the share is what really stays."""
    sides = np.array(a.shape[:2])
    half = 0.5 * math.sqrt(1 - share) * sides
    top, left = np.maximum(middle * sides - half, 0).astype(int)
    bottom, right = np.minimum(middle * sides + half, sides).astype(int)
    inside = slice(top, bottom), slice(left, right)
    a[inside], b[inside] = b[inside].copy(), a[inside].copy()
    return 1 - (bottom - top) * (right - left) / sides.prod()

"""The same picture twice: found by a perceptual hash, so that no test face has been trained on."""

from __future__ import annotations

from collections.abc import Iterator

import cv2
import numpy as np

SIDE = 16
"""The hash compares neighbours in a picture of this many rows and columns."""
NEAR = 16
"""Two pictures with at most so many of 256 bits apart are one: copies of other size or compression are, two frames of one scene not."""
STEP = 6
"""Grey levels by which a neighbour must be brighter: in plain areas, compression decides about fewer."""
PLAIN = 24
"""A picture with fewer bits set is too plain to be told from others."""


def fingerprint(image: np.ndarray) -> np.ndarray:
    """A difference hash, uint8 [H, W, 3] -> uint8 [32]: which pixels of the small grey picture have a clearly brighter right neighbour."""
    grey = cv2.cvtColor(image, cv2.COLOR_RGB2GRAY)
    small = cv2.resize(grey, (SIDE + 1, SIDE), interpolation=cv2.INTER_AREA).astype(np.int16)
    return np.packbits(small[:, 1:] - small[:, :-1] > STEP)


def near_pairs(a: np.ndarray, b: np.ndarray, near: int = NEAR) -> np.ndarray:
    """Pairs of rows with at most `near` different bits: uint8 [N, 32], uint8 [M, 32] -> int [P, 2], in order.

    Two such rows agree in one of `near` + 1 pieces: only rows that share a piece are compared.
    """
    bits_a, bits_b = np.unpackbits(a, axis=1), np.unpackbits(b, axis=1)
    found = [np.zeros((0, 2), np.int64)]
    for piece in np.array_split(np.arange(8 * a.shape[1]), near + 1):
        weights = 1 << np.arange(len(piece))
        for i, j in _equal(bits_a[:, piece] @ weights, bits_b[:, piece] @ weights):
            close = (np.bitwise_count(a[i] ^ b[j]).sum(axis=1) <= near) & (np.bitwise_count(a[i]).sum(axis=1) >= PLAIN)
            found.append(np.column_stack([i[close], j[close]]))
    return np.unique(np.concatenate(found), axis=0)


def _equal(a: np.ndarray, b: np.ndarray, most: int = 1 << 20) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """The positions of equal values [N] and [M], at most about `most` pairs at a time."""
    order = np.argsort(b, kind="stable")
    first, last = (np.searchsorted(b[order], a, side=side) for side in ("left", "right"))
    counts = last - first
    cuts = np.flatnonzero(np.diff(np.cumsum(counts) // most)) + 1
    for rows in np.split(np.arange(len(a)), cuts):
        i = np.repeat(rows, counts[rows])
        offsets = np.arange(len(i)) - np.repeat(np.cumsum(counts[rows]) - counts[rows], counts[rows])
        yield i, order[np.repeat(first[rows], counts[rows]) + offsets]

"""What a run reads: batches of images, or, where the encoder is frozen and nothing augments, of features computed once."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from jaxface.data.pipeline import TRIES
from jaxface.data.sampling import make_order
from jaxface.devices import shard
from jaxface.errors import UserError
from jaxface.progress import Track
from jaxface.runs.data import Batches, Images


class Features:
    """The encoder's output for every record, computed when a split is first asked for; batches are those of `Images`, row by row.

    Args:
      images: where the records come from.
      encode: images uint8 [devices, B, H, W, 3] -> features [devices, B, D].
    """

    def __init__(self, images: Images, encode: Callable[[Any], jax.Array]) -> None:
        self.images, self.encode = images, encode
        self._splits: dict[str, dict[str, Any]] = {}
        self._unreadable: dict[str, dict[int, str]] = {}

    def split(self, name: str) -> dict[str, Any]:
        """The evaluation batches of a split put together, with `features` [N, D] in place of the images; padding left out."""
        if name not in self._splits:
            parts: list[dict[str, Any]] = []
            reasons: list[str] = []
            with Track(f"features of {name}", self.images.count(name), unit="images") as track:
                for batch in self.images.evaluation(name):
                    features = np.asarray(self.encode(shard(batch.pop("image"))))
                    reasons += batch.pop("skipped").tolist()  # not a column: one for each record that cannot be read
                    parts.append(batch | {"features": features.reshape(-1, features.shape[-1])})
                    track.advance(int(np.sum(batch["valid"])))
            count = self.images.count(name)
            self._splits[name] = jax.tree.map(lambda *arrays: np.concatenate(arrays)[:count], *parts)
            unreadable = np.flatnonzero(~self._splits[name]["valid"]).tolist()
            self._unreadable[name] = dict(zip(unreadable, reasons, strict=True))
        return self._splits[name]

    def train(self, start: int) -> Batches:
        """As `Images.train` without augmentation."""
        config, records = self.images.config, self.split("train")
        size, share = len(records["valid"]), config.batch_size // jax.process_count()
        labels = {task: records["labels"][task] for task in config.tasks}
        order = make_order(config.data.sampling, labels, size, config.seed, config.data.max_repeat)

        reasons = self._unreadable["train"]

        def index_at(position: int, skipped: list[str]) -> int:
            index = order[position]
            if not records["valid"][index]:  # the stand-in of an unreadable record: drawn as the pipeline draws it
                rng = np.random.default_rng((config.seed, 1, position))
                for _ in range(TRIES):
                    skipped.append(reasons[index])
                    index = int(rng.integers(size))
                    if records["valid"][index]:
                        return index
                raise UserError(f"{TRIES} records in a row cannot be read; the last: {skipped[-1]}")
            return index

        while True:
            first = start * config.batch_size + jax.process_index() * share
            skipped: list[str] = []
            rows = [index_at(first + k, skipped) for k in range(share)]
            batch = jax.tree.map(lambda array, rows=rows: array[rows], {**records, "labels": labels})
            yield batch | {"skipped": np.array(skipped, object)}
            start += 1

    def evaluation(self, split: str) -> Iterable[dict[str, Any]]:
        """As `Images.evaluation`, with features in the place of images."""
        records, size = self.split(split), self.images.config.batch_size // jax.process_count()
        for first in range(0, len(records["valid"]), size):
            rows = np.minimum(np.arange(first, first + size), len(records["valid"]) - 1)
            batch = jax.tree.map(lambda array, rows=rows: array[rows], records)
            batch["valid"] = batch["valid"] & (np.arange(first, first + size) < len(records["valid"]))
            yield batch | {"image": batch.pop("features")}

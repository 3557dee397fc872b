"""Many adapters behind one encoder: a batch that asks for different ones runs through the encoder once (S-LoRA, Sheng et al. 2023)."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import jax
import numpy as np

from jaxface.adapters.mixed_batch import Update, padded
from jaxface.adapters.updates import Updates, with_updates
from jaxface.data.faces import Face
from jaxface.errors import UserError
from jaxface.evaluation.trust import Caution
from jaxface.models.tree import flatten
from jaxface.prediction.adapter_folders import adapters_in
from jaxface.prediction.adapters import Adapter, Shared, run_tail
from jaxface.prediction.doubt import Doubt
from jaxface.prediction.options import FaceOptions
from jaxface.prediction.predictor import Finder, Json, Photo, face_json, pixels_of, task_answers
from jaxface.prediction.shelf import Shelf
from jaxface.ranges import Count, Place, Where, ranged
from jaxface.runs.inference import normalize_images

Piece = tuple[np.ndarray, Adapter]
"""A crop uint8 [S, S, 3], and who is asked about it."""
FEW = 8
"""Different adapters of a batch that need no program for as many as it has faces."""


Logits = list[dict[str, jax.Array]]
"""Of some rows after others, by task."""
TAILS = (32, 8, 2, 1)
"""Rows of one adapter that go through what follows the blocks at once."""


@dataclass
class Results:
    """What a batch came to: for each of its adapters the rows that are its own, and their logits."""

    parts: list[tuple[Adapter, list[int], Logits]]


@ranged(frozen=False)
class AdapterServer:
    """`AdapterServer(folder)(images, ["age-dora", "emotion-lora"])`: every face as several adapters see it.

    Attributes:
      folder: of run folders on one base, each an adapter under its own name, and of what was exported from such to PEFT; LoRA and DoRA of
        any rank on any kernels, and runs that train heads or pool alone.
      base: the base weights, if not where the runs have them.
      options: how faces are found.
      batch_size: most faces that the model sees at once; each with an adapter of its own if need be.
      memory: adapters that stay in memory; the others are read when they are asked for.
      device: adapters that stay on the device.
      caution: how sure answers have to be.

    Raises UserError for a folder without a run, or a detector that is not there.
    """

    folder: Annotated[str | Path, Place()]
    base: Where | None = None
    options: FaceOptions = field(default_factory=lambda: FaceOptions(faces="whole"))
    batch_size: Count = 32
    memory: Count = 256
    device: Count = 64
    caution: Caution = field(default_factory=Caution)

    def __post_init__(self) -> None:
        self.finder = Finder(self.options)
        folder = Path(self.folder)
        self.shared = _shared(folder, self.base)
        self.image_size = self.shared.image_size
        self._arrays, structure = flatten(self.shared.encoder)

        def trunk(arrays: Any, images: jax.Array, updates: Sequence[Mapping[str, Update]], index: jax.Array | None) -> jax.Array:
            return with_updates(structure.build(arrays), updates, index).tokens(normalize_images(images))

        self._trunk, self._take = jax.jit(trunk), jax.jit(lambda tokens, rows: tokens[rows])
        self._tails: dict[str, Any] = {}
        self._resident: OrderedDict[tuple[Adapter, int], Any] = OrderedDict()
        self.sizes = sorted({*(2**i for i in range(self.batch_size.bit_length())), self.batch_size})
        self._ready: set[tuple[str, int]] = set()
        self.shelf = Shelf(folder, self._load, self.shared.check, self.memory)

    @property
    def names(self) -> list[str]:
        """The adapters that can be asked for."""
        return self.shelf.names

    @property
    def programs(self) -> int:
        """How many programs have been compiled."""
        return sum(program._cache_size() for program in (self._trunk, self._take, *self._tails.values()))

    def about(self) -> Json:
        """What a reader of the answers needs to know."""
        return {"base": self.shared.base.fingerprint, "adapters": len(self.names), "image_size": self.image_size, **self.finder.about()}

    def find(self, image: np.ndarray) -> Photo:
        """Finds and crops the faces of an image, uint8 [H, W, 3] RGB. Any thread may call it."""
        return self.finder(image, self.image_size, framing=self.shared.framing)

    def warm_up(self) -> None:
        """Compiles every program that the adapters may need: one of each kind is read for it."""
        seen: set[str] = set()
        for name in self.names:
            kind = self.shared.kind_of(self.shelf.folder / self.shelf.source(name))
            if kind not in seen:
                seen.add(kind)
                self.shelf.get(name)

    def _load(self, name: str, folder: Path) -> Adapter:
        """Reads an adapter; the first of a kind, or of a rank, compiles its programs before anybody can ask for it."""
        adapter = self.shared.load(name, folder)
        if jax.default_backend() == "cpu":  # what is in memory is on the device: nothing is held twice
            updates, arrays = jax.device_put((_filled(adapter, size_of_rank(adapter.rank)), adapter.arrays))
            adapter = replace(adapter, updates=updates, arrays=arrays)
        if self.caution.asked:
            adapter = replace(adapter, doubt=Doubt(folder, adapter.digest, adapter.tasks, self.caution))
        key = (adapter.kind, size_of_rank(adapter.rank))
        if key not in self._ready:
            nothing = np.zeros((self.image_size, self.image_size, 3), np.uint8)
            for size in self.sizes:
                for count in self._counts(size):
                    copies = [replace(adapter, name=f"{name} {i}") for i in range(count)]
                    tokens, _ = self._tokens([(nothing, copies[i % count]) for i in range(size)], keep=False)
                for rows in TAILS:
                    if rows <= size:
                        self._answer(adapter, tokens, [0] * rows, keep=False)
            self._ready.add(key)
        return adapter

    def _counts(self, size: int) -> list[int]:
        """Of different adapters, for which there are programs."""
        return sorted({1 if size > FEW else size, min(FEW, size), size})

    def classify(self, pieces: Sequence[Piece]) -> Results:
        """Logits for at most `batch_size` crops, each from its adapter; does not wait for them."""
        tokens, rows = self._tokens(pieces, keep=True)
        return Results([(adapter, own, self._answer(adapter, tokens, own, keep=True)) for adapter, own in rows.items()])

    def _tokens(self, pieces: Sequence[Piece], *, keep: bool) -> tuple[jax.Array, dict[Adapter, list[int]]]:
        """The blocks' result [size, N, D], and which of its rows are whose."""
        rows: dict[Adapter, list[int]] = {}
        for row, (_, adapter) in enumerate(pieces):
            rows.setdefault(adapter, []).append(row)
        size = next(size for size in self.sizes if size >= len(pieces))
        count = next(count for count in self._counts(size) if count >= len(rows))
        rank = max(size_of_rank(adapter.rank) for adapter in rows)
        images = np.zeros((size, self.image_size, self.image_size, 3), np.uint8)
        numbers = np.zeros(size, np.int32)
        for number, own in enumerate(rows.values()):
            numbers[own] = number
        for row, (crop, _) in enumerate(pieces):
            images[row] = crop
        updates = [self._on_device(adapter, rank, keep)[0] for adapter in rows]
        if count == size:  # a row each: nothing is to be picked
            return self._trunk(self._arrays, images, [updates[number] for number in numbers], None), rows
        updates += updates[:1] * (count - len(updates))  # nobody's
        return self._trunk(self._arrays, images, updates, numbers), rows

    def _answer(self, adapter: Adapter, tokens: jax.Array, rows: list[int], *, keep: bool) -> Logits:
        """What an adapter makes of its rows of a batch's tokens, a few at a time: few sizes are few programs."""
        tail = self._tails.setdefault(adapter.kind, jax.jit(partial(run_tail, adapter.structure)))
        arrays, logits = self._on_device(adapter, size_of_rank(adapter.rank), keep)[1], []
        while rows:
            size = next(size for size in TAILS if size <= len(rows) or size == 1)
            logits.append(tail(arrays, self._take(tokens, np.asarray(rows[:size], np.int32))))
            rows = rows[size:]
        return logits

    def _on_device(self, adapter: Adapter, rank: int, keep: bool) -> tuple[dict[str, Update], dict[str, Any]]:
        """An adapter's updates, filled up to a rank, and its other arrays, on the device."""
        if (held := self._resident.get((adapter, rank))) is None:
            held = jax.device_put((_filled(adapter, rank), adapter.arrays))
            if keep:
                self._resident[adapter, rank] = held
                while len(self._resident) > self.device:
                    self._resident.popitem(last=False)
        elif keep:
            self._resident.move_to_end((adapter, rank))
        return held

    def answers(self, results: Results, count: int) -> list[Json]:
        """What the results of `classify` say of its first `count` pieces, each as its adapter sees it."""
        answers: list[Json] = [{}] * count
        for adapter, rows, logits in results.parts:
            joined = {task: np.concatenate([np.asarray(part[task]) for part in logits]) for task in logits[0]}
            found = task_answers(adapter.tasks, adapter.temperatures, joined, len(rows), adapter.doubt)
            for row, answer in zip(rows, found, strict=True):
                answers[row] = answer
        return answers

    def __call__(self, images: Iterable[np.ndarray | str | Path], adapters: Sequence[str]) -> list[list[Json]]:
        """Per image its faces: `box`, `score`, and `adapters` with what each of those named says.

        Raises UserError for an adapter that there is not, and for a photo that cannot be read.
        """
        if isinstance(adapters, str):
            raise UserError(f"adapters {adapters!r}: expected a list of names")
        asked = [self.shelf.get(name) for name in dict.fromkeys(adapters)]
        photos = [self.find(pixels_of(image)) for image in images]
        pieces = [(crop, adapter) for photo in photos for crop in photo.crops for adapter in asked]
        parts = (pieces[start : start + self.batch_size] for start in range(0, len(pieces), self.batch_size))
        left = iter([answer for part in parts for answer in self.answers(self.classify(part), len(part))])
        return [[adapted_face(face, {adapter.name: next(left) for adapter in asked}) for face in photo.faces] for photo in photos]


def adapted_face(face: Face, answers: Mapping[str, Json]) -> Json:
    """A face, and what each adapter says of it."""
    return {**face_json(face), "adapters": dict(answers)}


def _filled(adapter: Adapter, rank: int) -> Updates:
    return {path: padded(update, rank) for path, update in adapter.updates.items()}


def size_of_rank(rank: int) -> int:
    """The rank that updates of a rank are filled up to: 0, 8, 16, 32, ..."""
    return 0 if not rank else max(8, 1 << (rank - 1).bit_length())


def _shared(folder: Path, base: Path | None) -> Shared:
    """The encoder below the first adapter in a folder that can be opened. Raises UserError where there is none."""
    wrong: UserError | None = None
    for one in adapters_in(folder):
        try:
            return Shared.of(one, base)
        except UserError as error:
            wrong = wrong or error
    raise wrong or UserError(f"{folder}: no run in it: expected run folders, as training leaves them")

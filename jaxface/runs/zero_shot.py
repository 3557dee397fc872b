"""Zero-shot classification: each class a sentence, an image belongs to the class whose sentence is nearest (thesis, section 4.2)."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.data.tasks import Task, get_task
from jaxface.errors import UserError
from jaxface.evaluation.predictions import Predictions
from jaxface.files import alone_in, read_object, write_json
from jaxface.models import sentence_pieces
from jaxface.models.clip import Clip, unit
from jaxface.models.encoder import Encoder
from jaxface.models.precision import AUTO
from jaxface.models.tokenizer import tokenize
from jaxface.runs.costs import count, encoder_flops, text_flops
from jaxface.runs.evaluate_run import content, stands, write_scores
from jaxface.runs.predictions_file import read_predictions, write_predictions
from weights_convert.folders import files_of


@dataclass(frozen=True)
class Template:
    """How a task's classes are put in words.

    Attributes:
      sentences: each with `{}` for the class and, where wanted, `{a}` for "a" or "an"; several are averaged.
      words: one a class, instead of the classes' names.
    """

    sentences: tuple[str, ...]
    words: tuple[str, ...] = ()

    def prompts(self, task: Task) -> list[list[str]]:
        """The sentences of every class. Raises UserError if they do not tell the classes apart."""
        words = self.words or task.classes
        if len(words) != task.num_classes:
            raise UserError(f"template of {task.name}: {len(words)} words, expected {task.num_classes}: one for each of {task.classes}")
        try:
            prompts = [[sentence.format(word, a=_article(word)) for sentence in self.sentences] for word in words]
        except (KeyError, IndexError, ValueError) as error:
            raise UserError(f"template of {task.name}: {error} in {' / '.join(self.sentences)}; only {{}} and {{a}} are known") from None
        if not self.sentences or len({tuple(sentences) for sentences in prompts}) < len(words):
            raise UserError(
                f"template of {task.name}: {list(self.sentences)} makes the same prompts for two classes; put {{}} for the class"
            )
        return prompts


METHOD = "zero_shot"
"""The method that the configuration of such a run names."""

TEMPLATES: dict[str, Template] = {
    "age": Template(("A photo of a person between {} years old",)),
    "gender": Template(("A photo of a {} person",)),
    "emotion": Template(("A photo of {a} {} person",)),
}
"""The thesis's prompts, 18 for its three tasks."""


def _article(word: str) -> str:
    return "an" if word[:1].lower() in "aeiou" else "a"


def read_templates(path: str | Path) -> dict[str, Template]:
    """Templates from JSON: per task a sentence, a list of them, or `{"sentences": [...], "words": [...]}`.

    Raises UserError if the file is missing or is something else.
    """
    expected = '; expected JSON such as {"gender": "A photo of a {} person"}'
    try:
        return {get_task(task).name: _template(entry) for task, entry in read_object(Path(path), expected).items()}
    except (ValueError, TypeError) as error:
        raise UserError(f"{path}: {error}{expected}") from None


def _template(entry: Any) -> Template:
    if isinstance(entry, Mapping):
        unknown = set(entry) - {"sentences", "words"}
        if unknown:
            raise ValueError(f"unknown key {min(unknown)!r}")
        return Template(_sentences(entry.get("sentences", [])), _sentences(entry.get("words", [])))
    return Template(_sentences(entry))


def _sentences(value: Any) -> tuple[str, ...]:
    sentences = (value,) if isinstance(value, str) else tuple(value)
    if not all(isinstance(sentence, str) for sentence in sentences):
        raise TypeError(f"{value} is no list of sentences")
    return sentences


class ZeroShot(nnx.Module):
    """A vision tower with one text feature per class: it answers like a classifier, and the text tower is needed no longer."""

    def __init__(self, encoder: Encoder, texts: Mapping[str, jax.Array], logit_scale: jax.Array) -> None:
        self.encoder = encoder
        self.texts = nnx.Dict({task: nnx.Param(features) for task, features in texts.items()})
        self.logit_scale = nnx.Param(logit_scale)

    def features(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> unit features [B, D], float32."""
        return unit(self.encoder(images).astype(jnp.float32))

    def classify(self, features: jax.Array) -> dict[str, jax.Array]:
        """Unit features [B, D] -> logits [B, C] of each task: cosine similarities times the scale."""
        scale = jnp.exp(self.logit_scale[...])
        return {task: scale * features @ text[...].T for task, text in self.texts.items()}


def zero_shot(clip: Clip, tasks: Sequence[str], templates: Mapping[str, Template] = TEMPLATES, tokenizer: Path | None = None) -> ZeroShot:
    """The zero-shot classifier of the tasks; the text tower runs once, over all prompts.

    Args:
      tokenizer: the file of SigLIP's, see `jaxface.tokenize`.

    Raises UserError if a task has no template, or for a tokenizer that is not the text tower's kind.
    """
    missing = [task for task in tasks if task not in templates]
    if missing:
        raise UserError(f"no prompt template for task {missing[0]!r}: give one with --templates FILE")
    prompts = {task: templates[task].prompts(get_task(task)) for task in tasks}
    sentences = [sentence for classes in prompts.values() for group in classes for sentence in group]
    text = clip.text.config
    if text.last and tokenizer is None:
        raise UserError("its text tower reads sentence pieces: --tokenizer FILE, the tokenizer.json that belongs to these weights")
    if tokenizer is not None and not text.last:
        raise UserError(f"--tokenizer {tokenizer}: its text tower reads CLIP's tokens, which need no file: leave that out")
    ids = tokenize(sentences, text.context, tokenizer)
    if ids.max() >= text.vocabulary:
        raise UserError(f"{tokenizer}: ids up to {ids.max()}, and the text tower has {text.vocabulary}: it belongs to other weights")
    encode = jax.jit(lambda text, ids: unit(text(ids).astype(jnp.float32)))
    rows = iter(np.asarray(encode(clip.text, ids)))
    texts = {task: np.stack([np.mean([next(rows) for _ in group], 0) for group in classes]) for task, classes in prompts.items()}
    return ZeroShot(clip.visual, {task: unit(jnp.asarray(text)) for task, text in texts.items()}, clip.logit_scale[...].astype(jnp.float32))


@dataclass(frozen=True)
class ZeroShotRun:
    """A run folder for answers that nothing was trained for: the report and `jaxface.evaluate --recompute` read it as any other.

    Attributes:
      folder: the run folder.
      weights: the checkpoint with both towers.
      tasks: what is predicted.
      templates: of each task.
      sets: prepared folders.
      split: of them.
      variant: what the weights were said to be, or None.
      tokenizer: of the text tower, or None for CLIP's.
      precision: that was asked for; answers in another one are others.
    """

    folder: Path
    weights: Path
    tasks: tuple[str, ...]
    templates: Mapping[str, Template]
    sets: Sequence[str]
    split: str
    variant: str | None = None
    tokenizer: Path | None = None
    precision: str = AUTO

    def about(self) -> dict[str, Any]:
        """What the answers are answers to: the model by the content of its file and its prompts, and the records by theirs."""
        digest = hashlib.sha256()
        for path in (*files_of(self.weights), *(sentence_pieces.files_of(self.tokenizer) if self.tokenizer else ())):
            with path.open("rb") as file:
                hashlib.file_digest(file, lambda: digest)
        digest.update(f"{self.variant or ''}{self.precision if self.precision != AUTO else ''}".encode())
        digest.update(json.dumps({task: asdict(self.templates[task]) for task in self.tasks}).encode())
        return {"sets": list(self.sets), "split": self.split, "model": digest.hexdigest(), "records": content(self.sets)}

    def answers(self) -> Predictions | None:
        """Those that stand already. Raises UserError if the folder holds another kind of run."""
        config = self.folder / "config.json"
        if config.is_file() and read_object(config).get("method") != {"name": METHOD}:
            raise UserError(f"{self.folder} holds a run of another kind: choose another folder")
        if not self.weights.exists() or not stands(self.folder, self.about(), features=False):
            return None
        return read_predictions(self.folder / "predictions.parquet")

    def write(self, clip: Clip, predictions: Predictions) -> Predictions:
        """Writes configuration, answers, figures and costs, and returns the answers with what they are about."""
        predictions = replace(predictions, about=self.about())
        options = {"weights": str(self.weights), "variant": None}
        config = {"name": self.folder.name, "tasks": list(self.tasks), "method": {"name": METHOD}, "encoder": options}
        with alone_in(self.folder):
            write_json(self.folder / "config.json", config | {"data": {"sets": list(self.sets)}})
            write_json(self.folder / "summary.json", self._costs(clip))
            write_predictions(self.folder / "predictions.parquet", predictions)
            write_scores(self.folder, predictions, {})
        return predictions

    def _costs(self, clip: Clip) -> dict[str, dict[str, float]]:
        """Parameters of both towers, and GFLOPs of one image and all prompts (the thesis counts both for every image)."""
        prompts = sum(len(group) for task in self.tasks for group in self.templates[task].prompts(get_task(task)))
        parts = encoder_flops(clip.visual.config), text_flops(clip.text.config, prompts)
        linear, attention = (sum(part[kind] for part in parts) / 1e9 for kind in ("linear", "attention"))
        vision, text = count(clip.visual), count(clip.text) + 1 + (clip.logit_bias is not None)  # of the similarities
        parameters = {"trained": 0, "inference": vision + text, "vision tower": vision, "text tower": text}
        return {"parameters": parameters, "gflops": {"all products": linear + attention, "linear": linear}}

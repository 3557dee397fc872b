"""Zero-shot classification: each class a sentence, an image belongs to the class whose sentence is nearest (thesis, section 4.1)."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.data.tasks import Task, get_task
from jaxface.errors import UserError
from jaxface.models.clip import Clip, unit
from jaxface.models.encoder import Encoder
from jaxface.models.tokenizer import tokenize


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
    try:
        value = json.loads(Path(path).read_text())
        return {get_task(task).name: _template(entry) for task, entry in value.items()}
    except FileNotFoundError:
        raise UserError(f"no file of templates {path}") from None
    except (ValueError, TypeError, AttributeError) as error:
        raise UserError(f'{path}: {error}; expected JSON such as {{"gender": "A photo of a {{}} person"}}') from None


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


def zero_shot(clip: Clip, tasks: Sequence[str], templates: Mapping[str, Template] = TEMPLATES) -> ZeroShot:
    """The zero-shot classifier of the tasks; the text tower runs once, over all prompts.

    Raises UserError if a task has no template.
    """
    missing = [task for task in tasks if task not in templates]
    if missing:
        raise UserError(f"no prompt template for task {missing[0]!r}: give one with --templates FILE")
    prompts = {task: templates[task].prompts(get_task(task)) for task in tasks}
    sentences = [sentence for classes in prompts.values() for group in classes for sentence in group]
    ids = tokenize(sentences, clip.text.config.context)
    encode = jax.jit(lambda text, ids: unit(text(ids).astype(jnp.float32)))
    rows = iter(np.asarray(encode(clip.text, ids)))
    texts = {task: np.stack([np.mean([next(rows) for _ in group], 0) for group in classes]) for task, classes in prompts.items()}
    return ZeroShot(clip.visual, {task: unit(jnp.asarray(text)) for task, text in texts.items()}, clip.logit_scale[...].astype(jnp.float32))

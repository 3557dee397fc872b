"""Heads: from an encoder's features to the logits of each task."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from jaxface.errors import UserError
from jaxface.kernels.dropout import keep_only
from jaxface.kernels.gelu import gelu
from jaxface.kernels.normalize import at_least_float32
from jaxface.models.encoder import Encoder
from jaxface.models.layers import Linear
from jaxface.models.tree import arrays_of, flatten, shallow_copy
from jaxface.registry import Registry


class Training(NamedTuple):
    """What a forward pass needs to know while training.

    Attributes:
      key: randomness of dropout on this device at this step.
      axis_name: the device axis that batch statistics are averaged over, or None on one device.
    """

    key: jax.Array
    axis_name: str | None = None


class BatchNorm(nnx.Module):
    """Batch normalisation of features [B, D], as torch's BatchNorm1d: epsilon 1e-5, momentum 0.1, unbiased running variance."""

    def __init__(self, width: int) -> None:
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))
        self.mean = nnx.BatchStat(jnp.zeros(width))
        self.variance = nnx.BatchStat(jnp.ones(width))

    def __call__(self, x: jax.Array, training: Training | None) -> jax.Array:
        """[B, D] -> [B, D]; while training over the batch of all devices, else with the running statistics.

        Raises UserError, as torch does, for a batch of one image while training: it is its own mean.
        """
        x32 = x.astype(at_least_float32(x.dtype))
        if training is None:
            mean, variance = self.mean[...], self.variance[...]
        else:
            mean, variance = self._batch_statistics(x32, training.axis_name)
        y = (x32 - mean) * jax.lax.rsqrt(variance + 1e-5) * self.scale[...] + self.bias[...]
        return y.astype(x.dtype)

    def _batch_statistics(self, x: jax.Array, axis_name: str | None) -> tuple[jax.Array, jax.Array]:
        average = (lambda v: v) if axis_name is None else lambda v: jax.lax.pmean(v, axis_name)
        count = x.shape[0] * (1 if axis_name is None else jax.lax.axis_size(axis_name))
        if count < 2:
            raise UserError("batch norm of one image: expected at least 2 at a time while training, or heads with batch_norm=False")
        mean = average(x.mean(0))
        variance = average(jnp.square(x - mean).mean(0))
        self.mean[...] = 0.9 * self.mean[...] + 0.1 * jax.lax.stop_gradient(mean)
        self.variance[...] = 0.9 * self.variance[...] + 0.1 * jax.lax.stop_gradient(variance) * count / (count - 1)
        return mean, variance


class Output(NamedTuple):
    """What a head ends in.

    Attributes:
      layer: (width, classes, rngs) -> the last layer.
      to_logits: the layer's output [B, ...] -> logits [B, C].
    """

    layer: Callable[[int, int, nnx.Rngs], nnx.Module]
    to_logits: Callable[[jax.Array], jax.Array]


def head_layer(inputs: int, outputs: int, rngs: nnx.Rngs) -> Linear:
    """A linear layer that starts as torch's: kernel and bias uniform within 1 / sqrt(inputs), so that first answers are near even."""
    linear, most = Linear(inputs, outputs, start=lambda key, shape: np.empty(shape), rngs=rngs), inputs**-0.5  # nothing is drawn in vain
    linear.kernel = nnx.Param(jax.random.uniform(rngs.params(), (inputs, outputs), minval=-most, maxval=most))
    linear.bias = nnx.Param(jax.random.uniform(rngs.params(), (outputs,), minval=-most, maxval=most))
    return linear


def rank_layer(width: int, num_classes: int, rngs: nnx.Rngs) -> nnx.Module:
    """CORAL's: one direction that all thresholds share and a bias for each, falling from 1 (Cao et al. 2020)."""
    linear = head_layer(width, 1, rngs)
    linear.bias = nnx.Param(jnp.arange(num_classes - 1, 0, -1) / (num_classes - 1))
    return linear


def ranks_to_logits(ranks: jax.Array) -> jax.Array:
    """Logits [B, C - 1] of "later than class k" -> log-probabilities [B, C] of the classes.

    The largest is CORAL's answer, the number of thresholds passed, even where another class is a little likelier by itself.
    """
    later = jax.nn.sigmoid(ranks)
    edge = jnp.ones_like(later[:, :1])
    p = jnp.concatenate([edge, later], 1) - jnp.concatenate([later, 0 * edge], 1)
    logits = jnp.log(jnp.maximum(p, 1e-7))
    answer = jnp.arange(p.shape[1]) == jnp.sum(ranks > 0, -1, keepdims=True)
    return jnp.where(answer, jnp.maximum(logits, logits.max(-1, keepdims=True) + 1e-3), logits)


OUTPUTS: dict[str, Output] = {
    "classes": Output(head_layer, lambda logits: logits),
    "ranks": Output(rank_layer, ranks_to_logits),
    **dict.fromkeys(("labels", "number"), Output(head_layer, lambda values: values)),
}
"""What heads end in, by name: logits of classes, thresholds of classes in an order, logits of several labels, one standardised number."""


class Head(nnx.Module):
    """One task's classifier: [batch norm,] dropout, [linear, GELU,] linear (thesis, sections 3.3 and 3.4)."""

    def __init__(
        self,
        width: int,
        num_classes: int,
        *,
        deep: bool = True,
        batch_norm: bool = True,
        dropout: float = 0.1,
        output: str = "classes",
        rngs: nnx.Rngs,
    ) -> None:
        self.dropout, self.output = dropout, output
        self.norm = BatchNorm(width) if batch_norm else None
        self.hidden = head_layer(width, width, rngs) if deep else None
        self.out = OUTPUTS[output].layer(width, num_classes, rngs)

    def __call__(self, x: jax.Array, training: Training | None = None) -> jax.Array:
        """Features [B, D] -> logits [B, C] in at least float32; while training the last layer's output as it is."""
        if self.norm is not None:
            x = self.norm(x, training)
        if training is not None and self.dropout:
            x = keep_only(x, keep_mask(training, 1 - self.dropout, x.shape), self.dropout)
        if self.hidden is not None:
            x = gelu(self.hidden(x))
        outputs = self.out(x)
        outputs = outputs.astype(at_least_float32(outputs.dtype))
        return outputs if training is not None else self.to_logits(outputs)

    def to_logits(self, outputs: jax.Array) -> jax.Array:
        """The last layer's output [B, ...] -> logits [B, C]."""
        return OUTPUTS[self.output].to_logits(outputs)


def keep_mask(training: Training, share: float, shape: tuple[int, ...]) -> jax.Array:
    """Which values [B, D] dropout keeps on this device: drawn for the whole batch, so that the number of devices changes nothing."""
    if training.axis_name is None:
        return jax.random.bernoulli(training.key, share, shape)
    rows, devices = shape[0], jax.lax.axis_size(training.axis_name)
    whole = jax.random.bernoulli(training.key, share, (rows * devices, shape[1]))
    return jax.lax.dynamic_slice_in_dim(whole, rows * jax.lax.axis_index(training.axis_name), rows)


TOKENS: Registry[Callable[[Any, int], Any]] = Registry(
    "choice of tokens",
    {
        "patches": lambda tokens, first: tokens[..., first:, :].mean(-2),
        "class": lambda tokens, first: tokens[..., 0, :],
        "both": lambda tokens, first: jnp.concatenate([tokens[..., 0, :], tokens[..., first:, :].mean(-2)], -1),
        "all": lambda tokens, first: tokens.mean(-2),
    },
)
"""What heads read of an encoder without a pool: (tokens [..., N, D], how many come before the patches) -> [..., D];
"both" is the class token and the patches' mean behind it, [..., 2 D], as DINOv2 and DINOv3 are probed.

The mean over the patches is what the literature classifies by (He et al. 2022, "Masked Autoencoders", appendix A; timm's "avg")."""


class Classifier(nnx.Module):
    """An encoder with one head per task.

    Attributes:
      tokens: what the heads read of an encoder without a pool, an entry of `TOKENS`.
    """

    def __init__(
        self,
        encoder: Encoder,
        classes: Mapping[str, int],
        *,
        deep: bool = True,
        batch_norm: bool = True,
        dropout: float = 0.1,
        outputs: Mapping[str, str] | None = None,
        tokens: str = "patches",
        rngs: nnx.Rngs,
    ) -> None:
        self.encoder, self.tokens = encoder, tokens
        has_class = getattr(encoder.config, "class_token", False)
        self.before = getattr(encoder.config, "prefix", int(has_class))
        if tokens in ("class", "both") and not (has_class and self.reads_tokens):
            has = "has no class token" if self.reads_tokens else "has a pool, whose feature they read"
            raise UserError(f"head.tokens {tokens}: the heads' encoder {has}: leave it out")
        width = encoder.config.features
        width = self.reduced(np.zeros((self.before + 1, width), np.float32)).shape[-1] if self.reads_tokens else width
        options: dict[str, Any] = {"deep": deep, "batch_norm": batch_norm, "dropout": dropout, "rngs": rngs}
        kinds = dict.fromkeys(classes, "classes") | dict(outputs or {})
        self.heads = nnx.Dict({task: Head(width, count, output=kinds[task], **options) for task, count in classes.items()})

    @property
    def reads_tokens(self) -> bool:
        """Whether its encoder gives all tokens, not one feature."""
        return self.encoder.pool is None and getattr(self.encoder.config, "readout", "tokens") == "tokens"

    def features(self, images: jax.Array) -> jax.Array:
        """[B, H, W, 3] in -1..1 -> [B, D], or [T, B, D] where the encoder has a feature per task."""
        return self.reduced(self.encoder(images))

    def reduced(self, features: Any) -> Any:
        """What the encoder gives -> a feature of each image: of all tokens what `TOKENS` makes of them."""
        return TOKENS.get(self.tokens)(features, self.before) if self.reads_tokens else features

    def classify(self, features: jax.Array, training: Training | None = None) -> dict[str, jax.Array]:
        """Features [B, D] (or [T, B, D], one per task in alphabetical order) -> logits [B, C] of each task.

        While training: what the heads' last layers say, as it is.
        """
        logits = {}
        for index, task in enumerate(sorted(self.heads)):
            own = None if training is None else training._replace(key=jax.random.fold_in(training.key, index))
            logits[task] = self.heads[task](features[index] if features.ndim == 3 else features, own)
        return logits

    def __call__(self, images: jax.Array, training: Training | None = None) -> dict[str, jax.Array]:
        """[B, H, W, 3] in -1..1 -> logits [B, C] of each task."""
        return self.classify(self.features(images), training)


TORCH_NAMES = (
    (r"\.kernel$", ".weight"),
    (r"norm\.scale$", "norm.weight"),
    (r"norm\.mean$", "norm.running_mean"),
    (r"norm\.variance$", "norm.running_var"),
)
"""From our names of a head's arrays to torch's."""


def torch_heads(model: Classifier) -> dict[str, np.ndarray]:
    """The heads' arrays with torch's names and orientation: `age.hidden.weight` [out, in], ..."""
    return {_torch_name(name): _turned(name, np.asarray(leaf)) for name, leaf in arrays_of(model.heads).items()}


def with_torch_heads(model: Classifier, tensors: Mapping[str, np.ndarray]) -> Classifier:
    """The model with heads of `torch_heads`. Raises UserError where names or shapes are others than its own."""
    arrays, structure = flatten(model.heads)
    ours = {_torch_name(name): name for name in arrays}
    foreign = sorted(ours.keys() ^ tensors.keys())
    if foreign:
        raise UserError(f"{foreign[0]} is {'not among the tensors' if foreign[0] in ours else 'a tensor of no head'}")
    found = {name: _turned(name, np.asarray(tensors[theirs], np.float32)) for theirs, name in ours.items()}
    for theirs, name in ours.items():
        if found[name].shape != arrays[name].shape:
            raise UserError(f"{theirs}: shape {tensors[theirs].shape}, expected {_turned(name, np.empty(arrays[name].shape)).shape}")
    model = shallow_copy(model)
    model.heads = structure.build(found)
    return model


def _torch_name(name: str) -> str:
    name = name.removeprefix("_mapping.").replace("heads.", "")
    for pattern, replacement in TORCH_NAMES:
        name = re.sub(pattern, replacement, name)
    return name


def _turned(name: str, array: np.ndarray) -> np.ndarray:
    return array.T if name.endswith(".kernel") else array

"""Two methods from outside: BitFit, which trains parameters that are there, and VeRA, which puts another object where a kernel stood.

python examples/bitfit_and_vera.py
python -m jaxface.train --import examples/bitfit_and_vera.py --method.name vera --method.options.rank 256 ...

Nothing in jaxface knows of either. Run as a script it trains both for a few steps on drawn faces and merges VeRA.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxface
from jaxface.adapters.adapt import adapt_with_groups
from jaxface.adapters.methods import Group, group_parameters, linears, register_method
from jaxface.adapters.options import AdapterOptions
from jaxface.data.synthetic import draw_face
from jaxface.kernels.matmul import product
from jaxface.models.encoder import Encoder, normalize_images, random_encoder
from jaxface.models.heads import Classifier, Training
from jaxface.models.tree import flatten
from jaxface.models.variants import get_variant


@register_method("bitfit")
def bitfit(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """BitFit: the biases (Ben Zaken et al. 2022)."""
    return [Group(r"^pool\..*\.bias$", rate="pool"), Group(r"\.bias$", rate="backbone")]


def shared_projections(inputs: int, outputs: int, rank: int) -> tuple[jax.Array, jax.Array]:
    """A [in, r] and B [r, out], the same for every layer of that shape: drawn anew from a seed wherever they are needed, never kept."""
    a, b = jax.random.split(jax.random.key(inputs * outputs))
    draw = nnx.initializers.kaiming_uniform()
    return draw(a, (inputs, rank)), draw(b, (rank, outputs))


class Vera(nnx.Module):
    """A frozen kernel W [in, out] with W + A diag(d) B diag(b), A and B random and frozen (VeRA, Kopiczko et al. 2024, eq. 2).

    Attributes:
      base: [..., in, out], frozen; blocks are stacked along axes in front.
      d: [..., r], 0.1 at first.
      b: [..., out], zero at first, so that the kernel starts as W.
    """

    def __init__(self, base: jax.Array, rank: int) -> None:
        *front, _, outputs = base.shape
        self.base = nnx.Param(base)
        self.d = nnx.Param(jnp.full((*front, rank), 0.1, jnp.float32))
        self.b = nnx.Param(jnp.zeros((*front, outputs)))

    def _projections(self) -> tuple[jax.Array, jax.Array]:
        return shared_projections(*self.base.shape[-2:], self.d.shape[-1])

    def __rmatmul__(self, x: jax.Array) -> jax.Array:
        """x [..., in] @ self -> [..., out]"""
        a, b = (p.astype(x.dtype) for p in self._projections())
        update = product(product(x, a) * self.d[...].astype(x.dtype), b) * self.b[...].astype(x.dtype)
        return product(x, self.base) + update

    def merge(self) -> jax.Array:
        """The plain kernel [..., in, out] that does the same."""
        a, b = self._projections()
        update = (a * self.d[...][..., None, :]) @ b * self.b[...][..., None, :]
        return (self.base[...] + update).astype(self.base.dtype)


@register_method("vera")
def vera(encoder: Encoder, options: AdapterOptions, rngs: nnx.Rngs) -> Sequence[Group]:
    """VeRA on every linear of the blocks."""
    for stage in encoder.stages:
        for _, linear in linears(stage):
            linear.kernel = Vera(linear.kernel[...], options.rank)
    return [Group(r"\.kernel\.[db]$", rate="backbone")]


def fit(method: str, images: np.ndarray, labels: np.ndarray, *, steps: int, rank: int = 64) -> tuple[Classifier, int, list[float]]:
    """A classifier of gender trained by the method; how many of the encoder's parameters train; the loss of each step."""
    encoder, groups = adapt_with_groups(random_encoder(get_variant("PE-Mini-10-60"), 0), method, AdapterOptions(rank=rank), nnx.Rngs(0))
    arrays, structure = flatten(Classifier(encoder, {"gender": 2}, dropout=0.0, batch_norm=False, rngs=nnx.Rngs(0)))
    trained = {name: arrays[name] for name in group_parameters(arrays, groups)}
    frozen = {name: leaf for name, leaf in arrays.items() if name not in trained}
    adamw = optax.adamw(3e-3)

    @jax.jit
    def step(trained: dict[str, jax.Array], moments: Any, key: jax.Array) -> tuple[dict[str, jax.Array], Any, jax.Array]:
        def loss(trained: dict[str, jax.Array]) -> jax.Array:
            logits = structure.build(frozen, trained)(normalize_images(images), Training(key))["gender"]
            return optax.softmax_cross_entropy_with_integer_labels(logits, labels).mean()

        value, gradients = jax.value_and_grad(loss)(trained)
        updates, moments = adamw.update(gradients, moments, trained)
        return optax.apply_updates(trained, updates), moments, value

    moments, losses = adamw.init(trained), []
    for number in range(steps):
        trained, moments, value = step(trained, moments, jax.random.key(number))
        losses.append(float(value))
    count = sum(leaf.size for name, leaf in trained.items() if name.startswith("encoder."))
    return structure.build(frozen, trained), count, losses


def main(steps: int = 20, count: int = 32) -> dict[str, Classifier]:
    """Trains both methods on the same few drawn faces, and merges VeRA."""
    faces = [draw_face(seed=0, index=index) for index in range(count)]
    images, labels = np.stack([face.image for face in faces]), np.array([face.labels["gender"] for face in faces])
    models = {}
    for method in ("bitfit", "vera"):
        models[method], trains, losses = fit(method, images, labels, steps=steps)
        print(f"{method}: {trains:,} parameters of the encoder train; loss {losses[0]:.3f} -> {losses[-1]:.3f}")
    encode = jax.jit(lambda encoder: encoder(normalize_images(images)))
    features, merged = encode(models["vera"].encoder), encode(jaxface.merge(models["vera"].encoder))
    print(f"merged VeRA differs by {jnp.abs(merged - features).max() / jnp.abs(features).max():.1e} of the largest feature")
    return models


if __name__ == "__main__":
    main()

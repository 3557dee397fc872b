"""A training loop of one's own: Flax NNX and Optax, nothing of `jaxface.training`.

python examples/own_loop.py

DoRA on drawn faces, with an evaluation at the end. The encoder starts from random numbers here and is of little use; with a checkpoint it
is `jaxface.load_encoder("PE-Core-L14-336.pt")`, and everything else stays.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import nnx

import jaxface
from jaxface.adapters.low_rank import Adapter
from jaxface.data.augment import Augment
from jaxface.data.pipeline import eval_batches, train_batches
from jaxface.data.preparation import prepare
from jaxface.data.synthetic import DrawnSet
from jaxface.data.tasks import get_task
from jaxface.models.encoder import normalize_images, random_encoder
from jaxface.models.heads import Classifier, Training
from jaxface.models.variants import get_variant
from jaxface.objectives.losses import get_loss, masked_sum

TASKS = ("age", "gender", "emotion")
TRAINED = nnx.All(nnx.Param, nnx.Any(Adapter, nnx.PathContains("heads")))
"""What gradients are asked for: what adapters add, and the heads."""


def total_loss(model: Classifier, images: jax.Array, labels: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """The sum of the tasks' mean cross-entropies over the images [B, H, W, 3] that carry the label."""
    total = jnp.zeros(())
    for task, logits in model(normalize_images(images), Training(key)).items():
        count = jnp.sum(labels[task] >= 0)
        total += masked_sum(get_loss("cross_entropy"), logits, labels[task]) / jnp.maximum(count, 1)
    return total


@nnx.jit
def train_step(model: Classifier, optimizer: nnx.Optimizer, images: jax.Array, labels: dict[str, jax.Array], key: jax.Array) -> jax.Array:
    """Updates the model and the optimizer in place; the loss before that."""
    loss, gradients = nnx.value_and_grad(total_loss, argnums=nnx.DiffState(0, TRAINED))(model, images, labels, key)
    optimizer.update(model, gradients)
    return loss


@nnx.jit
def answers(model: Classifier, images: jax.Array) -> dict[str, jax.Array]:
    """The likeliest class [B] of each task."""
    return {task: logits.argmax(-1) for task, logits in model(normalize_images(images)).items()}


def accuracy(model: Classifier, folder: str, batch_size: int) -> dict[str, float]:
    """The share of right answers on the test split."""
    right: dict[str, list[np.ndarray]] = {task: [] for task in TASKS}
    for batch in eval_batches([folder], "test", TASKS, image_size=60, batch_size=batch_size):
        for task, found in answers(model, batch["image"]).items():
            counted = batch["valid"] & (batch["labels"][task] >= 0)
            right[task].append((np.asarray(found) == batch["labels"][task])[counted])
    return {task: float(np.concatenate(parts).mean()) for task, parts in right.items()}


def train(folder: str, *, steps: int, batch_size: int = 32, rank: int = 16) -> tuple[Classifier, list[float]]:
    """The model after so many steps, and the loss of each."""
    encoder = jaxface.adapt(random_encoder(get_variant("PE-Mini-10-60"), seed=0), "dora", rank=rank)
    model = Classifier(encoder, {task: get_task(task).num_classes for task in TASKS}, rngs=nnx.Rngs(0))
    optimizer = nnx.Optimizer(model, optax.adamw(optax.warmup_cosine_decay_schedule(0, 2e-3, steps // 10 + 1, steps + 1)), wrt=TRAINED)
    batches = train_batches([folder], TASKS, image_size=60, batch_size=batch_size, seed=0, augment=Augment())
    losses = []
    for number in range(steps):
        batch = next(batches)
        losses.append(float(train_step(model, optimizer, batch["image"], batch["labels"], jax.random.key(number))))
        if number % 20 == 0:
            print(f"step {number}: loss {losses[-1]:.3f}")
    return model, losses


def main(steps: int = 200, count: int = 2000) -> tuple[list[float], dict[str, float]]:
    """Draws faces, trains, and says how well it went."""
    with tempfile.TemporaryDirectory() as folder:
        drawn = Path(folder) / "drawn"
        prepare("synthetic", Path("paint"), drawn, options=DrawnSet(count=count, test_count=count // 5))
        model, losses = train(str(drawn), steps=steps)
        result = accuracy(model, str(drawn), 32)
    print(", ".join(f"{task} {100 * share:.1f} %" for task, share in result.items()))
    return losses, result


if __name__ == "__main__":
    main()

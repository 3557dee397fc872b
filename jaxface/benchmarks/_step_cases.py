"""One training step, or forward pass, of each kind: ours, and the one that timm and PEFT users have."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, cast

import numpy as np

from jaxface.data.tasks import AGE, EMOTION, GENDER
from jaxface.models.precision import AUTO, precision_of
from jaxface.models.variants import VARIANTS, get_variant
from weights_convert.names import timm_name

TASKS = (AGE, EMOTION, GENDER)
TIMM_NAMES = {variant: name for variant in VARIANTS if (name := timm_name(variant))}
"""Of the variants that timm has, too."""

CACHED = "_cached"
"""Behind a case's name: the encoder's output is at hand, as after LP's first epoch."""


class Shape(NamedTuple):
    """What a case is measured at.

    Attributes:
      variant: the encoder.
      batch_size: images of a step.
      rank: of the adapters.
      threads: of the reference.
      remat: what a block of ours keeps, a policy of `jaxface.models.blocks.REMAT`.
      compile: whether torch.compile compiles the reference.
      precision: of ours, an entry of `jaxface.models.precision.PRECISIONS`, or what suits the device.
    """

    variant: str
    batch_size: int
    rank: int
    threads: int
    remat: str = "products"
    compile: bool = False
    precision: str = AUTO


def random_batch(shape: Shape) -> dict[str, Any]:
    """Images uint8 [B, S, S, 3] and labels [B] of each task, a third of them missing."""
    rng = np.random.default_rng(0)
    size = get_variant(shape.variant).image_size
    labels = {task.name: rng.integers(0, task.num_classes, shape.batch_size) for task in TASKS}
    missing = {name: np.where(rng.random(shape.batch_size) < 1 / 3, -1, values) for name, values in labels.items()}
    return {"image": rng.integers(0, 256, (shape.batch_size, size, size, 3), np.uint8), "labels": missing}


def _features_of(batch: dict[str, Any], shape: Shape) -> dict[str, Any]:
    """The batch with features [B, D] in the place of the images, as a frozen encoder leaves them."""
    width = get_variant(shape.variant).features
    return {"features": np.random.default_rng(0).normal(size=(shape.batch_size, width)).astype(np.float32), "labels": batch["labels"]}


def our_case(name: str, shape: Shape) -> Callable[[], Any]:
    """A function that runs one step of a method (or the forward pass) and returns when it has ended."""
    import jax

    from jaxface.models.encoder import normalize_images, random_encoder

    batch = random_batch(shape)
    if name != "forward":
        return _our_step(name.removesuffix(CACHED), shape, _features_of(batch, shape) if name.endswith(CACHED) else batch)
    encoder = random_encoder(get_variant(shape.variant), 0)
    encoder.dtype, encoder.residual = precision_of(shape.precision)
    encoder = jax.tree.map(lambda leaf: leaf.astype(encoder.dtype) if leaf.ndim > 2 else leaf, encoder)  # as a run holds it
    images = jax.device_put(batch["image"])
    forward = jax.jit(lambda encoder, images: encoder(normalize_images(images)))
    return lambda: jax.block_until_ready(forward(encoder, images))


def _our_step(name: str, shape: Shape, batch: dict[str, Any]) -> Callable[[], Any]:
    import jax

    from jaxface.adapters.methods import options_for
    from jaxface.adapters.options import AdapterOptions
    from jaxface.devices import replicate, shard
    from jaxface.objectives.balancing import get_balancer
    from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
    from jaxface.runs.model import make_parts
    from jaxface.training.optimizer import make_optimizer
    from jaxface.training.step import make_step, start_state

    config = Config(
        encoder=EncoderOptions(weights=RANDOM, variant=shape.variant, remat=cast(Any, shape.remat), precision=shape.precision),
        method=MethodOptions(name, options_for(name, AdapterOptions(rank=shape.rank))),
        tasks=tuple(task.name for task in TASKS),
    )
    parts = make_parts(config)
    balancer, optimizer = get_balancer("uw"), make_optimizer(config.optimizer, parts.groups, 100)
    step = make_step(parts.structure, config.tasks, balancer, optimizer)
    held = [replicate(start_state(parts.trained, parts.statistics, config.tasks, balancer, optimizer))]
    frozen, data = replicate(parts.frozen), jax.device_put(shard(batch))
    del parts

    def run() -> Any:
        state, metrics = step(held.pop(), frozen, data)
        held.append(state)
        return jax.block_until_ready(metrics["loss"])

    return run


def place_of(torch: Any) -> str:
    """Where PyTorch computes: on a GPU if it sees one."""
    return "cuda" if torch.cuda.is_available() else "cpu"


def half_precision(torch: Any) -> Any:
    """On a GPU bfloat16 where PyTorch's autocast has it, as its users train; on a CPU float32, as ours."""
    return torch.autocast("cuda", torch.bfloat16, enabled=torch.cuda.is_available())


def wait(torch: Any) -> None:
    """Until a GPU has done what it was told."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def reference_case(name: str, shape: Shape) -> Callable[[], Any]:
    """The same step in PyTorch: timm's encoder, PEFT's adapters, the same heads, cross-entropy and AdamW, gradients as usual.

    Raises KeyError for what PEFT does not have.
    """
    from jaxface.originals.reference import adaptable, import_torch

    torch, timm, _ = import_torch("timm", "peft")
    torch.set_num_threads(shape.threads)
    torch.manual_seed(0)
    output = get_variant(shape.variant).output
    encoder = adaptable(timm.create_model(TIMM_NAMES[shape.variant], pretrained=False, num_classes=output or 0))
    batch = random_batch(shape)
    place = place_of(torch)
    encoder = encoder.to(place)
    images = (torch.from_numpy(batch["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous().to(place)
    if name == "forward":
        encoder.eval()
        forward = torch.compile(encoder) if shape.compile else encoder

        @torch.no_grad()
        def run() -> Any:
            with half_precision(torch):
                result = forward(images)
            wait(torch)
            return result

        return run
    from jaxface.originals.torch_training import Model, adapted

    model = Model(adapted(encoder, name, shape.rank), get_variant(shape.variant).features, {task.name: task.num_classes for task in TASKS})
    return _reference_step(torch, model, images, batch["labels"], shape)


def _reference_step(torch: Any, model: Any, images: Any, labels: dict[str, np.ndarray], shape: Shape) -> Callable[[], Any]:
    place = place_of(torch)
    model = model.train().to(place)
    optimizer = torch.optim.AdamW([p for p in model.parameters() if p.requires_grad], lr=1e-5, weight_decay=0.01)
    targets = {task: torch.from_numpy(values).to(place) for task, values in labels.items()}
    loss_of = torch.compile(model) if shape.compile else model

    def run() -> Any:
        optimizer.zero_grad(set_to_none=True)
        with half_precision(torch):
            loss = loss_of(images, targets)
        loss.backward()
        optimizer.step()
        return loss.item()

    return run


REFERENCES: dict[str, Callable[[str, Shape], Callable[[], Any]]] = {"torch": reference_case}
"""Whose step ours is compared with; another rival is another entry."""
REFERENCE_CASES = ("forward", "full", "lp", "ap", "ft4", "lora", "dora")
CASES = (*REFERENCE_CASES, "mtlora", "lp" + CACHED)

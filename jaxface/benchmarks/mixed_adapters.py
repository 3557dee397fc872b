"""python -m jaxface.bench adapters: a batch whose samples use different adapters, beside the same batch with one adapter and with none."""

from __future__ import annotations

from typing import Annotated, Literal

import jax
import jax.numpy as jnp
from flax import nnx
from rich.console import Console
from rich.table import Table

from jaxface.adapters.adapt import adapt, merge
from jaxface.adapters.low_rank import UpProjection
from jaxface.adapters.mixed_batch import stack_adapters
from jaxface.adapters.options import Rank
from jaxface.benchmarks._options import Timed, print_json
from jaxface.cli import parse
from jaxface.models.encoder import Encoder
from jaxface.models.variants import get_variant
from jaxface.ranges import Range, Rounds, ranged
from jaxface.timing import interleaved, medians


@ranged()
class Options(Timed):
    """Times the forward pass of a batch with several adapters on one base.

    Attributes:
      batch_size: images; sample i uses adapter i modulo their number.
      adapters: how many are loaded.
      rank: of each.
      method: lora or dora.
    """

    adapters: Annotated[int, Range(1, 4096)] = 8
    rank: Rank = 64
    method: Literal["lora", "dora"] = "dora"
    rounds: Rounds = 9


def random_adapter(encoder: Encoder, method: str, rank: int, seed: int) -> Encoder:
    """An adapted copy whose update is not zero."""
    adapted = adapt(encoder, method, seed=seed, rank=rank)
    keys = iter(jax.random.split(jax.random.key(seed), 100))
    for _, module in nnx.iter_graph(adapted):
        if isinstance(module, UpProjection):
            module[...] = 0.01 * jax.random.normal(next(keys), module.shape)
    return adapted


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench adapters")
    config = get_variant(options.variant)
    base = Encoder(config, rngs=nnx.Rngs(0))
    names = [f"adapter {i}" for i in range(options.adapters)]
    held = stack_adapters({name: random_adapter(base, options.method, options.rank, i) for i, name in enumerate(names)})
    images = jax.random.uniform(jax.random.key(0), (options.batch_size, config.image_size, config.image_size, 3), minval=-1)
    index = jnp.arange(options.batch_size) % options.adapters
    run = jax.jit(lambda encoder, images: encoder(images))
    encoders = {"no adapter": base, "one": held.only(names[0]), "one, merged": merge(held.only(names[0]))}
    encoders |= {"one, picked": held.pick_numbers(0 * index), f"{options.adapters} different": held.pick_numbers(index)}
    seconds = medians(interleaved({name: lambda e=encoder: run(e, images) for name, encoder in encoders.items()}, options.rounds))
    alone = jnp.stack([run(held.only(names[int(i)]), images[k : k + 1])[0] for k, i in enumerate(index)])
    error = jnp.abs(run(held.pick_numbers(index), images) - alone).max() / jnp.abs(alone).max()
    if options.json:
        print_json({"case": name, "seconds": value, "ratio_to_one": value / seconds["one"]} for name, value in seconds.items())
        print_json([{"case": "error against each alone", "relative": float(error)}])
        return
    table = Table("adapters", "s", "of one adapter", title=f"{options.variant}, {options.method}, batch {options.batch_size}")
    for name, value in seconds.items():
        table.add_row(name, f"{value:.3f}", f"{value / seconds['one']:.2f}")
    Console().print(table)
    print(f"largest difference from running each sample alone, relative: {float(error):.1e}")

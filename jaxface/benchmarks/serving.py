"""python -m jaxface.bench serve: throughput and latency of many adapters behind one encoder, beside one and beside merged models."""

from __future__ import annotations

import json
import os
import tempfile
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface.adapters.options import AdapterOptions, Rank
from jaxface.cli import parse
from jaxface.devices import replicate
from jaxface.files import write_json
from jaxface.models.tree import flatten
from jaxface.models.variants import VARIANTS
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.batching import Batcher
from jaxface.ranges import Count, Items, Known, Range, ranged
from jaxface.runs.base import base_info
from jaxface.runs.best import save_best
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
from jaxface.runs.inference import make_predict
from jaxface.runs.model import load_base, load_trained, make_parts
from jaxface.runs.saved_config import to_dict

TASKS = ("age", "gender", "emotion")


@ranged()
class Options:
    """Times a server without its HTTP part: clients that each ask for a face by one adapter, and ask again once they are answered.

    Attributes:
      variant: the encoder.
      batch_size: faces of a batch at most.
      adapters: how many there are on disk, a case each; the first is what the others are compared with.
      mix: which are asked for: each as often, or by Zipf's law, the k-th 1/k as often as the first.
      rank: of each.
      method: of each.
      batches: that count, after those that fill the memory.
      memory: adapters that stay in memory.
      merged: also a merged model for each adapter in place of the shared encoder, switched from face to face.
      json: print one line of JSON a case.
    """

    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-B16-224"
    batch_size: Count = 32
    adapters: Annotated[tuple[Annotated[int, Range(1, 100_000)], ...], Items(least=1)] = (1, 8, 100)
    mix: Literal["uniform", "zipf"] = "uniform"
    rank: Rank = 16
    method: Literal["lora", "dora"] = "dora"
    batches: Annotated[int, Range(1, 100_000)] = 4
    memory: Count = 256
    merged: bool = False
    json: bool = False


def write_adapters(options: Options, folder: Path, count: int) -> None:
    """Run folders with a random adapter each, on random base weights; the files of all but the first few are links."""
    chosen = AdapterOptions(rank=options.rank)
    config = Config(name="run", tasks=TASKS, encoder=EncoderOptions(RANDOM, options.variant), method=MethodOptions(options.method, chosen))
    base = load_base(config)
    parts = make_parts(config, base)
    for number in range(count):
        run = folder / f"a{number:05}"
        if number < 8:
            random = np.random.default_rng(number)
            arrays = {
                name: np.asarray(leaf) + 0.01 * random.standard_normal(leaf.shape, np.float32) * (not name.endswith("variance"))
                for name, leaf in {**parts.trained, **parts.statistics}.items()
            }
            save_best(run, arrays, {"step": 1, "epoch": 1, "accuracy": 0.5, **base_info(config, base, run)})
            write_json(run / "config.json", to_dict(replace(config, name=run.name)))
            continue
        (run / "best").mkdir(parents=True)
        for name in ("config.json", "best/info.json", "best/trained.safetensors"):
            os.link(folder / f"a{number % 8:05}" / name, run / name)


def measure(options: Options, folder: Path, count: int) -> dict[str, Any]:
    """One case: as many clients as two batches have faces."""
    server = AdapterServer(folder, batch_size=options.batch_size, memory=options.memory, device=options.memory)
    server.warm_up()
    names = server.names[:count]
    weights = np.ones(count) if options.mix == "uniform" else 1 / np.arange(1, count + 1)
    random, lock, programs = np.random.default_rng(0), threading.Lock(), server.programs
    crop = random.integers(0, 256, (server.image_size, server.image_size, 3), dtype=np.uint8)
    batcher = Batcher(server)
    latencies: list[float] = []
    left = [2 * options.batch_size, options.batches * options.batch_size]  # those that fill the memory, those that count
    began = [0.0]

    def client() -> None:
        while True:
            with lock:
                counted = left[0] <= 0
                if counted and not began[0]:
                    began[0] = time.perf_counter()
                left[counted] -= 1
                if left[1] < 0:
                    return
                name = names[random.choice(count, p=weights / weights.sum())]
            start = time.perf_counter()
            adapter = server.shelf.get(name)
            batcher.submit([(crop, adapter)], name).result()
            if counted:
                latencies.append(time.perf_counter() - start)

    with ThreadPoolExecutor(2 * options.batch_size) as pool:
        for one in [pool.submit(client) for _ in range(2 * options.batch_size)]:
            one.result()
    seconds = time.perf_counter() - began[0]
    batcher.close()
    return {
        "adapters": count,
        "mix": options.mix,
        "rank": options.rank,
        "method": options.method,
        "images_per_second": len(latencies) / seconds,
        "p50_seconds": median(latencies),
        "p99_seconds": float(np.percentile(latencies, 99)),
        "loads": sum(server.shelf.loads.values()),
        "compiled_while_serving": server.programs - programs,
        "megabytes_an_adapter": server.shelf.get(names[0]).bytes / 1e6,
    }


def measure_merged(options: Options, folder: Path, count: int) -> dict[str, Any]:
    """A batch of faces answered by a merged model for each adapter, all of them ready in memory; each has its own rows of the batch."""
    trained = load_trained(folder / "a00000")
    arrays, structure = flatten(trained.merged())
    predict, held = make_predict(structure), replicate(arrays)
    share = min(count, options.batch_size)
    rows = np.zeros((1, -(-options.batch_size // share), trained.image_size, trained.image_size, 3), np.uint8)
    took = []
    for turn in range(options.batches + 1):
        start = time.perf_counter()
        for _ in range(share):
            jax.block_until_ready(predict(held, jnp.asarray(rows)))
        took += [time.perf_counter() - start] if turn else []
    return {
        "adapters": count,
        "mix": "uniform",
        "rank": options.rank,
        "method": "merged, switched",
        "images_per_second": options.batch_size / median(took),
        "p50_seconds": median(took),
        "p99_seconds": max(took),
        "megabytes_an_adapter": sum(leaf.nbytes for leaf in arrays.values()) / 1e6,
    }


def cases(options: Options) -> Iterator[dict[str, Any]]:
    """A row for each number of adapters."""
    first = 0.0
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        write_adapters(options, folder, max(options.adapters))
        for count in options.adapters:
            kinds = (measure, measure_merged) if options.merged else (measure,)
            for kind in kinds:
                row = kind(options, folder, count)
                first = first or row["images_per_second"]
                yield row | {"of_one_adapter": first / row["images_per_second"]}


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench serve")
    table = Table("adapters", "method", "images/s", "time of the first", "p50, s", "p99, s", "read from disk", "MB each")
    table.title = f"{options.variant}, rank {options.rank}, batch {options.batch_size}, {options.mix}"
    for row in cases(options):
        if options.json:
            print(json.dumps(row), flush=True)
        figures = [
            f"{row['images_per_second']:.1f}",
            f"{row['of_one_adapter']:.2f}",
            f"{row['p50_seconds']:.3f}",
            f"{row['p99_seconds']:.3f}",
        ]
        table.add_row(str(row["adapters"]), row["method"], *figures, str(row.get("loads", "")), f"{row['megabytes_an_adapter']:.1f}")
    if not options.json:
        Console(width=150).print(table)

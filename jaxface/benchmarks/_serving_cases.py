"""What `bench serve` times: clients of a server of adapters, and what people use in its place."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxface.adapters.options import AdapterOptions
from jaxface.benchmarks._step_cases import TIMM_NAMES, Shape, random_batch
from jaxface.benchmarks._worker import Worker
from jaxface.devices import replicate
from jaxface.files import write_json
from jaxface.launchers import cpu_count
from jaxface.models.tree import flatten
from jaxface.models.variants import get_variant
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.batching import Batcher
from jaxface.runs.base import base_info
from jaxface.runs.best import save_best
from jaxface.runs.config import RANDOM, Config, EncoderOptions, MethodOptions
from jaxface.runs.inference import make_predict
from jaxface.runs.model import load_base, load_trained, make_parts
from jaxface.runs.saved_config import to_dict

TASKS = ("age", "gender", "emotion")
DIFFERENT = 8
"""Adapters that are written out; the files of all others are links to theirs."""


def write_adapters(folder: Path, count: int, variant: str, method: str, rank: int) -> None:
    """Run folders a00000, a00001, ... with a random adapter each, on random base weights."""
    config = Config(
        name="run", tasks=TASKS, encoder=EncoderOptions(RANDOM, variant), method=MethodOptions(method, AdapterOptions(rank=rank))
    )
    base = load_base(config)
    parts = make_parts(config, base)
    for number in range(count):
        run = folder / f"a{number:05}"
        if number < DIFFERENT:
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
            os.link(folder / f"a{number % DIFFERENT:05}" / name, run / name)


class Window(NamedTuple):
    """A time in which a server was always busy: how long, how many faces it answered, and the seconds that each took."""

    seconds: float
    faces: int
    latencies: list[float]


Case = Callable[[], Window]
"""Answers some batches."""


def clients(server: AdapterServer, count: int, zipf: bool, batches: int) -> Case:
    """Twice as many clients as a batch has faces, each with one face for one of the first `count` adapters, again once it is answered.

    The first batch, while clients still come, and the last, when no more do, do not count.
    """
    names, size = server.names[:count], server.batch_size
    weights = 1 / np.arange(1, count + 1) if zipf else np.ones(count)
    random, lock = np.random.default_rng(0), threading.Lock()
    crop = random.integers(0, 256, (server.image_size, server.image_size, 3), dtype=np.uint8)
    for name in names[: server.memory][::-1]:  # as it is after a while: those that are asked for most are in memory
        server.shelf.get(name)

    def run() -> Window:
        left = iter(random.choice(names, (batches + 2) * size, p=weights / weights.sum()).tolist())
        batcher, ended = Batcher(server), list[tuple[float, float]]()

        def client() -> None:
            while True:
                with lock:
                    name = next(left, None)
                if name is None:
                    return
                start = time.perf_counter()
                batcher.submit([(crop, server.shelf.get(name))], name).result()
                now = time.perf_counter()
                ended.append((now, now - start))

        with ThreadPoolExecutor(2 * size) as pool:
            for one in [pool.submit(client) for _ in range(2 * size)]:
                one.result()
        batcher.close()
        counted = sorted(ended)[size - 1 : (batches + 1) * size]
        return Window(counted[-1][0] - counted[0][0], batches * size, [took for _, took in counted[1:]])

    return run


def timed(seconds: Callable[[], float], batches: int, faces: int) -> Case:
    """Batches of so many faces, one after another, each of which takes the seconds that a call gives."""

    def run() -> Window:
        took = [seconds() for _ in range(batches)]
        return Window(sum(took), batches * faces, took)

    return run


def merged(folder: Path, count: int, batch_size: int, batches: int) -> Case:
    """A batch of faces answered by a merged model for each adapter, all ready in memory; each has its own rows of the batch."""
    predict, share = _merged_model(folder / "a00000", -(-batch_size // min(count, batch_size))), min(count, batch_size)
    return timed(lambda: _seconds(lambda: [predict() for _ in range(share)]), batches, batch_size)


def process_case(name: str, shape: Shape) -> Callable[[], Any]:
    """One adapter's own process: its merged model on `shape.batch_size` faces; `name` is the run folder."""
    return _merged_model(Path(name), shape.batch_size)


@contextmanager
def processes(folder: Path, count: int, batch_size: int, batches: int) -> Iterator[Case]:
    """A process for each adapter, all at work at once on the faces that are its own."""
    rows = -(-batch_size // count)
    shape = Shape("", rows, 0, cpu_count(), "none", False)
    with ExitStack() as stack, ThreadPoolExecutor(count) as pool:
        workers = [stack.enter_context(Worker(process_case, str(folder / f"a{number:05}"), shape)) for number in range(count)]
        yield timed(lambda: _seconds(lambda: list(pool.map(Worker.run, workers))) / 2, batches, rows * count)  # each runs its case twice


@contextmanager
def peft(count: int, batch_size: int, batches: int, variant: str, rank: int) -> Iterator[Case]:
    """PEFT's mixed batch of LoRA adapters on timm's encoder, in a process of its own."""
    with Worker(peft_case, str(count), Shape(variant, batch_size, rank, cpu_count(), "none", False)) as worker:
        yield timed(worker.run, batches, batch_size)


def peft_case(name: str, shape: Shape) -> Callable[[], Any]:
    """A forward pass in which sample i uses adapter i modulo `name`."""
    from jaxface.originals.reference import adaptable, import_torch
    from jaxface.originals.torch_training import ADAPTED

    torch, timm, library = import_torch("timm", "peft")
    torch.set_num_threads(shape.threads)
    config = library.LoraConfig(r=shape.rank, lora_alpha=shape.rank, target_modules=ADAPTED)
    output = get_variant(shape.variant).output
    model = library.get_peft_model(adaptable(timm.create_model(TIMM_NAMES[shape.variant], num_classes=output or 0)), config, "0")
    for number in range(1, int(name)):
        model.add_adapter(str(number), config)
    model.eval()
    images = (torch.from_numpy(random_batch(shape)["image"]).permute(0, 3, 1, 2).float() / 127.5 - 1).contiguous()
    names = [str(row % int(name)) for row in range(shape.batch_size)]

    def run() -> Any:
        with torch.no_grad():
            return model(images, adapter_names=names)

    return run


def _merged_model(run: Path, rows: int) -> Callable[[], Any]:
    trained = load_trained(run)
    arrays, structure = flatten(trained.merged())
    predict, held = make_predict(structure), replicate(arrays)
    images = jnp.zeros((1, rows, trained.image_size, trained.image_size, 3), jnp.uint8)
    call = lambda: jax.block_until_ready(predict(held, images))  # noqa: E731
    call()
    return call


def _seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start

"""python -m jaxface.bench tradeoff: one run of all tasks, beside a run for each task as adapters on one encoder and as whole models.

The thesis's future work asks for it: what does it cost, and gain, to serve the best adapter of each task on a shared encoder?
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.table import Table

from jaxface.adapters.updates import with_updates
from jaxface.benchmarks._options import print_json
from jaxface.cli import parse
from jaxface.devices import replicate
from jaxface.errors import UserError
from jaxface.evaluation.summary import evaluate_task
from jaxface.models.encoder import use_attention
from jaxface.models.tree import arrays_of, flatten, shallow_copy
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.adapters import Adapter, run_tail
from jaxface.ranges import Count, Items, Rounds, Where, ranged
from jaxface.runs.costs import ANYWHERE, count_flops, run_costs, size
from jaxface.runs.folder import read_run
from jaxface.runs.inference import make_predict
from jaxface.runs.model import Trained, load_trained
from jaxface.timing import interleaved, medians

Case = Callable[[], Any]


@ranged()
class Options:
    """Compares one run of several tasks with a run for each of them, all on the same base weights.

    Attributes:
      together: the run folder of all tasks.
      single: a run folder for each task.
      batch_size: faces that are answered at once.
      rounds: turns of each case that count.
      json: print one line of JSON a case.
    """

    together: Where
    single: Annotated[tuple[Where, ...], Items(least=2)]
    batch_size: Count = 32
    rounds: Rounds = 9
    json: bool = False


def measure(options: Options) -> Iterator[dict[str, Any]]:
    """A row for each way to answer all tasks: what it holds, what a face costs, and how often it is right on its test split."""
    together, singles = load_trained(options.together), [load_trained(folder) for folder in options.single]
    asked, answered = [task.name for task in together.tasks], [task.name for one in singles for task in one.tasks]
    if sorted(asked) != sorted(answered):
        raise UserError(f"{options.together} answers {', '.join(asked)}, the others {', '.join(answered)}: expected one run for each task")
    for one in singles:
        if one.base_fingerprint != together.base_fingerprint:
            raise UserError(f"{one.folder} stands on other base weights than {options.together}: expected the same below all")
    with tempfile.TemporaryDirectory() as temporary:
        for number, folder in enumerate(options.single):
            (Path(temporary) / f"adapter-{number}").symlink_to(folder.resolve())
        server = AdapterServer(temporary, base=singles[0].base, batch_size=options.batch_size)
        if len(server.names) < len(singles):
            raise UserError(
                f"{', '.join(map(str, options.single))}: expected runs on the same base weights that are adapters of LoRA or DoRA"
            )
        adapters = [server.shelf.get(name) for name in server.names]
        count, alone = len(singles), {task: right for folder in options.single for task, right in _accuracy(folder).items()}
        rights = (_accuracy(options.together), alone, alone)
        crops = np.zeros((options.batch_size, server.image_size, server.image_size, 3), np.uint8)
        cases: dict[str, Case] = {
            "one run of all tasks": _whole([together], crops),
            f"{count} adapters on one encoder": _served(server, adapters, crops),
            f"{count} whole models": _whole(singles, crops),
        }
        costs = [_costs([together]), _served_costs(server, adapters), _costs(singles)]
        seconds = medians(interleaved(cases, options.rounds))
    for (name, took), cost, right in zip(seconds.items(), costs, rights, strict=True):
        mean = sum(right.values()) / len(right)
        yield {"case": name, **cost, "images_per_second": options.batch_size / took, "accuracy": right, "mean_accuracy": mean}


def _accuracy(folder: Path) -> dict[str, float]:
    """Of each task on the test split. Raises UserError where the run has not been evaluated."""
    answers = read_run(folder).predictions
    if answers is None:
        raise UserError(f"{folder}: no answers on a test split in it: `python -m jaxface.evaluate {folder}` writes them")
    return {task.name: evaluate_task(answers, task)["accuracy"] for task in answers.tasks}


def _whole(of: Sequence[Trained], crops: np.ndarray) -> Case:
    """Merged models, one after another."""
    held = [flatten(trained.merged()) for trained in of]
    calls = [(make_predict(structure), replicate(arrays)) for arrays, structure in held]
    images = jnp.asarray(crops)[None]
    return lambda: [predict(arrays, images)[0] for predict, arrays in calls]


def _served(server: AdapterServer, adapters: Sequence[Adapter], crops: np.ndarray) -> Case:
    """Every face as every adapter sees it."""
    pieces = [(crop, adapter) for crop in crops for adapter in adapters]
    parts = [pieces[start : start + server.batch_size] for start in range(0, len(pieces), server.batch_size)]
    return lambda: [logits for part in parts for _, _, logits in server.classify(part).parts]


def _costs(of: Sequence[Trained]) -> dict[str, Any]:
    models = [trained.plain() for trained in of]
    each = [run_costs(model, 0, trained.image_size) for model, trained in zip(models, of, strict=True)]
    held = sum(array.nbytes for model in models for array in arrays_of(model).values())
    return _row(sum(one["parameters"]["inference"] for one in each), sum(one["gflops"]["all products"] for one in each), held)


def _served_costs(server: AdapterServer, adapters: Sequence[Adapter]) -> dict[str, Any]:
    encoder = shallow_copy(server.shared.encoder)
    use_attention(encoder, ANYWHERE)  # in whose program every product can be seen
    image = jax.ShapeDtypeStruct((1, server.image_size, server.image_size, 3), np.float32)
    flops = 0.0
    for adapter in adapters:

        def tokens(image: jax.Array, adapter: Adapter = adapter) -> jax.Array:
            return with_updates(encoder, [adapter.updates], None).tokens(image)

        flops += count_flops(tokens, image)
        flops += count_flops(lambda x, adapter=adapter: run_tail(adapter.structure, adapter.arrays, x), jax.eval_shape(tokens, image))
    arrays = arrays_of(encoder)
    own = sum(adapter.bytes for adapter in adapters)
    held = sum(array.nbytes for array in arrays.values())
    return _row(size(arrays) + own // np.dtype(np.float32).itemsize, flops / 1e9, held + own)


def _row(parameters: float, gflops: float, held: float) -> dict[str, Any]:
    return {"parameters": int(parameters), "gflops": gflops, "megabytes": held / 1e6}


def main(arguments: list[str]) -> None:
    """The command."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench tradeoff")
    rows = list(measure(options))
    if options.json:
        print_json(rows)
        return
    tasks = list(rows[0]["accuracy"])
    table = Table("all tasks by", "parameters, M", "GFLOPs a face", "MB", "faces/s", *(f"{task}, %" for task in tasks), "mean, %")
    for row in rows:
        costs = [f"{row['parameters'] / 1e6:.2f}", f"{row['gflops']:.3f}", f"{row['megabytes']:.1f}", f"{row['images_per_second']:.0f}"]
        rights = [f"{100 * value:.1f}" for value in (*(row["accuracy"][task] for task in tasks), row["mean_accuracy"])]
        table.add_row(row["case"], *costs, *rights)
    Console(width=150).print(table)

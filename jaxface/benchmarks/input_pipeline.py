"""python -m jaxface.bench input [--against torch]: how fast JPEG faces become augmented batches, and how many cores feed a GPU.

Every case runs alone for a few seconds, in turns, on the same number of worker processes; its first batches do not count.
"""

from __future__ import annotations

import gc
import io
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from pathlib import Path
from statistics import median
from typing import Annotated, Any, Literal

from PIL import Image
from rich.console import Console
from rich.table import Table

from jaxface.benchmarks._options import print_json
from jaxface.cli import parse
from jaxface.data.augment import Augment
from jaxface.data.images import encode
from jaxface.data.pipeline import train_batches
from jaxface.data.records import Record
from jaxface.data.sources.base import SOURCES, Source
from jaxface.data.synthetic import draw_face
from jaxface.data.tasks import TASKS
from jaxface.launchers import cpu_count
from jaxface.progress import Track
from jaxface.ranges import Count, Items, Range, Rounds, Where, ranged

DISTINCT = 200
"""Different faces; a larger set repeats them under other names."""


@ranged()
class Options:
    """What is measured.

    Attributes:
      against: torch: torchvision v2's transforms with a DataLoader, on the same JPEGs held in memory.
      records: sizes of the set, to see that neither speed nor memory depends on it.
      face_size: side in pixels of the JPEGs.
      image_size: side in pixels of the batches' images.
      batch_size: images in a batch.
      workers: processes; 0 takes one a core.
      seconds: for which each case is timed, once a round.
      rounds: how often the cases take turns.
      device_rate: images a second that a GPU trains on, to say how many cores feed it. 400 is what an H200 makes of PE-Core-L14-336
        (DoRA 364, LoRA 407).
      folder: where the sets of faces are kept for the next time; a temporary folder if it is not given.
      json: one line of JSON a case.
    """

    against: Literal["torch"] | None = None
    records: Annotated[tuple[int, ...], Range(1, 10**8), Items(least=1, once=True)] = (1000, 100_000)
    face_size: Annotated[int, Range(8, 8192)] = 256
    image_size: Annotated[int, Range(8, 8192)] = 336
    batch_size: Count = 128
    workers: Annotated[int, Range(0, 1024)] = 0
    seconds: Annotated[float, Range(above=0, high=3600)] = 6.0
    rounds: Rounds = 3
    device_rate: Annotated[float, Range(above=0, high=1e9)] = 400.0
    folder: Where | None = None
    json: bool = False


def draw_jpegs(size: int, count: int) -> list[bytes]:
    """Drawn faces as JPEGs: for sets of so many records at most."""
    return [encode(draw_face(0, index, size=size).image) for index in range(min(count, DISTINCT))]


def write_records(folder: Path, jpegs: list[bytes], count: int) -> Path:
    """A prepared set of `count` training records."""
    from jaxface.data.preparation import prepare

    class Benchmark(Source):
        name = "benchmark"

        def check(self, folder: Path) -> None: ...

        def records(self, folder: Path, options: Any) -> Iterator[Record]:
            yield Record("held out", "validation", jpegs[0], {"gender": 0})
            for index in range(count):
                labels = {task.name: index % task.num_classes for task in TASKS.values()}
                yield Record(f"{index}.jpg", "train", jpegs[index % len(jpegs)], labels)

    with SOURCES.temporarily():
        SOURCES.add(Benchmark.name, Benchmark())
        prepare("benchmark", Path("drawn"), folder / str(count))
    return folder / str(count)


def ours(folder: Path, options: Options, workers: int) -> Iterable[Any]:
    """Batches of `jaxface.data.pipeline`."""
    return train_batches(
        [str(folder)],
        list(TASKS),
        image_size=options.image_size,
        batch_size=options.batch_size,
        seed=0,
        augment=Augment(),
        workers=workers,
    )


class Photos:
    """JPEGs in memory as a torch data set, decoded with Pillow."""

    def __init__(self, jpegs: list[bytes], transform: Callable[[Any], Any]) -> None:
        self.jpegs, self.transform = jpegs, transform

    def __len__(self) -> int:
        return 1 << 30

    def __getitem__(self, index: int) -> Any:
        return self.transform(Image.open(io.BytesIO(self.jpegs[index % len(self.jpegs)])).convert("RGB")), index % 7


def torchs(jpegs: list[bytes], options: Options, workers: int) -> Iterable[Any]:
    """The thesis's chain in torchvision v2, in the form that is fastest there (Pillow images until the end)."""
    from jaxface.originals.reference import import_torch

    torch, v2 = import_torch("torchvision.transforms.v2")
    chain = [
        v2.RandomHorizontalFlip(0.5),
        v2.ColorJitter(0.2, 0.2, 0.2),
        v2.RandomAffine(10, (0.05, 0.05), (0.9, 1.1), interpolation=v2.InterpolationMode.BILINEAR),
        v2.Resize((options.image_size, options.image_size)),
        v2.PILToTensor(),
        v2.ToDtype(torch.float32, scale=True),
        v2.Normalize([0.5] * 3, [0.5] * 3),
        v2.RandomErasing(0.5, (0.02, 0.2), (0.3, 3.3)),
    ]
    data = Photos(jpegs, v2.Compose(chain))
    return torch.utils.data.DataLoader(data, options.batch_size, num_workers=workers, multiprocessing_context="fork")


def resident_bytes() -> int:
    """The memory that this process and its children hold now, pages shared between them counted in proportion."""
    total = 0
    for process in [os.getpid(), *(child.pid for child in multiprocessing.active_children())]:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
        total += next(int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:"))
    return total


def measure(make: Callable[[], Iterable[Any]], options: Options) -> tuple[float, int]:
    """Images a second, and bytes of memory, of a pipeline that is asked for batches without a pause."""
    batches = iter(make())
    for _ in range(8):  # what was made ahead
        next(batches)
    start, count = time.perf_counter(), 0
    while time.perf_counter() - start < options.seconds:
        next(batches)
        count += options.batch_size
    rate = count / (time.perf_counter() - start)
    memory = resident_bytes()
    del batches
    gc.collect()  # ends the workers
    return rate, memory


def show(rows: list[dict[str, Any]], options: Options, cores: int) -> None:
    """Prints a table, or one line of JSON a case."""
    if options.json:
        print_json(rows)
        return
    sizes = f"{options.face_size} px JPEGs to {options.image_size} px, batches of {options.batch_size}"
    title = f"{sizes}, {cores} cores, medians of {options.rounds}"
    table = Table(*rows[0], title=title)
    for row in rows:
        table.add_row(*(value if isinstance(value, str) else f"{value:,.2f}" for value in row.values()))
    Console().print(table)


def main(arguments: list[str]) -> None:
    """Measures and prints."""
    options = parse(Options, args=arguments, prog="python -m jaxface.bench input", description=__doc__)
    cores = cpu_count()
    workers = options.workers or cores
    with tempfile.TemporaryDirectory() as temporary:
        jpegs = draw_jpegs(options.face_size, max(options.records))
        folder = options.folder or Path(temporary)
        cases: dict[str, Callable[[], Iterable[Any]]] = {
            f"jaxface, {count} records": partial(ours, write_records(folder, jpegs, count), options, workers) for count in options.records
        }
        if options.against:
            cases["torchvision v2"] = partial(torchs, jpegs, options, workers)
        found: dict[str, list[tuple[float, int]]] = {name: [] for name in cases}
        with Track("measuring", options.rounds * len(cases), unit="cases") as track:
            for _ in range(options.rounds):
                for name, make in cases.items():
                    found[name].append(measure(make, options))
                    track.advance()
    used = min(workers, cores)
    rates = {name: median(rate for rate, _ in pairs) for name, pairs in found.items()}
    rows = []
    for name, pairs in found.items():
        row = {"case": name, "images_per_second": rates[name], "per_core": rates[name] / used}
        row["cores_for_a_gpu"] = options.device_rate / row["per_core"]
        row["memory_bytes"] = median(memory for _, memory in pairs)
        if options.against:
            row["ratio"] = rates[name] / rates["torchvision v2"]
        rows.append(row)
    show(rows, options, cores)

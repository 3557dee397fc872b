"""python -m weights_convert SRC DST: a checkpoint of the Perception Encoder family from any layout to any other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal

import ml_dtypes
import numpy as np
import tyro

from jaxface.cli import parse
from jaxface.errors import run_command
from jaxface.models.variants import VARIANTS
from jaxface.progress import Track
from jaxface.ranges import Known, Where, ranged, refuse_idle
from weights_convert.checkpoint import Checkpoint, convert, read_checkpoint
from weights_convert.layouts import LAYOUTS
from weights_convert.tensor_parts import some
from weights_convert.towers import HeadCount, Heads

DTYPES = {"keep": None, "float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16}
MEGABYTE = 10**6


@ranged()
class Arguments:
    """Converts a checkpoint. The layout and the variant of SRC are recognised from its tensors.

    Attributes:
      src: `.pt`, `.pth`, `.bin` or `.safetensors` in Meta's, timm's, open_clip's or this project's layout.
      dst: the file to write; its suffix decides the format.
      layout: of the file to write. timm's has no place for a text tower and leaves it out.
      variant: what SRC must be, for example PE-Core-L14-336; by default whatever it is.
      dtype: of the tensors written; "keep" is bit-exact.
      heads: attention heads, where the width is none of the family's.
      pool_heads: of the attention pool (the family has 8).
      text_heads: of the text tower, where its width is none of the family's.
      averaged: whether to take the moving average (EMA) of a training checkpoint; by default it is taken if it is there.
      classifier: what to do with a trained classifier in the projection's place: refuse it, drop it, or keep it with its bias.
    """

    src: tyro.conf.Positional[Where]
    dst: tyro.conf.Positional[Where]
    layout: Annotated[str, Known(LAYOUTS)] = "jaxface"
    variant: Annotated[str | None, Known(VARIANTS)] = None
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = "keep"
    heads: HeadCount | None = None
    pool_heads: HeadCount | None = None
    text_heads: HeadCount | None = None
    averaged: bool | None = None
    classifier: Literal["refuse", "drop", "keep"] = "refuse"


def main() -> None:
    """The command."""
    arguments = parse(Arguments, prog="python -m weights_convert")
    start = time.perf_counter()
    heads = Heads(arguments.heads, arguments.pool_heads, arguments.text_heads)
    reading: dict[str, Any] = {"config": arguments.variant, "heads": heads}
    reading |= {"averaged": arguments.averaged, "classifier": arguments.classifier}
    if heads.pool or heads.text:
        towers = read_checkpoint(arguments.src, **reading).towers
        refuse_idle(arguments, towers.vision.pool, f"{arguments.src} has no attention pool", "pool_heads")
        refuse_idle(arguments, towers.text is not None, f"{arguments.src} has no text tower", "text_heads")
    with _progress(arguments.src) as written:
        layout, dtype = arguments.layout, DTYPES[arguments.dtype]
        checkpoint, count = convert(arguments.src, arguments.dst, layout=layout, dtype=dtype, written=written, **reading)
    print(_summary(checkpoint, arguments, count, time.perf_counter() - start))


@contextmanager
def _progress(source: Path) -> Iterator[Callable[[int], None]]:
    """Shows how many megabytes are done, told the size of each part in bytes."""
    size = source.stat().st_size if source.is_file() else 0
    done = 0

    def written(count: int) -> None:
        nonlocal done
        done += count
        track.advance(done // MEGABYTE - track.done)

    with Track(source.name, size // MEGABYTE, unit="MB") as track:
        yield written


def _summary(checkpoint: Checkpoint, arguments: Arguments, count: int, seconds: float) -> str:
    """What was done, in a line or two."""
    towers = checkpoint.towers
    size = arguments.dst.stat().st_size
    both = " with its text tower" if towers.text else ""
    lines = [
        f"{arguments.src}: {towers.name}{both}, layout {checkpoint.layout.name}, {len(checkpoint.file.tensors)} tensors",
        f"{arguments.dst}: layout {arguments.layout}, {count} tensors, {size / 1e6:,.1f} MB in {seconds:.2f} s",
    ]
    if checkpoint.file.taken:
        lines.append(f"{arguments.src}: {checkpoint.file.taken}")
    if checkpoint.left_out:
        lines.append(f"left out: {some('of what trained it', list(checkpoint.left_out), 3)}")
    if towers.text and arguments.layout == "timm":
        lines.append("left out: the text tower, which timm's layout has no place for")
    return "\n".join(lines)


if __name__ == "__main__":
    run_command(main)

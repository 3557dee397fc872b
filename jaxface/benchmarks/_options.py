"""What most benchmarks are told, and how all of them say what they found to programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from typing import Annotated, Any

from jaxface.models.variants import VARIANTS
from jaxface.ranges import Count, Known, Rounds, ranged


@ranged()
class Timed:
    """An encoder's work on a batch, timed several times.

    Attributes:
      variant: the encoder.
      batch_size: images of a step, on one device.
      rounds: turns that count.
      json: print one JSON object a case.
    """

    variant: Annotated[str, Known(VARIANTS)] = "PE-Core-B16-224"
    batch_size: Count = 8
    rounds: Rounds = 5
    json: bool = False


def print_json(rows: Iterable[dict[str, Any]]) -> None:
    """Prints a line for each row, as soon as it is there."""
    for row in rows:
        print(json.dumps(row), flush=True)

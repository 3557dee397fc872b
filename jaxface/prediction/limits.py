"""What the server allows."""

from __future__ import annotations

from typing import Annotated

from jaxface.ranges import Range, Word, ranged


@ranged()
class Limits:
    """Where the server listens, and how much of what it takes.

    Attributes:
      host: address to listen on; this machine alone unless told otherwise.
      port: to listen on; 0 takes a free one.
      hosts: names that requests may be addressed to. Where none is given: this machine's own if it listens to this machine alone (a page of
        another site could otherwise reach it under a name of its own), and any name elsewhere.
      megabytes: of a photo's file, at most.
      megapixels: of a photo, at most.
      waiting: photos that may be under way at once; more are told to come again (429).
      adapter_waiting: photos that may wait for one adapter, where many are served.
      connections: open at once, at most.
      upload_seconds: for a photo to arrive, and for a connection to ask for something.
      answer_seconds: for its answer.
    """

    host: Annotated[str, Word(r"[\w.:%-]{1,253}", "an address")] = "127.0.0.1"
    port: Annotated[int, Range(0, 65_535)] = 8000
    hosts: Annotated[tuple[str, ...], Word(r"[\w.:%*-]{1,253}", "names of hosts")] = ()
    megabytes: Annotated[float, Range(above=0, high=1000)] = 10.0
    megapixels: Annotated[float, Range(above=0, high=1000)] = 40.0
    waiting: Annotated[int, Range(1, 100_000)] = 64
    adapter_waiting: Annotated[int, Range(1, 100_000)] = 32
    connections: Annotated[int, Range(1, 100_000)] = 256
    upload_seconds: Annotated[float, Range(above=0, high=3600)] = 20.0
    answer_seconds: Annotated[float, Range(above=0, high=3600)] = 60.0

"""What the server allows."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
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
      connections: open at once, at most.
      upload_seconds: for a photo to arrive, and for a connection to ask for something.
      answer_seconds: for its answer.
    """

    host: str = "127.0.0.1"
    port: int = 8000
    hosts: tuple[str, ...] = ()
    megabytes: float = 10.0
    megapixels: float = 40.0
    waiting: int = 64
    connections: int = 256
    upload_seconds: float = 20.0
    answer_seconds: float = 60.0

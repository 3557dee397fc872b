"""A run behind HTTP, in a program of one's own: the server with a further page, and a client that asks it.

python examples/serving.py RUN PHOTO...

`python -m jaxface.predict RUN --serve` is the server alone.
"""

from __future__ import annotations

import json
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import uvicorn
from fastapi import FastAPI

from jaxface.errors import UserError, run_command
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import Predictor
from jaxface.prediction.server import listen, make_app


def application(predictor: Predictor, limits: Limits) -> FastAPI:
    """jaxface's application, with one answer more: GET /classes."""
    app = make_app(predictor, limits)

    @app.get("/classes")
    async def classes() -> dict[str, list[str]]:
        return {task.name: list(task.classes) for task in predictor.tasks}

    return app


@contextmanager
def serving(app: FastAPI, limits: Limits) -> Iterator[str]:
    """Serves within: the address, from when it answers until all that was asked is answered."""
    listener = listen(limits)
    server = uvicorn.Server(uvicorn.Config(app, log_level="warning"))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    try:
        while not server.started:
            if not thread.is_alive():
                raise UserError("the server did not start; its log says why")
            time.sleep(0.05)
        yield "http://{}:{}".format(*listener.getsockname()[:2])
    finally:
        server.should_exit = True
        thread.join()


def ask(address: str, photo: Path | None = None) -> Any:
    """The JSON that an address answers; a photo is sent as the request's body."""
    data = None if photo is None else photo.read_bytes()
    with urllib.request.urlopen(urllib.request.Request(address, data)) as response:
        return json.load(response)


def main(words: Sequence[str] | None = None) -> None:
    """Serves a run, asks for each photo, and prints the faces."""
    run, *photos = sys.argv[1:] if words is None else words
    predictor = Predictor(run, batch_size=4, small_batches=True)  # whole photos: each is one face
    limits = Limits(port=0)  # this machine alone, a free port
    with serving(application(predictor, limits), limits) as address:
        print(address, json.dumps(ask(f"{address}/classes")))
        for photo in photos:
            for face in ask(f"{address}/predict", Path(photo))["faces"]:
                print(photo, {task.name: face[task.name]["class"] for task in predictor.tasks})


if __name__ == "__main__":
    run_command(main)

"""An application on a port of this machine, as `predict --serve` runs it."""

import threading
import time
from contextlib import contextmanager

import uvicorn

from jaxface.prediction.connections import Server, protocol
from jaxface.prediction.server import listen, make_app

PATIENCE = 120
"""Seconds that a client waits: no figure that is tested, but the end of a test that hangs."""


@contextmanager
def running(model, limits, token=None):
    """The port of a server, which is told to stop at the end and does."""
    listener = listen(limits)
    config = uvicorn.Config(make_app(model, limits, token), http=protocol(limits.upload_seconds), log_level="warning")
    server = Server(config)
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listener]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listener.getsockname()[1]
    server.should_exit = True
    thread.join(PATIENCE)
    assert not thread.is_alive()

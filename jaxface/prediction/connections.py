"""The server's connections: silent ones are closed, and at the end every request that was accepted is answered."""

from __future__ import annotations

import asyncio
import socket
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

GRACE = 0.5
"""Seconds that a connection without a request is given after the server was told to stop: its request may be on its way."""


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which also closes a connection whose request (its first or a later one) takes so many seconds to begin."""

    class Patient(H11Protocol):
        waiting: asyncio.TimerHandle | None = None
        stopping = False

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._wait(seconds)

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._wait(seconds)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._wait(GRACE if self.stopping else seconds)

        def connection_lost(self, exc: Exception | None) -> None:
            super().connection_lost(exc)
            self._forget()

        def shutdown(self) -> None:
            """Lets the request that is under way, or that arrives within `GRACE`, be answered, and closes then."""
            self.stopping = True
            if self._is_idle():
                self._forget()
                self._wait(GRACE)
            else:
                self.cycle.keep_alive = False

        def _is_idle(self) -> bool:
            return self.cycle is None or self.cycle.response_complete

        def _wait(self, patience: float) -> None:
            """Counts from the end of the last request: a client that sends byte by byte gains nothing."""
            if not self._is_idle():
                self._forget()
                if self.stopping:
                    self.cycle.keep_alive = False
            elif self.waiting is None and not self.transport.is_closing():
                self.waiting = self.loop.call_later(patience, self._close_if_idle)

        def _forget(self) -> None:
            if self.waiting is not None:
                self.waiting.cancel()
                self.waiting = None

        def _close_if_idle(self) -> None:
            self.waiting = None
            if self._is_idle() and not self.transport.is_closing():
                self.transport.close()

    return Patient


class Server(uvicorn.Server):
    """uvicorn's server, which at its end takes up the connections that the system has accepted and it has not."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener.fileno())
            for connection in accepted(listener):
                await loop.connect_accepted_socket(self._protocol, connection)
        await super().shutdown(sockets)

    def _protocol(self) -> asyncio.Protocol:
        kind: Any = self.config.http_protocol_class
        return kind(config=self.config, server_state=self.server_state, app_state=self.lifespan.state)


def accepted(listener: socket.socket) -> list[socket.socket]:
    """The connections that wait in a listener's queue."""
    found: list[socket.socket] = []
    listener.setblocking(False)
    while True:
        try:
            connection, _ = listener.accept()
        except OSError:  # none is left
            return found
        connection.setblocking(False)
        found.append(connection)

"""Requests that are not answered, and how that is told."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any
from urllib.parse import SplitResult, urlsplit

from fastapi import Request
from fastapi.responses import JSONResponse

from jaxface.prediction.limits import Limits

READ = ["GET", "HEAD"]
"""Methods that change nothing."""
LOCAL = ("127.0.0.1", "localhost", "::1")
"""Names of this machine for itself."""


class Refused(Exception):
    """A request that is not answered: status and one line."""

    def __init__(self, status: int, line: str) -> None:
        super().__init__(line)
        self.status = status


class Refusal(JSONResponse):
    """Says why, and only then lets the rest of the photo run out for a while: a client that is still sending when the connection is closed
    would never read the answer."""

    def __init__(self, refused: Refused, limits: Limits) -> None:
        headers = {"connection": "close"} | ({"retry-after": "1"} if refused.status == 429 else {})
        super().__init__({"error": str(refused)}, refused.status, headers)
        self.most, self.seconds = 4e6 * limits.megabytes, min(limits.upload_seconds, 5.0)

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
        await send({"type": "http.response.body", "body": self.body, "more_body": True})
        read = 0
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.seconds):
                while read < self.most and (message := await receive()).get("more_body", False):
                    read += len(message.get("body", b""))
        await send({"type": "http.response.body", "body": b""})


def refusal(request: Request, refused: Refused, limits: Limits) -> JSONResponse:
    """The answer to a request that is refused, whether its body has arrived (see `body_of`) or not."""
    arrived = getattr(request.state, "arrived", False)
    return JSONResponse({"error": str(refused)}, refused.status) if arrived else Refusal(refused, limits)


async def body_of(request: Request, most: int, seconds: float, what: str) -> bytes:
    """A request's body. Raises Refused if it is larger than `most` bytes or takes longer to arrive."""
    too_large = Refused(413, f"the {what} is larger than {most / 1e6:g} MB")
    try:
        if int(request.headers.get("content-length", 0)) > most:
            raise too_large
    except ValueError:
        raise Refused(400, "content-length is no number") from None
    data = bytearray()
    try:
        async with asyncio.timeout(seconds):
            async for chunk in request.stream():
                data += chunk
                if len(data) > most:
                    raise too_large
    except TimeoutError:
        raise Refused(408, f"the {what} took longer than {seconds:g} s to arrive") from None
    request.state.arrived = True
    return bytes(data)


def strange(request: Request, limits: Limits) -> str | None:
    """Why a request is not answered that a page of another site may have sent, or None.

    A browser lets any page send requests to this machine, and a site may point a name of its own at it (DNS rebinding).
    """
    host, origin = request.headers.get("host", ""), request.headers.get("origin")
    name = _address(f"//{host}").hostname or ""
    known = limits.hosts or (LOCAL if limits.host in LOCAL else ())
    if known and name not in (*known, limits.host):
        return f"host {host[:100]!r} is none of this server's names (--hosts NAME allows another)"
    if request.method not in READ and origin is not None and _address(origin).netloc != host:
        return f"a page of {origin[:100]} may not send photos here"
    return None


def _address(text: str) -> SplitResult:
    """The parts of an address; none of one that is none."""
    try:
        return urlsplit(text)
    except ValueError:
        return urlsplit("")

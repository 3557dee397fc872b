"""The model over HTTP: a page to try it, and a JSON endpoint that answers many callers in batches.

POST /predict   a photo as the request's body -> {"width", "height", "faces": [...]}; what is wrong is {"error": "one line"} and 4xx
GET  /health    whether it answers, and which model
GET  /metrics   counters, in Prometheus's text format
GET  /          the page
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import socket
import sys
import time
from collections import Counter
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources
from typing import Any

import numpy as np
from PIL import Image

from jaxface.data.images import Unreadable, decode_photo, header
from jaxface.errors import UserError
from jaxface.prediction.batching import Batcher
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import Json, Photo, Predictor, face_json

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, PlainTextResponse, Response
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect
    from uvicorn.protocols.http.h11_impl import H11Protocol
except ImportError as missing:
    raise UserError(f"the server needs {missing.name}: pip install 'jaxface[serve]'") from None

log = logging.getLogger(__name__)
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


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


class Service:
    """What the endpoints share: the model, who is under way, and what was counted.

    Attributes:
      under_way: photos that are being received, read or classified.
      answered: requests by status.
      seconds: spent on those that were answered with 200.
    """

    def __init__(self, predictor: Predictor, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.under_way, self.seconds, self.started = 0, 0.0, time.time()
        self.answered: Counter[int] = Counter()
        self.threads = ThreadPoolExecutor(thread_name_prefix="photo")
        self.batcher = Batcher(predictor)

    def warm_up(self) -> None:
        """Compiles the program of every batch size before the first request."""
        side = self.predictor.image_size
        for size in self.predictor.sizes:
            self.predictor.answers(self.predictor.classify([np.zeros((side, side, 3), np.uint8)] * size), size)

    def close(self) -> None:
        self.threads.shutdown(cancel_futures=True)
        self.batcher.close()

    async def body(self, request: Request) -> bytes:
        """The request's body. Raises Refused if it is too large or too slow."""
        most = int(self.limits.megabytes * 1e6)
        too_large = Refused(413, f"the photo is larger than {self.limits.megabytes:g} MB")
        try:
            if int(request.headers.get("content-length", 0)) > most:
                raise too_large
        except ValueError:
            raise Refused(400, "content-length is no number") from None
        data = bytearray()
        try:
            async with asyncio.timeout(self.limits.upload_seconds):
                async for chunk in request.stream():
                    data += chunk
                    if len(data) > most:
                        raise too_large
        except TimeoutError:
            raise Refused(408, f"the photo took longer than {self.limits.upload_seconds:g} s to arrive") from None
        return bytes(data)

    def look(self, data: bytes) -> Photo:
        """Decodes a photo and finds its faces, in a thread. Raises Refused for what is no photo, or too large a one."""
        try:
            with header(data) as image:
                self._check_size(image)
            return self.predictor.find(decode_photo(data))
        except Unreadable as error:
            raise Refused(422, str(error)) from None
        except MemoryError:
            raise Refused(413, "the photo does not fit into memory") from None

    def _check_size(self, image: Image.Image | None) -> None:
        if image is None:
            raise Refused(415, "no photo of a known format; send the file's bytes as the request's body")
        if image.width * image.height > self.limits.megapixels * 1e6:
            raise Refused(413, f"{image.width} x {image.height} pixels are more than {self.limits.megapixels:g} megapixels")

    async def answer(self, request: Request) -> Json:
        """The faces of the photo in the request's body."""
        if self.under_way >= self.limits.waiting:
            raise Refused(429, f"{self.limits.waiting} photos are under way already; try again in a moment")
        self.under_way += 1
        try:
            data = await self.body(request)
            async with asyncio.timeout(self.limits.answer_seconds):
                photo = await asyncio.get_running_loop().run_in_executor(self.threads, self.look, data)
                del data
                answers = await asyncio.wrap_future(self.batcher.submit(photo.crops))
            faces = [face_json(face) | answer for face, answer in zip(photo.faces, answers, strict=True)]
            return {"width": photo.width, "height": photo.height, "faces": faces}
        except TimeoutError:
            raise Refused(503, f"no answer within {self.limits.answer_seconds:g} s") from None
        finally:
            self.under_way -= 1

    def metrics(self) -> str:
        """Prometheus's text format."""
        lines = ["# TYPE jaxface_requests_total counter"]
        lines += [f'jaxface_requests_total{{status="{status}"}} {count}' for status, count in sorted(self.answered.items())]
        values = {
            "jaxface_answer_seconds_total": ("counter", self.seconds),
            "jaxface_faces_total": ("counter", self.batcher.faces),
            "jaxface_batches_total": ("counter", self.batcher.batches),
            "jaxface_under_way": ("gauge", self.under_way),
            "jaxface_uptime_seconds": ("gauge", time.time() - self.started),
        }
        for name, (kind, value) in values.items():
            lines += [f"# TYPE {name} {kind}", f"{name} {value:.6g}"]
        return "\n".join(lines) + "\n"


def make_app(predictor: Predictor, limits: Limits) -> FastAPI:
    """The application. Its programs are compiled when it starts."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        app.state.service = service = Service(predictor, limits)
        await asyncio.get_running_loop().run_in_executor(None, service.warm_up)
        yield
        service.close()

    app = FastAPI(title="jaxface", lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None)
    page = resources.files("jaxface.prediction").joinpath("page.html").read_text(encoding="utf-8")

    @app.post("/predict")
    async def predict(request: Request) -> Response:
        service: Service = app.state.service
        start, status = time.perf_counter(), 500
        try:
            answer = JSONResponse(await service.answer(request))
            service.seconds += time.perf_counter() - start
            status = 200
        except Refused as refused:
            answer, status = Refusal(refused, limits), refused.status
        except ClientDisconnect:
            answer, status = Response(status_code=499), 499  # nobody reads it
        finally:
            service.answered[status] += 1
        return answer

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)

    @app.get("/health")
    async def health() -> Json:
        return {"status": "ok", **predictor.about()}

    @app.get("/metrics")
    async def metrics() -> PlainTextResponse:
        return PlainTextResponse(app.state.service.metrics())

    @app.get("/")
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})

    return app


def protocol(seconds: float) -> type[H11Protocol]:
    """uvicorn's HTTP protocol, which also closes a connection that has not asked for anything after so many seconds."""

    class Patient(H11Protocol):
        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self.loop.call_later(seconds, self._close_if_silent)

        def _close_if_silent(self) -> None:
            if self.cycle is None and not self.transport.is_closing():
                self.transport.close()

    return Patient


def listen(limits: Limits) -> socket.socket:
    """The socket that the server listens on. Raises UserError if the address is taken or none of this machine's."""
    try:
        listener = socket.create_server((limits.host, limits.port), backlog=256)
    except OSError as error:
        raise UserError(f"cannot listen on {limits.host}:{limits.port}: {error.strerror or error}") from None
    return listener


def serve(predictor: Predictor, limits: Limits) -> None:
    """Serves until it is told to stop (Ctrl-C, SIGTERM). Raises UserError if it cannot listen."""
    listener = listen(limits)
    host, port = listener.getsockname()[:2]
    config = uvicorn.Config(
        make_app(predictor, limits),
        http=protocol(limits.upload_seconds),
        log_level="warning",
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.upload_seconds)),
        timeout_graceful_shutdown=5,
        server_header=False,
    )
    print(f"http://{host}:{port}  (Ctrl-C stops)", file=sys.stderr, flush=True)
    uvicorn.Server(config).run(sockets=[listener])

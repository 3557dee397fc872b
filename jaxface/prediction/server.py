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
import os
import signal
import socket
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from importlib import resources

from jaxface.data import apart
from jaxface.data.decoding import Plan, decode_photo, plan
from jaxface.data.formats import Bounds
from jaxface.data.headers import NoPhoto, TooLarge, Unreadable
from jaxface.errors import UserError
from jaxface.prediction.adapter_server import AdapterServer
from jaxface.prediction.batching import Batcher
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import Json, Photo, Predictor, face_json
from jaxface.prediction.shelf import Shelf
from jaxface.prediction.turns import Turns

try:
    import uvicorn
    from fastapi import FastAPI, Request
    from fastapi.responses import HTMLResponse, JSONResponse, Response
    from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
    from prometheus_client.core import CounterMetricFamily, Metric
    from starlette.exceptions import HTTPException
    from starlette.requests import ClientDisconnect

    from jaxface.prediction.adapter_routes import Waiting, add_routes, asked_for, faces_of
    from jaxface.prediction.connections import Server, protocol
    from jaxface.prediction.refusals import READ, Refusal, Refused, body_of, refusal, strange
except ImportError as missing:
    raise UserError(f"the server needs {missing.name}: pip install 'jaxface[serve]'") from None

log = logging.getLogger(__name__)
POLICY = (
    "default-src 'none'; img-src 'self' blob: data:; media-src blob:; style-src 'unsafe-inline'; script-src 'unsafe-inline'; "
    "connect-src 'self'"
)


DOUBTFUL, DOUBTFUL_SECONDS = 2, 10.0
"""Photos that are decoded at once in processes of their own, so that others never wait for them, and the seconds that each may take."""
QUICK = 16.0
"""Megapixels of work up to which a photo is decoded in the server's own process: a phone's photo, in at most half a second."""
BEHIND = 10
"""How far those processes step back, as Unix counts it."""


class Service:
    """What the endpoints share: the model, who is under way, and what was counted.

    Attributes:
      under_way: photos that are being received, read or classified.
      registry: what `/metrics` tells.
    """

    def __init__(self, predictor: Predictor | AdapterServer, limits: Limits) -> None:
        self.predictor, self.limits = predictor, limits
        self.under_way, started = 0, time.time()
        self.quick, self.doubtful = Turns(max(2, os.cpu_count() or 1)), Turns(DOUBTFUL)
        self.threads = ThreadPoolExecutor(self.quick.places + DOUBTFUL, thread_name_prefix="photo")
        seconds = min(limits.answer_seconds, DOUBTFUL_SECONDS)
        self.bounds = Bounds(limits.megabytes, limits.megapixels, seconds=seconds, heavy=QUICK, nice=BEHIND)
        self.registry = registry = CollectorRegistry()
        self.waiting = Waiting(limits.adapter_waiting)
        fill = Histogram("jaxface_batch_faces", "Faces that a batch was filled with.", buckets=[2**i for i in range(11)], registry=registry)
        queue = Histogram("jaxface_queue_seconds", "Seconds that the first face of a batch waited.", registry=registry)
        self.batcher = Batcher(predictor, lambda count, seconds: (fill.observe(count), queue.observe(seconds)))
        self.answered = Counter("jaxface_requests", "Requests by the status of their answer.", ["status"], registry=registry)
        self.seconds = Histogram("jaxface_answer_seconds", "Seconds to an answer with status 200.", registry=registry)
        told = {
            "jaxface_faces_total": ("Faces that the model has seen.", lambda: self.batcher.faces),
            "jaxface_batches_total": ("Batches that the model has seen.", lambda: self.batcher.batches),
            "jaxface_under_way": ("Photos that are being received, read or classified.", lambda: self.under_way),
            "jaxface_uptime_seconds": ("Seconds since the start.", lambda: time.time() - started),
        }
        for name, (what, value) in told.items():
            Gauge(name, what, registry=registry).set_function(value)
        if isinstance(predictor, AdapterServer):
            registry.register(Shelved(predictor.shelf))

    def warm_up(self) -> None:
        """Compiles the program of every batch size before the first request, and starts a process for the first doubtful photo."""
        with contextlib.suppress(Unreadable), apart.worker(BEHIND):
            pass
        self.predictor.warm_up()

    def close(self) -> None:
        apart.end()  # whoever could wait for an answer has one, and the threads shall not wait
        self.threads.shutdown(cancel_futures=True)
        self.batcher.close()

    async def look(self, data: bytes) -> Photo:
        """Decodes a photo and finds its faces, in a thread. Raises Refused for what is no photo, or too large a one."""
        try:
            planned = plan(data, self.bounds)
            async with (self.doubtful if planned.apart else self.quick).turn(planned.work):
                return await asyncio.get_running_loop().run_in_executor(self.threads, self._look, data, planned)
        except NoPhoto:
            raise Refused(415, "no photo of a known format; send the file's bytes as the request's body") from None
        except TooLarge as error:
            raise Refused(413, str(error)) from None
        except Unreadable as error:
            raise Refused(422, str(error)) from None
        except MemoryError:
            raise Refused(413, "the photo does not fit into memory") from None
        except UserError:
            raise
        except Exception as error:  # whatever a decoder raises is that photo's own
            raise Refused(422, f"the photo cannot be read ({type(error).__name__}: {' '.join(str(error).split())[:200]})") from None

    def _look(self, data: bytes, planned: Plan) -> Photo:
        return self.predictor.find(decode_photo(data, self.bounds, planned).pixels)

    async def answer(self, request: Request) -> Json:
        """The faces of the photo in the request's body."""
        if self.under_way >= self.limits.waiting:
            raise Refused(429, f"{self.limits.waiting} photos are under way already; try again in a moment")
        names = asked_for(request, self.predictor.shelf) if isinstance(self.predictor, AdapterServer) else []
        self.waiting.enter(names)
        self.under_way += 1
        try:
            data = await body_of(request, int(self.limits.megabytes * 1e6), self.limits.upload_seconds, "photo")
            async with asyncio.timeout(self.limits.answer_seconds):
                photo = await self.look(data)
                del data
                faces = await self.faces(photo, names)
            return {"width": photo.width, "height": photo.height, "faces": faces}
        except TimeoutError:
            raise Refused(503, f"no answer within {self.limits.answer_seconds:g} s") from None
        finally:
            self.under_way -= 1
            self.waiting.leave(names)

    async def faces(self, photo: Photo, names: list[str]) -> list[Json]:
        """What the model, or each of the adapters named, says of a photo's faces."""
        if isinstance(self.predictor, AdapterServer):
            return await faces_of(self.predictor, self.batcher, self.threads, photo, names)
        answers = await asyncio.wrap_future(self.batcher.submit(photo.crops))
        return [face_json(face) | answer for face, answer in zip(photo.faces, answers, strict=True)]


class Shelved:
    """Tells Prometheus how often each adapter was read from disk, and found in memory."""

    def __init__(self, shelf: Shelf) -> None:
        self.shelf = shelf

    def collect(self) -> Iterator[Metric]:
        """The counters as they are now."""
        for name, what, counts in (("loads", "read from disk", self.shelf.loads), ("hits", "found in memory", self.shelf.hits)):
            family = CounterMetricFamily(f"jaxface_adapter_{name}", f"How often an adapter was {what}.", labels=["adapter"])
            for adapter, count in list(counts.items()):
                family.add_metric([adapter], count)
            yield family


def make_app(predictor: Predictor | AdapterServer, limits: Limits, token: str | None = None) -> FastAPI:
    """The application. Its programs are compiled when it starts.

    Args:
      token: of whoever may change adapters; nobody may if None.
    """

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
            service.seconds.observe(time.perf_counter() - start)
            status = 200
        except Refused as refused:
            answer, status = refusal(request, refused, limits), refused.status
        except ClientDisconnect:
            answer, status = Response(status_code=499), 499  # nobody reads it
        finally:
            service.answered.labels(status).inc()
        return answer

    if isinstance(predictor, AdapterServer):
        add_routes(app, predictor, limits, token)

    @app.exception_handler(HTTPException)
    async def other(request: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": f"{request.method} {request.url.path}: {error.detail}"}, error.status_code)

    @app.exception_handler(Exception)
    async def failed(request: Request, error: Exception) -> JSONResponse:
        log.error("%s %s", request.method, request.url.path, exc_info=error)
        return JSONResponse({"error": "the server failed on this request; its log says why"}, 500)

    @app.middleware("http")
    async def addressed(request: Request, call_next: Callable[[Request], Awaitable[Response]]) -> Response:
        refused = strange(request, limits)
        return Refusal(Refused(403, refused), limits) if refused else await call_next(request)

    @app.api_route("/health", methods=READ)
    async def health() -> Json:
        return {"status": "ok", **predictor.about()}

    @app.api_route("/metrics", methods=READ)
    async def metrics() -> Response:
        return Response(generate_latest(app.state.service.registry), media_type=CONTENT_TYPE_LATEST)

    @app.api_route("/", methods=READ)
    async def index() -> HTMLResponse:
        return HTMLResponse(page, headers={"content-security-policy": POLICY, "x-content-type-options": "nosniff"})

    return app


def listen(limits: Limits) -> socket.socket:
    """The socket that the server listens on. Raises UserError if the address is taken or none of this machine's."""
    try:
        family = socket.AF_INET6 if ":" in limits.host else socket.AF_INET
        listener = socket.create_server((limits.host, limits.port), family=family, backlog=256)
    except (OSError, OverflowError, UnicodeError) as error:
        raise UserError(f"cannot listen on {limits.host}:{limits.port}: {getattr(error, 'strerror', None) or error}") from None
    return listener


def serve(predictor: Predictor | AdapterServer, limits: Limits, token: str | None = None) -> None:
    """Serves until it is told to stop (Ctrl-C, SIGTERM). Raises UserError if it cannot listen."""
    listener = listen(limits)
    port = listener.getsockname()[1]
    config = uvicorn.Config(
        make_app(predictor, limits, token),
        http=protocol(limits.upload_seconds),
        log_level="warning",
        limit_concurrency=limits.connections,
        timeout_keep_alive=max(1, round(limits.upload_seconds)),
        timeout_graceful_shutdown=round(limits.upload_seconds + limits.answer_seconds) + 1,
        server_header=False,
    )
    host = f"[{limits.host}]" if ":" in limits.host else limits.host
    print(f"http://{host}:{port}  (Ctrl-C stops)", file=sys.stderr, flush=True)
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))  # uvicorn raises it again once all is answered
    Server(config).run(sockets=[listener])

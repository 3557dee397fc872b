"""Adapters over HTTP: asked by name, listed by anybody, changed by whoever has the server's token.

POST   /predict?adapter=a&adapter=b   the photo as each of them sees it: {"faces": [{"box", "score", "adapters": {"a": {...}, ...}}]}
GET    /adapters          which there are
GET    /adapters/NAME     one of them
PUT    /adapters/NAME     takes in a run below the server's folder, the body's {"from": FOLDER} or the one of that name
DELETE /adapters/NAME     takes it off; its folder stays
"""

from __future__ import annotations

import asyncio
import hmac
from collections import Counter
from concurrent.futures import Executor

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, Response

from jaxface.errors import UserError
from jaxface.prediction.adapter_server import AdapterServer, adapted_face
from jaxface.prediction.adapters import Adapter
from jaxface.prediction.batching import Batcher
from jaxface.prediction.limits import Limits
from jaxface.prediction.predictor import Json, Photo
from jaxface.prediction.refusals import READ, Refused, body_of, refusal
from jaxface.prediction.shelf import Shelf, Unknown, parse_source

MOST = 16
"""Adapters that one request may ask."""
BODY = 10_000
"""Bytes of a PUT's body, at most."""


def asked_for(request: Request, shelf: Shelf) -> list[str]:
    """The adapters that a request names; the only one where there is one. Raises Refused."""
    said = [name for word in request.query_params.getlist("adapter") for name in word.split(",") if name]
    names = shelf.names
    if not said and len(names) == 1:
        return names
    if not said:
        raise Refused(400, "name an adapter, ?adapter=NAME; GET /adapters lists them")
    for name in said:
        if name not in shelf:
            raise Refused(404, str(Unknown(name)))
    said = list(dict.fromkeys(said))
    if len(said) > MOST:
        raise Refused(400, f"{len(said)} adapters in one request: at most {MOST}")
    return said


class Waiting:
    """How many photos wait for each adapter, so that one that everybody asks for does not keep the others waiting."""

    def __init__(self, most: int) -> None:
        self.most, self._count = most, Counter[str]()

    def enter(self, names: list[str]) -> None:
        """Raises Refused where too many wait for one of them."""
        for name in names:
            if self._count[name] >= self.most:
                raise Refused(429, f"{self.most} photos wait for adapter {name} already; try again in a moment")
        self._count.update(names)

    def leave(self, names: list[str]) -> None:
        self._count.subtract(names)
        for name in names:
            if not self._count[name]:
                del self._count[name]


async def faces_of(server: AdapterServer, batcher: Batcher, threads: Executor, photo: Photo, names: list[str]) -> list[Json]:
    """A photo's faces as each adapter sees them. Raises Refused for one that has been taken off, or cannot be read any more."""
    loop = asyncio.get_running_loop()
    try:
        adapters: list[Adapter] = [await loop.run_in_executor(threads, server.shelf.get, name) for name in names]
    except Unknown as error:
        raise Refused(404, str(error)) from None
    except UserError as error:
        raise Refused(409, str(error)) from None
    futures = [batcher.submit([(crop, adapter) for crop in photo.crops], adapter.name) for adapter in adapters]
    found = await asyncio.gather(*map(asyncio.wrap_future, futures))
    return [
        adapted_face(face, {name: answers[row] for name, answers in zip(names, found, strict=True)}) for row, face in enumerate(photo.faces)
    ]


def add_routes(app: FastAPI, server: AdapterServer, limits: Limits, token: str | None) -> None:
    """The routes of `/adapters`."""
    shelf = server.shelf

    def about(name: str) -> Json:
        held = shelf.held(name)
        row: Json = {"name": name, "folder": shelf.source(name), "in_memory": held is not None}
        return row if held is None else row | {"model": held.digest, "tasks": [task.name for task in held.tasks], "rank": held.rank}

    def require_token(request: Request) -> None:
        if token is None:
            raise Refused(403, "adapters are not changed over HTTP here: --token-file FILE allows it to whoever knows what is in it")
        if not hmac.compare_digest(request.headers.get("authorization", "").encode(), f"Bearer {token}".encode()):
            raise Refused(401, "expected the header 'authorization: Bearer TOKEN' with this server's token")

    async def change(request: Request, name: str) -> Json:
        require_token(request)
        loop = asyncio.get_running_loop()
        if request.method == "PUT":
            body = await body_of(request, BODY, limits.upload_seconds, "body")
            adapter = await loop.run_in_executor(None, lambda: shelf.put(name, parse_source(body)))
            return about(name) | {"model": adapter.digest}
        await loop.run_in_executor(None, shelf.remove, name)
        return {"removed": name}

    @app.api_route("/adapters", methods=READ)
    async def listed() -> Json:
        return {"adapters": [about(name) for name in shelf.names if name in shelf]}

    @app.api_route("/adapters/{name}", methods=[*READ, "PUT", "DELETE"])
    async def named(request: Request, name: str) -> Response:
        try:
            return JSONResponse(about(name) if request.method in READ else await change(request, name))
        except Refused as refused:
            return refusal(request, refused, limits)
        except UserError as error:
            return refusal(request, Refused(404 if isinstance(error, Unknown) else 422, str(error)), limits)

"""A host of model files on this machine, as an operator's own store is: files by name, in ranges."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from demo.plan import weights
from worker.tasks import cancel_all
from worker.web.server import serve


class ModelHost:
    """``begun`` counts the files that were asked for from their first byte, ``sent`` bytes of them all."""

    def __init__(self, names: Iterable[str]) -> None:
        self._digests = {name: hashlib.sha256(weights(name)).hexdigest() for name in names}
        self._size = {name: len(weights(name)) for name in self._digests}
        self.url = ""
        self.begun = 0
        self.sent = 0

    @classmethod
    @asynccontextmanager
    async def listening(cls, names: Iterable[str]) -> AsyncIterator[ModelHost]:
        """A host of these files on a free port of ``[::1]``."""
        host = cls(names)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        app = Starlette(routes=[Route("/models/{name}", host.give, methods=["GET"])])
        task = asyncio.create_task(serve(app, "::1", 0, on_listening=listening.set_result), name="demo-models")
        try:
            host.url = f"http://[::1]:{await listening}/models"
            yield host
        finally:
            await cancel_all({task})

    @property
    def catalogue(self) -> list[dict[str, Any]]:
        """Every file as `PUT /models` takes it."""
        return [
            {
                "kind": "checkpoint",
                "name": name,
                "url": f"{self.url}/{name}",
                "sha256": digest,
                "size": self._size[name],
            }
            for name, digest in self._digests.items()
        ]

    async def give(self, request: Request) -> Response:
        """The file, or the range of it that is asked for."""
        name = request.path_params["name"]
        if name not in self._digests:
            return Response(status_code=404)
        body, tag = weights(name), f'"{self._digests[name]}"'
        first, last = _range(request.headers.get("range"), len(body))
        if first >= len(body):
            return Response(status_code=416, headers={"content-range": f"bytes */{len(body)}"})
        part = body[first : last + 1]
        if request.method == "GET":
            self.begun += first == 0
            self.sent += len(part)
        headers = {"accept-ranges": "bytes", "etag": tag}
        if "range" not in request.headers:
            return Response(body, headers=headers, media_type="application/octet-stream")
        headers["content-range"] = f"bytes {first}-{first + len(part) - 1}/{len(body)}"
        return Response(part, 206, headers, "application/octet-stream")


def _range(asked: str | None, size: int) -> tuple[int, int]:
    """The first and the last byte that a ``Range`` of the form ``bytes=A-B`` or ``bytes=A-`` asks for; else all."""
    first, _, last = (asked or "bytes=0-").removeprefix("bytes=").partition("-")
    if not first.isdecimal() or not (last.isdecimal() or not last):
        return 0, size - 1
    return int(first), min(int(last), size - 1) if last else size - 1

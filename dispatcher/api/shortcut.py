"""The nodes' requests on the shortest way to their endpoints."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute
from starlette.types import ASGIApp, Receive, Scope, Send

from dispatcher.api import problems
from dispatcher.store.base import StoreUnavailable
from worker.errors import WorkerError

Endpoint = Callable[..., Awaitable[Response]]


class Shortcut:
    """ASGI middleware: requests for the router's POST routes go straight to their endpoints.

    Nearly all requests are a node's, and FastAPI's way to a route costs as much as what is done there. The endpoints
    must read their requests themselves and give back a `Response`; nothing else of FastAPI applies to them but the
    OpenAPI document. Parts of a path come as text.
    """

    def __init__(self, app: ASGIApp, router: APIRouter, on_bug: Callable[[], None]) -> None:
        self._app = app
        self._on_bug = on_bug
        routes = [route for route in router.routes if isinstance(route, APIRoute) and route.methods == {"POST"}]
        self._plain: dict[str, Endpoint] = {one.path: one.endpoint for one in routes if not one.param_convertors}
        self._others: list[tuple[re.Pattern[str], Endpoint]] = [
            (one.path_regex, one.endpoint) for one in routes if one.param_convertors
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        found = self._found(scope["path"]) if scope["type"] == "http" and scope["method"] == "POST" else None
        if found is None:
            await self._app(scope, receive, send)
            return
        endpoint, parts = found
        try:
            answer = await endpoint(request=Request(scope, receive), **parts)
        except (WorkerError, StoreUnavailable) as error:
            answer = problems.answer(error, self._on_bug)
        await answer(scope, receive, send)

    def _found(self, path: str) -> tuple[Endpoint, dict[str, str]] | None:
        endpoint = self._plain.get(path)
        if endpoint is not None:
            return endpoint, {}
        for pattern, endpoint in self._others:
            if match := pattern.match(path):
                return endpoint, match.groupdict()
        return None

"""The worker on this machine, asked over its own HTTP API for the models that it has."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from http import HTTPStatus
from typing import Any, Self
from urllib.parse import quote

import httpx
import pydantic_core

from worker import http
from worker.errors import (
    AuthFailed,
    ConfigError,
    DiskFull,
    DownloadFailed,
    Draining,
    InvalidJob,
    ModelCorrupt,
    ModelForbidden,
    ModelInUse,
    ModelNotFound,
    ModelTooLarge,
    UrlForbidden,
    WorkerError,
)
from worker.mentions import Place
from worker.models.base import Entry, InFlight, Priority, Wanted
from worker.models.folders import Folders
from worker.settings.address import probe_address
from worker.settings.groups import Settings

PATH = "/v1/models"
LOOK_WITHIN = timedelta(seconds=10)
WAIT_MOST = timedelta(days=7)

_ERRORS: Mapping[str, type[WorkerError]] = {
    error.code: error
    for error in (
        *(AuthFailed, ConfigError, DiskFull, DownloadFailed, Draining, InvalidJob, ModelCorrupt, ModelForbidden),
        *(ModelInUse, ModelNotFound, ModelTooLarge, UrlForbidden),
    )
}


async def running(settings: Settings, folders: Folders) -> Running | None:
    """The worker that has these folders; None where none answers for them to this key."""
    key = settings.http.api_key
    hosts, port = probe_address({"WORKER_HTTP_HOST": settings.http.host, "WORKER_HTTP_PORT": str(settings.http.port)})
    for host in hosts if key is not None and port else ():
        shown = f"[{host}]" if ":" in host else host
        worker = Running(f"http://{shown}:{port}", key.get_secret_value() if key is not None else "")
        try:
            if (await worker.document()).get("folder") == str(folders.root):
                return worker
        except WorkerError:
            pass
        await worker.aclose()
    return None


class Running:
    """Its client. What it is told to fetch is fetched under the rules for callers: only from the hosts that jobs may
    name."""

    def __init__(self, url: str, key: str) -> None:
        self._client = http.client(base_url=url, timeout=WAIT_MOST, loopback=True)
        self._headers = [(b"x-api-key", key.encode())]

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.aclose()

    async def document(self) -> dict[str, Any]:
        """All that it tells of its models. Raises `DownloadFailed` where nobody answers in time."""
        found = await self._asked("GET", PATH, timeout=LOOK_WITHIN)
        if not isinstance(found, dict):
            raise DownloadFailed("what answers there is no worker")
        return found

    async def fetch(self, wanted: Wanted) -> Entry:
        """As `Shelf.fetch`."""
        order = {
            "kind": wanted.kind or None,
            "name": wanted.name or None,
            "url": wanted.url,
            "sha256": wanted.sha256,
            "wait": True,
        }
        found = await self._asked("POST", PATH, json=order)
        return Entry(Place(found["kind"], found["name"]), found["size"], 0, found["sha256"])

    async def transfers(self) -> tuple[InFlight, ...]:
        """As `Shelf.transfers`."""
        return transfers_of(await self.document())

    async def holds(self, place: Place) -> bool:
        return any((one["kind"], one["name"]) == place for one in (await self.document())["on_disk"])

    async def remove(self, place: Place) -> None:
        """As `Shelf.remove`."""
        await self._asked("DELETE", f"{PATH}/{quote(place.kind, safe='')}/{quote(place.name)}")

    async def aclose(self) -> None:
        await self._client.aclose()

    async def _asked(self, method: str, path: str, *, timeout: timedelta = WAIT_MOST, json: Any = None) -> Any:
        with http.translating(DownloadFailed):
            answer = await self._client.request(
                method, path, json=json, headers=self._headers, timeout=timeout.total_seconds()
            )
        if not answer.is_success:
            raise _error(answer)
        return _json(answer) if answer.content else None


def transfers_of(document: Mapping[str, Any]) -> tuple[InFlight, ...]:
    """The transfers that somebody waits for."""
    found = (
        InFlight(Place(one["kind"], one["name"]), one["size"], one["done"], one["source"], Priority(one["priority"]))
        for one in document["downloading"]
    )
    return tuple(one for one in found if one.priority is not Priority.BACKGROUND)


def _json(answer: httpx.Response) -> Any:
    try:
        return pydantic_core.from_json(answer.content)
    except ValueError:
        raise DownloadFailed("what answers there is no worker") from None


def _error(answer: httpx.Response) -> WorkerError:
    """The error that a problem tells."""
    try:
        problem = pydantic_core.from_json(answer.content)
    except ValueError:
        problem = None
    if not isinstance(problem, dict):
        problem = {}
    detail = problem.get("detail") or HTTPStatus(answer.status_code).phrase
    kind = _ERRORS.get(str(problem.get("code")), DownloadFailed)
    return kind(detail if kind is not DownloadFailed else f"the worker answered {answer.status_code}: {detail}")

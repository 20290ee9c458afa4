"""The endpoints in a server's own language over a fake engine: requests and ends by hand, no socket and no pipeline."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, MutableMapping
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, cast

from fastapi import Request

from tests.support.fakes import FakeEngine
from worker.api.native import Native
from worker.api.relay import Relay
from worker.desk import Desk, Ended, Rules
from worker.engines.answer import Answer
from worker.engines.base import NativeCall, Output, RawImage
from worker.gate import Gate
from worker.job import Limits
from worker.made import Made
from worker.result import EngineResult, ImageResult, Result, WorkerResult
from worker.storage.base import Artifact

RULES = Rules(Limits(), 2, timedelta(seconds=60), None, cancel_on_disconnect=True)
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class TellingEngine(FakeEngine):
    """Answers relayed calls with ``answer`` once ``go`` is set."""

    name = "a1111"

    def __init__(self, answer: Answer | None = None) -> None:
        super().__init__()
        self.answer = answer or Answer(200, {"content-type": "application/json"}, b'{"a": 1}')
        self.go = asyncio.Event()
        self.go.set()
        self.ended = 0

    async def relay(self, call: NativeCall) -> Answer:
        self.relayed.append(call)
        await self.go.wait()
        self.ended += 1
        return self.answer


def native_of(engine: FakeEngine, *, allowed: bool = False, rules: Rules = RULES, ready: bool = True) -> Native:
    """With a desk that has rules and nothing else."""
    gate = Gate(engine)
    if ready:
        gate.open("starting")
    desk = cast("Desk", SimpleNamespace(rules=rules, tickets=(), held=lambda _: None))
    return Native(desk, engine, gate, "auto", Relay(engine, gate, rules, options_allowed=allowed))


class Caller:
    """A request's connection: ``leave`` ends it."""

    def __init__(self, query: str = "", body: bytes = b"") -> None:
        self._gone = asyncio.Event()
        self._body = body
        self._read = False
        scope = {
            "type": "http",
            "method": "POST",
            "path": "/",
            "headers": [(b"authorization", b"Bearer key"), (b"cookie", b"a=b")],
            "query_string": query.encode(),
        }
        self.request = Request(scope, self._receive)

    async def _receive(self) -> MutableMapping[str, Any]:
        if not self._read:
            self._read = True
            return {"type": "http.request", "body": self._body, "more_body": False}
        await self._gone.wait()
        return {"type": "http.disconnect"}

    def leave(self) -> None:
        self._gone.set()


def ended(
    *datas: bytes, native: Mapping[str, Any] | None = None, version: str | None = None, format: str = "png"
) -> Ended:
    """A job that succeeded with these images, at hand."""
    artifacts = tuple(Artifact(i, data, format, 8, 8, 7 + i) for i, data in enumerate(datas))
    engine = EngineResult(name="a1111", version=version)
    output = Output(tuple(RawImage(data, 7 + i) for i, data in enumerate(datas)), engine, native=native or {})
    result = Result(
        id="job-1",
        status="succeeded",
        images=tuple(artifact.result() for artifact in artifacts),
        engine=engine,
        worker=WorkerResult(id="w1", machine="m", gpu=None, version="1"),
        created_at=NOW,
        finished_at=NOW,
    )
    return Ended(result, Made(output, artifacts, flat=False))


def stored(end: Ended, **where: Any) -> Ended:
    """The same, but what was made is not at hand: its images say ``where`` they are."""
    images = tuple(ImageResult.model_validate({**image.model_dump(), **where}) for image in end.result.images)
    return replace(end, result=end.result.model_copy(update={"images": images}), made=None)

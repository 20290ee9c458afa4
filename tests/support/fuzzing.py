"""Requests that nobody in his right mind sends, to a worker in a process of its own, and what is wrong with the
answers."""

from __future__ import annotations

import asyncio
import copy
import json
import os
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st
from schemathesis.core.failures import Failure, FailureGroup
from schemathesis.specs.openapi.checks import (
    content_type_conformance,
    response_schema_conformance,
    status_code_conformance,
)

from tests.support.waiting import wait_until
from tests.support.workshop import Life, living
from worker.simulators import free_port

CHECKS = [status_code_conformance, content_type_conformance, response_schema_conformance]
EXPECTED = (Failure, FailureGroup)


@dataclass
class Gateway:
    """A worker that takes HTTP jobs for a simulated server."""

    life: Life
    url: str

    async def bugs(self) -> float:
        async with httpx.AsyncClient(trust_env=False) as client:
            found = (await client.get(f"{self.url}/v1/status")).json()
        return float(found["counters"]["bugs"])


@asynccontextmanager
async def gateway(folder: Path, kind: str, **changes: str) -> AsyncIterator[Gateway]:
    """Ready; server and worker are processes of their own."""
    inherited = {name: os.environ[name] for name in ("PATH", "HOME", "LANG", "TMPDIR") if name in os.environ}
    measured = {name: os.environ[name] for name in os.environ if name.startswith("COVERAGE_PROCESS_")}
    engine, own = free_port(), free_port()
    place = ("--base-dir", str(folder)) if kind == "comfyui" else ()
    server = (kind, "--port", str(engine), "--step-seconds", "0.001", "--load-seconds", "0", *place)
    variables = {
        **inherited,
        **measured,
        "WORKER_ENGINE": kind,
        "WORKER_ENGINE_URL": f"http://[::1]:{engine}",
        "WORKER_HTTP_PORT": str(own),
        "WORKER_HTTP_TIMEOUT": "10s",
        "WORKER_MAX_PENDING": "64",
        "WORKER_STORAGE_DIRECTORY": str(folder / "outputs"),
        "WORKER_WARMUP": "none",
        "WORKER_LOG_FORMAT": "json",
        **changes,
    }
    async with (
        living("worker.simulators", *server, environment=inherited, log=folder / "server.log"),
        living("worker", "run", environment=variables, log=folder / "worker.log") as life,
    ):
        await wait_until(lambda: life.over or _is_ready(life), timeout=60)
        assert not life.over, life.tail()
        yield Gateway(life, f"http://[::1]:{own}")


def _is_ready(life: Life) -> bool:
    return any(event["phase"] == "ready" for event in life.events("phase_changed"))


async def fuzzed(here: Gateway, *, examples: int) -> dict[str, str]:
    """Generated requests for each operation, and what is wrong with answers to them."""
    return await asyncio.to_thread(_fuzzed, here.url, examples)


async def mutated(here: Gateway, *, examples: int) -> dict[str, str]:
    """The document's own examples with something else in a place or two, and what is wrong with answers to them."""
    return await asyncio.to_thread(_mutated, here.url, examples)


def _document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = httpx.get(f"{url}/openapi.json", trust_env=False).raise_for_status().json()
    return found


def _quietly(examples: int) -> settings:
    return settings(
        max_examples=examples,
        deadline=None,
        database=None,
        derandomize=True,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )


def _fuzzed(url: str, examples: int) -> dict[str, str]:
    wrong: dict[str, str] = {}
    schema = schemathesis.openapi.from_dict(_document(url))
    for found in schema.get_all_operations():
        operation: Any = found.ok()  # type: ignore[union-attr]

        @_quietly(examples)
        @given(case=operation.as_strategy())
        def ask(case: Any) -> None:
            answer = case.call(base_url=url, timeout=60)
            said = _wrong_with(case, answer)
            if said is not None:
                wrong.setdefault(f"{case.method} {case.path} {answer.status_code}", said)

        ask()
    return wrong


def _wrong_with(case: Any, answer: Any) -> str | None:
    if answer.status_code == 500:
        return f"{answer.text[:300]} after {case.as_curl_command()[:600]}"
    try:
        case.validate_response(answer, checks=CHECKS)
    except EXPECTED as failure:
        return f"{failure}"[:800]
    return None


ODD: tuple[Any, ...] = (
    *(None, True, False, 0, -1, 1.5, 2**31, 2**63, -(2**63), 10**40, 1e308, "", " ", "\0", "\ud800", "x" * 2000),
    *("../../etc/passwd", "http://[::1]:1/", "-1", "NaN", "{{x}}", "<lora:x:1>", "data:image/png;base64,AAAA"),
    *([], {}, [[]], [None], {"": None}, {"a": {"b": []}}, [{}] * 100, {"__proto__": 1}, {"$ref": "#/"}),
)
JUNK: st.SearchStrategy[Any] = st.one_of(
    st.sampled_from(ODD),
    st.text(max_size=5),
    st.integers(),
    st.floats(allow_nan=False, allow_infinity=False),
)
BODIES = (
    *(b"", b" ", b"{", b"null", b"[]", b'"x"', b"1", b"\xff\xfe", b"{}", b'{"": 1}', b'{"params": NaN}', b"{}{}"),
    *(
        b"[" * 100_000,
        b'{"a":' * 50_000,
        b'{"params": {"prompt": "\xff"}}',
        b'{"params":1,"params":2}',
        b"\xef\xbb\xbf{}",
    ),
)


@dataclass
class Asking:
    """Bodies for one operation, and what is wrong with its answers."""

    client: httpx.Client
    method: str
    path: str
    documented: frozenset[str]
    wrong: dict[str, str] = field(default_factory=dict)

    def ask(self, body: bytes) -> None:
        headers = {"content-type": "application/json"}
        answer = self.client.request(self.method, self.path, content=body, headers=headers)
        if answer.status_code == 500 or str(answer.status_code) not in self.documented:
            name = f"{self.method} {self.path} {answer.status_code}"
            self.wrong.setdefault(name, f"{answer.text[:300]} after {body[:600]!r}")

    def changed(self, example: Any, examples: int) -> None:
        """The example with something else in a place or two."""
        places = list(_places(example))

        @_quietly(examples)
        @given(changes=st.lists(st.tuples(st.sampled_from(places), JUNK), min_size=1, max_size=2))
        def change(changes: list[tuple[tuple[Any, ...], Any]]) -> None:
            document = copy.deepcopy(example)
            for place, junk in changes:
                document = _with(document, place, junk)
            self.ask(json.dumps(document).encode())

        change()


def _mutated(url: str, examples: int) -> dict[str, str]:
    wrong: dict[str, str] = {}
    with httpx.Client(base_url=url, trust_env=False, timeout=60) as client:
        for method, path, operation in _taking(_document(url)):
            asking = Asking(client, method, path, frozenset(operation["responses"]), wrong)
            for body in BODIES:
                asking.ask(body)
            for example in _examples(operation):
                asking.changed(example, examples)
    return wrong


def _taking(document: dict[str, Any]) -> Iterator[tuple[str, str, dict[str, Any]]]:
    """Operations whose bodies have examples."""
    for path, item in document["paths"].items():
        for method, operation in item.items():
            if "{" not in path and any(True for _ in _examples(operation)):
                yield method.upper(), path, operation


def _examples(operation: dict[str, Any]) -> Iterator[Any]:
    for content in operation.get("requestBody", {}).get("content", {}).values():
        if "example" in content:
            yield content["example"]
        yield from (one["value"] for one in content.get("examples", {}).values())


def _places(node: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every place in a document, and one more in each of its objects."""
    if isinstance(node, dict):
        yield (*path, "surplus")
        for key, value in node.items():
            yield (*path, key)
            yield from _places(value, (*path, key))
    elif isinstance(node, list):
        for index, value in enumerate(node):
            yield (*path, index)
            yield from _places(value, (*path, index))


def _with(node: Any, path: tuple[Any, ...], junk: Any) -> Any:
    """The document with something else in a place; as it is where the place is gone."""
    if not path:
        return junk
    head, rest = path[0], path[1:]
    if isinstance(node, dict):
        return {**node, head: _with(node.get(head), rest, junk)}
    if isinstance(node, list) and isinstance(head, int) and head < len(node):
        return [_with(one, rest, junk) if index == head else one for index, one in enumerate(node)]
    return node

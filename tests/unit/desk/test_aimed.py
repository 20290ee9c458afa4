"""Jobs of a queue that are aimed at an endpoint: what is answered, what goes back, and how long it stays ours."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from starlette.datastructures import Headers
from structlog.testing import capture_logs

from tests.support.queues import result_of
from tests.support.virtual import elapse, virtual
from worker.desk.aimed import REST, Aimed
from worker.drain import Drain
from worker.errors import InternalError, LeaseLost, QueueUnavailable, ResultTooLarge, WorkerError
from worker.live import Live
from worker.lookahead import Pace
from worker.node import Orders
from worker.queues.base import Delivery, Received
from worker.result import Result
from worker.web.inside import Answer

PATH = "/sdapi/v1/txt2img"


class Line:
    """A queue with one job, which notes what it is told; ``troubles`` are raised in turn by its answers."""

    capacity: int | None = 1
    can_delay = False

    def __init__(self, path: str = PATH, *troubles: WorkerError) -> None:
        self.path = path
        self.troubles = list(troubles)
        self.told: list[tuple[str, Any]] = []
        self.extends = 0
        self.lost = asyncio.Event()
        self.refusal: WorkerError | None = None
        self.orders = Orders(cancel=("x",))

    async def receive(self) -> Received:
        return Received(Delivery("job-1", b'{"prompt": "a"}', timedelta(seconds=100)), self.orders)

    def path_of(self, delivery: Delivery) -> str:
        return self.path

    async def extend(self, delivery: Delivery) -> Orders | None:
        self.extends += 1
        if self.lost.is_set():
            raise LeaseLost
        return None

    async def ack(self, delivery: Delivery, result: Result) -> None:
        self._note("ack", result.id)

    async def nack(self, delivery: Delivery, delay: timedelta, code: str, *, charged: bool) -> None:
        self._note("nack", (code, delay, charged))

    async def reject(self, delivery: Delivery, result: Result) -> None:
        self._note("reject", result.id)

    async def complete(self, delivery: Delivery, output: bytes, otherwise: Callable[[WorkerError], bytes]) -> None:
        self._note("complete", json.loads(output if self.refusal is None else otherwise(self.refusal)))

    async def check(self) -> str:
        return "fine"

    def leave(self) -> None:
        self._note("leave", None)

    async def aclose(self) -> None:
        self._note("aclose", None)

    def _note(self, verb: str, what: Any) -> None:
        if self.troubles:
            raise self.troubles.pop(0)
        self.told.append((verb, what))


class Endpoint:
    """Answers once ``go`` is set, or nobody waits any more."""

    def __init__(self, status: int = 200, body: bytes = b'{"images": []}', **headers: str) -> None:
        self.answer = Answer(status, Headers({name.replace("_", "-"): value for name, value in headers.items()}), body)
        self.asked: list[tuple[str, bytes, dict[str, str]]] = []
        self.go = asyncio.Event()
        self.go.set()
        self.was_left = False

    async def __call__(self, path: str, body: bytes, headers: dict[str, str], left: asyncio.Event) -> Answer:
        self.asked.append((path, body, headers))
        waits = {asyncio.create_task(one.wait(), name="wait") for one in (self.go, left)}
        await asyncio.wait(waits, return_when=asyncio.FIRST_COMPLETED)
        for one in waits:
            one.cancel()
        self.was_left = left.is_set()
        return self.answer


def opened(line: Line, endpoint: Endpoint) -> tuple[Aimed, Drain]:
    drain = Drain(Live(), Pace())
    aimed = Aimed(line, random.Random(1))
    aimed.serves(endpoint, drain)
    return aimed, drain


async def settled(line: Line, endpoint: Endpoint) -> list[tuple[str, Any]]:
    """What the queue is told of one job."""
    aimed, _ = opened(line, endpoint)
    received = await aimed.receive()
    assert received == Received(None, line.orders)
    await elapse(60)
    await aimed.aclose()
    return line.told


@virtual
async def test_the_answer_of_the_endpoint_is_the_output() -> None:
    """It is asked as the platform's own worker asks it, and once: under a key of its own."""
    endpoint = Endpoint()
    with capture_logs() as events:
        assert await settled(Line(), endpoint) == [("complete", {"images": []})]
    headers = {"content-type": "application/json", "salad-job-id": "job-1", "idempotency-key": "job-1"}
    assert endpoint.asked == [(PATH, b'{"prompt": "a"}', headers)]
    assert [(one["event"], one["status"]) for one in events] == [("request_settled", 200)]


@pytest.mark.parametrize("path", ["/v1/jobs", "/v1/jobs/", "/v1/jobs?x=1", "/", ""])
@virtual
async def test_job_documents_are_handed_on(path: str) -> None:
    """As they are."""
    line, endpoint = Line(path), Endpoint()
    aimed, _ = opened(line, endpoint)
    assert await aimed.receive() == await line.receive()
    assert endpoint.asked == []


@pytest.mark.parametrize("status", [202, 400, 404, 409, 422])
@virtual
async def test_what_would_be_the_same_anywhere_is_the_output(status: int) -> None:
    """Poison too: another node would say no other."""
    assert await settled(Line(), Endpoint(status, b'{"code": "x"}')) == [("complete", {"code": "x"})]


@virtual
async def test_an_answer_without_a_body() -> None:
    """The queue takes JSON alone."""
    assert await settled(Line(), Endpoint(204, b"")) == [("complete", None)]


@pytest.mark.parametrize(
    ("endpoint", "code", "delay"),
    [
        (lambda: Endpoint(503, b'{"code": "draining"}', retry_after="20"), "draining", timedelta(seconds=20)),
        (lambda: Endpoint(429, b'{"code": 7}', retry_after="9999"), "http_429", timedelta(minutes=15)),
        (lambda: Endpoint(408, b'["x"]'), "http_408", REST),
        (lambda: Endpoint(500, b"no json", retry_after="soon"), "http_500", REST),
    ],
)
@virtual
async def test_what_may_succeed_elsewhere_goes_back(
    endpoint: Callable[[], Endpoint], code: str, delay: timedelta
) -> None:
    """With the code of the problem, and for as long as the endpoint says."""
    assert await settled(Line(), endpoint()) == [("nack", (code, delay, False))]


@pytest.mark.parametrize(("refusal", "status"), [(ResultTooLarge("big"), 422), (InternalError("odd"), 500)])
@virtual
async def test_an_output_that_the_queue_does_not_take(refusal: WorkerError, status: int) -> None:
    """A problem that says so takes its place."""
    line = Line()
    line.refusal = refusal
    [(verb, output)] = await settled(line, Endpoint())
    assert (verb, output["status"], output["code"], output["detail"]) == (
        "complete",
        status,
        refusal.code,
        refusal.message,
    )


@virtual
async def test_a_queue_that_is_away_is_told_later() -> None:
    """However long that takes; the job stays ours meanwhile."""
    line = Line(PATH, *(QueueUnavailable("away") for _ in range(5)))
    assert await settled(line, Endpoint()) == [("complete", {"images": []})]
    assert line.troubles == []


@virtual
async def test_a_queue_that_is_away_at_the_end_of_the_drain() -> None:
    """It is not told: the job will be done again elsewhere."""
    line = Line(PATH, *(QueueUnavailable("away") for _ in range(100)))
    aimed, drain = opened(line, Endpoint())
    await aimed.receive()
    drain.begin(asyncio.get_running_loop().time() + 5)
    with capture_logs() as events:
        await elapse(30)
        await aimed.aclose()
    assert line.told == []
    assert "job_unanswered" in [one["event"] for one in events]


@virtual
async def test_the_job_is_kept_while_the_endpoint_works() -> None:
    """By a renewal at a quarter of its visibility; one that is lost is not answered, and the endpoint is left."""
    line, endpoint = Line(), Endpoint()
    endpoint.go.clear()
    aimed, _ = opened(line, endpoint)
    with capture_logs() as events:
        await aimed.receive()
        await elapse(110)
        assert line.extends == 5
        line.lost.set()
        await elapse(26)
    assert (endpoint.was_left, line.told) == (True, [])
    assert [one["event"] for one in events] == ["job_abandoned"]
    await aimed.aclose()


@virtual
async def test_closing_waits_a_while() -> None:
    """For what is being asked; then it is left to the other queue, which gives it back."""
    line, endpoint = Line(), Endpoint()
    endpoint.go.clear()
    aimed, _ = opened(line, endpoint)
    await aimed.receive()
    asyncio.get_running_loop().call_later(2, endpoint.go.set)
    await aimed.aclose()
    assert line.told == [("complete", {"images": []})]
    endpoint.go.clear()
    await aimed.receive()
    await aimed.aclose()
    assert (len(line.told), endpoint.was_left) == (1, True)


@virtual
async def test_nobody_serves() -> None:
    """A delivery for an endpoint before there is one is a bug."""
    with pytest.raises(ValueError, match="nobody serves"):
        await Aimed(Line(), random.Random(1)).receive()


@virtual
async def test_everything_else_is_the_other_queues() -> None:
    """Its limits, its verbs, its check."""
    line = Line("/v1/jobs")
    aimed, _ = opened(line, Endpoint())
    assert (aimed.capacity, aimed.can_delay) == (1, False)
    delivery = (await aimed.receive()).delivery
    assert delivery is not None
    assert await aimed.extend(delivery) is None
    await aimed.ack(delivery, result_of("a"))
    await aimed.reject(delivery, result_of("b", "failed", code="x"))
    await aimed.nack(delivery, REST, "x", charged=True)
    aimed.leave()
    assert line.told == [("ack", "a"), ("reject", "b"), ("nack", ("x", REST, True)), ("leave", None)]
    assert await aimed.check() == "fine"

"""A worker that is frozen at an effect past its lease, while another does its job, and then goes on."""

from __future__ import annotations

import asyncio
import hashlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.support.failing_worker import Failure
from tests.support.ledger import Ledger
from tests.support.lines_base import VISIBILITY_S
from tests.support.turnstile import Turnstile, turnstile
from tests.support.waiting import wait_until
from tests.support.workshop import Life, Workshop
from worker.failpoints import POINTS, Effect

SIDE = 512
"""Pictures of half a megabyte, which no socket swallows whole."""

Place = Callable[[str, str], bool]
PLACES: dict[Effect, Place] = {
    Effect.UPLOAD: lambda method, path: method == "PUT" and ".png" in path,
    Effect.MARK: lambda method, path: method == "PUT" and "/result.json" in path,
    Effect.FAILURE: lambda method, path: method == "PUT" and "/failure-" in path,
    Effect.WEBHOOK: lambda method, path: method == "POST",
}
"""The effects that are requests, by which one can be told from others."""

HOPS = tuple(point for point in POINTS if "_" not in point)
"""Where a job has no effect that others see."""

CELLS = [
    *HOPS,
    *(f"{when}_{effect}" for effect in PLACES for when in ("before", "during", "after")),
    *(f"{when}_{effect}" for effect in (Effect.ACK, Effect.REJECT) for when in ("before", "after")),
]


TOLD = ("after_ack", "after_reject")
"""Where the queue has been told how the job ended."""


class Published:
    """The objects that results named at one time, by their hashes."""

    def __init__(self, ledger: Ledger) -> None:
        self.marks = {key: body for key, body in ledger.objects.items() if key.endswith("/result.json")}
        named = [image["key"] for body in self.marks.values() for image in json.loads(body)["images"]]
        self.images = {key: hashlib.sha256(ledger.objects[key]).hexdigest() for key in named}

    def changed(self, ledger: Ledger) -> set[str]:
        """The keys among them under which something else stands now, or nothing."""
        now = {key: hashlib.sha256(ledger.objects.get(key, b"")).hexdigest() for key in self.images}
        return {key for key, digest in self.images.items() if now[key] != digest}


async def frozen_at(shop: Workshop, cell: str) -> tuple[Published, Ledger]:
    """Freeze a worker there, let another do the job, and let the first go on: what was published, and the end.

    It happens at the worker's second job, when all its connections are made. The two have servers that draw
    different pictures of the same job, as two GPUs may. The thawed one's upload may be sent before it hears that its
    lease is lost, or be given up unsent; it settles nothing.
    """
    when, _, effect = cell.partition("_")
    failures = [] if when == "during" else [Failure(cell, hit=2, deed="hold")]
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(turnstile(shop.bucket.endpoint_url))
        hook = await stack.enter_async_context(turnstile(shop.receiver.url()))
        places = {"WORKER_S3_ENDPOINT_URL": store.url, "WORKER_WEBHOOK_URL": f"{hook.url}/hook"}
        zombie = await stack.enter_async_context(shop.worker("zombie", *failures, hasty=True, **places))
        await _submit(shop, "first", effect)
        await shop.ended(zombie)
        if when == "during":
            await _freeze_during(zombie, shop, effect, hook if effect == Effect.WEBHOOK else store)
        else:
            await _submit(shop, "job", effect)
            await zombie.held()
            await shop.freeze(zombie)
        other = {"WORKER_ENGINE_URL": shop.simulators[1].url}
        heir = await stack.enter_async_context(shop.worker("heir", hasty=True, **other))
        await _outlasted(shop, heir)
        published = Published(await shop.ledger())
        passed = store.passed
        zombie.thaw()
        for place in (store, hook):
            place.release()
        if cell == "before_upload":
            await wait_until(lambda: store.passed > passed or at_rest(zombie), timeout=30)
        await wait_until(lambda: zombie.over or at_rest(zombie), timeout=30)
        for place in (store, hook):
            await place.idle()
        assert [await life.stop() for life in (heir, zombie)] == [0, 0], zombie.tail()
        assert settled_by(zombie) == (["first", "job"] if cell in TOLD else ["first"]), zombie.tail()
        assert settled_by(heir) == ([] if cell in TOLD else ["job"]), heir.tail()
    return published, await shop.ledger(one_result=False)


async def _outlasted(shop: Workshop, heir: Life) -> None:
    """Wait until the heir has done what is left, and the frozen one's lease is over by any clock."""
    loop = asyncio.get_running_loop()
    since = loop.time()
    await shop.line.give_up("zombie")
    await wait_until(lambda: heir.over or heir.events("listening"), timeout=30)
    await shop.ended(heir)
    await wait_until(lambda: loop.time() > since + VISIBILITY_S * 1.5)


async def _submit(shop: Workshop, job_id: str, effect: str) -> None:
    refused = effect in (Effect.FAILURE, Effect.REJECT)
    await shop.submit(job_id, code="invalid_job" if refused else None, steps=10_000 if refused else 4, width=SIDE)


async def _freeze_during(life: Life, shop: Workshop, effect: str, place: Turnstile) -> None:
    """Freeze it when half of the request's body has arrived."""
    place.hold(PLACES[Effect(effect)])
    await _submit(shop, "job", effect)
    await wait_until(lambda: place.held.is_set() or life.over, timeout=30)
    assert place.held.is_set(), life.tail()
    await shop.freeze(life)


def settled_by(life: Life) -> list[str]:
    """The jobs that it says it has settled."""
    return [one["job"] for one in life.events("job_settled")]


def at_rest(life: Life) -> bool:
    """Whether the worker has done with both jobs."""
    return len(life.events("job_abandoned")) + len(life.events("job_settled")) >= 2

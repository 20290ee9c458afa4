"""A worker that is frozen at an effect past its lease, while another does its job, and then goes on."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from contextlib import AsyncExitStack

from tests.support.failing_worker import Failure
from tests.support.ledger import Ledger
from tests.support.turnstile import Turnstile, turnstile
from tests.support.waiting import wait_until
from tests.support.workshop import Life, Workshop
from worker.failpoints import Effect

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

CELLS = [
    *(f"{when}_{effect}" for effect in PLACES for when in ("before", "during", "after")),
    *(f"{when}_{effect}" for effect in (Effect.ACK, Effect.REJECT) for when in ("before", "after")),
]


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

    The two have servers that draw different pictures of the same job, as two GPUs may.
    """
    when, _, effect = cell.partition("_")
    refused = Effect(effect) in (Effect.FAILURE, Effect.REJECT)
    await shop.submit("job", code="invalid_job" if refused else None, steps=10_000 if refused else 4, width=SIDE)
    async with AsyncExitStack() as stack:
        store = await stack.enter_async_context(turnstile(shop.bucket.endpoint_url))
        hook = await stack.enter_async_context(turnstile(shop.receiver.url()))
        failures = [] if when == "during" else [Failure(cell, signal="STOP")]
        zombie = await stack.enter_async_context(
            shop.worker("zombie", *failures, WORKER_S3_ENDPOINT_URL=store.url, WORKER_WEBHOOK_URL=f"{hook.url}/hook")
        )
        if when == "during":
            await _held(hook if effect == Effect.WEBHOOK else store, PLACES[Effect(effect)], zombie)
            await zombie.freeze()
        else:
            await zombie.frozen()
        async with shop.worker("heir", WORKER_ENGINE_URL=shop.simulators[1].url) as heir:
            await wait_until(lambda: heir.over or heir.events("listening"), timeout=30)
            await shop.ended(heir)
            if cell not in ("after_ack", "after_reject"):
                assert (await shop.producer.jobs())[0].attempts[-1].worker == "heir"
            published = Published(await shop.ledger())
            zombie.thaw()
            for place in (store, hook):
                place.release()
            await _at_rest(zombie)
            for place in (store, hook):
                await place.idle()
            assert [await life.stop() for life in (heir, zombie)] == [0, 0], zombie.tail()
    return published, await shop.ledger(one_result=False)


async def _held(place: Turnstile, wanted: Place, life: Life) -> None:
    place.hold(wanted)
    await wait_until(lambda: place.held.is_set() or life.over, timeout=30)
    assert place.held.is_set(), life.tail()


async def _at_rest(life: Life) -> None:
    """Wait until the worker has done with the job that it held."""
    await wait_until(lambda: life.events("job_abandoned") or life.events("job_settled") or life.over, timeout=30)

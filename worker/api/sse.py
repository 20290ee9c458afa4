"""Server-sent events: what becomes of a job, as it happens."""

from __future__ import annotations

from collections.abc import AsyncIterator

from worker.desk.states import State

MEDIA_TYPE = "text/event-stream"
HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no"}
"""Neither kept nor held back by anything on the way."""

COMMENT = b": still here\n\n"


async def events(states: AsyncIterator[State | None]) -> AsyncIterator[bytes]:
    """``state`` where the job came to another stage, ``progress`` in between, ``end`` for the last, each with the state
    document as its data and a number as its id; a comment where nothing happens."""
    last: State | None = None
    number = 0
    async for state in states:
        if state is None:
            yield COMMENT
            continue
        number += 1
        data = state.without_images().to_json()
        yield b"id: %d\nevent: %b\ndata: %b\n\n" % (number, _kind(state, last).encode(), data)
        last = state


def _kind(state: State, last: State | None) -> str:
    if state.is_over:
        return "end"
    if last is not None and (state.status, state.hop) == (last.status, last.hop):
        return "progress"
    return "state"

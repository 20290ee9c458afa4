"""The verdict on an answer, with what the server itself can still be asked about it."""

from __future__ import annotations

import asyncio
from dataclasses import replace

from worker.engines.answer import Answer
from worker.engines.base import Expectation, Output
from worker.engines.sdapi.server import Server
from worker.engines.sdapi.verdict import Context, classify
from worker.errors import OutputError


async def judged(server: Server, answer: Answer, expect: Expectation, context: Context, before: int | None) -> Output:
    """As `classify`. A verdict that may come of memory is given again when the server's counter of that has grown.

    ``before`` is that counter before the generation; None where it tells of memory in another way, or not at all.
    """
    said = answer.status, answer.headers, answer.body, expect
    try:
        return await asyncio.to_thread(classify, *said, context)
    except OutputError:
        if not await _ran_out(server, before):
            raise
        return await asyncio.to_thread(classify, *said, replace(context, oom=True))


async def _ran_out(server: Server, before: int | None) -> bool:
    if before is None:
        return False
    after = await server.out_of_memory_count()
    return after is not None and after > before

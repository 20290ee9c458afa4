"""The port of a simulated server: nothing of it is left when it closes, whatever it is doing."""

from __future__ import annotations

import asyncio
import gc

import pytest
from starlette.applications import Starlette

from worker.simulators.listener import Listener


@pytest.mark.parametrize("turns", range(6))
async def test_a_connection_that_is_being_accepted_is_cut_too(turns: int) -> None:
    """At every moment of the accepting: the client sees its end, and no socket stays open for the rest of the run."""
    listener = Listener()
    listener.reserve("::1", 0)
    await listener.open(Starlette(), 5)
    port = int(listener.url.rsplit(":", 1)[1])
    connecting = asyncio.create_task(asyncio.open_connection("::1", port), name="test-client")
    for _ in range(turns):
        await asyncio.sleep(0)
    listener.close()
    await asyncio.wait([connecting])
    if connecting.exception() is None:
        reader, writer = connecting.result()
        with pytest.raises((ConnectionError, asyncio.IncompleteReadError)):
            await reader.readexactly(1)
        writer.close()
    await listener.aclose()
    gc.collect()

"""Who hears a signal, from the first line of a start to the last of its end."""

from __future__ import annotations

import asyncio
import os
import signal
import threading

from tests.support.waiting import wait_until
from worker.signals import NUMBERS, Signals


async def test_the_innermost_listener_hears_and_the_outer_one_again_afterwards() -> None:
    """And whoever ran us has his handlers back in the end."""
    before = [signal.getsignal(number) for number in NUMBERS]
    signals, heard = Signals(), list[str]()
    with signals.heard(lambda: heard.append("outer")):
        with signals.heard(lambda: heard.append("inner")):
            os.kill(os.getpid(), signal.SIGTERM)
            await wait_until(lambda: len(heard) == 1)
        os.kill(os.getpid(), signal.SIGINT)
        await wait_until(lambda: len(heard) == 2)
    assert heard == ["inner", "outer"]
    assert [signal.getsignal(number) for number in NUMBERS] == before


def test_where_the_loop_hears_none_the_block_is_run_all_the_same() -> None:
    """Only the main thread may have handlers."""
    ran: list[bool] = []

    async def work() -> None:
        with Signals().heard(lambda: ran.append(False)):
            ran.append(True)

    thread = threading.Thread(target=lambda: asyncio.run(work()))
    thread.start()
    thread.join()
    assert ran == [True]

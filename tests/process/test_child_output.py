"""What a server prints, with real pipes: logged, kept, and never in its way."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator, MutableMapping
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.process.children import child_of, python, said
from tests.support.waiting import wait_until
from worker.engines.child import printed

Events = list[MutableMapping[str, Any]]


@pytest.fixture
def events() -> Iterator[Events]:
    with capture_logs() as found:
        yield found


def output(events: Events) -> list[tuple[str, str]]:
    return [(one["stream"], one["line"]) for one in events if one["event"] == "engine_output"]


async def test_each_line_is_an_event(events: Events) -> None:
    """Of both streams, plain, at info, and kept; the last one also when it has no end."""
    script = r"""
import sys
sys.stdout.buffer.write(b'\x1b[1mbold\x1b[0m\ncaf\xe9\n'); sys.stdout.flush()
sys.stderr.buffer.write(b'Traceback\r\n\nError: no end'); sys.stderr.flush()
"""
    async with child_of(*python(script)) as child:
        await child.start()
        await child.ended()
        await child.stop()
        assert sorted(output(events)) == [
            ("stderr", "Error: no end"),
            ("stderr", "Traceback"),
            ("stdout", "bold"),
            ("stdout", "caf\ufffd"),
        ]
        assert {line for _, line in output(events)} == set(child.log.since(0))
        assert {one["log_level"] for one in events if one["event"] == "engine_output"} == {"info"}


async def test_the_last_words_of_a_crash_are_there_when_it_is_told() -> None:
    """Who hears of the end can read what it printed right before, though a child holds the pipe open."""
    script = """
import os, signal
if os.fork() == 0:
    signal.pause()
for number in range(300): print('line', number)
print('CUDA error', flush=True)
os.kill(os.getpid(), signal.SIGKILL)
"""
    async with child_of(*python(script)) as child:
        await child.start()
        mark = child.log.mark()
        await child.ended()
        assert child.log.since(mark)[-1] == "CUDA error"
        assert len(child.log.since(mark)) == 301


class _Turns:
    """Counts the turns of the loop: what blocks it lets it make few."""

    def __init__(self) -> None:
        self.count = 0
        self._next()

    def _next(self) -> None:
        self.count += 1
        asyncio.get_running_loop().call_soon(self._next)


async def test_a_flood_holds_nothing_up(events: Events) -> None:
    """Megabytes of lines, of one line and of carriage returns pass, few become events, and what is left out is told."""
    script = r"""
import sys
out = sys.stdout.buffer
out.write(b'a line like any other\n' * 400_000)
out.write(b'\r' * 1_000_000)
out.write(b'x' * 20_000_000)
out.write(b'\nthe end\n')
out.flush()
"""
    async with child_of(*python(script)) as child:
        await child.start()
        turns = _Turns()
        assert await child.ended() == "ended by itself with exit code 0"
        *_, long, last = child.log.since(0)
        assert last == "the end"
        assert long == "<base64, 4000 characters> ...19996000 more bytes"
        assert turns.count > 50
        await child.stop()
    assert 400 < len(output(events)) < 3000
    skipped = sum(one["lines"] for one in events if one["event"] == "engine_output_skipped")
    assert skipped + len(output(events)) > 400_000


BARS = """
import signal, sys
for number in range(5000):
    print(f'\\r{number / 50:.0f}%|bar| {number}/5000', end='', file=sys.stderr, flush=True)
print('\\r100%|bar| 5000/5000', file=sys.stderr, flush=True)
print('\\r 37%|bar| again', end='', file=sys.stderr, flush=True)
signal.pause()
"""


async def test_a_progress_bar_is_seen_now_and_then(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Not in all of its states, but always in the last; and where it stands still, as it stands."""
    monkeypatch.setattr(printed, "BAR_EVERY_S", 0.2)
    async with child_of(*python(BARS)) as child:
        await child.start()
        await said(child, "100%", " 37%")
        await child.stop()
        assert ("stderr", "100%|bar| 5000/5000") in output(events)
        assert output(events)[-1] == ("stderr", " 37%|bar| again")
        assert len(output(events)) < 100
        assert child.log.since(0) == ("100%|bar| 5000/5000", " 37%|bar| again")


async def test_bars_that_end_with_a_carriage_return(events: Events, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their last state is told though nothing was written behind it; once."""
    monkeypatch.setattr(printed, "BAR_EVERY_S", 0.1)
    script = """
import signal
signal.pthread_sigmask(signal.SIG_BLOCK, [signal.SIGUSR1])
for number in range(1000): print(number, 'of 1000', end='\\r', flush=True)
print('1000 of 1000', end='\\r', flush=True)
signal.sigwait([signal.SIGUSR1])
print(flush=True)
print('next', flush=True)
"""
    async with child_of(*python(script)) as child:
        await child.start()
        await said(child, "1000 of")
        assert child.pid is not None
        os.kill(child.pid, signal.SIGUSR1)
        await child.ended()
        await child.stop()
        assert child.log.since(0) == ("1000 of 1000", "next")
        assert output(events).count(("stdout", "1000 of 1000")) == 1


async def test_each_start_is_read_anew() -> None:
    """The tail goes on over restarts; marks tell them apart."""
    async with child_of("sh", "-c", "echo hello; echo there >&2") as child:
        for _ in range(3):
            mark = child.log.mark()
            await child.start()
            await child.ended()
            await child.stop()
            assert sorted(child.log.since(mark)) == ["hello", "there"]
        assert len(child.log.since(0)) == 6


async def test_a_closed_output_is_no_end() -> None:
    """A server that closes its streams runs on."""
    script = "import os, signal\nos.close(1)\nos.close(2)\nos.write(3, b'.') if False else None\nsignal.pause()\n"
    async with child_of(*python(script)) as child:
        await child.start()
        await wait_until(lambda: all(stream._fd < 0 for stream in child._printed._streams))
        assert child.end is None
        assert child.pid is not None

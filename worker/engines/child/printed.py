"""What the server prints: read without ever holding it up, kept for a while, and written to our log."""

from __future__ import annotations

import asyncio
import fcntl
import os
from contextlib import suppress

import structlog

from worker.engines.child.lines import Allowance, Piece, Splitter, Tail

log = structlog.get_logger(__name__)

BITE = 1 << 18
PIPE = 1 << 20
"""Bytes that the kernel is asked to hold for us, so that a moment of ours is none of the server's."""

BAR_EVERY_S = 1.0
BURST, PER_SECOND = 1000, 100.0
"""Lines that are written to our log at once, and then a second; all are kept in the tail."""

DRAIN_BITES = 64


class Printed:
    """The output of one process after the other, as events ``engine_output`` and as the tail of it.

    Progress bars are shown at most once a second, and their last state.
    """

    def __init__(self) -> None:
        self.tail = Tail()
        self._allowance = Allowance(BURST, PER_SECOND)
        self._streams: list[Stream] = []
        self._skipped = 0
        self._timer: asyncio.TimerHandle | None = None

    def open(self) -> tuple[int, int]:
        """New pipes for a process about to be started: its stdout and stderr. Raises `OSError`."""
        self.close()
        for name in ("stdout", "stderr"):
            self._streams.append(Stream(name, self))
        return self._streams[0].child_end, self._streams[1].child_end

    def started(self) -> None:
        """The process has its ends: read."""
        for stream in self._streams:
            stream.started()

    def drain(self) -> None:
        """Read what is there: the process has ended, though what it started may hold the pipes open."""
        for stream in self._streams:
            stream.drain()
            stream.tick()

    def close(self) -> None:
        """Read what is there, then no more."""
        for stream in self._streams:
            stream.close()
        self._streams.clear()
        self._tell_skipped()
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None

    def line(self, stream: str, piece: Piece) -> None:
        self.tail.add(stream, piece)
        if not self._allowance.take(asyncio.get_running_loop().time()):
            self.skip(1)
            return
        self._tell_skipped()
        log.info("engine_output", line=piece.text, stream=stream)

    def skip(self, lines: int) -> None:
        """So many lines were not worth an event each."""
        self._skipped += lines
        self.soon()

    def soon(self) -> None:
        """Look again in a moment: something is held back."""
        if self._timer is None:
            self._timer = asyncio.get_running_loop().call_later(BAR_EVERY_S, self._tick)

    def _tick(self) -> None:
        self._timer = None
        self._tell_skipped()
        for stream in self._streams:
            stream.tick()

    def _tell_skipped(self) -> None:
        if self._skipped:
            skipped, self._skipped = self._skipped, 0
            log.warning("engine_output_skipped", lines=skipped)


class Stream:
    """One pipe from the server; ``child_end`` is for the process, `started` closes it on our side."""

    def __init__(self, name: str, printed: Printed) -> None:
        self._name = name
        self._printed = printed
        self._splitter = Splitter()
        self._bar: Piece | None = None
        self._shown: Piece | None = None
        self._shown_at = -BAR_EVERY_S
        self._loop = asyncio.get_running_loop()
        self._fd, self.child_end = os.pipe()
        os.set_blocking(self._fd, False)
        with suppress(OSError, AttributeError):
            fcntl.fcntl(self.child_end, fcntl.F_SETPIPE_SZ, PIPE)

    def started(self) -> None:
        self._close_child_end()
        self._loop.add_reader(self._fd, self._read)

    def drain(self) -> None:
        for _ in range(DRAIN_BITES):
            if self._fd < 0 or not self._read():
                break

    def close(self) -> None:
        self._close_child_end()
        if self._fd >= 0:
            self.drain()
            self._end()

    def tick(self) -> None:
        """Show the state of a progress bar that was held back."""
        bar = self._splitter.passing() or self._bar
        if bar is not None and bar != self._shown:
            self._show(bar)

    def _read(self) -> bool:
        """Take one bite; whether there was one."""
        try:
            data = os.read(self._fd, BITE)
        except BlockingIOError:
            return False
        except OSError:
            data = b""
        if not data:
            self._end()
            return False
        for piece in self._splitter.feed(data):
            self._take(piece)
        if self._splitter.skipped:
            self._printed.skip(self._splitter.skipped)
            self._splitter.skipped = 0
        if self._splitter.passing():
            self._printed.soon()
        return True

    def _take(self, piece: Piece) -> None:
        if piece.passing:
            if piece.text:
                self._pass(piece)
            return
        last = piece if piece.text else self._bar or self._shown
        if last is not None:
            self._finish(last)

    def _pass(self, bar: Piece) -> None:
        """A state of a progress bar, over which another is written."""
        if self._loop.time() - self._shown_at >= BAR_EVERY_S:
            self._show(bar)
        else:
            self._bar = bar
            self._printed.soon()

    def _show(self, bar: Piece) -> None:
        self._bar, self._shown, self._shown_at = None, bar, self._loop.time()
        self._printed.line(self._name, bar)

    def _finish(self, last: Piece) -> None:
        """A line that nothing is written over; a progress bar's last state may have been shown before."""
        shown = self._shown
        self._bar = self._shown = None
        if shown is not None and shown.text == last.text:
            self._printed.tail.add(self._name, Piece(last.text))
        else:
            self._printed.line(self._name, Piece(last.text))

    def _end(self) -> None:
        fd, self._fd = self._fd, -1
        if fd < 0:
            return
        self._loop.remove_reader(fd)
        os.close(fd)
        last = self._splitter.end() or self._bar
        if last is not None and last.text:
            self._finish(last)

    def _close_child_end(self) -> None:
        fd, self.child_end = self.child_end, -1
        if fd >= 0:
            os.close(fd)

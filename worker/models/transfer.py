"""One file by parallel ranges from one source, hashed while it comes.

Pieces are handed out in ascending order, so that the hash follows closely behind. A connection without a piece takes
half of the longest that is left. Bytes that came count whatever happens to their connection.
"""

from __future__ import annotations

import asyncio
import contextlib
import functools
from collections import deque

import structlog

from worker.errors import DownloadFailed, ModelCorrupt
from worker.models.answers import Part, Span, check_kind, length_of, part_of, refusal, strong_tag
from worker.models.connection import Broken, Connection, Unwritable
from worker.models.partial import Digest, Partial, Record, Resume, resume_of, unwritable
from worker.models.pieces import ENDLESS, Errand, Piece, Terms, Work
from worker.models.source import Answer, Source
from worker.models.stamina import LONGEST_WAIT, Quiet, Stamina
from worker.models.threads import in_thread
from worker.tasks import gather_bare, run_guarded

log = structlog.get_logger()


class Changed(Exception):
    """The file is not the one whose bytes we have."""


class Transfer:
    """Make one a try at a source, over an open `Partial`; `run` once."""

    def __init__(self, source: Source, partial: Partial, errand: Errand, terms: Terms) -> None:
        self._source = source
        self._partial = partial
        self._errand = errand
        self._terms = terms
        self._digest = Digest(partial.fd, terms.threads)
        self._grown = asyncio.Event()
        self._over = asyncio.Event()
        self._ranges = True
        self._newer: Answer | None = None
        self._granted = 0
        self._most = partial.spans.total
        self.received = 0
        """Bytes that came from this source."""

    async def run(self) -> str:
        """Bring what is missing; the SHA-256 of all.

        Raises what the source answers and ``room`` raises, `ModelCorrupt` for what cannot be the file,
        `DownloadFailed` when it makes no way for too long, `DiskFull`.
        """
        try:
            await run_guarded(self._brought(), self._follow(), self._checkpoints(), name="model-transfer")
        finally:
            if self._newer is not None:
                self._newer.connection.close()
        size = self._partial.size or 0
        await self._digest.advance(size)
        if self._digest.at != size:
            raise DownloadFailed(f"{self._partial.path.name} was cut short by somebody else")
        return self._digest.hexdigest()

    async def _brought(self) -> None:
        if self._partial.is_whole and self._errand.sha256 and self._partial.record.sha256 == self._errand.sha256:
            return
        stamina, changes = self._stamina(), 0
        while True:
            work: Work | None = None
            try:
                opened, work = await self._opened()
                await self._all(opened, work)
            except Changed:
                changes += 1
                if changes >= self._terms.tempo.attempts:
                    raise self._failed("changes while it is fetched") from None
                log.info("model_changed_while_fetched", source=self._source.location.source)
                await self._begin(Record())
            except DownloadFailed as error:
                if work is not None and work.splits:
                    raise
                await self._rest(stamina, error, alone=True)
            else:
                return

    async def _all(self, first: Answer, work: Work) -> None:
        """Pull with as many connections as there is work for; the first is open already."""
        count = min(self._terms.connections, 1 + len(work.waiting)) if work.splits else 1
        pulls = [self._pull(work, None) for _ in range(1, count)]
        await gather_bare([self._pull(work, first), *pulls], name="model-range")

    async def _pull(self, work: Work, answer: Answer | None) -> None:
        """Bring piece after piece over one connection until none is left, or the transfer is over."""
        stamina = self._stamina()
        kept = answer.connection if answer is not None else None
        try:
            while not self._partial.is_whole and (piece := work.take()) is not None:
                failure: DownloadFailed | None = None
                try:
                    if answer is None:
                        await self._terms.bandwidth.passage(self._errand.priority)
                        lent, kept = kept, None
                        answer = await self._asked(piece, lent)
                    kept = answer.connection
                    await self._receive(piece, answer)
                except DownloadFailed as error:
                    failure = error
                finally:
                    work.give_back(piece)
                answer = None
                if kept is not None and not kept.is_reusable:
                    kept.close()
                    kept = None
                if failure is None:
                    stamina.well()
                elif not work.splits:
                    raise failure
                else:
                    await self._rest(stamina, failure, alone=not work.active)
        finally:
            if kept is not None:
                kept.close()
        if self._partial.is_whole:
            self._over.set()

    def _stamina(self) -> Stamina:
        return Stamina(self._terms.tempo, self._terms.rng, lambda: self._most)

    async def _rest(self, stamina: Stamina, error: DownloadFailed, *, alone: bool) -> None:
        """Wait before the next try, or until nothing is left to do; raises the error when there is to be none."""
        wait = stamina.after(error)
        if alone and wait > LONGEST_WAIT:
            raise error
        log.info("model_transfer_retried", error=error.message, wait_s=round(wait.total_seconds(), 2))
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(wait.total_seconds()):
                await self._over.wait()

    async def _opened(self) -> tuple[Answer, Work]:
        """The first answer, from which the size is known and whether there are ranges."""
        newer, self._newer = self._newer, None
        found = await (self._whole(newer) if newer is not None else self._open())
        while found is None:
            found = await self._open()
        return found

    async def _open(self) -> tuple[Answer, Work] | None:
        """Ask for the first bytes that are missing; None when it must be asked differently."""
        await self._terms.bandwidth.passage(self._errand.priority)
        record = self._partial.record
        resume = resume_of(self._partial.snapshot().record, self._errand.url, self._errand.sha256)
        start, gap_end = self._first_gap() if resume is not None else Span(0, ENDLESS)
        piece = self._terms.sizes.piece(record.size or self._errand.size, self._terms.connections)
        end = min(start + piece, gap_end)
        answer = await self._source.ask(_range_headers(start, end, resume) if self._ranges else {})
        with contextlib.ExitStack() as undo:
            undo.callback(answer.connection.close)
            status = answer.head.status
            if status == 200:
                undo.pop_all()
                return await self._whole(answer)
            if status not in (206, 416) or not self._ranges:
                raise refusal(
                    answer.head, self._source.location, has_token=self._source.has_token, now=self._terms.clock.now()
                )
            part = part_of(answer.head, start)
            if part is None or (resume is not None and record.size not in (None, part.total)):
                self._ranges = resume is not None
                await self._begin(Record())
                return None
            work = await self._ranged(answer, part, resume)
            undo.pop_all()
            return answer, work

    def _first_gap(self) -> Span:
        """Where to go on; the last byte again where all are there, to hear that they are still the right ones."""
        size = self._partial.size
        if size is None:
            return Span(self._partial.spans.frontier, ENDLESS)
        missing = self._partial.spans.missing(size)
        return missing[0] if missing else Span(max(size - 1, 0), max(size, 1))

    async def _ranged(self, answer: Answer, part: Part, resume: Resume | None) -> Work:
        """The work where the source gives ranges: this answer's piece first, then the rest in order."""
        size = part.total
        await self._admit(answer, size)
        if resume is None:
            await self._begin(self._record(answer, size))
        else:
            self._partial.record = self._record(answer, size)
        piece = self._terms.sizes.piece(size, self._terms.connections)
        pieces = deque([Piece(part.span.start, part.span.end)])
        for span in self._partial.spans.missing(size):
            for at in range(max(span.start, part.span.end), span.end, piece):
                pieces.append(Piece(at, min(at + piece, span.end)))
        return Work(pieces, splits=True, least=max(self._terms.sizes.turn, 1))

    async def _whole(self, answer: Answer) -> tuple[Answer, Work]:
        """The work where the answer brings the whole file from its start."""
        with contextlib.ExitStack() as undo:
            undo.callback(answer.connection.close)
            size = length_of(answer.head)
            await self._admit(answer, size)
            await self._begin(self._record(answer, size))
            undo.pop_all()
        return answer, Work(deque([Piece(0, ENDLESS if size is None else size)]), splits=False, least=ENDLESS)

    async def _admit(self, answer: Answer, size: int | None) -> None:
        """Before anything is written: it can be the file, and there is room."""
        location, expected = self._source.location, self._errand.size
        check_kind(answer.head, self._errand.wanted.name, location)
        if expected is not None and size is not None and size != expected:
            raise ModelCorrupt(
                f"{location.source} has {size} bytes where {expected} were promised", owner=location.owner
            )
        known = size if size is not None else expected
        if known is not None and known > self._granted:
            await self._errand.room(known)
            self._granted = known

    def _record(self, answer: Answer, size: int | None) -> Record:
        return Record(
            url=self._errand.url,
            size=size,
            sha256=self._errand.sha256,
            etag=strong_tag(answer.head),
            modified=answer.head.get("last-modified") or None,
        )

    async def _begin(self, record: Record) -> None:
        """Forget what is there; nothing reads or writes the file meanwhile but the digest, which begins anew."""
        await in_thread(self._terms.threads, lambda: self._partial.begin(record))
        self._digest = Digest(self._partial.fd, self._terms.threads)

    async def _asked(self, piece: Piece, kept: Connection | None) -> Answer:
        """An answer that brings this piece from its start. Raises `Changed` when it is another file's."""
        record = self._partial.record
        answer = await self._source.ask(
            _range_headers(piece.start, piece.end, Resume(record.etag or record.modified)), kept
        )
        head = answer.head
        part = part_of(head, piece.start)
        if part is not None and part.total == record.size and not self._differs(answer):
            return answer
        if head.status == 200 and self._newer is None:
            self._newer = answer
            raise Changed
        answer.connection.close()
        if head.status in (200, 206, 416):
            raise Changed
        raise refusal(head, self._source.location, has_token=self._source.has_token, now=self._terms.clock.now())

    def _differs(self, answer: Answer) -> bool:
        tag, ours = strong_tag(answer.head), self._partial.record.etag
        return tag is not None and ours is not None and tag != ours

    async def _receive(self, piece: Piece, answer: Answer) -> None:
        """Bring the piece over this answer's connection, as far as its body goes."""
        loop, connection, began = asyncio.get_running_loop(), answer.connection, piece.start
        quiet = Quiet(self._terms.tempo)
        while piece.left > 0 and not connection.ended:
            await self._terms.bandwidth.passage(self._errand.priority)
            at_most = await self._allowed(piece)
            asked = loop.time()
            try:
                count = await connection.receive(self._partial.fd, piece.start, at_most)
            except Broken as failure:
                raise self._failed(str(failure)) from None
            except Unwritable as refused:
                raise unwritable(refused.error, self._partial.path) from None
            self._came(piece, count)
            if quiet.saw(count, loop.time() - asked):
                raise self._failed(f"sends less than {quiet.least} bytes in {quiet.within_s:g} s")
            await self._terms.bandwidth.pay(count)
        if piece.end == ENDLESS and connection.ended:
            self._partial.record.size = piece.end = piece.start
        if piece.left > 0 and piece.start == began:
            raise self._failed("sends nothing")

    async def _allowed(self, piece: Piece) -> int:
        """How many bytes may come next; asks for room where the size is unknown."""
        at_most = min(piece.left, self._terms.sizes.turn, self._terms.bandwidth.share or piece.left)
        if piece.end != ENDLESS:
            return at_most
        if piece.start >= self._granted and self._errand.size is not None:
            return 1
        if piece.start >= self._granted:
            granted = self._granted + self._terms.sizes.step
            await self._errand.room(granted)
            self._granted = granted
        return min(at_most, self._granted - piece.start)

    def _came(self, piece: Piece, count: int) -> None:
        if count == 0:
            return
        self._partial.wrote(piece.start, count)
        piece.start += count
        self.received += count
        there, size = self._partial.spans.total, self._errand.size
        if size is not None and there > size:
            raise ModelCorrupt(f"{self._source.location.source} sends more than the {size} bytes that were promised")
        self._most = max(self._most, there)
        self._grown.set()
        self._errand.on_bytes(there, self._partial.size or size)

    def _failed(self, reason: str) -> DownloadFailed:
        location = self._source.location
        return DownloadFailed(f"{location.source}: {reason}", owner=location.owner)

    async def _follow(self) -> None:
        """Hash what is there from the start on, as it grows."""
        self._grown.set()
        while True:
            await self._grown.wait()
            self._grown.clear()
            await self._digest.advance(self._partial.spans.frontier)

    async def _checkpoints(self) -> None:
        """Put on disk and on record what is there, every now and then."""
        while True:
            await asyncio.sleep(self._terms.checkpoint.total_seconds())
            snapshot = self._partial.snapshot()
            await in_thread(self._terms.threads, functools.partial(self._partial.save, snapshot))


def _range_headers(start: int, end: int, resume: Resume | None) -> dict[str, str]:
    asked = {"range": f"bytes={start}-{end - 1}"}
    if resume is not None and resume.if_range is not None:
        asked["if-range"] = resume.if_range
    return asked

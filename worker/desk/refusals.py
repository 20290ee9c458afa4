"""Why the desk takes no job now."""

from __future__ import annotations

from worker.errors import Disposition, Fault, WorkerError


class NotReady(WorkerError):
    """This worker takes no jobs now."""

    fault = Fault.NODE
    disposition = Disposition.NACK


class TooManyPending(WorkerError):
    """As many jobs wait here as may; ask again later."""

    fault = Fault.NODE
    disposition = Disposition.NACK

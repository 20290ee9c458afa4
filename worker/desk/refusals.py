"""Why the desk does not do what it is asked to."""

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


class NoSharedState(WorkerError):
    """Nobody could learn how the job ended: name a webhook, or wait for the answer; a store in S3 or a queue that this
    worker can submit to would do as well."""

    fault = Fault.OPERATOR
    disposition = Disposition.REJECT

    def __init__(self) -> None:
        super().__init__(" ".join((self.__doc__ or "").split()))


class UnknownHere(WorkerError):
    """No such job is known here."""

    fault = Fault.JOB
    disposition = Disposition.REJECT


class JobOver(WorkerError):
    """The job has ended already."""

    fault = Fault.JOB
    disposition = Disposition.REJECT

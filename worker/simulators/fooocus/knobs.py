"""What a test or a person may turn on a simulated Fooocus-API while it runs: speeds, start timers and faults."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

from worker.simulators.arming import Turnable, spent

AtSubmit = Literal["lost_answer", "lost_request", "queue_full", "error_500", "vanish"]
AtWork = Literal[
    "oom",
    "cuda",
    "error",
    "hang",
    "slow",
    "dead_worker",
    "empty",
    "short_count",
    "wrong_size",
    "wrong_model",
    "truncated_image",
    "not_an_image",
    "missing_file",
    "black",
    "flat",
    "crash",
    "exit",
    "restart",
    "user_cancel_by_other",
]
AtQuery = Literal["query_500"]
FaultKind = AtSubmit | AtWork | AtQuery
"""One fault of each of the three groups can strike a job (of the last: a poll).

lost_answer          the job is queued, but the connection closes without an answer
lost_request         the connection closes before anything was queued
queue_full           answered as when too many jobs wait
error_500            an exception before the job is queued: plain-text 500, with a traceback in the log
vanish               the job is queued and at once forgotten, as if the server had been started anew
oom                  torch's out-of-memory error at the second step
cuda                 the CUDA fault `text`; every later job fails with it until a restart
error                an exception with the message `text`
hang                 stops before the last step, deaf to stops, until `Fooocus.release`
slow                 `seconds` are added before the first step
dead_worker          the thread that generates dies before it touches the job; the API goes on answering
empty                SUCCESS without any picture
short_count          the last picture is missing
wrong_model          the server's default model makes the picture, and the file says so
wrong_size           the picture has half the size
truncated_image      the file is cut in the middle
not_an_image         the file holds something else
missing_file         the file is not there
crash                the process dies in the middle of the sampling, with a last line of C++
exit                 the process dies in the middle of the sampling
restart              the process is away for `seconds` from the middle of the sampling on
user_cancel_by_other somebody else's stop arrives in the middle of the sampling
query_500            a poll is answered with a plain-text 500
"""

_WORK: frozenset[str] = frozenset(get_args(AtWork))
_SUBMIT: frozenset[str] = frozenset(get_args(AtSubmit))


@dataclass
class Fault:
    """One armed fault. ``times`` counts down and None means always; ``prompt`` limits it to prompts that contain it."""

    kind: FaultKind
    times: int | None = 1
    prompt: str = ""
    text: str = "CUDA error: an illegal memory access was encountered"
    seconds: float = 0.0


@dataclass
class Knobs(Turnable):
    """All that can be turned, at run time too. Seconds throughout."""

    fault_type: ClassVar[Any] = Fault

    step_seconds: float = 0.001
    load_seconds: float = 0.01
    overhead_seconds: float = 0.0
    start_port_seconds: float = 0.0
    """Until the port opens: the server downloads its default models before."""
    start_model_seconds: float = 0.0
    """From there until its default model is loaded: jobs wait, and nothing says that they do."""
    faults: list[Fault] = field(default_factory=list)
    no_ipv6: bool = False
    queue_size: int = 100
    queue_history: int = 0
    """Finished jobs that are kept, with their files; 0: all."""
    persistent: bool = False
    """The history is kept in a database too: then a job that fails before its sampling kills the generating thread."""
    printing: bool = True
    """Whether anything is logged."""
    memory_pixels: int = 1 << 27
    """Pixels of one picture that still fit into the graphics memory."""
    base_url: str = "http://[:::8888"
    """What URLs of files begin with: malformed, as it is by default on a server that listens on ``::``."""

    def arm(
        self,
        kind: FaultKind,
        *,
        times: int | None = 1,
        prompt: str = "",
        text: str = "",
        seconds: float = 0.0,
    ) -> Fault:
        """Add a fault; the returned object may be changed or given to `disarm`."""
        fault = Fault(kind, times, prompt, text or Fault.text, seconds)
        self.faults.append(fault)
        return fault

    def at_submit(self, prompt: str) -> Fault | None:
        """The fault that strikes a submission."""
        return self._spent(_SUBMIT, prompt)

    def at_work(self, prompt: str) -> Fault | None:
        """The fault that strikes a job when the thread takes it."""
        return self._spent(_WORK, prompt)

    def at_query(self) -> Fault | None:
        """The fault that strikes a poll."""
        return self._spent(("query_500",), "")

    def _spent(self, kinds: Iterable[str], prompt: str) -> Fault | None:
        return cast("Fault | None", spent(self.faults, kinds, prompt))

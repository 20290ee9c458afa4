"""What a test or a person may turn on a simulated ComfyUI while it runs: speeds, version, caches and faults."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

from worker.simulators.arming import Turnable, spent

AtSubmit = Literal["lost_answer", "node_errors_on_200", "delete_pending"]
AtTaking = Literal["dead_worker_idle"]
AtWork = Literal[
    "oom",
    "cuda",
    "exception",
    "black",
    "flat",
    "wrong_size",
    "truncated_image",
    "not_an_image",
    "short_count",
    "deaf_socket",
    "drop_socket",
    "big_frame",
    "dead_worker",
    "hang",
    "slow",
    "exit",
    "restart",
    "interrupted_by_other",
    "duplicate_events",
]
AtEnd = Literal[
    "missing_file",
    "lost_history",
    "late_history",
    "null_status",
    "stale_status_str",
    "success_without_outputs",
]
FaultKind = AtSubmit | AtTaking | AtWork | AtEnd
"""One fault of each of the four groups can strike a prompt.

lost_answer          the prompt is queued, but the connection closes without an answer
node_errors_on_200   the answer is 200 and names errors of nodes, as when one of several outputs is invalid
delete_pending       the prompt vanishes from the queue before it runs, as if somebody deleted it
dead_worker_idle     the worker thread dies before it takes the prompt: nothing runs, all pile up as pending
oom                  torch's out-of-memory error at a node
cuda                 a CUDA fault at a node; every later prompt fails until a restart
exception            any exception: `error` with the message `text`
black, flat          the pictures are of one colour
wrong_size           the pictures have half the size
truncated_image      the saved files are cut in the middle
not_an_image         the saved files hold something else
short_count          the last picture of a batch is missing
deaf_socket          the client's socket stays open and silent from the start of the prompt on
drop_socket          the client's socket is cut in the middle of the sampling
big_frame            each step sends a preview of more than 4 MiB
dead_worker          the worker thread dies after execution_start: the prompt stays running for ever
hang                 stops between two steps, deaf to interrupts, until `ComfyUI.release`
slow                 `seconds` are added before the first step
exit                 the process dies in the middle of the sampling
restart              the process is away for `seconds` from the middle of the sampling on
interrupted_by_other an interrupt that this client has not asked for
duplicate_events     every message about the prompt is sent twice
missing_file         the history names files that are not there
lost_history         the history never gets an entry
late_history         the history gets its entry `seconds` late
null_status          the entry's status is null
stale_status_str     the entry's status says the opposite of its messages
success_without_outputs   the entry is a success without outputs
"""

LATEST = "newest"


@dataclass
class Fault:
    """One armed fault. ``times`` counts down and None means always; ``prompt`` limits it to graphs whose JSON has it.

    ``node`` is the class at which `oom`, `cuda` and `exception` strike; without it a sampler, or the first node.
    """

    kind: FaultKind
    times: int | None = 1
    prompt: str = ""
    text: str = ""
    error: str = "RuntimeError"
    seconds: float = 0.0
    node: str = ""


@dataclass
class Knobs(Turnable):
    """All that can be turned, at run time too. Seconds throughout."""

    fault_type: ClassVar[Any] = Fault

    step_seconds: float = 0.001
    load_seconds: float = 0.01
    """Each time that a loader node runs: the server forgets a model with the results of its node."""
    decode_seconds: float = 0.0
    encode_seconds: float = 0.0
    """Reading an input picture or a text."""
    save_seconds: float = 0.0
    history_seconds: float = 0.001
    """From `execution_success` until the history has its entry."""
    start_seconds: float = 0.0
    """Until the port opens."""
    version: str = "0.3.64"
    """`newest` answers as later versions do: stricter prompt ids, the jobs routes, no symlinked inputs."""
    cache: Literal["classic", "lru", "none"] = "classic"
    cache_size: int = 20
    preview_method: Literal["none", "auto", "latent2rgb", "taesd"] = "none"
    disable_metadata: bool = False
    max_upload_size: int = 100 * 1024 * 1024
    memory_pixels: int = 1 << 27
    """Pixels of a batch together that still fit into the graphics memory."""
    leak_bytes_per_load: int = 0
    """Memory of the process that each load of a model uses up."""
    history_limit: int = 10000
    keep_alive_seconds: float = 75.0
    argv: list[str] = field(default_factory=list)
    """Command-line words after the ones that the simulator knows itself."""
    missing_nodes: list[str] = field(default_factory=list)
    """Node classes that this server does not have."""
    faults: list[Fault] = field(default_factory=list)

    @property
    def newest(self) -> bool:
        """Whether the server behaves as later versions do."""
        return self.version == LATEST

    def arm(
        self,
        kind: FaultKind,
        *,
        times: int | None = 1,
        prompt: str = "",
        text: str = "",
        error: str = "RuntimeError",
        seconds: float = 0.0,
        node: str = "",
    ) -> Fault:
        """Add a fault; the returned object may be changed or given to `disarm`."""
        fault = Fault(kind, times, prompt, text, error, seconds, node)
        self.faults.append(fault)
        return fault

    def take(self, group: object, graph: object) -> Fault | None:
        """The first armed fault of a group that strikes this graph; one use of it is spent."""
        if not self.faults:
            return None
        text = json.dumps(graph, ensure_ascii=False)
        return cast("Fault | None", spent(self.faults, cast("Iterable[str]", get_args(group)), text))

"""What a test or a person may turn on a simulated server while it runs: speeds, start timers and faults."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal, cast, get_args

from worker.simulators.arming import Turnable, spent

FaultKind = Literal[
    "oom",
    "nan",
    "black",
    "flat",
    "preview",
    "empty",
    "short_count",
    "wrong_model",
    "wrong_size",
    "wrong_seed",
    "truncated_image",
    "not_an_image",
    "hang",
    "slow",
    "crash_mid_body",
    "exit",
    "error_500",
    "rate_limited",
    "progress_500",
    "restart",
]
"""Each kind strikes a generation, but `progress_500`, which strikes a poll of the progress.

oom            memory runs out after the first step, answered as the dialect does
nan            the error `NansException` where the dialect checks, else a black picture
preview        a small blurred picture stands where the result should
short_count    the last picture is missing
wrong_model    another model makes the picture, and the info says so
wrong_seed     another seed makes the picture, and the info says so
wrong_size     the picture has half the size that the info claims
hang           stops before the last step and ignores interrupts until `Simulator.release`
slow           `seconds` are added before the first step
crash_mid_body the answer is cut in the middle
exit           the process dies in the middle of the generation
error_500      an exception `error` with the message `text`
rate_limited   429 after the work
restart        the server goes down in the middle of the generation and comes back after `seconds`
"""


@dataclass
class Fault:
    """One armed fault. ``times`` counts down and None means always; ``prompt`` limits it to prompts that contain it."""

    kind: FaultKind
    times: int | None = 1
    prompt: str = ""
    text: str = "CUDA error: an illegal memory access was encountered"
    error: str = "RuntimeError"
    seconds: float = 0.0


@dataclass
class Knobs(Turnable):
    """All that can be turned, at run time too. Seconds throughout; each start timer begins where the last one ended."""

    fault_type: ClassVar[Any] = Fault

    step_seconds: float = 0.001
    load_seconds: float = 0.01
    overhead_seconds: float = 0.0
    start_port_seconds: float = 0.0
    start_routes_seconds: float = 0.0
    start_model_seconds: float = 0.0
    faults: list[Fault] = field(default_factory=list)
    gzip: bool = True
    no_ipv6: bool = False
    new_install: bool = False
    """There is no settings file yet: only then does the current SD.Next list all its settings."""
    hashing: bool | None = None
    """Whether models are hashed on their first load; None: as the dialect is usually run."""
    keep_alive_seconds: float | None = None
    threads: int = 40
    memory_pixels: int = 1 << 27
    """Pixels of a request's pictures together that still fit into the graphics memory."""
    leak_bytes_per_load: int = 0
    """Memory of the process that each load of a model uses up."""
    scripts: list[str] = field(default_factory=lambda: ["ControlNet", "ADetailer"])
    """Always-on scripts that are installed."""
    random_seed: int | None = None
    """Makes the seeds that the server draws, and an unfair lock's choices, repeatable."""

    def arm(
        self,
        kind: FaultKind,
        *,
        times: int | None = 1,
        prompt: str = "",
        text: str = "",
        error: str = "RuntimeError",
        seconds: float = 0.0,
    ) -> Fault:
        """Add a fault; the returned object may be changed or given to `disarm`."""
        fault = Fault(kind, times, prompt, text or Fault.text, error, seconds)
        self.faults.append(fault)
        return fault

    def take(self, prompt: str, *, progress: bool = False) -> Fault | None:
        """The first armed fault that strikes this prompt (or a progress poll); one use of it is spent."""
        kinds = [kind for kind in get_args(FaultKind) if (kind == "progress_500") is progress]
        return cast("Fault | None", spent(self.faults, kinds, prompt))

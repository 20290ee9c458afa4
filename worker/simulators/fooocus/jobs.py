"""Jobs, their queue and history, and what the process logs."""

from __future__ import annotations

import time
import uuid
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from worker.simulators.fooocus.knobs import Fault
from worker.simulators.fooocus.schema import CommonRequest

TYPES = {
    "text-to-image": "Text to Image",
    "text-to-image-with-ip": "Text to Image",
    "image-upscale-vary": "Image Upscale or Variation",
    "image-inpaint-outpaint": "Image Inpaint or Outpaint",
    "image-prompt": "Image Prompt",
    "image-enhance": "Image Enhancement",
}


def now_ms() -> int:
    """Milliseconds since 1970, as the history has them."""
    return round(time.time() * 1000)


@dataclass
class Picture:
    """One result; ``file`` below the folder of outputs, None where there is none."""

    file: str | None
    seed: str
    finish_reason: str = "SUCCESS"


@dataclass
class Job:
    """A task of the queue. ``body`` is what the server made of the request: names replaced, images decoded."""

    endpoint: str
    body: CommonRequest
    seed: int
    id: str = field(default_factory=lambda: str(uuid.uuid4()))
    in_queue_ms: int = field(default_factory=now_ms)
    start_ms: int = 0
    finish_ms: int = 0
    finished: bool = False
    failed: bool = False
    progress: int = 0
    status: str | None = None
    pictures: list[Picture] | None = None
    images: dict[str, Any] = field(default_factory=dict)
    fault: Fault | None = None

    @property
    def stage(self) -> str:
        """Only 0.4 ever notes a start: the current version says WAITING to the end."""
        if self.finished and self.failed:
            return "ERROR"
        if self.finished and self.pictures is not None:
            return "SUCCESS"
        return "WAITING" if self.start_ms == 0 else "RUNNING"

    def settle(self, pictures: list[Picture], *, failed: bool) -> None:
        """Note the result; the job stays in the queue until it is finished."""
        if not failed:
            self.progress, self.status = 100, "Finished"
        self.pictures, self.failed = pictures, failed

    def brief(self, *, timed: bool) -> dict[str, Any]:
        """As the history lists it."""
        times = {"in_queue_mills": self.in_queue_ms, "start_mills": self.start_ms, "finish_mills": self.finish_ms}
        return {"job_id": self.id, "is_finished": self.finished} | (times if timed else {})


class Journal:
    """What the process printed. It is a log that a worker may read, and each line goes to ``on_line`` too."""

    def __init__(self) -> None:
        self.lines: deque[str] = deque(maxlen=1000)
        self.count = 0
        self.on_line: Callable[[str], object] = lambda _: None
        self.silent = False

    def info(self, text: str) -> None:
        """A line of the server's own logger, in its colours."""
        self._put("INFO", "\x1b[32m", text)

    def warn(self, text: str) -> None:
        """The same for a warning."""
        self._put("WARNING", "\x1b[33m", text)

    def error(self, text: str) -> None:
        """The same for an error."""
        self._put("ERROR", "\x1b[31m", text)

    def raw(self, text: str) -> None:
        """Lines as they are, such as a traceback."""
        for line in text.splitlines():
            self.count += 1
            if not self.silent:
                self.lines.append(line)
                self.on_line(line)

    def _put(self, level: str, colour: str, text: str) -> None:
        stamp = time.strftime("%Y-%m-%d %H:%M:%S")
        self.raw(f"{colour}[{stamp}] {level:<8}\x1b[0m \x1b[34m{text}\x1b[0m")

    def mark(self) -> int:
        """The present end."""
        return self.count

    def since(self, mark: int) -> tuple[str, ...]:
        """The lines after a mark, as far as they are still kept."""
        kept = tuple(self.lines)
        first = self.count - len(kept)
        return kept[max(mark - first, 0) :]

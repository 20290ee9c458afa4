"""`sd-worker probe`: asks the daemon on this machine how it is, with the standard library alone."""

from __future__ import annotations

import os
import signal
import sys
from enum import StrEnum
from http.client import HTTPConnection, HTTPException

from worker.settings.address import probe_address

LIMIT_S = 0.9
_SHOWN = 1000


class Probe(StrEnum):
    STARTUP = "startup"
    LIVE = "live"
    READY = "ready"


def probe(which: Probe) -> None:
    """Exit with 0 when the daemon on this machine says yes, else with 1; within a second."""
    sys.exit(answer(which))


def answer(which: str) -> int:
    """0 when the daemon answers this probe with 200, else 1 and the reason on stderr.

    Never takes longer than `LIMIT_S`: then the process ends with 1, whatever it is waiting for.
    """
    signal.signal(signal.SIGALRM, lambda *_: os._exit(1))
    signal.setitimer(signal.ITIMER_REAL, LIMIT_S)
    hosts, port = probe_address()
    reason = "WORKER_HTTP_PORT is no port" if port == 0 else ""
    for host in hosts if port else ():
        try:
            status, reason = _get(host, port, f"/{which}")
        except (OSError, HTTPException) as error:
            reason = f"no answer from {host} port {port}: {error}"
            continue
        if status == 200:
            return 0
        break
    print(reason, file=sys.stderr)
    return 1


def _get(host: str, port: int, path: str) -> tuple[int, str]:
    connection = HTTPConnection(host, port, timeout=LIMIT_S)
    try:
        connection.request("GET", path, headers={"Connection": "close"})
        response = connection.getresponse()
        return response.status, response.read(_SHOWN).decode("utf-8", "replace")
    finally:
        connection.close()

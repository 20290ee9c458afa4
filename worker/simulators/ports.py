"""Ports for processes that are told theirs before they start."""

import random
import socket
from contextlib import ExitStack
from itertools import chain
from pathlib import Path

LOWEST = 10_240
RANGE_FILE = Path("/proc/sys/net/ipv4/ip_local_port_range")
HIGHEST_ELSEWHERE = 32_767

_given: set[int] = set()
_random = random.SystemRandom()


def free_port(run: int = 1) -> int:
    """The first of so many neighbouring ports of the loopback that nobody has; no process gets one twice.

    They lie below those that the kernel gives to connections and to listeners on port 0: one of these, found by
    listening on port 0 and given back, may belong to any connection before its process comes to listen on it.

    Raises:
        OSError: no port is free.
    """
    firsts = range(LOWEST, _highest() + 2 - run)
    start = _random.randrange(len(firsts))
    for first in chain(firsts[start:], firsts[:start]):
        wanted = range(first, first + run)
        if _given.isdisjoint(wanted) and _free(wanted):
            _given.update(wanted)
            return first
    raise OSError(f"no port from {firsts[0]} to {firsts[-1]} is free")


def _highest() -> int:
    try:
        return int(RANGE_FILE.read_text().split()[0]) - 1
    except OSError:
        return HIGHEST_ELSEWHERE


def _free(ports: range) -> bool:
    with ExitStack() as held:
        for port in ports:
            for family, host in ((socket.AF_INET6, "::1"), (socket.AF_INET, "127.0.0.1")):
                try:
                    held.enter_context(socket.create_server((host, port), family=family))
                except OSError:
                    return False
    return True

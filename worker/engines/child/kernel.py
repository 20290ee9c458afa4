"""What only the C library offers: orders to the kernel about this process. Without Linux each does nothing."""

from __future__ import annotations

import ctypes
import functools
import os
import signal
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

PR_SET_PDEATHSIG = 1
PR_SET_CHILD_SUBREAPER = 36
PR_GET_CHILD_SUBREAPER = 37


@functools.cache
def _libc() -> Any:
    return ctypes.CDLL(None, use_errno=True)


def become_subreaper() -> bool:
    """Have descendants whose parent is gone become our children, though we are not PID 1; whether that worked."""
    return _linux() and _libc().prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) == 0


def adopts() -> bool:
    """Whether orphans become our children."""
    if os.getpid() == 1:
        return True
    answer = ctypes.c_int(0)
    return _linux() and _libc().prctl(PR_GET_CHILD_SUBREAPER, ctypes.byref(answer), 0, 0, 0) == 0 and bool(answer.value)


def dies_with_parent() -> Callable[[], None]:
    """What a child does between fork and exec, so that it is killed when the thread that forked it is gone.

    All is looked up here, before the fork: the child of a process with threads may only do what takes no lock.
    It comes after the change of user, which would undo it.
    """
    parent = os.getpid()
    if not _linux():
        return lambda: None
    prctl = _libc().prctl

    def act() -> None:
        prctl(PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
        if os.getppid() != parent:
            os._exit(128 + signal.SIGKILL)

    return act


@contextmanager
def seeing_as(uid: int, gid: int) -> Iterator[None]:
    """Look at files as this user, in this thread only.

    Root of a container without CAP_SYS_PTRACE may not see the environment and the open files of another
    user's process, but that user may.
    """
    libc = _libc()
    old_gid, old_uid = libc.setfsgid(gid), libc.setfsuid(uid)
    try:
        yield
    finally:
        libc.setfsuid(old_uid)
        libc.setfsgid(old_gid)


def _linux() -> bool:
    return sys.platform == "linux"

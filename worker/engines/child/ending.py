"""How a process ended, in words. No I/O."""

from __future__ import annotations

import signal

SHELL = 128
"""A shell whose command was ended by a signal ends with this plus the signal's number."""

ASKED = "stopped by the worker"

_MEANINGS = {
    signal.SIGSEGV: "crashed with",
    signal.SIGBUS: "crashed with",
    signal.SIGILL: "crashed with",
    signal.SIGFPE: "crashed with",
    signal.SIGABRT: "aborted with",
}


def described(code: int, *, killed_for_memory: bool | None) -> str:
    """The end of a process that nobody here asked to end.

    ``code`` as `subprocess` has it: negative is a signal. ``killed_for_memory``: whether the kernel has killed a
    process of the container for memory meanwhile; None where that cannot be told.
    """
    number = _signal_of(code)
    if number == signal.SIGKILL:
        return _killed(code, killed_for_memory)
    words = "ended by itself with exit code 0" if code == 0 else f"ended with exit code {code}"
    if number is not None:
        words = f"{_MEANINGS.get(number, 'ended by')} {number.name}{_by_shell(code)}"
    if killed_for_memory and code != 0:
        words += ", after the kernel killed a process of the container for memory"
    return words


def _killed(code: int, for_memory: bool | None) -> str:
    if for_memory:
        return f"killed for memory by the kernel (SIGKILL{_by_shell(code)})"
    perhaps = ", perhaps for memory" if for_memory is None else ""
    return f"killed by SIGKILL from outside{_by_shell(code)}{perhaps}"


def _signal_of(code: int) -> signal.Signals | None:
    number = -code if code < 0 else code - SHELL
    try:
        return signal.Signals(number)
    except ValueError:
        return None


def _by_shell(code: int) -> str:
    return f", exit code {code}" if code > 0 else ""

"""How a process ended, in words."""

from __future__ import annotations

import pytest

from worker.engines.child.ending import described


@pytest.mark.parametrize(
    ("code", "words"),
    [
        (0, "ended by itself with exit code 0"),
        (3, "ended with exit code 3"),
        (255, "ended with exit code 255"),
        (-11, "crashed with SIGSEGV"),
        (139, "crashed with SIGSEGV, exit code 139"),
        (-6, "aborted with SIGABRT"),
        (-15, "ended by SIGTERM"),
        (143, "ended by SIGTERM, exit code 143"),
        (-9, "killed by SIGKILL from outside"),
        (137, "killed by SIGKILL from outside, exit code 137"),
        (-250, "ended with exit code -250"),
    ],
)
def test_ends_are_told_apart(code: int, words: str) -> None:
    """Clean, failed, crashed, ended and killed; also where a shell stands between."""
    assert described(code, killed_for_memory=False) == words


@pytest.mark.parametrize(
    ("code", "known", "words"),
    [
        (-9, True, "killed for memory by the kernel (SIGKILL)"),
        (137, True, "killed for memory by the kernel (SIGKILL, exit code 137)"),
        (-9, None, "killed by SIGKILL from outside, perhaps for memory"),
        (1, True, "ended with exit code 1, after the kernel killed a process of the container for memory"),
        (1, None, "ended with exit code 1"),
        (0, True, "ended by itself with exit code 0"),
    ],
)
def test_memory_is_named_where_the_kernel_counted_a_kill(code: int, known: bool | None, words: str) -> None:
    """Its counter says so; without one it is only a guess."""
    assert described(code, killed_for_memory=known) == words

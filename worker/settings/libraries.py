"""Libraries that are configured by the environment alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def supposed(name: str, value: str) -> Iterator[None]:
    """A variable that a library reads while it is imported, where nobody has set it; afterwards as before."""
    if name in os.environ:
        yield
        return
    os.environ[name] = value
    try:
        yield
    finally:
        del os.environ[name]

"""Leaving the process's logging as it was, for tests that set it up."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
import structlog

from worker import log


@contextmanager
def restored_log() -> Iterator[None]:
    """The log starts without ids and secrets inside, and everything is as before behind it."""
    root, showwarning = logging.getLogger(), warnings.showwarning
    handlers, level = root.handlers[:], root.level
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(log, "_identity", {})
        patch.setattr(log, "_secrets", set())
        patch.setattr(log, "_secrets_pattern", None)
        patch.setattr(log, "_handler", None)
        yield
    logging.captureWarnings(False)
    warnings.showwarning = showwarning
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()

"""What every command that needs settings does first."""

from __future__ import annotations

import sys

from worker import log
from worker.settings.groups import Settings, secrets_of
from worker.settings.source import from_environment


def read_settings() -> Settings:
    """The settings of this process, their secrets hidden from every line that follows.

    `ConfigError` with every mistake. Log lines of commands go to stderr, so that stdout is the command's own.
    """
    settings = from_environment()
    log.hide(secrets_of(settings))
    log.setup(settings.node.log_level, settings.node.log_format, sys.stderr)
    return settings

"""What every command that needs settings does first."""

from __future__ import annotations

import sys

from worker import log
from worker.settings.groups import Settings, secrets_of
from worker.settings.source import from_environment


def read_settings() -> Settings:
    """The settings of this process, their secrets hidden from every line that follows.

    `ConfigError` with every mistake. Commands log to stderr from warning up (all of it where debug is asked for),
    so that stdout is the command's own.
    """
    settings = from_environment()
    level = settings.node.log_level
    log.hide(secrets_of(settings))
    log.setup("warning" if level == "info" else level, settings.node.log_format, sys.stderr)
    return settings

"""What every command that needs settings does first."""

from __future__ import annotations

import sys

from worker import log
from worker.settings.groups import Settings, secrets_of
from worker.settings.source import from_environment


def read_settings(*, told: bool = False) -> Settings:
    """The settings of this process, their secrets hidden from every line that follows.

    `ConfigError` with every mistake. Commands log to stderr from warning up (all of it where debug is asked for),
    so that stdout is the command's own. A command that has ``told`` itself what failed logs from error up.
    """
    settings = from_environment()
    level = settings.node.log_level
    log.hide(secrets_of(settings))
    quiet = "error" if told else "warning"
    log.setup(quiet if level == "info" else level, settings.node.log_format, sys.stderr)
    return settings

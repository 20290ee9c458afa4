"""What every command that needs settings does first."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from worker import log
from worker.cli.output import complain
from worker.errors import AuthFailed, ConfigError, QueueUnavailable
from worker.settings.groups import Settings, secrets_of
from worker.settings.queue import QueueSettings
from worker.settings.source import read_environment

PLACES = {
    "sqlite": "WORKER_SQLITE_PATH",
    "availability": "WORKER_AVAILABILITY_URL",
    "sqs": "WORKER_SQS_QUEUE_URL",
    "redis": "WORKER_REDIS_URL",
}
"""The variable that says where a queue is."""

KEYS = {
    "availability": "WORKER_AVAILABILITY_USER_TOKEN",
    "sqs": "AWS_ACCESS_KEY_ID, AWS_PROFILE or what else names AWS credentials",
    "redis": "WORKER_REDIS_URL",
}
"""What says who one is there."""


def read_settings(*, told: bool = False, elsewhere: bool = False) -> Settings:
    """The settings of this process, their secrets hidden from every line that follows.

    `ConfigError` with every mistake. Commands log to stderr from warning up (all of it where debug is asked for),
    so that stdout is the command's own. A command that has ``told`` itself what failed logs from error up.
    ``elsewhere``: it asks something of a queue, and what only its workers need may be missing.
    """
    settings = read_environment(elsewhere=elsewhere).whole()
    level = settings.node.log_level
    log.hide(secrets_of(settings))
    quiet = "error" if told else "warning"
    log.setup(quiet if level == "info" else level, settings.node.log_format, sys.stderr)
    return settings


@contextmanager
def asking(queue: QueueSettings) -> Iterator[None]:
    """Of a queue that does not do as it is asked, say which variable names it; its error comes out."""
    try:
        yield
    except QueueUnavailable as error:
        place = PLACES.get(queue.kind, "WORKER_QUEUE")
        if isinstance(error, AuthFailed):
            complain(f"{KEYS.get(queue.kind, place)}: not accepted by the queue of {place}:")
        elif not isinstance(error, ConfigError):
            complain(f"{place}: the queue there cannot be used now:")
        raise

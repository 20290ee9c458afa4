"""The embedded queue: one SQLite file that any number of workers on one machine share."""

from worker.queues.sqlite.driver import SqliteProducer, SqliteQueue

__all__ = ["SqliteProducer", "SqliteQueue"]

"""Jobs, leases, nodes, the catalogue and owed webhooks in SQL."""

from dispatcher.store.base import Store
from dispatcher.store.sql import SqlStore
from worker.clock import Clock

__all__ = ["Store", "open_store"]


def open_store(url: str, clock: Clock) -> Store:
    """A store over ``sqlite:///FILE`` or ``postgresql://...``, still to be opened. Raises `ConfigError`."""
    return SqlStore(url, clock)

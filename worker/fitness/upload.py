"""The line from this node to the operator's bucket."""

from __future__ import annotations

from datetime import timedelta

from worker.clock import CorrectedClock
from worker.fitness.verdict import Name, Reading
from worker.settings.storage import StorageSettings
from worker.storage.trial import SIZE, STALL, WINDOW_S, UploadTrial


class UploadSpeed:
    """Bytes a second, of some megabytes that are sent there and deleted again."""

    name: Name = "upload"

    def __init__(
        self,
        wanted: float,
        storage: StorageSettings,
        clock: CorrectedClock,
        node_id: str,
        *,
        size: int = SIZE,
        window_s: float = WINDOW_S,
        stall: timedelta = STALL,
    ) -> None:
        self.wanted = wanted
        self._storage = storage
        self._clock = clock
        self._node_id = node_id
        self._size = size
        self._window_s = window_s
        self._stall = stall

    async def measure(self) -> Reading:
        """Raises `UploadFailed` and `AuthFailed` for the store's part."""
        trial = UploadTrial(
            self._storage,
            clock=self._clock,
            name=self._node_id,
            size=self._size,
            window_s=self._window_s,
            stall=self._stall,
        )
        try:
            sent = await trial.measure()
        finally:
            await trial.aclose()
        return Reading(sent.rate, f"{sent.bytes / 1e6:.3g} MB to the bucket in {sent.seconds:.3g} s")

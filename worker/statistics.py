"""One line of the log a minute with all that was counted: many replicas share one address, so a scrape shows one."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING

import structlog

from worker.metrics import PAUSED, PHASE, PREFIX
from worker.report import Bill

if TYPE_CHECKING:
    from prometheus_client import Metric

log = structlog.get_logger()

EVERY_S = 60.0
IDLE_S = 600.0
"""A node to which nothing happens shows that it lives, but not each minute."""

LEAVING_OUT = frozenset({PAUSED, PHASE})
"""Gauges that say in numbers what stands in words beside them."""

DETAIL = {"jobs_settled": "status"}
"""The one label that is told of a counter that has more."""

Fields = dict[str, float | str]


def counted(families: Iterable[Metric]) -> Fields:
    """Counters and gauges of ours under their names without prefix, what is zero left out.

    A counter with labels has a field for each: `engine_faults_gpu_fault`. Whole numbers are told as such.
    """
    found: Fields = {}
    for family in families:
        if not family.name.startswith(PREFIX) or family.name in LEAVING_OUT or family.type not in ("counter", "gauge"):
            continue
        for name, value in _series(family):
            if rounded := round(value, 3):
                found[name] = int(rounded) if rounded == int(rounded) else rounded
    return found


def _series(family: Metric) -> Iterable[tuple[str, float]]:
    name = family.name.removeprefix(PREFIX)
    summed: dict[str, float] = {}
    for sample in family.samples:
        label = sample.labels.get(DETAIL[name]) if name in DETAIL else next(iter(sample.labels.values()), None)
        series = f"{name}_{label}" if label else name
        summed[series] = summed.get(series, 0.0) + sample.value
    return summed.items()


class Statistics:
    """Owned by the task that runs `run`. ``families`` are the metrics, ``phase`` where the process is."""

    def __init__(
        self,
        families: Callable[[], Iterable[Metric]],
        phase: Callable[[], str],
        bill: Callable[[], Bill | None] = lambda: None,
    ) -> None:
        self._families = families
        self._phase = phase
        self._bill = bill
        self._told: Mapping[str, float | str] = {}
        self._told_at = 0.0

    async def run(self) -> None:
        """A service; when it is cancelled, which is at the drain's end, it tells a last time."""
        loop = asyncio.get_running_loop()
        began = self._told_at = loop.time()
        try:
            while True:
                await asyncio.sleep(EVERY_S)
                self._tell_news(began)
        finally:
            self._tell(began, last=True)

    def _tell_news(self, began: float) -> None:
        """Where something was counted since it was told last, or that is long ago."""
        happened = self._happened()
        if happened != self._told or asyncio.get_running_loop().time() - self._told_at >= IDLE_S:
            self._tell(began)

    def _tell(self, began: float, *, last: bool = False) -> None:
        now = asyncio.get_running_loop().time()
        bill = self._bill()
        log.info(
            "worker_stats",
            phase=self._phase(),
            up_s=round(now - began, 1),
            last=last,
            **counted(self._families()),
            **(bill.told() if bill is not None else {}),
        )
        self._told, self._told_at = self._happened(), now

    def _happened(self) -> Fields:
        """What tells whether anything happened: the counters, what is held, and the phase; figures always move."""
        counters = [family for family in self._families() if family.type == "counter"]
        return counted(counters) | {"phase": self._phase()}

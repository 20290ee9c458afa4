"""Any number of jobs with any sets, sizes, failures and cancellations: the cap holds, and everybody is served."""

from __future__ import annotations

import asyncio
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.cache import KB, FakeHub, Kept, content, kept, wanted
from tests.support.virtual import elapse, run, takes
from worker.errors import DownloadFailed, ModelComing, ModelTooLarge
from worker.mentions import Place, place_of
from worker.models.base import Wanted

CAP = 12
MODELS = 6


@dataclass(frozen=True)
class Model:
    """``blocks`` of content; ``sized`` when its source says so before; ``fails`` is how often it breaks off first."""

    blocks: int
    sized: bool
    fails: int
    slow: int


@dataclass(frozen=True)
class Use:
    """A job: comes, uses its models for some time, has the server load one, or gives up meanwhile.

    With ``patience`` it goes away while they take longer to come, and comes again when it was told to.
    """

    at: int
    models: tuple[int, ...]
    lasts: int
    gives_up: int | None
    patience: int | None
    loads: bool
    hint: bool


models = st.lists(
    st.builds(
        Model,
        blocks=st.integers(1, 7),
        sized=st.booleans(),
        fails=st.sampled_from([0, 0, 0, 1]),
        slow=st.integers(0, 3),
    ),
    min_size=MODELS,
    max_size=MODELS,
)
uses = st.lists(
    st.builds(
        Use,
        at=st.integers(0, 12),
        models=st.lists(st.integers(0, MODELS - 1), min_size=1, max_size=3, unique=True).map(tuple),
        lasts=st.integers(0, 6),
        gives_up=st.none() | st.integers(0, 8),
        patience=st.none() | st.integers(0, 8),
        loads=st.booleans(),
        hint=st.sampled_from([False, False, False, True]),
    ),
    min_size=1,
    max_size=14,
)


def want(number: int) -> Wanted:
    return wanted(f"m{number}.safetensors", at=f"m{number}")


class Breaking(FakeHub):
    """Sources that break off as often as their model says."""

    def __init__(self, models: Sequence[Model]) -> None:
        super().__init__()
        for number, model in enumerate(models):
            tells = frozenset({"size"} if model.sized else ())
            source = self.has(f"m{number}", content(str(number), model.blocks * KB), tells=tells)
            source.seconds = model.slow * 0.7
        self.left = {number: model.fails for number, model in enumerate(models)}
        self.on_write = self._break

    def _break(self) -> None:
        for number, source in enumerate(self.sources.values()):
            source.error = DownloadFailed(f"m{number} broke off") if self.left[number] > 0 else None

    def broke(self, error: DownloadFailed) -> None:
        self.left[int(error.message[1])] -= 1


async def job(use: Use, models: Sequence[Model], cache: Kept, ends: list[str]) -> None:
    """One job, which asks again after a failed transfer; however it ends is noted."""
    await takes(use.at)
    if use.hint:
        cache.cache.hint(want(use.models[0]))
        ends.append("hinted")
        return
    blocks = sum(models[i].blocks for i in use.models)
    at_most = None if use.patience is None else timedelta(seconds=use.patience)
    try:
        async with asyncio.timeout(use.gives_up):
            while True:
                try:
                    async with cache.cache.provided([want(i) for i in use.models], at_most) as provided:
                        assert blocks <= CAP
                        for place, number in zip(provided.places, use.models, strict=True):
                            assert cache.path(place.name).stat().st_size == models[number].blocks * KB
                        if use.loads:
                            cache.server.held = {provided.places[0]}
                        await takes(use.lasts)
                        assert all(cache.path(place.name).exists() for place in provided.places)
                        ends.append("served")
                        return
                except DownloadFailed as error:
                    cache.hub.broke(error)  # type: ignore[attr-defined]
                except ModelComing as error:
                    await takes((error.retry_after or timedelta.max).total_seconds())
    except TimeoutError:
        ends.append("gave up")
    except ModelTooLarge:
        assert blocks > CAP
        ends.append("too large")


async def played(root: Path, models: Sequence[Model], uses: Sequence[Use]) -> None:
    hub, most = Breaking(models), 0
    async with kept(root, cap=CAP * KB, hub=hub) as cache:
        breaks, lost = hub.on_write, set[Place]()

        def watched() -> None:
            nonlocal most
            breaks()
            most = max(most, cache.written())
            lost.update(place for place in cache.server.held if not cache.path(place.name).exists())

        hub.on_write = watched
        ends: list[str] = []
        async with asyncio.timeout(10_000), asyncio.TaskGroup() as group:
            for use in uses:
                group.create_task(job(use, models, cache, ends))
        assert len(ends) == len(uses)
        await settled(cache)
        assert most <= CAP * KB
        assert lost == set()
        assert cache.written() <= CAP * KB
        assert cache.idle
        assert cache.cache.bytes == cache.written()
        assert {e.place for e in cache.cache.entries()} <= {place_of("lora", want(i).name) for i in range(MODELS)}


async def settled(cache: Kept) -> None:
    """Until transfers and prefetches that nobody waits for have ended too; those that break are over."""
    for _ in range(1000):
        if cache.idle and not cache.cache.hinting:
            return
        await elapse(1)
    raise AssertionError("something never ends")


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(models, uses)
def test_cap_and_service(models: list[Model], uses: list[Use]) -> None:
    """No job waits for ever or gets a part of its set, the cap holds at each write, and nothing loaded goes."""
    root = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
    try:
        run(played(root / "models", models, uses))
    finally:
        shutil.rmtree(root)

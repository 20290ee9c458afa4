"""Phase BLOCKED: a node with a mistake of its operator's stays, tells it, and is there when it is mended."""

from __future__ import annotations

import asyncio
import gc
import random
import weakref
from datetime import timedelta
from itertools import pairwise
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.fakes import FakeEngine
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.blocked import TELL_EVERY_S, TRY_FIRST_S, TRY_MOST_S, TRYING_AGAIN, Mistake, Stay, reasons_of
from worker.engines.base import EngineState, Reach
from worker.errors import AuthFailed, ConfigError, FieldError
from worker.node import NodeUnfit
from worker.settings import Settings, load_settings
from worker.status import Phase, Status
from worker.supervisor import ExitCode

HALF_AN_HOUR = timedelta(minutes=30)
REFUSED = ConfigError((FieldError("WORKER_A", "is wrong"), FieldError("WORKER_B", "is missing")))


class Tries:
    """Starts of which each ends as told, the last way for ever; when and with what phase each began."""

    def __init__(self, *ends: Mistake | int, takes_s: float = 0.0) -> None:
        self.status = Status()
        self.began: list[float] = []
        self.phases: list[Phase] = []
        self._ends, self._takes_s = list(ends), takes_s

    async def read(self) -> Settings:
        return load_settings({})

    async def start(self, settings: Settings) -> int:
        self.began.append(asyncio.get_running_loop().time())
        self.phases.append(self.status.phase)
        await elapse(self._takes_s)
        end = self._ends.pop(0) if len(self._ends) > 1 else self._ends[0]
        if isinstance(end, int):
            return end
        raise end

    def stay(self, limit: timedelta = HALF_AN_HOUR) -> Stay:
        return Stay(self.status, limit=limit, rng=random.Random(1))


@virtual
async def test_what_has_healed_is_left_for_provisioning() -> None:
    """Every mistake is told until then, and while it is tried again too."""
    tries = Tries(REFUSED, AuthFailed("the store answered 403"), 0)
    stay = tries.stay()
    running = asyncio.create_task(stay.run(tries.read, tries.start), name="stay")
    await elapse(1)
    assert tries.status.phase is Phase.BLOCKED
    assert tries.status.startup().reasons == ("WORKER_A: is wrong", "WORKER_B: is missing")
    assert (tries.status.ready().ok, tries.status.live().ok) == (False, True)
    assert await running == 0
    assert tries.phases == [Phase.STARTING, Phase.PROVISIONING, Phase.PROVISIONING]
    assert tries.status.reasons == (TRYING_AGAIN, "auth_failed: the store answered 403")
    blocked_then_tried = [Phase.BLOCKED, Phase.PROVISIONING]
    assert tries.status.story == [Phase.STARTING, *blocked_then_tried, *blocked_then_tried]


@virtual
async def test_the_last_mistake_comes_out_when_the_time_is_up() -> None:
    """Neither sooner nor later, however often it was tried meanwhile; the pauses between tries grow up to a bound."""
    tries = Tries(REFUSED)
    loop = asyncio.get_running_loop()
    stay = tries.stay()
    assert stay.described() == {}
    with pytest.raises(ConfigError) as caught:
        await stay.run(tries.read, tries.start)
    assert caught.value is REFUSED
    assert HALF_AN_HOUR.total_seconds() <= loop.time() < HALF_AN_HOUR.total_seconds() + 1
    pauses = [after - before for before, after in pairwise(tries.began)]
    assert TRY_FIRST_S * 0.8 <= pauses[0] <= TRY_FIRST_S
    assert pauses == sorted(pauses[:5]) + pauses[5:]
    assert all(TRY_MOST_S * 0.8 <= pause <= TRY_MOST_S for pause in pauses[5:])
    assert stay.described() == {"blocked": {"tries": len(tries.began), "exits_in_s": 0.0}}


@virtual
async def test_one_line_a_minute_says_what_is_wrong_and_for_how_long() -> None:
    """However often it is tried meanwhile; what is new is told at once."""
    tries = Tries(REFUSED, ConfigError("another"))
    with capture_logs() as events, pytest.raises(ConfigError):
        await tries.stay(timedelta(minutes=10)).run(tries.read, tries.start)
    told = [event for event in events if event["event"] == "start_blocked"]
    assert {event["log_level"] for event in told} == {"error"}
    assert told[0]["mistakes"] == ["WORKER_A: is wrong", "WORKER_B: is missing"]
    assert told[0]["exits_in_s"] == 600
    assert told[1]["mistakes"] == ["another"]
    left = [event["exits_in_s"] for event in told[1:]]
    assert all(before - after == pytest.approx(TELL_EVERY_S) for before, after in pairwise(left))
    assert len(told) == 11
    assert [event["event"] for event in events][-1] == "configuration_refused"


@virtual
async def test_a_long_start_is_tried_half_of_the_time_at_most() -> None:
    """A server that takes ten minutes to say no is not started again at once."""
    tries = Tries(REFUSED, takes_s=300)
    with pytest.raises(ConfigError):
        await tries.stay(timedelta(hours=1)).run(tries.read, tries.start)
    pauses = [after - before for before, after in pairwise(tries.began)]
    assert pauses
    assert min(pauses) >= 600


@virtual
async def test_a_try_that_outlasts_the_limit_may_still_succeed() -> None:
    """Only a node that is BLOCKED is given up."""
    tries = Tries(REFUSED, 0, takes_s=100)
    assert await tries.stay(timedelta(seconds=150)).run(tries.read, tries.start) == 0
    tries = Tries(REFUSED, takes_s=100)
    with pytest.raises(ConfigError):
        await tries.stay(timedelta(seconds=150)).run(tries.read, tries.start)
    assert len(tries.began) == 2


@virtual
async def test_after_the_first_ready_nothing_is_tried_again() -> None:
    """Then it was no start that failed."""
    tries = Tries(REFUSED)
    tries.status.was_ready = True
    with pytest.raises(ConfigError):
        await tries.stay().run(tries.read, tries.start)
    assert tries.status.phase is Phase.STARTING


@virtual
async def test_settings_that_cannot_be_read_keep_it_blocked() -> None:
    """The phase is not left for a start that does not come."""
    tries = Tries(0)
    left = [REFUSED, REFUSED]

    async def read() -> Settings:
        if left:
            raise left.pop()
        return load_settings({})

    assert await tries.stay().run(read, tries.start) == 0
    assert tries.status.story == [Phase.STARTING, Phase.BLOCKED, Phase.PROVISIONING]


@virtual
async def test_nothing_is_kept_of_a_start_that_failed() -> None:
    """Neither by the error's frames nor by whoever else can be told to forget."""
    left: list[weakref.ref[Settings]] = []
    seen: list[bool] = []

    async def start(settings: Settings) -> int:
        left.append(weakref.ref(settings))
        raise ConfigError("no") from OSError("disk")

    def forget() -> None:
        gc.collect()
        seen.append(all(one() is None for one in left))

    stay = Stay(Status(), limit=timedelta(seconds=20), rng=random.Random(1), forget=forget)
    with pytest.raises(ConfigError):
        await stay.run(Tries(0).read, start)
    assert len(seen) == len(left) > 1
    assert all(seen)


def test_reasons_hold_no_secret() -> None:
    """Of a URL neither its user nor its query."""
    error = ConfigError("WORKER_WARMUP: https://me:pw@cdn.example/job.json?sig=abc answered 403")
    assert reasons_of(error) == ("WORKER_WARMUP: https://***@cdn.example/job.json?*** answered 403",)


class Refusing(FakeEngine):
    """A server that refuses our credentials until it is told otherwise."""

    refuses = True

    async def look(self) -> EngineState:
        if self.refuses:
            raise AuthFailed("the server answered 401")
        return await super().look()


async def fails(error: Exception) -> None:
    """A service."""
    await elapse(3)
    raise error


@virtual
async def test_a_service_that_shows_a_mistake_at_the_start_leaves_the_phase_blocked() -> None:
    """Everything else has ended then, so that nobody moves it on; the mistake comes out."""
    world = World(services={"provisioning": lambda: fails(REFUSED)}, stays=True)
    world.engine.reach = Reach.PORT_CLOSED
    with capture_logs() as events, pytest.raises(ConfigError) as caught:
        await world.supervisor.run()
    assert caught.value is REFUSED
    assert world.status.phase is Phase.BLOCKED
    assert world.status.story[-2:] == [Phase.WAITING_FOR_ENGINE, Phase.BLOCKED]
    assert world.status.reasons == ("WORKER_A: is wrong", "WORKER_B: is missing")
    assert world.drain.begun
    assert not [event for event in events if event["event"] == "configuration_refused"]


@virtual
async def test_refused_engine_credentials_are_tried_until_they_open() -> None:
    """From BLOCKED over PROVISIONING to READY with one phase that tells it all; the reason names the variables."""
    status, engine = Status(), Refusing()

    async def start(settings: Settings) -> int:
        world = World(engine=engine, status=status, stays=True)
        async with world.running() as process:
            await asyncio.wait(
                {process, asyncio.create_task(_ready(status), name="ready")}, return_when="FIRST_COMPLETED"
            )
        return await process

    stay = Stay(status, limit=HALF_AN_HOUR, rng=random.Random(1))
    running = asyncio.create_task(stay.run(Tries(0).read, start), name="stay")
    await status.reached(Phase.BLOCKED)
    assert "WORKER_ENGINE_API_KEY: the server answered 401" in status.reasons[0]
    engine.refuses = False
    assert await running == ExitCode.CLEAN
    assert status.startup().ok
    way = [Phase.BLOCKED, Phase.PROVISIONING, Phase.STARTING, Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP, Phase.READY]
    assert status.story[1:7] == way


async def _ready(status: Status) -> None:
    await status.reached(Phase.READY)


@virtual
async def test_a_stop_that_comes_meanwhile_is_a_clean_end() -> None:
    """Whoever asked for it does not hear of the mistake any more."""
    hanging = asyncio.Event()

    async def lingers() -> None:
        try:
            await hanging.wait()
        finally:
            world.supervisor.stop()

    world = World(services={"broken": lambda: fails(REFUSED), "lingering": lingers}, stays=True)
    world.engine.reach = Reach.PORT_CLOSED
    assert await world.supervisor.run() is ExitCode.CLEAN
    assert world.status.phase is Phase.STOPPED


@virtual
async def test_a_mistake_after_the_first_ready_or_where_none_may_stay_is_64() -> None:
    """BLOCKED is for starts, and for platforms that ban nodes."""

    async def late() -> None:
        await world.status.reached(Phase.READY)
        raise REFUSED

    world = World(services={"late": late}, stays=True)
    assert await world.supervisor.run() is ExitCode.CONFIG
    assert world.status.story[-2:] == [Phase.DRAINING, Phase.STOPPED]
    world = World(services={"early": lambda: fails(REFUSED)})
    world.engine.reach = Reach.PORT_CLOSED
    assert await world.supervisor.run() is ExitCode.CONFIG
    assert Phase.BLOCKED not in world.status.story


@virtual
@pytest.mark.parametrize(
    ("error", "code"), [(NodeUnfit("no GPU"), ExitCode.NEVER_READY), (OSError("disk"), ExitCode.INTERNAL)]
)
async def test_what_is_no_mistake_of_the_operators_ends_as_ever(error: Exception, code: ExitCode) -> None:
    """An unfit node and a bug are the node's and ours: nothing to stay for."""
    world = World(services={"broken": lambda: fails(error)}, stays=True)
    world.engine.reach = Reach.PORT_CLOSED
    assert await world.supervisor.run() is code
    assert Phase.BLOCKED not in world.status.story


@virtual
@pytest.mark.parametrize("error", [AuthFailed("answered 401"), ConfigError("the file is another program's")])
async def test_a_queue_that_refuses_us_after_the_first_ready_pauses(error: Mistake) -> None:
    """As one that does not answer; it is probed, and goes on when it is back."""
    world = World()
    async with world.running():
        await world.status.reached(Phase.READY)
        receive = world.link.receive

        async def refused() -> Any:
            raise error

        world.link.receive = refused  # type: ignore[method-assign]
        await world.submit("a")
        await world.until(lambda: world.status.phase is Phase.PAUSED)
        assert world.status.reasons == (error.code,)
        assert world.status.startup().ok
        world.link.receive = receive  # type: ignore[method-assign]
        await world.ended("a")
        assert world.status.phase is Phase.READY

"""Phases and what the probes say of them."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import elapse, virtual
from worker.status import TRANSITIONS, Answer, IllegalTransition, Phase, Status

UP = (Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP, Phase.READY)


def at(phase: Phase) -> Status:
    """A status that came to a phase on a legal way."""
    ways = {
        Phase.STARTING: (),
        Phase.PROVISIONING: (Phase.BLOCKED, Phase.PROVISIONING),
        Phase.WAITING_FOR_ENGINE: UP[:1],
        Phase.WARMING_UP: UP[:2],
        Phase.READY: UP,
        Phase.PAUSED: (*UP, Phase.PAUSED),
        Phase.DRAINING: (Phase.DRAINING,),
        Phase.STOPPED: (Phase.STOPPED,),
        Phase.BLOCKED: (Phase.BLOCKED,),
    }
    status = Status()
    for step in ways[phase]:
        status.move(step)
    return status


@pytest.mark.parametrize("before", Phase)
@pytest.mark.parametrize("after", Phase)
def test_a_phase_is_entered_only_from_where_the_table_says(before: Phase, after: Phase) -> None:
    """Every pair; staying is always allowed."""
    status = at(before)
    if after is before or before in TRANSITIONS[after]:
        status.move(after)
        assert status.phase is after
    else:
        with pytest.raises(IllegalTransition, match=f"{before} to {after}"):
            status.move(after)
        assert status.phase is before


def test_the_table_knows_every_phase() -> None:
    """And nothing leaves STOPPED."""
    assert set(TRANSITIONS) == set(Phase)
    assert not any(Phase.STOPPED in sources for sources in TRANSITIONS.values())


def test_startup_latches() -> None:
    """Once ready, for ever started; before that it gives the reason."""
    status = Status()
    assert status.startup() == Answer(False, "starting", ("starting",))
    status.move(Phase.WAITING_FOR_ENGINE, "engine_port_closed")
    assert status.startup() == Answer(False, "waiting_for_engine", ("engine_port_closed",))
    status.move(Phase.WARMING_UP)
    status.move(Phase.READY)
    status.move(Phase.WAITING_FOR_ENGINE)
    assert status.startup().ok
    assert status.ready() == Answer(False, "waiting_for_engine", ("waiting_for_engine",))


def test_live_says_what_no_restart_of_the_server_can_mend() -> None:
    """Alive until something of the process itself is stuck."""
    status = Status()
    assert status.live().ok
    status.stuck("service-watch_broke")
    assert status.live() == Answer(False, "starting", ("service-watch_broke",))
    status.stuck()
    assert status.live().ok


@virtual
async def test_moves_are_waited_for() -> None:
    """Also renewed reasons are a change."""
    status = Status()
    reaching = asyncio.create_task(status.reached(Phase.READY, Phase.STOPPED), name="reached")
    changing = asyncio.create_task(status.changed(), name="changed")
    await elapse(1)
    status.move(Phase.STARTING, "another_reason")
    await changing
    assert status.reasons == ("another_reason",)
    assert not reaching.done()
    for phase in UP:
        status.move(phase)
    assert await reaching is Phase.READY


def test_the_story_is_bounded() -> None:
    """A worker that lives long remembers its latest phases only."""
    status = at(Phase.READY)
    for _ in range(30):
        status.move(Phase.PAUSED)
        status.move(Phase.READY)
    assert len(status.story) == 20

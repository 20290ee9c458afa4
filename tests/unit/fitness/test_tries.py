"""How often a property is measured before the node is judged by it."""

from __future__ import annotations

import asyncio

import pytest

from tests.support.virtual import virtual
from tests.unit.fitness.checks import Scripted
from worker.errors import AuthFailed, ConfigError, UploadFailed, WorkerError
from worker.fitness.tries import AWAY_FIRST_S, AWAY_MOST_S, best_of, once
from worker.fitness.verdict import PAUSES_S, TRIES, Figure, Reading


class Told(list[tuple[str, str]]):
    def __call__(self, code: str, words: str) -> None:
        self.append((code, words))


def now() -> float:
    return asyncio.get_running_loop().time()


@virtual
async def test_a_good_first_try_is_the_last() -> None:
    """A fit node loses no time."""
    check, told = Scripted("upload", 1e6, 2e6), Told()
    assert await best_of(check, told) == Figure("upload", 1e6, Reading(2e6), 1)
    assert (check.measured, now(), told) == (1, 0, [])


@virtual
async def test_a_bad_try_is_no_verdict_yet() -> None:
    """The line may have been busy: it is tried again after a pause, and each is said."""
    check, told = Scripted("upload", 1e6, 2e5, 3e6), Told()
    assert (await best_of(check, told)).fit is True
    assert now() == PAUSES_S[0]
    assert told == [("measuring_fitness", "upload 200 kB/s, 1 MB/s wanted: tried again in 10 s")]


@virtual
async def test_the_best_of_all_tries_is_judged() -> None:
    """The pauses between them grow."""
    check = Scripted("upload", 1e6, 2e5, 5e5, 3e5)
    assert await best_of(check, Told()) == Figure("upload", 1e6, Reading(5e5), TRIES)
    assert now() == sum(PAUSES_S)


@virtual
async def test_what_another_try_cannot_change_is_not_tried_again() -> None:
    """A small disk stays small."""
    check = Scripted("disk", 9e9, Reading(5e9, lasting=True))
    assert (await best_of(check, Told())).fit is False
    assert (check.measured, now()) == (1, 0)


@virtual
async def test_what_is_only_told_is_measured_once() -> None:
    check = Scripted("disk", None, 5e9)
    assert (await best_of(check, Told())).tries == 1
    assert check.measured == 1


@virtual
async def test_a_store_that_is_away_is_waited_for_and_no_try() -> None:
    """An outage says nothing of the node, however long it lasts; the waits grow to a minute."""
    away = UploadFailed("connection refused")
    check, told = Scripted("upload", 1e6, *[away] * 8, 2e6), Told()
    assert await best_of(check, told) == Figure("upload", 1e6, Reading(2e6), 1)
    assert told == [("upload_failed", "upload cannot be measured: connection refused")] * 8
    assert now() == AWAY_FIRST_S * (1 + 2 + 4 + 8) + 4 * AWAY_MOST_S


@virtual
@pytest.mark.parametrize("error", [AuthFailed("403"), ConfigError("no model")], ids=lambda e: e.code)
async def test_what_the_operator_must_set_right_comes_out_at_once(error: WorkerError) -> None:
    with pytest.raises(type(error)):
        await best_of(Scripted("upload", 1e6, error), Told())
    assert now() == 0


async def test_one_measurement_judges_as_it_is() -> None:
    """As `sd-worker check` has it: an outage comes out, a bad figure is one."""
    assert (await once(Scripted("upload", 1e6, 2e5))).fit is False
    with pytest.raises(UploadFailed):
        await once(Scripted("upload", 1e6, UploadFailed()))

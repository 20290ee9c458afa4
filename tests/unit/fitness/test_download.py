"""The line from the model source, measured over real sockets."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest

from tests.support.model_host import FORBIDDEN, NOT_FOUND, HostedFile, ModelHost, Twist
from tests.support.receiver import Answer
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, ConfigError, DownloadFailed, Owner
from worker.fitness.download import LARGE, TRIED, Came, DownloadSpeed, candidates
from worker.fitness.verdict import Reading
from worker.models.base import Wanted
from worker.models.catalog import Index, Item
from worker.rates import Speeds
from worker.settings import load_settings
from worker.urls import Guard

BODY = os.urandom(6_000_000)
WINDOW_S = 0.4


@pytest.fixture
async def host() -> AsyncIterator[ModelHost]:
    async with ModelHost() as running:
        running.otherwise = Answer(404)
        yield running


def wanted(url: str, name: str = "m.safetensors") -> Wanted:
    return Wanted("checkpoint", name, url, owner=Owner.OPERATOR)


def speed_of(
    *models: Wanted, speeds: Speeds | None = None, window_s: float = WINDOW_S, **environ: str
) -> DownloadSpeed:
    async def first() -> Sequence[Wanted]:
        return models

    return DownloadSpeed(
        1e6,
        load_settings(environ),
        guard=Guard(),
        clock=CorrectedClock(SystemClock()),
        wanted_first=first,
        measured=(speeds or Speeds()).downloaded,
        window_s=window_s,
    )


def told(reading: Reading) -> float:
    assert reading.value is not None
    return reading.value


async def test_a_throttled_source_shows_as_slow(host: ModelHost) -> None:
    """By far less than an unbridled one on the same machine; both tell the node's rate."""
    host.host("/fast", BODY)
    host.host("/slow", HostedFile(BODY, rate=200_000))
    speeds = Speeds()
    fast = told(await speed_of(wanted(host.url("/fast")), speeds=speeds, window_s=20).measure())
    slow = told(await speed_of(wanted(host.url("/slow")), WORKER_MODELS_CONNECTIONS="1").measure())
    assert slow < fast / 5
    assert speeds.network is not None


async def test_ranges_come_over_as_many_connections_as_the_downloader_uses(host: ModelHost) -> None:
    """A source that limits each connection is not slow for that: every range is asked for once."""
    file = host.host("/m", HostedFile(BODY, rate=400_000))
    found = await speed_of(wanted(host.url("/m")), WORKER_MODELS_CONNECTIONS="4").measure()
    assert host.most_at_once == 4
    assert sorted(file.ranges_asked) == sorted(["bytes=0-", *(f"bytes={i * 1_500_000}-" for i in range(1, 4))])
    assert f"from {host.url('/m')}" in found.detail


async def test_a_source_without_ranges_is_measured_by_what_it_sends(host: ModelHost) -> None:
    file = host.host("/m", HostedFile(BODY, ranges=False))
    assert told(await speed_of(wanted(host.url("/m")), window_s=20).measure()) > 0
    assert len(file.requests) == 1


async def test_connections_that_the_source_does_not_grant_are_done_without(host: ModelHost) -> None:
    """One that limits them answers 429, or with something else, to all but the first."""
    file = host.host("/m", HostedFile(BODY))
    file.twists.extend([None, Twist(429), Twist(whole=True), Twist(429)])
    assert told(await speed_of(wanted(host.url("/m")), window_s=20, WORKER_MODELS_CONNECTIONS="4").measure()) > 0


async def test_a_source_that_stops_sending_is_away_and_not_slow(host: ModelHost) -> None:
    """Nothing in the second half of the time: that is no speed of the node."""
    host.host("/m", HostedFile(BODY, twist=Twist(cut=100_000, end="silence")))
    with pytest.raises(DownloadFailed, match="stopped sending after 100000 bytes"):
        await speed_of(wanted(host.url("/m")), window_s=1, WORKER_MODELS_CONNECTIONS="1").measure()


async def test_a_source_that_sends_nothing_is_away(host: ModelHost) -> None:
    host.host("/m", HostedFile(BODY, twist=Twist(cut=0)))
    with pytest.raises(DownloadFailed, match="the connection ended early"):
        await speed_of(wanted(host.url("/m")), WORKER_MODELS_CONNECTIONS="1").measure()


async def test_the_next_model_is_taken_where_one_cannot_be_had(host: ModelHost) -> None:
    """One that is missing, forbidden or too small to tell says nothing of the line."""
    host.host("/gone", HostedFile(b"", twist=NOT_FOUND))
    host.host("/forbidden", HostedFile(b"", twist=FORBIDDEN))
    host.host("/small", BODY[:1000])
    host.host("/m", BODY)
    names = ("/gone", "/forbidden", "/small", "/m")
    found = await speed_of(*(wanted(host.url(name)) for name in names), window_s=20).measure()
    assert host.url("/m") in found.detail


async def test_an_operators_template_is_the_first_source(host: ModelHost) -> None:
    """As when the model is fetched in earnest."""
    host.host("/checkpoint/m.safetensors", BODY)
    template = host.url("/{kind}/{name}")
    models = (Wanted("checkpoint", "m.safetensors", owner=Owner.OPERATOR),)
    found = await speed_of(*models, window_s=20, WORKER_MODELS_SOURCE=template).measure()
    assert host.url("/checkpoint/m.safetensors") in found.detail


async def test_the_catalogue_names_models_too(host: ModelHost, tmp_path: Path) -> None:
    host.host("/m", BODY)
    catalog = tmp_path / "catalog.json"
    catalog.write_text(f'[{{"kind": "checkpoint", "name": "m.safetensors", "url": "{host.url("/m")}"}}]')
    assert told(await speed_of(window_s=20, WORKER_MODELS_CATALOG=str(catalog)).measure()) > 0


async def test_the_operators_bandwidth_holds_for_the_measurement_too(host: ModelHost) -> None:
    """What others on the line are promised."""
    host.host("/m", BODY)
    free = told(await speed_of(wanted(host.url("/m")), window_s=20).measure())
    bound = told(await speed_of(wanted(host.url("/m")), WORKER_MODELS_BANDWIDTH="500kB").measure())
    assert bound < free / 5


@pytest.mark.parametrize(
    ("answers", "error", "said"),
    [
        ((), ConfigError, "no model is listed"),
        ((NOT_FOUND,), ConfigError, "answers 404"),
        ((FORBIDDEN,), AuthFailed, "answers 403"),
        ((FORBIDDEN, Twist(503)), DownloadFailed, "answers 503"),
        ((None,), ConfigError, "large enough"),
    ],
    ids=["none", "missing", "forbidden", "away", "small"],
)
async def test_why_nothing_can_be_measured(
    host: ModelHost, answers: tuple[Twist | None, ...], error: type[Exception], said: str
) -> None:
    """What may yet answer is waited for; what never will is the operator's to change."""
    for i, answer in enumerate(answers):
        host.host(f"/{i}", HostedFile(b"x" * 5000, twist=answer or Twist()))
    with pytest.raises(error, match=said):
        await speed_of(*(wanted(host.url(f"/{i}")) for i in range(len(answers)))).measure()


def test_large_models_are_taken_before_small_ones() -> None:
    """In the operator's order otherwise; what has no known size may be large."""
    first = [Wanted("lora", "small", size=LARGE - 1), Wanted("checkpoint", "a", size=LARGE), Wanted("checkpoint", "b")]
    index = Index([Item(kind="vae", name=f"{i}", size=LARGE) for i in range(TRIED)])
    found = candidates(first, index)
    assert [one.name for one in found[:3]] == ["a", "b", "0"]
    assert len(found) == TRIED
    assert [one.name for one in candidates(first, Index())] == ["a", "b", "small"]
    assert {one.owner for one in found[2:]} == {Owner.OPERATOR}


def test_few_bytes_tell_a_speed_only_where_the_time_was_up() -> None:
    """A small file tells how long asking takes; a slow line brings no more than that."""
    assert Came(1000, 5.0, late=500).rate == 200
    assert Came(1000, 0.1, late=None).rate is None

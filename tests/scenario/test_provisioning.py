"""The start of a node that must have models first: order, progress, patience, and how it ends when they do not come."""

from __future__ import annotations

import asyncio
from collections import deque
from datetime import timedelta
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.depot import START_S, Node, item
from tests.support.virtual import elapse, virtual
from worker.engines.base import Reach
from worker.errors import (
    AuthFailed,
    ConfigError,
    DiskFull,
    DownloadFailed,
    FieldError,
    InvalidJob,
    ModelCorrupt,
    ModelNotFound,
    ModelTooLarge,
    UrlForbidden,
    WorkerError,
)
from worker.models.base import Wanted
from worker.models.manifest import Manifest, When
from worker.provisioning import CORRUPT_MOST, TOGETHER
from worker.status import Phase
from worker.supervisor import ExitCode

UP = [Phase.STARTING, Phase.WAITING_FOR_ENGINE, Phase.WARMING_UP, Phase.READY]


def now() -> float:
    return asyncio.get_running_loop().time()


def mistakes(events: list[Any]) -> str:
    (refused,) = [event for event in events if event["event"] == "configuration_refused"]
    return str(refused["error"])


@virtual
async def test_without_a_list_nothing_changes() -> None:
    """Nobody waits, and no phase is entered that was not before."""
    node = Node()
    async with node.running():
        await node.ready()
        assert node.status.story == UP
        assert node.provisioning.described() == {"wanted": 0, "there": 0, "transfers": []}


@virtual
async def test_the_server_is_started_when_its_models_are_there() -> None:
    """Not a moment earlier; probes and status say meanwhile what is missing."""
    node = Node(item("a.safetensors"), item("b.safetensors"))
    node.depot.seconds = {"a.safetensors": 20.0, "b.safetensors": 40.0}
    async with node.running():
        await node.until(lambda: node.provisioning.described()["there"] == 1)
        await elapse(1.5)
        answer = node.status.startup()
        assert (answer.ok, answer.status, node.process.lives) == (False, "provisioning", 0)
        line = "checkpoint/b.safetensors: 1.0 of 2.0 GB"
        assert answer.reasons == ("models_missing", "1 of 2 models are there", line)
        assert node.provisioning.described() == {"wanted": 2, "there": 1, "transfers": [line]}
        await node.ready()
        assert node.status.story == [Phase.STARTING, Phase.PROVISIONING, *UP]
        assert (node.process.lives, now() >= 40) == (1, True)


@virtual
async def test_the_server_starts_beside_what_only_the_ready_node_needs() -> None:
    """The warm-up and READY wait for it, with what is missing as the reason."""
    node = Node(item("a.safetensors", When.BEFORE_READY))
    async with node.running():
        await node.until(lambda: node.process.lives == 1 and len(node.status.reasons) == 3)
        assert now() < 60
        assert node.status.phase is Phase.WAITING_FOR_ENGINE
        assert node.status.reasons[0] == "models_missing"
        assert node.engine.canaries == 0
        await node.ready()
        assert now() >= 60
        assert node.engine.canaries == 1


@virtual
async def test_what_is_needed_first_is_fetched_first() -> None:
    """So that the server's start waits for nothing else; background models are hints, once the others are there."""
    later, last = item("later", When.BEFORE_READY), item("last", When.BACKGROUND)
    node = Node(last, later, item("first"))
    async with node.running():
        await node.ready()
        assert node.depot.begun == ["first", "later"]
        assert node.depot.hints == [last.wanted]


@virtual
async def test_several_are_fetched_at_a_time_but_not_all() -> None:
    """A list of twenty neither waits for each in turn nor opens two hundred connections."""
    node = Node(*(item(f"m{number}") for number in range(20)))
    async with node.running():
        await node.ready()
    assert node.depot.most == TOGETHER


@virtual
async def test_a_source_that_is_away_is_tried_until_it_is_back() -> None:
    """With growing pauses, also for half an hour; each try is told once, and the node becomes ready."""
    node = Node(item("a"))
    node.depot.seconds = {"a": 1.0}
    node.depot.errors["a"] = deque([*[DownloadFailed("the source is away")] * 20, DiskFull("no room")])
    with capture_logs() as events:
        async with node.running():
            await node.ready()
    away = [event for event in events if event["event"] == "model_still_away"]
    assert [event["tries"] for event in away] == list(range(1, 22))
    assert {event["field"] for event in away} == {"LIST[a]"}


@virtual
async def test_the_node_is_given_up_when_the_time_is_up() -> None:
    """Exit 69, with the model and the cause; the server was never started."""
    node = Node(item("a"), timeout=timedelta(minutes=10))
    node.depot.seconds["a"] = 7200.0
    with capture_logs() as events:
        assert await node.exit_code() is ExitCode.NEVER_READY
    assert 300 < now() < 700
    (given_up,) = [event for event in events if event["event"] == "node_given_up"]
    assert given_up["error"].startswith("LIST[a]: download_failed: ")
    assert node.process.lives == 0


@virtual
async def test_an_outage_of_a_source_gives_no_node_up() -> None:
    """Every other node would fare the same: it is tried for as long as it takes, and told as what it is."""
    node = Node(item("a"), timeout=timedelta(minutes=10))
    node.depot.seconds["a"] = 1.0
    node.depot.refuse = lambda wanted: DownloadFailed("the source is away") if now() < 5000 else None
    with capture_logs() as events:
        async with node.running():
            await node.ready()
    told = [event for event in events if event["event"] == "model_source_stays_away"]
    assert 5 < len(told) < 9
    assert {(event["field"], event["code"]) for event in told} == {("LIST[a]", "download_failed")}
    assert 5000 < now() < 5300


@virtual
async def test_who_never_gives_up_waits_for_its_models_too() -> None:
    """However long after the time is up they come."""
    node = Node(item("a"), timeout=timedelta(minutes=10), never=True)
    node.depot.refuse = lambda wanted: DownloadFailed("the source is away") if now() < 1800 else None
    async with node.running():
        await node.ready()
        assert now() >= 1800


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (ModelNotFound("no source has it"), "LIST[a]: no source has it"),
        (AuthFailed("this model needs a CIVITAI_TOKEN"), "LIST[a]: this model needs a CIVITAI_TOKEN"),
        (ModelTooLarge("60 GB are more than the cache"), "LIST[a]: 60 GB are more than the cache"),
        (UrlForbidden("a private address"), "LIST[a]: a private address"),
        (InvalidJob("no pickles", field="LIST[a].url"), "LIST[a].url: no pickles"),
        (InvalidJob("no pickles"), "LIST[a]: no pickles"),
        (ConfigError((FieldError("WORKER_MODELS_DIR", "is not set"),)), "WORKER_MODELS_DIR: is not set"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, WorkerError) else "",
)
@virtual
async def test_what_will_never_come_is_bad_configuration(error: WorkerError, said: str) -> None:
    """Exit 64 at the first try, with the item that is wrong; no download of hours goes before."""
    node = Node(item("a"), item("b"))
    node.depot.errors["a"], node.depot.seconds = deque([error]), {"a": 1.0, "b": 7200.0}
    with capture_logs() as events:
        assert await node.exit_code() is ExitCode.CONFIG
    assert mistakes(events) == said
    assert now() < 60
    assert (node.process.lives, node.depot.cancelled) == (0, ["b"])


@virtual
async def test_all_refusals_are_told_together() -> None:
    """Who corrects one need not start the node again to hear of the next; what goes on is not waited for."""
    node = Node(*(item(name) for name in ("big", "x1", "x2", "x3", "x4", "x5")))
    node.depot.seconds = {"big": 7200.0, **{f"x{number}": 0.1 for number in range(1, 6)}}
    node.depot.refuse = lambda wanted: ModelNotFound(f"no source has {wanted.name}") if wanted.name > "x" else None
    with capture_logs() as events:
        assert await node.exit_code() is ExitCode.CONFIG
    assert mistakes(events).splitlines() == [f"LIST[x{n}]: no source has x{n}" for n in range(1, 6)]


@virtual
async def test_a_file_that_is_always_another_than_listed_is_the_lists_mistake() -> None:
    """A wrong sha256 is fetched a few times and not for three hours; a transfer that broke once is no mistake."""
    node = Node(item("a"))
    node.depot.errors["a"] = deque([ModelCorrupt("its sha256 is another")] * 20)
    assert await node.exit_code() is ExitCode.CONFIG
    assert node.depot.begun == ["a"] * CORRUPT_MOST
    other = Node(item("a"))
    other.depot.errors["a"] = deque([ModelCorrupt("cut off")])
    async with other.running():
        await other.ready()


@virtual
async def test_a_list_that_does_not_fit_is_a_mistake() -> None:
    """A model that had to give way to the next would be missing from a node that calls itself ready."""
    node = Node(item("a"), item("b", When.BEFORE_READY))
    node.depot.holds = 1
    with capture_logs() as events:
        assert await node.exit_code() is ExitCode.CONFIG
    assert "checkpoint/a had to give way" in mistakes(events)


@virtual
async def test_a_signal_ends_the_start_at_once() -> None:
    """Exit 0, nothing is waited for, transfers are cut off where they can be resumed."""
    node = Node(item("a"), item("b", When.BEFORE_READY))
    async with node.running() as process:
        await node.until(lambda: node.depot.begun == ["a"])
        await elapse(10)
        began = now()
        node.supervisor.stop()
        await asyncio.wait({process})
        assert now() - began < 1
    assert process.result() is ExitCode.CLEAN
    assert node.status.story == [Phase.STARTING, Phase.PROVISIONING, Phase.DRAINING, Phase.STOPPED]
    assert node.depot.cancelled == ["a"]


@virtual
async def test_the_drain_is_not_overwritten_by_what_is_missing() -> None:
    """A transfer that ends just then starts no server."""
    node = Node(item("a"))
    async with node.running():
        await node.until(lambda: node.depot.begun == ["a"])
        node.status.move(Phase.DRAINING, "draining")
        await elapse(120)
        assert node.provisioning.described()["there"] == 1
        assert node.status.phase is Phase.DRAINING


@virtual
async def test_a_server_that_ends_while_models_are_awaited_is_started_again() -> None:
    """Its end is noticed when it happens, not when the last model is there."""
    node = Node(item("a", When.BEFORE_READY))
    node.depot.seconds["a"] = 300.0
    async with node.running():
        await node.until(lambda: "models_missing" in node.status.reasons)
        node.process.die()
        await node.until(lambda: node.process.lives == 2)
        assert now() < 100
        await node.ready()


@virtual
async def test_downloads_do_not_count_as_time_that_the_server_takes() -> None:
    """A server without any checkpoint says so until one has come, and is not given up for that."""
    node = Node(item("a", When.BEFORE_READY), timeout=timedelta(hours=3))
    node.depot.seconds["a"] = 2 * START_S
    node.engine.reach = Reach.MODEL_NOT_LOADED
    async with node.running():
        await node.until(lambda: "models_missing" in node.status.reasons)
        await node.until(lambda: node.depot.entries() != ())
        await elapse(START_S / 2)
        node.engine.reach = Reach.READY
        await node.ready()
    assert node.process.lives == 1


@virtual
async def test_a_list_whose_server_is_away_is_read_later() -> None:
    """And told as missing until then; one that is wrong ends the start."""
    tries = deque([DownloadFailed("the list is away"), DownloadFailed("the list is away")])

    async def declared() -> Manifest:
        if tries:
            raise tries.popleft()
        return Manifest((item("a"),), (FieldError("LIST.apt", "is not installed"),))

    node = Node(declared=declared)
    with capture_logs() as events:
        async with node.running():
            await node.until(lambda: len(tries) == 1)
            await elapse(1.5)
            assert node.status.reasons == ("models_missing", "the list of models is not read yet")
            await node.ready()
    assert [(e["part"], e["detail"]) for e in events if e["event"] == "manifest_part_not_done"] == [
        ("LIST.apt", "is not installed")
    ]

    async def wrong() -> Manifest:
        raise ConfigError((FieldError("LIST[0].url", "is no URL"),))

    assert await Node(declared=wrong).exit_code() is ExitCode.CONFIG


@virtual
async def test_the_log_tells_each_model_once_and_progress_rarely() -> None:
    """A line when one has come, at most one in ten seconds for all the others."""
    node = Node(item("a"), item("b"))
    node.depot.seconds = {"a": 5.0, "b": 95.0}
    with capture_logs() as events:
        async with node.running():
            await node.ready()
    came = [(e["field"], e["model"], e["bytes"]) for e in events if e["event"] == "model_provided"]
    assert came == [("LIST[a]", "checkpoint/a", 2 * 10**9), ("LIST[b]", "checkpoint/b", 2 * 10**9)]
    awaited = [e for e in events if e["event"] == "models_awaited"]
    assert len(awaited) == 9
    assert {(e["there"], e["wanted"], *e["transfers"]) for e in awaited} == {(1, 2, "checkpoint/b: 1.0 of 2.0 GB")}


@virtual
async def test_a_kind_that_only_the_hub_knows_is_asked_for() -> None:
    """Before the fetch, with the same patience; a hint whose kind cannot be had is dropped and told."""
    asked: list[str] = []

    async def typed(wanted: Wanted) -> Wanted:
        asked.append(wanted.name)
        if len(asked) == 1:
            raise DownloadFailed("the hub is away")
        if wanted.name == "odd":
            raise InvalidJob("is no single model file")
        return Wanted("lora", wanted.name, wanted.url, field=wanted.field)

    node = Node(item("a", kind=""), item("odd", When.BACKGROUND, kind=""), typed=typed)
    with capture_logs() as events:
        async with node.running():
            await node.ready()
    assert asked == ["a", "a", "odd"]
    assert [str(entry.place) for entry in node.depot.entries()] == ["lora/a"]
    assert [e["field"] for e in events if e["event"] == "model_not_hinted"] == ["LIST[odd]"]
    assert node.depot.hints == []

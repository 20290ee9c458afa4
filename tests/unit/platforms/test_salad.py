"""A node of SaladCloud: who it is, and each thing that it asks its platform for."""

from __future__ import annotations

import asyncio
import os
import random
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import asynccontextmanager

import pytest
from structlog.testing import capture_logs

from tests.support.metadata import GROUP, MACHINE, MetadataService, said, token
from tests.support.receiver import Answer
from worker import aws
from worker.node import Identity
from worker.outfit import find_node
from worker.platforms import open_platform
from worker.platforms.plain import PlainPlatform
from worker.platforms.salad import Metadata, SaladPlatform
from worker.platforms.salad import platform as module
from worker.platforms.salad.platform import reason_of
from worker.retry import Policy
from worker.settings.source import load_settings
from worker.simulators import free_port

FOUND = Identity("host", "host", "1.0", gpu="RTX 4090", instance="random", vram_gb=24.0)
NOWHERE = f"http://[::1]:{free_port()}"


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tries follow each other at once."""
    monkeypatch.setattr(module, "MOVE_TRIES", Policy(attempts=3, jitter=1.0, first=module.TOKEN_TRIES.first / 100))
    monkeypatch.setattr(module, "TOKEN_TRIES", Policy(attempts=3, jitter=1.0, first=module.TOKEN_TRIES.first / 100))


@asynccontextmanager
async def platform_of(variables: Mapping[str, str]) -> AsyncIterator[SaladPlatform]:
    settings = load_settings(variables)
    metadata = Metadata(settings.salad.metadata_uri, rng=random.Random(1))
    platform = SaladPlatform(settings.salad, metadata, node_id=settings.node.node_id)
    try:
        yield platform
    finally:
        await platform.aclose()


@pytest.fixture
def first_session(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """The process has no boto3 session yet, and has none of the test's afterwards."""
    monkeypatch.setattr(aws, "_without_instance_metadata", False)
    for name in [name for name in os.environ if name.startswith("AWS_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("AWS_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", os.devnull)
    aws.session.cache_clear()
    yield
    aws.session.cache_clear()


@pytest.mark.usefixtures("first_session")
async def test_the_platform_is_the_one_that_the_settings_tell_of() -> None:
    """Its variables are enough, and the node's identity and token come from it."""
    assert isinstance(open_platform(load_settings({})), PlainPlatform)
    async with MetadataService() as service:
        settings = load_settings(service.variables())
        platform = open_platform(settings)
        try:
            assert isinstance(platform, SaladPlatform)
            node = await find_node(settings, platform)
            assert await node.identity_token() == token(1)
            assert await node.identity_token(token(1)) == token(2)
        finally:
            await platform.aclose()
        assert (node.identity.id, node.identity.machine, node.identity.instance) == (MACHINE, MACHINE, "instance-1")


@pytest.mark.usefixtures("first_session")
async def test_aws_credentials_are_not_looked_for_at_the_platforms_address(monkeypatch: pytest.MonkeyPatch) -> None:
    """AWS's own metadata service has the same one; elsewhere the standard chain ends there."""
    async with MetadataService() as service:
        monkeypatch.setenv("AWS_EC2_METADATA_SERVICE_ENDPOINT", service.url())
        assert await asyncio.to_thread(lambda: aws.session().get_credentials()) is None
        assert ("PUT", "/latest/api/token") in service.asked
        service.calls.clear()
        await open_platform(load_settings(service.variables())).aclose()
        assert await asyncio.to_thread(lambda: aws.session().get_credentials()) is None
        assert service.calls == []


async def test_plain_has_nobody_to_ask() -> None:
    """What elsewhere is told goes nowhere, and stands in nobody's way."""
    platform = PlainPlatform()
    assert platform.identity(FOUND) is FOUND
    assert (dict(platform.labels()), platform.described()) == ({}, {"name": "plain"})
    assert (await platform.identity_token(), await platform.reallocate("slow")) == (None, False)
    assert await platform.set_deletion_cost(5)
    await platform.aclose()


@pytest.mark.parametrize(
    ("more", "expected"),
    [
        ({}, (MACHINE, MACHINE, "instance-1")),
        ({"WORKER_NODE_ID": "mine"}, ("mine", MACHINE, "instance-1")),
        ({"WORKER_PLATFORM": "salad", "SALAD_MACHINE_ID": "", "SALAD_INSTANCE_ID": ""}, ("host", "host", "random")),
    ],
)
async def test_the_machine_names_the_node(more: dict[str, str], expected: tuple[str, ...]) -> None:
    """It is the token's subject; a name of the operator's own goes before it, and what was found stays."""
    async with platform_of({**MetadataService(port=1).variables(), **more}) as platform:
        identity = platform.identity(FOUND)
    assert (identity.id, identity.machine, identity.instance) == expected
    assert (identity.gpu, identity.vram_gb, identity.version) == ("RTX 4090", 24.0, "1.0")


async def test_status_and_log_say_where_the_node_is() -> None:
    """The container group on each line; the rest, and what was last asked for, in the status."""
    async with MetadataService() as service, platform_of(service.variables()) as platform:
        assert dict(platform.labels()) == {"container_group": GROUP}
        before = platform.described()
        await platform.identity_token()
        await platform.set_deletion_cost(12)
        after = platform.described()
    assert (before["name"], before["container_group_name"], before["metadata_answers"]) == ("salad", "images", None)
    assert (after["metadata_answers"], after["deletion_cost"], after["reallocation"]) == (True, 12, None)
    assert token(1) not in str(after)


async def test_without_variables_there_are_no_labels() -> None:
    async with platform_of({"WORKER_PLATFORM": "salad"}) as platform:
        assert dict(platform.labels()) == {}


async def test_a_token_is_asked_for_once_and_tried_again_where_the_service_stumbles() -> None:
    """Another one when it was refused."""
    async with MetadataService(Answer(500), Answer(503)) as service, platform_of(service.variables()) as platform:
        assert [await platform.identity_token() for _ in range(3)] == [token(1)] * 3
        assert [call.status for call in service.calls] == [500, 503, 200]
        assert await platform.identity_token(token(1)) == token(2)
        assert service.asked == {("GET", "/v1/token"): 4}


@pytest.mark.parametrize(
    "answer",
    [said({}), said({"jwt": None}), said({"jwt": ""}), said({"jwt": "a b"}), said({"jwt": "a\r\nx: y"}), Answer(200)],
)
async def test_what_is_no_token_is_not_sent_to_anybody(answer: Answer) -> None:
    """It would break the header that it goes into; the log says so without it."""
    async with MetadataService(answer) as service, platform_of(service.variables()) as platform:
        with capture_logs() as lines:
            assert await platform.identity_token() is None
    assert lines == [{"event": "identity_token_malformed", "log_level": "error"}]


async def test_an_absent_service_is_no_error() -> None:
    """On a developer's machine: no token, no cost, no move, one line of the log for all but the move."""
    async with platform_of({"WORKER_PLATFORM": "salad", "SALAD_METADATA_URI": NOWHERE}) as platform:
        with capture_logs() as lines:
            for _ in range(3):
                assert await platform.identity_token() is None
                assert not await platform.set_deletion_cost(0)
            assert not await platform.reallocate("too slow")
        assert platform.described()["metadata_answers"] is False
    events = [line["event"] for line in lines]
    assert events == ["metadata_unavailable", "reallocation_asked", "reallocation_not_taken"]


async def test_a_node_is_moved_for_a_reason_with_figures() -> None:
    """In words, by one request, which is tried again while the service is away."""
    async with MetadataService(Answer(500), Answer(500)) as service, platform_of(service.variables()) as platform:
        assert await platform.reallocate("the warm-up failed 5 times, at last: gpu_fault")
        assert [(call.method, call.path, call.status) for call in service.calls] == [
            ("POST", "/v1/reallocate", 500),
            ("POST", "/v1/reallocate", 500),
            ("POST", "/v1/reallocate", 204),
        ]
        (reason,) = service.reasons
        assert reason.endswith(": the warm-up failed 5 times, at last: gpu_fault")
        assert platform.described()["reallocation"] == reason


async def test_a_move_that_is_refused_is_no_move() -> None:
    async with MetadataService() as service, platform_of(service.variables()) as platform:
        service.missing.add("/v1/reallocate")
        assert not await platform.reallocate("slow")
        assert service.asked == {("POST", "/v1/reallocate"): 1}


@pytest.mark.parametrize("reason", ["", "x" * 5000, "a\n\n  b", "https://u:p@h/x?key=1", f"refused {token(1)}"])
def test_a_reason_is_one_that_the_platform_takes(reason: str) -> None:
    """1 to 1000 characters on one line, without secrets."""
    told = reason_of(reason)
    assert 1 <= len(told) <= 1000
    assert "\n" not in told
    assert "key=1" not in told
    assert "u:p@" not in told
    assert token(1) not in told


async def test_the_cost_is_taken_back_at_the_end() -> None:
    """Whatever was told last; an instance that is ended by somebody is not worth more than the others."""
    async with MetadataService() as service:
        async with platform_of(service.variables()) as platform:
            assert await platform.set_deletion_cost(40)
        assert service.costs == [40, 0]


async def test_what_was_never_told_or_is_zero_is_not_taken_back() -> None:
    """The end takes no more time than it must."""
    async with MetadataService() as service:
        async with platform_of(service.variables()):
            pass
        async with platform_of(service.variables()) as platform:
            await platform.set_deletion_cost(0)
        assert service.costs == [0]


async def test_a_service_that_hangs_does_not_hold_up_the_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PARTING_S", 0.05)
    async with MetadataService() as service:
        with capture_logs() as lines:
            async with platform_of(service.variables()) as platform:
                await platform.set_deletion_cost(40)
                service.script.append(Answer(hang=True))
        assert [line["event"] for line in lines] == ["deletion_cost_left"]
        assert [call.document for call in service.calls] == [{"deletion_cost": 40}, {"deletion_cost": 0}]

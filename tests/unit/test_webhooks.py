"""Webhooks: to whom, signed how, tried how long."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from pathlib import Path

import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.receiver import Answer, Receiver, ScriptedServer
from tests.support.sending import (
    FILE,
    IMAGE,
    OTHER,
    SECRET,
    TWICE,
    clock,
    job_of,
    own,
    result_of,
    sending,
)
from worker.clock import CorrectedClock
from worker.errors import ConfigError, InvalidJob, Owner, UrlForbidden, WebhookFailed
from worker.settings.groups import WebhookSettings
from worker.signature import decode_secrets
from worker.urls import Guard
from worker.webhooks import Defaults


async def test_the_operators_receiver_is_told_and_can_verify() -> None:
    """A job that names no webhook goes to the operator's URL, signed, with the result as data."""
    job = job_of(metadata={"order": 7})
    async with Receiver(secret=SECRET) as receiver, sending(own(receiver)) as sender:
        assert await sender.send("succeeded", job, result_of(job, metadata=job.metadata)) == ()
    (document,) = receiver.documents
    assert receiver.refused == []
    assert (document["type"], document["timestamp"]) == ("job.succeeded", "2026-03-01T12:00:01.500Z")
    assert (document["data"]["id"], document["data"]["metadata"]) == ("job-1", {"order": 7})
    assert receiver.ids == ["succeeded_" + hashlib.sha256(b"job-1").hexdigest()[:32]]
    assert receiver.requests[0].headers["content-type"] == "application/json"
    assert receiver.requests[0].target == "/hook?k=1"


@pytest.mark.parametrize("secret", [SECRET, OTHER])
async def test_each_of_several_secrets_verifies(secret: str) -> None:
    """While secrets are rotated, receivers with the old and with the new one both accept."""
    job = job_of()
    async with Receiver(secret=secret) as receiver, sending(own(receiver, f"{SECRET} {OTHER}")) as sender:
        await sender.send("succeeded", job, result_of(job))
    assert len(receiver.taken) == 1
    assert len(receiver.requests[0].headers["webhook-signature"].split()) == 2


async def test_without_a_secret_nothing_is_signed_and_start_up_warns() -> None:
    """Unsigned webhooks carry id and timestamp only, and the operator hears of it once, at start."""
    job = job_of()
    async with Receiver() as receiver:
        with capture_logs() as logs:
            async with sending(own(receiver, "")) as sender:
                await sender.send("succeeded", job, result_of(job))
    headers = receiver.requests[0].headers
    assert "webhook-signature" not in headers
    assert {"webhook-id", "webhook-timestamp"} <= headers.keys()
    assert [entry["event"] for entry in logs] == ["webhooks_unsigned"]


async def test_the_jobs_own_url_events_and_secret_come_first() -> None:
    """What the job says of its webhook replaces the operator's, piece by piece."""
    async with Receiver() as operator, Receiver(secret=OTHER) as receiver:
        defaults = own(operator)
        named = Defaults(defaults.url, defaults.events, defaults.secrets, {"theirs": decode_secrets(OTHER)})
        job = job_of(webhook={"url": receiver.url(), "events": ["cancelled"], "secret": "theirs"})
        async with sending(named) as sender:
            await sender.accepts(job)
            assert await sender.send("succeeded", job, result_of(job)) == ()
            await sender.send("cancelled", job, result_of(job))
    assert [document["type"] for document in receiver.documents] == ["job.cancelled"]
    assert operator.requests == []


async def test_a_job_with_a_url_alone_has_the_operators_events_and_secret() -> None:
    """The short form of a webhook takes everything else from the settings."""
    async with Receiver(secret=SECRET) as receiver:
        job = job_of(webhook=receiver.url())
        defaults = Defaults(events=frozenset({"failed"}), secrets=decode_secrets(SECRET))
        async with sending(defaults) as sender:
            assert not sender.wants("succeeded", job)
            assert sender.wants("failed", job)
            await sender.send("failed", job, result_of(job))
    assert len(receiver.taken) == 1


async def test_nobody_is_told_where_nobody_asked() -> None:
    """Without any URL there is no webhook, and an empty list of events silences a job's own."""
    async with Receiver() as receiver, sending() as sender:
        silent = job_of(webhook={"url": receiver.url(), "events": []})
        for job in (job_of(), silent):
            assert await sender.send("succeeded", job, result_of(job)) == ()
            await sender.accepts(job)
    assert receiver.requests == []


@pytest.mark.parametrize(
    ("storage", "inline", "carried"),
    [(None, True, True), (None, False, False), ("inline", False, True), ("s3", True, False)],
)
async def test_base64_is_carried_only_inline(storage: str | None, inline: bool, carried: bool) -> None:
    """Images and files are held only where inline is the storage in effect: the job's, else the operator's."""
    job = job_of(output={"storage": storage})
    async with Receiver() as receiver, sending(own(receiver), inline=inline) as sender:
        await sender.send("succeeded", job, result_of(job, images=(IMAGE,), files=(FILE,)))
    data = receiver.documents[0]["data"]
    assert ["base64" in made for made in (*data["images"], *data["files"])] == [carried, carried]
    assert [made["sha256"] for made in (*data["images"], *data["files"])] == [IMAGE.sha256, FILE.sha256]


async def test_large_results_are_signed_all_the_same() -> None:
    """Megabytes of inline images and files arrive whole and verify."""
    job = job_of()
    image, file = (one.model_copy(update={"base64": "QUJD" * 300_000}) for one in (IMAGE, FILE))
    async with Receiver(secret=SECRET) as receiver, sending(own(receiver), inline=True) as sender:
        await sender.send("succeeded", job, result_of(job, images=(image,), files=(file,)))
    data = receiver.documents[0]["data"]
    assert [data["images"][0]["base64"], data["files"][0]["base64"]] == [image.base64, file.base64]


async def test_a_failing_receiver_is_tried_again_with_the_same_message() -> None:
    """500, 302, 429 and a broken answer are retried; id and body never change, and each try verifies."""
    answers = (
        *(Answer(500, body=b"hunter2"), Answer(302, {"location": "/elsewhere"}), Answer(429, {"retry-after": "0"})),
        *(Answer(404), Answer(raw=b"nonsense\r\n\r\n")),
    )
    job = job_of()
    with capture_logs() as logs:
        async with Receiver(*answers, secret=SECRET) as receiver, sending(own(receiver)) as sender:
            assert await sender.send("succeeded", job, result_of(job)) == ()
    assert len(receiver.requests) == 6
    assert len(set(receiver.ids)) == len({request.body for request in receiver.requests}) == 1
    assert {request.path for request in receiver.requests} == {"/hook"}
    assert receiver.refused == []
    retried = [entry for entry in logs if entry["event"] == "webhook_retried"]
    assert [entry["attempt"] for entry in retried] == [1, 2, 3, 4, 5]
    assert "hunter2" not in str(logs)
    assert "/hook" not in str(logs)


async def test_gone_counts_as_delivered() -> None:
    """410 ends it with a warning and without another try."""
    job = job_of()
    async with Receiver(Answer(410)) as receiver, sending(own(receiver)) as sender:
        assert await sender.send("succeeded", job, result_of(job)) == ("webhook_gone",)
    assert len(receiver.requests) == 1


@pytest.mark.parametrize("owner", list(Owner))
async def test_a_receiver_that_stays_down_fails_after_the_budget(owner: Owner) -> None:
    """The error says who named the receiver, shows its host and last answer, and no path."""
    async with Receiver() as receiver:
        receiver.otherwise = Answer(503)
        defaults = own(receiver) if owner is Owner.OPERATOR else Defaults()
        job = job_of() if owner is Owner.OPERATOR else job_of(webhook=receiver.url("/hook?k=1"))
        async with sending(defaults, policy=TWICE) as sender:
            with pytest.raises(WebhookFailed) as caught:
                await sender.send("succeeded", job, result_of(job))
        assert caught.value.message == f"http://[::1]:{receiver.port}: answered 503"
    assert caught.value.owner is owner
    assert len(receiver.requests) == 2


async def test_a_wait_that_outlasts_the_budget_is_not_begun() -> None:
    """Retry-After beyond the budget ends it at once, and the error hands the wish on."""
    job = job_of()
    async with Receiver(Answer(503, {"retry-after": "3600"})) as receiver, sending(own(receiver)) as sender:
        with pytest.raises(WebhookFailed) as caught:
            await sender.send("succeeded", job, result_of(job))
    assert caught.value.retry_after == timedelta(hours=1)
    assert len(receiver.requests) == 1


async def test_a_hanging_try_ends_and_another_follows() -> None:
    """One try has its own timeout, also when the head came and the body does not."""
    job = job_of()
    async with Receiver(Answer(hang=True)) as receiver:
        async with sending(own(receiver), timeout=timedelta(milliseconds=50)) as sender:
            assert await sender.send("succeeded", job, result_of(job)) == ()
        assert len(receiver.requests) >= 2


async def test_a_status_counts_even_when_its_body_never_comes() -> None:
    """200 is an end: a receiver that stalls after it is not told twice."""
    job = job_of()
    stalled = Answer(200, {"content-length": "5"}, stall=True)
    async with Receiver(stalled) as receiver:
        async with sending(own(receiver), timeout=timedelta(milliseconds=500)) as sender:
            assert await sender.send("succeeded", job, result_of(job)) == ()
        assert len(receiver.requests) == 1


async def test_the_budget_ends_a_first_try_that_hangs() -> None:
    """With a budget shorter than one try it still fails as a webhook does."""
    job = job_of()
    short = timedelta(milliseconds=50)
    async with Receiver(Answer(hang=True)) as receiver, sending(own(receiver), budget=short) as sender:
        with pytest.raises(WebhookFailed, match="no success within") as caught:
            await sender.send("succeeded", job, result_of(job))
    assert caught.value.owner is Owner.OPERATOR


async def test_connections_are_used_again() -> None:
    """Webhooks in a row share a connection, so that each does not pay for a handshake."""
    async with Receiver() as receiver, sending(own(receiver)) as sender:
        receiver.otherwise = Answer(body=b"ok")
        for number in range(3):
            job = job_of(id=f"job-{number}")
            await sender.send("succeeded", job, result_of(job))
    assert {request.connection for request in receiver.requests} == {1}


@pytest.mark.parametrize("url", ["http://169.254.169.254/", "http://localhost/", "file:///etc/passwd"])
async def test_forbidden_webhooks_are_refused_at_admission_and_at_sending(url: str) -> None:
    """A URL that must not be visited is the job's fault, and is never tried twice."""
    job = job_of(webhook=url)
    async with sending(Defaults(), guard=Guard()) as sender:
        with pytest.raises(UrlForbidden):
            await sender.accepts(job)
        if url.startswith("http"):
            with pytest.raises(UrlForbidden):
                await sender.send("succeeded", job, result_of(job))


async def test_an_unknown_secret_name_is_the_jobs_mistake() -> None:
    """It is found at admission, under its field."""
    async with sending() as sender:
        with pytest.raises(InvalidJob, match=r"^webhook\.secret: "):
            await sender.accepts(job_of(webhook={"url": "http://[::1]/", "secret": "nobody"}))


async def test_a_webhook_host_that_is_unknown_now_does_not_refuse_the_job() -> None:
    """DNS may be back when the job is done."""

    async def nothing(host: str, port: int) -> tuple[()]:
        return ()

    with capture_logs() as logs:
        async with sending(guard=Guard(resolve=nothing)) as sender:
            await sender.accepts(job_of(webhook="http://h.test/"))
    assert "webhook_host_unresolved" in [entry["event"] for entry in logs]


@pytest.mark.parametrize("owner", list(Owner))
async def test_only_the_operators_receiver_corrects_the_clock(owner: Owner) -> None:
    """A job's receiver with a wrong Date must not move the time that signatures are made with."""
    date = format_datetime(datetime.now(UTC) + timedelta(hours=2), usegmt=True)
    corrected = clock()
    async with Receiver() as receiver:
        receiver.otherwise = Answer(headers={"date": date})
        job = job_of() if owner is Owner.OPERATOR else job_of(webhook=receiver.url())
        async with sending(own(receiver), at=corrected) as sender:
            await sender.send("succeeded", job, result_of(job))
    assert (corrected.offset > timedelta(hours=1)) is (owner is Owner.OPERATOR)


async def test_signatures_use_the_corrected_time() -> None:
    """On a node whose clock is hours off, receivers accept once a server's Date was seen."""

    class Late:
        def now(self) -> datetime:
            return datetime.now(UTC) - timedelta(hours=3)

    corrected = CorrectedClock(Late())
    job = job_of()
    async with Receiver(secret=SECRET) as receiver:
        receiver.otherwise = Answer()
        async with sending(own(receiver), at=corrected, policy=TWICE) as sender:
            with pytest.raises(WebhookFailed):
                await sender.send("succeeded", job, result_of(job))
            assert receiver.refused[0] == "Message timestamp too old"
            corrected.observe(datetime.now(UTC))
            assert await sender.send("succeeded", job, result_of(job)) == ()


@pytest.mark.parametrize(
    ("defaults", "said"),
    [
        (own, "answers 405, signed with 1 secret(s)"),
        (lambda server: own(server, ""), "answers 405, unsigned"),
        (lambda server: Defaults(), "only for jobs that name one"),
    ],
    ids=["signed", "unsigned", "none"],
)
async def test_check_says_what_it_found(defaults: Callable[[ScriptedServer], Defaults], said: str) -> None:
    """The receiver is reached without being sent an event."""
    async with Receiver(Answer(405)) as receiver, sending(defaults(receiver)) as sender:
        assert (await sender.check()).endswith(said)
    assert {request.method for request in receiver.requests} <= {"HEAD"}


async def test_check_fails_where_nobody_listens() -> None:
    """An operator's receiver that is not there is found by `check`."""
    async with Receiver() as receiver:
        defaults = own(receiver)
    async with sending(defaults) as sender:
        with pytest.raises(WebhookFailed, match="cannot be connected to"):
            await sender.check()


def test_settings_become_defaults(tmp_path: Path) -> None:
    """URL, events, secrets and the secrets file are read and decoded at start."""
    file = tmp_path / "secrets.json"
    file.write_text(json.dumps({"a": SECRET, "b": f"{SECRET} {OTHER}"}))
    settings = WebhookSettings(
        url="https://h.example/x",
        events=("started", "failed"),
        secret=SecretStr(f"{SECRET} {OTHER}"),
        secrets_file=file,
    )
    defaults = Defaults.of(settings)
    assert defaults.url == "https://h.example/x"
    assert defaults.events == {"started", "failed"}
    assert defaults.secrets == decode_secrets(f"{SECRET} {OTHER}")
    assert {name: len(keys) for name, keys in defaults.named.items()} == {"a": 1, "b": 2}
    assert "0123456789abcdef" not in repr(defaults)
    assert Defaults.of(WebhookSettings()) == Defaults()


def test_a_missing_secrets_file_is_told_under_its_variable(tmp_path: Path) -> None:
    """The mistake names the variable, the dispatcher's where it is the dispatcher's."""
    settings = WebhookSettings(secrets_file=tmp_path / "none")
    for variable in ("WORKER_WEBHOOK_SECRETS_FILE", "DISPATCHER_WEBHOOK_SECRETS_FILE"):
        with pytest.raises(ConfigError, match="cannot be read: No such file") as caught:
            Defaults.of(settings, variable=variable)
        assert [mistake.field for mistake in caught.value.mistakes] == [variable]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "object of names"),
        ('{"a": 1}', "object of names"),
        ('{"a": " "}', "object of names"),
        ('{"a": "hunter2"}', "something else than secrets"),
    ],
)
def test_broken_secrets_files_are_told_at_start(tmp_path: Path, text: str, message: str) -> None:
    """Each kind of mistake in the secrets file has its message, without the file's content."""
    file = tmp_path / "secrets.json"
    file.write_text(text)
    with pytest.raises(ConfigError, match=message) as caught:
        Defaults.of(WebhookSettings(secrets_file=file))
    assert "hunter2" not in caught.value.message

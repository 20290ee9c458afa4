"""Whom a download believes: other sources, hashes and sizes, redirects, tokens and links."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.fetching import BODY, KIB, TEMPO, Rig, digest, made, rigged
from tests.support.model_host import (
    BROKEN,
    FORBIDDEN,
    GONE,
    LOGIN_PAGE,
    NOT_FOUND,
    UNAUTHORIZED,
    HostedFile,
    ModelHost,
    Twist,
    redirect,
)
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    ModelCorrupt,
    ModelForbidden,
    ModelNotFound,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.models.base import Location
from worker.urls import Guard


@pytest.fixture
async def rig(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as made_rig:
        yield made_rig


@pytest.mark.parametrize("twist", [NOT_FOUND, GONE])
async def test_a_source_without_the_file_gives_way_to_the_next(rig: Rig, twist: Twist) -> None:
    """404 and 410 are final for this source, at once."""
    first = rig.host.host("/first", HostedFile(BODY, twist=twist))
    rig.host.host("/m", BODY)
    fetched = await rig.fetch(rig.at("/first", source="the first"), rig.at())
    rig.arrived(fetched)
    assert fetched.location.source == "the mirror"
    assert len(first.requests) == 1


async def test_no_source_at_all_has_it(rig: Rig) -> None:
    """When every location says 404 the model is not found."""
    rig.host.host("/m", HostedFile(BODY, twist=NOT_FOUND))
    with pytest.raises(ModelNotFound, match="answers 404"):
        await rig.fetch()
    assert list(rig.partial.parent.iterdir()) == []


async def test_nowhere_to_look_is_not_found(rig: Rig) -> None:
    """A finder that names no place."""

    async def nowhere() -> AsyncIterator[Location]:
        return
        yield

    with pytest.raises(ModelNotFound):
        await rig.located(nowhere)


async def test_of_several_failures_the_one_that_may_pass_comes_out(rig: Rig) -> None:
    """A source that is away outweighs one that has no such file."""
    rig.host.host("/gone", HostedFile(BODY, twist=NOT_FOUND))
    rig.host.host("/away", HostedFile(BODY, twist=BROKEN))
    with pytest.raises(DownloadFailed, match="answers 500"):
        await rig.fetch(rig.at("/away"), rig.at("/gone"))


async def test_what_the_finder_raises_counts_with_the_rest(rig: Rig) -> None:
    """A broken first source, then the finder finds no other: the broken one is told."""
    rig.host.host("/away", HostedFile(BODY, twist=BROKEN))

    async def one_and_no_more() -> AsyncIterator[Location]:
        yield rig.at("/away")
        raise ModelNotFound("nowhere else")

    with pytest.raises(DownloadFailed):
        await rig.located(one_and_no_more)


@pytest.mark.parametrize(
    ("owner", "expected"), [(Owner.JOB, ModelForbidden), (Owner.OPERATOR, AuthFailed)], ids=["job", "operator"]
)
@pytest.mark.parametrize("twist", [UNAUTHORIZED, FORBIDDEN])
async def test_who_is_refused_depends_on_who_named_the_source(
    rig: Rig, owner: Owner, expected: type[WorkerError], twist: Twist
) -> None:
    """A job's URL that answers 401 or 403 is the job's fault, the operator's own source is theirs."""
    file = rig.host.host("/m", HostedFile(BODY, twist=twist))
    with pytest.raises(expected):
        await rig.fetch(rig.at(owner=owner))
    assert len(file.requests) == 1


@pytest.mark.parametrize("kind", ["text/html", "application/json", "application/problem+json", "text/xml"])
async def test_a_page_is_never_saved_as_a_model(rig: Rig, kind: str) -> None:
    """Login pages and error documents with status 200 are refused before anything is written."""
    file = rig.host.host("/m", HostedFile(BODY, content_type=kind))
    with pytest.raises(ModelCorrupt, match="instead of a model"):
        await rig.fetch()
    assert list(rig.partial.parent.iterdir()) == []
    assert len(file.requests) == 1
    file.twist = LOGIN_PAGE
    with pytest.raises(ModelCorrupt, match="instead of a model"):
        await rig.fetch()


async def test_a_document_of_that_name_may_be_one(rig: Rig) -> None:
    """A model's own configuration is JSON."""
    body = b'{"model_type": "clip"}'
    rig.host.host("/m", HostedFile(body, content_type="application/json"))
    with pytest.raises(ModelCorrupt, match=r"the mirror: config\.json"):
        await rig.fetch(name="config.json")


async def test_a_compressed_answer_is_refused(rig: Rig) -> None:
    """Its bytes are not the file's, and nobody asked for it."""
    file = rig.host.host("/m", HostedFile(made(20 * KIB), twist=Twist(gzipped=True, whole=True)))
    with pytest.raises(DownloadFailed, match="compressed"):
        await rig.fetch()
    assert {request.headers["accept-encoding"] for request in file.requests} == {"identity"}


async def test_bytes_of_another_hash_are_tried_once_more_and_then_elsewhere(rig: Rig) -> None:
    """A mismatch deletes what came; the same source has one more try, then it is the next one's turn."""
    wrong = rig.host.host("/wrong", made(50 * KIB, seed=9))
    rig.host.host("/m", BODY)
    rig.arrived(await rig.fetch(rig.at("/wrong"), rig.at(), sha256=digest(BODY)))
    assert len(wrong.requests) == 2


async def test_a_model_that_is_corrupt_everywhere_leaves_nothing(rig: Rig) -> None:
    """The last word is the mismatch, with both hashes, and nothing is left on disk."""
    rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match=f"sha256 {digest(BODY)} instead of {'0' * 64}"):
        await rig.fetch(sha256="0" * 64)
    assert list(rig.partial.parent.iterdir()) == []


async def test_a_file_that_is_no_model_is_refused(rig: Rig) -> None:
    """Without any hash the header still tells: a safetensors file that is none."""
    rig.host.host("/m", made(20 * KIB))
    with pytest.raises(ModelCorrupt, match="the mirror"):
        await rig.fetch(name="m.safetensors")


async def test_a_promise_that_contradicts_what_is_wanted_is_not_even_tried(rig: Rig) -> None:
    """A location of another hash or size has another file."""
    file = rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match="another file"):
        await rig.fetch(rig.at(sha256="1" * 64), rig.at(size=5), sha256="2" * 64, size=len(BODY))
    assert file.requests == []


async def test_another_size_than_promised_is_refused_before_writing(rig: Rig) -> None:
    """The size that the server tells is compared first."""
    rig.host.host("/m", BODY)
    with pytest.raises(ModelCorrupt, match="were promised"):
        await rig.fetch(size=len(BODY) + 1)
    assert rig.rooms == []


@pytest.mark.parametrize("promised", [10 * KIB, 30 * KIB])
async def test_a_stream_of_another_size_than_promised_is_refused(rig: Rig, promised: int) -> None:
    """Where the server tells no size, more than was promised stops it, and less is found at the end."""
    rig.host.host("/m", HostedFile(made(20 * KIB), twist=Twist(chunked=True, whole=True)))
    with pytest.raises(ModelCorrupt, match=r"promised|instead of"):
        await rig.fetch(size=promised)
    assert set(rig.rooms) == {promised}


async def test_a_token_goes_to_its_own_host_alone(rig: Rig) -> None:
    """A redirect to another origin gets no credentials, and all later ranges go straight there."""
    async with ModelHost() as storage:
        stored = storage.host("/bytes", BODY)
        api = rig.host.host("/m", HostedFile(BODY, token="secret", twist=redirect(storage.url("/bytes"))))
        rig.arrived(await rig.fetch(rig.at(headers={"Authorization": "Bearer secret"})))
        assert len(api.requests) == 1
        assert all("authorization" not in request.headers for request in stored.requests)


async def test_a_token_follows_a_redirect_within_its_host(rig: Rig) -> None:
    """The same origin is the same host."""
    rig.host.host("/m", HostedFile(BODY, token="secret", twist=redirect("/moved")))
    rig.host.host("/moved", HostedFile(BODY, token="secret"))
    rig.arrived(await rig.fetch(rig.at(headers={"Authorization": "Bearer secret"})))


async def test_user_and_password_of_a_url_become_a_header(rig: Rig) -> None:
    """The operator's URL may hold them; they are in no message."""
    file = rig.host.host("/m", HostedFile(BODY, twist=UNAUTHORIZED))
    url = rig.host.url("/m").replace("http://", "http://user:pass@")
    with pytest.raises(AuthFailed) as caught:
        await rig.fetch(rig.at(url=url))
    assert file.requests[0].headers["authorization"] == "Basic dXNlcjpwYXNz"
    assert "pass@" not in caught.value.message


@pytest.mark.parametrize(
    ("target", "says"),
    [("/m", "too often"), ("", "without saying where"), ("ftp://x/", "not an http"), ("http://x:port/", "no URL")],
)
async def test_redirects_that_lead_nowhere_end(rig: Rig, target: str, says: str) -> None:
    """At most five, each to an http or https URL."""
    file = rig.host.host("/m", HostedFile(BODY, twist=redirect(target)))
    with pytest.raises(DownloadFailed, match=says):
        await rig.fetch()
    assert len(file.requests) <= 6 * TEMPO.attempts


async def test_a_link_that_ends_on_the_way_is_resolved_anew_by_its_redirect(rig: Rig) -> None:
    """403 at the place that a redirect led to: the redirect is asked again."""
    stored = rig.host.host("/bytes", HostedFile(BODY, signature="1"))
    api = rig.host.host("/m", BODY)

    def link(request: Any) -> Twist | None:
        return redirect(f"/bytes?sig={stored.signature}")

    def ends(request: Any) -> Twist | None:
        if len(stored.requests) == 3:
            stored.signature = "2"
        return None

    api.chosen, stored.chosen = link, ends
    rig.arrived(await rig.fetch())
    assert len(api.requests) >= 2


async def test_a_link_that_ends_on_the_way_is_asked_of_the_finder_anew(rig: Rig) -> None:
    """A location that expires: the locations are asked for again, and the bytes that came are kept."""
    file = rig.host.host("/m", HostedFile(BODY, signature="1"))
    asked: list[str | None] = []

    async def locate() -> AsyncIterator[Location]:
        asked.append(file.signature)
        yield rig.at(f"/m?sig={file.signature}", expires=True)

    def ends(request: Any) -> Twist | None:
        if file.signature == "1" and len(file.requests) == 4:
            file.signature = "2"
        return None

    file.chosen = ends
    rig.arrived(await rig.located(locate, sha256=digest(BODY)))
    assert asked == ["1", "2"]


async def test_a_link_that_never_worked_is_forbidden(rig: Rig) -> None:
    """No bytes came, so that the link was not what ended."""
    rig.host.host("/m", HostedFile(BODY, signature="1"))
    with pytest.raises(AuthFailed, match="403"):
        await rig.fetch(rig.at("/m?sig=2", expires=True))


async def test_a_guarded_location_reaches_public_addresses_only(rig: Rig) -> None:
    """What a job names is checked before the first connection."""
    rig.host.host("/m", BODY)
    with pytest.raises(UrlForbidden):
        await rig.fetch(rig.at(guarded=True, owner=Owner.JOB))
    assert rig.host.requests == []


async def test_a_guarded_location_is_checked_after_each_redirect(tmp_path: Path) -> None:
    """An allowed host that sends us to one that is not."""
    async with rigged(tmp_path, guard=Guard(hosts=frozenset({"::1"}))) as rig:
        rig.host.host("/m", HostedFile(BODY, twist=redirect("http://169.254.169.254/latest")))
        with pytest.raises(UrlForbidden):
            await rig.fetch(rig.at(guarded=True, owner=Owner.JOB))
        rig.host.host("/m", BODY)
        rig.arrived(await rig.fetch(rig.at(guarded=True, owner=Owner.JOB)))


async def test_a_host_that_cannot_be_reached_gives_way_to_the_next(rig: Rig) -> None:
    """Refused connections and unknown names fail after their tries."""
    rig.host.host("/m", BODY)
    async with ModelHost() as gone:
        port = gone.port
    dead = rig.at(url=f"http://[::1]:{port}/m", source="the dead")
    unknown = rig.at(url="http://no-such-host.invalid/m", source="the unknown")
    rig.arrived(await rig.fetch(dead, unknown, rig.at()))

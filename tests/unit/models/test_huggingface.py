"""Hugging Face: the commit, hash and size of a file, and what each refusal means."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from tests.support.hubs import COMMIT, HuggingFaceHub, Repo, hubs, sha256_of
from tests.support.receiver import Answer
from worker.clock import SystemClock
from worker.errors import AuthFailed, DownloadFailed, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.hub import Web
from worker.models.huggingface import HuggingFace
from worker.models.identity import HuggingFaceFile
from worker.retry import Policy
from worker.urls import Guard

BODY = b"model" * 100
FILE = HuggingFaceFile("org/repo", "main", "sub dir/m.safetensors")
AT_ONCE = Policy(attempts=3, first=timedelta(0), most=timedelta(0))


@pytest.fixture
async def hub() -> AsyncIterator[HuggingFaceHub]:
    async with hubs() as both:
        both.hugging_face.repos["org/repo"] = Repo({FILE.path: BODY, "config.json": b"{}"}, frozenset({"config.json"}))
        both.hugging_face.tokens = {"good": {"org/repo"}, "poor": set()}
        yield both.hugging_face


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web(guard=Guard(), clock=SystemClock(), rng=random.Random(1), policy=AT_ONCE)
    yield web
    await web.aclose()


def at(hub: HuggingFaceHub, web: Web, token: str | None = None) -> HuggingFace:
    return HuggingFace(web, token=token, base_url=hub.url(""))


async def test_a_file_is_pinned_with_its_hash_and_size(hub: HuggingFaceHub, web: Web) -> None:
    """The link holds the commit, so that a branch which moves cannot mix two files; the store is not visited."""
    place = await at(hub, web).locate(FILE, Owner.OPERATOR)
    assert place.url == hub.url(f"/org/repo/resolve/{COMMIT}/sub%20dir/m.safetensors")
    assert (place.sha256, place.size, place.name) == (sha256_of(BODY), len(BODY), "m.safetensors")
    assert (place.source, dict(place.headers), place.guarded, place.expires) == (str(FILE), {}, False, False)
    assert [request.method for request in hub.requests] == ["HEAD"]
    assert not hub.store.requests


async def test_small_files_have_a_size_and_no_hash(hub: HuggingFaceHub, web: Web) -> None:
    """What is kept in git itself has an ETag that is no sha256 of the file."""
    place = await at(hub, web).locate(HuggingFaceFile("org/repo", "main", "config.json"), Owner.OPERATOR)
    assert (place.sha256, place.size) == (None, 2)


async def test_a_renamed_repository_is_followed_within_the_site(hub: HuggingFaceHub, web: Web) -> None:
    """Hugging Face redirects from the old name to the new one."""
    hub.repos["old/name"] = Repo({}, renamed="org/repo")
    place = await at(hub, web).locate(HuggingFaceFile("old/name", "main", FILE.path), Owner.OPERATOR)
    assert place.url == hub.url(f"/org/repo/resolve/{COMMIT}/sub%20dir/m.safetensors")
    hub.repos["a"] = Repo({}, renamed="a")
    with pytest.raises(DownloadFailed, match="redirects too often"):
        await at(hub, web).locate(HuggingFaceFile("a", "main", "x.bin"), Owner.OPERATOR)


async def test_answers_are_remembered_for_a_while(hub: HuggingFaceHub, web: Web) -> None:
    """A second question within the minute asks nobody, and is answered for whoever asks it."""
    client = at(hub, web)
    await client.locate(FILE, Owner.OPERATOR)
    place = await client.locate(FILE, Owner.JOB)
    assert (place.owner, place.guarded, len(hub.requests)) == (Owner.JOB, True, 1)


async def test_the_token_opens_gated_files(hub: HuggingFaceHub, web: Web) -> None:
    """It goes along with the question, and with the link for its own host."""
    hub.repos["org/repo"].gated = True
    place = await at(hub, web, "good").locate(FILE, Owner.JOB)
    assert place.headers == {"authorization": "Bearer good"}
    assert "good" not in repr(place)


GATED, PRIVATE = {"gated": True}, {"private": True}


@pytest.mark.parametrize(
    ("facts", "token", "path", "revision", "error", "words"),
    [
        (GATED, None, None, "main", ModelForbidden, "needs an HF_TOKEN, of an account that accepted its conditions"),
        (GATED, "poor", None, "main", ModelForbidden, "accept the model's conditions there with that account"),
        (PRIVATE, None, None, "main", ModelForbidden, "does not exist, or is private and needs an HF_TOKEN"),
        (PRIVATE, "poor", None, "main", ModelNotFound, "or the HF_TOKEN may not see it"),
        ({}, None, "other.bin", "main", ModelNotFound, "has no file 'other.bin' at revision 'main'"),
        ({}, None, None, "v9", ModelNotFound, "has no revision 'v9'"),
        ({"disabled": True}, None, None, "main", ModelNotFound, "disabled"),
    ],
)
async def test_refusals_are_told_apart(
    hub: HuggingFaceHub,
    web: Web,
    facts: dict[str, bool],
    token: str | None,
    path: str | None,
    revision: str,
    error: type[WorkerError],
    words: str,
) -> None:
    """Each says what its reader can do; none is tried again."""
    for name, value in facts.items():
        setattr(hub.repos["org/repo"], name, value)
    with pytest.raises(error, match=words):
        await at(hub, web, token).locate(HuggingFaceFile("org/repo", revision, path or FILE.path), Owner.JOB)
    assert len(hub.requests) == 1


async def test_what_the_operator_named_is_the_operators_fault(hub: HuggingFaceHub, web: Web) -> None:
    """The same refusal of a model in the operator's manifest is no fault of any job."""
    hub.repos["org/repo"].gated = True
    with pytest.raises(AuthFailed, match="needs an HF_TOKEN"):
        await at(hub, web).locate(FILE, Owner.OPERATOR)


async def test_a_token_that_is_not_valid_blocks_no_public_file(hub: HuggingFaceHub, web: Web) -> None:
    """Hugging Face answers 401 to it even for public files: they are asked for without it, gated ones are the
    operator's to mend."""
    place = await at(hub, web, "expired").locate(FILE, Owner.JOB)
    assert dict(place.headers) == {}
    hub.repos["org/repo"].gated = True
    with pytest.raises(AuthFailed, match="refuses the HF_TOKEN"):
        await at(hub, web, "expired").locate(FILE, Owner.JOB)


async def test_an_unknown_refusal_keeps_its_number(hub: HuggingFaceHub, web: Web) -> None:
    """A status that nobody foresaw is told as it is."""
    hub.script.extend([Answer(400), Answer(401)])
    with pytest.raises(ModelNotFound, match="answered 400"):
        await at(hub, web).locate(FILE, Owner.JOB)
    with pytest.raises(ModelForbidden, match=r"needs an HF_TOKEN \(answered 401\)"):
        await at(hub, web).locate(FILE, Owner.JOB)
    hub.script.append(Answer(404, {"x-error-code": "RepoNotFound"}))
    with pytest.raises(ModelNotFound, match=r"there is no such repository$"):
        await at(hub, web).locate(FILE, Owner.JOB)


async def test_trouble_is_tried_again(hub: HuggingFaceHub, web: Web) -> None:
    """5xx passes; one that does not is a download that failed, of whoever named it."""
    hub.script.extend([Answer(503), Answer(500)])
    assert (await at(hub, web).locate(FILE, Owner.JOB)).size == len(BODY)
    hub.script.extend([Answer(500)] * 3)
    with pytest.raises(DownloadFailed, match="answered 500") as failure:
        await at(hub, web).locate(FILE, Owner.JOB)
    assert failure.value.owner is Owner.JOB


async def test_a_portal_in_between_is_not_taken_for_the_hub(hub: HuggingFaceHub, web: Web) -> None:
    """A 200 of somebody else, as networks answer that ask for a login, is no file."""
    hub.script.append(Answer(200, {"content-type": "text/html"}, b"<html>Welcome to the hotel"))
    with pytest.raises(DownloadFailed, match="not Hugging Face's"):
        await at(hub, web).locate(FILE, Owner.JOB)


async def test_a_file_without_a_commit_keeps_its_url(hub: HuggingFaceHub, web: Web) -> None:
    """Mirrors tell the hash and not always the commit."""
    hub.script.append(Answer(302, {"x-linked-etag": f'W/"{"A" * 64}"', "location": "https://store.test/x"}))
    place = await at(hub, web).locate(FILE, Owner.JOB)
    assert place.url == hub.url("/org/repo/resolve/main/sub%20dir/m.safetensors")
    assert (place.sha256, place.size) == ("a" * 64, None)


async def test_who_asks_for_quiet_gets_it(hub: HuggingFaceHub, web: Web) -> None:
    """After a 429 nothing is asked of that place, for anybody, until it said; the wait is told to who waits."""
    hub.script.append(Answer(429, {"retry-after": "3600"}))
    with pytest.raises(DownloadFailed, match="answered 429") as failure:
        await at(hub, web).locate(FILE, Owner.JOB)
    assert failure.value.retry_after == timedelta(hours=1)
    with pytest.raises(DownloadFailed, match="wants no requests for") as failure:
        await at(hub, web).locate(HuggingFaceFile("other/repo", "main", "x.bin"), Owner.JOB)
    assert failure.value.retry_after is not None
    assert failure.value.retry_after > timedelta(minutes=30)
    assert len(hub.requests) == 1

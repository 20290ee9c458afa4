"""Civitai: which file a version means, the signed link to it, and what each refusal means."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any

import pytest

from tests.support.hubs import CivitaiHub, File, Version, hubs, sha256_of
from tests.support.receiver import Answer
from worker.clock import SystemClock
from worker.errors import AuthFailed, DownloadFailed, ModelForbidden, ModelNotFound, Owner, WorkerError
from worker.models.civitai import Civitai, VersionFile, chosen, version_of
from worker.models.hub import Web
from worker.models.identity import CivitaiFile
from worker.retry import Policy
from worker.urls import Guard

BODY, PRUNED = b"full model" * 50, b"pruned model"
AT_ONCE = Policy(attempts=3, first=timedelta(0), most=timedelta(0))


def version(**facts: Any) -> Version:
    files = [
        File(1, b"pictures", "training.zip", "Training Data"),
        File(2, PRUNED, "pruned.safetensors", "Pruned Model", metadata={"format": "SafeTensor", "fp": "fp16"}),
        File(3, BODY, "full.safetensors", "Model", primary=True, metadata={"format": "SafeTensor", "fp": "fp32"}),
    ]
    return Version(**{"files": files, **facts})


@pytest.fixture
async def hub() -> AsyncIterator[CivitaiHub]:
    async with hubs() as both:
        both.civitai.versions[12] = version()
        both.civitai.tokens = {"good"}
        yield both.civitai


@pytest.fixture
async def web() -> AsyncIterator[Web]:
    web = Web(guard=Guard(), clock=SystemClock(), rng=random.Random(1), policy=AT_ONCE)
    yield web
    await web.aclose()


def at(hub: CivitaiHub, web: Web, token: str | None = None) -> Civitai:
    return Civitai(web, token=token, base_url=hub.url(""))


async def test_the_link_is_the_stores_and_holds_no_token(hub: CivitaiHub, web: Web) -> None:
    """Civitai gives a link that expires; the store behind it would answer 400 to our token, so it gets none."""
    place = await at(hub, web, "good").locate(CivitaiFile(12), Owner.JOB)
    assert place.url.startswith(hub.store.url("/store/"))
    assert (dict(place.headers), place.expires, place.guarded) == ({}, True, True)
    assert (place.sha256, place.size, place.name) == (sha256_of(BODY), len(BODY), "full.safetensors")
    assert place.source == "civitai.com version 12"
    asked = hub.downloads[0]
    assert (asked.method, asked.target.partition("?")[2]) == ("GET", "fileId=3")
    assert asked.headers["authorization"] == "Bearer good"
    assert not hub.store.requests


async def test_each_question_gets_a_new_link(hub: CivitaiHub, web: Web) -> None:
    """What the version holds is remembered for a while, a link that expires is not."""
    client = at(hub, web)
    first = await client.locate(CivitaiFile(12), Owner.OPERATOR)
    second = await client.locate(CivitaiFile(12), Owner.OPERATOR)
    assert first.url != second.url
    assert len(hub.requests) - len(hub.downloads) == 1


async def test_a_users_own_token_is_used_and_told_nobody(hub: CivitaiHub, web: Web) -> None:
    """A job's URL may bring its own token: it goes into the header, and stands for ours."""
    hub.versions[12].login = True
    place = await at(hub, web, "bad").locate(CivitaiFile(12, token="good"), Owner.JOB)
    assert place.expires
    assert all("good" not in request.target for request in hub.requests)
    with pytest.raises(ModelForbidden, match="refuses the URL's token"):
        await at(hub, web, "good").locate(CivitaiFile(12, token="bad"), Owner.JOB)


async def test_files_without_a_redirect_are_fetched_where_they_are(hub: CivitaiHub, web: Web) -> None:
    """An answer that is the file itself keeps the download URL and the token for its host."""
    client = at(hub, web, "good")
    await client.locate(CivitaiFile(12), Owner.JOB)
    hub.script.append(Answer(206, {"content-range": "bytes 0-0/500"}, b"x"))
    place = await client.locate(CivitaiFile(12), Owner.JOB)
    assert place.url == hub.url("/api/download/models/12?fileId=3")
    assert (dict(place.headers), place.expires) == ({"authorization": "Bearer good"}, False)


@pytest.mark.parametrize(
    ("facts", "token", "error", "words"),
    [
        ({"login": True}, None, ModelForbidden, "this model needs a CIVITAI_TOKEN"),
        ({"login": True}, "bad", AuthFailed, "refuses the CIVITAI_TOKEN"),
        ({"switched_off": True}, "good", ModelForbidden, "switched downloads off"),
        ({"early_until": "2031-02-03T04:05:06.000Z"}, "good", ModelForbidden, "in early access until 2031-02-03"),
        ({"archived": True}, None, ModelNotFound, "its author took it down"),
    ],
)
@pytest.mark.parametrize("pages", [False, True])
async def test_refusals_are_told_apart(
    hub: CivitaiHub,
    web: Web,
    facts: dict[str, Any],
    token: str | None,
    error: type[WorkerError],
    words: str,
    pages: bool,
) -> None:
    """Each says what its reader can do, whether Civitai said it in JSON or by a redirect to a page for people."""
    hub.versions[12], hub.pages = version(**facts), pages
    with pytest.raises(error, match=words):
        await at(hub, web, token).locate(CivitaiFile(12), Owner.JOB)
    assert len(hub.downloads) == 1


async def test_what_the_operator_named_is_the_operators_fault(hub: CivitaiHub, web: Web) -> None:
    """The same refusal of a model in the operator's manifest is no fault of any job."""
    hub.versions[12].login = True
    with pytest.raises(AuthFailed, match="needs a CIVITAI_TOKEN"):
        await at(hub, web).locate(CivitaiFile(12), Owner.OPERATOR)


async def test_a_404_of_the_download_may_pass(hub: CivitaiHub, web: Web) -> None:
    """Civitai answers 404 now and then for files that it has; a version that it does not have is asked for once."""
    hub.versions[12].lost = 2
    assert (await at(hub, web).locate(CivitaiFile(12), Owner.JOB)).size == len(BODY)
    hub.versions[12].lost = 3
    with pytest.raises(ModelNotFound, match="no such version"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB)
    before = len(hub.requests)
    with pytest.raises(ModelNotFound, match="no such version"):
        await at(hub, web).locate(CivitaiFile(13), Owner.JOB)
    assert len(hub.requests) == before + 1


@pytest.mark.parametrize("gone", ["archived", "other files", "no version"])
async def test_the_same_file_elsewhere_is_found_by_its_hash(hub: CivitaiHub, web: Web, gone: str) -> None:
    """A version that its author took down may live on under another."""
    hub.versions[99] = Version([File(7, b"other"), File(8, BODY, "again.safetensors")])
    match gone:
        case "archived":
            hub.versions[12].archived = True
        case "other files":
            hub.versions[12].files = [File(3, b"replaced", primary=True)]
        case _:
            del hub.versions[12]
    place = await at(hub, web).locate(CivitaiFile(12), Owner.JOB, sha256_of(BODY))
    assert (place.name, place.sha256, place.source) == ("again.safetensors", sha256_of(BODY), "civitai.com version 99")


async def test_a_file_that_nobody_else_has_is_not_found(hub: CivitaiHub, web: Web) -> None:
    """Then the first refusal is the answer."""
    hub.versions[12].archived = True
    with pytest.raises(ModelNotFound, match="took it down"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB, sha256_of(BODY))
    hub.versions[12].archived = False
    with pytest.raises(ModelNotFound, match="another file than the one with sha256 ffffffffffff"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB, "f" * 64)


@pytest.mark.parametrize(
    "answer",
    [
        Answer(200, {"content-type": "text/html"}, b"<html>Just a moment..."),
        Answer(200, {}, b"[]"),
        Answer(403, {"content-type": "text/html"}, b"<html>Attention Required!"),
        Answer(302, {"location": "/maintenance"}),
    ],
)
async def test_a_wall_in_front_is_not_taken_for_civitai(hub: CivitaiHub, web: Web, answer: Answer) -> None:
    """What a proxy or a maintenance page answers says nothing of the model: it may be there later."""
    hub.script.append(answer)
    with pytest.raises(DownloadFailed, match="not Civitai's"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB)


async def test_other_refusals(hub: CivitaiHub, web: Web) -> None:
    """A 403 in JSON is about who asks, a 400 about the version."""
    hub.script.append(Answer(403, {"content-type": "application/json"}, b'{"error": "Forbidden"}'))
    with pytest.raises(ModelForbidden, match="does not let visitors download it"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB)
    hub.script.append(Answer(400, {"content-type": "application/json"}, b'{"error": "Invalid id"}'))
    with pytest.raises(ModelNotFound, match="answered 400"):
        await at(hub, web).locate(CivitaiFile(12), Owner.JOB)


async def test_a_file_that_the_version_has_not(hub: CivitaiHub, web: Web) -> None:
    """The error lists what it has."""
    with pytest.raises(ModelNotFound, match=r"no such file; it has 1 training.zip, 2 pruned.safetensors, 3 full"):
        await at(hub, web).locate(CivitaiFile(12, 4), Owner.JOB)
    hub.versions[13] = Version([])
    with pytest.raises(ModelNotFound, match=r"no such file$"):
        await at(hub, web).locate(CivitaiFile(13), Owner.JOB)


FILES = (
    VersionFile(1, "t.zip", "Training Data"),
    VersionFile(2, "p", "Pruned Model", sha256="b" * 64, told={"format": "SafeTensor", "fp": "fp16"}),
    VersionFile(3, "c", "Model", told={"format": "PickleTensor", "fp": "fp32"}),
    VersionFile(4, "v", "VAE", told={"type": "VAE"}),
)
PRIMARY = VersionFile(5, "x", "Pruned Model", primary=True)


@pytest.mark.parametrize(
    ("files", "wanted", "sha256", "expected"),
    [
        ((*FILES, PRIMARY), CivitaiFile(12), None, 5),
        (FILES, CivitaiFile(12), None, 3),
        ((FILES[0], FILES[1]), CivitaiFile(12), None, 2),
        ((FILES[0], FILES[3]), CivitaiFile(12), None, 4),
        ((FILES[0],), CivitaiFile(12), None, None),
        (FILES, CivitaiFile(12, 4), None, 4),
        (FILES, CivitaiFile(12, 9), None, None),
        (FILES, CivitaiFile(12, 3), "b" * 64, 2),
        (FILES, CivitaiFile(12), "f" * 64, 3),
        ((*FILES, PRIMARY), CivitaiFile(12, choice=(("format", "safetensor"),)), None, 2),
        (FILES, CivitaiFile(12, choice=(("type", "VAE"),)), None, 4),
        (FILES, CivitaiFile(12, choice=(("fp", "nf4"),)), None, None),
    ],
)
def test_which_file_is_meant(
    files: tuple[VersionFile, ...], wanted: CivitaiFile, sha256: str | None, expected: int | None
) -> None:
    """The bytes settle it, else the id, else as the site's own clients choose; training data is never a model."""
    file = chosen(files, wanted, sha256)
    assert (file.id if file else None) == expected


def test_what_the_api_says_is_read_with_care() -> None:
    """Sizes that were rounded are none, hashes that are none are none, and a document may hold anything."""
    file = {"id": "7", "name": "../a.ckpt", "sizeKB": 6775430.35, "hashes": {"SHA256": "short"}, "metadata": None}
    found = version_of({"id": 1, "files": [file, {"sizeKB": 0.5}, "x"], "earlyAccessDeadline": "2030-01-02T00:00:00Z"})
    assert found is not None
    assert found.files[0] == VersionFile(None, "a.ckpt", told={"id": "7", "name": "../a.ckpt"})
    assert found.files[1].size == 512
    assert (len(found.files), found.early_until) == (2, "2030-01-02")
    assert version_of({"id": 1, "files": None, "earlyAccessEndsAt": 5}) == version_of({"id": 1})
    assert version_of({"id": "1"}) is None
    assert version_of(None) is None


async def test_a_file_without_an_id_is_asked_for_by_choice(hub: CivitaiHub, web: Web) -> None:
    """Old documents of the API have none."""
    hub.script.extend(
        [
            Answer(200, {}, b'{"id": 12, "files": [{"name": "a.pt", "format": "PickleTensor", "primary": true}]}'),
            Answer(307, {"location": "https://store.test/a?sig=1"}),
        ]
    )
    place = await at(hub, web).locate(CivitaiFile(12, choice=(("format", "PickleTensor"),)), Owner.OPERATOR)
    assert (place.url, place.name, place.sha256, place.size) == ("https://store.test/a?sig=1", "a.pt", None, None)
    assert hub.downloads[0].target == "/api/download/models/12?format=PickleTensor"

"""Where models are found, over real servers: the order of the sources, and what each tells."""

from __future__ import annotations

import base64
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import httpx
import pytest
from pydantic import SecretStr

from tests.support.finding import BODY, CDN, HF, OTHER, SHA, Sites, found, refused, running_sites, urls
from tests.support.hubs import File, Version, sha256_of
from tests.support.model_host import HostedFile, ModelHost, Twist, redirect
from tests.support.receiver import Answer
from worker.clock import SystemClock
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    ModelForbidden,
    ModelNotFound,
    Owner,
    WorkerError,
)
from worker.models.base import Wanted
from worker.models.download import Downloads
from worker.models.find import Sources
from worker.models.hub import Answer as HeadersOf
from worker.models.plain import sha256_of as sha256_of_headers
from worker.settings.models import ModelsSettings
from worker.urls import Guard


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with running_sites(tmp_path) as sites:
        yield sites


async def test_a_name_is_looked_for_in_the_templates_in_order(sites: Sites) -> None:
    """The operator's templates, as far as they have it; kind and name are filled in, quoted."""
    sites.mirror.host("/lora/a/b%20c.safetensors", HostedFile(BODY))
    sites.second.host("/lora/a/b%20c.safetensors", HostedFile(BODY, disposition='attachment; filename="d.safetensors"'))
    sources = sites.finder(source=sites.mirrored())
    [first, second] = await found(sources, Wanted("lora", "a/b c.safetensors"))
    assert (first.url, second.url) == tuple(
        host.url("/lora/a/b%20c.safetensors") for host in (sites.mirror, sites.second)
    )
    assert (first.size, first.name, first.owner, first.guarded) == (len(BODY), "b c.safetensors", Owner.OPERATOR, False)
    assert second.name == "d.safetensors"
    assert sites.mirror.requests[0].headers["range"] == "bytes=0-0"


async def test_the_next_source_is_asked_only_when_it_is_needed(sites: Sites) -> None:
    """The first one that has the model is enough for whoever takes it."""
    sites.mirror.host("/vae/v.safetensors", BODY)
    async for one in sites.finder(source=sites.mirrored()).locations(Wanted("vae", "v.safetensors")):
        assert one.url.startswith(sites.mirror.url(""))
        break
    assert not sites.second.requests


async def test_a_refiner_lies_among_the_checkpoints(sites: Sites) -> None:
    """Templates know it by the kind whose folder it shares."""
    sites.mirror.host("/checkpoint/r.safetensors", BODY)
    assert len(await found(sites.finder(source=(sites.template,)), Wanted("refiner", "r.safetensors"))) == 1


async def test_a_stem_is_asked_for_as_a_file(sites: Sites) -> None:
    """A prompt names LoRAs without extension; no server lists such a file."""
    sites.mirror.host("/lora/style.safetensors", BODY)
    [one] = await found(sites.finder(source=(sites.template,)), Wanted("lora", "style"))
    assert one.name == "style.safetensors"


async def test_the_catalogue_comes_after_the_templates(sites: Sites) -> None:
    """It says where a model is and what it holds; a template with another file of that name is passed over."""
    sites.mirror.host("/lora/m.safetensors", OTHER)
    sites.second.host("/lora/m.safetensors", BODY)
    catalog = sites.catalog({"kind": "lora", "name": "m.safetensors", "url": HF, "sha256": SHA, "size": len(BODY)})
    sources = sites.finder(source=sites.mirrored(), catalog=catalog)
    [template, listed] = await found(sources, Wanted("lora", "m"))
    assert template.url.startswith(sites.second.url(""))
    assert (listed.source, listed.owner, listed.sha256) == (
        "huggingface.co/org/repo/m.safetensors",
        Owner.OPERATOR,
        SHA,
    )
    assert sources.catalog_version
    assert len((await sources.catalogued()).items) == 1


async def test_a_catalogued_file_that_changed_is_not_used(sites: Sites) -> None:
    """The catalogue's hash and size outweigh what lies there now."""
    catalog = sites.catalog({"kind": "lora", "name": "m.safetensors", "url": sites.mirror.url("/x"), "size": 5})
    sites.mirror.host("/x", OTHER)
    error = await refused(sites.finder(catalog=catalog), Wanted("lora", "m.safetensors"))
    assert isinstance(error, ModelNotFound)
    assert "another file than the catalogue says" in error.message


async def test_an_entry_tells_the_hash_of_a_plain_url(sites: Sites) -> None:
    """A server that tells none gets that of the catalogue."""
    catalog = sites.catalog(
        {"kind": "lora", "name": "m.safetensors", "url": sites.mirror.url("/x"), "sha256": SHA, "size": len(BODY)}
    )
    sites.mirror.host("/x", HostedFile(BODY, ranges=False))
    [one] = await found(sites.finder(catalog=catalog), Wanted("lora", "m.safetensors"))
    assert (one.sha256, one.size) == (SHA, len(BODY))


async def test_a_mirror_goes_before_the_hub_when_its_size_agrees(sites: Sites) -> None:
    """The hub tells size and hash of what a job's URL means; the operator's own copy is nearer."""
    sites.mirror.host("/lora/m.safetensors", BODY)
    sites.second.host("/lora/m.safetensors", OTHER)
    [mirror, hub] = await found(sites.finder(source=sites.mirrored()), Wanted("lora", "m.safetensors", url=HF))
    assert mirror.url == sites.mirror.url("/lora/m.safetensors")
    assert (hub.source, hub.owner, hub.guarded) == ("huggingface.co/org/repo/m.safetensors", Owner.JOB, True)


async def test_a_mirror_whose_hash_agrees_needs_no_hub(sites: Sites) -> None:
    """Everything that the job told can be compared: the hub may be down, and is not even asked."""
    sites.mirror.host("/lora/m.safetensors", BODY)
    sources = sites.finder(source=(sites.template,))
    wanted = Wanted("lora", "m.safetensors", url=HF, sha256=SHA, size=len(BODY))
    async for one in sources.locations(wanted):
        assert one.url.startswith(sites.mirror.url(""))
        break
    assert not sites.hubs.hugging_face.requests


async def test_a_mirror_that_cannot_be_compared_comes_last(sites: Sites) -> None:
    """A file whose size is not told may be the one with the hash: tried when all else failed, verified as it comes."""
    sites.mirror.host("/lora/m.safetensors", HostedFile(BODY, ranges=False)).twist = Twist(chunked=True)
    sources = sites.finder(source=(sites.template,), hosts=("cdn.test",))
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN, sha256=SHA)) == [
        CDN,
        sites.mirror.url("/lora/m.safetensors"),
    ]
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN)) == [CDN]
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN, size=5)) == [CDN]


@pytest.mark.parametrize("header", ["x-checksum-sha256", "x-amz-meta-sha256", "x-amz-checksum-sha256"])
async def test_stores_may_tell_the_hash(sites: Sites, header: str) -> None:
    """Then it settles what agrees, in hex or in base64."""
    told = base64.b64encode(bytes.fromhex(SHA)).decode() if header == "x-amz-checksum-sha256" else SHA
    sites.mirror.host("/lora/m.safetensors", HostedFile(BODY)).twist = Twist(headers={header: told})
    sites.second.host("/lora/m.safetensors", HostedFile(BODY)).twist = Twist(
        headers={header: "%%%", "x-goog-meta-sha256": sha256_of(OTHER)}
    )
    sources = sites.finder(source=sites.mirrored())
    [one] = await found(sources, Wanted("lora", "m.safetensors", sha256=SHA))
    assert (one.url, one.sha256) == (sites.mirror.url("/lora/m.safetensors"), SHA)


@pytest.mark.parametrize("told", ["%%%", "c2hvcnQ=", "", f"{base64.b64encode(bytes(32)).decode()}-5"])
def test_a_checksum_that_is_none_is_ignored(told: str) -> None:
    """S3 marks the checksum of an upload in parts, which is not that of the file."""
    assert sha256_of_headers(HeadersOf(200, httpx.Headers({"x-amz-checksum-sha256": told}), "https://x.test/")) is None


async def test_a_hub_that_moved_on_has_not_what_is_wanted(sites: Sites) -> None:
    """A branch now holds another file than the job's hash says."""
    error = await refused(sites.finder(), Wanted("lora", "m.safetensors", url=HF, sha256="f" * 64))
    assert isinstance(error, ModelNotFound)
    assert "holds another file than the one that is wanted" in error.message


async def test_civitai_is_asked_for_the_very_bytes(sites: Sites) -> None:
    """The hash goes along, so that a version that was taken down is found under another."""
    sites.hubs.civitai.versions[12].archived = True
    sites.hubs.civitai.versions[40] = Version([File(5, BODY, "again.safetensors")])
    [one] = await found(sites.finder(), Wanted("lora", "", url="urn:air:sdxl:lora:civitai:9@12", sha256=SHA))
    assert (one.name, one.source, one.expires) == ("again.safetensors", "civitai.com version 40", True)


async def test_tokens_go_to_their_own_hosts_alone(sites: Sites) -> None:
    """Neither mirror, store nor the other hub ever sees one, and no URL holds one."""
    sites.hubs.hugging_face.tokens = {"hf-secret": {"org/repo"}}
    sites.hubs.civitai.tokens = {"civitai-secret"}
    sites.mirror.host("/lora/m.safetensors", redirect_to(sites.second))
    sites.second.host("/moved.safetensors", BODY)
    sources = sites.finder(
        source=(sites.template,), hf_token=SecretStr("hf-secret"), civitai_token=SecretStr("civitai-secret")
    )
    for url in (HF, "civitai://12"):
        places = await found(sources, Wanted("lora", "m.safetensors", url=url))
        assert len(places) == 2
        assert not any("secret" in one.url + one.source for one in places)
    for server in (sites.mirror, sites.second, sites.hubs.store):
        assert not any("authorization" in request.headers for request in server.requests)
    for hub, token in ((sites.hubs.hugging_face, "hf-secret"), (sites.hubs.civitai, "civitai-secret")):
        assert hub.requests
        assert all(request.headers["authorization"] == f"Bearer {token}" for request in hub.requests)


def redirect_to(host: ModelHost) -> HostedFile:
    file = HostedFile(b"")
    file.twist = redirect(host.url("/moved.safetensors"))
    return file


async def test_completing_asks_no_server(sites: Sites) -> None:
    """Name, hash and size come from the catalogue and the URL alone."""
    catalog = sites.catalog(
        {"kind": "lora", "name": "sub/m.safetensors", "url": HF, "sha256": SHA, "size": 9},
        {"kind": "lora", "name": "n.safetensors", "url": CDN, "size": 5},
    )
    sources = sites.finder(catalog=catalog, source=(sites.template,), hosts=("*",))

    async def told(wanted: Wanted) -> tuple[str, str | None, int | None]:
        done = await sources.completed(wanted)
        return done.name, done.sha256, done.size

    assert await told(Wanted("lora", "m")) == ("sub/m.safetensors", SHA, 9)
    assert await told(Wanted("lora", "", url=HF)) == ("sub/m.safetensors", SHA, 9)
    assert await told(Wanted("lora", "mine.safetensors", url=HF)) == ("mine.safetensors", SHA, 9)
    assert await told(Wanted("lora", "", sha256=SHA)) == ("sub/m.safetensors", SHA, 9)
    assert await told(Wanted("lora", "n.safetensors", url="https://x.test/n.safetensors")) == (
        "n.safetensors",
        None,
        None,
    )
    assert await told(Wanted("lora", "n", url="https://x.test/k.pt")) == ("n.pt", None, None)
    assert await told(Wanted("lora", "m", sha256="f" * 64)) == ("m.safetensors", "f" * 64, None)
    assert await told(Wanted("lora", "n.safetensors", size=6)) == ("n.safetensors", None, 6)
    assert await told(Wanted("lora", "other", known=True)) == ("other", None, None)
    assert await told(Wanted("lora", "", url="civitai://12")) == ("", None, None)
    assert not sites.mirror.requests + sites.hubs.civitai.requests + sites.hubs.hugging_face.requests


def in_bucket(sites: Sites, **settings: Any) -> Sources:
    """A finder whose bucket is served by the first mirror, at signed links."""

    async def link(url: str) -> str:
        if "unsigned" in url:
            raise AuthFailed("no usable credentials")
        return sites.mirror.url(f"/{quote(url.removeprefix('s3://'))}?X-Amz-Signature=secret")

    return sites.finder(source=("s3://models/{kind}/{name}",), link_s3=link, **settings)


async def test_a_bucket_is_looked_at_by_a_signed_link(sites: Sites) -> None:
    """The store tells size and hash; the place stays the object's, since each transfer signs a link of its own."""
    file = sites.mirror.host("/models/lora/a%20b.safetensors", BODY)
    file.twist = Twist(headers={"x-amz-meta-sha256": SHA})
    sources = in_bucket(sites)
    [one] = await found(sources, Wanted("lora", "a b.safetensors"))
    assert (one.url, one.source) == ("s3://models/lora/a b.safetensors",) * 2
    assert (one.size, one.sha256, one.guarded, one.name) == (len(BODY), SHA, False, "a b.safetensors")
    sites.mirror.routes["/models/lora/none.safetensors"] = Answer(404, {}, b"<Error><Code>NoSuchKey</Code></Error>")
    error = await refused(sources, Wanted("lora", "none.safetensors"))
    assert isinstance(error, ModelNotFound)
    assert "s3://models/lora/none.safetensors: answered 404 NoSuchKey" in error.message
    [unseen] = await found(sites.finder(source=("s3://models/{kind}/{name}",)), Wanted("lora", "a.safetensors"))
    assert (unseen.url, unseen.size, unseen.guarded) == ("s3://models/lora/a.safetensors", None, False)


@pytest.mark.parametrize(
    ("status", "code", "error", "pauses"),
    [
        (403, "AccessDenied", AuthFailed, "s3://models/lora/m.safetensors"),
        (403, "SignatureDoesNotMatch", AuthFailed, "s3://models/{kind}/{name}"),
        (401, "", AuthFailed, "s3://models/{kind}/{name}"),
        (404, "NoSuchBucket", DownloadFailed, None),
    ],
)
async def test_what_a_bucket_refuses(
    sites: Sites, status: int, code: str, error: type[WorkerError], pauses: str | None
) -> None:
    """S3 answers 403 for a key that does not exist, too, so that it says nothing of other keys; a bucket that does
    not exist is a mistake of the operator's, not of a job's."""
    sites.mirror.otherwise = Answer(status, {}, f"<Error><Code>{code}</Code></Error>".encode())
    sites.mirror.host("/models/lora/other.safetensors", BODY)
    sources = in_bucket(sites)
    assert isinstance(await refused(sources, Wanted("lora", "m.safetensors")), error)
    assert set(sources.paused) == ({pauses} if pauses else set())
    if pauses != "s3://models/{kind}/{name}":
        assert await found(sources, Wanted("lora", "other.safetensors"))


async def test_a_bucket_of_jobs(sites: Sites) -> None:
    """A job may name objects of the operator's bucket; what is refused there is its own mistake, but for the keys."""
    sites.mirror.otherwise = Answer(403, {}, b"<Error><Code>AccessDenied</Code></Error>")
    sources = in_bucket(sites)
    wanted = Wanted("lora", "", url="s3://models/x/m.safetensors")
    assert isinstance(await refused(sources, wanted), ModelForbidden)
    sites.mirror.otherwise = Answer(403, {}, b"<Error><Code>InvalidAccessKeyId</Code></Error>")
    assert isinstance(await refused(sources, wanted), AuthFailed)
    error = await refused(sources, Wanted("lora", "unsigned.safetensors"))
    assert isinstance(error, AuthFailed)
    assert set(sources.paused) == {"s3://models/{kind}/{name}"}


@pytest.mark.parametrize("url", [HF, "civitai://12", "urn:air:sdxl:lora:civitai:9@12", "m.safetensors"])
async def test_what_is_found_can_be_fetched(sites: Sites, tmp_path: Path, url: str) -> None:
    """Pinned links, signed links and redirects lead to the bytes; the stores behind the hubs refuse any token."""
    sites.hubs.hugging_face.tokens = {"hf-secret": {"org/repo"}}
    sites.hubs.civitai.tokens = {"civitai-secret"}
    sites.hubs.hugging_face.repos["org/repo"].gated = True
    sites.hubs.civitai.versions[12].login = True
    sites.mirror.host("/lora/m.safetensors", redirect_to(sites.second))
    sites.second.host("/moved.safetensors", BODY)
    tokens: dict[str, Any] = {"hf_token": SecretStr("hf-secret"), "civitai_token": SecretStr("civitai-secret")}
    named = not url.endswith(".safetensors") or url == HF
    sources = sites.finder(**tokens, source=() if named else (sites.template,))
    wanted = Wanted("lora", "m.safetensors", url=url if named else None)
    downloads = Downloads(ModelsSettings(), Guard(private=True), clock=SystemClock(), rng=random.Random(1))

    async def room(_: int) -> None:
        """There is enough."""

    try:
        got = await downloads.fetch(
            lambda: sources.locations(wanted), tmp_path / "m.part", wanted, room=room, on_bytes=lambda *_: None
        )
    finally:
        await downloads.aclose()
    assert (got.size, got.sha256, got.path.read_bytes()) == (len(BODY), SHA, BODY)

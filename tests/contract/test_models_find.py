"""Where models are found, over real servers: the order of sources, who may name what, and what failures come to."""

from __future__ import annotations

import base64
import json
import random
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest
from pydantic import SecretStr
from structlog.testing import capture_logs

from tests.support.hubs import File, Hubs, Repo, Version, hubs, sha256_of
from tests.support.model_host import BROKEN, FORBIDDEN, LOGIN_PAGE, HostedFile, ModelHost, Twist, redirect
from tests.support.receiver import Answer
from worker.clock import SystemClock
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    InvalidJob,
    ModelForbidden,
    ModelNotFound,
    Owner,
    UrlForbidden,
    WorkerError,
)
from worker.models.base import Location, Wanted
from worker.models.find import Sources
from worker.models.hub import Answer as HeadersOf
from worker.models.plain import sha256_of as sha256_of_headers
from worker.retry import Policy
from worker.settings.models import ModelsSettings
from worker.urls import Guard

BODY, OTHER = b"the model" * 100, b"another one"
SHA = sha256_of(BODY)
AT_ONCE = Policy(attempts=3, first=timedelta(0), most=timedelta(0))
HF = "hf://org/repo/m.safetensors"
CDN = "https://cdn.test/m.safetensors"


class Place:
    """Two mirrors of the operator's, both hubs, and finders over them."""

    def __init__(self, stack: AsyncExitStack, both: Hubs, mirror: ModelHost, second: ModelHost, folder: Path) -> None:
        self._stack = stack
        self._folder = folder
        self.hubs = both
        self.mirror = mirror
        self.second = second
        both.hugging_face.repos["org/repo"] = Repo({"m.safetensors": BODY})
        both.civitai.versions[12] = Version([File(3, BODY, "m.safetensors", primary=True)])
        for host in (mirror, second):
            host.otherwise = Answer(404)

    @property
    def template(self) -> str:
        return self.mirror.url("/{kind}/{name}")

    def mirrored(self, *, second: bool = True) -> tuple[str, ...]:
        return (self.template, self.second.url("/{kind}/{name}")) if second else (self.template,)

    def catalog(self, *items: dict[str, Any]) -> str:
        path = self._folder / "catalog.json"
        path.write_text(json.dumps(items))
        return str(path)

    def finder(self, *, guard: Guard | None = None, look_at_s3: Any = None, **settings: Any) -> Sources:
        sources = Sources(
            ModelsSettings(**settings),
            guard=guard or Guard(private=True),
            clock=SystemClock(),
            rng=random.Random(1),
            look_at_s3=look_at_s3,
            hugging_face_url=self.hubs.hugging_face.url(""),
            civitai_url=self.hubs.civitai.url(""),
            policy=AT_ONCE,
        )
        self._stack.push_async_callback(sources.aclose)
        return sources


@pytest.fixture
async def place(tmp_path: Path) -> AsyncIterator[Place]:
    async with AsyncExitStack() as stack:
        both = await stack.enter_async_context(hubs())
        mirror, second = [await stack.enter_async_context(ModelHost()) for _ in range(2)]
        yield Place(stack, both, mirror, second, tmp_path)


async def found(sources: Sources, wanted: Wanted) -> list[Location]:
    return [place async for place in sources.locations(wanted)]


async def urls(sources: Sources, wanted: Wanted) -> list[str]:
    """Where it is found, in order, without the queries of signed links."""
    return [one.url.partition("?")[0] for one in await found(sources, wanted)]


async def refused(sources: Sources, wanted: Wanted) -> WorkerError:
    with pytest.raises(WorkerError) as error:
        await found(sources, wanted)
    return error.value


async def test_a_name_is_looked_for_in_the_templates_in_order(place: Place) -> None:
    """The operator's templates, as far as they have it; kind and name are filled in, quoted."""
    place.mirror.host("/lora/a/b%20c.safetensors", HostedFile(BODY))
    place.second.host("/lora/a/b%20c.safetensors", HostedFile(BODY, disposition='attachment; filename="d.safetensors"'))
    sources = place.finder(source=place.mirrored())
    [first, second] = await found(sources, Wanted("lora", "a/b c.safetensors"))
    assert (first.url, second.url) == tuple(
        host.url("/lora/a/b%20c.safetensors") for host in (place.mirror, place.second)
    )
    assert (first.size, first.name, first.owner, first.guarded) == (len(BODY), "b c.safetensors", Owner.OPERATOR, False)
    assert second.name == "d.safetensors"
    assert place.mirror.requests[0].headers["range"] == "bytes=0-0"


async def test_the_next_source_is_asked_only_when_it_is_needed(place: Place) -> None:
    """The first one that has the model is enough for whoever takes it."""
    place.mirror.host("/vae/v.safetensors", BODY)
    async for one in place.finder(source=place.mirrored()).locations(Wanted("vae", "v.safetensors")):
        assert one.url.startswith(place.mirror.url(""))
        break
    assert not place.second.requests


async def test_a_refiner_lies_among_the_checkpoints(place: Place) -> None:
    """Templates know it by the kind whose folder it shares."""
    place.mirror.host("/checkpoint/r.safetensors", BODY)
    assert len(await found(place.finder(source=(place.template,)), Wanted("refiner", "r.safetensors"))) == 1


async def test_a_stem_is_asked_for_as_a_file(place: Place) -> None:
    """A prompt names LoRAs without extension; no server lists such a file."""
    place.mirror.host("/lora/style.safetensors", BODY)
    [one] = await found(place.finder(source=(place.template,)), Wanted("lora", "style"))
    assert one.name == "style.safetensors"


async def test_the_catalogue_comes_after_the_templates(place: Place) -> None:
    """It says where a model is and what it holds; a template with another file of that name is passed over."""
    place.mirror.host("/lora/m.safetensors", OTHER)
    place.second.host("/lora/m.safetensors", BODY)
    catalog = place.catalog({"kind": "lora", "name": "m.safetensors", "url": HF, "sha256": SHA, "size": len(BODY)})
    sources = place.finder(source=place.mirrored(), catalog=catalog)
    [template, listed] = await found(sources, Wanted("lora", "m"))
    assert template.url.startswith(place.second.url(""))
    assert (listed.source, listed.owner, listed.sha256) == (
        "huggingface.co/org/repo/m.safetensors",
        Owner.OPERATOR,
        SHA,
    )
    assert sources.catalog_version
    assert len((await sources.catalogued()).items) == 1


async def test_a_catalogued_file_that_changed_is_not_used(place: Place) -> None:
    """The catalogue's hash and size outweigh what lies there now."""
    catalog = place.catalog({"kind": "lora", "name": "m.safetensors", "url": place.mirror.url("/x"), "size": 5})
    place.mirror.host("/x", OTHER)
    error = await refused(place.finder(catalog=catalog), Wanted("lora", "m.safetensors"))
    assert isinstance(error, ModelNotFound)
    assert "another file than the catalogue says" in error.message


async def test_an_entry_tells_the_hash_of_a_plain_url(place: Place) -> None:
    """A server that tells none gets that of the catalogue."""
    catalog = place.catalog(
        {"kind": "lora", "name": "m.safetensors", "url": place.mirror.url("/x"), "sha256": SHA, "size": len(BODY)}
    )
    place.mirror.host("/x", HostedFile(BODY, ranges=False))
    [one] = await found(place.finder(catalog=catalog), Wanted("lora", "m.safetensors"))
    assert (one.sha256, one.size) == (SHA, len(BODY))


async def test_a_mirror_goes_before_the_hub_when_its_size_agrees(place: Place) -> None:
    """The hub tells size and hash of what a job's URL means; the operator's own copy is nearer."""
    place.mirror.host("/lora/m.safetensors", BODY)
    place.second.host("/lora/m.safetensors", OTHER)
    [mirror, hub] = await found(place.finder(source=place.mirrored()), Wanted("lora", "m.safetensors", url=HF))
    assert mirror.url == place.mirror.url("/lora/m.safetensors")
    assert (hub.source, hub.owner, hub.guarded) == ("huggingface.co/org/repo/m.safetensors", Owner.JOB, True)


async def test_a_mirror_whose_hash_agrees_needs_no_hub(place: Place) -> None:
    """Everything that the job told can be compared: the hub may be down, and is not even asked."""
    place.mirror.host("/lora/m.safetensors", BODY)
    sources = place.finder(source=(place.template,))
    wanted = Wanted("lora", "m.safetensors", url=HF, sha256=SHA, size=len(BODY))
    async for one in sources.locations(wanted):
        assert one.url.startswith(place.mirror.url(""))
        break
    assert not place.hubs.hugging_face.requests


async def test_a_mirror_that_cannot_be_compared_comes_last(place: Place) -> None:
    """A file whose size is not told may be the one with the hash: tried when all else failed, verified as it comes."""
    place.mirror.host("/lora/m.safetensors", HostedFile(BODY, ranges=False)).twist = Twist(chunked=True)
    sources = place.finder(source=(place.template,), hosts=("cdn.test",))
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN, sha256=SHA)) == [
        CDN,
        place.mirror.url("/lora/m.safetensors"),
    ]
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN)) == [CDN]
    assert await urls(sources, Wanted("lora", "m.safetensors", url=CDN, size=5)) == [CDN]


@pytest.mark.parametrize("header", ["x-checksum-sha256", "x-amz-meta-sha256", "x-amz-checksum-sha256"])
async def test_stores_may_tell_the_hash(place: Place, header: str) -> None:
    """Then it settles what agrees, in hex or in base64."""
    told = base64.b64encode(bytes.fromhex(SHA)).decode() if header == "x-amz-checksum-sha256" else SHA
    place.mirror.host("/lora/m.safetensors", HostedFile(BODY)).twist = Twist(headers={header: told})
    place.second.host("/lora/m.safetensors", HostedFile(BODY)).twist = Twist(
        headers={header: "%%%", "x-goog-meta-sha256": sha256_of(OTHER)}
    )
    sources = place.finder(source=place.mirrored())
    [one] = await found(sources, Wanted("lora", "m.safetensors", sha256=SHA))
    assert (one.url, one.sha256) == (place.mirror.url("/lora/m.safetensors"), SHA)


@pytest.mark.parametrize("told", ["%%%", "c2hvcnQ=", "", f"{base64.b64encode(bytes(32)).decode()}-5"])
def test_a_checksum_that_is_none_is_ignored(told: str) -> None:
    """S3 marks the checksum of an upload in parts, which is not that of the file."""
    assert sha256_of_headers(HeadersOf(200, httpx.Headers({"x-amz-checksum-sha256": told}), "https://x.test/")) is None


async def test_a_hub_that_moved_on_has_not_what_is_wanted(place: Place) -> None:
    """A branch now holds another file than the job's hash says."""
    error = await refused(place.finder(), Wanted("lora", "m.safetensors", url=HF, sha256="f" * 64))
    assert isinstance(error, ModelNotFound)
    assert "holds another file than the one that is wanted" in error.message


async def test_civitai_is_asked_for_the_very_bytes(place: Place) -> None:
    """The hash goes along, so that a version that was taken down is found under another."""
    place.hubs.civitai.versions[12].archived = True
    place.hubs.civitai.versions[40] = Version([File(5, BODY, "again.safetensors")])
    [one] = await found(place.finder(), Wanted("lora", "", url="urn:air:sdxl:lora:civitai:9@12", sha256=SHA))
    assert (one.name, one.source, one.expires) == ("again.safetensors", "civitai.com version 40", True)


async def test_tokens_go_to_their_own_hosts_alone(place: Place) -> None:
    """Neither mirror, store nor the other hub ever sees one, and no URL holds one."""
    place.hubs.hugging_face.tokens = {"hf-secret": {"org/repo"}}
    place.hubs.civitai.tokens = {"civitai-secret"}
    place.mirror.host("/lora/m.safetensors", redirect_to(place.second))
    place.second.host("/moved.safetensors", BODY)
    sources = place.finder(
        source=(place.template,), hf_token=SecretStr("hf-secret"), civitai_token=SecretStr("civitai-secret")
    )
    for url in (HF, "civitai://12"):
        places = await found(sources, Wanted("lora", "m.safetensors", url=url))
        assert len(places) == 2
        assert not any("secret" in one.url + one.source for one in places)
    for server in (place.mirror, place.second, place.hubs.store):
        assert not any("authorization" in request.headers for request in server.requests)
    for hub, token in ((place.hubs.hugging_face, "hf-secret"), (place.hubs.civitai, "civitai-secret")):
        assert hub.requests
        assert all(request.headers["authorization"] == f"Bearer {token}" for request in hub.requests)


def redirect_to(host: ModelHost) -> HostedFile:
    file = HostedFile(b"")
    file.twist = redirect(host.url("/moved.safetensors"))
    return file


@pytest.mark.parametrize(
    "url",
    ["https://huggingface.co/org/repo/resolve/main/m.safetensors", "https://cdn-lfs.huggingface.co/m.safetensors"],
)
async def test_allowed_hosts_and_what_is_below_them(place: Place, url: str) -> None:
    """A job may name the hosts of WORKER_MODELS_HOSTS and their subdomains."""
    assert (await place.finder().completed(Wanted("lora", "m.safetensors", url=url))).name == "m.safetensors"


@pytest.mark.parametrize(
    ("url", "settings", "words"),
    [
        ("https://evil.test/m.safetensors", {}, r"models\.0\.url: 'evil\.test' is none of the hosts .*MODELS_HOSTS"),
        ("https://nothuggingface.co/m.safetensors", {}, "is none of the hosts"),
        ("civitai://12", {"hosts": ("huggingface.co",)}, "'civitai.com' is none"),
        ("s3://secret-bucket/m.safetensors", {"hosts": ("*",)}, "'secret-bucket' is none"),
        ("https://u:p@cdn.test/m.safetensors", {"hosts": ("*",)}, r"models\.0\.url: .*user name and password"),
    ],
)
async def test_other_hosts_are_refused(place: Place, url: str, settings: Any, words: str) -> None:
    """The error names the field and the variable, and comes before anybody is asked."""
    with pytest.raises(UrlForbidden, match=words):
        await place.finder(**settings).completed(Wanted("lora", "m.safetensors", url=url, field="models.0.url"))


async def test_the_operator_names_what_he_likes(place: Place) -> None:
    """His manifest and orders are exempt, and so are the buckets of his templates for jobs."""
    sources = place.finder(source=("s3://models/{kind}/{name}",))
    for url, owner in [("http://10.0.0.1/m.safetensors", Owner.OPERATOR), ("s3://models/a/m.safetensors", Owner.JOB)]:
        places = await found(sources, Wanted("lora", "m.safetensors", url=url, owner=owner))
        assert (places[-1].url, places[-1].owner, places[-1].guarded) == (url, owner, False)


@pytest.mark.parametrize("url", ["ftp://x.test/m.bin", "https://huggingface.co/org/repo", "no url"])
@pytest.mark.parametrize("owner", list(Owner))
async def test_a_url_that_cannot_be_used(place: Place, url: str, owner: Owner) -> None:
    """It is named as the mistake that it is, whoever made it."""
    with pytest.raises(InvalidJob, match=r"^models\.2\.url: "):
        await place.finder().completed(Wanted("lora", "m.bin", url=url, owner=owner, field="models.2.url"))


async def test_what_a_job_names_goes_through_the_guard(place: Place) -> None:
    """Even for the name of the file no private address is visited."""
    wanted = Wanted("lora", "", url=place.mirror.url("/download?id=5"), field="models.0.url")
    error = await refused(place.finder(hosts=("*",), guard=Guard()), wanted)
    assert isinstance(error, UrlForbidden)
    assert error.message == "models.0.url: host '::1' is not public"
    assert not place.mirror.requests


async def test_a_url_without_a_name_is_asked_for_it(place: Place) -> None:
    """By Content-Disposition, made safe; a URL that tells the name is not asked at all."""
    place.mirror.host("/download", HostedFile(BODY, disposition='attachment; filename="../../x y.safetensors"'))
    sources = place.finder(hosts=("*",))
    [one] = await found(sources, Wanted("lora", "", url=place.mirror.url("/download?id=5")))
    assert (one.name, one.size, one.guarded) == ("x y.safetensors", len(BODY), True)
    asked = len(place.mirror.requests)
    [one] = await found(sources, Wanted("lora", "", url=place.mirror.url("/y.safetensors")))
    assert (one.name, len(place.mirror.requests)) == ("y.safetensors", asked)


@pytest.mark.parametrize(
    ("name", "url"),
    [("m.ckpt", CDN), ("m.safetensors", "https://cdn.test/m.pt"), ("", "https://cdn.test/m.bin"), ("m.PTH", HF)],
)
async def test_jobs_may_not_name_pickles(place: Place, name: str, url: str) -> None:
    """They run code when loaded, by whichever name; the error says which variable allows them."""
    wanted = Wanted("lora", name, url=url, sha256=SHA, field="models.0.url")
    error = await refused(place.finder(hosts=("*",)), wanted)
    assert isinstance(error, InvalidJob)
    assert "WORKER_MODELS_ALLOW_PICKLE" in error.message
    assert not place.hubs.hugging_face.requests
    allowed = place.finder(hosts=("*",), allow_pickle=True)
    assert await found(allowed, Wanted("lora", name, url=url))


async def test_pickles_that_only_the_source_names(place: Place) -> None:
    """What Civitai calls the file counts too."""
    place.hubs.civitai.versions[12] = Version([File(3, BODY, "m.ckpt", primary=True)])
    error = await refused(place.finder(), Wanted("lora", "m.safetensors", url="civitai://12"))
    assert isinstance(error, InvalidJob)
    assert "'m.ckpt' is in a format that can run code" in error.message


async def test_the_operators_pickles_need_a_hash(place: Place) -> None:
    """Then whoever else can write to the store cannot put code there."""
    place.mirror.host("/upscaler/u.pth", BODY)
    error = await refused(place.finder(source=(place.template,)), Wanted("upscaler", "u.pth"))
    assert isinstance(error, InvalidJob)
    assert "give its sha256" in error.message
    catalog = place.catalog({"kind": "upscaler", "name": "u.pth", "sha256": SHA})
    [one] = await found(place.finder(source=(place.template,), catalog=catalog), Wanted("upscaler", "u.pth"))
    assert one.url == place.mirror.url("/upscaler/u.pth")


async def test_not_found_only_when_every_source_said_so(place: Place) -> None:
    """A source that is away outweighs all that said no, and a model nobody has is named with what each said."""
    sources = place.finder(source=place.mirrored())
    wanted = Wanted("lora", "m.safetensors", field="models.0")
    error = await refused(sources, wanted)
    assert isinstance(error, ModelNotFound)
    assert error.message.startswith("models.0: lora 'm.safetensors': ")
    assert error.message.count("answered 404") == 2
    place.second.otherwise = Answer(500)
    error = await refused(sources, wanted)
    assert isinstance(error, DownloadFailed)
    assert error.owner is Owner.OPERATOR


async def test_without_any_source_nothing_is_found(place: Place) -> None:
    """And nobody is asked."""
    error = await refused(place.finder(), Wanted("lora", "m.safetensors"))
    assert error.message == "lora 'm.safetensors': no source has it, and no URL is given"


@pytest.mark.parametrize(
    ("url", "words"),
    [(HF, "has no file"), ("civitai://13", "no such version"), ("/gone", "answered 404"), ("/page", "is a page")],
)
async def test_what_a_url_does_not_have(place: Place, url: str, words: str) -> None:
    """The refusal of its own server is what the user reads."""
    place.hubs.hugging_face.repos["org/repo"] = Repo({})
    place.mirror.host("/page", HostedFile(BODY, twist=LOGIN_PAGE))
    whole = place.mirror.url(url) if url.startswith("/") else url
    error = await refused(place.finder(hosts=("*",)), Wanted("lora", "", url=whole))
    assert isinstance(error, ModelNotFound)
    assert words in error.message


async def test_refusals_of_a_jobs_url_are_the_jobs(place: Place) -> None:
    """401 and 403 on a URL that a job gave; on one of the operator's they are his."""
    place.mirror.host("/m", HostedFile(BODY, twist=FORBIDDEN))
    for owner, kind in ((Owner.JOB, ModelForbidden), (Owner.OPERATOR, AuthFailed)):
        error = await refused(place.finder(hosts=("*",)), Wanted("lora", "", url=place.mirror.url("/m"), owner=owner))
        assert isinstance(error, kind)
        assert error.message == f"{place.mirror.url('/m')}: answered 403"


async def test_a_mirror_serves_what_the_hub_refuses(place: Place) -> None:
    """A gated model that the operator keeps a copy of needs no token, as long as the job's hash tells it is that."""
    place.hubs.hugging_face.repos["org/repo"].gated = True
    place.mirror.host("/lora/m.safetensors", BODY)
    sources = place.finder(source=(place.template,))
    wanted = Wanted("lora", "m.safetensors", url=HF, sha256=SHA)
    assert await urls(sources, wanted) == [place.mirror.url("/lora/m.safetensors")]
    assert isinstance(await refused(sources, Wanted("lora", "m.safetensors", url=HF)), ModelForbidden)


async def test_a_broken_source_is_left_alone(place: Place) -> None:
    """Two failures in a row pause it, and it alone; the log tells once."""
    place.mirror.host("/lora/m.safetensors", HostedFile(BODY, twist=BROKEN))
    place.second.host("/lora/m.safetensors", BODY)
    sources, wanted = place.finder(source=place.mirrored()), Wanted("lora", "m.safetensors")
    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(DownloadFailed, match="answered 500"):
                await found(sources, wanted)
        asked = len(place.mirror.requests)
        assert sources.paused == {place.template: "download_failed"}
        async for one in sources.locations(wanted):
            assert one.url.startswith(place.second.url(""))
            break
        error = await refused(sources, wanted)
    assert (len(place.mirror.requests), error.retry_after is not None) == (asked, True)
    assert [line["source"] for line in lines if line["event"] == "model_source_paused"] == [place.template]


async def test_refused_credentials_pause_at_once(place: Place) -> None:
    """A 403 of an operator's source is no fault of any job, and does not pass by asking again."""
    place.mirror.otherwise = Answer(403)
    sources = place.finder(source=(place.template,))
    for _ in range(2):
        assert isinstance(await refused(sources, Wanted("lora", "m.safetensors")), AuthFailed)
    assert len(place.mirror.requests) == 1
    assert sources.paused == {place.template: "auth_failed"}


async def test_one_gated_model_does_not_pause_its_hub(place: Place) -> None:
    """For want of a token that model alone is left alone."""
    place.hubs.hugging_face.repos["shut/repo"] = Repo({"m.safetensors": BODY}, gated=True)
    sources = place.finder()
    shut = Wanted("lora", "m.safetensors", url="hf://shut/repo/m.safetensors", owner=Owner.OPERATOR)
    assert isinstance(await refused(sources, shut), AuthFailed)
    assert set(sources.paused) == {"huggingface.co/shut/repo/m.safetensors"}
    assert await found(sources, Wanted("lora", "m.safetensors", url=HF, owner=Owner.OPERATOR))


async def test_what_jobs_name_pauses_nothing(place: Place) -> None:
    """However often a job's own URL fails."""
    place.mirror.otherwise = Answer(500)
    sources = place.finder(hosts=("*",))
    for _ in range(3):
        error = await refused(sources, Wanted("lora", "", url=place.mirror.url("/x?y=1")))
        assert isinstance(error, DownloadFailed)
        assert error.owner is Owner.JOB
    assert sources.paused == {}


async def test_a_catalogue_that_is_away(place: Place) -> None:
    """A model is not missing because the list of models is; what has its own URL is found all the same."""
    place.mirror.otherwise = Answer(500)
    sources = place.finder(catalog=place.mirror.url("/catalog.json"))
    error = await refused(sources, Wanted("lora", "m.safetensors"))
    assert isinstance(error, DownloadFailed)
    assert "catalog.json" in error.message
    assert await found(sources, Wanted("lora", "m.safetensors", url=HF))
    wanted = Wanted("lora", "m.safetensors")
    assert await sources.completed(wanted) == wanted


async def test_completing_asks_no_server(place: Place) -> None:
    """Name, hash and size come from the catalogue and the URL alone."""
    catalog = place.catalog(
        {"kind": "lora", "name": "sub/m.safetensors", "url": HF, "sha256": SHA, "size": 9},
        {"kind": "lora", "name": "n.safetensors", "url": CDN, "size": 5},
    )
    sources = place.finder(catalog=catalog, source=(place.template,), hosts=("*",))

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
    assert not place.mirror.requests + place.hubs.civitai.requests + place.hubs.hugging_face.requests


async def test_a_bucket_is_looked_at_where_there_is_a_way(place: Place) -> None:
    """The store tells whether a key is there; without a way to ask, the place is offered unseen."""
    asked: list[tuple[str, Owner]] = []

    async def look(url: str, owner: Owner) -> Location:
        asked.append((url, owner))
        if "none" in url:
            raise ModelNotFound("no such key")
        return Location(url, url, size=7)

    template = ("s3://models/{kind}/{name}",)
    sources = place.finder(source=template, look_at_s3=look)
    [one] = await found(sources, Wanted("lora", "a b.safetensors"))
    assert (one.url, one.size) == ("s3://models/lora/a b.safetensors", 7)
    assert isinstance(await refused(sources, Wanted("lora", "none.safetensors")), ModelNotFound)
    assert asked[0] == (one.url, Owner.OPERATOR)
    [unseen] = await found(place.finder(source=template), Wanted("lora", "a.safetensors"))
    assert (unseen.url, unseen.size, unseen.guarded) == ("s3://models/lora/a.safetensors", None, False)

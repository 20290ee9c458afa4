"""What may not be fetched and by whom it was named, and what it means that a source is away; over real servers."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from structlog.testing import capture_logs

from tests.support.finding import BODY, CDN, HF, SHA, Sites, found, refused, running_sites, urls
from tests.support.hubs import File, Repo, Version
from tests.support.model_host import BROKEN, LOGIN_PAGE, HostedFile, Twist
from tests.support.receiver import Answer
from worker.errors import (
    AuthFailed,
    DownloadFailed,
    InvalidJob,
    ModelForbidden,
    ModelNotFound,
    Owner,
    UrlForbidden,
)
from worker.models.base import Wanted
from worker.urls import Guard


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with running_sites(tmp_path) as sites:
        yield sites


@pytest.mark.parametrize(
    "url",
    ["https://huggingface.co/org/repo/resolve/main/m.safetensors", "https://cdn-lfs.huggingface.co/m.safetensors"],
)
async def test_allowed_hosts_and_what_is_below_them(sites: Sites, url: str) -> None:
    """A job may name the hosts of WORKER_MODELS_HOSTS and their subdomains."""
    assert (await sites.finder().completed(Wanted("lora", "m.safetensors", url=url))).name == "m.safetensors"


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
async def test_other_hosts_are_refused(sites: Sites, url: str, settings: Any, words: str) -> None:
    """The error names the field and the variable, and comes before anybody is asked."""
    with pytest.raises(UrlForbidden, match=words):
        await sites.finder(**settings).completed(Wanted("lora", "m.safetensors", url=url, field="models.0.url"))


async def test_the_operator_names_what_he_likes(sites: Sites) -> None:
    """His manifest and orders are exempt, and so are the buckets of his templates for jobs."""
    sources = sites.finder(source=("s3://models/{kind}/{name}",))
    for url, owner in [("http://10.0.0.1/m.safetensors", Owner.OPERATOR), ("s3://models/a/m.safetensors", Owner.JOB)]:
        places = await found(sources, Wanted("lora", "m.safetensors", url=url, owner=owner))
        assert (places[-1].url, places[-1].owner, places[-1].guarded) == (url, owner, False)


@pytest.mark.parametrize("url", ["ftp://x.test/m.bin", "https://huggingface.co/org/repo", "no url"])
@pytest.mark.parametrize("owner", list(Owner))
async def test_a_url_that_cannot_be_used(sites: Sites, url: str, owner: Owner) -> None:
    """It is named as the mistake that it is, whoever made it."""
    with pytest.raises(InvalidJob, match=r"^models\.2\.url: "):
        await sites.finder().completed(Wanted("lora", "m.bin", url=url, owner=owner, field="models.2.url"))


async def test_what_a_job_names_goes_through_the_guard(sites: Sites) -> None:
    """Even for the name of the file no private address is visited."""
    wanted = Wanted("lora", "", url=sites.mirror.url("/download?id=5"), field="models.0.url")
    error = await refused(sites.finder(hosts=("*",), guard=Guard()), wanted)
    assert isinstance(error, UrlForbidden)
    assert error.message == "models.0.url: host '::1' is not public"
    assert not sites.mirror.requests


async def test_a_url_without_a_name_is_asked_for_it(sites: Sites) -> None:
    """By Content-Disposition, made safe; a URL that tells the name is not asked at all."""
    sites.mirror.host("/download", HostedFile(BODY, disposition='attachment; filename="../../x y.safetensors"'))
    sources = sites.finder(hosts=("*",))
    [one] = await found(sources, Wanted("lora", "", url=sites.mirror.url("/download?id=5")))
    assert (one.name, one.size, one.guarded) == ("x y.safetensors", len(BODY), True)
    asked = len(sites.mirror.requests)
    [one] = await found(sources, Wanted("lora", "", url=sites.mirror.url("/y.safetensors")))
    assert (one.name, len(sites.mirror.requests)) == ("y.safetensors", asked)


@pytest.mark.parametrize(
    ("name", "url"),
    [
        ("m.ckpt", CDN),
        ("m.safetensors", "https://cdn.test/m.pt"),
        ("", "https://cdn.test/m.bin"),
        ("m.PTH", HF),
        ("m.fooocus.patch", "https://cdn.test/m.fooocus.patch"),
    ],
)
async def test_jobs_may_not_name_pickles(sites: Sites, name: str, url: str) -> None:
    """They run code when loaded, by whichever name; the error says which variable allows them."""
    wanted = Wanted("lora", name, url=url, sha256=SHA, field="models.0.url")
    error = await refused(sites.finder(hosts=("*",)), wanted)
    assert isinstance(error, InvalidJob)
    assert "WORKER_MODELS_ALLOW_PICKLE" in error.message
    assert not sites.hubs.hugging_face.requests
    allowed = sites.finder(hosts=("*",), allow_pickle=True)
    assert await found(allowed, Wanted("lora", name, url=url))


async def test_pickles_that_only_the_source_names(sites: Sites) -> None:
    """What Civitai calls the file counts too."""
    sites.hubs.civitai.versions[12] = Version([File(3, BODY, "m.ckpt", primary=True)])
    error = await refused(sites.finder(), Wanted("lora", "m.safetensors", url="civitai://12"))
    assert isinstance(error, InvalidJob)
    assert "'m.ckpt' is in a format that can run code" in error.message


async def test_the_operators_pickles_need_a_hash(sites: Sites) -> None:
    """Then whoever else can write to the store cannot put code there."""
    sites.mirror.host("/upscaler/u.pth", BODY)
    error = await refused(sites.finder(source=(sites.template,)), Wanted("upscaler", "u.pth"))
    assert isinstance(error, InvalidJob)
    assert "give its sha256" in error.message
    catalog = sites.catalog({"kind": "upscaler", "name": "u.pth", "sha256": SHA})
    [one] = await found(sites.finder(source=(sites.template,), catalog=catalog), Wanted("upscaler", "u.pth"))
    assert one.url == sites.mirror.url("/upscaler/u.pth")


async def test_not_found_only_when_every_source_said_so(sites: Sites) -> None:
    """A source that is away outweighs all that said no, and a model nobody has is named with what each said."""
    sources = sites.finder(source=sites.mirrored())
    wanted = Wanted("lora", "m.safetensors", field="models.0")
    error = await refused(sources, wanted)
    assert isinstance(error, ModelNotFound)
    assert error.message.startswith("models.0: lora 'm.safetensors': ")
    assert error.message.count("answered 404") == 2
    sites.second.otherwise = Answer(500)
    error = await refused(sources, wanted)
    assert isinstance(error, DownloadFailed)
    assert error.owner is Owner.OPERATOR


async def test_without_any_source_nothing_is_found(sites: Sites) -> None:
    """And nobody is asked."""
    error = await refused(sites.finder(), Wanted("lora", "m.safetensors"))
    assert error.message == "lora 'm.safetensors': no source has it, and no URL is given"


@pytest.mark.parametrize(
    ("url", "words"),
    [(HF, "has no file"), ("civitai://13", "no such version"), ("/gone", "answered 404"), ("/page", "is a page")],
)
async def test_what_a_url_does_not_have(sites: Sites, url: str, words: str) -> None:
    """The refusal of its own server is what the user reads."""
    sites.hubs.hugging_face.repos["org/repo"] = Repo({})
    sites.mirror.host("/page", HostedFile(BODY, twist=LOGIN_PAGE))
    whole = sites.mirror.url(url) if url.startswith("/") else url
    error = await refused(sites.finder(hosts=("*",)), Wanted("lora", "", url=whole))
    assert isinstance(error, ModelNotFound)
    assert words in error.message


async def test_refusals_of_a_jobs_url_are_the_jobs(sites: Sites) -> None:
    """401 and 403 on a URL that a job gave, whatever signature it holds; on one of the operator's they are his."""
    bad = Twist(403, {}, b"<Error><Code>SignatureDoesNotMatch</Code></Error>")
    sites.mirror.host("/m", HostedFile(BODY, twist=bad))
    for owner, kind in ((Owner.JOB, ModelForbidden), (Owner.OPERATOR, AuthFailed)):
        error = await refused(sites.finder(hosts=("*",)), Wanted("lora", "", url=sites.mirror.url("/m"), owner=owner))
        assert isinstance(error, kind)
        assert error.message == f"{sites.mirror.url('/m')}: answered 403 SignatureDoesNotMatch"


async def test_a_mirror_serves_what_the_hub_refuses(sites: Sites) -> None:
    """A gated model that the operator keeps a copy of needs no token, as long as the job's hash tells it is that."""
    sites.hubs.hugging_face.repos["org/repo"].gated = True
    sites.mirror.host("/lora/m.safetensors", BODY)
    sources = sites.finder(source=(sites.template,))
    wanted = Wanted("lora", "m.safetensors", url=HF, sha256=SHA)
    assert await urls(sources, wanted) == [sites.mirror.url("/lora/m.safetensors")]
    assert isinstance(await refused(sources, Wanted("lora", "m.safetensors", url=HF)), ModelForbidden)


async def test_a_broken_source_is_left_alone(sites: Sites) -> None:
    """Two failures in a row pause it, and it alone; the log tells once."""
    sites.mirror.host("/lora/m.safetensors", HostedFile(BODY, twist=BROKEN))
    sites.second.host("/lora/m.safetensors", BODY)
    sources, wanted = sites.finder(source=sites.mirrored()), Wanted("lora", "m.safetensors")
    with capture_logs() as lines:
        for _ in range(2):
            with pytest.raises(DownloadFailed, match="answered 500"):
                await found(sources, wanted)
        asked = len(sites.mirror.requests)
        assert sources.paused == {sites.template: "download_failed"}
        async for one in sources.locations(wanted):
            assert one.url.startswith(sites.second.url(""))
            break
        error = await refused(sources, wanted)
    assert (len(sites.mirror.requests), error.retry_after is not None) == (asked, True)
    assert [line["source"] for line in lines if line["event"] == "model_source_paused"] == [sites.template]


async def test_refused_credentials_pause_at_once(sites: Sites) -> None:
    """A 401 of an operator's source is no fault of any job, and does not pass by asking again."""
    sites.mirror.otherwise = Answer(401)
    sources = sites.finder(source=(sites.template,))
    for _ in range(2):
        assert isinstance(await refused(sources, Wanted("lora", "m.safetensors")), AuthFailed)
    assert len(sites.mirror.requests) == 1
    assert sources.paused == {sites.template: "auth_failed"}


async def test_a_forbidden_file_pauses_that_file(sites: Sites) -> None:
    """Stores answer 403 for what is not there: jobs that ask for it must not shut the source for others."""
    sites.mirror.otherwise = Answer(403)
    sites.mirror.host("/lora/good.safetensors", BODY)
    sources = sites.finder(source=(sites.template,))
    for _ in range(2):
        assert isinstance(await refused(sources, Wanted("lora", "m.safetensors")), AuthFailed)
    assert sources.paused == {sites.mirror.url("/lora/m.safetensors"): "auth_failed"}
    assert await found(sources, Wanted("lora", "good.safetensors"))
    assert len(sites.mirror.requests) == 2


async def test_one_gated_model_does_not_pause_its_hub(sites: Sites) -> None:
    """For want of a token that model alone is left alone."""
    sites.hubs.hugging_face.repos["shut/repo"] = Repo({"m.safetensors": BODY}, gated=True)
    sources = sites.finder()
    shut = Wanted("lora", "m.safetensors", url="hf://shut/repo/m.safetensors", owner=Owner.OPERATOR)
    assert isinstance(await refused(sources, shut), AuthFailed)
    assert set(sources.paused) == {"huggingface.co/shut/repo/m.safetensors"}
    assert await found(sources, Wanted("lora", "m.safetensors", url=HF, owner=Owner.OPERATOR))


async def test_what_jobs_name_pauses_nothing(sites: Sites) -> None:
    """However often a job's own URL fails."""
    sites.mirror.otherwise = Answer(500)
    sources = sites.finder(hosts=("*",))
    for _ in range(3):
        error = await refused(sources, Wanted("lora", "", url=sites.mirror.url("/x?y=1")))
        assert isinstance(error, DownloadFailed)
        assert error.owner is Owner.JOB
    assert sources.paused == {}


async def test_a_catalogue_that_is_away(sites: Sites) -> None:
    """A model is not missing because the list of models is; what has its own URL is found all the same."""
    sites.mirror.otherwise = Answer(500)
    sources = sites.finder(catalog=sites.mirror.url("/catalog.json"))
    error = await refused(sources, Wanted("lora", "m.safetensors"))
    assert isinstance(error, DownloadFailed)
    assert "catalog.json" in error.message
    assert await found(sources, Wanted("lora", "m.safetensors", url=HF))
    wanted = Wanted("lora", "m.safetensors")
    assert await sources.completed(wanted) == wanted

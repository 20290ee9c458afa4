"""Credentials that came with a request, at the hubs and everywhere else: whom they are shown, and what they open."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from pydantic import TypeAdapter, ValidationError

from tests.support.finding import BODY, HF, SHA, Sites, found, refused, running_sites
from tests.support.model_host import redirect
from worker.errors import DownloadFailed, InvalidJob, ModelForbidden, Owner, UrlForbidden
from worker.models.auth import AnyAuth, Auth, Credential
from worker.models.base import Wanted
from worker.models.identity import identity
from worker.wants import lent

CIVITAI = "https://civitai.com/api/download/models/12"
_AUTHS: TypeAdapter[Auth] = TypeAdapter(AnyAuth)


def auth(type: str, **fields: str) -> Auth:
    return _AUTHS.validate_python({"type": type, **fields})


def bearer(token: str) -> Auth:
    return auth("bearer", token=token)


def wanted(url: str, given: Auth | None, name: str = "") -> Wanted:
    return Wanted("checkpoint", name, url, field="workflow.4.inputs.ckpt_name", auth=given)


@pytest.fixture
async def sites(tmp_path: Path) -> AsyncIterator[Sites]:
    async with running_sites(tmp_path) as sites:
        yield sites


async def test_a_gated_file_of_hugging_face_is_remembered_for_its_token_alone(sites: Sites) -> None:
    """Who asks a second later with another token, or with none, is not given what was remembered for the first."""
    hub = sites.hubs.hugging_face
    hub.repos["org/repo"].gated = True
    hub.tokens = {"ann": {"org/repo"}, "bob": set()}
    sources = sites.finder()
    [place] = await found(sources, wanted(HF, bearer("ann")))
    assert (place.sha256, place.headers) == (SHA, {"authorization": "Bearer ann"})
    assert place.guarded
    for other in (bearer("bob"), bearer("eve"), None):
        assert isinstance(await refused(sources, wanted(HF, other)), ModelForbidden)
    asked = len(hub.requests)
    assert [place] == await found(sources, wanted(HF, bearer("ann")))
    assert len(hub.requests) == asked


async def test_the_operators_token_is_not_sent_in_place_of_the_requests(sites: Sites) -> None:
    """A request's token that is refused is the request's fault, and said to be its own."""
    hub = sites.hubs.hugging_face
    hub.repos["org/repo"].gated = True
    hub.tokens = {"operators": {"org/repo"}, "bob": set()}
    sources = sites.finder(hf_token="operators")
    error = await refused(sources, wanted(HF, bearer("bob")))
    assert isinstance(error, ModelForbidden)
    assert "token that came with the request" in error.message
    assert [one.headers.get("authorization") for one in hub.requests] == ["Bearer bob"]


@pytest.mark.parametrize("given", [bearer("good"), auth("query", query_param="token", query_value="good")])
async def test_civitai_is_shown_a_token_that_its_store_is_not(sites: Sites, given: Auth) -> None:
    """Whether it came as a bearer token or as Civitai writes it into its URLs."""
    hub = sites.hubs.civitai
    hub.versions[12].login = True
    hub.tokens = {"good"}
    [place] = await found(sites.finder(), wanted(CIVITAI, given))
    assert (place.sha256, place.headers) == (SHA, {})
    assert place.auth is not None
    assert place.auth.address(place.url) == place.url
    assert isinstance(await refused(sites.finder(), wanted(CIVITAI, bearer("bad"))), ModelForbidden)


@pytest.mark.parametrize(
    ("url", "given"),
    [
        (HF, auth("basic", username="a", password="b")),
        (HF, auth("query", query_param="token", query_value="x")),
        (CIVITAI, auth("header", header_name="x-key", header_value="x")),
        (CIVITAI, auth("query", query_param="key", query_value="x")),
        ("s3://bucket/m.safetensors", bearer("x")),
        ("s3://bucket/m.safetensors", auth("query", query_param="sig", query_value="x")),
        ("https://huggingface.co/m.safetensors", auth("s3", access_key_id="a", secret_access_key="b")),
    ],
)
async def test_credentials_that_cannot_open_a_url_are_refused(sites: Sites, url: str, given: Auth) -> None:
    """Kept back, they would have the file refused for want of any."""
    with pytest.raises(InvalidJob, match=r"workflow\.4\.inputs\.ckpt_name: ") as error:
        await found(sites.finder(hosts="*"), wanted(url, given))
    assert "'x'" not in error.value.message


@pytest.mark.parametrize(
    ("hosts", "endpoint", "is_allowed"),
    [
        ("huggingface.co", None, False),
        ("amazonaws.com", None, True),
        ("huggingface.co", "https://s3.elsewhere.example", False),
        ("elsewhere.example", "https://s3.elsewhere.example/", True),
        ("bucket", "https://s3.elsewhere.example", True),
        ("*", "ftp://s3.elsewhere.example", False),
    ],
)
async def test_the_store_of_a_requests_keys_is_a_host_as_any_other(
    sites: Sites, hosts: str, endpoint: str | None, is_allowed: bool
) -> None:
    """The operator says which hosts a job may name; a bucket that he lists may be anywhere."""
    keys = {"access_key_id": "a", "secret_access_key": "b", **({"endpoint": endpoint} if endpoint else {})}
    asked = wanted("s3://bucket/m.safetensors", auth("s3", **keys))
    sources = sites.finder(hosts=hosts)
    if not is_allowed:
        assert isinstance(await refused(sources, asked), UrlForbidden)
        return
    [place] = await found(sources, asked)
    assert (place.guarded, place.headers) == (True, {})


async def test_a_nameless_file_is_looked_for_no_further_than_some_redirects(sites: Sites) -> None:
    sites.mirror.host("/loop", BODY).twist = redirect(sites.mirror.url("/loop"))
    error = await refused(sites.finder(hosts="*"), wanted(sites.mirror.url("/loop"), bearer("x")))
    assert isinstance(error, DownloadFailed)
    assert "redirects too often" in error.message


def test_credentials_are_part_of_what_a_url_means() -> None:
    """The same URL is another model for others, unless its hash is known; of the secret itself nothing shows."""
    url = "https://cdn.test/m.safetensors"
    names = [identity(wanted(url, given)) for given in (None, bearer("hush"), bearer("other"), bearer("hush"))]
    assert names[1] == names[3]
    assert len(set(names)) == 3
    assert not any("hush" in name for name in names)
    hashed = {identity(replace(wanted(url, given), sha256="a" * 64)) for given in (None, bearer("hush"))}
    assert len(hashed) == 1


def test_credentials_are_lent_to_what_the_job_itself_names() -> None:
    """By the first pattern that fits; what the operator's sources give is opened by the operator's own."""
    mine = Credential(url_pattern="https://cdn.test/*", auth=bearer("mine"))
    later = Credential(url_pattern="**", auth=bearer("later"))
    url, other = "https://cdn.test/m.safetensors", "https://cdn.test/deep/m.safetensors"
    asked = [
        wanted(url, None),
        wanted(other, None),
        Wanted("lora", "by-name"),
        Wanted("vae", "v", url, owner=Owner.OPERATOR),
    ]
    assert [one.auth for one in lent(asked, [mine, later])] == [mine.auth, later.auth, None, None]
    assert lent(asked, ()) == tuple(asked)


@pytest.mark.parametrize(
    "given",
    [
        {"type": "bearer", "token": "two\r\nlines"},
        {"type": "bearer", "token": ""},
        {"type": "bearer", "token": "x", "more": "y"},
        {"type": "basic", "username": "a:b", "password": "c"},
        {"type": "header", "header_name": "Range", "header_value": "bytes=0-"},
        {"type": "header", "header_name": "bad name", "header_value": "x"},
        {"type": "s3", "access_key_id": "a", "secret_access_key": "b", "region": "../x"},
        {"type": "digest"},
    ],
)
def test_credentials_that_could_not_be_sent_are_refused(given: dict[str, Any]) -> None:
    """Without any of them in the message."""
    with pytest.raises(ValidationError) as error:
        Credential.model_validate({"url_pattern": "**", "auth": given})
    assert "two" not in str(error.value)


def test_a_parameter_of_the_query_is_replaced() -> None:
    """Whatever the URL had for it before; everything else stays, a fragment does not."""
    given = auth("query", query_param="sig", query_value="a/b+c")
    assert given.address("https://x/m?v=1&sig=old&empty=#top") == "https://x/m?v=1&empty=&sig=a%2Fb%2Bc"

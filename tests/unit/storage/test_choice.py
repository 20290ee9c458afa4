"""Which place a job's images go to, and which settings cannot work."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import httpx
import pytest

from tests.support.s4 import Tokens
from tests.support.storage import AT, a_job, a_result, an_artifact
from worker import http
from worker.clock import CorrectedClock, SystemClock
from worker.errors import ConfigError, InvalidJob, UrlForbidden
from worker.settings import load_settings
from worker.settings.storage import StorageSettings
from worker.storage import Storages, account_of, open_storage
from worker.storage.s4 import Account
from worker.urls import Guard

ON_SALAD = {"SALAD_MACHINE_ID": "machine-7", "SALAD_CONTAINER_GROUP_ID": "group-3"}


@pytest.fixture
async def client() -> AsyncIterator[httpx.AsyncClient]:
    async with http.client() as client:
        yield client


def _opened(client: httpx.AsyncClient, *, account: Account | None = None, **settings: Any) -> Storages:
    return open_storage(
        StorageSettings(**settings),
        client=client,
        guard=Guard(),
        clock=CorrectedClock(SystemClock()),
        rng=random.Random(1),
        account=account,
    )


@pytest.mark.parametrize(
    ("settings", "kind"),
    [
        ({}, "directory"),
        ({"bucket": "images"}, "s3"),
        ({"bucket": "images", "kind": "inline"}, "inline"),
        ({"kind": "presigned"}, "presigned"),
        ({"kind": "directory", "bucket": "images"}, "directory"),
    ],
)
async def test_the_operators_default(client: httpx.AsyncClient, settings: dict[str, Any], kind: str) -> None:
    """``auto`` is s3 when a bucket is set, else the directory."""
    storages = _opened(client, **settings)
    assert storages.default.name == storages.of(a_job()).name == kind
    await storages.aclose()


@pytest.mark.parametrize(
    ("output", "kind"),
    [
        ({"storage": "inline"}, "inline"),
        ({"storage": "s3"}, "s3"),
        ({"upload_urls": ["https://store.example/1"]}, "presigned"),
        ({"storage": "presigned", "upload_urls": ["https://store.example/1"]}, "presigned"),
    ],
)
async def test_a_job_may_choose(client: httpx.AsyncClient, output: dict[str, Any], kind: str) -> None:
    """Among what is configured; URLs alone say presigned."""
    storages = _opened(client, bucket="images")
    assert storages.of(a_job(**output)).name == kind
    await storages.aclose()


@pytest.mark.parametrize(
    ("output", "field", "says"),
    [
        ({"storage": "s3"}, "output.storage", "s3 is not configured here"),
        ({"storage": "s4"}, "output.storage", "s4 is not configured here"),
        ({"storage": "directory"}, "output.storage", "directory is not configured here"),
        ({"storage": "inline", "upload_urls": ["https://a.example/1"]}, "output.upload_urls", "not for inline"),
        (
            {"result_urls": {"put": "https://a.example/r", "get": "https://a.example/r"}},
            "output.result_urls",
            "not for inline",
        ),
    ],
)
async def test_a_job_that_chooses_what_is_not_there(
    client: httpx.AsyncClient, output: dict[str, Any], field: str, says: str
) -> None:
    """It is refused with the field's name, before the GPU."""
    storages = _opened(client, kind="inline")
    with pytest.raises(InvalidJob, match=says) as caught:
        storages.of(a_job(**output))
    assert caught.value.errors[0].field == field
    await storages.aclose()


@pytest.mark.parametrize(
    "environ",
    [
        {"SALAD_ORGANIZATION_NAME": "acme"},
        {"WORKER_PLATFORM": "salad"},
        {"WORKER_PLATFORM": "plain", **ON_SALAD, "SALAD_ORGANIZATION_NAME": "acme"},
    ],
)
async def test_s4_elsewhere_is_named_at_start(client: httpx.AsyncClient, environ: dict[str, str]) -> None:
    """It takes SaladCloud, which vouches for the node, and the organization's name."""
    account = account_of(load_settings(environ), Tokens())
    assert account is None
    with pytest.raises(ConfigError) as caught:
        _opened(client, kind="s4", account=account)
    assert [mistake.field for mistake in caught.value.mistakes] == ["WORKER_STORAGE"]


async def test_s4_is_the_organizations_of_the_node(client: httpx.AsyncClient) -> None:
    """At the address of the service, and only where the operator chose it."""
    environ = {**ON_SALAD, "SALAD_ORGANIZATION_NAME": "acme"}
    account = account_of(load_settings(environ), Tokens())
    assert account is not None
    assert (account.organization, account.url) == ("acme", "https://storage-api.salad.com")
    storages = _opened(client, kind="s4", account=account)
    assert storages.of(a_job()).name == storages.of(a_job(storage="s4")).name == "s4"
    assert [archive.name for archive in storages.archives] == ["s4"]
    await storages.aclose()
    unchosen = _opened(client, kind="inline", account=account)
    with pytest.raises(InvalidJob, match="s4 is not configured here"):
        unchosen.of(a_job(storage="s4"))
    await unchosen.aclose()


async def test_a_directory_that_is_set_may_be_chosen(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """Also beside a bucket."""
    storages = _opened(client, bucket="images", directory=tmp_path)
    assert storages.of(a_job(storage="directory")).name == "directory"
    await storages.aclose()


async def test_s3_without_a_bucket_is_named_at_start(client: httpx.AsyncClient) -> None:
    """Not at the first job."""
    with pytest.raises(ConfigError) as caught:
        _opened(client, kind="s3")
    assert [mistake.field for mistake in caught.value.mistakes] == ["WORKER_S3_BUCKET"]


@pytest.mark.parametrize(
    ("output", "images", "error", "says"),
    [
        ({}, 1, InvalidJob, "1 outputs need as many URLs, 0 are given"),
        ({"upload_urls": ["https://a.example/1"]}, 2, InvalidJob, "2 outputs need as many URLs, 1 are given"),
        ({"upload_urls": ["https://a.example/1"] * 2}, 1, InvalidJob, "twice"),
        ({"upload_urls": ["file:///etc/passwd"]}, 1, UrlForbidden, "upload_urls.0"),
        (
            {
                "upload_urls": ["https://a.example/1"],
                "result_urls": {"put": "ftp://a.example/r", "get": "https://a.example/r"},
            },
            1,
            UrlForbidden,
            "result_urls.put",
        ),
    ],
)
async def test_urls_that_cannot_work_are_refused_before_the_gpu(
    client: httpx.AsyncClient, output: dict[str, Any], images: int, error: type[Exception], says: str
) -> None:
    """Too few, twice the same, or of another scheme."""
    storages = _opened(client, kind="presigned")
    job = a_job(**output)
    with pytest.raises(error, match=says):
        storages.of(job).accepts(job, images)
    await storages.aclose()


async def test_urls_that_can_work_are_accepted(client: httpx.AsyncClient) -> None:
    """More than are needed do no harm."""
    storages = _opened(client, kind="presigned")
    job = a_job(
        upload_urls=["https://a.example/1", "https://a.example/2"],
        result_urls={"put": "https://a.example/r", "get": "https://a.example/r"},
    )
    storages.of(job).accepts(job, 1)
    await storages.aclose()


async def test_only_with_urls_for_it_a_presigned_success_stands(client: httpx.AsyncClient) -> None:
    """A job without them is settled once, with whatever this delivery made."""
    storages = _opened(client, kind="presigned")
    job = a_job(upload_urls=["https://a.example/1"])
    storage = storages.of(job)
    assert (storage.marks(job), await storage.find_mark(job)) == (False, None)
    assert await storage.put_mark(job, a_result(job)) == a_result(job)
    await storages.aclose()


async def test_purge_and_check_reach_the_operators_place(client: httpx.AsyncClient, tmp_path: Path) -> None:
    """However it was chosen."""
    storages = _opened(client, directory=tmp_path / "outputs", keep="1h")
    image = await storages.default.put_artifact(a_job(), an_artifact())
    assert str(tmp_path) in await storages.check()
    await storages.purge(AT + timedelta(days=10_000))
    assert image.key is not None
    assert not list((tmp_path / "outputs").rglob("*.png"))
    await storages.aclose()

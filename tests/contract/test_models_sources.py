"""The ways to a model's bytes beside plain HTTP: TLS, proxies, S3, a cap on bandwidth, a disk that is full."""

from __future__ import annotations

import asyncio
import contextlib
import resource
import ssl
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.support.fetching import BODY, KIB, Rig, made, rigged
from tests.support.model_host import HostedFile, ModelHost, redirect
from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY, Bucket, set_credentials
from tests.unit.test_urls import tls_pair
from worker import http
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, DiskFull, DownloadFailed, ModelNotFound
from worker.models.partial import read_record, sidecar_of
from worker.models.s3source import S3Links

pytest_plugins = ("tests.support.s3_fixtures",)

HOST = "files.example"


class Tunnel:
    """A proxy that connects wherever it is asked to, to one server in truth."""

    def __init__(self, port: int, status: int = 200) -> None:
        self.heads: list[str] = []
        self._behind = port
        self._status = status
        self._pipes: set[asyncio.Task[None]] = set()

    @contextlib.asynccontextmanager
    async def open(self) -> AsyncIterator[str]:
        server = await asyncio.start_server(self._serve, "::1", 0)
        try:
            yield f"http://me:secret@[::1]:{server.sockets[0].getsockname()[1]}"
        finally:
            server.close()
            for pipe in self._pipes:
                pipe.cancel()
            await asyncio.gather(*self._pipes, return_exceptions=True)
            await server.wait_closed()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._pipes.add(task)
        self.heads.append((await reader.readuntil(b"\r\n\r\n")).decode())
        writer.write(f"HTTP/1.1 {self._status} Said\r\n\r\n".encode())
        await writer.drain()
        if self._status == 200:
            behind = await asyncio.open_connection("::1", self._behind)
            with contextlib.suppress(ConnectionError):
                await asyncio.gather(_pipe(reader, behind[1]), _pipe(behind[0], writer))
        writer.close()


async def _pipe(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    try:
        while data := await reader.read(65536):
            writer.write(data)
            await writer.drain()
    finally:
        writer.close()


@pytest.fixture
def trusted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ssl.SSLContext:
    """The context of a TLS server that our clients trust under the name `HOST`."""
    server, client = tls_pair(HOST, tmp_path)
    monkeypatch.setattr(http, "tls", lambda: client)
    return server


@pytest.fixture
def proxied(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY"):
        monkeypatch.delenv(name, raising=False)
        monkeypatch.delenv(name.lower(), raising=False)
    return monkeypatch


async def test_tls_through_the_proxy_of_the_environment(
    tmp_path: Path, trusted: ssl.SSLContext, proxied: pytest.MonkeyPatch
) -> None:
    """An https URL goes through a tunnel, verified end to end; the proxy gets its own credentials and no token."""
    async with rigged(tmp_path) as rig, ModelHost(trusted) as secure:
        file = secure.host("/m", HostedFile(BODY, token="mine"))
        tunnel = Tunnel(secure.port)
        async with tunnel.open() as proxy:
            proxied.setenv("HTTPS_PROXY", proxy)
            location = rig.at(url=f"https://{HOST}/m", headers={"authorization": "Bearer mine"})
            rig.arrived(await rig.fetch(location))
    assert {head.partition("\r\n")[0] for head in tunnel.heads} == {f"CONNECT {HOST}:443 HTTP/1.1"}
    assert all("proxy-authorization: Basic" in head and "Bearer" not in head for head in tunnel.heads)
    assert all("proxy-authorization" not in request.headers for request in file.requests)


async def test_a_certificate_for_another_name_is_refused(
    tmp_path: Path, trusted: ssl.SSLContext, proxied: pytest.MonkeyPatch
) -> None:
    """No byte is asked for from a server that cannot prove its name."""
    async with rigged(tmp_path) as rig, ModelHost(trusted) as secure:
        file = secure.host("/m", BODY)
        with pytest.raises(DownloadFailed, match="certificate is not valid"):
            await rig.fetch(rig.at(url=secure.url("/m")))
    assert file.requests == []


async def test_a_server_that_speaks_no_tls_is_told(rig_of_loopback: Rig) -> None:
    """An https URL of a server that hangs up at what it does not understand."""
    rig = rig_of_loopback

    def hang_up(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.close()

    async with await asyncio.start_server(hang_up, "::1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(DownloadFailed, match="no TLS"):
            await rig.fetch(rig.at(url=f"https://[::1]:{port}/m"))


async def test_a_redirect_away_from_https_is_not_followed(
    tmp_path: Path, trusted: ssl.SSLContext, proxied: pytest.MonkeyPatch
) -> None:
    """What began encrypted stays so."""
    async with rigged(tmp_path) as rig, ModelHost(trusted) as secure:
        plain = rig.host.host("/m", BODY)
        secure.host("/m", HostedFile(BODY, twist=redirect(rig.host.url("/m"))))
        async with Tunnel(secure.port).open() as proxy:
            proxied.setenv("HTTPS_PROXY", proxy)
            with pytest.raises(DownloadFailed, match="away from https"):
                await rig.fetch(rig.at(url=f"https://{HOST}/m"))
    assert plain.requests == []


async def test_a_proxy_that_refuses_is_told(tmp_path: Path, proxied: pytest.MonkeyPatch) -> None:
    """Its status is in the message."""
    async with rigged(tmp_path) as rig, Tunnel(0, status=407).open() as proxy:
        proxied.setenv("HTTPS_PROXY", proxy)
        with pytest.raises(DownloadFailed, match="the proxy answers 407"):
            await rig.fetch(rig.at(url=f"https://{HOST}/m"))


async def test_plain_http_asks_the_proxy_itself(tmp_path: Path, proxied: pytest.MonkeyPatch) -> None:
    """With the whole URL, and the proxy's credentials."""
    async with rigged(tmp_path) as rig:
        file = rig.host.host(f"http://{HOST}/m", BODY)
        proxied.setenv("HTTP_PROXY", rig.host.url("").replace("http://", "http://me:secret@"))
        rig.arrived(await rig.fetch(rig.at(url=f"http://{HOST}/m")))
    assert all("proxy-authorization" in request.headers for request in file.requests)


async def test_loopback_is_never_asked_through_a_proxy(rig_of_loopback: Rig, proxied: pytest.MonkeyPatch) -> None:
    """Nor what the environment excepts."""
    rig = rig_of_loopback
    rig.host.host("/m", BODY)
    proxied.setenv("HTTP_PROXY", "http://[::1]:9")
    rig.arrived(await rig.fetch())


async def test_a_proxy_of_another_kind_is_told(rig_of_loopback: Rig, proxied: pytest.MonkeyPatch) -> None:
    """SOCKS is not spoken here."""
    rig = rig_of_loopback
    proxied.setenv("ALL_PROXY", "socks5://[::1]:9")
    with pytest.raises(DownloadFailed, match="no http:// one"):
        await rig.fetch(rig.at(url=f"https://{HOST}/m"))


@pytest.fixture
async def rig_of_loopback(tmp_path: Path) -> AsyncIterator[Rig]:
    async with rigged(tmp_path) as one:
        yield one


@pytest.fixture
async def stored(tmp_path: Path, moto_bucket: Bucket) -> AsyncIterator[Rig]:
    links = S3Links(
        endpoint_url=moto_bucket.endpoint_url,
        region=REGION,
        clock=CorrectedClock(SystemClock()),
        credentials=(ACCESS_KEY, SECRET_KEY),
    )
    async with rigged(tmp_path, s3=links) as one:
        yield one


async def test_an_object_of_s3_comes_by_links(stored: Rig, moto_bucket: Bucket) -> None:
    """Signed with the credentials of the models' own store, in ranges as everything else."""
    moto_bucket.write("loras/a b.dat", BODY)
    url = f"s3://{moto_bucket.name}/loras/a b.dat"
    fetched = await stored.fetch(stored.at(url=url, source=url))
    stored.arrived(fetched)
    assert fetched.location.url == url


async def test_an_object_that_is_not_there_is_not_found(stored: Rig, moto_bucket: Bucket) -> None:
    """404 of the store."""
    url = f"s3://{moto_bucket.name}/nothing"
    with pytest.raises(ModelNotFound, match="answers 404"):
        await stored.fetch(stored.at(url=url, source=url))


@pytest.mark.parametrize("url", ["s3://bucket", "s3:///key"])
async def test_what_names_no_object_is_told(stored: Rig, url: str) -> None:
    """Bucket and key are both needed."""
    with pytest.raises(DownloadFailed, match="s3://bucket/key"):
        await stored.fetch(stored.at(url=url))


async def test_a_disk_that_is_full_is_told_and_what_came_is_kept(tmp_path: Path) -> None:
    """The system's refusal is `DiskFull`; the record names only bytes that are there, and the next try goes on."""
    async with rigged(tmp_path, settings={"connections": 1}) as rig:
        file = rig.host.host("/m", BODY)
        soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.setrlimit(resource.RLIMIT_FSIZE, (300 * KIB, hard))
        try:
            with pytest.raises(DiskFull, match="no space is left"):
                await rig.fetch()
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
        kept = sum(end - start for start, end in read_record(sidecar_of(rig.partial)).done)
        assert 0 < kept <= 300 * KIB
        file.sent = 0
        rig.arrived(await rig.fetch())
        assert file.sent <= len(BODY) - kept


async def test_a_cap_on_bandwidth_stops_nothing(tmp_path: Path) -> None:
    """Transfers under a cap arrive like any other."""
    async with rigged(tmp_path, settings={"bandwidth": 2000 * KIB}) as rig:
        body = made(200 * KIB)
        rig.host.host("/m", body)
        rig.arrived(await rig.fetch(), body)


async def test_links_need_credentials(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither the models' own nor those of the standard chain."""
    set_credentials(monkeypatch, key=None)
    links = S3Links(endpoint_url="http://[::1]:9", region=REGION, clock=CorrectedClock(SystemClock()))
    async with rigged(tmp_path, s3=links) as rig:
        with pytest.raises(AuthFailed, match="credentials"):
            await rig.fetch(rig.at(url="s3://bucket/key"))

"""The guard for URLs that jobs name: what it refuses, what the operator may allow, and what is connected to."""

from __future__ import annotations

import asyncio
import ssl
from datetime import UTC, datetime, timedelta
from ipaddress import ip_address
from pathlib import Path

import httpcore
import httpx
import pytest

from tests.support.receiver import Answer, ScriptedServer
from worker import http, urls
from worker.errors import ConfigError, DownloadFailed, Owner, UrlForbidden
from worker.urls import HTTP_OR_S3, Address, Guard, GuardedBackend, is_link_local, is_public

PUBLIC = ["8.8.8.8", "1.1.1.1", "172.15.0.1", "172.32.0.1", "100.128.0.1", "2606:4700::1111", "2a00:1450::1"]
PRIVATE = [
    *("127.0.0.1", "127.255.255.254", "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1"),
    *("0.0.0.0", "0.1.2.3", "192.0.0.8", "192.0.2.1", "198.18.0.1", "198.19.255.255", "198.51.100.7", "203.0.113.9"),
    *("224.0.0.1", "239.255.255.255", "240.0.0.1", "255.255.255.255", "192.88.99.1"),
    *("::", "::1", "fc00::1", "fd12:3456::1", "ff02::1", "2001:db8::1", "3fff::1", "100::1", "fec0::1"),
    *("::ffff:8.8.8.8", "::ffff:127.0.0.1", "::127.0.0.1", "64:ff9b::8.8.8.8", "64:ff9b:1::a00:1"),
    *("2002:808:808::1", "2002:7f00:1::", "2001:0:4136:e378:8000:63bf:3fff:fdd2"),
]
LINK_LOCAL = [
    *("169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%lo", "febf::1", "::ffff:169.254.169.254"),
    *("64:ff9b::169.254.169.254", "2002:a9fe:a9fe::1", "fd00:ec2::254", "100.100.100.200", "168.63.129.16"),
]


class Names:
    """A resolver with a table; each name answers its lists in turn, the last for ever."""

    def __init__(self, **table: list[list[str]]) -> None:
        self.table = {name.replace("_", "."): answers for name, answers in table.items()}
        self.asked: list[str] = []

    async def __call__(self, host: str, port: int) -> tuple[Address, ...]:
        self.asked.append(host)
        if host in self.table:
            answers = self.table[host]
            return tuple(ip_address(text) for text in (answers.pop(0) if len(answers) > 1 else answers[0]))
        return await urls.resolve_by_system(host, port)


def url_of(address: str) -> str:
    return f"http://[{address}]/p?q" if ":" in address else f"http://{address}/p?q"


@pytest.mark.parametrize("address", PUBLIC)
async def test_public_addresses_pass(address: str) -> None:
    """What is on the open Internet may be visited."""
    assert is_public(ip_address(address))
    await Guard().check(url_of(address))


@pytest.mark.parametrize("address", PRIVATE)
async def test_other_addresses_need_permission(address: str) -> None:
    """Private, reserved and embedding forms are refused, and allowed with `true`."""
    guard = Guard(resolve=Names(h_test=[[address]]))
    with pytest.raises(UrlForbidden, match=r"^host 'h\.test' is not public$"):
        await guard.check("http://h.test/")
    await Guard(private=True, resolve=Names(h_test=[[address]])).check("http://h.test/")


@pytest.mark.parametrize("address", LINK_LOCAL)
async def test_link_local_is_refused_unless_listed(address: str) -> None:
    """Metadata services stay out of reach even with `true`; an operator who lists the very address means it."""
    assert is_link_local(ip_address(address))
    names = Names(h_test=[[address]])
    for setting in ("", "true"):
        with pytest.raises(UrlForbidden, match="link-local"):
            await Guard.from_setting(setting, resolve=names).check("http://h.test/")
    await Guard.from_setting(address.partition("%")[0], resolve=names).check("http://h.test/")
    await Guard.from_setting("h.test", resolve=names).check("http://h.test/")


@pytest.mark.parametrize(
    "url",
    [
        "http://localhost/",
        "http://2130706433/",
        "http://0x7f.1/",
        "http://127.1/",
        "http://[::1]:3000/",
        "http://[::ffff:127.0.0.1]/",
        "http://0/",
    ],
)
async def test_every_spelling_of_this_machine_is_refused(url: str) -> None:
    """Whatever the resolver makes of a spelling is what is judged."""
    with pytest.raises(UrlForbidden, match="not public"):
        await Guard().check(url)


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("file:///etc/passwd", "only http, https"),
        ("gopher://h.example/", "only http, https"),
        ("s3://bucket/key", "only http, https"),
        ("//h.example/", "only http, https"),
        ("http://user:pw@h.example/", "user name and password"),
        ("http://user@h.example/", "user name and password"),
        ("http:///path", "names no host"),
        ("http://[::1", "not a valid URL"),
        ("http://h.example:99999/", "no such port"),
        ("http://h.example:0/", "no such port"),
        ("", "only http, https"),
    ],
)
async def test_malformed_urls_are_refused_without_a_look_up(url: str, message: str) -> None:
    """Scheme, user information and form are judged before any name is resolved."""
    names = Names()
    with pytest.raises(UrlForbidden, match=message):
        await Guard(private=True, resolve=names).check(url)
    assert names.asked == []


@pytest.mark.parametrize(
    "url", ["http://localhost/hunter2?x=hunter2", "ftp://h.example/hunter2", "http://a:hunter2@b/"]
)
async def test_refusals_name_the_host_but_neither_path_nor_secrets(url: str) -> None:
    """The message may be shown to whoever sent the job."""
    with pytest.raises(UrlForbidden) as caught:
        await Guard().check(url)
    assert "hunter2" not in caught.value.message
    assert "host '" in caught.value.message


async def test_s3_urls_are_checked_for_their_form_only() -> None:
    """Where s3 is allowed, the bucket is no host that could be resolved."""
    names = Names()
    await Guard(resolve=names).check("s3://bucket/key", schemes=HTTP_OR_S3)
    assert names.asked == []
    with pytest.raises(UrlForbidden):
        await Guard().check("s3://key:secret@bucket/key", schemes=HTTP_OR_S3)


async def test_one_bad_address_among_good_ones_is_enough() -> None:
    """A name with a public and a private address is refused."""
    with pytest.raises(UrlForbidden):
        await Guard(resolve=Names(h_test=[["8.8.8.8", "10.0.0.1"]])).check("http://h.test/")


@pytest.mark.parametrize("host", ["a" * 70 + ".example", "empty.test"])
async def test_unresolvable_hosts_may_be_there_later(host: str) -> None:
    """No address is a failure of something the job named, not a refusal."""
    with pytest.raises(DownloadFailed, match="cannot be resolved") as caught:
        await Guard(resolve=Names(empty_test=[[]])).check(f"https://{host}/")
    assert caught.value.owner is Owner.JOB


async def test_a_resolver_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    """The look-up has a bound of its own."""
    monkeypatch.setattr(urls, "RESOLVE_WITHIN", timedelta(milliseconds=20))

    async def hang(host: str, port: int) -> tuple[Address, ...]:
        await asyncio.Event().wait()
        return ()

    guard = Guard(resolve=hang)
    with pytest.raises(DownloadFailed, match="cannot be resolved"):
        await guard.check("http://slow.test/")
    async with guard.client(timeout=timedelta(milliseconds=20)) as client:
        with pytest.raises(httpx.ConnectTimeout):
            await client.get("http://slow.test/")


@pytest.mark.parametrize("setting", ["", "false", " FALSE "])
def test_nothing_is_allowed_by_default(setting: str) -> None:
    """Empty and `false` allow nothing beside public addresses."""
    guard = Guard.from_setting(setting)
    assert (guard.private, guard.hosts, guard.networks) == (False, frozenset(), ())


async def test_hosts_and_networks_can_be_listed() -> None:
    """Names, addresses and CIDRs, by blanks or commas; names without regard to case or a last dot."""
    names = Names(minio_local=[["10.1.2.3"]], other_local=[["10.1.2.4"]], lan_local=[["192.168.7.7"]])
    guard = Guard.from_setting("Minio.local., 192.168.0.0/16 [::1] bücher.example", resolve=names)
    assert guard.hosts == {"minio.local", "xn--bcher-kva.example"}
    for url in ("http://minio.local/", "http://lan.local/", "http://[::1]:9000/"):
        await guard.check(url)
    with pytest.raises(UrlForbidden):
        await guard.check("http://other.local/")


async def test_true_and_a_list_add_up() -> None:
    """`true` beside a link-local address allows private ones and that one."""
    guard = Guard.from_setting("true 169.254.10.0/24")
    await guard.check("http://10.0.0.1/")
    await guard.check("http://169.254.10.1/")
    with pytest.raises(UrlForbidden):
        await guard.check("http://169.254.169.254/")


def test_every_wrong_part_of_the_setting_is_named() -> None:
    """All mistakes come at once, under the variable's name."""
    with pytest.raises(ConfigError) as caught:
        Guard.from_setting("10.0.0.0/33 good.example http://x *.example host:80 a@b yes/no")
    assert {mistake.field for mistake in caught.value.mistakes} == {"WORKER_URLS_ALLOW_PRIVATE"}
    assert [mistake.message.split("'")[1] for mistake in caught.value.mistakes] == [
        *("10.0.0.0/33", "http://x", "*.example", "host:80", "a@b", "yes/no")
    ]


async def test_the_client_reaches_what_is_allowed() -> None:
    """A listed host is connected to at its address, with the name in the Host header."""
    async with ScriptedServer(Answer(body=b"hello")) as server:
        guard = Guard.from_setting("shop.test", resolve=Names(shop_test=[["::1"]]))
        async with guard.client() as client:
            answer = await client.get(server.url("/x", host="shop.test"))
    assert answer.content == b"hello"
    assert server.requests[0].headers["host"] == f"shop.test:{server.port}"


async def test_a_name_that_changes_its_mind_is_not_followed() -> None:
    """DNS rebinding: public when checked, loopback when connected to, and still nothing is sent."""
    async with ScriptedServer() as server:
        guard = Guard(resolve=Names(evil_test=[["8.8.8.8"], ["::1"]]))
        await guard.check(server.url(host="evil.test"))
        async with guard.client() as client:
            with pytest.raises(UrlForbidden, match=r"'evil\.test' is not public"):
                await client.get(server.url(host="evil.test"))
    assert server.requests == []


async def test_redirects_meet_the_guard_too() -> None:
    """A followed redirect to an address that is not allowed is refused before connecting."""
    guard = Guard.from_setting("outer.test", resolve=Names(outer_test=[["::1"]], inner_test=[["::1"]]))
    async with ScriptedServer() as inner, ScriptedServer() as outer, guard.client() as client:
        outer.script.append(Answer(302, {"location": inner.url(host="inner.test")}))
        with pytest.raises(UrlForbidden, match=r"inner\.test"):
            await client.get(outer.url(host="outer.test"), follow_redirects=True)
    assert inner.requests == []


@pytest.mark.parametrize(
    ("place", "said"),
    [
        ("http://[::1]:99999/", "no such port"),
        ("http://user:password@[::1]/", "user name and password"),
        ("file:///etc/passwd", "only http, https"),
        ("gopher://[::1]/_x", "only http, https"),
    ],
)
async def test_the_form_of_a_redirect_is_looked_at_too(place: str, said: str) -> None:
    """What may not be named may not be redirected to either, and trying it again is of no use."""
    guard = Guard.from_setting("::1")
    async with ScriptedServer(Answer(302, {"location": place})) as server, guard.client() as client:
        with pytest.raises(UrlForbidden, match=said):
            await client.get(server.url(), follow_redirects=True)


async def test_no_socket_is_opened_to_an_impossible_port() -> None:
    """Whoever asks for it."""
    backend = GuardedBackend(Guard.from_setting("::1"), httpcore.AnyIOBackend())
    with pytest.raises(httpcore.ConnectError, match="no such port"):
        await backend.connect_tcp("::1", 99999)


@pytest.mark.parametrize(
    "host", ["good.exa mple", "[fe80::1%25lo]", "a%00b.example", "a!b.example", "x" * 255, "[v1.x]"]
)
async def test_a_host_is_a_name_or_an_address(host: str) -> None:
    """Whatever else a resolver would make of it."""
    with pytest.raises(UrlForbidden):
        Guard().parsed(f"http://{host}/")


async def test_the_proxy_of_the_environment_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A proxy would resolve the name by itself; the guarded client goes straight to the checked address."""
    async with ScriptedServer() as proxy, ScriptedServer() as server:
        monkeypatch.setenv("HTTP_PROXY", proxy.url().rstrip("/"))
        async with Guard.from_setting("::1").client() as client:
            await client.get(server.url())
    assert (len(proxy.requests), len(server.requests)) == (0, 1)


async def test_a_dead_address_is_passed_over() -> None:
    """When the first address refuses, the next one is tried; when all refuse, it is a connection error."""
    async with ScriptedServer() as server:
        names = Names(two_test=[["127.0.0.1", "::1"]], dead_test=[["127.0.0.1", "127.0.0.2"]])
        async with Guard(private=True, resolve=names).client() as client:
            assert (await client.get(server.url(host="two.test"))).status_code == 200
            with pytest.raises(httpx.ConnectError):
                await client.get(server.url(host="dead.test"))


async def test_an_unresolvable_host_is_a_connection_error_of_the_client() -> None:
    """The caller's own translation then says whose failure it is."""
    async with Guard(resolve=Names(empty_test=[[]])).client() as client:
        with pytest.raises(DownloadFailed, match="cannot be connected to"), http.translating(DownloadFailed):
            await client.get("http://empty.test/")


async def test_the_backend_sleeps_as_its_inner_one() -> None:
    """Waits of the pool go to the library's own backend."""
    slept: list[float] = []

    class Inner(httpcore.AsyncNetworkBackend):
        async def sleep(self, seconds: float) -> None:
            slept.append(seconds)

    await GuardedBackend(Guard(), Inner()).sleep(0.5)
    assert slept == [0.5]


async def test_certificates_are_checked_for_the_name_not_the_address(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Pinning the address leaves TLS to the host's name: the right certificate passes, another's is refused."""
    server_side, client_side = tls_pair("shop.test", tmp_path)
    monkeypatch.setattr(http, "tls", lambda: client_side)
    guard = Guard(private=True, resolve=Names(shop_test=[["::1"]], other_test=[["::1"]]))
    async with ScriptedServer(tls=server_side) as server, guard.client() as client:
        assert (await client.get(server.url(host="shop.test"))).status_code == 200
        with pytest.raises(httpx.ConnectError, match="CERTIFICATE_VERIFY_FAILED"):
            await client.get(server.url(host="other.test"))


def tls_pair(name: str, folder: Path) -> tuple[ssl.SSLContext, ssl.SSLContext]:
    """A server's context with a fresh certificate for the name, and a client's that trusts it."""
    from cryptography import x509
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, name)])
    now = datetime.now(UTC)
    certificate = (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - timedelta(days=1))
        .not_valid_after(now + timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(name)]), critical=False)
        .sign(key, hashes.SHA256())
    )
    pem = folder / "server.pem"
    pem.write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
        + certificate.public_bytes(serialization.Encoding.PEM)
    )
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(pem)
    client = ssl.create_default_context(cadata=certificate.public_bytes(serialization.Encoding.PEM).decode())
    return server, client

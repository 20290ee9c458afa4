"""The host of models of the fleet's demo."""

from __future__ import annotations

import hashlib

import pytest

from demo.host import ModelHost
from demo.plan import weights
from worker import http

NAME = "model-01.safetensors"
BODY = weights(NAME)


async def test_files_come_as_the_catalogue_says() -> None:
    """By the URL, of the size and with the digest that stand there; other names are not found."""
    async with ModelHost.listening([NAME]) as host, http.client(loopback=True) as client:
        [entry] = host.catalogue
        body = (await client.get(entry["url"])).content
        assert (hashlib.sha256(body).hexdigest(), len(body)) == (entry["sha256"], entry["size"])
        assert (host.begun, host.sent) == (1, len(BODY))
        assert (await client.get(f"{host.url}/other.safetensors")).status_code == 404


@pytest.mark.parametrize(
    ("asked", "first", "last"),
    [("bytes=0-9", 0, 9), ("bytes=1000-", 1000, len(BODY) - 1), ("bytes=5-99999999", 5, len(BODY) - 1)],
)
async def test_ranges_are_answered_as_asked(asked: str, first: int, last: int) -> None:
    """A file counts as begun where its first byte is asked for; what was sent counts in any case."""
    async with ModelHost.listening([NAME]) as host, http.client(loopback=True) as client:
        answer = await client.get(f"{host.url}/{NAME}", headers={"range": asked})
        assert answer.status_code == 206
        assert answer.headers["content-range"] == f"bytes {first}-{last}/{len(BODY)}"
        assert answer.content == BODY[first : last + 1]
        assert (host.begun, host.sent) == (int(first == 0), len(answer.content))
        head = await client.head(f"{host.url}/{NAME}")
        assert int(head.headers["content-length"]) == len(BODY)
        assert host.sent == len(answer.content)


async def test_ranges_that_make_no_sense() -> None:
    """Beyond the end: 416; a form that is not understood: the whole file."""
    async with ModelHost.listening([NAME]) as host, http.client(loopback=True) as client:
        beyond = await client.get(f"{host.url}/{NAME}", headers={"range": f"bytes={len(BODY)}-"})
        assert (beyond.status_code, beyond.headers["content-range"]) == (416, f"bytes */{len(BODY)}")
        odd = await client.get(f"{host.url}/{NAME}", headers={"range": "bytes=-5"})
        assert odd.content == BODY

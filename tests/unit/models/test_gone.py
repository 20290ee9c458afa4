"""What the server says of files that were evicted since: it counts no longer."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest

from tests.support.cache import KB, content, kept, wanted
from tests.support.waiting import wait_until
from worker.errors import ModelNotFound
from worker.mentions import Place


async def test_a_file_that_went_while_a_job_waited_is_fetched_again(tmp_path: Path) -> None:
    """The server knew it when the job was admitted: the job gets it anew, under the same name, and not its ghost."""
    async with kept(tmp_path / "models", cap=4 * KB) as one:
        one.hub.has("https://operator.example/lora/a.safetensors", content("a", 2 * KB))
        one.hub.has("https://operator.example/lora/b.safetensors", content("b", 2 * KB))
        one.hub.has("big.safetensors", content("big", 4 * KB))
        await one.cache.fetch(wanted("a.safetensors"))
        release = asyncio.Event()

        async def early() -> None:
            async with one.cache.provided([wanted("big.safetensors", at="big.safetensors", size=4 * KB)]):
                await release.wait()

        async def late() -> tuple[Place, ...]:
            async with one.cache.provided([wanted("a.safetensors", known=True), wanted("b.safetensors")]) as provided:
                assert one.path("a.safetensors").read_bytes() == content("a", 2 * KB)
                return provided.places

        async with one.cache.provided([wanted("a.safetensors", known=True)]):
            first = asyncio.create_task(early(), name="early")
            await wait_until(lambda: one.carrier.books.waiting == 1)
            second = asyncio.create_task(late(), name="late")
            await wait_until(lambda: one.carrier.books.waiting == 2)
        await wait_until(lambda: one.names == ["big.safetensors"])
        release.set()
        await first
        assert await second == (Place("lora", "a.safetensors"), Place("lora", "b.safetensors"))


async def test_a_file_that_went_and_that_no_source_has_is_not_found(tmp_path: Path) -> None:
    """Rather than promised by a list that the server has not read anew."""
    async with kept(tmp_path / "models") as one:
        one.hub.has("a.safetensors", content("a", KB))
        await one.cache.fetch(wanted("a.safetensors", at="a.safetensors"))
        await one.cache.remove(Place("lora", "a.safetensors"))
        with pytest.raises(ModelNotFound):
            async with one.cache.provided([wanted("a.safetensors", known=True)]):
                pass
        async with one.cache.provided([wanted("elsewhere.safetensors", known=True)]) as provided:
            assert provided.places == (Place("lora", "elsewhere.safetensors"),)

"""Many thousands of generated requests to a worker, for each kind of server."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.fuzzing import fuzzed, gateway, mutated

pytestmark = [pytest.mark.chaos, pytest.mark.timeout(1800)]


@pytest.mark.parametrize("kind", ["sdnext", "a1111", "comfyui", "fooocus"])
async def test_nothing_that_is_sent_breaks_it(kind: str, tmp_path: Path) -> None:
    """Each request is answered as the document says, and never with a bug."""
    async with gateway(tmp_path, kind) as here:
        wrong = await fuzzed(here, examples=20)
        wrong |= await mutated(here, examples=300)
        assert wrong == {}
        assert await here.bugs() == 0

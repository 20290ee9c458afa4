"""What the words of `sd-worker models pull` mean, and how its transfers are shown."""

from __future__ import annotations

import asyncio
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cache import Kept, kept
from tests.support.made import safetensors
from tests.support.waiting import wait_until
from worker.cli import pulling
from worker.cli.rows import size_shown

BYTES = safetensors(bytes(4096))


def test_words_of_the_command_line_mean_models() -> None:
    """URLs tell their kind where they can, Civitai tells it itself, and a name has it before its slash."""
    air = "urn:air:sdxl:lora:civitai:1@2"
    found = {
        text: pulling.wanted_of(text, None, None, None)
        for text in ("https://x.example/loras/a.safetensors", "civitai://7", air, "vae/sub/b.safetensors")
    }
    assert [(one.kind, one.name) for one in found.values()] == [
        ("lora", "a.safetensors"),
        ("", ""),
        ("lora", ""),
        ("vae", "sub/b.safetensors"),
    ]
    assert [pulling.shown(one) for one in found.values()] == [
        "https://x.example/loras/a.safetensors",
        "civitai.com version 7",
        "civitai.com version 2",
        "vae/sub/b.safetensors",
    ]
    assert pulling.wanted_of("a/b.safetensors", "lora", None, None).place == ("lora", "a/b.safetensors")


def test_sizes_are_short() -> None:
    """Three digits and a unit."""
    assert [size_shown(n) for n in (0, 999, 1500, 144_000_000, 6_900_000_000, 12_345_000_000)] == [
        *("0 bytes", "999 bytes", "1.5 kB", "144 MB", "6.9 GB", "12 GB"),
    ]


async def test_a_terminal_gets_a_bar_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It shows each transfer by name for as long as it takes."""
    screen = io.StringIO()
    screen.isatty = lambda: True  # type: ignore[method-assign]
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setattr(pulling, "LOOK_EVERY_S", 0.01)
    async with kept(tmp_path / "models", cap=10**9) as shelf:
        source = shelf.hub.has("loras/a.safetensors", BYTES * 2, go=asyncio.Event())
        assert source.go is not None
        own = _Own(shelf)
        wish = pulling.wanted_of("https://models.example/loras/a.safetensors", None, None, None)
        pull = asyncio.create_task(pulling.pull(own, [wish], lambda pulled: None), name="pull")
        await wait_until(lambda: own.shown > 2)
        source.go.set()
        [pulled] = await pull
    assert pulled.entry is not None
    assert "a.safetensors" in screen.getvalue()


class _Own:
    """A cache as commands see it; ``shown`` counts how often its transfers were asked for while there were some."""

    def __init__(self, shelf: Kept) -> None:
        self._shelf = shelf
        self.shown = 0

    async def fetch(self, wanted: Any) -> Any:
        return await self._shelf.cache.fetch(wanted)

    async def transfers(self) -> Any:
        found = self._shelf.cache.transfers()
        self.shown += bool(found)
        return found

    async def holds(self, place: Any) -> bool:
        return place in self._shelf.disk.entries

    async def remove(self, place: Any) -> None:
        await self._shelf.cache.remove(place)

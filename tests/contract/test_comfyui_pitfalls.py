"""Known pitfalls of ComfyUI that show only on the wire: names, frames, sockets, files and caches of several jobs."""

from __future__ import annotations

import asyncio
import base64
import hashlib
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import pytest
from PIL import Image

from tests.support.comfy_engine import QUICK, bench, graph, plain, workflow
from tests.support.engines import settings_for
from tests.support.pictures import encoded, opened
from tests.support.waiting import wait_until
from worker.engines.comfyui.disk import Folders
from worker.engines.comfyui.engine import ComfyEngine
from worker.engines.comfyui.socket import opened as listening
from worker.errors import GenerationRejected
from worker.job import Limits
from worker.simulators.comfyui import Knobs

RED, BLUE = 0xFF0000, 0x0000FF
_ACCEPTED = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


@dataclass
class Mute:
    """A peer that shakes hands and then neither says nor answers anything, not even a heartbeat."""

    url: str = ""
    requests: list[bytes] = field(default_factory=list)
    on_open: Callable[[int], bool] = lambda _: False
    """Whether the connection of this number is dropped at once."""

    @property
    def names(self) -> list[bytes]:
        """The client ids under which connections were asked for."""
        return [request.split(b"clientId=")[1].split()[0] for request in self.requests if b"clientId=" in request]

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        request = await reader.readuntil(b"\r\n\r\n")
        self.requests.append(request)
        if b"Sec-WebSocket-Key: " in request:
            key = request.split(b"Sec-WebSocket-Key: ")[1].split(b"\r\n")[0]
            accept = base64.b64encode(hashlib.sha1(key + _ACCEPTED).digest())
            writer.write(
                b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                b"Sec-WebSocket-Accept: " + accept + b"\r\n\r\n"
            )
            while not self.on_open(len(self.requests)):
                frame = await reader.read(4096)
                if not frame or frame[0] == 0x88:
                    break
        writer.close()


@asynccontextmanager
async def mute(**more: Any) -> AsyncIterator[Mute]:
    peer = Mute(**more)
    server = await asyncio.start_server(peer.serve, "::1", 0)
    async with server:
        peer.url = f"http://[::1]:{server.sockets[0].getsockname()[1]}"
        yield peer


def coloured(color: int) -> str:
    """A small picture of one colour as a job holds it."""
    return base64.b64encode(encoded(Image.new("RGB", (64, 64), f"#{color:06x}"))).decode()


def shown(data: bytes) -> Any:
    return opened(data).convert("RGB").getpixel((0, 0))


async def test_a_reconnect_never_uses_a_name_twice() -> None:
    """The server forgets a name when its first socket ends, and leaves the second one open and silent for ever."""
    async with mute(on_open=lambda number: number < 3) as peer:
        settings = settings_for(peer.url, kind="comfyui")
        async with listening(settings, peer.url, QUICK, lambda _: None, lambda: None):
            await wait_until(lambda: len(peer.names) == 3)
        assert len(set(peer.names)) == 3


async def test_a_half_open_connection_is_given_up() -> None:
    """The server sends no pings: only a heartbeat of ours that nobody answers shows that it is gone."""
    broke = asyncio.Event()
    async with mute() as peer:
        settings = settings_for(peer.url, kind="comfyui")
        async with listening(settings, peer.url, replace(QUICK, heartbeat_s=0.05), lambda _: None, broke.set) as socket:
            assert socket.drops == 0
            async with asyncio.timeout(10):
                await broke.wait()
            assert socket.drops == 1


async def test_no_origin_is_sent() -> None:
    """A loopback server answers 403 to an Origin that differs from its Host."""
    async with mute() as peer:
        settings = settings_for(peer.url, kind="comfyui")
        engine = ComfyEngine(settings, Limits(), QUICK)
        await engine.look()
        await engine.aclose()
        async with listening(settings, peer.url, QUICK, lambda _: None, lambda: None):
            await wait_until(lambda: bool(peer.names))
        asked = [request for request in peer.requests if request]
        assert any(b"/system_stats" in request for request in asked)
        assert not [request for request in asked if b"origin:" in request.lower()]


async def test_a_frame_of_any_size_leaves_the_socket_open() -> None:
    """Clients refuse frames above a megabyte or four by default, and lose the socket with its pictures."""
    async with bench(settings={"comfyui_output": "websocket"}) as b:
        b.sim.knobs.arm("big_frame")
        assert len((await b.make(workflow(batch=2))).images) == 2
        assert (len(b.sim.stats.prompts), b.sim.stats.sockets_opened) == (1, 1)


async def test_the_socket_is_open_before_the_prompt_is_sent() -> None:
    """A prompt that takes no time has sent its pictures before a socket that is opened afterwards could hear them."""
    async with bench(settings={"comfyui_output": "websocket"}) as b:
        for color in range(10):
            assert len((await b.make(workflow(plain(color=color)))).images) == 1
        assert len(b.sim.stats.prompts) == 10


async def test_a_prompt_is_sent_with_its_id_and_no_number() -> None:
    """The same id and number twice while waiting kills the server's worker; an id of null becomes the word None."""
    async with bench() as b:
        sent: list[Any] = []
        post = b.engine._client.post

        async def noted(path: str, body: Any = None, **options: Any) -> Any:
            if path == "/prompt":
                sent.append(body)
            return await post(path, body, **options)

        b.engine._client.post = noted  # type: ignore[method-assign]
        b.sim.knobs.arm("missing_file")
        await b.make(workflow())
        assert len(sent) == 2
        assert all(body.keys() == {"prompt", "client_id", "prompt_id"} for body in sent)
        assert all(isinstance(body[key], str) and body[key] for body in sent for key in ("client_id", "prompt_id"))
        assert sent[0]["prompt_id"] != sent[1]["prompt_id"]


@pytest.mark.parametrize("version", ["0.3.64", "newest"])
async def test_a_graph_of_which_only_a_part_is_valid_is_refused_whole(version: str) -> None:
    """The server answers 200, drops the invalid output and runs the rest, which ends as a success."""
    async with bench(Knobs(version=version, step_seconds=0.02)) as b:
        made = graph(steps=150)
        made["1"], made["2"] = plain()["1"], {**plain()["9"]}
        work = await b.admit(workflow(made))
        broken = {**work.request, "1": {**made["1"], "inputs": {**made["1"]["inputs"], "width": 0}}}
        with pytest.raises(GenerationRejected, match=r"node 1 .*width"):
            await b.run(replace(work, request=broken))
        assert len(b.sim.stats.prompts) == 1
        assert not await b.busy()
        assert [run.ended for run in b.sim.stats.runs] in ([], ["interrupted"])
        assert b.left == []


@pytest.mark.parametrize("way", ["files", "preview"])
@pytest.mark.parametrize("cache", ["classic", "lru", "none"])
async def test_a_number_that_is_used_again_brings_nobody_elses_picture(cache: Any, way: str) -> None:
    """A deleted file's number is given to the next file, and an old result then names another job's picture."""
    async with bench(Knobs(cache=cache), settings={"comfyui_output": way}) as b:
        for color, pixel in ((RED, (255, 0, 0)), (BLUE, (0, 0, 255)), (RED, (255, 0, 0)), (BLUE, (0, 0, 255))):
            output = await b.make(workflow(plain(color=color)))
            assert [shown(image.data) for image in output.images] == [pixel]
        assert len(b.sim.stats.prompts) == 4
        assert b.sim.stats.frees == []
        assert b.left == []


@pytest.mark.parametrize("prefix", ["../../../../../../evil", "/etc/evil", "a/../../../../b", "%year%/../../../.."])
async def test_a_prefix_that_climbs_out_is_cleaned(prefix: str) -> None:
    """The server takes the prompt and fails at its last node, the sampling done."""
    async with bench(settings={"comfyui_output": "files"}) as b:
        assert len((await b.make(workflow(filename_prefix=prefix))).images) == 1
        assert b.left == []


async def test_every_input_keeps_its_own_contents() -> None:
    """An upload may be stored under another name, and a job's images are never those of the job before."""
    async with bench() as b:
        for first, second in ((RED, BLUE), (BLUE, RED)):
            nodes: dict[str, Any] = {}
            for at, color in (("1", first), ("2", second)):
                nodes[at] = {"class_type": "LoadImage", "inputs": {"image": coloured(color)}}
                saving = {"filename_prefix": "x", "images": [at, 0]}
                nodes[f"1{at}"] = {"class_type": "SaveImage", "inputs": saving}
            output = await b.make(workflow(nodes))
            assert [shown(image.data)[0] for image in output.images] == [first >> 16, second >> 16]
        assert b.left == []


async def test_an_input_that_was_placed_since_is_used_and_kept() -> None:
    """The list of files that the node offers lags: whether the file is there counts. It is not ours to remove."""
    nodes = {
        "1": {"class_type": "LoadImage", "inputs": {"image": "late.png"}},
        "9": {"class_type": "SaveImage", "inputs": {"filename_prefix": "x", "images": ["1", 0]}},
    }
    async with bench() as b:
        (b.sim.base_dir / "input" / "late.png").write_bytes(base64.b64decode(coloured(BLUE)))
        output = await b.make(workflow(nodes))
        assert [shown(image.data) for image in output.images] == [(0, 0, 255)]
        assert b.left == ["late.png"]


async def test_long_names_make_no_long_addresses() -> None:
    """The server refuses lines above 8190 bytes, and no file system takes a name above 255."""
    nodes = plain()
    nodes["n" * 300] = {**nodes.pop("9")}
    nodes["n" * 300]["inputs"] = {**nodes["n" * 300]["inputs"], "filename_prefix": "p" * 10_000}
    async with bench(settings={"comfyui_output": "files"}) as b:
        b.engine._folders = Folders()
        seen: list[str] = []
        get = b.engine._client.get

        async def noted(path: str, **options: Any) -> Any:
            seen.append(path)
            return await get(path, **options)

        b.engine._client.get = noted  # type: ignore[method-assign]
        assert len((await b.make(workflow(nodes))).images) == 1
        assert any(path.startswith("/view?") for path in seen)
        assert max(map(len, seen)) < 1000

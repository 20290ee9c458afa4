"""A headless browser, told what to do over the DevTools protocol."""

from __future__ import annotations

import asyncio
import base64
import itertools
import os
import shutil
from asyncio.subprocess import DEVNULL, PIPE
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from signal import SIGKILL
from typing import Any

import pydantic_core
from websockets.asyncio.client import ClientConnection, connect

from tests.support.waiting import wait_until
from worker.tasks import cancel_all

PATIENCE_S = 30.0
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--disable-dev-shm-usage",
    "--hide-scrollbars",
    "--no-proxy-server",
    "--remote-debugging-port=0",
    "about:blank",
)


def chromium() -> str:
    """The program; `LookupError` where there is none."""
    found = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if found is None:
        raise LookupError("the tests of pages need chromium: apt-get install chromium")
    return found


@dataclass
class Page:
    """One page. ``requests`` are the URLs that it asked for, ``complaints`` what its console said was wrong."""

    _socket: ClientConnection
    requests: list[str] = field(default_factory=list)
    complaints: list[str] = field(default_factory=list)
    credentials: tuple[str, str] | None = None
    _session: str = ""
    _ids: itertools.count[int] = field(default_factory=lambda: itertools.count(1))
    _answers: dict[int, asyncio.Future[Any]] = field(default_factory=dict)
    _background: set[asyncio.Task[Any]] = field(default_factory=set)

    async def send(self, method: str, **params: Any) -> Any:
        """Call a method of the protocol; `RuntimeError` with what it refuses."""
        number = next(self._ids)
        answer = self._answers[number] = asyncio.get_running_loop().create_future()
        session = {"sessionId": self._session} if self._session else {}
        body = {"id": number, "method": method, "params": params, **session}
        try:
            async with asyncio.timeout(PATIENCE_S):
                await self._socket.send(pydantic_core.to_json(body), text=True)
                return await answer
        finally:
            del self._answers[number]

    async def read(self) -> None:
        """Take what the browser says, for ever."""
        async for message in self._socket:
            body = pydantic_core.from_json(message)
            waiting = self._answers.get(body.get("id", 0))
            if waiting is None:
                self._event(body.get("method"), body.get("params", {}))
            elif not waiting.done() and "error" in body:
                waiting.set_exception(RuntimeError(body["error"]["message"]))
            elif not waiting.done():
                waiting.set_result(body["result"])

    def _event(self, method: str | None, params: dict[str, Any]) -> None:
        match method:
            case "Network.requestWillBeSent":
                self.requests.append(params["request"]["url"])
            case "Log.entryAdded" if params["entry"]["level"] == "error":
                self.complaints.append(f"{params['entry']['text']} {params['entry'].get('url', '')}")
            case "Runtime.exceptionThrown":
                self.complaints.append(str(params["exceptionDetails"]))
            case "Runtime.consoleAPICalled" if params["type"] == "error":
                self.complaints.append(str(params["args"]))
            case "Fetch.authRequired":
                self._reply("Fetch.continueWithAuth", params, authChallengeResponse=self._answer())
            case "Fetch.requestPaused":
                self._reply("Fetch.continueRequest", params)

    def _answer(self) -> dict[str, str]:
        if self.credentials is None:
            return {"response": "CancelAuth"}
        user, password = self.credentials
        return {"response": "ProvideCredentials", "username": user, "password": password}

    def _reply(self, method: str, params: dict[str, Any], **more: Any) -> None:
        task = asyncio.create_task(self.send(method, requestId=params["requestId"], **more), name="devtools-reply")
        self._background.add(task)
        task.add_done_callback(self._background.discard)

    async def attach(self) -> None:
        """Open a tab, and hear of its requests and of its console."""
        target = (await self.send("Target.createTarget", url="about:blank"))["targetId"]
        self._session = (await self.send("Target.attachToTarget", targetId=target, flatten=True))["sessionId"]
        for domain in ("Page", "Network", "Log", "Runtime"):
            await self.send(f"{domain}.enable")

    async def logs_in(self, user: str, password: str) -> None:
        """Answer what the browser would ask a person, from now on."""
        self.credentials = user, password
        await self.send("Fetch.enable", handleAuthRequests=True)

    async def open(self, url: str, *, width: int = 1200, height: int = 1000, dark: bool = False) -> None:
        await self.send(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        await self.send("Emulation.setEmulatedMedia", features=[scheme])
        await self.send("Page.navigate", url=url)
        await self.becomes("document.readyState === 'complete' && location.protocol === 'http:'")

    async def value(self, expression: str) -> Any:
        """What a JavaScript expression comes to; a promise is awaited."""
        found = await self.send("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in found:
            raise RuntimeError(str(found["exceptionDetails"]))
        return found["result"].get("value")

    async def becomes(self, expression: str, timeout: float = PATIENCE_S) -> None:
        """Wait until an expression is true."""
        await wait_until(lambda: self.value(expression), timeout, story=lambda: f"never so: {expression}")

    async def texts(self, selector: str) -> list[str]:
        """The texts of all elements that a selector finds."""
        found: list[str] = await self.value(f"[...document.querySelectorAll({selector!r})].map((e) => e.textContent)")
        return found

    async def picture(self, path: Path, *, whole: bool = True) -> bytes:
        """A screenshot, kept at ``path``."""
        shot = await self.send("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        data = base64.b64decode(shot["data"])
        await asyncio.to_thread(path.write_bytes, data)
        return data


@asynccontextmanager
async def browser(profile: Path) -> AsyncIterator[Page]:
    """A browser of its own with one page; ``profile`` is an empty folder."""
    program = await asyncio.create_subprocess_exec(
        chromium(), f"--user-data-dir={profile}", *FLAGS, stdout=DEVNULL, stderr=PIPE, start_new_session=True
    )
    try:
        async with connect(await _address(program), max_size=None, proxy=None, ping_interval=None) as socket:
            page = Page(socket)
            reader = asyncio.create_task(page.read(), name="devtools")
            try:
                await page.attach()
                yield page
            finally:
                await cancel_all({reader, *page._background})
    finally:
        os.killpg(program.pid, SIGKILL)
        await program.communicate()


async def _address(program: asyncio.subprocess.Process) -> str:
    """Where the browser listens, as it prints it."""
    assert program.stderr is not None
    async with asyncio.timeout(PATIENCE_S):
        while line := (await program.stderr.readline()).decode(errors="replace"):
            if "DevTools listening on " in line:
                return line.rpartition(" ")[2].strip()
    raise RuntimeError("the browser ended before it listened")

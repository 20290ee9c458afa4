"""ComfyUI's routes as verbs. Every method raises `EngineCrashed` when there is no usable answer, and `AuthFailed`."""

from __future__ import annotations

import asyncio
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any
from urllib.parse import quote, urlencode
from uuid import uuid4

import pydantic_core

from worker.engines.answer import Answer, parsed
from worker.engines.client import Client
from worker.engines.comfyui.inventory import Inventory, inventory
from worker.engines.comfyui.outputs import Item
from worker.errors import AuthFailed, EngineCrashed
from worker.tasks import gather_bare

LARGE = 100_000
"""Bodies above so many bytes are parsed in a thread."""

LISTING = timedelta(minutes=2)
"""Lists may wait for a scan of a slow disk."""

MOVING = timedelta(minutes=5)
"""For each wait while a file is sent or fetched."""

UNLISTED = frozenset({"custom_nodes"})
"""A folder that is no folder of models: its list is every file of every extension."""


@dataclass(frozen=True, slots=True)
class Queued:
    """The ids of the prompts that run, and of those that wait."""

    running: tuple[str, ...]
    pending: tuple[str, ...]

    def __contains__(self, prompt_id: object) -> bool:
        return prompt_id in self.running or prompt_id in self.pending

    @property
    def empty(self) -> bool:
        return not (self.running or self.pending)


class Server:
    """One ComfyUI."""

    def __init__(self, client: Client) -> None:
        self._client = client
        self.cancels = False
        """Whether it has the route that cancels one prompt without a race, as versions of 2026 have."""

    @property
    def url(self) -> str:
        return self._client.url

    async def listens(self) -> bool:
        """Whether its port is open."""
        return await self._client.locate()

    async def stats(self) -> Answer:
        """What ``/system_stats`` says, whatever that is."""
        return allowed(await self._client.get("/system_stats"))

    async def remaining(self) -> int:
        """How many prompts run or wait: the cheapest question there is."""
        body = (await self._got("/prompt")).json
        info = body.get("exec_info") if isinstance(body, dict) else None
        count = info.get("queue_remaining") if isinstance(info, dict) else None
        if type(count) is not int:
            raise EngineCrashed("/prompt does not tell how many prompts wait")
        return count

    async def queue(self) -> Queued:
        body = await value(await self._got("/queue"))
        if not isinstance(body, dict):
            raise EngineCrashed("/queue did not answer with JSON")
        return Queued(_ids(body.get("queue_running")), _ids(body.get("queue_pending")))

    async def submit(self, body: Mapping[str, Any], *, timeout: timedelta) -> Answer:
        """One prompt; the answer, whatever it says."""
        return allowed(await self._client.post("/prompt", body, timeout=timeout))

    async def history(self, prompt_id: str) -> dict[str, Any] | None:
        """The entry of a prompt that has ended; None while it waits or runs, and when nobody knows it."""
        body = await value(await self._got(f"/history/{quote(prompt_id, safe='')}"))
        entry = body.get(prompt_id) if isinstance(body, dict) else None
        return entry if isinstance(entry, dict) else None

    async def forget(self, prompt_id: str) -> None:
        """Delete its entry from the history, of which the server keeps ten thousand, each with its whole graph."""
        await self._told("/history", {"delete": [prompt_id]})

    async def cancel(self, prompt_ids: Iterable[str]) -> None:
        """Delete what waits, interrupt what runs. It may be lost and takes its time: look, and repeat."""
        ids = list(prompt_ids)
        await self._told("/queue", {"delete": ids})
        for prompt_id in ids:
            if self.cancels:
                await self._client.post(f"/api/jobs/{quote(prompt_id, safe='')}/cancel")
            else:
                await self._told("/interrupt", {"prompt_id": prompt_id})

    async def free(self, *, unload: bool) -> None:
        """Drop the results of nodes, and the models; done by the worker thread between two prompts."""
        await self._told("/free", {"unload_models": unload, "free_memory": True})

    async def view(self, item: Item) -> bytes | None:
        """The bytes of an output; None where the server has no such file."""
        query = urlencode({"filename": item.filename, "subfolder": item.subfolder, "type": item.type})
        answer = allowed(await self._client.get(f"/view?{query}", timeout=MOVING))
        if answer.status in (400, 403, 404):
            return None
        return usable(answer, "/view").body

    async def upload(self, data: bytes, name: str, *, subfolder: str = "", type: str = "input") -> str:
        """Store a file in one of the server's folders; the name that a graph has for it."""
        fields = {"type": type, "subfolder": subfolder, "overwrite": "true"}
        body, media_type = multipart(fields, "image", name, data)
        answer = await self._client.send("POST", "/upload/image", body, media_type, timeout=MOVING)
        if answer.status == 413:
            raise EngineCrashed("the server's --max-upload-size is smaller than an input image")
        stored = usable(allowed(answer), "/upload/image").json
        if not isinstance(stored, dict) or not isinstance(stored.get("name"), str):
            raise EngineCrashed("/upload/image did not tell where the file is")
        place = stored.get("subfolder") or ""
        return f"{place}/{stored['name']}" if place else str(stored["name"])

    async def inventory(self) -> Inventory:
        """Everything that it can run: its node classes, its model files, its flags."""
        stats = usable(await self.stats(), "/system_stats").json
        self.cancels = await self._lists_jobs()
        listing = usable(allowed(await self._client.get("/object_info", timeout=LISTING)), "/object_info")
        return await asyncio.to_thread(_digested, listing.body, await self.folders(), stats)

    async def folders(self) -> dict[str, tuple[str, ...]]:
        """The model files of each folder. Files that were placed or removed since are seen at once."""
        names = (await self._got("/models", timeout=LISTING)).json
        wanted = [n for n in names if isinstance(n, str) and n not in UNLISTED] if isinstance(names, list) else []
        lists = await gather_bare([self._files(name) for name in wanted], name="comfyui-folder")
        return dict(zip(wanted, lists, strict=True))

    async def _files(self, folder: str) -> tuple[str, ...]:
        answer = allowed(await self._client.get(f"/models/{quote(folder, safe='')}", timeout=LISTING))
        found = answer.json if answer.ok else None
        return tuple(f for f in found if isinstance(f, str)) if isinstance(found, list) else ()

    async def folder_paths(self) -> dict[str, tuple[str, ...]]:
        """Where its model folders are on its disk; empty where it does not say."""
        answer = allowed(await self._client.get("/internal/folder_paths"))
        body = answer.json if answer.ok else None
        if not isinstance(body, dict):
            return {}
        return {k: tuple(p for p in v if isinstance(p, str)) for k, v in body.items() if isinstance(v, list)}

    async def metadata(self, folder: str, name: str) -> dict[str, Any] | None:
        """The metadata in a model file's header; None where it has none, or the server does not give it."""
        path = f"/view_metadata/{quote(folder, safe='')}?{urlencode({'filename': name})}"
        answer = allowed(await self._client.get(path, timeout=LISTING))
        body = answer.json if answer.ok else None
        return body if isinstance(body, dict) else None

    async def _lists_jobs(self) -> bool:
        answer = allowed(await self._client.get("/api/jobs?limit=1"))
        body = answer.json if answer.ok else None
        return isinstance(body, dict) and isinstance(body.get("jobs"), list)

    async def _got(self, path: str, **options: Any) -> Answer:
        return usable(allowed(await self._client.get(path, **options)), path)

    async def _told(self, path: str, body: Any) -> None:
        usable(allowed(await self._client.post(path, body)), path)


def allowed(answer: Answer) -> Answer:
    """The answer, unless a proxy before the server refuses our credentials."""
    if answer.status == 401:
        raise AuthFailed("the server answered 401")
    return answer


def usable(answer: Answer, path: str) -> Answer:
    """The answer, unless it is none of the server's own."""
    if not answer.ok:
        raise EngineCrashed(f"{path} answered {answer.status}")
    return answer


async def value(answer: Answer) -> Any:
    """The JSON value of a body; a large one is parsed in a thread."""
    return answer.json if len(answer.body) < LARGE else await asyncio.to_thread(parsed, answer.body)


def is_comfy(stats: Any) -> bool:
    """Whether this is what ComfyUI answers to ``/system_stats``."""
    return isinstance(stats, dict) and isinstance(stats.get("system"), dict) and "devices" in stats


def version_of(stats: Any) -> str | None:
    found = stats["system"].get("comfyui_version") if is_comfy(stats) else None
    return found if isinstance(found, str) else None


def multipart(fields: Mapping[str, str], field: str, name: str, data: bytes) -> tuple[bytes, str]:
    """A form with one file, and its media type. Names must hold no quotes, breaks or controls."""
    boundary = uuid4().hex
    head = "".join(
        f'--{boundary}\r\nContent-Disposition: form-data; name="{k}"\r\n\r\n{v}\r\n' for k, v in fields.items()
    )
    head += f'--{boundary}\r\nContent-Disposition: form-data; name="{field}"; filename="{name}"\r\n'
    head += "Content-Type: application/octet-stream\r\n\r\n"
    return b"".join(
        (head.encode(), data, f"\r\n--{boundary}--\r\n".encode())
    ), f"multipart/form-data; boundary={boundary}"


def _ids(items: Any) -> tuple[str, ...]:
    """The second part of each item of a queue, which is [number, id, graph, extra data, outputs]."""
    if not isinstance(items, list):
        return ()
    return tuple(str(item[1]) for item in items if isinstance(item, list) and len(item) > 1)


def _digested(body: bytes, folders: Mapping[str, tuple[str, ...]], stats: Any) -> Inventory:
    try:
        listing = pydantic_core.from_json(body)
    except ValueError:
        raise EngineCrashed("/object_info did not answer with JSON") from None
    return inventory(listing, folders, stats)

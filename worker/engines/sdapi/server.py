"""The server's verbs as each dialect has them: read its state, change its options and models, stop its work."""

from __future__ import annotations

from collections.abc import Mapping
from datetime import timedelta
from typing import Any
from urllib.parse import quote

from worker.engines.answer import Answer
from worker.engines.client import Client
from worker.engines.given import looked
from worker.engines.sdapi import names
from worker.engines.sdapi.dialects import OTHERWISE, PROBES, Dialect
from worker.engines.sdapi.failure import checked
from worker.engines.sdapi.inventory import LISTS, Inventory, all_fields, inventory, option_defaults
from worker.engines.sdapi.progress import Pulse, from_progress, from_status
from worker.errors import EngineCrashed, WorkerError

API = "/sdapi/v1/"
PROGRESS = "progress?skip_current_image=true"
ANYWHERE = "samplers"
"""A list that every server of the family has, to see whether its routes are there."""

STRANGERS = (
    ("/system_stats", "devices", "ComfyUI"),
    ("/v1/engines/all-models", "model_filenames", "Fooocus-API"),
)
"""What servers of other families answer, which have no route of ours."""

LISTING = timedelta(minutes=2)
"""Lists may wait for the server's lock, or for a scan of a slow disk."""


async def recognise(client: Client) -> Dialect:
    """The dialect of a server of the family. Raises `EngineCrashed` for any other, or none yet, and `AuthFailed`."""
    samplers = await client.get(API + ANYWHERE)
    if samplers.status in (401, 403):
        checked(samplers)
    if not (samplers.ok and names.texts(samplers.json, "name")):
        raise EngineCrashed(f"the port answers, but not, or not yet, below {API}")
    for probe, dialect in PROBES.items():
        answer = await client.get(API + probe)
        if answer.status in (401, 403):
            checked(answer)
        if answer.status != 404:
            return dialect
    return OTHERWISE


async def stranger(client: Client) -> str | None:
    """The server of another family that answers in place of one of ours; None where it may still be starting."""
    for path, key, title in STRANGERS:
        answer = await client.get(path)
        if answer.ok and isinstance(answer.json, dict) and key in answer.json:
            return title
    return None


class Server:
    """One server in its dialect. Methods raise `EngineCrashed` when it does not answer, and what its refusals mean."""

    def __init__(self, client: Client, dialect: Dialect) -> None:
        self._client = client
        self.dialect = dialect
        self._fields: dict[str, frozenset[str]] | None = None

    async def state(self) -> Answer:
        """Its raw word on the running work.

        Never ``/progress`` where there is ``/status``: asking for it makes SD.Next draw the very preview that it
        gives as the result when the generation then fails.
        """
        return await self._client.get(API + ("status" if self.dialect.reports_status else PROGRESS))

    async def pulse(self) -> Pulse | None:
        """How the running work goes; None where the server could not tell, as while it builds a preview."""
        return self.read(await self.state())

    def read(self, state: Answer) -> Pulse | None:
        if not state.ok:
            return None
        return from_status(state.json) if self.dialect.reports_status else from_progress(state.json)

    async def preview(self) -> bytes | None:
        """The picture as it is by now, where live previews are on. Never to be asked of SD.Next: see `state`."""
        answer = await self._client.get(API + "progress")
        return looked(answer.json.get("current_image")) if isinstance(answer.json, dict) else None

    async def interrupt(self) -> None:
        """Stop whatever runs now. It is lost on a request that still waits or loads: to be repeated."""
        checked(await self._client.post(API + "interrupt"))

    async def submit(self, endpoint: str, body: Mapping[str, Any]) -> Answer:
        """One generation; the answer may take as long as it likes."""
        return await self._client.post(API + endpoint, body, timeout=None)

    async def options(self) -> dict[str, Any]:
        """The global options; empty where the server fails on a stored one, as typed ones do.

        The current SD.Next lists only those that its settings file holds or that were set since its start: the
        defaults of all others come from its descriptions.
        """
        found = await self._listed(API + "options")
        if not isinstance(found, dict) or not self.dialect.reports_status:
            return found if isinstance(found, dict) else {}
        return option_defaults(await self._listed(API + "options-info")) | found

    async def configured(self) -> dict[str, Any]:
        """The options that the server itself tells of; no more than these."""
        found = await self._listed(API + "options")
        return found if isinstance(found, dict) else {}

    async def set_options(self, options: Mapping[str, Any], *, timeout: timedelta = LISTING) -> None:
        """Change global options. What it answers proves nothing: read them back."""
        checked(await self._client.post(API + "options", options, timeout=timeout))

    async def checkpoint(self) -> Any:
        """The body of ``/checkpoint`` where there is one."""
        if not self.dialect.reports_status:
            return None
        return (await self._client.get(API + "checkpoint")).json

    async def has_models(self) -> bool:
        answer = await self._client.get(API + "sd-models", timeout=LISTING)
        return answer.ok and bool(answer.json)

    async def waits_for_choice(self) -> bool:
        """Whether SD.Next has models and yet loads none at its start: none of them is selected, or it may not.

        A new installation selects a name that is no model, says that it takes the first, and takes none.
        """
        listed = names.checkpoints(await self._listed(API + "sd-models"))
        options = await self.options()
        selected = options.get("sd_model_checkpoint")
        known = isinstance(selected, str) and any(m.called(selected, n) for m in listed for n in range(names.LEVELS))
        return bool(listed) and not (known and options.get("sd_checkpoint_autoload", True))

    async def out_of_memory_count(self) -> int | None:
        """How often CUDA ran out of memory so far, where the server counts."""
        answer = await self._client.get(API + "memory")
        node = answer.json if answer.ok else None
        for key in ("cuda", "events", "oom"):
            node = node.get(key) if isinstance(node, dict) else None
        return node if type(node) is int else None

    async def inventory(self) -> Inventory:
        """Everything that it lists, and the fields of its own schemas, which are read once.

        The server builds its OpenAPI document once too: not to be called before its routes are complete.
        """
        if self._fields is None:
            self._fields = all_fields(await self._listed("/openapi.json"))
        lists = {name: await self._listed(API + name) for name in LISTS} | {"options": await self.options()}
        return inventory(
            self.dialect,
            lists,
            vaes=await self._listed(API + self.dialect.vaes),
            controlnets=await self._listed("/controlnet/model_list"),
            fields=self._fields,
        )

    async def _listed(self, path: str) -> Any:
        """The body of a list; None where there is no such list."""
        answer = await self._client.get(path, timeout=LISTING)
        return answer.json if answer.ok else None

    async def refresh(self) -> None:
        """Have it look for model files again; a list that it cannot refresh is left as it is."""
        for name in ("refresh-checkpoints", self.dialect.refresh_vae, "refresh-loras", "refresh-embeddings"):
            await self._client.post(API + name, timeout=LISTING)

    async def unload(self) -> None:
        checked(await self._client.post(API + "unload-checkpoint", timeout=LISTING))

    async def reload(self, *, timeout: timedelta) -> None:
        checked(await self._client.post(API + "reload-checkpoint", timeout=timeout))

    async def select(self, title: str, *, timeout: timedelta) -> None:
        """Load a listed model now, by the honest way of the dialect; only while nothing runs.

        The current SD.Next has one that tells whether it did; it takes no lock. Elsewhere it is the option, and
        Forge loads with the next job.
        """
        if self.dialect.reports_status:
            path = f"{API}checkpoint?sd_model_checkpoint={quote(title, safe='')}&force=true"
            checked(await self._client.post(path, timeout=timeout))
        else:
            await self.set_options({"sd_model_checkpoint": title}, timeout=timeout)


async def pulse_or_none(server: Server) -> Pulse | None:
    """A reading where there is one: what a poll fails with says nothing of the generation."""
    try:
        return await server.pulse()
    except EngineCrashed:
        return None


async def interrupt_if_possible(server: Server) -> None:
    """An interrupt that will be repeated may fail."""
    try:
        await server.interrupt()
    except WorkerError:
        return

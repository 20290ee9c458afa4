"""Requests of callers in the server's own language, beside the jobs: what is asked, what is hidden, what is undone.

Readings change nothing, which some of the servers' own do: asking the current SD.Next for its progress has it draw
the preview that it gives as the result of a generation that then fails. Changes are checked as jobs are: a model
that is not there would unload the present one, and some settings are what the answers to jobs rest on.
"""

from __future__ import annotations

import asyncio
import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import pydantic_core

from worker.engines.answer import Answer
from worker.engines.base import NativeCall
from worker.engines.client import Client
from worker.engines.sdapi.failure import failure
from worker.engines.sdapi.inventory import Inventory
from worker.engines.sdapi.models import Naming, override_models
from worker.engines.sdapi.overrides import is_ours
from worker.engines.sdapi.progress import progress_of
from worker.engines.sdapi.server import API, Server
from worker.errors import EngineOutOfMemory, GenerationRejected, GpuFault, InvalidJob
from worker.job import document_of

OPTIONS, CHECKPOINT, PROGRESS = f"{API}options", f"{API}checkpoint", f"{API}progress"
UNLOAD, RELOAD = f"{API}unload-checkpoint", f"{API}reload-checkpoint"
CHOOSING = frozenset({OPTIONS, CHECKPOINT, RELOAD})
REFRESH = f"{API}refresh-"
_TELLING = frozenset({OPTIONS, f"{API}cmd-flags"})
"""Readings among whose values there are credentials."""

_SECRET = re.compile(r"(?:^|_)(?:token|auth|password|secret|credentials?|(?:api_?|access_?)?key|ngrok)(?:_|$)")


async def read(client: Client, server: Server, call: NativeCall) -> Answer:
    """The answer to a GET, without credentials. Raises what `Client.relay` raises."""
    if call.path == PROGRESS:
        if server.dialect.reports_status:
            return _told(await server.state())
        if server.dialect.swallows:
            call = replace(call, query={**call.query, "skip_current_image": "true"})
    answer = await client.relay(call)
    if call.path in _TELLING and answer.ok:
        return await asyncio.to_thread(without_secrets, answer)
    return answer


def _told(status: Answer) -> Answer:
    """The progress by the current SD.Next's ``/status``."""
    found = progress_of(status.json) if status.ok else None
    return status if found is None else _json(status, found)


def _json(answer: Answer, document: Any) -> Answer:
    return Answer(answer.status, {"content-type": "application/json"}, pydantic_core.to_json(document))


def is_secret(name: str) -> bool:
    """Whether an option of this name holds a credential."""
    return _SECRET.search(name.lower()) is not None


def without_secrets(answer: Answer) -> Answer:
    """The same object with the empty text for each credential."""
    document = answer.json
    if not isinstance(document, dict):
        return answer
    return _json(answer, {k: "" if is_secret(k) and isinstance(v, str) else v for k, v in document.items()})


def checked(call: NativeCall, inventory: Inventory, options: Mapping[str, Any]) -> NativeCall:
    """The change as it may be made, its models named as the server lists them; ``options`` are the present ones.

    Raises `InvalidJob` and `ModelNotFound`.
    """
    if call.path == OPTIONS:
        document = settable(document_of(call.body or b"", max_body=len(call.body or b"")), inventory, options)
        return replace(call, body=pydantic_core.to_json(document), media_type="application/json")
    name = call.query.get("sd_model_checkpoint")
    if call.path == CHECKPOINT and name:
        title = Naming(inventory).checkpoint(name, field="sd_model_checkpoint").title
        return replace(call, query={**call.query, "sd_model_checkpoint": title})
    return call


def sound(answer: Answer) -> Answer:
    """The answer, unless it is a 500 that tells of the request, of memory or of the GPU: then the error of that."""
    if answer.status >= 500:
        error = failure(answer.status, answer.headers, answer.body)
        if isinstance(error, (GenerationRejected, EngineOutOfMemory, GpuFault)):
            raise error
    return answer


def settable(document: Mapping[str, Any], inventory: Inventory, options: Mapping[str, Any]) -> dict[str, Any]:
    """The options to be set. Clients send all that they have read, so what stays as it is is never refused.

    A credential that was read as the empty text is left alone.
    """
    wanted = {k: v for k, v in document.items() if not (is_secret(k) and v == "")}
    for key, value in wanted.items():
        if options and key not in options:
            raise InvalidJob(f"{inventory.dialect.title} has no such option", field=key)
        if is_ours(key) and options.get(key) != value:
            raise InvalidJob("is the operator's to set", field=key)
    changed = {k: v for k, v in wanted.items() if k not in options or options[k] != v}
    naming = Naming(inventory)
    override_models(changed, naming, root="")
    name = changed.get("sd_model_checkpoint")
    if name is not None:
        if not isinstance(name, str):
            raise InvalidJob("must be a name", field="sd_model_checkpoint")
        changed["sd_model_checkpoint"] = naming.checkpoint(name, field="sd_model_checkpoint").title
    return wanted | changed

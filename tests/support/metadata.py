"""SaladCloud's instance metadata service, as its reference describes it, on a real socket.

``python -m tests.support.metadata [--port N]`` serves it until it is killed, and prints its address and each call.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from tests.support.receiver import Answer, Request, ScriptedServer

MACHINE, GROUP, ORGANIZATION = "machine-7", "group-3", "organization-1"
FORWARDED = ("x-forwarded-for", "x-forwarded-host", "x-forwarded-proto")
COSTS = range(-(2**31), 2**31)


@dataclass(frozen=True)
class Call:
    """A request that was understood, and how it was answered."""

    method: str
    path: str
    document: Any
    status: int


class MetadataService(ScriptedServer):
    """Hands out tokens ``token(1)``, ``token(2)``, ...: another one each time, or the same while ``is_cached``.

    ``calls`` are all requests in their order; those that the ``script`` answered are among them. What is ``missing``
    is answered 404. ``on_reallocate`` is what befalls the instance.
    """

    def __init__(self, *script: Answer, port: int = 0) -> None:
        super().__init__(*script, port=port)
        self.calls: list[Call] = []
        self.deletion_cost = 0
        self.reasons: list[str] = []
        self.missing: set[str] = set()
        self.is_cached = False
        self.tokens = 0
        self.on_reallocate: Callable[[], None] = lambda: None
        self.on_call: Callable[[Call], None] = lambda call: None

    def answer(self, request: Request) -> Answer:
        document = json.loads(request.body) if request.body else None
        found = self.script.popleft() if self.script else self._judged(request, document)
        call = Call(request.method, request.target, document, 0 if found.hang or found.stall else found.status)
        self.calls.append(call)
        self.on_call(call)
        return found

    @property
    def asked(self) -> Counter[tuple[str, str]]:
        """How often each endpoint was asked for what."""
        return Counter((call.method, call.path) for call in self.calls)

    @property
    def costs(self) -> list[int]:
        """The deletion costs that were taken, in their order."""
        told = [call for call in self.calls if (call.method, call.status) == ("PUT", 204)]
        return [call.document["deletion_cost"] for call in told]

    def variables(self, instance: str = "instance-1") -> dict[str, str]:
        """What the platform sets in its containers."""
        return {
            "SALAD_MACHINE_ID": MACHINE,
            "SALAD_INSTANCE_ID": instance,
            "SALAD_CONTAINER_GROUP_ID": GROUP,
            "SALAD_CONTAINER_GROUP_NAME": "images",
            "SALAD_ORGANIZATION_ID": ORGANIZATION,
            "SALAD_ORGANIZATION_NAME": "acme",
            "SALAD_PROJECT_ID": "project-5",
            "SALAD_PROJECT_NAME": "pictures",
            "SALAD_METADATA_URI": self.url("").rstrip("/"),
        }

    def _judged(self, request: Request, document: Any) -> Answer:
        if request.headers.get("metadata") != "true" or any(name in request.headers for name in FORWARDED):
            return problem(403, "forbidden")
        if request.path in self.missing:
            return problem(404, "not_found")
        match request.method, request.target:
            case "GET", "/v1/status":
                return said({"ready": True, "started": True})
            case "GET", "/v1/token":
                self.tokens += not (self.is_cached and self.tokens)
                return said({"jwt": token(self.tokens)})
            case "GET", "/v1/deletion-cost":
                return said({"deletion_cost": self.deletion_cost})
            case "PUT", "/v1/deletion-cost":
                return self._costs(document)
            case "POST", "/v1/reallocate":
                return self._moves(document)
        return problem(404, "not_found")

    def _costs(self, document: Any) -> Answer:
        match document:
            case {"deletion_cost": int() as cost} if cost in COSTS and not isinstance(cost, bool):
                self.deletion_cost = cost
                return Answer(204)
        return problem(400, "validation_failed")

    def _moves(self, document: Any) -> Answer:
        match document:
            case {"reason": str() as reason} if 1 <= len(reason) <= 1000:
                self.reasons.append(reason)
                self.on_reallocate()
                return Answer(204)
        return problem(400, "validation_failed")


def token(number: int, subject: str = MACHINE) -> str:
    """A JWT by its shape, with the claims that the platform's have; nobody could verify it."""
    claims = {"sub": subject, "aud": ORGANIZATION, "salad_machine_id": MACHINE, "salad_workload_id": GROUP, "n": number}
    claims |= {"salad_organization_id": ORGANIZATION, "salad_organization_name": "acme"}
    return f"{_part({'alg': 'ES256', 'kid': 'k1'})}.{_part(claims)}.c2lnbmF0dXJl{number}"


def _part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def said(document: dict[str, Any]) -> Answer:
    """A document as the answer."""
    return Answer(200, {"content-type": "application/json"}, json.dumps(document).encode())


def problem(status: int, code: str) -> Answer:
    body = {"status": status, "code": code, "title": code, "type": "about:blank", "detail": None, "errors": {}}
    return Answer(status, {"content-type": "application/problem+json"}, json.dumps(body).encode())


async def _serve(port: int) -> None:
    async with MetadataService(port=port) as service:
        service.on_call = lambda call: print(json.dumps(vars(call)), flush=True)
        print(json.dumps({"listening": service.url("")}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A stand-in of SaladCloud's instance metadata service.")
    arguments.add_argument("--port", type=int, default=0, help="on [::1]; any that is free")
    asyncio.run(_serve(arguments.parse_args().port))

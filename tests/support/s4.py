"""S4, SaladCloud's temporary store, as its specification and its published source have it, on a real socket.

``python -m tests.support.s4 [--port N]`` serves it until it is killed, and prints its address and each request.
"""

from __future__ import annotations

import argparse
import asyncio
import base64
import json
from dataclasses import dataclass
from typing import Any
from urllib.parse import parse_qs

from tests.support.receiver import Answer, Request, ScriptedServer

ORGANIZATION = "acme"
BEGAN = 1_800_000_000
"""Seconds since the epoch at which the store's clock starts; it goes on only when a test moves it."""

DAY = 86_400
KEPT = 30 * DAY
LINKS = range(60, 30 * DAY + 1)
LARGEST = 100_000_000


@dataclass(frozen=True)
class Stored:
    data: bytes
    mime_type: str
    at: int


@dataclass(frozen=True)
class _Link:
    organization: str
    name: str
    until: int


class S4Service(ScriptedServer):
    """What a ``script`` holds is answered first. Identity tokens in ``refused`` are not taken any more.

    ``files`` by organization and name, both as they stand in URLs. ``keys`` are API keys by organization.
    """

    def __init__(self, *script: Answer, port: int = 0) -> None:
        super().__init__(*script, port=port)
        self.files: dict[tuple[str, str], Stored] = {}
        self.keys: dict[str, str] = {}
        self.refused: set[str] = set()
        self.now = BEGAN
        self.largest = LARGEST
        self._links: dict[str, _Link] = {}
        self._serial = 0

    def answer(self, request: Request) -> Answer:
        return self.script.popleft() if self.script else self._judged(request)

    def names(self, organization: str = ORGANIZATION) -> set[str]:
        self._tidy()
        return {name for owner, name in self.files if owner == organization}

    def write(self, name: str, data: bytes, mime_type: str = "application/json") -> None:
        self.files[ORGANIZATION, name] = Stored(data, mime_type, self.now)

    def read(self, name: str) -> bytes:
        return self.files[ORGANIZATION, name].data

    def asked(self, method: str, containing: str = "") -> list[Request]:
        return [one for one in self.requests if one.method == method and containing in one.target]

    def _judged(self, request: Request) -> Answer:
        self._tidy()
        match request.path.split("/", 4):
            case ["", "organizations", organization, collection]:
                name = ""
            case ["", "organizations", organization, collection, name] if name:
                pass
            case _:
                return _error(404, "Not Found")
        denied = self._denied(request, organization, name)
        if denied is not None:
            return denied
        match request.method, collection, bool(name):
            case "PUT", "files", True:
                return self._put(request, organization, name)
            case "GET", "files", True:
                return self._get(organization, name)
            case "GET", "files", False:
                return self._list(organization)
            case "DELETE", "files", True:
                self.files.pop((organization, name), None)
                return Answer(204)
            case "POST", "file_tokens", True:
                return self._sign(request, organization, name)
        return _error(404, "Not Found")

    def _denied(self, request: Request, organization: str, name: str) -> Answer | None:
        """As its middleware: a link's token, else an API key, else the identity token must fit the organization."""
        given = parse_qs(request.target.partition("?")[2]).get("token", [])
        bearer = request.headers.get("authorization", "")
        key = request.headers.get("salad-api-key")
        if given:
            link = self._links.get(given[0])
            if link is None or link.until <= self.now:
                return _error(401, "Invalid Access Token")
            fits = (link.organization, link.name, "GET") == (organization, name, request.method)
            return None if fits else _error(401, "Access Denied")
        if key is not None:
            return None if self.keys.get(organization) == key else _error(401, "Invalid API Key")
        if not bearer:
            return _error(401, "API Key, JWT, or Access Token Required")
        return self._mistrusted(bearer.removeprefix("Bearer "), organization)

    def _mistrusted(self, token: str, organization: str) -> Answer | None:
        claims = _claims(token)
        if claims is None or token in self.refused:
            return _error(401, "signature verification failed")
        if claims["exp"] <= self.now:
            return _error(401, '"exp" claim timestamp check failed')
        named = claims["salad_organization_name"] == organization
        return None if named else _error(401, "Invalid Organization Name")

    def _put(self, request: Request, organization: str, name: str) -> Answer:
        if len(request.body) > self.largest:
            return _error(413, "Payload Too Large")
        kind, _, parameters = request.headers.get("content-type", "").partition(";")
        if kind.strip() != "multipart/form-data":
            return _error(400, "Invalid content type. Must be multipart/form-data")
        form = _form(request.body, parameters.partition("boundary=")[2].strip('" '))
        if "file" not in form:
            return _error(400, "No file uploaded")
        mime_type = form.get("mimeType", b"application/octet-stream").decode()
        self.files[organization, name] = Stored(form["file"], mime_type, self.now)
        if form.get("sign", b"").lower() != b"true":
            return _said({"url": self._address(organization, name)})
        return self._linked(organization, name, form.get("signatureExp", str(KEPT).encode()).decode())

    def _get(self, organization: str, name: str) -> Answer:
        found = self.files.get((organization, name))
        if found is None:
            return Answer(404, {"content-type": "text/plain"}, b"File not found")
        return Answer(200, {"content-type": found.mime_type}, found.data)

    def _list(self, organization: str) -> Answer:
        found = [
            {"url": self._address(owner, name), "size": len(one.data), "mimeType": one.mime_type, "uploaded": one.at}
            for (owner, name), one in sorted(self.files.items())
            if owner == organization
        ]
        return _said({"files": found})

    def _sign(self, request: Request, organization: str, name: str) -> Answer:
        asked = json.loads(request.body)
        if asked.get("method", "GET") != "GET":
            return _error(400, "Invalid method. Must be GET")
        if (organization, name) not in self.files:
            return Answer(404, {"content-type": "text/plain"}, b"File not found")
        return self._linked(organization, name, str(asked.get("exp", KEPT)))

    def _linked(self, organization: str, name: str, seconds: str) -> Answer:
        if not seconds.isdecimal() or int(seconds) not in LINKS:
            return _error(400, f"Expiration time must be between {LINKS[0]} and {LINKS[-1]} (seconds)")
        self._serial += 1
        token = f"link-{self._serial}"
        self._links[token] = _Link(organization, name, self.now + int(seconds))
        return _said({"url": f"{self._address(organization, name)}?token={token}"})

    def _address(self, organization: str, name: str) -> str:
        return self.url(f"/organizations/{organization}/files/{name}")

    def _tidy(self) -> None:
        """What is older than 30 days is deleted."""
        self.files = {key: one for key, one in self.files.items() if one.at + KEPT > self.now}


def identity_token(number: int = 1, organization: str = ORGANIZATION, until: int = BEGAN + 300) -> str:
    """A node's token as the platform makes them, but for its signature."""
    claims = {"salad_organization_name": organization, "salad_machine_id": "machine-7", "exp": until, "n": number}
    return f"{_part({'alg': 'ES256', 'kid': 'k1'})}.{_part(claims)}.c2lnbmF0dXJl{number}"


class Tokens:
    """A node's source of tokens: the first of ``left`` each time, the last for ever; ``refusals`` as they were told."""

    def __init__(self, *tokens: str | None) -> None:
        self.left = list(tokens or (identity_token(),))
        self.refusals: list[str] = []

    async def __call__(self, refused: str | None = None) -> str | None:
        if refused is not None:
            self.refusals.append(refused)
            if len(self.left) > 1:
                self.left.pop(0)
        return self.left[0]


def _form(body: bytes, boundary: str) -> dict[str, bytes]:
    """The parts of a form by their names."""
    found = {}
    for part in body.split(b"--" + boundary.encode())[1:-1]:
        head, _, data = part.partition(b"\r\n\r\n")
        name = head.partition(b'name="')[2].partition(b'"')[0]
        found[name.decode()] = data.removesuffix(b"\r\n")
    return found


def _claims(token: str) -> dict[str, Any] | None:
    try:
        _, claims, _ = token.split(".")
        found = json.loads(base64.urlsafe_b64decode(claims + "=" * (-len(claims) % 4)))
    except ValueError:
        return None
    return {"exp": BEGAN + KEPT, "salad_organization_name": "", **found}


def _part(document: dict[str, Any]) -> str:
    return base64.urlsafe_b64encode(json.dumps(document).encode()).decode().rstrip("=")


def _said(document: dict[str, Any]) -> Answer:
    return Answer(200, {"content-type": "application/json"}, json.dumps(document).encode())


def _error(status: int, reason: str) -> Answer:
    document = {"status": status, "error": reason}
    return Answer(status, {"content-type": "application/json"}, json.dumps(document).encode())


class _Telling(S4Service):
    def answer(self, request: Request) -> Answer:
        found = super().answer(request)
        print(json.dumps({"method": request.method, "target": request.target, "status": found.status}), flush=True)
        return found


async def _serve(port: int) -> None:
    async with _Telling(port=port) as service:
        print(json.dumps({"listening": service.url("")}), flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    arguments = argparse.ArgumentParser(description="A stand-in of S4, SaladCloud's temporary store.")
    arguments.add_argument("--port", type=int, default=0, help="on [::1]; any that is free")
    asyncio.run(_serve(arguments.parse_args().port))

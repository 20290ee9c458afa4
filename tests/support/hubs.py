"""Hugging Face and Civitai as far as a downloader sees them, on real sockets, with the stores behind them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any
from urllib.parse import parse_qs, quote, unquote

from tests.support.model_host import HostedFile, ModelHost, Twist
from tests.support.receiver import Answer, Request, ScriptedServer

COMMIT = "8f2c3a9d0b1e4f5a6c7d8e9f0a1b2c3d4e5f6a7b"
NO_TOKEN_HERE = Twist(400, {"content-type": "application/xml"}, b"<Error><Code>InvalidArgument</Code></Error>")
"""What stores answer when a token comes along with a signed link."""


def sha256_of(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def _json(status: int, document: Any, **headers: str) -> Answer:
    return Answer(status, {"content-type": "application/json", **headers}, json.dumps(document).encode())


def _store(store: ModelHost, body: bytes, signature: str) -> str:
    """Keep the bytes where only that signature opens them, and no token may come along."""
    path = f"/store/{sha256_of(body)}"
    file = store.files.get(path) or store.host(path, HostedFile(body))
    file.signature = signature
    file.chosen = lambda request: NO_TOKEN_HERE if "authorization" in request.headers else None
    return store.url(f"{path}?sig={signature}")


def _token(request: Request) -> str | None:
    kind, _, token = request.headers.get("authorization", "").partition(" ")
    return token if kind == "Bearer" else None


@dataclass
class Repo:
    """A repository. ``small`` files are kept in git itself, so that no sha256 is told of them."""

    files: dict[str, bytes]
    small: frozenset[str] = frozenset()
    commit: str = COMMIT
    revisions: frozenset[str] = frozenset({"main"})
    gated: bool = False
    private: bool = False
    disabled: bool = False
    renamed: str | None = None


class HuggingFaceHub(ScriptedServer):
    """Answers ``resolve`` requests. ``tokens`` maps each valid token to the gated or private repositories it opens."""

    def __init__(self, store: ModelHost) -> None:
        super().__init__()
        self.store = store
        self.repos: dict[str, Repo] = {}
        self.tokens: dict[str, set[str]] = {}

    def answer(self, request: Request) -> Answer:
        if self.script:
            return self.script.popleft()
        name, _, rest = unquote(request.path).strip("/").partition("/resolve/")
        repo, token = self.repos.get(name), _token(request)
        if token is not None and token not in self.tokens:
            return _refused(401, "", "Invalid credentials in Authorization header")
        opened = token is not None and name in self.tokens[token]
        if repo is None or (repo.private and not opened):
            return _refused(401 if token is None else 404, "RepoNotFound", "Repository not found")
        if repo.renamed is not None:
            return Answer(307, {"location": request.target.replace(name, repo.renamed, 1)})
        if repo.disabled:
            return _refused(403, "DisabledRepo", "Access to this resource is disabled.")
        revision = next((one for one in (*repo.revisions, repo.commit) if rest.startswith(f"{one}/")), None)
        if revision is None:
            return _refused(404, "RevisionNotFound", "Invalid rev id")
        path = rest.removeprefix(f"{revision}/")
        if path not in repo.files:
            return _refused(404, "EntryNotFound", "Entry not found")
        if repo.gated and not opened:
            return _refused(401 if token is None else 403, "GatedRepo", f"Access to model {name} is restricted.")
        return self._file(repo, path, repo.files[path])

    def _file(self, repo: Repo, path: str, body: bytes) -> Answer:
        digest = sha256_of(body)
        if path in repo.small:
            return Answer(200, {"x-repo-commit": repo.commit, "etag": f'"{digest[:40]}"'}, body)
        return Answer(
            302,
            {
                "x-repo-commit": repo.commit,
                "x-linked-etag": f'"{digest}"',
                "x-linked-size": str(len(body)),
                "location": _store(self.store, body, f"hf-{len(self.requests)}"),
            },
        )


def _refused(status: int, code: str, message: str) -> Answer:
    return _json(status, {"error": message}, **({"x-error-code": code} if code else {}), **{"x-error-message": message})


@dataclass
class File:
    """A file of a version at Civitai."""

    id: int
    body: bytes
    name: str = "model.safetensors"
    type: str = "Model"
    primary: bool = False
    metadata: Mapping[str, str] = field(default_factory=dict)
    hashed: bool = True

    def document(self, base_url: str, version: int) -> dict[str, Any]:
        return {
            "id": self.id,
            "name": self.name,
            "type": self.type,
            "sizeKB": len(self.body) / 1024,
            "metadata": dict(self.metadata),
            "hashes": {"SHA256": sha256_of(self.body).upper(), "AutoV2": "0A1B2C3D4E"} if self.hashed else {},
            "downloadUrl": f"{base_url}/api/download/models/{version}",
            **({"primary": True} if self.primary else {}),
        }


@dataclass
class Version:
    """A version at Civitai. ``lost``: that many downloads are answered 404 although it is there."""

    files: list[File]
    login: bool = False
    switched_off: bool = False
    early_until: str | None = None
    archived: bool = False
    lost: int = 0


class CivitaiHub(ScriptedServer):
    """Answers the API and the download URL. ``tokens`` are valid; ``pages``: who asks no JSON gets pages for people."""

    def __init__(self, store: ModelHost) -> None:
        super().__init__()
        self.store = store
        self.versions: dict[int, Version] = {}
        self.tokens: set[str] = set()
        self.pages = False

    @property
    def downloads(self) -> list[Request]:
        return [one for one in self.requests if one.path.startswith("/api/download/")]

    def answer(self, request: Request) -> Answer:
        if self.script:
            return self.script.popleft()
        match request.path.strip("/").split("/"):
            case ["api", "v1", "model-versions", "by-hash", digest]:
                return self._by_hash(digest)
            case ["api", "v1", "model-versions", version] if int(version) in self.versions:
                return self._described(int(version))
            case ["api", "download", "models", version] if int(version) in self.versions:
                return self._download(self.versions[int(version)], request)
        return _json(404, {"error": f"No version at {quote(request.path)}"})

    def _described(self, id: int) -> Answer:
        version = self.versions[id]
        files = [file.document(self.url(""), id) for file in version.files]
        return _json(200, {"id": id, "files": files, "earlyAccessEndsAt": version.early_until})

    def _by_hash(self, digest: str) -> Answer:
        for number, version in self.versions.items():
            if not version.archived and any(sha256_of(file.body).upper() == digest for file in version.files):
                return self._described(number)
        return _json(404, {"error": "Model not found"})

    def _download(self, version: Version, request: Request) -> Answer:
        wants_json = request.headers.get("content-type") == "application/json" and not self.pages
        if request.method == "HEAD":
            return Answer(401)
        if version.archived:
            return _json(410, {"error": "Model archived, not available for download"})
        if version.lost:
            version.lost -= 1
            return _json(404, {"error": "Model file not found"})
        if version.switched_off:
            return _json(401, {"error": "Unauthorized", "message": "The creator has disabled downloads on this file"})
        if version.login and _token(request) not in self.tokens:
            said = {"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"}
            return _json(401, said) if wants_json else Answer(307, {"location": "/login?reason=download-auth"})
        if version.early_until:
            said = {"error": "Early Access", "deadline": version.early_until}
            return _json(403, said) if wants_json else Answer(307, {"location": "/models/1"})
        asked = parse_qs(request.target.partition("?")[2]).get("fileId", [""])[0]
        file = next((one for one in version.files if str(one.id) == asked), None)
        if file is None:
            return _json(404, {"error": "Model file not found"})
        return Answer(307, {"location": _store(self.store, file.body, f"civitai-{len(self.requests)}")})


@dataclass(frozen=True)
class Hubs:
    hugging_face: HuggingFaceHub
    civitai: CivitaiHub
    store: ModelHost


@asynccontextmanager
async def hubs() -> AsyncIterator[Hubs]:
    """Both hubs, over one store."""
    async with ModelHost() as store, HuggingFaceHub(store) as hugging_face, CivitaiHub(store) as civitai:
        yield Hubs(hugging_face, civitai, store)

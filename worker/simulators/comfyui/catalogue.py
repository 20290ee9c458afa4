"""The routes that list: node classes, models, system, features, folders, logs."""

from __future__ import annotations

import asyncio
import time
from pathlib import PurePosixPath

from starlette.requests import Request
from starlette.responses import Response

from worker.simulators.comfyui.api import Api, document, empty
from worker.simulators.comfyui.folders import FOLDERS
from worker.simulators.comfyui.nodes.registry import known
from worker.simulators.comfyui.weights import BadWeights, header_of

_METADATA_LIMIT = 1 << 20
_VIRTUAL_SIZE = 2_132_625_222


def add_catalogue(api: Api) -> None:
    """All routes that only list."""
    _add_nodes(api)
    _add_models(api)
    _add_system(api)


def _add_nodes(api: Api) -> None:
    machine = api.machine

    async def every(_: Request) -> Response:
        nodes = known(machine.knobs.missing_nodes, newest=machine.knobs.newest)
        return document({name: spec.described(machine.folders) for name, spec in nodes.items()})

    async def one(request: Request) -> Response:
        name = request.path_params["name"]
        spec = known(machine.knobs.missing_nodes, newest=machine.knobs.newest).get(name)
        return document({name: spec.described(machine.folders)} if spec else {})

    api.add("GET", "/object_info", every)
    api.add("GET", "/object_info/{name}", one)


def _add_models(api: Api) -> None:
    folders = api.machine.folders

    async def kinds(_: Request) -> Response:
        return document(list(FOLDERS))

    async def names(request: Request) -> Response:
        folder = request.path_params["folder"]
        return document(folders.names(folder)) if folder in FOLDERS else empty(404)

    async def places(_: Request) -> Response:
        shown = [folder for folder in FOLDERS if folder not in ("configs", "custom_nodes")]
        return document([{"name": f, "folders": [str(p) for p in folders.paths(f)]} for f in shown])

    async def embeddings(_: Request) -> Response:
        return document([str(PurePosixPath(name).with_suffix("")) for name in folders.names("embeddings")])

    async def metadata(request: Request) -> Response:
        name, folder = request.query_params.get("filename", ""), request.path_params["folder"]
        path = folders.real(folder, name) if folder in FOLDERS and name.endswith(".safetensors") else None
        if path is None:
            return empty(404)
        try:
            header = await asyncio.to_thread(header_of, path, _METADATA_LIMIT)
        except BadWeights:
            return empty(404)
        return document(header["__metadata__"]) if "__metadata__" in header else empty(404)

    api.add("GET", "/models", kinds)
    api.add("GET", "/models/{folder}", names)
    api.add("GET", "/experiment/models", places)
    _add_details(api)
    api.add("GET", "/embeddings", embeddings)
    api.add("GET", "/view_metadata/{folder}", metadata)


def _add_details(api: Api) -> None:
    folders = api.machine.folders

    async def details(request: Request) -> Response:
        folder = request.path_params["folder"]
        if folder not in FOLDERS:
            return empty(404)
        found = []
        for name in folders.names(folder):
            path = folders.real(folder, name)
            stat = path.stat() if path else None
            index = next((n for n, root in enumerate(folders.paths(folder)) if path and root in path.parents), 0)
            times = (stat.st_mtime, stat.st_ctime) if stat else (0.0, 0.0)
            size = stat.st_size if stat else _VIRTUAL_SIZE
            found.append({"name": name, "pathIndex": index, "modified": times[0], "created": times[1], "size": size})
        return document(found)

    api.add("GET", "/experiment/models/{folder}", details)


def _add_system(api: Api) -> None:
    machine = api.machine
    began = time.strftime("%Y-%m-%dT%H:%M:%S")
    entries = [{"t": began, "m": f"ComfyUI version: {machine.version}\n"}, {"t": began, "m": "Starting server\n"}]

    async def stats(_: Request) -> Response:
        return document(machine.stats_document())

    async def features(_: Request) -> Response:
        return document(machine.features())

    async def folder_paths(_: Request) -> Response:
        return document({folder: [str(p) for p in machine.folders.paths(folder)] for folder in FOLDERS})

    async def logs(_: Request) -> Response:
        return document("".join(f"{entry['t']} - {entry['m']}" for entry in entries))

    async def raw_logs(_: Request) -> Response:
        return document({"entries": entries, "size": {"cols": 80, "rows": 24}})

    async def files(request: Request) -> Response:
        directory = machine.folders.directory(request.path_params["kind"])
        if directory is None:
            return document({"error": "Invalid directory type"}, 400)
        found = [path for path in directory.iterdir() if path.is_file()]
        return document([path.name for path in sorted(found, key=lambda path: -path.stat().st_mtime)])

    api.add("GET", "/system_stats", stats)
    api.add("GET", "/features", features)
    api.add("GET", "/internal/folder_paths", folder_paths, api="")
    api.add("GET", "/internal/logs", logs, api="")
    api.add("GET", "/internal/logs/raw", raw_logs, api="")
    api.add("GET", "/internal/files/{kind}", files, api="")

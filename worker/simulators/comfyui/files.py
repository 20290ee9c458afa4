"""The routes that take input files and give out files."""

from __future__ import annotations

import io
import json
import mimetypes
import os
from pathlib import Path

from PIL import Image
from PIL.PngImagePlugin import PngInfo
from starlette.datastructures import QueryParams
from starlette.requests import Request
from starlette.responses import FileResponse, Response

from worker.simulators.comfyui.api import Api, document, empty
from worker.simulators.comfyui.folders import Folders, split_annotation
from worker.simulators.comfyui.multipart import Field, fields

_DOWNLOADS = ("text/html", "text/html-sandboxed", "application/xhtml+xml", "text/javascript", "text/css")


def add_files(api: Api) -> None:
    """Uploads and `GET /view`."""
    machine = api.machine

    async def upload(request: Request) -> Response:
        form = fields(request.headers.get("content-type", ""), await api.body(request))
        return _uploaded(api, form, form["image"].data if "image" in form else b"")

    async def upload_mask(request: Request) -> Response:
        form = fields(request.headers.get("content-type", ""), await api.body(request))
        if "image" not in form:
            return empty(400)
        return _uploaded(api, form, _with_mask(machine.folders, form))

    async def view(request: Request) -> Response:
        found = _viewed(machine.folders, request.query_params)
        return found if isinstance(found, Response) else _shown(found, request.query_params)

    api.add("POST", "/upload/image", upload)
    api.add("POST", "/upload/mask", upload_mask)
    api.add("GET", "/view", view)


def _text(form: dict[str, Field], name: str, default: str = "") -> str:
    return form[name].data.decode() if name in form else default


def _inside(root: Path, path: str) -> bool:
    return os.path.commonpath((root, path)) == str(root)


def _uploaded(api: Api, form: dict[str, Field], data: bytes) -> Response:
    kind = _text(form, "type", "input")
    root = api.machine.folders.directory(kind)
    if root is None:
        raise ValueError(f"no folder for {kind}")
    image = form.get("image")
    if image is None or not image.filename:
        return empty(400)
    subfolder, filename = _text(form, "subfolder"), image.filename
    folder = Path(os.path.abspath(root / os.path.normpath(subfolder)))  # noqa: PTH100
    path = os.path.abspath(folder / filename)  # noqa: PTH100
    if not _inside(root, path):
        return empty(400)
    folder.mkdir(parents=True, exist_ok=True)
    name = filename
    if _text(form, "overwrite") not in ("true", "1"):
        name = _free_name(folder, filename, image.data)
    (folder / name).write_bytes(data)
    api.machine.stats.uploads.append(f"{kind}/{subfolder}/{name}" if subfolder else f"{kind}/{name}")
    return document({"name": name, "subfolder": subfolder, "type": kind})


def _free_name(folder: Path, filename: str, data: bytes) -> str:
    """The name itself, or with a number when a file of other contents has it."""
    stem, suffix = os.path.splitext(filename)  # noqa: PTH122
    name, number = filename, 1
    while (folder / name).exists() and (folder / name).read_bytes() != data:
        name = f"{stem} ({number}){suffix}"
        number += 1
    return name


def _with_mask(folders: Folders, form: dict[str, Field]) -> bytes:
    """The original picture with the alpha channel of the upload. Raises `ValueError` and other stumbles."""
    reference = json.loads(_text(form, "original_ref", "null"))
    name, kind = split_annotation(reference["filename"])
    root = folders.directory(kind or reference.get("type", "output"))
    if root is None or name.startswith("/") or ".." in name:
        raise ValueError("no such original")
    with Image.open(root / reference.get("subfolder", "") / name) as original:
        info = PngInfo()
        for key, value in getattr(original, "text", {}).items():
            info.add_text(key, value)
        picture = original.convert("RGBA")
    with Image.open(io.BytesIO(form["image"].data)) as mask:
        picture.putalpha(mask.convert("RGBA").getchannel("A"))
    out = io.BytesIO()
    picture.save(out, "PNG", compress_level=4, pnginfo=info)
    return out.getvalue()


def _viewed(folders: Folders, query: QueryParams) -> Path | Response:
    name, kind = split_annotation(query.get("filename", ""))
    if "filename" not in query:
        return empty(404)
    if not name or name.startswith("/") or ".." in name:
        return empty(400)
    root = folders.directory(kind or query.get("type", "output"))
    if root is None:
        return empty(400)
    folder = root / query.get("subfolder", "")
    if not _inside(root, os.path.abspath(folder)):  # noqa: PTH100
        return empty(403)
    path = folder / Path(name).name
    return path if path.is_file() else empty(404)


def _shown(path: Path, query: QueryParams) -> Response:
    headers = {"content-disposition": f'filename="{path.name}"'}
    if "preview" in query:
        kind, data = _preview(path, query)
        return Response(data, media_type=f"image/{kind}", headers=headers)
    channel = query.get("channel")
    if channel in ("rgb", "a"):
        return Response(_channel(path, channel), media_type="image/png", headers=headers)
    kind = mimetypes.guess_type(path.name)[0] or "application/octet-stream"
    if kind in _DOWNLOADS:
        kind = "application/octet-stream"
    return FileResponse(path, media_type=kind, headers=headers)


def _preview(path: Path, query: QueryParams) -> tuple[str, bytes]:
    words = query["preview"].split(";")
    kind = words[0] if words[0] in ("webp", "jpeg") and "a" not in query.get("channel", "") else "webp"
    quality = int(words[-1]) if words[-1].isdigit() else 90
    out = io.BytesIO()
    with Image.open(path) as image:
        plain = image.convert("RGB") if kind == "jpeg" or query.get("channel") == "rgb" else image
        plain.save(out, kind.upper(), quality=quality)
    return kind, out.getvalue()


def _channel(path: Path, channel: str) -> bytes:
    out = io.BytesIO()
    with Image.open(path) as image:
        if channel == "rgb":
            picture = image.convert("RGB")
        else:
            alpha = image.getchannel("A") if image.mode == "RGBA" else Image.new("L", image.size, 255)
            picture = Image.new("RGBA", image.size)
            picture.putalpha(alpha)
        picture.save(out, "PNG")
    return out.getvalue()

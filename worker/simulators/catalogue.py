"""The routes that list, select and refresh: models, options, samplers, memory, logs."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request

from worker.simulators import pictures
from worker.simulators.app import Api, Reply
from worker.simulators.errors import HttpError, OtherAnswer, ServerError
from worker.simulators.knobs import Fault
from worker.simulators.machine import Machine
from worker.simulators.models import Kind
from worker.simulators.samplers import sampler_items, scheduler_items
from worker.simulators.validation import json_body

_GB = 1 << 30


def add_catalogue(api: Api) -> None:
    """All routes that do not generate."""
    _add_options(api)
    _add_models(api)
    _add_lists(api)
    _add_rest(api)


def _add_options(api: Api) -> None:
    machine = api.machine

    async def read(_: Request) -> Reply:
        return Reply(machine.listed_options())

    async def describe(_: Request) -> Reply:
        described = {name: {"label": name, "default": value} for name, value in machine.defaults.items()}
        return Reply({"options": described, "sections": []})

    async def write(request: Request) -> Reply:
        document = await json_body(request, machine.dialect)
        if not isinstance(document, dict):
            raise OtherAnswer(422, {"detail": [{"loc": ["body"], "msg": "value is not a valid dict"}]})
        return Reply(await machine.set_options(document))

    api.get("/sdapi/v1/options", read)
    api.post("/sdapi/v1/options", write)
    if machine.dialect.current:
        api.get("/sdapi/v1/options-info", describe)


def _add_models(api: Api) -> None:
    machine, current = api.machine, api.machine.dialect.current

    async def listing(_: Request) -> Reply:
        return Reply(machine.disk.listing())

    async def unload(_: Request) -> Reply:
        async with machine.lock:
            machine.loaded = None
        return Reply(None, status=204) if current else Reply({})

    async def reload(request: Request) -> Reply:
        if not machine.dialect.lazy_load:
            async with machine.lock:
                await _reload(machine, force=request.query_params.get("force", "").lower() == "true")
        return Reply(None, status=204) if current else Reply({})

    async def checkpoint(_: Request) -> Reply:
        return Reply(_checkpoint(machine))

    async def select(request: Request) -> Reply:
        return Reply({"ok": await _select_without_lock(machine, request.query_params.get("sd_model_checkpoint", ""))})

    api.get("/sdapi/v1/sd-models", listing)
    api.post("/sdapi/v1/unload-checkpoint", unload)
    api.post("/sdapi/v1/reload-checkpoint", reload)
    if current:
        api.get("/sdapi/v1/checkpoint", checkpoint)
        api.post("/sdapi/v1/checkpoint", select)
    api.post("/sdapi/v1/refresh-checkpoints", _refresh(machine, "checkpoint"))
    vaes = "/sdapi/v1/refresh-vaes" if machine.dialect.name == "sdnext-2023" else "/sdapi/v1/refresh-vae"
    api.post(vaes, _refresh(machine, "vae"))
    api.post("/sdapi/v1/refresh-loras", _refresh(machine, "lora"), guarded=machine.dialect.sdnext)
    if machine.dialect.schedulers:
        api.post("/sdapi/v1/refresh-embeddings", _refresh(machine, "embedding"))


async def _reload(machine: Machine, *, force: bool) -> None:
    model = machine.configured()
    if model is not None and (force or model != machine.loaded):
        machine.loaded = None
        await machine.select(machine.disk.title(model))
        machine.state.end()


def _refresh(machine: Machine, kind: Kind) -> Any:
    async def refresh(_: Request) -> Reply:
        if kind == "checkpoint" and not machine.dialect.sdnext:
            async with machine.lock:
                machine.disk.refresh(kind)
        else:
            machine.disk.refresh(kind)
        if kind == "checkpoint" and machine.dialect.name == "sdnext-2023" and not machine.disk.of_kind(kind):
            raise ServerError("EOFError", "EOF when reading a line")
        if not machine.dialect.current:
            return Reply(None)
        return Reply({m.stem: m.filename for m in machine.disk.of_kind(kind)}) if kind == "lora" else Reply(None, 204)

    return refresh


def _checkpoint(machine: Machine) -> dict[str, Any]:
    """SD.Next's honest word on what is loaded."""
    model = machine.loaded if machine.booted else None
    if model is None:
        return {"type": None, "class": None}
    return {
        "type": "sd",
        "class": "StableDiffusionPipeline",
        "checkpoint": model.filename,
        "title": machine.disk.title(model),
        "name": model.without_extension,
        "filename": model.filename,
        "hash": machine.disk.known_hash(model),
    }


async def _select_without_lock(machine: Machine, name: str) -> bool:
    """The one selection that waits for nobody: during a generation it ruins the loaded pipeline."""
    if machine.state.sampling:
        machine.corrupt = True
        return False
    machine.options["sd_model_checkpoint"] = name
    selected = await machine.select(name)
    machine.state.end()
    return selected


def _add_lists(api: Api) -> None:
    machine, dialect = api.machine, api.machine.dialect

    async def loras(_: Request) -> Reply:
        if not dialect.current:
            machine.disk.refresh("lora")
        return Reply([_lora(machine, m.stem, m.filename) for m in machine.disk.of_kind("lora")])

    async def vaes(_: Request) -> Reply:
        files = machine.disk.of_kind("vae")
        return Reply([{"model_name": m.name.rpartition("/")[2], "filename": m.filename} for m in files])

    async def samplers(_: Request) -> Reply:
        return Reply(sampler_items(dialect))

    async def schedulers(_: Request) -> Reply:
        return Reply(scheduler_items())

    async def upscalers(_: Request) -> Reply:
        names = ("None", "Lanczos", "Nearest", "R-ESRGAN 4x+")
        rest = {"model_name": None, "model_url": None, "scale": 4}
        files = [{"name": m.stem, **rest, "model_path": m.filename} for m in machine.disk.of_kind("upscaler")]
        return Reply([{"name": name, **rest, "model_path": None} for name in names] + files)

    async def embeddings(_: Request) -> Reply:
        return Reply(_embeddings(machine))

    async def styles(_: Request) -> Reply:
        return Reply([{"name": "Cinematic", "prompt": "{prompt}, film still", "negative_prompt": ""}])

    api.get("/sdapi/v1/prompt-styles", styles)
    api.get("/sdapi/v1/loras", loras, guarded=dialect.sdnext)
    api.get("/sdapi/v1/sd-modules" if dialect.errors == "forge" else "/sdapi/v1/sd-vae", vaes)
    api.get("/sdapi/v1/samplers", samplers)
    if dialect.schedulers:
        api.get("/sdapi/v1/schedulers", schedulers)
    api.get("/sdapi/v1/upscalers", upscalers)
    api.get("/sdapi/v1/embeddings", embeddings)


def _embeddings(machine: Machine) -> dict[str, Any]:
    """On SD.Next those of the loaded model."""
    names = [m.stem for m in machine.disk.of_kind("embedding")]
    if machine.dialect.current:
        return {"loaded": names if machine.loaded else [], "skipped": []}
    return {"loaded": {name: {"step": None, "vectors": 1} for name in names}, "skipped": {}}


def _lora(machine: Machine, stem: str, path: str) -> dict[str, Any]:
    name = stem.replace(".", "_") if machine.dialect.current else stem
    return {"name": name, "alias": name, "path": path, "metadata": {}}


def _add_rest(api: Api) -> None:
    machine, dialect = api.machine, api.machine.dialect

    async def memory(_: Request) -> Reply:
        return Reply(_memory(machine))

    async def flags(_: Request) -> Reply:
        if dialect.errors == "forge":
            raise ServerError("ResponseValidationError", "1 validation errors:\n  {'type': 'string_type'}")
        common = {"api": True, "listen": False, "port": None, "server_name": "[::]", "nowebui": False}
        return Reply({**common, "auth" if dialect.sdnext else "api_auth": api.auth})

    async def scripts(_: Request) -> Reply:
        installed = [name.lower() for name in machine.knobs.scripts]
        return Reply({"txt2img": installed, "img2img": installed} | ({"control": []} if dialect.current else {}))

    async def extra(request: Request) -> Reply:
        return Reply(_upscaled(await json_body(request, dialect)))

    api.get("/sdapi/v1/memory", memory)
    api.get("/sdapi/v1/cmd-flags", flags)
    api.get("/sdapi/v1/scripts", scripts)
    api.post("/sdapi/v1/extra-single-image", extra)
    if dialect.sdnext:
        _add_sdnext_rest(api)
    elif dialect.user_interface:
        api.get("/internal/ping", _ping, guarded=False)
    if dialect.user_interface:
        api.get("/", _page, guarded=False)
    if dialect.name != "sdnext-2023":
        api.get("/docs", _page, guarded=False)


async def _ping(_: Request) -> Reply:
    return Reply({})


async def _page(_: Request) -> Reply:
    return Reply("<!doctype html><title>Stable Diffusion</title>", content_type="text/html; charset=utf-8")


def _add_sdnext_rest(api: Api) -> None:
    machine, dialect = api.machine, api.machine.dialect

    async def log(request: Request) -> Reply:
        wanted = request.query_params.get("lines", "100")
        if not wanted.isdecimal():
            raise OtherAnswer(422, {"detail": [{"loc": ["query", "lines"], "msg": "Input should be a valid integer"}]})
        lines = list(machine.log)[: int(wanted)]
        if request.query_params.get("clear", "").lower() == "true":
            machine.log.clear()
        return Reply(lines)

    async def write_log(_: Request) -> Reply:
        return Reply(None, status=204)

    async def version(_: Request) -> Reply:
        return Reply({"app": "sd.next", "updated": "2026-07-23", "hash": dialect.version, "branch": "master"})

    async def shutdown(_: Request) -> Reply:
        if not dialect.current:
            body, kind = "Internal Server Error", "text/plain; charset=utf-8"
            return Reply(body, status=500, content_type=kind)
        machine.fall(Fault("exit"))
        return Reply(None, status=204)

    async def system_info(_: Request) -> Reply:
        return Reply({"version": {"app": "sd.next", "hash": dialect.version}, "memory": _memory_in_gb(machine)})

    api.get("/sdapi/v1/log", log)
    api.post("/sdapi/v1/shutdown", shutdown)
    if dialect.current:
        api.post("/sdapi/v1/log", write_log)
        api.get("/sdapi/v1/version", version)
    else:
        api.get("/sdapi/v1/system-info/status", system_info)


def _memory(machine: Machine) -> dict[str, Any]:
    used = 6 * _GB if machine.loaded else _GB
    block = {"current": used, "peak": used}
    return {
        "ram": {"free": 20 * _GB, "used": 4 * _GB, "total": 24 * _GB},
        "cuda": {
            "system": {"free": 24 * _GB - used, "used": used, "total": 24 * _GB},
            "active": block,
            "allocated": block,
            "reserved": block,
            "inactive": {"current": 0, "peak": 0},
            "events": {"retries": machine.out_of_memory, "oom": machine.out_of_memory},
        },
    }


def _memory_in_gb(machine: Machine) -> dict[str, Any]:
    """The memory block of the system-info extension, which older probes read."""
    memory = _memory(machine)
    blocks = {"ram": memory["ram"], "gpu": memory["cuda"]["system"]}
    shown = {name: {key: round(size / _GB, 2) for key, size in block.items()} for name, block in blocks.items()}
    return shown | {"events": memory["cuda"]["events"]}


def _upscaled(document: Any) -> dict[str, Any]:
    """A plain resize."""
    try:
        picture = pictures.decode_base64_image(document["image"])
    except (ValueError, KeyError, TypeError) as error:
        raise HttpError(500, "Invalid encoded image") from error
    factor = float(document.get("upscaling_resize") or 2)
    size = (round(picture.width * factor), round(picture.height * factor))
    if document.get("resize_mode") == 1:
        size = (int(document.get("upscaling_resize_w") or 512), int(document.get("upscaling_resize_h") or 512))
    data = pictures.encode(picture.convert("RGB").resize(size), "png", 80, "")
    return {"html_info": "", "image": pictures.to_base64(data)}

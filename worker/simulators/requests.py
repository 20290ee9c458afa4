"""From a checked request to the job that will run: names resolved, sizes and seeds settled, inputs decoded."""

from __future__ import annotations

from typing import Any, NoReturn
from urllib.parse import urlsplit

from PIL import Image

from worker.simulators import pictures
from worker.simulators.errors import HttpError, OtherAnswer, ServerError
from worker.simulators.info import Inputs, Job, lora_names
from worker.simulators.machine import Machine
from worker.simulators.models import ModelFile

_LOCAL = ("127.", "10.", "192.168.", "169.254.")


def check_scripts(machine: Machine, request: dict[str, Any]) -> None:
    """Refuse scripts that are not installed: SD.Next of today minds the always-on ones only. Raises `HttpError`."""
    installed = {name.lower() for name in machine.knobs.scripts}
    if request["script_name"] and not machine.dialect.current:
        raise HttpError(422, f"Script '{request['script_name']}' not found")
    for name in request["alwayson_scripts"]:
        if name.lower() not in installed:
            text = "Always on script not found: {}" if machine.dialect.current else "Script '{}' not found"
            raise HttpError(422, text.format(name))


def decoded_inputs(machine: Machine, request: dict[str, Any]) -> Inputs:
    """The input image and its mask. Raises `HttpError` or `OtherAnswer` as the dialect does."""
    images = request["init_images"]
    if not images:
        if machine.dialect.current:
            raise OtherAnswer(400, {"error": "Init image is none"})
        raise HttpError(404, "Init image not found")
    mask = request["mask"]
    return Inputs(_decoded(machine, str(images[0])), _decoded(machine, mask).convert("L") if mask else None)


def _decoded(machine: Machine, value: str) -> Image.Image:
    if value.startswith(("http://", "https://")) and not machine.dialect.sdnext:
        _refuse_url(value)
    try:
        return pictures.decode_base64_image(value)
    except ValueError as error:
        raise HttpError(500, "Invalid encoded image") from error


def _refuse_url(value: str) -> NoReturn:
    """Automatic1111 would fetch the image; nothing outside can be reached from here."""
    host = urlsplit(value).hostname or ""
    if host in ("localhost", "::1") or host.startswith(_LOCAL):
        raise HttpError(500, "Request to local resource not allowed")
    raise HttpError(500, "Invalid image url")


def job_from(
    machine: Machine,
    endpoint: str,
    request: dict[str, Any],
    sampler: tuple[str, str],
    inputs: Inputs | None,
    model: ModelFile,
) -> Job:
    """Settle everything that the request leaves open. Raises `ServerError` for what the servers stumble over."""
    _stumble(machine, request)
    width, height = _size(machine, request)
    return Job(
        request=request,
        endpoint=endpoint,
        model=model,
        model_hash=machine.disk.known_hash(model),
        sampler=sampler[0],
        scheduler=sampler[1],
        width=width,
        height=height,
        seeds=_seeds(machine, request, "seed"),
        subseeds=_seeds(machine, request, "subseed"),
        vae=_vae(machine),
        clip_skip=_clip_skip(machine, request),
        loras=_loras(machine, lora_names(request["prompt"] or "")),
        inputs=inputs,
    )


def _loras(machine: Machine, names: list[str]) -> list[str]:
    """Those that are used: after one look for new files the others are passed over without a word."""
    known = _lora_names(machine)
    if not known.issuperset(names):
        machine.disk.refresh("lora")
        known = _lora_names(machine)
    return [name for name in names if name in known]


def _lora_names(machine: Machine) -> set[str]:
    known = {m.stem for m in machine.disk.of_kind("lora") if machine.disk.exists(m)}
    return known | {name.replace(".", "_") for name in known} if machine.dialect.current else known


def _vae(machine: Machine) -> str | None:
    """The separate VAE, if there is one: Forge knows it by its path, as one of its modules."""
    named = [str(machine.options["sd_vae"]), *machine.options.get("forge_additional_modules", ())]
    vaes = {m.name.rpartition("/")[2] for m in machine.disk.of_kind("vae") if machine.disk.exists(m)}
    return next((base for name in named if (base := name.rpartition("/")[2]) in vaes), None)


def _clip_skip(machine: Machine, request: dict[str, Any]) -> int:
    """A setting, but on SD.Next a field of the request."""
    asked = request.get("clip_skip") if machine.dialect.sdnext else machine.options["CLIP_stop_at_last_layers"]
    return int(asked or 1)


def _stumble(machine: Machine, request: dict[str, Any]) -> None:
    if (request["batch_size"] or 0) * (request["n_iter"] or 0) <= 0:
        raise ServerError("IndexError", "list index out of range")
    if machine.dialect.sdnext:
        return
    if not request["steps"]:
        raise ServerError("ZeroDivisionError", "division by zero")
    if request.get("enable_hr") and "hr_additional_modules" in request and request["hr_additional_modules"] is None:
        raise ServerError("TypeError", "argument of type 'NoneType' is not iterable")
    for field in ("refiner_checkpoint", "hr_checkpoint_name"):
        name = request.get(field)
        if name and name != "None" and machine.disk.find(name) is None:
            raise ServerError("Exception", f"Could not find checkpoint with name {name}")


def _size(machine: Machine, request: dict[str, Any]) -> tuple[int, int]:
    """The size of the result: a multiple of eight, larger with the high-resolution pass."""
    standard = machine.dialect.size if machine.dialect.current else 0
    width, height = (request[side] or standard for side in ("width", "height"))
    upscales = not machine.dialect.sdnext or request["hr_upscaler"] not in (None, "None")
    if machine.dialect.current:
        upscales = upscales and request["hr_resize_mode"] > 0
    if request.get("enable_hr") and upscales:
        if request["hr_resize_x"] and request["hr_resize_y"]:
            width, height = request["hr_resize_x"], request["hr_resize_y"]
        else:
            width, height = int(width * request["hr_scale"]), int(height * request["hr_scale"])
    if machine.dialect.current and 0 < min(width, height) < 16:
        raise ServerError("TypeError", "unsupported operand type(s) for /: 'NoneType' and 'int'")
    return width - width % 8, height - height % 8


def _seeds(machine: Machine, request: dict[str, Any], name: str) -> list[int]:
    first = request[name]
    if first is None or first == -1:
        first = machine.rng.getrandbits(32)
    grows = name == "subseed" or not request["subseed_strength"]
    return [first + (n if grows else 0) for n in range(request["batch_size"] * request["n_iter"])]

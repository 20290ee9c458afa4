"""Variables of other images that the worker understands, so that their users can move without changing a thing.

Each has a ``WORKER_`` twin; where that is set, it alone counts. comfyui-api has a manifest of models and settings of
its own; the ``*-dynamic`` images of SD.Next, Automatic1111 and ComfyUI read lists of model URLs. What has no effect
here is named all the same, with the reason.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from typing import Any, Literal, NamedTuple

from worker.errors import FieldError

ENGINE = "WORKER_ENGINE"
ENGINE_URL = "WORKER_ENGINE_URL"
MANIFEST_TWIN = "WORKER_MODELS_MANIFEST"
SIZE_TWIN = "WORKER_MODELS_MAX_SIZE"

MANIFESTS = ("MANIFEST_JSON", "MANIFEST")
"""A manifest as text, and the path of one; comfyui-api takes the first of them that is set."""

LISTS = ("CIVITAI_MODEL_VERSION_IDS", "CKPT_URLS", "VAE_URLS", "LORA_URLS", "CONTROLNET_URLS")
SWITCHES = ("LOAD_SDXL_BASE", "LOAD_REFINER")
CACHE_SIZE = "LRU_CACHE_SIZE_GB"
COMMAND = "CMD"
SECRETS = frozenset(
    {
        "WEBHOOK_SECRET",
        "HTTP_AUTH_HEADER_VALUE",
        "AZURE_STORAGE_CONNECTION_STRING",
        "AZURE_STORAGE_KEY",
        "AZURE_STORAGE_SAS_TOKEN",
    }
)
"""What the image server's process is not handed."""

_GB = 1_000_000_000
_PORT, _ADDRESS = "COMFYUI_PORT_HOST", "DIRECT_ADDRESS"
_LEVELS = {"fatal": "error", "warn": "warning", "trace": "debug", "silent": "error"}

Scope = Literal["anywhere", "comfyui", "common"]


class Known(NamedTuple):
    """What becomes of a variable: honoured under its ``twin``, or ``why`` it never has an effect.

    ``scope``: a ``common`` name, which anything may have set, counts with ``WORKER_ENGINE=comfyui`` alone and is not
    even mentioned otherwise; one of ``comfyui`` is mentioned. ``beside`` is a variable of theirs that beats it.
    ``idle`` says why this value has no effect, and ``value`` how the twin writes it.
    """

    twin: str = ""
    why: str = ""
    scope: Scope = "comfyui"
    beside: str = ""
    idle: Callable[[str], str] = lambda value: ""
    value: Callable[[str], Any] = str


def _number(value: str) -> int | None:
    return int(value) if value.isdecimal() and value.isascii() else None


def _bytes(value: str) -> int | None:
    try:
        size = Decimal(value)
    except InvalidOperation:
        return None
    return int(size * _GB) if size.is_finite() and 0 <= size < 10**9 else None


def _zero(twin: str) -> Callable[[str], str]:
    return lambda value: f"has no effect: waiting jobs are always bounded, by {twin}" if _number(value) == 0 else ""


def _cache_off(value: str) -> str:
    return f"has no effect: the cache is always bounded, by {SIZE_TWIN}" if _bytes(value) == 0 else ""


def _switched_off(value: str) -> str:
    return "" if value == "1" else "has no effect unless it is 1"


def _signing(value: str) -> str:
    """A key in base64 of either alphabet, with or without padding and prefix."""
    key = value.removeprefix("whsec_").translate(str.maketrans("-_", "+/")).rstrip("=")
    return f"whsec_{key}{'=' * (-len(key) % 4)}"


_MODELS = Known(MANIFEST_TWIN, scope="anywhere")
_STORE = Known(why="the worker has no Azure storage; WORKER_STORAGE says which there are", scope="common")
_SYSTEM = "ComfyUI's own events are not passed on; WORKER_WEBHOOK_URL and _EVENTS tell what becomes of jobs"
_STARTS = "WORKER_ENGINE_START_TIMEOUT bounds the server's start"
_SERVERS = "it is the image server's in our images; {} is the worker's own"

KNOWN: Mapping[str, Known] = {
    **dict.fromkeys(MANIFESTS[:1], _MODELS),
    "MANIFEST": _MODELS._replace(beside="MANIFEST_JSON"),
    **dict.fromkeys(LISTS, _MODELS),
    **dict.fromkeys(SWITCHES, _MODELS._replace(idle=_switched_off)),
    CACHE_SIZE: Known(SIZE_TWIN, scope="anywhere", idle=_cache_off, value=_bytes),
    "EXTENSION_URLS": Known(why="the worker installs no extensions; put them into the image", scope="anywhere"),
    COMMAND: Known("WORKER_ENGINE_COMMAND", scope="common", value=lambda value: tuple(value.split())),
    _PORT: Known(ENGINE_URL),
    _ADDRESS: Known(ENGINE_URL, scope="common"),
    "WARMUP_PROMPT_FILE": Known("WORKER_WARMUP"),
    "WARMUP_PROMPT_URL": Known("WORKER_WARMUP", beside="WARMUP_PROMPT_FILE"),
    "WORKFLOW_DIR": Known("WORKER_WORKFLOWS_DIR", scope="common"),
    "MODEL_DIR": Known("WORKER_MODELS_DIR", scope="common"),
    "COMFY_HOME": Known("WORKER_MODELS_DIR", beside="MODEL_DIR", value=lambda value: f"{value.rstrip('/')}/models"),
    "WEBHOOK_SECRET": Known("WORKER_WEBHOOK_SECRET", scope="common", value=_signing),
    "MAX_QUEUE_DEPTH": Known("WORKER_MAX_PENDING", idle=_zero("WORKER_MAX_PENDING")),
    "MAX_BODY_SIZE_MB": Known("WORKER_MAX_BODY", value=lambda value: f"{value}MiB"),
    "LOG_LEVEL": Known(
        "WORKER_LOG_LEVEL", scope="common", value=lambda value: _LEVELS.get(value.lower(), value.lower())
    ),
    "HOST": Known(why=_SERVERS.format("WORKER_HTTP_HOST"), scope="common"),
    "PORT": Known(why=_SERVERS.format("WORKER_HTTP_PORT"), scope="common"),
    "PROMPT_WEBHOOK_RETRIES": Known(why="webhooks are tried again with growing delays, for WORKER_WEBHOOK_BUDGET"),
    "ALWAYS_RESTART_COMFYUI": Known(why="the server is always restarted; WORKER_ENGINE_RESTARTS says how often"),
    "STARTUP_CHECK_INTERVAL_S": Known(why=_STARTS),
    "STARTUP_CHECK_MAX_TRIES": Known(why=_STARTS),
    "SYSTEM_WEBHOOK_URL": Known(why=_SYSTEM),
    "SYSTEM_WEBHOOK_EVENTS": Known(why=_SYSTEM),
    **dict.fromkeys(
        ("HTTP_AUTH_HEADER_NAME", "HTTP_AUTH_HEADER_VALUE"),
        Known(why="it would go to every host that a request names; give a host's own credentials in the request"),
    ),
    "PREPEND_FILENAMES": Known(why="names of files always begin with the job's id"),
    "MARKDOWN_SCHEMA_DESCRIPTIONS": Known(why="/docs shows every field as it is described"),
    "BASE": Known(why="no environment is sourced; name its own python in the server's command", scope="common"),
    "CACHE_DIR": Known(why="models lie in the server's folders, with no second copy in a cache", scope="common"),
    "INPUT_DIR": Known(why="input images are handed to the server over HTTP", scope="common"),
    "OUTPUT_DIR": Known(why="images are fetched from the server over HTTP", scope="common"),
    "AZURE_STORAGE_CONNECTION_STRING": _STORE,
    "AZURE_STORAGE_ACCOUNT": _STORE,
    "AZURE_STORAGE_KEY": _STORE,
    "AZURE_STORAGE_SAS_TOKEN": _STORE,
}
"""Those of the ``*-dynamic`` images as far as ``EXTENSION_URLS``, then comfyui-api's. ``AWS_*``, ``HF_TOKEN`` and the
proxies' variables are everybody's, and count as they are."""

_METADATA = "SYSTEM_META_"


@dataclass(frozen=True, slots=True)
class Inherited:
    """A variable of another image that is set here; ``note`` says what becomes of it.

    ``value`` is empty where it has no effect; a URL in it may hold a token, so it is never printed.
    """

    variable: str
    note: str
    value: str = field(default="", repr=False)

    @property
    def honoured(self) -> bool:
        return bool(self.value)

    def __str__(self) -> str:
        return f"{self.variable}: {self.note}"


def inherited(environ: Mapping[str, str]) -> tuple[Inherited, ...]:
    """What is set of other images' variables, in the order of the table."""
    found = {name: value.strip() for name, value in environ.items() if value.strip()}
    known = [(name, known) for name, known in KNOWN.items() if name in found]
    known += [(name, Known(why=_SYSTEM)) for name in sorted(found) if name.startswith(_METADATA)]
    comfyui = found.get(ENGINE) == "comfyui"
    return tuple(_judged(name, one, found, comfyui) for name, one in known if comfyui or one.scope != "common")


def _judged(name: str, known: Known, found: Mapping[str, str], comfyui: bool) -> Inherited:
    if known.why:
        return Inherited(name, f"has no effect: {known.why}")
    if known.twin in found or f"{known.twin}_FILE" in found:
        return Inherited(name, f"has no effect beside {known.twin}")
    if known.beside in found:
        return Inherited(name, f"has no effect beside {known.beside}")
    if known.scope == "comfyui" and not comfyui:
        return Inherited(name, f"has no effect unless {ENGINE} is comfyui")
    if idle := known.idle(found[name]):
        return Inherited(name, idle)
    return Inherited(name, f"is honoured; {known.twin} is its name here", found[name])


def mistakes(found: tuple[Inherited, ...]) -> Iterator[FieldError]:
    """What is wrong with the values that are honoured, and that no twin could tell."""
    for one in found:
        if one.variable == CACHE_SIZE and one.honoured and _bytes(one.value) is None:
            yield FieldError(CACHE_SIZE, "is no size in GB")
        if one.variable == LISTS[0] and not all(word.isdecimal() and word.isascii() for word in words(one.value)):
            yield FieldError(LISTS[0], "must be ids of model versions, separated by commas")
        if one.variable == _PORT and one.honoured and not _is_port(one.value):
            yield FieldError(_PORT, "is no port")


def defaults(found: tuple[Inherited, ...]) -> dict[str, Any]:
    """What the honoured ones come to, by the twins that have a field in the tree of settings for it."""
    honoured = {one.variable: one.value for one in found if one.honoured}
    values = {
        KNOWN[name].twin: KNOWN[name].value(value)
        for name, value in honoured.items()
        if KNOWN[name].twin not in (MANIFEST_TWIN, ENGINE_URL)
    }
    port = honoured.get(_PORT, "8188")
    if (_ADDRESS in honoured or _PORT in honoured) and _is_port(port):
        values[ENGINE_URL] = f"http://{_host(honoured.get(_ADDRESS, '::1'))}:{port}"
    return {twin: value for twin, value in values.items() if value}


def written(found: tuple[Inherited, ...]) -> dict[str, str]:
    """The variable that was set in the place of a twin, so that a mistake is told of what somebody wrote."""
    return {KNOWN[one.variable].twin: one.variable for one in found if one.honoured}


def words(value: str) -> tuple[str, ...]:
    """The items of a comma list, without the empty ones, each once."""
    return tuple(dict.fromkeys(word.strip() for word in value.split(",") if word.strip()))


def _host(address: str) -> str:
    """As it stands in a URL."""
    return f"[{address}]" if ":" in address and not address.startswith("[") else address


def _is_port(value: str) -> bool:
    return 0 < (_number(value) or 0) < 65536

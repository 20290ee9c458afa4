"""Every setting of the worker: typed, frozen groups whose fields name their environment variable.

To add one: a field here, in `worker.settings.http`, `.models`, `.node` or `.storage`. The README's table, the nearest-name hints and ``sd-worker config`` follow from it.
"""

from __future__ import annotations

from base64 import b64encode
from dataclasses import dataclass
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, Literal, cast

from pydantic import Field, SecretStr
from pydantic.fields import FieldInfo
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict

from worker.errors import FieldError
from worker.job import Limits
from worker.settings.checks import CommandLine, Events, SigningSecrets, UserName, VariableNames
from worker.settings.fields import ZERO, Group, var
from worker.settings.http import HttpSettings
from worker.settings.inherited import Inherited
from worker.settings.models import ModelsSettings
from worker.settings.node import FitnessSettings, NodeSettings, SaladSettings
from worker.settings.queue import QueueSettings
from worker.settings.storage import StorageSettings
from worker.settings.units import Duration, Rate, RatePer, Size, WebUrl
from worker.signature import read_secrets

EngineKind = Literal["auto", "a1111", "sdnext", "comfyui", "fooocus"]

PORTS: dict[str, int] = {"a1111": 7860, "sdnext": 7860, "comfyui": 8188, "fooocus": 8888}
"""Where each server listens unless it is told otherwise."""


class EngineSettings(Group):
    kind: EngineKind = var("WORKER_ENGINE", "auto", "the image server; `auto` asks it")
    url: WebUrl | None = var(
        "WORKER_ENGINE_URL",
        None,
        "where it listens; where `[::1]` refuses, `127.0.0.1` is tried",
        shown="port 7860 (a1111, sdnext), 8188 (comfyui), 8888 (fooocus) of `[::1]`",
    )
    username: str | None = var("WORKER_ENGINE_USERNAME", None, "the server's own credentials")
    password: SecretStr | None = var("WORKER_ENGINE_PASSWORD", None, "the server's own credentials")
    api_key: SecretStr | None = var("WORKER_ENGINE_API_KEY", None, "the server's own credentials: sent as `X-API-Key`")
    command: CommandLine = var(
        "WORKER_ENGINE_COMMAND", (), "the server's command line, quoted as in a shell, instead of `-- COMMAND`"
    )
    env: VariableNames = var(
        "WORKER_ENGINE_ENV",
        (),
        "names of variables that the server's process may keep; without it it gets no `WORKER_*`, `AWS_*`, `HF_TOKEN`, `CIVITAI_TOKEN`",
    )
    user: UserName | None = var(
        "WORKER_ENGINE_USER", None, "user, or `user:group`, that the server's process runs as", shown="the worker's own"
    )
    memory_max: Size | None = var(
        "WORKER_ENGINE_MEMORY_MAX",
        None,
        "the server is restarted between jobs before it holds so much memory",
        shown="90 % of the container",
        gt=0,
    )
    start_timeout: Duration = var(
        "WORKER_ENGINE_START_TIMEOUT",
        timedelta(minutes=20),
        "from the start of the server's process until it can be used",
        shown="20m",
        gt=ZERO,
    )
    warmup: str = var(
        "WORKER_WARMUP",
        "default",
        "`default` (one small image), `none`, inline JSON, path or URL of a job document; also the node's canary (`none` skips it at start only)",
    )
    job_timeout: Duration = var(
        "WORKER_JOB_TIMEOUT",
        timedelta(minutes=10),
        "one generation, from its first step to its answer",
        shown="10m",
        gt=ZERO,
    )
    job_timeout_max: Duration = var(
        "WORKER_JOB_TIMEOUT_MAX", timedelta(hours=1), "what a job may ask for", shown="1h", gt=ZERO
    )
    load_timeout: Duration = var(
        "WORKER_LOAD_TIMEOUT", timedelta(minutes=15), "from submitting to the first step", shown="15m", gt=ZERO
    )
    stall_timeout: Duration = var(
        "WORKER_STALL_TIMEOUT",
        timedelta(minutes=5),
        "no progress once sampling began, scaled up by measured step time",
        shown="5m",
        gt=ZERO,
    )
    max_pixels: int = var("WORKER_MAX_PIXELS", 4_194_304, "of one image; more is refused before the GPU", gt=0)
    max_steps: int = var("WORKER_MAX_STEPS", 150, "more is refused before the GPU", gt=0)
    max_images: int = var("WORKER_MAX_IMAGES", 16, "of one job; more is refused before the GPU", gt=0)
    give_up: Literal["reallocate", "exit", "never"] = var(
        "WORKER_GIVE_UP",
        "reallocate",
        "what an unfit node does: `reallocate` (on Salad it asks to be moved to another machine; elsewhere as `exit`), `exit` (69 if it was never ready, else 75), `never` (stay, not ready)",
    )
    restarts: RatePer = var(
        "WORKER_ENGINE_RESTARTS",
        Rate(5, timedelta(minutes=10)),
        "restarts in this time after which the warm-up failed too, before the node is given up",
    )
    options: Literal["refuse", "allow"] = var(
        "WORKER_ENGINE_OPTIONS", "refuse", "`allow`: HTTP requests may change the server's global settings"
    )
    comfyui_output: Literal["auto", "files", "preview", "websocket"] = var(
        "WORKER_COMFYUI_OUTPUT", "auto", "how images leave ComfyUI"
    )

    @property
    def address(self) -> str:
        """Where the server listens, without a slash at the end; for ``auto`` the first of `addresses`."""
        return self.addresses[0]

    @property
    def addresses(self) -> tuple[str, ...]:
        """Where the server may be found."""
        if self.url is not None:
            return (self.url.rstrip("/"),)
        ports = dict.fromkeys(PORTS.values()) if self.kind == "auto" else (PORTS[self.kind],)
        return tuple(f"http://[::1]:{port}" for port in ports)


class OutputSettings(Group):
    format: Literal["keep", "png", "jpeg", "webp"] = var(
        "WORKER_OUTPUT_FORMAT", "keep", "`keep` stores the server's bytes untouched"
    )
    quality: int = var("WORKER_OUTPUT_QUALITY", 90, "of jpeg and webp", ge=1, le=100)
    metadata: Literal["keep", "strip"] = var("WORKER_OUTPUT_METADATA", "keep", "`strip` removes prompts from the files")
    flat: Literal["canary", "fail", "off"] = var(
        "WORKER_OUTPUT_FLAT",
        "canary",
        "an image of one colour: `canary` (the warm-up job is run: flat too, the job is given back; else it goes out with a warning), `fail`, `off`",
    )


class WebhookSettings(Group):
    url: WebUrl | None = var("WORKER_WEBHOOK_URL", None, "for jobs that name none")
    events: Events = var(
        "WORKER_WEBHOOK_EVENTS",
        ("succeeded", "failed"),
        "for jobs that name none: `started`, `progress`, `succeeded`, `failed`, `cancelled`",
    )
    secret: SigningSecrets | None = var(
        "WORKER_WEBHOOK_SECRET", None, "one or more `whsec_...` separated by blanks, each signs"
    )
    secrets_file: Path | None = var(
        "WORKER_WEBHOOK_SECRETS_FILE", None, "JSON of names to secrets, for jobs that name one"
    )
    timeout: Duration = var("WORKER_WEBHOOK_TIMEOUT", timedelta(seconds=15), "one try", shown="15s", gt=ZERO)
    budget: Duration = var(
        "WORKER_WEBHOOK_BUDGET", timedelta(minutes=1), "all tries of one delivery", shown="1m", gt=ZERO
    )


class SettingsTree(BaseSettings):
    """A whole tree of groups: constructing it reads nothing, least of all the environment."""

    model_config = SettingsConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return (init_settings,)


class Settings(SettingsTree):
    """The whole tree; which variable each field reads stands at the field.

    Built from the environment by `worker.settings.source` alone: constructing it reads nothing. ``warnings``
    holds what is odd in the environment, though no mistake; ``inherited`` what is set of other images' variables.
    """

    engine: EngineSettings = Field(EngineSettings(), title="engine")
    http: HttpSettings = Field(HttpSettings(), title="http")
    queue: QueueSettings = Field(QueueSettings(), title="queue")
    storage: StorageSettings = Field(StorageSettings(), title="storage")
    output: OutputSettings = Field(OutputSettings(), title="images")
    webhook: WebhookSettings = Field(WebhookSettings(), title="webhooks")
    models: ModelsSettings = Field(ModelsSettings(), title="models and disk")
    node: NodeSettings = Field(NodeSettings(), title="the rest")
    fitness: FitnessSettings = Field(FitnessSettings(), title="fitness of the node")
    salad: SaladSettings = Field(SaladSettings(), title="set by SaladCloud")
    warnings: tuple[FieldError, ...] = ()
    inherited: tuple[Inherited, ...] = ()

    @property
    def platform(self) -> Literal["plain", "salad"]:
        """Where the node runs: what `auto` comes to."""
        if self.node.platform == "auto":
            return "salad" if self.salad.machine_id and self.salad.container_group_id else "plain"
        return self.node.platform

    @property
    def takes_http_jobs(self) -> bool:
        """Whether there are job and model endpoints."""
        http = self.http
        return http.jobs == "on" or (http.jobs == "auto" and (self.queue.kind == "none" or http.api_key is not None))

    @property
    def store(self) -> StorageSettings:
        """The storage as it is in effect: ``auto`` puts images into the answer where that is all there is,
        to a caller over HTTP or to the platform's queue."""
        storage = self.storage
        if self.queue.kind not in ("none", "salad") or storage.kind != "auto" or storage.bucket is not None:
            return storage
        return storage.model_copy(update={"kind": "inline"})

    @property
    def limits(self) -> Limits:
        """What a single job may ask for."""
        engine = self.engine
        return Limits(
            max_pixels=engine.max_pixels,
            max_steps=engine.max_steps,
            max_images=engine.max_images,
            max_timeout=engine.job_timeout_max,
            max_body=self.http.max_body,
        )


@dataclass(frozen=True, slots=True)
class Variable:
    """Where one setting stands: its environment variable, and the path to its field."""

    name: str
    group: str
    field: str
    info: FieldInfo

    @property
    def secret(self) -> bool:
        return "SecretStr" in str(self.info.annotation)

    def of(self, settings: BaseSettings) -> Any:
        return getattr(getattr(settings, self.group), self.field)


@cache
def variables() -> tuple[Variable, ...]:
    """Every variable of this version, in the order of the groups."""
    return variables_of(Settings)


def variables_of(tree: type[BaseSettings]) -> tuple[Variable, ...]:
    """Every variable of a tree of groups, in their order."""
    found = []
    for group, outer in tree.model_fields.items():
        if isinstance(outer.annotation, type) and issubclass(outer.annotation, Group):
            for field, info in outer.annotation.model_fields.items():
                extra = cast("dict[str, Any]", info.json_schema_extra)
                found.append(Variable(extra["variable"], group, field, info))
    return tuple(found)


def secrets_of(settings: Settings) -> tuple[SecretStr, ...]:
    """The secrets that are set, those of the secrets file included, so that a log can hide them."""
    found = [value for v in variables() if isinstance(value := v.of(settings), SecretStr)]
    if settings.webhook.secrets_file is not None:
        keys = (key for keys in read_secrets(settings.webhook.secrets_file).values() for key in keys)
        found += (SecretStr(f"whsec_{b64encode(key).decode()}") for key in keys)
    return tuple(found)

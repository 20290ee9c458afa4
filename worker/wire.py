"""The scheduling API's documents, as a worker and a scheduling server speak them. No I/O.

The two example bodies of the platform's guide "How to Manage A Large Number of Stable Diffusion Models" (2024-10-10)
are valid here word for word; everything else is optional on both sides, and unknown fields are ignored. Fields that
one side leaves out are left out of what is sent.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Literal, Self

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator

from worker.mentions import SAME_FOLDER

CATEGORIES: Mapping[str, str] = {
    "checkpoint": "checkpoints",
    "refiner": "checkpoints",
    "lora": "loras",
    "vae": "vae",
    "controlnet": "controlnet",
    "upscaler": "upscalers",
    "embedding": "embeddings",
    "unet": "diffusion_models",
    "clip": "text_encoders",
    "clip_vision": "clip_vision",
}
"""The scheduling API's name of each kind; any other kind is its own category."""

KINDS: Mapping[str, str] = {category: kind for kind, category in CATEGORIES.items() if kind != "refiner"}

LEASED = frozenset(
    {
        "token",
        "lease",
        "deliveries",
        "attempts",
        "max_attempts",
        "max_deliveries",
        "queued_at",
        "redelivered",
        "sources",
    }
)
"""Fields of a generation that are about its lease, and no part of the job document."""

AT_WORK = frozenset({"generate", "images"})
"""Hops in which a job can bring its node down."""

KILLS: Mapping[str, str] = {
    "out_of_memory": "node_killed_oom",
    "crashed": "node_crashed",
    "server_died": "engine_lost",
}
"""Ends of a run that the job at work then may have caused, and the codes by which they are noted."""

NODE_RESTARTED = "node_restarted"
"""The end of a hand-over whose node lost it, and says so."""

Tier = Literal["vram", "disk"]


def _without_nul(text: str) -> str:
    if "\0" in text:
        raise ValueError("has a NUL character in it")
    return text


Word = Annotated[str, AfterValidator(_without_nul)]
"""A name that a server keeps: databases hold no NUL."""

Amount = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Bytes = Annotated[int, Field(ge=0)]


def category_of(kind: str) -> str:
    return CATEGORIES.get(kind, kind)


def kind_of(category: str) -> str:
    """The kind that a category stands for; folders' names count as what they hold."""
    return KINDS.get(category) or SAME_FOLDER.get(category, category)


class Wire(BaseModel):
    """A part of a message."""

    model_config = ConfigDict(extra="ignore", frozen=True, hide_input_in_errors=True, allow_inf_nan=False)

    def to_json(self) -> bytes:
        """Compact UTF-8, without what is not known."""
        return self.model_dump_json(exclude_none=True).encode()


class Rates(Wire):
    """What the node measured of itself; None until it was.

    ``disk`` and ``network`` in bytes a second as files are read and downloaded, ``load`` in seconds that the server
    took to load a checkpoint from disk, ``step`` in seconds that one sampling step took.
    """

    disk: Amount | None = None
    network: Amount | None = None
    load: Amount | None = None
    step: Amount | None = None


class NodeInfo(Wire):
    """Who asks. ``instance`` is new at each start of the process: another one means that it restarted."""

    id: Annotated[Word, Field(min_length=1, max_length=256)]
    gpu: str | None = None
    vram_gb: Amount | None = None
    instance: str | None = None
    version: str | None = None
    rates: Rates | None = None


class HeldModel(Wire):
    """A model file that the node has: on disk, or also in the server's memory."""

    kind: str
    name: str
    sha256: str | None = None
    size: Bytes | None = None
    tier: Tier = "disk"


class DiskReport(Wire):
    """Bytes of the model cache: counted against its cap, the cap, and what more models may take now."""

    used: Bytes
    cap: Bytes
    free: Bytes


class Running(Wire):
    """A job that the node holds; ``token`` as it was leased, ``progress`` 0-1 of the running generation."""

    id: Word
    token: Any = None
    progress: float | None = None
    hop: Word | None = None


class HeldThen(Wire):
    """A job that a node held when a run of it ended, ``token`` as it was leased; ``hop_s`` is how long in that hop."""

    id: Word
    token: Any = None
    hop: Word | None = None
    hop_s: Amount | None = None


class PreviousRun(Wire):
    """How a node's run before this one ended, as it found out at its start; a part of ``stats``.

    ``ended``: ``clean``, ``stopped`` (before its jobs were done), ``exited`` and ``crashed`` with ``exit_code``, or,
    with nobody left to say so, what is likely: ``out_of_memory``, ``server_died``, ``machine_restarted``, ``killed``.
    ``at``: when it was seen alive last, RFC 3339; ``run`` is its own, and no other's, name.
    """

    ended: Word
    at: Word | None = None
    run: Word | None = None
    exit_code: int | None = None
    jobs: tuple[HeldThen, ...] = ()

    def code_of(self, job: HeldThen) -> str:
        """How its hand-over ended then: a run that ends takes jobs along that have nothing to do with it."""
        at_work = job.hop in AT_WORK
        return KILLS.get(self.ended, NODE_RESTARTED) if at_work else NODE_RESTARTED


class Availability(Wire):
    """The body of ``POST /availability``: what the node is, what it has, and that it could do with a job.

    ``models`` is preferred to the name lists where it is given. ``wait`` in seconds: how long the answer may be held
    back for want of work.
    """

    node: NodeInfo
    vram_models: dict[str, tuple[str, ...]] = {}
    disk_models: dict[str, tuple[str, ...]] = {}
    models: tuple[HeldModel, ...] | None = None
    disk: DiskReport | None = None
    running: tuple[Running, ...] = ()
    stats: dict[str, Any] | None = None
    wait: Amount | None = None

    @field_validator("vram_models", "disk_models", mode="before")
    @classmethod
    def _none_is_empty(cls, value: Any) -> Any:
        return {} if value is None else value

    @property
    def held(self) -> tuple[HeldModel, ...]:
        """All models of the node, however it told them; a file in both lists is in memory."""
        if self.models is not None:
            return self.models
        tiers: dict[tuple[str, str], Tier] = {}
        lists: tuple[tuple[Tier, dict[str, tuple[str, ...]]], ...] = (
            ("disk", self.disk_models),
            ("vram", self.vram_models),
        )
        for tier, found in lists:
            tiers |= {(kind_of(category), name): tier for category, names in found.items() for name in names}
        return tuple(HeldModel(kind=kind, name=name, tier=tier) for (kind, name), tier in tiers.items())


class Download(Wire):
    """An order to fetch a model, or where one is to be had; the published form of an order is its URL alone."""

    url: str | None = None
    name: str | None = None
    kind: str | None = None
    sha256: str | None = None
    size: Bytes | None = None


class Evict(Wire):
    """An order to let go of a model where nobody uses it."""

    kind: str
    name: str


class Generation(BaseModel):
    """A job: any field of the job document, and how it was leased.

    Without ``id`` the server keeps no account of it. ``lease`` in seconds; ``deliveries`` counts this one;
    ``attempts`` are the earlier ends, as in the result document, each with ``charged``. ``redelivered``: whether it was
    ever leased before, also where it was requeued since and the counts began anew. ``sources``: where the server says
    that the job's models are to be had. That is the operator's word, and so is never taken from a user's document.
    """

    model_config = ConfigDict(extra="allow", frozen=True, hide_input_in_errors=True)

    id: str | None = None
    token: Any = None
    lease: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    deliveries: Annotated[int, Field(ge=0)] | None = None
    attempts: tuple[dict[str, Any], ...] | None = None
    max_attempts: Annotated[int, Field(ge=1)] | None = None
    max_deliveries: Annotated[int, Field(ge=1)] | None = None
    queued_at: str | None = None
    redelivered: bool | None = None
    sources: tuple[Download, ...] | None = None


class Answer(Wire):
    """What ``POST /availability`` gives: a job, orders, or nothing. ``retry_after`` in seconds.

    ``skipped`` counts the waiting jobs that this node was not given, by reason.
    """

    generation: Generation | None = None
    download: dict[str, tuple[str | Download, ...]] | None = None
    evict: tuple[Evict, ...] | None = None
    cancel: tuple[str, ...] | None = None
    retry_after: Amount | None = None
    skipped: dict[str, int] | None = None

    @property
    def downloads(self) -> tuple[Download, ...]:
        """The orders to fetch, each with its kind."""
        return tuple(
            Download(url=item, kind=kind_of(category))
            if isinstance(item, str)
            else item.model_copy(update={"kind": item.kind or kind_of(category)})
            for category, items in (self.download or {}).items()
            for item in items
        )


class Heartbeat(Wire):
    """The body of ``POST /heartbeat``: everything that is held, and what else is known, as in `Availability`.

    ``away``: the node takes no job now. Whatever `Availability` of it the server holds back is answered at once, with
    nothing, so that a worker that stops need not wait for its own long poll to end.
    """

    node: NodeInfo
    running: tuple[Running, ...] = ()
    models: tuple[HeldModel, ...] | None = None
    disk: DiskReport | None = None
    stats: dict[str, Any] | None = None
    away: bool | None = None


class HeartbeatAnswer(Wire):
    """``lost``: no longer this node's; ``cancel``: still its own, to be ended."""

    lost: tuple[str, ...] = ()
    cancel: tuple[str, ...] = ()
    download: dict[str, tuple[str | Download, ...]] | None = None
    evict: tuple[Evict, ...] | None = None

    def as_answer(self) -> Answer:
        """Its orders in the form of an answer to `Availability`."""
        return Answer(download=self.download, evict=self.evict, cancel=self.cancel or None)


class Ended(Wire):
    """The body of ``POST /jobs/{id}/result``; ``result`` is a result document.

    ``dead``: whether it becomes a dead letter; where that is not told, what failed does and nothing else.
    """

    token: Any = None
    result: dict[str, Any]
    dead: bool | None = None


class Release(Wire):
    """The body of ``POST /jobs/{id}/release``: why it comes back, and after how many seconds it may be given again."""

    token: Any = None
    reason: Word
    delay: Amount = 0.0
    charged: bool = False
    worker: Word | None = None

    @classmethod
    def of(cls, token: Any, code: str, delay_s: float, *, charged: bool, worker: str) -> Self:
        return cls(token=token, reason=code, delay=delay_s, charged=charged, worker=worker)

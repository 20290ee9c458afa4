"""Fakes that stand at the worker's seams in virtual time: an engine, a store, a receiver."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import random
from collections import Counter, deque
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import Any

from PIL import Image

from tests.support.virtual import takes
from worker.clock import Clock, CorrectedClock
from worker.engines.answer import Answer
from worker.engines.base import (
    EngineState,
    Expectation,
    Files,
    InputRef,
    NativeCall,
    NoLog,
    Output,
    Progress,
    ProgressReport,
    RawImage,
    Reach,
    ServerLog,
    Work,
)
from worker.errors import EngineCrashed, IdConflict, WebhookFailed, WorkerError
from worker.inputs import Inputs
from worker.job import Job
from worker.live import Hop
from worker.mentions import Gathering, Mention, Place, place_of
from worker.result import EngineResult, Result
from worker.storage.base import R, Storable
from worker.urls import Guard
from worker.webhooks import Defaults, Message, Sender, Target

SIDE = 16
HOOK = "https://hooks.example/in"


@functools.cache
def png(seed: int, side: int = SIDE, *, flat: bool = False) -> bytes:
    """A small picture that differs from seed to seed."""
    image = Image.new("RGB", (side, side), (0, 0, 0))
    if not flat:
        image = Image.frombytes("RGB", (side, side), random.Random(seed).randbytes(side * side * 3))
    out = io.BytesIO()
    image.save(out, "PNG")
    return out.getvalue()


Trouble = WorkerError | Callable[["FakeEngine", Work], Output]


class Delays(dict[tuple[Hop, str], float]):
    """Seconds by which a hop of a job is held up, once."""

    async def at(self, hop: Hop, job_id: str) -> None:
        if (seconds := self.pop((hop, job_id), None)) is not None:
            await takes(seconds)


class FakeProcess:
    """A server's process; ``owned`` makes it ours, `die` ends it. ``lives`` are the starts."""

    def __init__(self, *, owned: bool = False) -> None:
        self.owned = owned
        self.end: str | None = None
        self.log: ServerLog = NoLog()
        self.lives = 0
        self.stops = 0
        self.held: int | None = None
        self.strange: str | None = None
        self.start_errors: deque[WorkerError] = deque()
        self.on_start: Callable[[], object] = int
        self._died = asyncio.Event()

    def die(self, how: str = "killed by SIGKILL") -> None:
        self.end = how
        self._died.set()

    def check(self) -> str:
        return "a fake"

    async def start(self) -> None:
        if self.start_errors:
            raise self.start_errors.popleft()
        self.end, self._died = None, asyncio.Event()
        self.lives += 1
        self.on_start()

    async def stop(self) -> None:
        self.stops += 1

    def stop_at_once(self) -> None:
        self.stops += 1

    async def ended(self) -> str:
        await self._died.wait()
        return self.end or ""

    def memory(self) -> int | None:
        return self.held

    def stranger(self) -> str | None:
        return self.strange


class FakeEngine:
    """A server that takes ``seconds`` for a picture; ``troubles`` are met by the next generations of a prompt."""

    name = "fake"

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.delays = Delays()
        self.reach = Reach.READY
        self.troubles: dict[str, deque[Trouble]] = {}
        self.canary_troubles: deque[Trouble] = deque()
        self.generated: list[str] = []
        self.canaries = 0
        self.fresh: list[str] = []
        self.interrupted: list[str] = []
        self.freed = 0
        self.relayed: list[NativeCall] = []
        self.files: set[Place] = set()
        self.held: set[Place] = set()
        self.unloaded: list[frozenset[Place]] = []
        self.prepared = 0
        self.busy_s = 0.0
        self.running = 0
        self.most_running = 0

    def trouble(self, prompt: str, *troubles: Trouble) -> None:
        self.troubles.setdefault(prompt, deque()).extend(troubles)

    async def look(self) -> EngineState:
        return EngineState(self.reach, self.name, "1")

    async def prepare(self) -> None:
        self.prepared += 1

    async def admit(self, job: Job) -> Work:
        assert job.params is not None
        params = job.params
        seed = job.seed if params.seed in (None, -1) else params.seed
        assert seed is not None
        count = params.batch_size
        expect = Expectation(count, SIDE, SIDE, tuple(seed + i for i in range(count)))
        inputs = (InputRef("params.image", params.image),) if params.image else ()
        return Work({"prompt": params.prompt, "id": job.id}, "txt2img", expect, inputs=inputs, steps=4)

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        prompt = str(work.request["prompt"])
        extra = self.delays.pop((Hop.GENERATE, str(work.request["id"])), 0.0)
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        began = asyncio.get_running_loop().time()
        try:
            for step in range(4):
                await takes((self.seconds + extra) / 4)
                if self.reach is not Reach.READY:
                    raise EngineCrashed
                on_progress(ProgressReport((step + 1) / 4, step + 1, 4, sampling=True))
        except asyncio.CancelledError:
            self.interrupted.append(str(work.request["id"]))
            raise
        finally:
            self.running -= 1
            self.busy_s += asyncio.get_running_loop().time() - began
        canary = work.request["id"] == "warm-up"
        if not canary:
            self.generated.append(str(work.request["id"]))
        self.canaries += canary
        if fresh:
            self.fresh.append(str(work.request["id"]))
        troubles = self.canary_troubles if canary else self.troubles.get(prompt, deque())
        if troubles:
            trouble = troubles.popleft()
            if isinstance(trouble, WorkerError):
                raise type(trouble)(trouble.message)
            return trouble(self, work)
        return self.output(work)

    def output(self, work: Work, *, flat: bool = False) -> Output:
        images = tuple(RawImage(png(seed, flat=flat), seed) for seed in work.expect.seeds)
        return Output(images, EngineResult(name=self.name, model="m", proof="name"), 0.0, self.seconds)

    async def mentions(self, job: Job) -> tuple[Mention, ...]:
        """Its checkpoint and what it lists, each known when it is among ``files``."""
        await self.delays.at(Hop.ADMIT, job.id)
        gathering = Gathering(job, lambda kind, name, _: p if (p := place_of(kind, name)) in self.files else None)
        for i, ref in enumerate(job.models):
            gathering.add(ref.kind, ref.name, ("models", i, "name"))
        gathering.add("checkpoint", job.checkpoint, ("checkpoint",))
        return tuple(gathering.found)

    async def loaded(self) -> frozenset[Place]:
        return frozenset(self.held)

    async def unload(self, places: Collection[Place]) -> None:
        self.unloaded.append(frozenset(places))
        self.held -= set(places)

    async def relay(self, call: NativeCall) -> Answer:
        self.relayed.append(call)
        return Answer(200, {"content-type": "application/json"}, b"{}")

    async def free(self, everything: bool) -> None:
        self.freed += 1

    async def aclose(self) -> None:
        """Nothing to close."""


def flat_output(engine: FakeEngine, work: Work) -> Output:
    return engine.output(work, flat=True)


class FakeStorage:
    """Objects in memory, shared by workers that are given the same one; ``down`` is raised by everything."""

    name = "fake"

    def __init__(self) -> None:
        self.delays = Delays()
        self.objects: dict[str, bytes] = {}
        self.down: WorkerError | None = None
        self.seconds = 0.0
        self.calls: list[str] = []
        self.keeps_marks = True
        self.mark_answer_s = 0.0

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.seconds:
            await takes(self.seconds)
        if self.down is not None:
            raise type(self.down)(self.down.message)

    def accepts(self, job: Job, outputs: int) -> None:
        """Everything fits."""

    def marks(self, job: Job) -> bool:
        return self.keeps_marks

    async def find_mark(self, job: Job) -> Result | None:
        await self._call("find_mark")
        return self._standing(job)

    def _standing(self, job: Job) -> Result | None:
        body = self.objects.get(f"{job.id}/result.json")
        if body is None:
            return None
        result = Result.model_validate_json(body)
        if result.job_sha256 != job.sha256:
            raise IdConflict
        return result

    async def put_artifact(self, job: Job, artifact: Storable[R]) -> R:
        await self.delays.at(Hop.UPLOAD, job.id)
        await self._call("put_artifact")
        key = f"{job.id}/{artifact.index}-{artifact.sha256[:12]}.{artifact.extension}"
        self.objects[key] = artifact.data
        return artifact.result(key=key)

    async def put_mark(self, job: Job, result: Result) -> Result:
        await self._call("put_mark")
        if not self.keeps_marks:
            return result
        standing = self._standing(job)
        if standing is not None:
            return standing
        self.objects[f"{job.id}/result.json"] = result.to_json()
        await takes(self.mark_answer_s)
        return result

    async def put_failure(self, job: Job, result: Result, attempt: int) -> None:
        await self._call("put_failure")
        self.objects[f"{job.id}/failure-{attempt}.json"] = result.to_json()

    async def check(self) -> str:
        await self._call("check")
        return "ok"

    async def aclose(self) -> None:
        """Nothing to close."""

    def results(self) -> dict[str, Result]:
        return {
            key.removesuffix("/result.json"): Result.model_validate_json(body)
            for key, body in self.objects.items()
            if key.endswith("/result.json")
        }


@dataclass
class FakeStores:
    default: FakeStorage

    def of(self, job: Job) -> FakeStorage:
        return self.default


class FakeReceiver(Sender):
    """The real sender, but for the network: messages are kept, and ``answer`` decides each try."""

    def __init__(self, clock: CorrectedClock, defaults: Defaults | None = None) -> None:
        super().__init__(
            defaults or Defaults(url=HOOK),
            guard=Guard.from_setting("true"),
            clock=clock,
            rng=random.Random(1),
        )
        self.taken: list[tuple[str, dict[str, Any]]] = []
        self.delays = Delays()
        self.tries: Counter[str] = Counter()
        self.answer: Callable[[Message], WorkerError | None] = lambda message: None
        self.seconds = 0.0

    async def _try(self, target: Target, message: Message) -> tuple[str, ...]:
        self.tries[message.id] += 1
        await self.delays.at(Hop.SETTLE, json.loads(message.body)["data"]["id"])
        if self.seconds:
            await takes(self.seconds)
        if (error := self.answer(message)) is not None:
            raise error
        self.taken.append((message.id, json.loads(message.body)))
        return ()

    def down_for_ever(self) -> None:
        self.answer = lambda message: WebhookFailed("down")

    def up_again(self) -> None:
        self.answer = lambda message: None

    def ids(self, event: str) -> list[str]:
        """The ids taken of one event, with repetitions."""
        return [body["data"]["id"] for _, body in self.taken if body["type"] == f"job.{event}"]


class FakeInputs(Inputs):
    """The real fetching, but for the network: every URL has a picture, or what ``bodies`` say."""

    def __init__(self, clock: Clock) -> None:
        super().__init__(Guard.from_setting("true"), clock=clock, rng=random.Random(2))
        self.delays = Delays()
        self.bodies: dict[str, bytes] = {}

    async def _get(self, url: str, field: str) -> bytes:
        await self.delays.at(Hop.MODELS, url.rsplit("/", 1)[-1])
        return self.bodies.get(url) or png(1)


def document(job_id: str, **fields: Any) -> bytes:
    body: Mapping[str, Any] = {"id": job_id, "params": {"prompt": job_id}, **fields}
    return json.dumps(body).encode()

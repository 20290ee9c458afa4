"""A whole worker in one process and in virtual time: real story, memory queue, and fakes at the seams."""

from __future__ import annotations

import asyncio
import functools
import io
import json
import random
from collections import Counter, deque
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from typing import Any

from PIL import Image

from tests.support.virtual import VirtualClock
from worker import warmup
from worker.clock import CorrectedClock
from worker.dependencies import Dependencies, Dependency
from worker.drain import Drain
from worker.engines.base import (
    EngineState,
    Expectation,
    Files,
    Output,
    Progress,
    ProgressReport,
    RawImage,
    Reach,
    Work,
)
from worker.errors import IdConflict, WebhookFailed, WorkerError
from worker.gate import Gate
from worker.images import Encoding
from worker.inputs import Inputs
from worker.intake import Intake
from worker.job import Job, Limits, document_of, parse
from worker.live import Live
from worker.lookahead import Pace
from worker.metrics import Metrics
from worker.node import Identity
from worker.pipeline import Rules, Tools
from worker.queues.memory import MemoryQueue
from worker.queues.policy import Policy
from worker.result import EngineResult, ImageResult, Result
from worker.settings.units import Rate
from worker.settlement import Bench
from worker.status import Status
from worker.storage.base import Artifact
from worker.supervisor import ExitCode, Supervisor
from worker.tasks import Budget
from worker.urls import Guard
from worker.watch import Watch
from worker.webhooks import Defaults, Message, Sender, Target

SIDE = 64
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


class FakeEngine:
    """A server that takes ``seconds`` for a picture; ``troubles`` are met by the next generations of a prompt."""

    name = "fake"

    def __init__(self, seconds: float = 1.0) -> None:
        self.seconds = seconds
        self.reach = Reach.READY
        self.troubles: dict[str, deque[Trouble]] = {}
        self.canary_troubles: deque[Trouble] = deque()
        self.generated: list[str] = []
        self.fresh: list[str] = []
        self.interrupted: list[str] = []
        self.freed = 0
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
        return Work({"prompt": params.prompt, "id": job.id}, "txt2img", expect, steps=4)

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        prompt = str(work.request["prompt"])
        self.running += 1
        self.most_running = max(self.most_running, self.running)
        began = asyncio.get_running_loop().time()
        try:
            for step in range(4):
                await asyncio.sleep(self.seconds / 4)
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
        self.objects: dict[str, bytes] = {}
        self.down: WorkerError | None = None
        self.seconds = 0.0
        self.calls: list[str] = []
        self.keeps_marks = True

    async def _call(self, name: str) -> None:
        self.calls.append(name)
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if self.down is not None:
            raise type(self.down)(self.down.message)

    def accepts(self, job: Job, images: int) -> None:
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

    async def put_image(self, job: Job, artifact: Artifact) -> ImageResult:
        await self._call("put_image")
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
        self.tries: Counter[str] = Counter()
        self.answer: Callable[[Message], WorkerError | None] = lambda message: None
        self.seconds = 0.0

    async def _try(self, target: Target, message: Message) -> tuple[str, ...]:
        self.tries[message.id] += 1
        if self.seconds:
            await asyncio.sleep(self.seconds)
        if (error := self.answer(message)) is not None:
            raise error
        self.taken.append((message.id, json.loads(message.body)))
        return ()

    def down_for_ever(self) -> None:
        self.answer = lambda message: WebhookFailed("down")

    def ids(self, event: str) -> list[str]:
        """The ids taken of one event, with repetitions."""
        return [body["data"]["id"] for _, body in self.taken if body["type"] == f"job.{event}"]


@dataclass
class World:
    """One worker and its surroundings; `running` runs it."""

    engine: FakeEngine = field(default_factory=FakeEngine)
    storage: FakeStorage = field(default_factory=FakeStorage)
    policy: Policy = field(default_factory=lambda: Policy(visibility=timedelta(seconds=20)))
    window: int = 3
    flat: str = "canary"
    worker: str = "w1"
    drain_s: float = 25.0
    queue: MemoryQueue | None = None

    @property
    def built(self) -> bool:
        return hasattr(self, "supervisor")

    def build(self) -> None:
        wall = VirtualClock()
        self.clock = CorrectedClock(wall)
        identity = Identity(self.worker, "machine", "0")
        self.queue = self.queue or MemoryQueue(wall, worker=self.worker, policy=self.policy)
        self.receiver = FakeReceiver(self.clock)
        self.status, self.live, self.metrics = Status(), Live(), Metrics()
        self.pace = Pace()
        self.drain = Drain(self.live, self.pace)
        self.gate = Gate(self.engine)
        self.dependencies = Dependencies()
        self.limits = Limits()
        self.exits: list[str] = []
        inputs = Inputs(Guard.from_setting("true"), clock=self.clock, rng=random.Random(2))
        bench = Bench(
            queue=self.queue,
            stores=FakeStores(self.storage),
            sender=self.receiver,
            metrics=self.metrics,
            clock=self.clock,
            identity=identity,
            rng=random.Random(3),
            drain_left=self.drain.left,
        )
        rules = Rules(self.limits, Encoding(), self.flat, timedelta(minutes=10), upload_concurrency=4)
        self.tools = Tools(
            bench=bench,
            gate=self.gate,
            engine=self.engine,
            inputs=inputs,
            dependencies=self.dependencies,
            live=self.live,
            drain=self.drain,
            pace=self.pace,
            budget=Budget(512_000_000),
            rules=rules,
        )
        canary = parse(
            document_of(json.dumps(warmup.DEFAULT).encode(), max_body=10_000), fallback_id="warm-up", limits=self.limits
        )
        watch = Watch(
            self.dependencies,
            self.status,
            self.gate,
            self.metrics,
            {Dependency.STORAGE: self.storage.check, Dependency.QUEUE: self.queue.check},
        )
        service = warmup.EngineService(
            self.gate,
            warmup.Canary(canary, inputs, timedelta(minutes=5)),
            self.status,
            self.metrics,
            patience=warmup.Patience(timedelta(minutes=20), Rate(5, timedelta(minutes=10))),
            warm_at_start=True,
            on_ready=watch.apply,
        )
        self.intake = Intake(self.tools, self.status, window=self.window, rng=random.Random(4))
        self.supervisor = Supervisor(
            self.status,
            self.drain,
            self.intake,
            {"engine": service.run, "watch": watch.run},
            asyncio.Event().wait,  # type: ignore[arg-type]
            drain_timeout=timedelta(seconds=self.drain_s),
            stop_at_once=lambda: self.exits.append("at once"),
        )

    @asynccontextmanager
    async def running(self) -> AsyncIterator[asyncio.Task[ExitCode]]:
        """The worker at work; drained when the block ends. What `build` made before is used."""
        if not self.built:
            self.build()
        task = asyncio.create_task(self.supervisor.run(), name="supervisor")
        try:
            yield task
        finally:
            if not task.done():
                self.supervisor.stop()
            await asyncio.wait({task})
            await self.receiver.aclose()
            await self.tools.inputs.aclose()

    async def submit(self, job_id: str, **fields: Any) -> None:
        assert self.queue is not None
        await self.queue.submit(job_id, document(job_id, **fields))

    async def submit_body(self, job_id: str, body: bytes) -> None:
        assert self.queue is not None
        await self.queue.submit(job_id, body)

    async def ended(self, *job_ids: str) -> None:
        """Wait until each of these jobs is done or dead."""
        for job_id in job_ids:
            while await self.state(job_id) not in ("done", "dead"):
                await asyncio.sleep(0.05)
                assert asyncio.get_running_loop().time() < 100_000, f"{job_id} never ended"

    async def until(self, check: Callable[[], bool], seconds: float = 100_000) -> None:
        """Let virtual time pass until the check holds."""
        ends = asyncio.get_running_loop().time() + seconds
        while not check():
            assert asyncio.get_running_loop().time() < ends, "it never came to that"
            await asyncio.sleep(0.05)

    async def state(self, job_id: str) -> str | None:
        assert self.queue is not None
        state = await self.queue.state(job_id)
        return state.status if state else None

    async def code(self, job_id: str) -> str | None:
        assert self.queue is not None
        state = await self.queue.state(job_id)
        return state.code if state else None


def document(job_id: str, **fields: Any) -> bytes:
    body: Mapping[str, Any] = {"id": job_id, "params": {"prompt": job_id}, **fields}
    return json.dumps(body).encode()

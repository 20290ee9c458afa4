"""What the demo is made of: its jobs, a receiver that verifies signatures, and the judgement of every result."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import hmac
import json
import secrets
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any, Self

from worker.clock import SystemClock
from worker.queues.base import JobState
from worker.settings.source import surroundings
from worker.tasks import cancel_all

PROMPTS = (
    "a lighthouse at dusk, oil on canvas",
    "portrait of a heron, studio light",
    "a market street in the rain, 35 mm",
    "an orange on a blue plate, still life",
    "mountains over a sea of clouds",
    "a cat asleep on warm stones",
)
SIZES = ((512, 512), (768, 512), (512, 768))
TOLERANCE_S = 300


def documents(count: int, now: datetime) -> dict[str, bytes]:
    """So many different jobs, their ids new at every run."""
    made = {}
    for n in range(count):
        width, height = SIZES[n % len(SIZES)]
        params = {"prompt": PROMPTS[n % len(PROMPTS)], "width": width, "height": height, "steps": 12}
        job_id = f"demo-{int(now.timestamp()):x}-{n + 1:02d}"
        made[job_id] = json.dumps({"v": 1, "id": job_id, "params": params}).encode()
    return made


def new_secret() -> str:
    return "whsec_" + base64.b64encode(secrets.token_bytes(32)).decode()


def worker_environment(*, out: Path, engine: str, engine_url: str, hook: str, secret: str, port: int) -> dict[str, str]:
    """The environment of the worker's process: nothing of ours but what is set here."""
    return surroundings() | {
        "WORKER_ENGINE": engine,
        "WORKER_ENGINE_URL": engine_url,
        "WORKER_HTTP_PORT": str(port),
        "WORKER_QUEUE": "sqlite",
        "WORKER_SQLITE_PATH": str(out / "queue.db"),
        "WORKER_STORAGE": "directory",
        "WORKER_STORAGE_DIRECTORY": str(out),
        "WORKER_WEBHOOK_URL": hook,
        "WORKER_WEBHOOK_SECRET": secret,
        "WORKER_NODE_ID": "demo",
        "WORKER_LOG_FORMAT": "json",
    }


class Receiver:
    """Takes webhooks as a customer would: the signature is checked before anything else, ids are remembered."""

    def __init__(self, secret: str) -> None:
        self._key = base64.b64decode(secret.removeprefix("whsec_"))
        self.url = ""
        self.taken: dict[str, dict[str, Any]] = {}
        self.refused = 0

    @classmethod
    @asynccontextmanager
    async def listening(cls, secret: str) -> AsyncIterator[Self]:
        from starlette.applications import Starlette
        from starlette.routing import Route

        from worker.web.server import serve

        receiver = cls(secret)
        listening: asyncio.Future[int] = asyncio.get_running_loop().create_future()
        app = Starlette(routes=[Route("/hook", receiver.take, methods=["POST"])])
        task = asyncio.create_task(serve(app, "::", 0, on_listening=listening.set_result), name="demo-receiver")
        try:
            receiver.url = f"http://127.0.0.1:{await listening}/hook"
            yield receiver
        finally:
            await cancel_all({task})

    async def take(self, request: Any) -> Any:
        from starlette.responses import Response

        body = await request.body()
        if not self.is_genuine(request.headers, body):
            self.refused += 1
            return Response(status_code=401)
        event = json.loads(body)
        if event["type"] in ("job.succeeded", "job.failed"):
            self.taken[event["data"]["id"]] = event
        return Response(status_code=204)

    def is_genuine(self, headers: Any, body: bytes) -> bool:
        """Whether one of the signatures is of this id, time and body, and the time is now."""
        stamp = headers.get("webhook-timestamp", "")
        if not stamp.isdigit() or abs(SystemClock().now().timestamp() - int(stamp)) > TOLERANCE_S:
            return False
        signed = b".".join((headers.get("webhook-id", "").encode(), stamp.encode(), body))
        wanted = "v1," + base64.b64encode(hmac.digest(self._key, signed, "sha256")).decode()
        return any(hmac.compare_digest(wanted, one) for one in headers.get("webhook-signature", "").split())


@dataclass(frozen=True, slots=True)
class Finding:
    """What became of one job; ``problem`` is empty when all is as it was asked for."""

    job_id: str
    row: tuple[str, str, str, str, str, str]
    problem: str


def judged(wanted: dict[str, bytes], states: dict[str, JobState], receiver: Receiver, out: Path) -> list[Finding]:
    """Open every image and hold it against what was asked for and what the result says."""
    seen: set[str] = set()
    return [_judge(job_id, body, states.get(job_id), receiver, out, seen) for job_id, body in wanted.items()]


def _judge(job_id: str, body: bytes, state: JobState | None, receiver: Receiver, out: Path, seen: set[str]) -> Finding:
    result = state.result if state is not None else None
    announced = "verified" if job_id in receiver.taken else "none"
    if result is None or result.status != "succeeded" or not result.images:
        why = result.error.message if result is not None and result.error is not None else "it did not end"
        return Finding(job_id, (job_id, result.status if result else "unfinished", "", "", announced, ""), why)
    image = result.images[0]
    path = out / (image.key or "")
    size = f"{image.width}x{image.height}"
    row = (job_id, result.status, size, f"{result.timings.total or 0:.1f}", announced, path.name)
    return Finding(job_id, row, image_problem(body, image, path, announced, out / job_id, seen))


def image_problem(body: bytes, image: Any, path: Path, announced: str, folder: Path, seen: set[str]) -> str:
    """What is wrong with an image, empty where nothing is: against the job, its result, and the images ``seen`` so far.

    ``path`` is its file, ``folder`` where the result document stands; ``announced`` is ``verified`` or anything else.
    """
    from PIL import Image, UnidentifiedImageError

    params = json.loads(body)["params"]
    try:
        data = path.read_bytes()
        with Image.open(path) as picture:
            picture.load()
            size = picture.size
    except (OSError, UnidentifiedImageError) as error:
        return f"the image cannot be opened: {error}"
    digest = hashlib.sha256(data).hexdigest()
    checks = {
        "the image is not the one that the result names": digest == image.sha256,
        f"the image has {size} pixels": size == (params["width"], params["height"]),
        "another job has the same image": digest not in seen,
        "there is no result.json": (folder / "result.json").is_file(),
        "its webhook did not arrive": announced == "verified",
    }
    seen.add(digest)
    return "; ".join(problem for problem, fine in checks.items() if not fine)

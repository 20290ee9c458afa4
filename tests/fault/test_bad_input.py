"""Jobs that are wrong: each ends as the contract says, its owner hears of it, and the worker goes on."""

from __future__ import annotations

import asyncio
import base64
import io
import json
import struct
import zlib
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any, Self

import pytest
import pytest_asyncio
from PIL import Image

from tests.support.bench import RunningWorker, document, ends, params, running_worker
from tests.support.receiver import Answer, ScriptedServer
from worker.errors import Fault

pytestmark = pytest.mark.asyncio(loop_scope="module")

PLACE = "127.77.0.1"
"""An address of this machine that the operator allows to jobs; every other private one stays refused."""

MAX_BODY = 150_000


class Place(ScriptedServer):
    """Where jobs' own URLs may lead."""

    async def __aenter__(self) -> Self:
        self._server = await asyncio.start_server(self._serve, PLACE, 0)
        self.port = self._server.sockets[0].getsockname()[1]
        return self

    def at(self, path: str) -> str:
        return self.url(path, PLACE)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def place() -> AsyncIterator[Place]:
    async with Place() as place:
        place.routes["/document"] = Answer(body=json.dumps({"params": params()}).encode())
        place.routes["/broken"] = Answer(body=b'{"params":')
        place.routes["/missing"] = Answer(404)
        place.routes["/picture"] = Answer(body=b"<html>no picture</html>")
        yield place


@pytest_asyncio.fixture(scope="module", loop_scope="module", params=["sdnext", "a1111"])
async def worker(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> AsyncIterator[RunningWorker]:
    root: Path = tmp_path_factory.mktemp("bad-input")
    async with running_worker(
        root,
        request.param,
        WORKER_MAX_BODY=str(MAX_BODY),
        WORKER_URLS_ALLOW_PRIVATE=f"{PLACE}/32",
        WORKER_WEBHOOK_BUDGET="5s",
        WORKER_WEBHOOK_TIMEOUT="2s",
    ) as worker:
        yield worker


def png_base64(width: int, height: int) -> str:
    """A PNG of one bit a pixel, all black: as a file a thousandth of what it is when decoded."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 1, 0, 0, 0, 0)
    pixels = zlib.compress(bytes(1 + (width + 7) // 8) * height, 9)
    data = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")
    return base64.b64encode(data).decode()


def small_image() -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), (200, 30, 30)).save(file, "PNG")
    return base64.b64encode(file.getvalue()).decode()


def native(prompt: str = "a cat", **fields: Any) -> dict[str, Any]:
    return {"prompt": prompt, "width": 64, "height": 64, "steps": 2, **fields}


def job(**fields: Any) -> bytes:
    """A document that leaves its id to the queue."""
    return json.dumps(fields).encode()


WRONG: dict[str, tuple[bytes, str, str]] = {
    "broken-json": (b'{"params": {"prompt": "a', "invalid_job", "not JSON"),
    "no-text": (b"\xff\xfe\x00", "invalid_job", "not JSON"),
    "not-an-object": (b'["params"]', "invalid_job", "must be a JSON object"),
    "unknown-field": (job(params=params(), colour="red"), "invalid_job", "colour: unknown field"),
    "unknown-parameter": (job(params=params(colour="red")), "invalid_job", "params.colour: unknown field"),
    "two-sources": (job(params=params(), request=native()), "invalid_job", "params and request"),
    "no-source": (job(metadata={"a": 1}), "invalid_job", "given: none"),
    "body-over-the-limit": (job(params=params("x" * MAX_BODY)), "invalid_job", "bytes"),
    "bad-base64": (job(params=params(image="%%%%")), "invalid_job", "params.image: is neither base64 nor"),
    "no-picture": (job(params=params(image="aGVsbG8=")), "invalid_job", "params.image: is no image"),
    "bomb": (job(params=params(image=png_base64(9000, 9000))), "invalid_job", "params.image: has 9000x9000 pixels"),
    "bomb-in-native-body": (
        job(endpoint="img2img", request=native(init_images=[png_base64(9000, 9000)])),
        "invalid_job",
        "request.init_images.0: has 9000x9000 pixels",
    ),
    "too-large": (job(params=params(width=100_000, height=100_000)), "invalid_job", "params.width: 100000x100000"),
    "too-large-native": (job(request=native(width=100_000, height=100_000)), "invalid_job", "request.width"),
    "too-many-steps": (job(params=params(steps=10_000)), "invalid_job", "params.steps: 10000 is more than 150"),
    "too-many-steps-native": (job(request=native() | {"steps": 10_000}), "invalid_job", "request.steps"),
    "too-many-images": (job(params=params(batch_size=17)), "invalid_job", "params.batch_size: 17 images"),
    "too-many-images-native": (job(request=native(batch_size=5, n_iter=5)), "invalid_job", "25 images"),
    "unknown-sampler": (job(params=params(sampler="Warp 9")), "invalid_job", "params.sampler"),
    "unknown-sampler-native": (job(request=native(sampler_name="Warp 9")), "invalid_job", "request.sampler_name"),
    "unknown-model": (job(params=params(), checkpoint="no-such-model"), "model_not_found", "no-such-model"),
    "unknown-lora": (job(params=params(loras=[{"name": "no-such-lora"}])), "model_not_found", "no-such-lora"),
    "unknown-lora-tag": (job(request=native("a cat <lora:no-such-lora:1>")), "model_not_found", "no-such-lora"),
    "unknown-native-field": (job(request=native(colour="red")), "invalid_job", "request.colour"),
    "unknown-endpoint": (job(request=native(), endpoint="txt3img"), "invalid_job", "endpoint: unknown"),
    "path-as-endpoint": (job(request=native(), endpoint="../../etc/passwd"), "invalid_job", "endpoint"),
    "workflow": (job(workflow={"1": {}}), "invalid_job", "workflow"),
    "template": (job(template={"name": "poster", "input": {}}), "invalid_job", "template"),
    "id-with-a-path": (job(id="../../evil", params=params()), "invalid_job", "id: "),
    "prefix-with-a-path": (job(params=params(), output={"prefix": "../evil"}), "invalid_job", "output.prefix"),
    "model-with-a-path": (
        job(params=params(), models=[{"kind": "lora", "name": "../../evil"}]),
        "invalid_job",
        "models.0: must be a relative name",
    ),
    "expired": (job(params=params(), deadline="2020-01-01T00:00:00Z"), "expired", "2020-01-01"),
    "too-patient": (job(params=params(), timeout=999_999), "invalid_job", "timeout"),
    "too-few-places": (
        job(params=params(batch_size=2), output={"upload_urls": ["https://example.com/1"]}),
        "invalid_job",
        "output.upload_urls",
    ),
    "places-without-use": (
        job(params=params(), output={"storage": "inline", "upload_urls": ["https://example.com/1"]}),
        "invalid_job",
        "output.upload_urls",
    ),
    "unconfigured-place": (job(params=params(), output={"storage": "s3"}), "invalid_job", "output.storage"),
    "document-at-a-private-address": (job(job_url="http://127.0.0.1:1/job.json"), "url_forbidden", "not public"),
    "document-in-a-file": (job(job_url="file:///etc/passwd"), "url_forbidden", "only http, https, s3"),
    "input-at-a-private-address": (job(params=params(image="http://127.0.0.1:1/a.png")), "url_forbidden", "not public"),
    "input-at-the-metadata-service": (
        job(params=params(image="http://169.254.169.254/latest/meta-data")),
        "url_forbidden",
        "link-local",
    ),
    "input-in-a-file": (job(params=params(image="file:///etc/passwd")), "invalid_job", "params.image"),
}


@pytest.mark.parametrize("case", WRONG)
async def test_a_wrong_job_is_rejected_and_its_owner_told(worker: RunningWorker, case: str) -> None:
    """It ends at once as a dead letter with its code and the field, one failed webhook, and no turn on the GPU."""
    body, code, said = WRONG[case]
    turns = len(worker.sim.stats.generations)
    state = await worker.done(case, body)
    assert (state.status, state.code, ends(state)) == ("dead", code, [(code, True)])
    assert state.result is not None
    assert state.result.error is not None
    assert said in state.result.error.message
    assert (state.result.error.code, state.result.error.fault) == (code, Fault.JOB)
    assert not state.result.error.retryable
    assert worker.told(case) == ["job.failed"]
    assert len(worker.sim.stats.generations) == turns
    assert (await worker.queue.state(case)) in await worker.queue.jobs("dead")
    assert not any("evil" in name for name in worker.files())
    await worker.goes_on(case)


@pytest.mark.parametrize("path", ["/missing", "/broken", "/picture"])
async def test_a_document_elsewhere_that_is_none_is_rejected(worker: RunningWorker, place: Place, path: str) -> None:
    """`job_url` that leads to nothing, or to no document."""
    case = f"elsewhere{path.replace('/', '-')}"
    state = await worker.done(case, job(job_url=place.at(path)))
    assert (state.status, state.code) == ("dead", "invalid_job")
    assert worker.told(case) == ["job.failed"]
    await worker.goes_on(case)


async def test_a_document_elsewhere_is_fetched(worker: RunningWorker, place: Place) -> None:
    """A message that only points at its document is the job that stands there."""
    state = await worker.done("elsewhere", job(job_url=place.at("/document")))
    assert (state.status, state.code) == ("done", None)
    assert worker.told("elsewhere") == ["job.succeeded"]
    assert "elsewhere/result.json" in worker.files()


FORBIDDEN = {
    "metadata-service": "http://169.254.169.254/latest/meta-data",
    "localhost": "http://localhost/",
    "loopback": "http://127.0.0.1:1/",
    "loopback-in-hex": "http://0x7f000001/",
    "mapped": "http://[::ffff:127.0.0.1]/",
    "file": "file:///etc/passwd",
    "gopher": "gopher://127.77.0.1/",
    "no-url": "hello",
}


@pytest.mark.parametrize("name", FORBIDDEN)
async def test_a_forbidden_webhook_is_refused_at_once(worker: RunningWorker, name: str) -> None:
    """The job is rejected before the GPU, nothing is sent anywhere, and no budget is spent on trying."""
    case = f"webhook-{name}"
    turns, posts = len(worker.sim.stats.generations), len(worker.receiver.requests)
    state = await worker.done(case, webhook=FORBIDDEN[name])
    assert (state.status, state.code) == ("dead", "url_forbidden")
    assert state.result is not None
    assert state.result.warnings == ()
    assert (len(worker.sim.stats.generations), len(worker.receiver.requests)) == (turns, posts)
    await worker.goes_on(case)


async def test_a_webhook_with_a_password_is_never_called(worker: RunningWorker, place: Place) -> None:
    """Not even to tell that it was refused."""
    url = place.at("/hook").replace("//", "//user:secret@")
    state = await worker.done("userinfo", webhook=url)
    assert (state.status, state.code) == ("dead", "url_forbidden")
    assert state.result is not None
    assert b"secret" not in state.result.to_json()
    assert [request for request in place.requests if request.path == "/hook"] == []
    await worker.goes_on("userinfo")


async def test_an_unknown_secret_is_refused(worker: RunningWorker, place: Place) -> None:
    """A webhook that could not be signed as its owner expects is not sent unsigned either."""
    webhook = {"url": place.at("/signed"), "secret": "nobody"}
    state = await worker.done("unknown-secret", webhook=webhook)
    assert (state.status, state.code) == ("dead", "invalid_job")
    assert state.result is not None
    assert state.result.error is not None
    assert state.result.error.message.startswith("webhook.secret")
    assert [request for request in place.requests if request.path == "/signed"] == []
    await worker.goes_on("unknown-secret")


async def test_a_wrong_job_is_told_to_its_own_webhook(worker: RunningWorker, place: Place) -> None:
    """Even of a document that is no job, what names its owner is saved; the operator's receiver hears nothing."""
    place.requests.clear()
    body = document("own-hook", webhook=place.at("/own"), colour="red", metadata={"order": 7})
    state = await worker.done("own-hook", body)
    assert state.code == "invalid_job"
    told = [json.loads(request.body) for request in place.requests if request.path == "/own"]
    assert [(one["type"], one["data"]["metadata"]) for one in told] == [("job.failed", {"order": 7})]
    assert worker.told("own-hook") == []


async def test_a_known_id_with_another_document_changes_nothing(worker: RunningWorker) -> None:
    """Dead letter without webhook and without failure document; what stands stays byte for byte."""
    assert (await worker.done("first")).status == "done"
    before, posts = worker.files(), len(worker.receiver.requests)
    state = await worker.done("second", document("first", params=params("another prompt")))
    assert (state.status, state.code) == ("dead", "id_conflict")
    after = worker.files()
    assert {name: after[name] for name in before} == before
    assert [name for name in after if name not in before and not name.endswith(".png")] == []
    assert len(worker.receiver.requests) == posts
    await worker.goes_on("second")


async def test_a_document_of_the_next_version_is_left_to_others(worker: RunningWorker) -> None:
    """Released uncharged, not rejected: a newer worker may know it. Nobody is told anything."""
    await worker.submit("v2", document("v2", v=2, novelty={"a": 1}))
    await worker.attempted("v2", "unsupported_document")
    state = await worker.state("v2")
    assert state.status in ("waiting", "delayed", "leased")
    assert {(a.code, a.charged) for a in state.attempts} == {("unsupported_document", False)}
    assert state.deliveries <= 1
    assert worker.told("v2") == []
    await worker.goes_on("v2")
    assert await worker.queue.cancel("v2")


async def test_dead_letters_are_listed_by_code_and_run_again_when_requeued(worker: RunningWorker) -> None:
    """What was wrong here and is right now succeeds after a requeue."""
    await worker.done("requeued", checkpoint="added-later")
    assert [s.code for s in await worker.queue.jobs("dead") if s.id == "requeued"] == ["model_not_found"]
    worker.sim.disk.add("added-later.safetensors")
    assert await worker.queue.requeue("requeued")
    state = await worker.ended("requeued")
    assert (state.status, state.code) == ("done", None)
    assert worker.told("requeued") == ["job.failed", "job.succeeded"]


async def test_an_input_image_is_used(worker: RunningWorker) -> None:
    """The counterpart of all the bad ones."""
    state = await worker.done("with-input", params=params(image=small_image(), denoise=0.5))
    assert (state.status, state.code) == ("done", None)
    assert worker.sim.stats.generations[-1].endpoint == "img2img"

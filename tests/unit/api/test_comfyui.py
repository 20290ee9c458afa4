"""What comfyui-api's requests come to, and the parts of its answers, without any server."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import Any, cast

import pytest

from worker.api.comfyui.answer import body, filenames, in_their_words, location, outputs, renamed, stats
from worker.api.comfyui.notifier import PromptNotifier
from worker.api.comfyui.request import HttpUpload, PromptRequest, Unsaved, echo, read, saves
from worker.api.comfyui.store import PromptStore, Uploads
from worker.engines.base import Output
from worker.errors import (
    AuthFailed,
    InternalError,
    InvalidJob,
    Owner,
    UploadFailed,
    UploadForbidden,
    UrlForbidden,
    WorkerError,
)
from worker.files import Kind
from worker.job import Job
from worker.made import Made
from worker.result import EngineResult, ErrorResult, Result, Timings, WorkerResult
from worker.storage.base import Artifact, FileArtifact
from worker.web.problems import problem
from worker.webhooks import Message, Sender, Target

GRAPH = {"9": {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": "ComfyUI"}}}
NOW = datetime(2026, 1, 1, tzinfo=UTC)
JOB = Job(id="http-1", workflow=GRAPH)
PNG = Artifact(0, b"png", "png", 8, 8, 7)
CLIP = FileArtifact(1, b"mp4", "clip.mp4", Kind("mp4", "mp4", "video/mp4"), node="9")


def a_request(**fields: Any) -> PromptRequest:
    return read({"prompt": GRAPH, "id": "mine", **fields})


def made(*artifacts: Any, **native: Any) -> Made:
    return Made(Output((), EngineResult(name="comfyui"), native=native), artifacts or (PNG, CLIP), flat=False)


def result(**fields: Any) -> Result:
    whole = {"id": JOB.id, "status": "succeeded", "worker": WorkerResult(id="w", version="1"), **fields}
    return Result(created_at=NOW, finished_at=NOW, **whole)


@pytest.mark.parametrize(
    ("fields", "waits"),
    [
        ({}, True),
        ({"webhook": "https://x/"}, False),
        ({"webhook_v2": "https://x/"}, False),
        ({"s3": {"bucket": "bucket"}}, False),
        ({"s3": {"bucket": "bucket", "async": True}}, False),
        ({"s3": {"bucket": "bucket", "async": False}}, True),
        ({"s3": {"bucket": "bucket", "async": False}, "webhook_v2": "https://x/"}, False),
        ({"http_upload": {"url_prefix": "https://x/", "async": False}}, True),
    ],
)
def test_who_waits(fields: dict[str, Any], waits: bool) -> None:
    """A webhook, or an upload that is not said to be synchronous, is told of instead."""
    assert a_request(**fields).waits is waits


def test_an_id_is_drawn_where_none_is_given() -> None:
    one, other = read({"prompt": GRAPH}), read({"prompt": GRAPH, "id": None})
    assert len({one.id, other.id, "mine"}) == 3
    assert len(one.id) == 36


@pytest.mark.parametrize(
    ("options", "output"),
    [
        (
            {"format": "jpeg", "options": {"quality": 55, "chromaSubsampling": "4:4:4", "optimizeCoding": False}},
            {"quality": 55, "encoder": {"progressive": False, "subsampling": "4:4:4", "optimize": False}},
        ),
        (
            {"format": "jpg", "options": {"mozjpeg": True, "optimizeCoding": False}},
            {"quality": 80, "encoder": {"progressive": True, "subsampling": "4:2:0", "optimize": True}},
        ),
        (
            {"format": "webp", "options": {"alphaQuality": 3, "effort": 6, "lossless": True, "progressive": True}},
            {"quality": 80, "lossless": True, "encoder": {"alpha_quality": 3, "effort": 6}},
        ),
        (
            {"format": "webp"},
            {"quality": 80, "lossless": False, "encoder": {"alpha_quality": 100, "effort": 4}},
        ),
    ],
)
def test_conversions_are_what_the_encoder_has_of_them(options: dict[str, Any], output: dict[str, Any]) -> None:
    """In words of the job document, which takes them."""
    document = a_request(convert_output=options).document
    encoded = "webp" if options["format"] == "webp" else "jpeg"
    assert document["output"] == {"format": encoded, **output}
    assert Job.model_validate({**document, "id": "x"}).output.format == encoded


def test_options_of_the_other_format_are_no_warning() -> None:
    """Only what was asked of this format and is not in our encoder."""
    both = {"trellisQuantisation": True, "nearLossless": True, "preset": "icon"}
    assert a_request(convert_output={"format": "jpeg", "options": both}).ignored == (
        "option_ignored:trellisQuantisation",
    )
    assert a_request(convert_output={"format": "webp", "options": both}).ignored == (
        "option_ignored:nearLossless",
        "option_ignored:preset",
    )


@pytest.mark.parametrize(
    ("graph", "is_saving"),
    [
        (GRAPH, True),
        ({"1": {"class_type": "VHS_VideoCombine", "inputs": {"filename_prefix": ["2", 0]}}}, True),
        ({"1": {"class_type": "PreviewImage", "inputs": {}}}, True),
        ({"1": {"class_type": "SaveImageWebsocket", "inputs": {}}}, True),
        ({"1": {"class_type": "LoadImage", "inputs": {}}}, False),
        ({"1": {"class_type": 7, "inputs": {}}}, True),
        ({"nodes": []}, True),
        ({"1": {"class_type": "KSampler"}}, False),
    ],
)
def test_a_graph_that_shows_no_saving_node_is_refused_at_once(graph: dict[str, Any], is_saving: bool) -> None:
    """What is no graph at all is left to admission, which says what it is."""
    assert saves(graph) is is_saving
    if not is_saving:
        with pytest.raises(Unsaved):
            read({"prompt": graph})


def test_an_answer_repeats_no_credentials() -> None:
    """Nor those in a URL; what is not known is left out, and an absent field stays absent."""
    document = {
        "prompt": GRAPH,
        "credentials": [{"url_pattern": "**", "auth": {"type": "bearer", "token": "hush"}}],
        "http_upload": {"url_prefix": "https://x/dir?sig=hush", "async": False},
        "webhook": None,
        "client_id": "theirs",
    }
    told = echo(read(document), document)
    assert set(told) == {"id", "prompt", "http_upload"}
    assert told["http_upload"] == {"url_prefix": "https://x/dir", "async": False}
    assert "hush" not in repr(read(document))


def test_an_answer_repeats_no_credentials_of_any_url() -> None:
    """Webhooks, inputs and models are named without what opens them; texts that merely mention a URL are texts."""
    inputs = {"image": "https://me:hush@x/9.jpg?sig=hush#hush", "size": 8, "text": "see https://x/?y", "link": ["1", 0]}
    graph = {"1": {"class_type": "LoadImage", "inputs": inputs}, **GRAPH}
    document = {"prompt": graph, "webhook": "https://x/a?hush", "webhook_v2": "https://hush@x/b"}
    told = echo(read(document), document)
    assert (told["webhook"], told["webhook_v2"]) == ("https://x/a", "https://x/b")
    assert told["prompt"] == {**graph, "1": {**graph["1"], "inputs": {**inputs, "image": "https://x/9.jpg"}}}
    assert document["prompt"] == graph


def test_files_are_numbered_by_their_prefix() -> None:
    """Videos are files too; where the server said nothing, all have the usual prefix; only pictures are converted."""
    asked = a_request(convert_output={"format": "jpeg"})
    jpeg = Artifact(0, b"jpeg", "jpeg", 8, 8, 7)
    assert filenames(asked, made(jpeg, CLIP, prefixes=("a", "a"))) == ("mine_a_00001_.jpeg", "mine_a_00002_.mp4")
    assert filenames(a_request(), made(PNG, CLIP, prefixes=("a", "b"))) == ("mine_a_00001_.png", "mine_b_00001_.mp4")
    assert filenames(a_request(), made(PNG)) == ("mine_ComfyUI_00001_.png",)


def test_times_are_told_in_milliseconds() -> None:
    """Their parts make up the whole, the wait before the job began included."""
    timings = Timings(queued=1.0, models=0.5, images=0.25, upload=0.125, total=3.0)
    told = stats(result(timings=timings), {"stats": {"start": 100, "end": 350, "nodes": {"3": 120}}})
    assert told["comfy_execution"]["nodes"] == {"3": {"start": 120}}
    assert told["comfy_execution"]["duration"] == 250
    assert [told[f"{name}_time"] for name in ("preprocess", "comfy_round_trip", "postprocess", "upload", "total")] == [
        500,
        3125,
        250,
        125,
        4000,
    ]
    assert stats(result(), {})["comfy_execution"]["total"] == {"start": 0, "end": 0, "duration": 0}


async def test_warnings_come_along() -> None:
    """Those of the job, and of options that count for nothing; none where there are none."""
    asked = a_request(convert_output={"format": "webp", "options": {"preset": "icon"}})
    told = await outputs(asked, result(warnings=("output_flat",)), made(PNG))
    assert told["warnings"] == ["output_flat", "option_ignored:preset"]
    assert told["images"] == [b"cG5n"]
    assert "warnings" not in await outputs(a_request(), result(), made(PNG))


@pytest.mark.parametrize("size", [0, 10_000_000])
async def test_a_body_is_the_json_of_its_content(size: int) -> None:
    """Whatever its length, with every character of long texts, and bytes as the texts that they are."""
    long = 'quote " back \\ line \n\u2028 é 🦆' * 5000
    content = {"a": [], "b": {}, "c": [1, None, 2.5, True, {'é"': long}], "d": (long[:70_000], "short")}
    told = json.loads(await body({**content, "images": [b"cG5n", b""]}, size))
    assert told == {**content, "d": list(content["d"]), "images": ["cG5n", ""]}


@pytest.mark.parametrize(
    ("ours", "theirs", "where"),
    [
        ("workflow.3.inputs.seed: is missing", "prompt.3.inputs.seed: is missing", "prompt.3.inputs.seed"),
        ("workflow: has no nodes", "prompt: has no nodes", "prompt"),
        ("output.format: cannot hold it", "convert_output.format: cannot hold it", "convert_output.format"),
        ("s3.bucket: is not there", "s3.bucket: is not there", "s3.bucket"),
        ("the workflow loads another", "the workflow loads another", "prompt"),
        ("http://x/y: answered 500", "http://x/y: answered 500", "prompt"),
    ],
)
def test_messages_name_what_the_caller_wrote(ours: str, theirs: str, where: str) -> None:
    assert renamed(ours) == theirs
    assert location(theirs) == where


def test_a_problem_says_the_same_in_both_languages() -> None:
    """The status may be another; when to come again is kept."""
    errors = InvalidJob("is missing", field="workflow.3.inputs.seed").errors
    ours = problem(503, "workflow.3.inputs.seed: is missing", errors=errors, headers={"retry-after": "7"})
    told = in_their_words(ours, 400)
    assert told.status_code == 400
    assert told.headers["retry-after"] == "7"
    said = json.loads(bytes(told.body))
    assert (said["title"], said["location"]) == ("Bad Request", "prompt.3.inputs.seed")
    assert said["error"] == said["detail"] == "prompt.3.inputs.seed: is missing"
    assert b'"location":"url"' in bytes(in_their_words(problem(503, "away"), at="url").body)


class Place:
    """Stands in for both places of uploads; ``error`` is what they raise."""

    def __init__(self, error: WorkerError | None = None) -> None:
        self.error = error
        self.urls: tuple[str, ...] = ()

    def elsewhere(self, bucket: str) -> Place:
        return self

    def accepts(self, job: Job, outputs: int) -> None:
        self.urls = job.output.upload_urls
        self._fail()

    async def put_under(self, key: str, artifact: Any) -> None:
        self._fail()

    async def put_artifact(self, job: Job, artifact: Any) -> Any:
        self.urls = job.output.upload_urls
        self._fail()
        return artifact.result(url=self.urls[artifact.index])

    def _fail(self) -> None:
        if self.error is not None:
            raise self.error


def store(asked: PromptRequest, place: Place, held: Made | None) -> PromptStore:
    assert asked.upload is not None
    uploads = Uploads(cast("Any", place), cast("Any", place))
    return PromptStore(asked, asked.upload, uploads, lambda job_id: held)


BUCKET = {"s3": {"bucket": "bucket", "prefix": "p/", "async": False}}
URLS = {"http_upload": {"url_prefix": "https://x/dir/?sig=s", "async": False}}


@pytest.mark.parametrize(
    ("error", "told", "words"),
    [
        (UploadFailed("bucket b: away"), UploadFailed, "{field}: bucket b: away"),
        (UploadFailed("output.upload_urls.0: answered 500"), UploadFailed, "{field}: answered 500"),
        (AuthFailed("no usable credentials"), UploadForbidden, "{field}: no usable credentials"),
        (UploadForbidden("output.upload_urls.1: answered 403"), UploadForbidden, "{field}: answered 403"),
        (UrlForbidden("output.upload_urls.0: host 'x' is not public"), UrlForbidden, "{field}: host 'x' is not public"),
        (InvalidJob("answered 404", field="output.upload_urls.0"), InvalidJob, "{field}: answered 404"),
    ],
)
@pytest.mark.parametrize(("fields", "field"), [(BUCKET, "s3.bucket"), (URLS, "http_upload.url_prefix")])
async def test_what_fails_at_a_place_of_the_requests_is_the_jobs(
    error: WorkerError, told: type[WorkerError], words: str, fields: dict[str, Any], field: str
) -> None:
    """It names the field, and pauses nothing of the operator's."""
    with pytest.raises(told) as raised:
        await store(a_request(**fields), Place(error), made()).put_artifact(JOB, PNG)
    assert type(raised.value) is told
    assert raised.value.message == words.format(field=field)
    assert getattr(raised.value, "owner", Owner.JOB) is Owner.JOB


async def test_a_store_keeps_files_and_nothing_else() -> None:
    """Each under the name that the answer tells; a place of a wrong form is refused before the GPU works for it."""
    place = Place()
    over_http = store(a_request(**URLS), place, made(PNG, CLIP))
    over_http.accepts(JOB, 2)
    assert place.urls == ("https://x/dir/0?sig=s", "https://x/dir/1?sig=s")
    stored = await over_http.put_artifact(JOB, CLIP)
    assert stored.url == "https://x/dir/mine_ComfyUI_00002_.mp4?sig=s"
    in_bucket = store(a_request(**BUCKET), place, made(PNG, CLIP))
    in_bucket.accepts(JOB, 2)
    image = await in_bucket.put_artifact(JOB, PNG)
    assert (image.url, image.key) == ("s3://bucket/p/mine_ComfyUI_00001_.png", "p/mine_ComfyUI_00001_.png")
    assert not in_bucket.marks(JOB)
    assert await in_bucket.find_mark(JOB) is None
    assert await in_bucket.put_mark(JOB, result()) == result()
    await in_bucket.put_failure(JOB, result(), 1)
    await in_bucket.aclose()
    assert await in_bucket.check()
    with pytest.raises(UrlForbidden, match=r"http_upload\.url_prefix"):
        store(a_request(**URLS), Place(UrlForbidden("no host")), None).accepts(JOB, 1)
    with pytest.raises(InternalError):
        await store(a_request(**BUCKET), place, None).put_artifact(JOB, PNG)


class Posted:
    """Stands in for the sender of webhooks."""

    secrets = (b"k" * 24,)

    def __init__(self) -> None:
        self.sent: list[tuple[Target, Message]] = []

    async def deliver(self, target: Target, message: Message, *, before_try: Any = None) -> tuple[str, ...]:
        self.sent.append((target, message))
        return ("webhook_gone",)


@contextmanager
def posting(**fields: Any) -> Iterator[tuple[PromptNotifier, Posted]]:
    posted = Posted()
    asked = a_request(**fields)
    yield (
        PromptNotifier(asked, echo(asked, {"prompt": GRAPH, **fields}), cast("Sender", posted), lambda job_id: made()),
        posted,
    )


async def test_a_webhook_has_one_id_whatever_the_try() -> None:
    """It derives from the job and the event, for each file of the older kind from its place too."""
    with posting(webhook="https://old/", webhook_v2="https://new/") as (notifier, posted):
        assert await notifier.send("succeeded", JOB, result()) == ("webhook_gone",)
        assert await notifier.send("succeeded", JOB, result()) == ("webhook_gone",)
    ids = [message.id for _, message in posted.sent]
    assert ids[:3] == ids[3:]
    assert len(set(ids)) == 3
    assert [(target.url, target.secrets) for target, _ in posted.sent[:3]] == [
        ("https://old/", ()),
        ("https://old/", ()),
        ("https://new/", Posted.secrets),
    ]


async def test_nobody_is_told_who_asked_for_no_webhook() -> None:
    """And nobody ever of more than the end."""
    with posting() as (notifier, posted):
        assert not notifier.wants("failed", JOB)
        assert await notifier.send("failed", JOB, result(status="failed")) == ()
    with posting(webhook_v2="https://new/") as (notifier, posted):
        assert not notifier.wants("progress", JOB)
        await notifier.accepts(JOB)
        async with notifier.updates(JOB) as updates:
            updates.progress(0.5)
    assert posted.sent == []


async def test_a_failure_is_told_with_its_reason() -> None:
    """In words with the caller's own fields, and in a code; a success of which nothing is held is none."""
    error = ErrorResult(code="invalid_job", message="workflow.3: is no node", retryable=False, fault="job")
    with posting(webhook_v2="https://new/") as (notifier, posted):
        await notifier.send("failed", JOB, result(status="failed", error=error))
    body = posted.sent[0][1].body
    assert b'"type":"prompt.failed"' in body
    assert b'"error":"prompt.3: is no node","code":"invalid_job","retryable":false' in body
    posted = Posted()
    asked = a_request(webhook_v2="https://new/")
    lost = PromptNotifier(asked, echo(asked, {"prompt": GRAPH}), cast("Sender", posted), lambda job_id: None)
    await lost.send("succeeded", JOB, result())
    assert b'"type":"prompt.failed"' in posted.sent[0][1].body


def test_a_prefix_keeps_its_query_at_the_end() -> None:
    place = HttpUpload(url_prefix="https://x/a//?sv=1&sig=2")
    assert place.url("f.png") == "https://x/a/f.png?sv=1&sig=2"

"""`sd-worker submit --url`."""

from __future__ import annotations

import asyncio
import base64
import json
from collections import deque
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.serving import serving
from tests.support.waiting import wait_until
from worker.cli import main, posting
from worker.cli.posting import Poster, Told, base_of, posted, saved
from worker.errors import AuthFailed, ConfigError, DownloadFailed

BODY = b'{"id": "a", "params": {"prompt": "x"}}'
IMAGE = {"index": 0, "format": "jpeg", "bytes": 3, "base64": base64.b64encode(b"abc").decode()}
DONE = {"id": "http-1", "status": "succeeded", "images": [IMAGE], "timings": {"total": 1.25}}
Said = tuple[int, dict[str, Any], dict[str, str]]


def said(status: int, body: dict[str, Any] | None = None, **headers: str) -> Said:
    return status, body or {}, {name.replace("_", "-"): value for name, value in headers.items()}


def problem(status: int, code: str, **more: Any) -> Said:
    return said(status, {"code": code, "detail": f"it is {code}", **more}, retry_after="0")


class FakeServer:
    """Answers what it is told to, POST by POST and GET by GET; what was asked is kept."""

    def __init__(self, *posts: Said, states: tuple[Said, ...] = ()) -> None:
        self.posts = deque(posts)
        self.states = deque(states)
        self.asked: list[Request] = []
        self.url = ""

    async def post(self, request: Request) -> Response:
        await request.body()
        self.asked.append(request)
        return self._answer(self.posts)

    async def get(self, request: Request) -> Response:
        self.asked.append(request)
        if request.path_params["id"] == "sd-worker-submit":
            return JSONResponse({"code": "unknown_here"}, 404)
        return self._answer(self.states)

    def _answer(self, answers: deque[Said]) -> Response:
        status, body, headers = answers.popleft()
        return JSONResponse(body, status, headers)

    @asynccontextmanager
    async def running(self, prefix: str = "") -> AsyncIterator[FakeServer]:
        path = f"{prefix}/v1/jobs"
        app = Starlette(
            routes=[Route(path, self.post, methods=["POST"]), Route(path + "/{id}", self.get, methods=["GET"])]
        )
        async with serving(app, "::1") as service:
            self.url = service.url(prefix)
            yield self

    async def told(self, *, wait: bool = False, key: str | None = None) -> Told:
        """What becomes of one job that is posted there."""
        async with self.running(), Poster(self.url, key, wait=wait, poll_s=0.0) as poster:
            return (await posted(poster, [("a", BODY, 0)], lambda: None))[0]


async def test_an_answer_is_told_with_what_it_holds() -> None:
    """Id and status there, seconds, and what was made; the key is sent, and the id as the key of the job."""
    server = FakeServer(said(200, DONE))
    told = await server.told(key="sesame")
    assert told.row() == ("http-1", "succeeded", "1.2", "output 0: 3 bytes of jpeg")
    assert not told.failed
    headers = server.asked[0].headers
    assert (headers["authorization"], headers["idempotency-key"]) == ("Bearer sesame", "a")
    assert "prefer" not in headers


async def test_who_does_not_wait_is_told_that_the_job_was_taken() -> None:
    """202 is no failure, and neither is a job that outlasts its answer."""
    taken = await FakeServer(said(202, {"id": "a", "status": "waiting"})).told()
    assert (taken.row(), taken.failed) == (("a", "waiting", "", ""), False)
    late = await FakeServer(problem(504, "still_running", id="http-2")).told()
    assert (late.row(), late.failed) == (("http-2", "running", "", ""), False)


async def test_waiting_asks_asynchronously_and_looks_until_the_end() -> None:
    """A state that cannot be told just now is asked for again."""
    states = (
        said(200, {"status": "waiting"}),
        problem(503, "queue_unavailable"),
        said(200, {"status": "succeeded", "result": DONE}),
    )
    server = FakeServer(said(202, {"id": "http-1", "status": "waiting"}), states=states)
    told = await server.told(wait=True)
    assert told.row()[:2] == ("http-1", "succeeded")
    assert server.asked[0].headers["prefer"] == "respond-async"
    assert [one.method for one in server.asked] == ["POST", "GET", "GET", "GET"]


async def test_where_nothing_could_tell_the_end_the_answer_is_waited_for() -> None:
    """`no_shared_state` is answered by asking synchronously."""
    server = FakeServer(problem(409, "no_shared_state"), said(200, DONE))
    assert (await server.told(wait=True)).status == "succeeded"
    assert "prefer" not in server.asked[1].headers


@pytest.mark.parametrize("state", [problem(404, "unknown_here"), problem(500, "internal")])
async def test_a_job_that_is_lost_on_the_way_failed(state: Said) -> None:
    """The server forgot it, or cannot say."""
    told = await FakeServer(said(202, {"id": "a", "status": "waiting"}), states=(state,)).told(wait=True)
    assert told.failed
    assert told.said


async def test_a_full_server_is_asked_again_when_it_says(capsys: pytest.CaptureFixture[str]) -> None:
    """429 and 503 are waited for, however often, and the user is told why."""
    busy = [problem(429, "too_many_pending"), problem(503, "not_ready"), problem(503, "draining")] * 2
    server = FakeServer(*busy, said(200, DONE))
    assert (await server.told()).status == "succeeded"
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == len(busy)
    assert lines[0] == "a: it is too_many_pending; again in 0 s"


async def test_without_a_time_a_busy_server_is_asked_again_after_a_while(monkeypatch: pytest.MonkeyPatch) -> None:
    """The header may be missing."""
    monkeypatch.setattr(posting, "PAUSE", posting.PAUSE * 0)
    server = FakeServer(said(429, {"code": "too_many_pending"}), said(200, DONE))
    assert (await server.told()).status == "succeeded"


async def test_a_job_that_fails_again_and_again_is_given_up() -> None:
    """A failure that may pass is tried a few times."""
    failed = problem(503, "engine_lost", result={"status": "failed"})
    server = FakeServer(*[failed] * posting.TRIES, said(200, DONE))
    told = await server.told()
    assert (told.row(), told.failed) == (("a", "failed", "", "it is engine_lost"), True)
    assert len(server.posts) == 1


@pytest.mark.parametrize(
    ("answer", "status"),
    [
        (problem(422, "invalid_job"), "refused"),
        (problem(409, "cancelled", result={"status": "cancelled"}), "cancelled"),
        (said(502), "refused"),
    ],
)
async def test_what_is_refused_is_told_with_its_reason(answer: Said, status: str) -> None:
    """By the problem's detail, which names the field, else by the status."""
    told = await FakeServer(answer).told()
    assert (told.status, told.failed) == (status, True)
    assert told.row()[3] == answer[1].get("detail", "the server answered 502 Bad Gateway")


async def test_a_refused_key_and_an_absent_server_end_it_all() -> None:
    """Nothing would come of going on."""
    with pytest.raises(AuthFailed, match="WORKER_API_KEY"):
        await FakeServer(problem(401, "unauthorized")).told()
    server = FakeServer()
    async with server.running():
        pass
    async with Poster(server.url, None, wait=False) as poster:
        with pytest.raises(DownloadFailed, match="cannot be connected to"):
            await poster.is_worker()


def test_urls_with_and_without_the_endpoint_are_taken() -> None:
    """A path before it stays; credentials have their own place."""
    assert base_of("https://gw.example/a/b/v1/jobs") == base_of("https://gw.example/a/b/") == "https://gw.example/a/b"
    for wrong in ("gw.example", "ftp://x/", "http://", "http://u:p@x/", "http://x/?key=1"):
        with pytest.raises(ConfigError, match="--url"):
            base_of(wrong)


def test_images_are_saved_under_names_of_their_own(tmp_path: Path) -> None:
    """Never outside the folder, whatever the server says; what is elsewhere is named as it is."""
    evil = {"index": "../../x", "format": "../y", "base64": IMAGE["base64"]}
    told = saved(Told("../a", "succeeded", {"images": [IMAGE, evil, {"url": "https://x/1.png"}]}), tmp_path / "new")
    assert sorted(path.name for path in tmp_path.rglob("*") if path.is_file()) == ["a-0.jpg", "y"]
    assert (tmp_path / "new" / "a-0.jpg").read_bytes() == b"abc"
    assert told.row()[3].endswith("/y https://x/1.png")


@pytest.mark.parametrize("fails", [False, True])
async def test_the_command_posts_below_a_prefix_and_saves(
    fails: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Rows on stdout, images in the folder, and exit 1 if one failed; limits are the server's."""
    monkeypatch.setenv("WORKER_API_KEY", "sesame")
    (tmp_path / "job.json").write_text(json.dumps({"id": "a", "params": {"prompt": "x", "steps": 151}}))
    server = FakeServer(problem(422, "invalid_job") if fails else said(200, DONE))
    async with server.running("/gateway"):
        code = await asyncio.to_thread(main, ["submit", "job.json", "--url", server.url, "--out", "pictures"])
    printed = capsys.readouterr().out
    assert code == int(fails)
    assert printed.startswith("a\trefused" if fails else "http-1\tsucceeded\t1.2\tpictures/http-1-0.jpg")
    assert (tmp_path / "pictures" / "http-1-0.jpg").exists() is not fails


async def test_a_scheduling_server_gets_the_jobs_in_its_own_way(capsys: pytest.CaptureFixture[str]) -> None:
    """Where there is no `/v1/jobs`, the server's own endpoint is taken."""
    bodies: list[Any] = []

    async def submit(request: Request) -> Response:
        bodies.append((request.headers["authorization"], await request.json()))
        return JSONResponse({}, 201)

    async with serving(Starlette(routes=[Route("/jobs", submit, methods=["POST"])]), "::1") as service:
        told = asyncio.create_task(asyncio.to_thread(_posted_to, service.url()), name="submit")
        await wait_until(lambda: bodies)
        assert await told == 0
    assert bodies[0][0] == "Bearer sesame"
    assert capsys.readouterr().out.split() == [bodies[0][1]["id"]]


def _posted_to(url: str) -> int:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WORKER_API_KEY", "sesame")
        return main(["submit", "--prompt", "x", "--url", url])

"""Fooocus-API's requests and answers, as its clients write and read them."""

from __future__ import annotations

import base64
import json
from types import SimpleNamespace
from typing import Any, cast

import pytest

from tests.support.native import ended, stored
from worker.api.fooocus import TYPES, Asked, Wish, answered, job_of, results_of, underway, wish_of
from worker.engines.fooocus.inventory import ENDPOINTS
from worker.live import Hop
from worker.simulators.fooocus.jobs import TYPES as KINDS

KIND = "Text to Image"
PLAIN = Wish(KIND, base64=False, waits=True, picture=False)


def test_the_endpoints_are_the_servers() -> None:
    """By the names that the driver knows, and what the server calls such jobs."""
    assert {path: name for path, (name, _) in TYPES.items()} == {path: name for name, path in ENDPOINTS.items()}
    assert {name: kind for name, kind in TYPES.values()} == KINDS  # noqa: C416


@pytest.mark.parametrize(
    ("body", "accept", "wish"),
    [
        ({}, "*/*", PLAIN),
        ({"require_base64": True}, "application/json", Wish(KIND, base64=True, waits=True, picture=False)),
        ({}, "image/png", Wish(KIND, base64=False, waits=True, picture=True)),
        ({"async_process": True}, "image/png", Wish(KIND, base64=False, waits=False, picture=False)),
        ({"async_process": "yes", "require_base64": 1}, "", PLAIN),
    ],
)
def test_how_the_caller_wants_to_be_answered(body: dict[str, Any], accept: str, wish: Wish) -> None:
    """As the server reads it."""
    assert wish_of(body, KIND, accept) == wish


def test_its_webhook_becomes_ours() -> None:
    """Signed and repeated; one of ours beside it counts more."""
    hook = {"webhook_url": "https://hooks.example/", "prompt": "x"}
    document = job_of(hook, "text-to-image", PLAIN)
    assert (document["webhook"], document["request"]) == ("https://hooks.example/", {"prompt": "x"})
    ours = job_of({**hook, "webhook": "https://ours.example/"}, "text-to-image", PLAIN)
    assert (ours["webhook"], "webhook_url" in ours["request"]) == ("https://ours.example/", False)
    assert "webhook" not in job_of({"webhook_url": ""}, "text-to-image", PLAIN)


@pytest.mark.parametrize(
    ("body", "output"),
    [
        ({}, None),
        ({"save_extension": "png"}, None),
        ({"save_extension": "jpg"}, {"format": "jpeg"}),
        ({"save_extension": "webp", "output": {"prefix": "a"}}, {"format": "webp", "prefix": "a"}),
        ({"save_extension": "webp", "output": {"format": "jpeg"}}, {"format": "jpeg"}),
        ({"save_extension": "webp", "output": 3}, 3),
        ({"save_extension": ["x"]}, None),
    ],
)
def test_the_format_is_the_one_asked_for(body: dict[str, Any], output: Any) -> None:
    """The server's name for it holds where ours is not given; what is wrong is left to be refused."""
    assert job_of(body, "text-to-image", PLAIN).get("output") == output


def test_a_picture_itself_is_one_and_a_png() -> None:
    """Whatever number and format the body asks for."""
    wish = Wish(KIND, base64=False, waits=True, picture=True)
    document = job_of({"image_number": 4, "save_extension": "webp"}, "text-to-image", wish)
    assert (document["request"]["image_number"], document["output"]) == (1, {"format": "png"})


async def test_a_picture_itself_is_never_an_empty_one() -> None:
    """Where it lies elsewhere alone, as with a bucket and a webhook, that is said."""
    wish = Wish(KIND, base64=False, waits=True, picture=True)
    given = await answered(ended(b"one"), wish)
    assert (given.status_code, given.media_type, given.body) == (200, "image/png", b"one")
    elsewhere = await answered(stored(ended(b"one"), url="https://cdn.example/0.png"), wish)
    told = json.loads(bytes(elsewhere.body))
    assert (elsewhere.status_code, told["code"]) == (503, "images_stored")
    assert told["result"]["images"][0]["url"] == "https://cdn.example/0.png"


def encoded(data: bytes) -> str:
    return base64.b64encode(data).decode()


def test_a_picture_that_lies_nowhere_is_given_itself() -> None:
    """Nobody could have it otherwise; each with its seed as text."""
    assert results_of(ended(b"one", b"two"), PLAIN) == [
        {"base64": encoded(b"one"), "url": None, "seed": "7", "finish_reason": "SUCCESS"},
        {"base64": encoded(b"two"), "url": None, "seed": "8", "finish_reason": "SUCCESS"},
    ]


def test_a_picture_that_is_stored_is_named() -> None:
    """And given as well where that is asked for and it is at hand."""
    (found,) = results_of(stored(ended(b"one"), url="https://cdn.example/0.png", seed=None), PLAIN)
    assert found == {"base64": None, "url": "https://cdn.example/0.png", "seed": "", "finish_reason": "SUCCESS"}
    wish = Wish(KIND, base64=True, waits=True, picture=False)
    assert (
        results_of(stored(ended(b"one"), url="https://cdn.example/0.png", base64="YQ=="), wish)[0]["base64"] == "YQ=="
    )


def test_a_path_of_the_worker_is_no_place_for_the_caller() -> None:
    """Pictures in its own folder are given themselves."""
    (found,) = results_of(stored(ended(b"one"), url="file:///outputs/0.png", base64="YQ=="), PLAIN)
    assert (found["url"], found["base64"]) == (None, "YQ==")


@pytest.mark.parametrize(("format", "prefix"), [("png", "image/png"), ("jpeg", "image/jpg"), ("webp", "image/webp")])
def test_the_current_version_gives_data_uris(format: str, prefix: str) -> None:
    """Those before gave bare base64."""
    (found,) = results_of(ended(b"one", version="0.5", format=format), PLAIN)
    assert found["base64"] == f"data:{prefix};base64,{encoded(b'one')}"


@pytest.mark.parametrize(
    ("hop", "progress", "told"),
    [
        (None, None, ("WAITING", 0, None)),
        (Hop.MODELS, None, ("WAITING", 0, "models")),
        (Hop.GENERATE, None, ("RUNNING", 0, "generate")),
        (Hop.GENERATE, 0.456, ("RUNNING", 46, "generate")),
        (Hop.UPLOAD, None, ("RUNNING", 99, "upload")),
    ],
)
def test_how_far_a_job_is(hop: Hop | None, progress: float | None, told: tuple[str, int, str | None]) -> None:
    """It runs once the server works on it."""
    held = None if hop is None else SimpleNamespace(hop=hop, progress=progress)
    assert underway(cast("Any", held)) == told


def test_only_the_latest_are_remembered() -> None:
    """Whoever never asks costs nothing for ever."""
    asked = Asked(most=2)
    for name in "abc":
        asked.note(name, PLAIN)
    assert (asked.ids, asked.find("a"), asked.find("c")) == (("b", "c"), None, PLAIN)

"""The operator's own endpoints: `/workflow/{name}`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import jsonschema
import pytest
import referencing
from fastapi import FastAPI
from openapi_spec_validator import validate

from tests.support.office import HOOK, Office
from tests.support.virtual import virtual
from tests.support.workflows import POSTER, forgotten, write
from worker.api import workflows as endpoints
from worker.web import problems
from worker.workflows import Workflows, load
from worker.workflows.folder import NOT_RUN

TREE = """
from __future__ import annotations
from pydantic import BaseModel, Field

class Branch(BaseModel):
    name: str = "b"
    branches: list[Branch] = Field([], max_length=2)

class Input(BaseModel):
    root: Branch = Branch()

def build(input):
    return {"params": {"prompt": input.root.name}}
"""

RANDOM = """
import random
from pydantic import BaseModel, Field

class Input(BaseModel):
    seed: int = Field(default_factory=lambda: random.randrange(2**31))

def build(input):
    return {"params": {"prompt": "x", "seed": input.seed}}
"""

FILES = {
    "posters/night.py": POSTER,
    "tree.py": TREE,
    "random.py": RANDOM,
    "raising.py": RANDOM.replace('return {"params"', 'raise LookupError({"params"').replace("}}", "}})"),
    "body.json": {"params": {"prompt": "{{prompt}}", "steps": "{{steps|20}}"}},
    "body.schema.json": {
        "title": "A picture",
        "type": "object",
        "properties": {"prompt": {"$ref": "#/$defs/text"}, "steps": {"type": "integer"}},
        "required": ["prompt"],
        "$defs": {"text": {"type": "string", "examples": ["a cat"]}},
    },
    "broken.py": "x = 1\ny = (\n",
    "old.ts": "export default {}",
}


class Endpoints(Office):
    """An office with the endpoints of workflows beside its own."""

    def app(self) -> FastAPI:
        app = super().app()
        app.include_router(endpoints.routes(self.desk, self.tools.workflows))
        return app

    def document(self) -> dict[str, Any]:
        return endpoints.described(problems.described(self.app().openapi()), self.tools.workflows)


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten():
        yield


@asynccontextmanager
async def opened(root: Path) -> AsyncIterator[tuple[Endpoints, httpx.AsyncClient]]:
    office = Endpoints(workflows=await load(write(root, FILES)))
    async with office.open() as client:
        yield office, client


def fields_of(answer: httpx.Response) -> list[str]:
    assert answer.headers["content-type"] == "application/problem+json"
    return [error["field"] for error in answer.json()["errors"]]


@virtual
async def test_an_input_comes_back_as_a_result(tmp_path: Path) -> None:
    """As from `/v1/jobs`; fields of the job document may stand beside the input, which may be left out."""
    async with opened(tmp_path) as (office, client):
        body = {"input": {"title": "Night train"}, "id": "mine", "metadata": 7, "output": {"format": "webp"}, "x-n": 1}
        answer = await client.post("/workflow/posters/night", json=body)
        bare = await client.post("/workflow/tree", json={})
    result = answer.json()
    assert (answer.status_code, result["status"]) == (200, "succeeded")
    assert (result["client_id"], result["metadata"], result["images"][0]["format"]) == ("mine", 7, "webp")
    assert bare.status_code == 200
    assert office.storage.objects == {}


@virtual
async def test_a_webhook_or_a_preference_is_answered_at_once(tmp_path: Path) -> None:
    """202 with where the state is; the input was judged before."""
    async with opened(tmp_path) as (office, client):
        answer = await client.post("/workflow/body", json={"input": {"prompt": "x"}, "webhook": HOOK})
        assert (answer.status_code, answer.json()["status"]) == (202, "waiting")
        await office.until(lambda: office.hooks.ids("succeeded") == [answer.json()["id"]])
        state = (await client.get(answer.headers["location"])).json()
        wrong = await client.post("/workflow/body", json={"webhook": HOOK}, headers={"prefer": "respond-async"})
    assert state["status"] == "succeeded"
    assert (wrong.status_code, fields_of(wrong)) == (422, ["input.prompt"])


@virtual
async def test_a_key_joins_whatever_the_workflow_draws(tmp_path: Path) -> None:
    """What is digested is what the caller wrote, and not what was made of it."""
    async with opened(tmp_path) as (office, client):
        first, again = [await client.post("/workflow/random", json={}, headers={"idempotency-key": "k"}) for _ in "ab"]
        other = await client.post("/workflow/tree", json={}, headers={"idempotency-key": "k"})
    assert first.json()["id"] == again.json()["id"]
    assert (len(office.engine.generated), other.status_code) == (1, 409)


@pytest.mark.parametrize(
    ("path", "body", "fields", "said"),
    [
        ("posters/night", {"input": {"title": "", "mood": "x"}}, ["input.title", "input.mood"], "1 character"),
        ("posters/night", {}, ["input.title"], "Field required"),
        ("posters/night", {"title": "x"}, ["title"], "the workflow's own fields stand in input"),
        ("posters/night", {"input": {"title": "x"}, "tittle": 1}, ["tittle"], "tittle: unknown field"),
        ("posters/night", {"input": []}, ["input"], "must be an object"),
        ("posters/night", {"input": None}, ["input"], "must be an object"),
        ("posters/night", {"input": {"title": "x"}, "params": {"prompt": "x"}}, ["params"], "unknown field"),
        ("posters/night", {"input": {"title": "x"}, "template": {}}, ["template"], "unknown field"),
        ("posters/night", {"input": {"title": "x"}, "priority": "high"}, ["priority"], "valid integer"),
        ("body", {"input": {"steps": "many"}}, ["input.steps", "input.prompt"], "must be of type integer"),
        ("body", {"input": {"prompt": "x"}, "convert_output": {}}, ["convert_output"], "output.format"),
        ("body", {"input": {"prompt": "x"}, "webhook_v2": HOOK}, ["webhook_v2"], "webhook says it here"),
    ],
)
def test_a_wrong_request_names_its_fields(
    tmp_path: Path, path: str, body: dict[str, Any], fields: list[str], said: str
) -> None:
    """Before anything waits for a turn."""

    async def run() -> None:
        async with opened(tmp_path) as (office, client):
            answer = await client.post(f"/workflow/{path}", json=body)
            assert (answer.status_code, set(fields_of(answer))) == (422, set(fields))
            assert said in answer.json()["detail"]
            assert not list(office.desk.tickets)

    virtual(run)()


@virtual
async def test_what_is_broken_says_where(tmp_path: Path) -> None:
    """503, since the same image will not do better, and no 500: a broken file, a script, and what raises."""
    async with opened(tmp_path) as (_, client):
        answers = {name: await client.post(f"/workflow/{name}", json={}) for name in ("broken", "old", "raising")}
    told = {name: (a.status_code, a.json()["code"], a.json()["detail"]) for name, a in answers.items()}
    assert told == {
        "broken": (
            503,
            "workflow_broken",
            "the workflow broken cannot be used: broken.py:2 is broken (the log says how)",
        ),
        "old": (503, "workflow_broken", f"the workflow old cannot be used: old.ts: {NOT_RUN}"),
        "raising": (
            503,
            "workflow_failed",
            "the workflow raising failed: LookupError at raising.py:9 (the worker's log has the traceback)",
        ),
    }
    assert all(answer.headers["content-type"] == "application/problem+json" for answer in answers.values())


@virtual
async def test_an_unknown_one_names_those_there_are(tmp_path: Path) -> None:
    """404, whatever stands in the path."""
    async with opened(tmp_path) as (_, client):
        for name in ("nowhere", "posters", "posters/night/", "..%2f..%2fetc%2fpasswd", "%00", ""):
            answer = await client.post(f"/workflow/{name}", json={})
            assert (answer.status_code, answer.json()["code"]) == (404, "not_found"), name
            assert answer.json()["detail"].endswith("there are: body, posters/night, raising, random, tree"), name


@virtual
async def test_each_is_described_with_its_own_schema(tmp_path: Path) -> None:
    """The document is valid, its references lead somewhere, also recursive ones, and its examples are taken."""
    async with opened(tmp_path) as (office, client):
        document = office.document()
        validate(document)
        posts = {path: item["post"] for path, item in document["paths"].items() if path.startswith("/workflow/")}
        assert set(posts) == {f"/workflow/{name}" for name in ("body", "posters/night", "raising", "random", "tree")}
        night = posts["/workflow/posters/night"]
        assert (night["summary"], night["description"]) == (
            "A poster in the house style.",
            "The title alone says what it shows.",
        )
        root = "urn:openapi"
        registry = referencing.Registry().with_resource(
            root, referencing.jsonschema.DRAFT202012.create_resource(document)
        )
        for path, post in posts.items():
            content = post["requestBody"]["content"]["application/json"]
            schema = json.loads(json.dumps(content["schema"]).replace('"#/', f'"{root}#/'))
            judge = jsonschema.Draft202012Validator(schema, registry=registry)
            judge.validate(content["example"])
            assert not judge.is_valid({**content["example"], "unknown": 1})
            if path != "/workflow/raising":
                assert (await client.post(path, json=content["example"])).status_code == 200
    bodies = posts["/workflow/body"]["requestBody"]["content"]["application/json"]["schema"]
    assert (bodies["required"], night["operationId"]) == (["input"], "workflow.posters..night")


async def test_nothing_is_added_where_there_are_none() -> None:
    """The document stays what it was."""
    document: dict[str, Any] = {"paths": {}}
    assert endpoints.described(document, Workflows()) == {"paths": {}}

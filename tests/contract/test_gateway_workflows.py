"""The operator's own workflows as comfyui-api's callers ask for them, over a whole worker with a simulated ComfyUI."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Iterator
from io import BytesIO
from typing import Any

import httpx
import pytest
import pytest_asyncio
from openapi_spec_validator import validate
from PIL import Image

from tests.support.prompts import Prompts, a_graph, decoded, prompting
from tests.support.receiver import Answer
from tests.support.stocked import BASE
from tests.support.workflows import POSTER, forgotten, write

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="module")

GRAPH = a_graph("{{prompt}}")
GRAPH["3"]["inputs"]["steps"] = "{{steps|2}}"
DRAWN = f"""
import json
import random
from pydantic import BaseModel

class Input(BaseModel):
    token: str = ""

def build(input):
    graph = json.loads({json.dumps(json.dumps(a_graph("drawn")))})
    graph["3"]["inputs"]["seed"] = random.randrange(2**31)
    return {{"workflow": graph, "output": {{"format": "webp"}}}}
"""
FILES = {
    "flux/txt2img.json": GRAPH,
    "drawn.py": DRAWN,
    "portable.py": POSTER,
    "unsaved.json": {"1": {"class_type": "LoadImage", "inputs": {"image": "{{image}}"}}},
    "broken.py": "x = (",
    "failing.py": DRAWN.replace("return {", "return {'params': 1} or {"),
}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(moto_server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prompts]:
    root = tmp_path_factory.mktemp("workflows")
    folder = write(root / "files", FILES)
    async with prompting(root, moto_server, WORKER_WORKFLOWS_DIR=str(folder)) as prompts:
        yield prompts


@pytest.fixture(scope="module", autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten():
        yield


async def ask(here: Prompts, name: str, given: Any = None, **fields: Any) -> httpx.Response:
    return await here.ask(f"/workflow/{name}", {**({} if given is None else {"input": given}), **fields})


async def test_an_input_is_answered_as_a_prompt(here: Prompts) -> None:
    """With the graph that it came to, the pictures and their names; and the input."""
    answer = await ask(here, "flux/txt2img", {"prompt": "a heron"})
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"id", "input", "prompt", "images", "filenames", "stats"}
    assert body["input"] == {"prompt": "a heron"}
    assert body["prompt"] == json.loads(
        json.dumps(GRAPH).replace("{{prompt}}", "a heron").replace('"{{steps|2}}"', "2")
    )
    assert body["filenames"] == [f"{body['id']}_ComfyUI_00001_.png"]
    assert Image.open(BytesIO(decoded(body["images"][0]))).format == "PNG"


async def test_what_stands_beside_a_prompt_stands_beside_an_input(here: Prompts) -> None:
    """A webhook is told of the end, pictures are converted and put where the request says, unknown fields ignored."""
    hook = here.hook.url("/hook")
    given = {"prompt": "told"}
    taken = await ask(here, "flux/txt2img", given, id="w1", webhook_v2=hook, convert_output={"format": "jpg"}, other=1)
    assert (taken.status_code, taken.json()["status"], taken.json()["input"]) == (202, "ok", given)
    (told,) = await here.told(here.hook, "w1")
    assert (told["type"], told["filenames"]) == ("prompt.complete", ["w1_ComfyUI_00001_.jpg"])
    here.plain.otherwise = Answer(200)
    place = {"url_prefix": f"{here.plain.url('/put')}?sig=hush", "async": False}
    stored = (await ask(here, "flux/txt2img", given, id="w2", http_upload=place)).json()
    assert stored["images"] == [f"{here.plain.url('/put')}/w2_ComfyUI_00001_.png"]
    assert "hush" not in str(stored)
    older = await ask(here, "portable", {"title": "old"}, id="w3", webhook=here.plain.url("/old"))
    assert older.status_code == 202
    assert [(one["event"], one["prompt"]) for one in await here.told(here.plain, "w3")] == [("output.complete", {})]


async def test_what_a_workflow_draws_is_drawn_once(here: Prompts) -> None:
    """The graph of the answer is the one that ran; what the file says of pictures holds unless the caller does."""
    body = (await ask(here, "drawn", {"token": "https://x/?hush"})).json()
    seed = body["prompt"]["3"]["inputs"]["seed"]
    picture = Image.open(BytesIO(decoded(body["images"][0])))
    assert here.node.worker.sim.stats.samplings[-1].seed == seed
    assert picture.format == "WEBP"
    assert body["input"] == {"token": "https://x/"}
    as_png = await ask(here, "drawn", convert_output={"format": "jpeg"})
    assert Image.open(BytesIO(decoded(as_png.json()["images"][0]))).format == "JPEG"


async def test_a_workflow_that_makes_no_graph_is_answered_all_the_same(here: Prompts) -> None:
    """One that is written for any server: there is no graph to repeat."""
    body = (await ask(here, "portable", {"title": "Night train"})).json()
    assert (body["prompt"], len(body["images"])) == ({}, 1)


@pytest.mark.parametrize(
    ("name", "body", "expected", "said"),
    [
        ("flux/txt2img", {"input": {}}, (400, "input.prompt"), "is required"),
        ("flux/txt2img", {"input": {"prompt": "x", "size": 1}}, (400, "input.size"), "unknown field"),
        ("portable", {}, (400, "input.title"), "Field required"),
        ("portable", {"input": []}, (400, "input"), "must be an object"),
        ("flux/txt2img", {"input": {"prompt": "x", "steps": 10**6}}, (422, "prompt.3.inputs.steps"), "10000"),
        ("flux/txt2img", {"input": {"prompt": "x"}, "output": {}}, (400, "output"), "convert_output says it here"),
        ("flux/txt2img", {"input": {"prompt": "x"}, "models": []}, (400, "models"), "post that to /v1/jobs"),
        ("flux/txt2img", {"input": {"prompt": "x"}, "webhook_v2": 3}, (400, "webhook_v2"), "valid string"),
        ("flux/txt2img", {"input": {"prompt": "x"}, "hf_upload": {}}, (422, "hf_upload"), "is not in this worker"),
        ("unsaved", {"input": {"image": "x"}}, (400, "prompt"), "filename_prefix"),
        ("broken", {}, (503, "prompt"), "broken.py"),
        ("failing", {}, (503, "prompt"), "made no job document"),
    ],
)
async def test_what_is_wrong_is_told_in_their_words(
    here: Prompts, name: str, body: dict[str, Any], expected: tuple[int, str], said: str
) -> None:
    """`error` and `location`; what only the server knows, such as its limit of steps, is told by admission."""
    answer = await here.ask(f"/workflow/{name}", body)
    told = answer.json()
    assert (answer.status_code, told["location"]) == expected, told
    assert said in told["error"]


async def test_a_job_document_may_still_name_the_workflow(here: Prompts) -> None:
    """At `/v1/jobs`, with our fields and our result."""
    document = {"template": {"name": "flux/txt2img", "input": {"prompt": "x"}}, "metadata": 7}
    answer = await here.ask("/v1/jobs", document)
    assert (answer.status_code, answer.json()["metadata"], answer.json()["status"]) == (200, 7, "succeeded")


async def test_the_openapi_document_says_so(here: Prompts) -> None:
    """Fields and answers of comfyui-api's; the document is valid, and its example is taken."""
    document = (await here.node.worker.client.get("/openapi.json")).json()
    validate(document)
    post = document["paths"]["/workflow/flux/txt2img"]["post"]
    content = post["requestBody"]["content"]["application/json"]
    assert {"input", "convert_output", "webhook_v2", "s3", "credentials"} <= set(content["schema"]["properties"])
    assert not {"output", "priority", "prompt"} & set(content["schema"]["properties"])
    answer = post["responses"]["200"]["content"]["application/json"]["schema"]
    assert answer["allOf"][0]["$ref"].endswith("/PromptAnswer")
    poster = document["paths"]["/workflow/portable"]["post"]["requestBody"]["content"]["application/json"]
    assert (await here.ask("/workflow/portable", poster["example"])).status_code == 200
    assert BASE in str((await here.node.worker.client.get("/models")).json())

"""`/prompt` as the documentation of comfyui-api 1.18 has it, each of its examples sent to a whole worker."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import AsyncIterator
from io import BytesIO
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from PIL import Image

from tests.support.comfy import png, text_graph
from tests.support.prompts import Prompts, a_graph, decoded, prompting
from tests.support.receiver import Answer
from tests.support.s3 import set_credentials
from tests.support.stocked import BASE
from tests.support.waiting import wait_until

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="module")

ID = "123e4567-e89b-12d3-a456-426614174000"
LOAD_IMAGE: dict[str, Any] = {"inputs": {"image": "", "upload": "image"}, "class_type": "LoadImage"}
JPEG = {"format": "jpeg", "options": {"quality": 80, "progressive": True}}


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def here(moto_server: str, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[Prompts]:
    async with prompting(tmp_path_factory.mktemp("prompts"), moto_server) as prompts:
        yield prompts


def check_stats(stats: dict[str, Any], *, of: set[str]) -> None:
    """The form that the documentation and the code of comfyui-api have, with times that fit together."""
    execution = stats["comfy_execution"]
    assert execution["total"] == {name: execution[name] for name in ("start", "end", "duration")}
    assert execution["duration"] == execution["end"] - execution["start"] >= 0
    assert of <= set(execution["nodes"])
    assert all(execution["start"] <= one["start"] <= execution["end"] for one in execution["nodes"].values())
    parts = [stats[f"{name}_time"] for name in ("preprocess", "comfy_round_trip", "postprocess", "upload")]
    assert all(isinstance(part, int) and part >= 0 for part in parts)
    assert stats["total_time"] == sum(parts) > 0


async def test_a_prompt_alone_is_answered_with_its_pictures(here: Prompts) -> None:
    """Base64 response: an id is drawn, and each picture has a name that begins with it."""
    graph = a_graph("two cats", batch=2)
    answer = await here.prompt(graph)
    body = answer.json()
    assert answer.status_code == 200
    assert set(body) == {"id", "prompt", "images", "filenames", "stats"}
    assert body["prompt"] == graph
    assert body["filenames"] == [f"{body['id']}_ComfyUI_{n:05}_.png" for n in (1, 2)]
    pictures = [Image.open(BytesIO(decoded(image))) for image in body["images"]]
    assert [(one.format, one.size) for one in pictures] == [("PNG", (64, 64))] * 2
    check_stats(body["stats"], of={"3", "8"})


async def test_the_first_example_saves_nothing(here: Prompts) -> None:
    """A request as it may look like: its graph loads an image and has no node that saves one."""
    load = {**LOAD_IMAGE, "inputs": {**LOAD_IMAGE["inputs"], "image": "https://assets.example/9.jpg"}}
    answer = await here.prompt({"1": load}, id=ID, webhook_v2=here.hook.url("/webhook"), convert_output=JPEG)
    body = answer.json()
    assert answer.status_code == 400
    assert (body["location"], body["errors"][0]["field"], body["title"]) == ("prompt", "prompt", "Bad Request")
    assert "filename_prefix" in body["error"]


async def test_pictures_are_converted(here: Prompts) -> None:
    """A name has the extension of the format as it was asked for; what our encoder lacks is a warning."""
    answer = await here.prompt(a_graph("j"), id=ID, convert_output=JPEG)
    body = answer.json()
    assert (body["id"], body["filenames"]) == (ID, [f"{ID}_ComfyUI_00001_.jpeg"])
    assert body["convert_output"] == JPEG
    assert Image.open(BytesIO(decoded(body["images"][0]))).info["progressive"] == 1
    webp = {"format": "webp", "options": {"lossless": True, "effort": 0, "preset": "photo"}}
    body = (await here.prompt(a_graph("w"), convert_output=webp)).json()
    assert body["filenames"][0].endswith("_ComfyUI_00001_.webp")
    assert decoded(body["images"][0])[12:16] == b"VP8L"
    assert body["warnings"] == ["option_ignored:preset"]
    body = (await here.prompt(a_graph("p"), convert_output={"format": "jpg"})).json()
    assert body["filenames"][0].endswith(".jpg")


async def test_a_webhook_brings_the_pictures(here: Prompts) -> None:
    """202 at once, then one signed `prompt.complete` with the base64 of all."""
    answer = await here.prompt(a_graph("hooked"), id="hooked", webhook_v2=here.hook.url("/webhook"))
    taken = {"id": "hooked", "prompt": a_graph("hooked"), "webhook_v2": here.hook.url("/webhook")}
    assert (answer.status_code, answer.json()) == (202, {**taken, "status": "ok"})
    (told,) = await here.told(here.hook, "hooked")
    assert told.pop("type") == "prompt.complete"
    assert told.pop("timestamp").endswith("Z")
    check_stats(told.pop("stats"), of={"3"})
    assert decoded(told.pop("images")[0]).startswith(b"\x89PNG")
    assert told == {**taken, "filenames": ["hooked_ComfyUI_00001_.png"]}
    assert here.hook.refused == []


async def test_the_older_webhook_brings_a_post_for_each_file(here: Prompts) -> None:
    """Deprecated: `output.complete`, unsigned."""
    answer = await here.prompt(a_graph("old", batch=2), id="old", webhook=here.plain.url("/old"))
    assert answer.status_code == 202
    told = await here.told(here.plain, "old", 2)
    assert [one["event"] for one in told] == ["output.complete"] * 2
    assert {one["filename"] for one in told} == {f"old_ComfyUI_{n:05}_.png" for n in (1, 2)}
    assert all(decoded(one["image"]).startswith(b"\x89PNG") and one["prompt"] for one in told)
    assert not any("webhook-signature" in one.headers for one in here.plain.requests)


async def test_pictures_are_uploaded_to_s3_while_the_caller_waits(here: Prompts) -> None:
    """S3 URLs in the response: exactly the bucket and key under which the picture lies."""
    s3 = {"bucket": here.bucket.name, "prefix": "outputs of mine/", "async": False}
    answer = await here.prompt(a_graph("s3", batch=2), s3=s3)
    body = answer.json()
    assert answer.status_code == 200
    assert body["s3"] == s3
    keys = [f"outputs of mine/{name}" for name in body["filenames"]]
    assert body["images"] == [f"s3://{here.bucket.name}/{key}" for key in keys]
    assert set(keys) <= here.bucket.keys()
    assert here.bucket.read(keys[0]).startswith(b"\x89PNG")
    assert here.bucket.head(keys[0])["ContentType"] == "image/png"


async def test_an_upload_whose_async_is_left_out_is_asynchronous(here: Prompts) -> None:
    """As the documentation says of every upload."""
    answer = await here.prompt(a_graph("s3-async"), id="alone", s3={"bucket": here.bucket.name, "prefix": "alone-"})
    assert (answer.status_code, answer.json()["status"]) == (202, "ok")
    await wait_until(lambda: "alone-alone_ComfyUI_00001_.png" in set(here.bucket.keys()))


async def test_a_webhook_tells_where_pictures_were_uploaded(here: Prompts) -> None:
    """S3 URLs in the webhook's payload."""
    s3 = {"bucket": here.bucket.name, "prefix": "outputs/"}
    answer = await here.prompt(a_graph("s3-hook"), id="s3-hook", s3=s3, webhook_v2=here.hook.url("/s3"))
    assert (answer.status_code, answer.json()["s3"]) == (202, s3)
    (told,) = await here.told(here.hook, "s3-hook")
    assert told["images"] == [f"s3://{here.bucket.name}/outputs/s3-hook_ComfyUI_00001_.png"]
    assert told["s3"] == s3
    assert "outputs/s3-hook_ComfyUI_00001_.png" in set(here.bucket.keys())


async def test_pictures_are_put_below_a_prefix_over_http(here: Prompts) -> None:
    """A query of the prefix, as a signature is, goes along and is told to nobody."""
    here.plain.routes["/put/p/http_ComfyUI_00001_.png"] = Answer(201)
    prefix = here.plain.url("/put/p/")
    answer = await here.prompt(
        a_graph("put"), id="http", http_upload={"url_prefix": f"{prefix}?sig=hush", "async": False}
    )
    body = answer.json()
    assert body["images"] == [f"{prefix}http_ComfyUI_00001_.png"]
    sent = here.put()["/put/p/http_ComfyUI_00001_.png"]
    assert sent.target.endswith("?sig=hush")
    assert sent.body.startswith(b"\x89PNG")
    assert "hush" not in answer.text


@pytest.mark.parametrize(
    ("upload", "words"),
    [
        ({"azure_blob_upload": {"container": "c", "blob_prefix": "outputs/", "async": False}}, "http_upload"),
        ({"azure_blob_upload": {"container": "c", "blob_prefix": "outputs/"}}, "s3"),
        ({"hf_upload": {"repo": "u/r", "repo_type": "dataset", "revision": "main", "directory": "d"}}, "s3"),
    ],
)
async def test_other_places_are_refused_by_name(here: Prompts, upload: dict[str, Any], words: str) -> None:
    """With what does the same here."""
    answer = await here.prompt(**upload)
    assert answer.status_code == 422
    assert answer.json()["location"] == next(iter(upload))
    assert words in answer.json()["error"]


async def test_an_input_image_may_be_a_url_or_base64(here: Prompts) -> None:
    """Image to image: the driver stages it under a name of its own."""
    here.plain.routes["/coco/9.png"] = Answer(body=png())
    for image in (here.plain.url("/coco/9.png"), base64.b64encode(png()).decode()):
        graph = a_graph(f"from {image[:5]}")
        graph["10"] = {**LOAD_IMAGE, "inputs": {"image": image, "upload": "image"}, "_meta": {"title": "Load Image"}}
        graph["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
        answer = await here.prompt(graph)
        assert answer.status_code == 200, answer.text[:500]


async def test_each_save_node_names_its_own_files(here: Prompts) -> None:
    """Folders in a prefix are left out, and two nodes of one prefix are numbered on."""
    graph = a_graph("several")
    for node_id, prefix in (("20", "mine/deep/portrait"), ("21", "portrait"), ("22", None)):
        graph[node_id] = {"class_type": "SaveImage", "inputs": {"images": ["8", 0], "filename_prefix": prefix}}
        if prefix is None:
            graph[node_id] = {"class_type": "PreviewImage", "inputs": {"images": ["8", 0]}}
    names = (await here.prompt(graph, id="n")).json()["filenames"]
    assert names == ["n_ComfyUI_00001_.png", "n_portrait_00001_.png", "n_portrait_00002_.png"]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"convert_output": {"format": "gif"}}, "convert_output.format"),
        ({"convert_output": {"format": "webp", "options": {"effort": 7}}}, "convert_output.options.effort"),
        ({"convert_output": {"format": "webp", "options": {"speed": 1}}}, "convert_output.options.speed"),
        ({"id": "../../etc"}, "id"),
        ({"prompt": []}, "prompt"),
        ({"s3": {"bucket": "b", "prefix": "../up/"}}, "s3.bucket"),
        ({"s3": {"bucket": "bucket", "prefix": "../up/"}}, "s3.prefix"),
        ({"s3": {"bucket": "bucket"}, "http_upload": {"url_prefix": "http://[::1]/"}}, "http_upload"),
        ({"credentials": [{"url_pattern": "x", "auth": {"type": "bearer"}}]}, "credentials.0.auth.token"),
        ({"credentials": [{"url_pattern": "x", "auth": {"type": "ntlm"}}]}, "credentials.0.auth"),
    ],
)
async def test_a_request_of_another_form_is_400(here: Prompts, fields: dict[str, Any], location: str) -> None:
    """The field is named, in comfyui-api's words and in ours, and no value is repeated."""
    answer = await here.ask("/prompt", {"prompt": a_graph(), **fields})
    assert (answer.status_code, answer.json()["location"]) == (400, location)
    assert location in [one["field"] for one in answer.json()["errors"]]
    assert answer.json()["error"] == answer.json()["detail"]


@pytest.mark.parametrize(
    ("fields", "location"),
    [
        ({"webhook_v2": "http://169.254.169.254/latest/"}, "webhook_v2"),
        ({"webhook": "file:///etc/passwd"}, "webhook"),
        ({"http_upload": {"url_prefix": "http://169.254.169.254/x"}}, "http_upload.url_prefix"),
        ({"http_upload": {"url_prefix": "http://me:hush@[::1]/x"}}, "http_upload.url_prefix"),
    ],
)
async def test_a_url_that_may_not_be_visited_is_refused_before_anything_is_done(
    here: Prompts, fields: dict[str, Any], location: str
) -> None:
    """422 instead of a 202 that nobody would hear more of."""
    before = here.node.pictures
    answer = await here.prompt(a_graph(location), **fields)
    assert (answer.status_code, answer.json()["location"]) == (422, location)
    assert "hush" not in answer.text
    assert here.node.pictures == before


async def test_a_graph_that_cannot_run_is_told_by_node_and_input(here: Prompts) -> None:
    """Our fields by the names that the caller gave them."""
    graph = a_graph()
    graph["3"]["inputs"]["sampler_name"] = "eulr"
    answer = await here.prompt(graph)
    assert answer.status_code == 422
    assert answer.json()["location"] == "prompt.3.inputs.sampler_name"
    assert answer.json()["result"]["error"]["message"].startswith("prompt.3.inputs.sampler_name: unknown sampler")
    assert "workflow" not in answer.text


@pytest.mark.parametrize("where", ["graph", "bucket", "input"])
async def test_after_a_202_every_failure_reaches_the_webhook(here: Prompts, where: str) -> None:
    """Whether the prompt, its upload or its input failed: one `prompt.failed`, signed, with the reason."""
    graph, upload = a_graph(where), {}
    if where == "graph":
        graph["4"]["inputs"]["ckpt_name"] = "no_such.safetensors"
    elif where == "bucket":
        upload = {"s3": {"bucket": "nobody-made-this", "prefix": ""}}
    else:
        here.plain.routes["/gone.png"] = Answer(404)
        graph["10"] = {**LOAD_IMAGE, "inputs": {"image": here.plain.url("/gone.png")}}
        graph["5"] = {"class_type": "VAEEncode", "inputs": {"pixels": ["10", 0], "vae": ["4", 2]}}
    answer = await here.prompt(graph, id=f"bad-{where}", webhook_v2=here.hook.url("/bad"), **upload)
    assert answer.status_code == 202
    (told,) = await here.told(here.hook, f"bad-{where}")
    assert (told["type"], told["prompt"]) == ("prompt.failed", graph)
    expected = {"graph": "no_such.safetensors", "bucket": "s3.bucket: ", "input": "prompt.10.inputs.image: "}
    assert expected[where] in told["error"]
    assert told["code"]
    await here.node.worker.ready()


async def test_an_upload_that_fails_is_no_success(here: Prompts) -> None:
    """The caller who waits is told, by the field that named the place."""
    s3 = {"bucket": "nobody-made-this", "prefix": "", "async": False}
    answer = await here.prompt(a_graph("lost"), s3=s3)
    assert (answer.status_code, answer.json()["location"]) == (422, "s3.bucket")
    assert answer.json()["code"] == "upload_forbidden"
    here.plain.routes["/no/no_ComfyUI_00001_.png"] = Answer(403)
    http_upload = {"url_prefix": here.plain.url("/no"), "async": False}
    answer = await here.prompt(a_graph("lost too"), id="no", http_upload=http_upload)
    assert (answer.status_code, answer.json()["location"]) == (422, "http_upload.url_prefix")
    here.plain.routes["/no/n2_ComfyUI_00001_.png"] = Answer(404)
    answer = await here.prompt(a_graph("lost three"), id="n2", http_upload=http_upload)
    assert (answer.status_code, answer.json()["location"]) == (422, "http_upload.url_prefix")


async def test_the_older_webhook_hears_of_a_failure(here: Prompts) -> None:
    """`event: prompt.failed`, unless the newer one tells it."""
    graph = {**a_graph("old"), "99": {"class_type": "NoSuchNode", "inputs": {}}}
    await here.prompt(graph, id="old-bad", webhook=here.plain.url("/old"))
    (told,) = await here.told(here.plain, "old-bad")
    assert (told["event"], told["prompt"]) == ("prompt.failed", graph)
    assert "no such node class" in told["error"]
    await here.prompt(graph, id="both-bad", webhook=here.plain.url("/old"), webhook_v2=here.hook.url("/both"))
    assert [one["type"] for one in await here.told(here.hook, "both-bad")] == ["prompt.failed"]
    assert [one for one in here.plain.documents if one["id"] == "both-bad"] == []


async def test_s3_without_credentials_costs_no_turn(here: Prompts, monkeypatch: pytest.MonkeyPatch) -> None:
    """503 before the GPU works for what nobody could store; it is the operator's fault, and pauses nothing."""
    before = here.node.pictures
    set_credentials(monkeypatch, key=None)
    for asynchronous in (True, False):
        answer = await here.prompt(a_graph("nowhere"), s3={"bucket": here.bucket.name, "async": asynchronous})
        assert (answer.status_code, answer.json()["code"]) == (503, "auth_failed")
        assert "no usable credentials" in answer.json()["error"]
    assert here.node.pictures == before
    set_credentials(monkeypatch)
    stored = await here.prompt(a_graph("here"), s3={"bucket": here.bucket.name, "async": False})
    assert stored.status_code == 200


async def test_prompts_are_interrupted_by_the_callers_id(here: Prompts) -> None:
    """Running and waiting ones; the caller who waits and the webhook are told, an unknown id is 404."""
    sim = here.node.worker.sim
    sim.knobs.arm("hang", prompt="hangs")
    running = asyncio.create_task(here.prompt(a_graph("hangs"), id="mine"), name="running")
    began = here.node.pictures
    await wait_until(lambda: here.node.pictures > began or running.done())
    await here.prompt(a_graph("waits"), id="mine", webhook_v2=here.hook.url("/cut"))
    answer = await here.ask("/interrupt", {"id": "mine"})
    assert (answer.status_code, answer.json()) == (200, {"id": "mine", "interrupted": "success"})
    cut = await running
    assert (cut.status_code, cut.json()["code"]) == (409, "cancelled")
    (told,) = await here.told(here.hook, "mine")
    assert (told["type"], told["code"]) == ("prompt.failed", "cancelled")
    answer = await here.ask("/interrupt", {"id": "mine"})
    assert (answer.status_code, answer.json()["interrupted"]) == (404, "failed")
    assert (await here.ask("/interrupt", {})).status_code == 400
    sim.release()
    await here.node.worker.ready()


async def test_models_are_listed_by_folder(here: Prompts) -> None:
    """As the server itself lists them now."""
    listed = (await here.node.worker.client.get("/models")).json()
    assert listed["checkpoints"] == [BASE]
    assert {"loras", "vae", "diffusion_models", "text_encoders"} <= set(listed)
    assert "custom_nodes" not in listed


async def test_a_graph_wrapped_in_another_object_is_refused(here: Prompts) -> None:
    """What is no graph is told by admission, which knows the usual wrappings."""
    answer = await here.ask("/prompt", {"prompt": {"output": text_graph()}})
    assert answer.status_code == 422
    assert answer.json()["location"].startswith("prompt")


async def test_a_caller_who_waits_too_long_or_goes_away(moto_server: str, tmp_path: Path) -> None:
    """504 with an id by which the prompt can still be interrupted; that of a caller who left is cancelled."""
    async with prompting(tmp_path, moto_server, WORKER_HTTP_TIMEOUT="0.2s") as prompts:
        sim = prompts.node.worker.sim
        sim.knobs.arm("hang", prompt="slow")
        answer = await prompts.prompt(a_graph("slow"), id="slow")
        told = answer.json()
        assert (answer.status_code, told["code"], told["client_id"]) == (504, "still_running", "slow")
        assert told["error"] == told["detail"]
        assert (await prompts.ask("/interrupt", {"id": told["id"]})).status_code == 200
        sim.release()
        await wait_until(prompts.at_rest)
    async with prompting(tmp_path, moto_server) as prompts:
        sim = prompts.node.worker.sim
        sim.knobs.arm("hang", prompt="left")
        left = asyncio.create_task(prompts.prompt(a_graph("left"), id="left"), name="left")
        await wait_until(lambda: prompts.node.pictures > 0)
        left.cancel()
        await asyncio.wait({left})
        sim.release()
        await wait_until(prompts.at_rest)
        assert (await prompts.ask("/interrupt", {"id": "left"})).status_code == 404

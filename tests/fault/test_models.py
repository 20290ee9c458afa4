"""What jobs name is fetched, used and kept, on all four servers, through the whole worker over real sockets."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio

from tests.support import comfy_engine, fooocus
from tests.support.bench import SMALL, ends, params
from tests.support.model_host import GONE, LOGIN_PAGE, NOT_FOUND, UNAUTHORIZED, HostedFile, ModelHost, Twist
from tests.support.receiver import Answer
from tests.support.s3 import ACCESS_KEY, SECRET_KEY, Bucket
from tests.support.stocked import SERVERS, Kind, Stocked, stocked
from tests.support.weights import sha256_of, weights
from worker.mentions import stem_of

pytest_plugins = ("tests.support.s3_fixtures",)
pytestmark = pytest.mark.asyncio(loop_scope="module")
everywhere = pytest.mark.parametrize("kind", SERVERS)

CAP = 1_000_000


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def host() -> AsyncIterator[ModelHost]:
    async with ModelHost() as host:
        host.otherwise = Answer(404)
        yield host


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def fleet(host: ModelHost, tmp_path_factory: pytest.TempPathFactory) -> AsyncIterator[dict[str, Stocked]]:
    """A worker for each server, with a source and a catalogue of the operator's."""
    listed = host.host("/listed/elsewhere.bin", weights("catalogued"))
    item = {"kind": "checkpoint", "name": "catalogued.safetensors", "url": host.url("/listed/elsewhere.bin")}
    host.host("/list.json", json.dumps([{**item, "sha256": sha256_of(listed.body)}]).encode())
    operators: dict[str, Any] = {
        "WORKER_MODELS_SOURCE": host.url("/operator/{kind}/{name}"),
        "WORKER_MODELS_CATALOG": host.url("/list.json"),
        "WORKER_MODELS_MAX_SIZE": str(CAP),
    }
    async with AsyncExitStack() as stack:
        nodes: dict[str, Stocked] = {}
        for kind in SERVERS:
            root: Path = tmp_path_factory.mktemp(kind)
            nodes[kind] = await stack.enter_async_context(stocked(kind, root, host, **operators))
        yield nodes


@pytest_asyncio.fixture(loop_scope="module")
async def node(fleet: dict[str, Stocked], kind: Kind) -> Stocked:
    await fleet[kind].worker.ready()
    return fleet[kind]


@everywhere
async def test_a_model_is_fetched_once_and_used(node: Stocked, kind: Kind) -> None:
    """By URL and hash: fetched, listed by the server, generated with; the second job needs no transfer."""
    path = f"/{kind}/fetched.safetensors"
    file = node.offer(path, f"{kind}-fetched")
    job: dict[str, Any] = {"checkpoint": "fetched", "models": [node.ref("checkpoint", "fetched.safetensors", path)]}
    result = await node.made("fetch-1", **job)
    assert node.used["checkpoint"] == ("fetched",)
    assert result.engine is not None
    assert (stem_of(result.engine.model or ""), result.engine.proof != "none") == ("fetched", True)
    assert node.stored()["fetched.safetensors"] == file.body
    asked = len(file.requests)
    await node.made("fetch-2", params=params("again"), **job)
    assert node.used["checkpoint"] == ("fetched",)
    assert len(file.requests) == asked > 0
    assert node.partials() == []


@everywhere
async def test_a_name_is_enough_where_the_operator_has_a_source(node: Stocked, host: ModelHost, kind: Kind) -> None:
    """The template leads to the file by kind and name, in a folder too; the job gives no URL."""
    node.offer("/operator/checkpoint/set/sourced.safetensors", "sourced")
    node.offer("/operator/lora/sepia.safetensors", "sepia", kind="lora")
    fields = {"checkpoint": "set/sourced.safetensors", "params": params("s", loras=[{"name": "sepia.safetensors"}])}
    await node.made("sourced", **fields)
    assert node.used == {"checkpoint": ("sourced",), "lora": ("sepia",)}
    assert node.stored()["set/sourced.safetensors"] == weights("sourced")


@everywhere
async def test_a_name_is_enough_where_the_catalogue_has_it(node: Stocked, kind: Kind) -> None:
    """The source has it not, the catalogue says where it is; it is stored as the catalogue calls it."""
    await node.made("catalogued", checkpoint="catalogued")
    assert node.used["checkpoint"] == ("catalogued",)
    assert node.stored()["catalogued.safetensors"] == weights("catalogued")


def native(kind: Kind, prompt: str, checkpoint: str) -> dict[str, Any]:
    """The server's own way to ask for a picture with a checkpoint."""
    match kind:
        case "comfyui":
            return {"workflow": comfy_engine.graph(text=prompt, checkpoint=checkpoint)}
        case "fooocus":
            return fooocus.small(prompt, base_model_name=checkpoint)
        case _:
            body = {"prompt": prompt, **SMALL, "override_settings": {"sd_model_checkpoint": checkpoint}}
            return {"request": body}


def loaded(node: Stocked, kind: str) -> list[bytes]:
    """The bytes of the files of a kind with which the last picture was made."""
    files = node.stored(kind)
    return [files[f"{stem}.safetensors"] for stem in node.used[kind]]


@everywhere
async def test_two_models_of_one_name_are_never_taken_for_each_other(node: Stocked, kind: Kind) -> None:
    """Two URLs that end alike: stored apart, and every place that names one means the right one."""
    bodies = {side: node.offer(f"/{kind}/{side}/twin.safetensors", f"{side}-twin").body for side in "ab"}
    inks = {side: node.offer(f"/{kind}/{side}/ink.safetensors", f"{side}-ink", kind="lora").body for side in "ab"}
    for number, side in enumerate("aba"):
        twin, ink = f"/{kind}/{side}/twin.safetensors", f"/{kind}/{side}/ink.safetensors"
        checkpoint, lora = node.ref("checkpoint", "twin.safetensors", twin), node.ref("lora", "ink.safetensors", ink)
        told = params(f"portable {number}", loras=[{"name": "ink"}])
        await node.made(f"twin-{number}", params=told, checkpoint="twin", models=[checkpoint, lora])
        assert (loaded(node, "checkpoint"), loaded(node, "lora")) == ([bodies[side]], [inks[side]])
        if kind != "comfyui":
            told = params(f"a cat {number} <lora:ink:0.7>")
            await node.made(f"tag-{number}", params=told, checkpoint="twin.safetensors", models=[lora, checkpoint])
            assert (loaded(node, "checkpoint"), loaded(node, "lora")) == ([bodies[side]], [inks[side]])
        await node.made(f"native-{number}", **native(kind, f"n {number}", "twin.safetensors"), models=[checkpoint])
        assert loaded(node, "checkpoint") == [bodies[side]]
        if kind == "comfyui":
            await node.made(f"graph-{number}", **native(kind, f"u {number}", node.host.url(twin)))
            assert loaded(node, "checkpoint") == [bodies[side]]
    assert len([name for name in node.stored() if name.startswith("twin")]) == 2
    assert len([name for name in node.stored("lora") if name.startswith("ink")]) == 2


@everywhere
async def test_the_name_of_the_image_s_own_model_leads_to_no_other_file(node: Stocked, kind: Kind) -> None:
    """A job that brings another file of that name gets its own; the next job gets the image's."""
    path = f"/{kind}/base.safetensors"
    other = node.offer(path, "another base")
    await node.made("other-base", checkpoint="base", models=[node.ref("checkpoint", "base.safetensors", path)])
    assert loaded(node, "checkpoint") == [other.body]
    await node.made("own-base", checkpoint="base")
    assert node.used["checkpoint"] == ("base",)
    assert node.path("checkpoint", "base.safetensors").read_bytes() == weights("base")


REFUSED: dict[str, tuple[HostedFile, str, str]] = {
    "missing": (HostedFile(b"", twist=NOT_FOUND), "m.safetensors", "model_not_found"),
    "gone": (HostedFile(b"", twist=GONE), "m.safetensors", "model_not_found"),
    "forbidden": (HostedFile(b"", twist=UNAUTHORIZED), "m.safetensors", "model_forbidden"),
    "large": (HostedFile(weights("large", CAP + 1)), "m.safetensors", "model_too_large"),
    "pickle": (HostedFile(b"\x80\x02}q\x00."), "m.ckpt", "invalid_job"),
    "unlisted": (HostedFile(weights("unlisted")), "m.zip", "invalid_job"),
}


@pytest.mark.parametrize("kind", ["sdnext", "comfyui"])
@pytest.mark.parametrize("why", REFUSED)
async def test_a_model_that_cannot_be_had_ends_that_job_alone(node: Stocked, kind: Kind, why: str) -> None:
    """The right code, the job's fault, the place in the job, one webhook; nothing is left, and others go on."""
    file, name, code = REFUSED[why]
    path = f"/{kind}/{why}/{name}"
    node.host.host(path, file)
    before = node.stored()
    models = [{"kind": "checkpoint", "name": name, "url": node.host.url(path)}]
    state = await node.worker.done(why, checkpoint=name, models=models)
    assert (state.status, ends(state)) == ("dead", [(code, True)])
    assert state.result is not None
    assert state.result.error is not None
    assert (state.result.error.code, state.result.error.fault) == (code, "job")
    assert "models.0" in state.result.error.message
    assert node.worker.told(why) == ["job.failed"]
    assert (node.stored(), node.partials()) == (before, [])
    await node.worker.goes_on(why)


CUT = Twist(cut=2000, end="close", whole=True)
PASSING: dict[str, tuple[Twist, str]] = {
    "page": (LOGIN_PAGE, "model_corrupt"),
    "other": (Twist(200, {"content-type": "application/octet-stream"}, weights("another")), "model_corrupt"),
    "broken": (Twist(503), "download_failed"),
    "cut": (CUT, "download_failed"),
}


@pytest.mark.parametrize("kind", ["a1111", "fooocus"])
@pytest.mark.parametrize("why", PASSING)
async def test_a_source_that_fails_for_a_while_costs_no_attempt(node: Stocked, kind: Kind, why: str) -> None:
    """Given back uncharged, while others go on; done later. What was wrong is never a model of the server's."""
    twist, code = PASSING[why]
    path = f"/{kind}/{why}/late.safetensors"
    file = node.host.host(path, HostedFile(weights(f"{kind} {why}"), twist=twist, ranges=False))
    name = f"late-{why}.safetensors"
    await node.worker.submit(why, checkpoint=name, models=[node.ref("checkpoint", name, path)], params=params(why))
    await node.worker.attempted(why, code)
    assert name not in node.stored()
    await node.worker.goes_on(why)
    file.twist = Twist()
    state = await node.worker.ended(why)
    assert (state.status, set(ends(state)[:-1])) == ("done", {(code, False)})
    assert loaded(node, "checkpoint") == [file.body]
    assert node.worker.told(why) == ["job.succeeded"]


async def test_a_name_is_enough_where_a_bucket_has_it(host: ModelHost, tmp_path: Path, rclone_bucket: Bucket) -> None:
    """The operator's source is an S3 store with credentials of its own; what it has not is not found."""
    rclone_bucket.write("models/checkpoint/deep/kept.safetensors", weights("kept", 40_000))
    variables: dict[str, Any] = {
        "WORKER_MODELS_SOURCE": f"s3://{rclone_bucket.name}/models/{{kind}}/{{name}}",
        "WORKER_MODELS_S3_ENDPOINT_URL": rclone_bucket.endpoint_url,
        "WORKER_MODELS_S3_ACCESS_KEY_ID": ACCESS_KEY,
        "WORKER_MODELS_S3_SECRET_ACCESS_KEY": SECRET_KEY,
    }
    async with stocked("sdnext", tmp_path, host, **variables) as node:
        await node.made("kept", checkpoint="deep/kept.safetensors")
        assert node.stored() == {"deep/kept.safetensors": weights("kept", 40_000)}
        assert node.used["checkpoint"] == ("kept",)
        state = await node.worker.done("absent", checkpoint="deep/absent.safetensors")
        assert (state.status, ends(state)) == ("dead", [("model_not_found", True)])

"""What the simulated ComfyUI lists: models, classes, system, logs."""

from __future__ import annotations

import json
from typing import Any

from tests.support.comfy import simulated
from worker.simulators.comfyui import Knobs, write_checkpoint

BYTES = {"F16": 2, "F32": 4, "BF16": 2}


async def test_lists() -> None:
    """Folders by their current names, files with sizes, embeddings without suffixes, 404 for the rest."""
    async with simulated(vaes={"v.safetensors": "vae"}, models={"embeddings": ["sub/neg.pt"]}) as c:
        folders = await c.get("/models")
        old = [(await c.client.get(f"/models/{name}")) for name in ("clip", "unet", "nope")]
        places = await c.get("/experiment/models")
        details = await c.get("/experiment/models/vae")
        virtual = await c.get("/experiment/models/checkpoints")
        unknown = await c.client.get("/experiment/models/nope")
        embeddings = await c.get("/api/embeddings")
        size = (c.sim.base_dir / "models/vae/v.safetensors").stat().st_size
    assert {"checkpoints", "text_encoders", "diffusion_models", "ipadapter"} <= set(folders)
    assert [(a.status_code, a.content) for a in old] == [(404, b"")] * 3
    assert "custom_nodes" not in [p["name"] for p in places]
    assert (details[0]["name"], details[0]["size"], details[0]["pathIndex"]) == ("v.safetensors", size, 0)
    assert {"modified", "created"} <= set(details[0])
    assert len(virtual) == 2
    assert unknown.status_code == 404
    assert embeddings == ["sub/neg"]


async def test_metadata_of_models() -> None:
    """The header's own words, or 404."""
    async with simulated(checkpoints={"a.safetensors": "sd15"}) as c:
        folder = c.sim.base_dir / "models/checkpoints"
        write_checkpoint(folder / "b.safetensors", "sd15", metadata={"modelspec.title": "B"})
        (folder / "c.safetensors").write_bytes(b"123")
        told = await c.client.get("/view_metadata/checkpoints", params={"filename": "b.safetensors"})
        others = [
            await c.client.get(f"/view_metadata/{f}", params={"filename": n} if n else {})
            for f, n in (
                ("checkpoints", "a.safetensors"),
                ("checkpoints", "c.safetensors"),
                ("checkpoints", "b.ckpt"),
                ("checkpoints", ""),
                ("nope", "b.safetensors"),
            )
        ]
    assert told.json() == {"modelspec.title": "B"}
    assert [a.status_code for a in others] == [404] * 5


async def test_object_info() -> None:
    """Old classes list choices, newer ones word them as COMBO; folders stand behind loaders; unknown gives {}."""
    async with simulated(vaes=["v.safetensors"], models={"upscale_models": ["4x.pth"]}) as c:
        info = await c.get("/object_info")
        one = await c.get("/object_info/KSampler")
        unknown = await c.client.get("/object_info/NoSuchNode")
        c.sim.knobs.version = "newest"
        newest = await c.get("/object_info")
    assert info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0] == names_in(info)
    assert info["VAELoader"]["input"]["required"]["vae_name"] == [["v.safetensors", "pixel_space"]]
    assert info["UpscaleModelLoader"]["input"]["required"]["model_name"] == [
        "COMBO",
        {"multiselect": False, "options": ["4x.pth"]},
    ]
    assert info["SaveImage"]["output_node"] is True
    assert info["SaveImage"]["input"]["hidden"] == {"prompt": "PROMPT", "extra_pnginfo": "EXTRA_PNGINFO"}
    assert one == {"KSampler": info["KSampler"]}
    assert len(one["KSampler"]["input"]["required"]["sampler_name"][0]) == 42
    assert (unknown.status_code, unknown.json()) == (200, {})
    assert newest["KSamplerSelect"]["input"]["required"]["sampler_name"][0] == "COMBO"
    assert newest["SaveImage"]["output"] == ["IMAGE"]
    assert info["CLIPLoader"]["input"]["optional"]["device"][0] == ["default", "cpu"]


def names_in(info: dict[str, Any]) -> list[str]:
    """The checkpoints that every loader of checkpoints offers."""
    names: list[str] = info["CheckpointLoaderSimple"]["input"]["required"]["ckpt_name"][0]
    assert names == ["dreamshaper_8.safetensors", "sd_xl_base_1.0.safetensors"]
    return names


async def test_system_and_logs() -> None:
    """Version, argv with what the knobs mean, features and logs."""
    async with simulated(Knobs(cache="lru", preview_method="auto", argv=["--cpu"])) as c:
        old = (await c.get("/system_stats"))["system"]
        features = await c.get("/features")
        logs = await c.get("/internal/logs")
        raw = await c.get("/internal/logs/raw")
        c.sim.knobs.version, c.sim.knobs.cache = "newest", "none"
        new = (await c.get("/api/system_stats"))["system"]
        more = await c.get("/features")
    assert old["comfyui_version"] == "0.3.64"
    assert old["argv"][-5:] == ["--cpu", "--cache-lru", "20", "--preview-method", "auto"]
    assert "--cache-none" in new["argv"]
    assert new["comfyui_version"] != old["comfyui_version"]
    assert features == {"supports_preview_metadata": True, "max_upload_size": 100 * 1024 * 1024}
    assert more["assets"] is False
    assert "Starting server" in logs
    assert raw["entries"][0]["m"].startswith("ComfyUI version")


async def test_paths_that_are_not_there() -> None:
    """404 with an empty body, 405 for what is not a GET, 403 for a page of another site; `/internal` has no twin."""
    async with simulated() as c:
        health = await c.client.get("/health")
        posted = await c.post("/health")
        deleted = await c.client.delete("/prompt")
        twin = await c.client.get("/api/internal/logs")
        foreign = await c.client.get("/prompt", headers={"origin": "http://evil.example"})
        own = await c.client.get("/prompt", headers={"origin": c.sim.url})
        public = await c.client.get("/prompt", headers={"origin": "http://evil.example", "host": "my.example"})
    assert (health.status_code, health.content) == (404, b"")
    assert (posted.status_code, posted.text) == (405, "405: Method Not Allowed")
    assert (deleted.status_code, deleted.headers["allow"]) == (405, "GET,HEAD,POST")
    assert twin.status_code == 404
    assert [a.status_code for a in (foreign, own, public)] == [403, 200, 200]


async def test_requests_are_counted() -> None:
    """But not the simulator's own."""
    async with simulated() as c:
        await c.get("/prompt")
        await c.get("/simulator/stats")
    assert json.loads(json.dumps(c.sim.stats.document()))["requests"] == {"GET /prompt": 1}

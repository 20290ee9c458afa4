"""What a successful generation answers, server by server."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.support.sims import ALL, SDNEXT, base64_png, image_bytes, info, picture, simulated
from worker.simulators import Knobs
from worker.simulators.pictures import metadata

KEYS = {
    "sdnext": {"cfg_end", "detailer", "detailer_model", "sd_model_hash"},
    "sdnext-2023": {"restore_faces", "face_restoration_model", "sd_model_hash", "is_using_inpainting_conditioning"},
    "a1111": {"sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "version"},
    "a1111-1.7": {"sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "version"},
    "forge": {"sd_model_name", "sd_model_hash", "sd_vae_name", "sd_vae_hash", "version"},
}
COMMON = set(
    re.findall(
        r"\w+",
        "prompt all_prompts negative_prompt all_negative_prompts seed all_seeds subseed all_subseeds width height "
        "subseed_strength sampler_name cfg_scale steps batch_size seed_resize_from_w seed_resize_from_h styles "
        "denoising_strength extra_generation_params index_of_first_image infotexts job_timestamp clip_skip",
    )
)


@pytest.mark.parametrize("dialect", ALL)
async def test_success_has_three_keys_and_pictures_in_the_dialects_format(dialect: str) -> None:
    """Images are bare base64 in the global format, with the infotext inside the file."""
    async with simulated(dialect) as s:
        response = await s.generate(seed=7, width=72, height=64)
    assert response.status_code == 200
    assert list(response.json()) == ["images", "parameters", "info"]
    data = image_bytes(response)
    assert data.startswith(b"\xff\xd8\xff" if dialect in SDNEXT else b"\x89PNG")
    assert picture(response).size == (72, 64)
    assert metadata(data) == info(response)["infotexts"][0]


@pytest.mark.parametrize("dialect", ALL)
async def test_info_has_the_keys_of_its_server_and_no_others(dialect: str) -> None:
    """SD.Next names no model in its info's own fields; Automatic1111 does."""
    async with simulated(dialect) as s:
        document = info(await s.generate())
    told = set(document) - COMMON
    assert told >= KEYS[dialect]
    assert ("sd_model_name" in told) == (dialect not in SDNEXT)
    assert ("detailer" in told) == (dialect == "sdnext")
    assert set(document) >= COMMON


@pytest.mark.parametrize(
    ("dialect", "line"),
    [
        ("sdnext", "Steps: 2, Size: 64x64, Sampler: Default"),
        ("sdnext-2023", "Steps: 2, Seed: 1, Sampler: Euler"),
        ("a1111", "Steps: 2, Sampler: Euler, Schedule type: Automatic"),
        ("a1111-1.7", "Steps: 2, Sampler: Euler, CFG scale: 7.0, Seed: 1, Size: 64x64, Model hash: dd8a1c7f77"),
        ("forge", "Version: f2.0.1v1.10.1"),
    ],
)
async def test_infotext_reads_like_its_server(dialect: str, line: str) -> None:
    """Model and settings are told in each server's own order."""
    async with simulated(dialect) as s:
        text = info(await s.generate())["infotexts"][0]
    assert text.startswith("a cat\n")
    assert line in text
    assert "Model: dreamshaper_8" in text


async def test_published_guides_request_gets_the_published_answer_of_automatic1111() -> None:
    """With a prompt alone 1.7 echoes the defaults of the published example: 50 steps, 512x512, null strength."""
    async with simulated("a1111-1.7", Knobs(step_seconds=0)) as s:
        response = await s.post("txt2img", {"prompt": "A beautiful sunset over a calm lake"})
    echo = response.json()["parameters"]
    assert (echo["steps"], echo["width"], echo["cfg_scale"], echo["sampler_index"]) == (50, 512, 7, "Euler")
    assert echo["denoising_strength"] is None
    assert "scheduler" not in echo
    assert info(response)["version"] == "v1.7.0"


@pytest.mark.parametrize(
    ("dialect", "steps", "size", "cfg", "extra"),
    [
        ("sdnext", 20, 1024, 6.0, "schedulers_shift"),
        ("sdnext-2023", 50, 512, 7.0, "hdr_clamp"),
        ("a1111", 50, 512, 7.0, "scheduler"),
        ("forge", 50, 512, 7.0, "distilled_cfg_scale"),
    ],
)
async def test_parameters_echo_the_defaults_and_drop_unknown_fields(
    dialect: str, steps: int, size: int, cfg: float, extra: str
) -> None:
    """Each schema has its own defaults; a field that it does not know vanishes without a word."""
    async with simulated(dialect, Knobs(step_seconds=0)) as s:
        response = await s.post("txt2img", {"prompt": "p", "no_such_field": 1})
    echo = response.json()["parameters"]
    assert (echo["steps"], echo["width"], echo["height"], echo["cfg_scale"]) == (steps, size, size, cfg)
    assert extra in echo
    assert "no_such_field" not in echo
    assert picture(response).size == (size, size)


async def test_sdnext_echoes_over_two_hundred_fields() -> None:
    """The current SD.Next answers its whole request class, without the excluded parts."""
    async with simulated("sdnext") as s:
        echo = (await s.generate()).json()["parameters"]
    assert len(echo) > 220
    assert not {"extra", "control_units", "ip_adapter"} & set(echo)


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_the_same_request_draws_the_same_picture_and_another_seed_another(dialect: str) -> None:
    """Pictures depend on prompt, seed and model alone."""
    async with simulated(dialect) as s:
        first, again = picture(await s.generate()), picture(await s.generate())
        other = picture(await s.generate(seed=2))
        worded = picture(await s.generate("a dog"))
    assert first.tobytes() == again.tobytes()
    assert first.tobytes() not in (other.tobytes(), worded.tobytes())


async def test_a_picture_weighs_as_much_as_a_photograph() -> None:
    """A PNG of 512x512 has some hundred thousand bytes, so that transfers cost what they cost in earnest."""
    async with simulated("a1111", Knobs(step_seconds=0)) as s:
        data = image_bytes(await s.generate(width=512, height=512))
    assert 300_000 < len(data) < 600_000


@pytest.mark.parametrize("dialect", ALL)
async def test_a_random_seed_is_told(dialect: str) -> None:
    """With seed -1 the server draws one and names it; the echo keeps -1."""
    async with simulated(dialect) as s:
        response = await s.generate(seed=-1, subseed=5)
    assert info(response)["seed"] >= 0
    assert info(response)["subseed"] == 5
    assert response.json()["parameters"]["seed"] == -1


@pytest.mark.parametrize("dialect", ALL)
async def test_a_batch_counts_its_seeds_up(dialect: str) -> None:
    """batch_size times n_iter pictures with one seed more each, and no grid unless pictures are saved."""
    async with simulated(dialect) as s:
        response = await s.generate(seed=10, batch_size=2, n_iter=2)
        varied = await s.generate(seed=10, subseed=3, subseed_strength=0.5, batch_size=2)
    assert len(response.json()["images"]) == 4
    assert info(response)["all_seeds"] == [10, 11, 12, 13]
    assert len({image_bytes(response, n) for n in range(4)}) == 4
    assert info(varied)["all_seeds"] == [10, 10]
    assert info(varied)["all_subseeds"] == [3, 4]
    assert image_bytes(varied, 0) != image_bytes(varied, 1)


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
async def test_a_grid_comes_first_when_pictures_are_saved(dialect: str) -> None:
    """index_of_first_image tells where the real pictures begin."""
    async with simulated(dialect) as s:
        response = await s.generate(batch_size=2, save_images=True)
    assert info(response)["index_of_first_image"] == 1
    assert picture(response, 0).size == (128, 64)
    assert [picture(response, n).size for n in (1, 2)] == [(64, 64)] * 2
    assert len(info(response)["infotexts"]) == 3


@pytest.mark.parametrize("dialect", ALL)
async def test_pictures_are_left_out_on_request(dialect: str) -> None:
    """send_images false is the one honest reason for an empty list."""
    async with simulated(dialect) as s:
        response = await s.generate(send_images=False)
    assert response.json()["images"] == []
    assert info(response)["seed"] == 1


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize(("kind", "magic"), [("png", b"\x89PNG"), ("jpg", b"\xff\xd8"), ("webp", b"RIFF")])
async def test_the_global_option_sets_the_format(dialect: str, kind: str, magic: bytes) -> None:
    """Only the option in force after the job counts: an override that is put back changes nothing."""
    async with simulated(dialect) as s:
        before = image_bytes(await s.generate(override_settings={"samples_format": kind}))
        await s.post("options", {"samples_format": kind})
        after = image_bytes(await s.generate())
    assert before.startswith(b"\xff\xd8" if dialect in SDNEXT else b"\x89PNG")
    assert after.startswith(magic)
    assert "Model: dreamshaper_8" in metadata(after)


async def test_a_format_override_that_stays_counts() -> None:
    """Without restore the override is still in force when the answer is encoded."""
    async with simulated("a1111") as s:
        override = {"samples_format": "jpg"}
        response = await s.generate(override_settings=override, override_settings_restore_afterwards=False)
        wrong = {"samples_format": "bmp"}
        refused = await s.generate(override_settings=wrong, override_settings_restore_afterwards=False)
    assert image_bytes(response).startswith(b"\xff\xd8")
    assert (refused.status_code, refused.json()["detail"]) == (500, "Invalid image format")


async def test_metadata_can_be_switched_off() -> None:
    """Automatic1111 leaves its text chunk out with enable_pnginfo off."""
    async with simulated("a1111") as s:
        await s.post("options", {"enable_pnginfo": False})
        assert metadata(image_bytes(await s.generate())) == ""
        await s.post("options", {"samples_format": "jpg"})
        assert metadata(image_bytes(await s.generate())) == ""


@pytest.mark.parametrize("dialect", ALL)
async def test_large_answers_are_compressed_for_who_asks(dialect: str) -> None:
    """gzip is used when accepted and the knob allows; x-process-time where the server has it."""
    async with simulated(dialect) as s:
        packed = await s.generate()
        small = await s.get("progress")
        s.client.headers["accept-encoding"] = "identity"
        plain = await s.generate()
        s.client.headers["accept-encoding"] = "gzip"
        s.sim.knobs.gzip = False
        forbidden = await s.generate()
    assert packed.headers["content-encoding"] == "gzip"
    for response in (small, plain, forbidden):
        assert "content-encoding" not in response.headers
    assert ("x-process-time" in plain.headers) == (dialect not in ("a1111", "forge"))


@pytest.mark.parametrize("dialect", ALL)
async def test_img2img_lets_the_input_shine_through(dialect: str) -> None:
    """The input is blended in by the strength, echoed only on request, with and without a data-URI prefix."""
    source = base64_png()
    body = {"prompt": "p", "seed": 1, "steps": 1, "width": 64, "height": 64, "denoising_strength": 0.0}
    async with simulated(dialect) as s:
        plain = await s.post("img2img", body | {"init_images": [source]})
        prefixed = await s.post(
            "img2img", body | {"init_images": [f"data:image/png;base64,{source}"], "include_init_images": True}
        )
        masked = await s.post("img2img", body | {"init_images": [source], "mask": base64_png((255, 255, 255))})
        shielded = await s.post("img2img", body | {"init_images": [source], "mask": base64_png((0, 0, 0))})
    red, green, _ = picture(plain).resize((1, 1)).getpixel((0, 0))  # type: ignore[misc]
    assert red > green + 80
    assert image_bytes(plain) == image_bytes(prefixed) == image_bytes(masked)
    assert image_bytes(shielded) != image_bytes(plain)
    assert plain.json()["parameters"]["init_images"] is None
    assert prefixed.json()["parameters"]["init_images"] == [f"data:image/png;base64,{source}"]
    assert "Denoising strength: 0.0" in info(plain)["infotexts"][0]


@pytest.mark.parametrize(
    ("dialect", "fields", "size"),
    [
        ("a1111", {"enable_hr": True, "hr_scale": 1.5}, (96, 96)),
        ("a1111", {"enable_hr": True, "hr_resize_x": 128, "hr_resize_y": 80}, (128, 80)),
        ("sdnext", {"enable_hr": True, "hr_upscaler": "Lanczos", "hr_resize_mode": 1}, (128, 128)),
        ("sdnext", {"enable_hr": True, "hr_upscaler": "Lanczos"}, (64, 64)),
        ("sdnext", {"enable_hr": True}, (64, 64)),
        ("sdnext", {"width": 69}, (64, 64)),
        ("sdnext", {"width": 0}, (1024, 64)),
    ],
)
async def test_the_size_follows_the_servers_rules(dialect: str, fields: dict[str, Any], size: tuple[int, int]) -> None:
    """Multiples of eight, the high-resolution pass, and SD.Next's reading of a width of zero."""
    async with simulated(dialect) as s:
        assert picture(await s.generate(**fields)).size == size


async def test_loras_count_when_they_exist_and_are_skipped_when_not() -> None:
    """A missing LoRA changes nothing and nobody says so; one that exists changes the picture and the infotext."""
    async with simulated("a1111", loras=["styles/ink.safetensors"]) as s:
        plain = await s.generate("a cat <lora:nosuch:1>")
        inked = await s.generate("a cat <lora:ink:0.8>")
    assert "Lora hashes" not in info(plain)["infotexts"][0]
    assert 'Lora hashes: "ink' in info(inked)["infotexts"][0] or "Lora hashes: ink" in info(inked)["infotexts"][0]


async def test_values_with_commas_are_quoted_or_stripped() -> None:
    """Automatic1111 quotes a model name with a comma; SD.Next drops comma and colon."""
    names = ["a,b.safetensors"]
    async with simulated("a1111", models=names) as s:
        assert 'Model: "a,b"' in info(await s.generate())["infotexts"][0]
    async with simulated("sdnext", models=names) as s:
        assert info(await s.generate())["infotexts"][0].endswith("Model: ab")


async def test_vae_is_named_when_it_exists() -> None:
    """Automatic1111 names the VAE in use; one that does not exist is not used."""
    async with simulated("a1111", vaes=["vae-ft.safetensors"]) as s:
        used = await s.generate(override_settings={"sd_vae": "vae-ft.safetensors"})
        unused = await s.generate(override_settings={"sd_vae": "nosuch.safetensors"})
    assert info(used)["sd_vae_name"] == "vae-ft.safetensors"
    assert info(unused)["sd_vae_name"] is None


async def test_schema_is_published() -> None:
    """openapi.json names the paths and the request schemas, without login."""
    for dialect in ALL:
        async with simulated(dialect, auth="u:p") as s:
            document = json.loads((await s.client.get("/openapi.json")).text)
        assert "/sdapi/v1/txt2img" in document["paths"]
        assert ("/sdapi/v1/checkpoint" in document["paths"]) == (dialect == "sdnext")
        fields = document["components"]["schemas"]["StableDiffusionProcessingTxt2Img"]["properties"]
        assert fields["steps"]["default"] == (20 if dialect == "sdnext" else 50)

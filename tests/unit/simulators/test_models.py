"""Which model is listed, selected and really used."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest

from tests.support.sims import A1111, ALL, SDNEXT, TITLES, info, model_of, simulated
from worker.simulators import Knobs, ModelFile

FIRST, SECOND = "dreamshaper_8", "sd_xl_base_1.0"


@pytest.mark.parametrize("dialect", ALL)
async def test_models_are_listed_in_the_dialects_shape(dialect: str) -> None:
    """Names without extension on SD.Next, titles with a hash only after the first load where the server hashes."""
    async with simulated(dialect) as s:
        await s.generate()
        items = (await s.get("sd-models")).json()
    assert [i["title"] for i in items][1] == TITLES[dialect]
    assert items[1]["filename"] == "/models/Stable-diffusion/sd_xl_base_1.0.safetensors"
    assert ("name" in items[0]) == (dialect == "sdnext-2023")
    hashed = dialect != "sdnext"
    assert items[0]["title"].endswith("[dd8a1c7f77]") == hashed
    assert (items[0]["hash"] == "dd8a1c7f77") == hashed
    assert items[1]["hash"] is None
    if dialect in A1111:
        assert items[2]["model_name"] == "realistic_vision_v6"


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_diffusers_folders_have_titles_of_their_own(dialect: str) -> None:
    """Salad's fork puts pieces of the path where hashes belong."""
    async with simulated(dialect, models=["Diffusers/org/tinyb"]) as s:
        item = (await s.get("sd-models")).json()[0]
        text = model_of(await s.generate())
    assert item["type"] == "diffusers"
    assert text == "tinyb"
    if dialect == "sdnext":
        assert (item["title"], item["model_name"], item["hash"]) == ("Diffusers/org/tinyb",) * 2 + (None,)
    else:
        assert (item["title"], item["hash"]) == ("Diffusers/org/tinyb [/models/Di]", "/models/")


@pytest.mark.parametrize("dialect", ALL)
async def test_a_file_is_listed_only_after_a_refresh(dialect: str) -> None:
    """Added and removed files show with the refresh route, whose answer differs."""
    async with simulated(dialect) as s:
        s.sim.disk.add("new.safetensors")
        s.sim.disk.remove("dreamshaper_8.safetensors")
        before = {Path(i["filename"]).name for i in (await s.get("sd-models")).json()}
        refreshed = await s.post("refresh-checkpoints")
        after = {Path(i["filename"]).name for i in (await s.get("sd-models")).json()}
    assert (refreshed.status_code, refreshed.text) == ((204, "") if dialect == "sdnext" else (200, "null"))
    assert after - before == {"new.safetensors"}
    assert before - after == {"dreamshaper_8.safetensors"}


@pytest.mark.parametrize("dialect", ALL)
async def test_loras_and_vaes_have_their_lists(dialect: str) -> None:
    """Automatic1111 looks for LoRAs itself; SD.Next of today wants a refresh and replaces dots in names."""
    vaes = {"sdnext-2023": "refresh-vaes"}.get(dialect, "refresh-vae")
    async with simulated(dialect) as s:
        s.sim.disk.add("ink.v2.safetensors", "lora")
        s.sim.disk.add("ft.safetensors", "vae")
        unasked = len((await s.get("loras")).json())
        loras, refreshed = await s.post("refresh-loras"), await s.post(vaes)
        names = [i["name"] for i in (await s.get("loras")).json()]
        vae = (await s.get("sd-modules" if dialect == "forge" else "sd-vae")).json()
        absent = await s.get("sd-vae" if dialect == "forge" else "sd-modules")
    assert unasked == (0 if dialect == "sdnext" else 1)
    assert names == ["ink_v2" if dialect == "sdnext" else "ink.v2"]
    assert vae == [{"model_name": "ft.safetensors", "filename": "/models/VAE/ft.safetensors"}]
    assert absent.status_code == 404
    assert refreshed.status_code == (204 if dialect == "sdnext" else 200)
    assert loras.json() == ({"ink.v2": "/models/Lora/ink.v2.safetensors"} if dialect == "sdnext" else None)


async def test_real_files_of_a_models_folder_are_found(tmp_path: Path) -> None:
    """A refresh looks into the folder that the worker downloads to, and hashes the real bytes."""
    folder = tmp_path / "Stable-diffusion" / "sub"
    folder.mkdir(parents=True)
    async with simulated("a1111", models=["base.safetensors"], models_dir=tmp_path) as s:
        (folder / "real.safetensors").write_bytes(b"weights")
        (folder / "real.safetensors.part").write_bytes(b"half")
        await s.post("refresh-checkpoints")
        response = await s.generate(override_settings={"sd_model_checkpoint": "sub/real.safetensors"})
        item = (await s.get("sd-models")).json()[1]
    assert item["filename"] == str(folder / "real.safetensors")
    assert info(response)["sd_model_hash"] == item["hash"] == hashlib.sha256(b"weights").hexdigest()[:10]


@pytest.mark.parametrize("dialect", ALL)
async def test_an_override_runs_the_model_that_it_names(dialect: str) -> None:
    """Title as listed; the info tells the model that ran."""
    async with simulated(dialect) as s:
        response = await s.generate(override_settings={"sd_model_checkpoint": TITLES[dialect]})
        assert model_of(response) == SECOND
        assert s.sim.stats.generations[0].model == SECOND


@pytest.mark.parametrize("dialect", ALL)
async def test_an_unknown_override_runs_another_model_without_a_word(dialect: str) -> None:
    """200 and a picture from whatever is there: the infotext alone gives it away."""
    async with simulated(dialect) as s:
        response = await s.generate(override_settings={"sd_model_checkpoint": "nosuch"})
        assert response.status_code == 200
        assert model_of(response) == FIRST


@pytest.mark.parametrize(
    ("dialect", "restore", "loads"),
    [
        ("sdnext", True, [FIRST, SECOND, FIRST]),
        ("sdnext-2023", True, [FIRST, SECOND, FIRST]),
        ("a1111", True, [FIRST, SECOND]),
        ("sdnext", False, [FIRST, SECOND]),
        ("a1111", False, [FIRST, SECOND]),
        ("forge", True, [SECOND]),
    ],
)
async def test_restore_afterwards_costs_what_it_costs(dialect: str, restore: bool, loads: list[str]) -> None:
    """SD.Next loads the old model before it answers; Automatic1111 leaves that to the next job."""
    override = {"sd_model_checkpoint": TITLES[dialect]}
    async with simulated(dialect) as s:
        await s.generate(override_settings=override, override_settings_restore_afterwards=restore)
        assert s.sim.stats.loads == loads
        following = await s.generate()
    assert model_of(following) == (FIRST if restore else SECOND)


@pytest.mark.parametrize(
    ("dialect", "name", "found"),
    [
        ("sdnext", "/models/Stable-diffusion/sd_xl_base_1.0.safetensors", True),
        ("sdnext", "sd_xl_base_1.0.safetensors", False),
        ("sdnext", "vision_v6", False),
        ("sdnext-2023", "sd_xl_base_1.0.safetensors", False),
        ("a1111", "sd_xl_base_1.0", True),
        ("a1111", "realistic_vision_v6", True),
        ("a1111", "vision_v6", True),
        ("forge", "realistic/vision_v6.safetensors", True),
    ],
)
async def test_names_that_select_a_model(dialect: str, name: str, found: bool) -> None:
    """SD.Next takes paths without extension, Automatic1111 nearly anything."""
    async with simulated(dialect) as s:
        response = await s.generate(override_settings={"sd_model_checkpoint": name})
    assert (model_of(response) != FIRST) == found


@pytest.mark.parametrize("dialect", ALL)
async def test_options_select_a_model(dialect: str) -> None:
    """The setting switches the model, at once or (Forge) with the next job."""
    async with simulated(dialect) as s:
        answer = await s.post("options", {"sd_model_checkpoint": TITLES[dialect]})
        loads = list(s.sim.stats.loads)
        again = await s.post("options", {"sd_model_checkpoint": s.sim.options["sd_model_checkpoint"]})
        response = await s.generate()
        assert model_of(response) == SECOND
        assert (await s.get("options")).json()["sd_model_checkpoint"].startswith(TITLES[dialect])
        assert s.sim.stats.options_posts[0] == {"sd_model_checkpoint": TITLES[dialect]}
    if dialect in SDNEXT:
        assert answer.json() == {"updated": [{"sd_model_checkpoint": True}]}
        assert again.json() == {"updated": [{"sd_model_checkpoint": False}]}
    else:
        assert (answer.status_code, answer.text) == (200, "null")
    assert (SECOND in loads) == (dialect != "forge")


@pytest.mark.parametrize("dialect", A1111)
async def test_automatic1111_refuses_to_select_an_unknown_model(dialect: str) -> None:
    """500 RuntimeError, and the model stays."""
    async with simulated(dialect) as s:
        answer = await s.post("options", {"sd_model_checkpoint": "nosuch"})
        assert answer.status_code == 500
        assert "model 'nosuch' not found" in answer.text
        assert model_of(await s.generate()) == FIRST


async def test_salads_fork_falls_back_to_the_first_model() -> None:
    """It says that it switched; what runs is the first of the list."""
    async with simulated("sdnext-2023") as s:
        await s.post("options", {"sd_model_checkpoint": "sd_xl_base_1.0"})
        answer = await s.post("options", {"sd_model_checkpoint": "nosuch.safetensors"})
        assert answer.json() == {"updated": [{"sd_model_checkpoint": True}]}
        assert model_of(await s.generate()) == FIRST


async def test_sdnext_unloads_when_it_does_not_know_the_name() -> None:
    """updated true, nothing loaded, the bad name kept; then 200 with no image and an empty info."""
    async with simulated("sdnext") as s:
        answer = await s.post("options", {"sd_model_checkpoint": "org/nosuch"})
        assert answer.json() == {"updated": [{"sd_model_checkpoint": True}]}
        assert (await s.get("checkpoint")).json() == {"type": None, "class": None}
        assert (await s.get("options")).json()["sd_model_checkpoint"] == "org/nosuch"
        empty = (await s.generate()).json()
        assert (empty["images"], empty["info"]) == ([], "")
        assert s.sim.stats.downloads == ["org/nosuch"]
        await s.post("options", {"sd_checkpoint_autodownload": False, "sd_model_checkpoint": "org/other"})
        assert s.sim.stats.downloads == ["org/nosuch"]


async def test_sdnext_selects_by_a_field_of_the_request_and_keeps_it() -> None:
    """sd_model_checkpoint at the top of the request switches for good; an unknown one empties the server."""
    async with simulated("sdnext") as s:
        assert model_of(await s.generate(sd_model_checkpoint=SECOND)) == SECOND
        assert model_of(await s.generate()) == SECOND
        assert (await s.generate(sd_model_checkpoint="nosuch")).json()["info"] == ""


async def test_sdnext_tells_honestly_what_is_loaded() -> None:
    """GET /checkpoint; POST /checkpoint says false for a model that is loaded already."""
    async with simulated("sdnext") as s:
        loaded = (await s.get("checkpoint")).json()
        same = await s.post("checkpoint", params={"sd_model_checkpoint": FIRST})
        other = await s.post("checkpoint", params={"sd_model_checkpoint": SECOND})
        unknown = await s.post("checkpoint", params={"sd_model_checkpoint": "nosuch"})
        assert (await s.get("checkpoint")).json()["type"] is None
    assert (loaded["type"], loaded["title"]) == ("sd", FIRST)
    assert loaded["filename"] == "/models/Stable-diffusion/dreamshaper_8.safetensors"
    assert [r.json() for r in (same, other, unknown)] == [{"ok": False}, {"ok": True}, {"ok": False}]


@pytest.mark.parametrize("dialect", ALL)
async def test_unload_and_reload(dialect: str) -> None:
    """The next job loads again by itself; Forge's reload does nothing."""
    async with simulated(dialect) as s:
        await s.generate()
        unloaded = await s.post("unload-checkpoint")
        assert s.sim.machine.loaded is None
        reloaded = await s.post("reload-checkpoint")
        assert (s.sim.machine.loaded is None) == (dialect == "forge")
        await s.post("unload-checkpoint")
        assert model_of(await s.generate()) == FIRST
    for response in (unloaded, reloaded):
        assert (response.status_code, response.text) == ((204, "") if dialect == "sdnext" else (200, "{}"))


@pytest.mark.parametrize("dialect", ALL)
async def test_a_file_that_cannot_be_read_fails_the_job(dialect: str) -> None:
    """500 everywhere; Forge then has no model until a different one is asked for."""
    models = ["dreamshaper_8.safetensors", ModelFile("bad.safetensors", unreadable=True), "good.safetensors"]
    bad, good = ("bad", "good") if dialect in SDNEXT else ("bad.safetensors", "good.safetensors")
    async with simulated(dialect, models=models) as s:
        failed = await s.generate(override_settings={"sd_model_checkpoint": bad})
        plain = await s.generate()
        other = await s.generate(override_settings={"sd_model_checkpoint": good})
        assert failed.status_code == 500
        assert plain.status_code == (500 if dialect == "forge" else 200)
        assert model_of(other) == "good"
        assert (await s.generate()).status_code == 200
    if dialect == "forge":
        assert failed.json()["message"] == "Failed to recognize model type!"
        assert "'sd_checkpoint_info'" in plain.json()["message"]


@pytest.mark.parametrize("dialect", ["sdnext", "sdnext-2023", "a1111"])
async def test_selecting_a_file_that_cannot_be_read_is_called_a_success(dialect: str) -> None:
    """200 although the load failed: the current SD.Next has no model then, the others keep theirs."""
    models = ["dreamshaper_8.safetensors", ModelFile("bad.safetensors", unreadable=True)]
    name = "bad" if dialect in SDNEXT else "bad.safetensors"
    async with simulated(dialect, models=models) as s:
        answer = await s.post("options", {"sd_model_checkpoint": name})
        assert answer.status_code == 200
        assert (s.sim.machine.loaded is None) == (dialect == "sdnext")
        if dialect == "a1111":
            assert s.sim.options["sd_model_checkpoint"].startswith("dreamshaper_8")


@pytest.mark.parametrize(
    ("dialect", "status", "text"),
    [
        ("sdnext", 200, '"info":""'),
        ("sdnext-2023", 500, "'NoneType' object has no attribute 'images'"),
        ("a1111", 500, "No checkpoints found."),
        ("forge", 500, "You do not have any model!"),
    ],
)
async def test_without_any_model(dialect: str, status: int, text: str) -> None:
    """Each server fails in its own way, the current SD.Next with 200."""
    async with simulated(dialect, models=[]) as s:
        response = await s.generate()
        refreshed = await s.post("refresh-checkpoints")
    assert response.status_code == status
    assert text in response.text
    assert refreshed.status_code == {"sdnext": 204, "sdnext-2023": 500}.get(dialect, 200)


async def test_a_vanished_model_is_replaced_by_the_first() -> None:
    """Automatic1111 falls back when the configured file is gone: never evict what is loaded."""
    async with simulated("a1111") as s:
        await s.post("options", {"sd_model_checkpoint": "sd_xl_base_1.0.safetensors"})
        s.sim.disk.remove("sd_xl_base_1.0.safetensors")
        await s.post("refresh-checkpoints")
        assert model_of(await s.generate()) == FIRST


async def test_hashing_can_be_turned() -> None:
    """A hashing SD.Next has the hash in title and info; a server without hashing has null."""
    async with simulated("sdnext", Knobs(hashing=True)) as s:
        hashed = await s.generate()
        assert s.sim.options["sd_model_checkpoint"] == "dreamshaper_8 [dd8a1c7f77]"
    async with simulated("a1111", Knobs(hashing=False)) as s:
        bare = await s.generate()
    assert info(hashed)["sd_model_hash"] == "dd8a1c7f77"
    assert "Model hash: dd8a1c7f77" in info(hashed)["infotexts"][0]
    assert info(bare)["sd_model_hash"] is None


async def test_each_load_can_take_its_time_and_leak() -> None:
    """Per-model seconds; and memory that grows with every swap."""
    models = ["a.safetensors", ModelFile("b.safetensors", load_seconds=0.2)]
    async with simulated("sdnext", Knobs(load_seconds=30, leak_bytes_per_load=1000), models=models) as s:
        await s.generate(override_settings={"sd_model_checkpoint": "b"}, override_settings_restore_afterwards=False)
        assert s.sim.stats.loads == ["a", "b"]
        assert s.sim.machine.leaked_bytes == 2000

"""Real files in real folders, as the servers find them, and what they make of those that are gone or cut off."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.made import safetensors
from tests.support.sims import A1111, ALL, SDNEXT, model_of, simulated

FIRST = "base.safetensors"
everywhere = pytest.mark.parametrize("dialect", ALL)


def put(folder: Path, *names: str, content: bytes | None = None) -> None:
    for name in names:
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(safetensors() if content is None else content)


@everywhere
async def test_a_file_that_is_cut_off_or_gone_is_not_loaded(dialect: str, tmp_path: Path) -> None:
    """It is listed like any other; the job goes wrong, or is done with another model."""
    put(tmp_path, f"Stable-diffusion/{FIRST}")
    put(tmp_path, "Stable-diffusion/half.safetensors", content=safetensors()[:-1])
    put(tmp_path, "Stable-diffusion/empty.safetensors", content=b"")
    async with simulated(dialect, models=(), models_dir=tmp_path) as s:
        titles = [item["title"] for item in (await s.get("sd-models")).json()]
        assert len(titles) == 3
        assert model_of(await s.generate(override_settings={"sd_model_checkpoint": titles[0]})) == "base"
        put(tmp_path, "Stable-diffusion/late.safetensors")
        await s.post("refresh-checkpoints")
        (tmp_path / "Stable-diffusion" / "late.safetensors").unlink()
        late = next(i["title"] for i in (await s.get("sd-models")).json() if "late" in i["title"])
        for title in (*titles[1:], late):
            answer = await s.generate(override_settings={"sd_model_checkpoint": title})
            assert answer.status_code == 500


@everywhere
async def test_a_lora_or_vae_that_is_gone_is_left_out_without_a_word(dialect: str, tmp_path: Path) -> None:
    """After one look for new files."""
    put(tmp_path, "Lora/ink.safetensors", "Lora/gone.safetensors", "VAE/gone.pt")
    async with simulated(dialect, models_dir=tmp_path) as s:
        (tmp_path / "Lora" / "gone.safetensors").unlink()
        (tmp_path / "VAE" / "gone.pt").unlink()
        put(tmp_path, "Lora/new.safetensors")
        s.sim.options["sd_vae"] = "gone.pt"
        told = (await s.generate("<lora:ink:1> <lora:gone:1> <lora:new:1>")).json()["info"]
    assert "ink" in told
    assert "gone" not in told.replace("<lora:gone:1>", "")
    assert "new" in told.replace("<lora:new:1>", "")


@everywhere
async def test_embeddings_show_once_a_job_or_a_refresh_took_them(dialect: str, tmp_path: Path) -> None:
    """Automatic1111 keeps them beside its models; on SD.Next they belong to the loaded model."""
    models, folder = tmp_path / "models", tmp_path / ("models/embeddings" if dialect in SDNEXT else "embeddings")
    put(models, f"Stable-diffusion/{FIRST}")

    def names(body: dict[str, object]) -> set[str]:
        loaded = body["loaded"]
        assert isinstance(loaded, (dict, list))
        return set(loaded)

    async with simulated(dialect, models=(), models_dir=models) as s:
        put(folder, "easy.safetensors")
        assert names((await s.get("embeddings")).json()) == set()
        refreshed = await s.post("refresh-embeddings")
        assert refreshed.status_code == (200 if dialect in ("a1111", "forge") else 404)
        await s.generate()
        assert names((await s.get("embeddings")).json()) == {"easy"}


@pytest.mark.parametrize("dialect", [*A1111, "sdnext"])
async def test_upscalers_are_looked_for_at_the_start_alone(dialect: str, tmp_path: Path) -> None:
    """By the stem of the file, whose path is told."""
    put(tmp_path, "ESRGAN/sharp.pth")
    async with simulated(dialect, models_dir=tmp_path) as s:
        put(tmp_path, "ESRGAN/late.pth")
        found = {u["name"]: u["model_path"] for u in (await s.get("upscalers")).json()}
        assert found["sharp"] == str(tmp_path / "ESRGAN" / "sharp.pth")
        assert found["Lanczos"] is None
        assert "late" not in found
        s.sim.machine.boot()
        assert "late" in {u["name"] for u in (await s.get("upscalers")).json()}

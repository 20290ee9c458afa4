"""`sd-worker check` of the models: their folder, and the operator's sources."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path

import pytest

from tests.support.receiver import Answer, ScriptedServer
from worker.cli import sources
from worker.cli.check import image_reports
from worker.errors import ConfigError
from worker.models import measure
from worker.models.folders import OURS
from worker.settings import load_settings
from worker.settings.groups import Settings


def settings(root: Path, **environ: str) -> Settings:
    (root / "checkpoints").mkdir(exist_ok=True)
    return load_settings({"WORKER_MODELS_DIR": str(root), "WORKER_ENGINE": "comfyui", **environ})


async def test_the_folder_is_told_with_its_space(tmp_path: Path) -> None:
    """Whose it is, what models may take, and what is free; nothing is written there."""
    found = await sources.models(settings(tmp_path, WORKER_MODELS_MAX_SIZE="10GB"))
    assert (found.verdict, str(tmp_path) in found.text, "comfyui" in found.text) == ("ok", True, True)
    assert "at most 10.0 GB" in found.text
    assert not (tmp_path / OURS).exists()


async def test_no_folder_is_worth_knowing() -> None:
    """Jobs use what the server has then."""
    found = await sources.models(load_settings({"WORKER_ENGINE": "comfyui"}))
    assert (found.verdict, "WORKER_MODELS_DIR" in found.text) == ("note", True)


async def test_a_folder_of_nobody_is_bad_configuration(tmp_path: Path) -> None:
    """It has to show whose it is."""
    with pytest.raises(ConfigError):
        await sources.models(load_settings({"WORKER_MODELS_DIR": str(tmp_path)}))


async def test_a_full_disk_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """2 GB must stay free."""
    monkeypatch.setattr(sources, "free_bytes", lambda folder: measure.RESERVE - 1)
    found = await sources.models(settings(tmp_path))
    assert (found.verdict, "less than the 2 GB" in found.text) == ("FAILED", True)


@pytest.mark.parametrize("part", ["checkpoints", OURS])
async def test_a_folder_that_cannot_be_written_fails(tmp_path: Path, part: str) -> None:
    """That of the models or our own in it, as when another user baked them; an image's build can know it too."""
    (tmp_path / part).symlink_to("/proc/self")
    settings = load_settings({"WORKER_MODELS_DIR": str(tmp_path), "WORKER_ENGINE": "comfyui"})
    found = await sources.models(settings)
    assert (found.verdict, "cannot be written" in found.text) == ("FAILED", True)
    assert sources.in_image(settings) == found


async def test_an_image_may_have_no_folder_of_models(tmp_path: Path) -> None:
    """One that shows nobody's is a mistake."""
    assert sources.in_image(load_settings({"WORKER_ENGINE": "comfyui"})) is None
    found = sources.in_image(load_settings({"WORKER_MODELS_DIR": str(tmp_path)}))
    assert found is not None
    assert (found.verdict, "WORKER_ENGINE" in found.text) == ("FAILED", True)


async def test_check_of_an_image_tells_of_its_models(tmp_path: Path) -> None:
    """A line beside the others."""
    reports = [report async for report in image_reports(settings(tmp_path, WORKER_HTTP_PORT="0"))]
    assert {report.part: report.finding.verdict for report in reports}["models"] == "ok"


async def test_without_sources_there_is_nothing_to_try(tmp_path: Path) -> None:
    """And that is no failure."""
    assert (await sources.sources(settings(tmp_path))).verdict == "note"


@pytest.mark.parametrize(
    ("answer", "verdict", "said"),
    [
        (Answer(404), "ok", "answers"),
        (Answer(206, {"content-range": "bytes 0-0/100"}, b"x"), "ok", "answers"),
        (Answer(401), "FAILED", "401"),
        (Answer(403, body=b"<Error><Code>SignatureDoesNotMatch</Code></Error>"), "FAILED", "SignatureDoesNotMatch"),
        (Answer(403, body=b"<Error><Code>AccessDenied</Code></Error>"), "note", "may not list the bucket"),
        (Answer(400), "ok", "answers"),
    ],
)
async def test_a_source_is_asked_for_what_it_has_not(tmp_path: Path, answer: Answer, verdict: str, said: str) -> None:
    """404 shows that it answers us; wrong credentials fail, and S3's 403 for what is not there is worth knowing."""
    async with ScriptedServer() as server:
        server.otherwise = answer
        found = await sources.sources(settings(tmp_path, WORKER_MODELS_SOURCE=server.url("/m/{kind}/{name}")))
        assert server.requests[0].path == f"/m/checkpoint/{sources.NOBODY_HAS}"
    assert (found.verdict, said in found.text) == (verdict, True)


async def test_the_worst_of_all_sources_counts(tmp_path: Path) -> None:
    """Each is told, the catalogue with what it lists; one that is away fails."""
    catalog = tmp_path / "catalog.json"
    catalog.write_text(json.dumps([{"kind": "lora", "name": "a.safetensors", "url": "https://x.example/a"}]))
    async with ScriptedServer() as server:
        server.otherwise = Answer(404)
        url = server.url("/{kind}/{name}")
        both = settings(tmp_path, WORKER_MODELS_SOURCE=url, WORKER_MODELS_CATALOG=str(catalog))
        good = await sources.sources(both)
        catalog.unlink()
        bad = await sources.sources(both)
    assert (good.verdict, f"{catalog} lists 1 models" in good.text) == ("ok", True)
    assert (bad.verdict, "answers; " in bad.text) == ("FAILED", True)
    assert asyncio.all_tasks() == {asyncio.current_task()}

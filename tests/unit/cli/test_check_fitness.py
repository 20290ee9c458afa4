"""`sd-worker check` of what a fit node must have."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import pytest

from tests.support.model_host import FORBIDDEN, HostedFile, ModelHost, Twist
from tests.unit.cli.test_check import Parts
from worker.cli import BAD_CONFIGURATION, FAILED, OK
from worker.cli.check import Report, part_reports
from worker.engines.base import EngineState, Reach
from worker.settings import load_settings


async def line(environ: dict[str, str], reach: Reach = Reach.PORT_CLOSED) -> Report | None:
    settings = load_settings({"WORKER_ENGINE_URL": "http://[::1]:1", **environ})
    opened = Parts(engine=EngineState(reach)).opened
    found = [report async for report in part_reports(settings, opened) if report.part == "fitness"]
    return found[0] if found else None


@pytest.fixture
def nvidia_smi(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A card of 24 GB, of which 2 GB are free."""
    script = tmp_path / "nvidia-smi"
    script.write_text(f"#!{sys.executable}\nprint('RTX 4090, 24564, 2000')\n")
    script.chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))


async def test_nobody_asks_without_a_variable() -> None:
    assert await line({}) is None


@pytest.mark.usefixtures("nvidia_smi")
async def test_a_card_in_use_fails_where_the_server_is_still_to_come() -> None:
    """One that runs already holds the memory itself, and the card is judged by all that it has."""
    asked = {"WORKER_FITNESS_VRAM": "20GB"}
    before, after = await line(asked), await line(asked, Reach.READY)
    assert before is not None
    assert after is not None
    assert (before.code, "vram 2.1 GB, 20 GB wanted" in before.finding.text) == (FAILED, True)
    assert (after.code, "vram 25.8 GB, 20 GB wanted" in after.finding.text) == (OK, True)


@pytest.mark.usefixtures("nvidia_smi")
async def test_each_figure_is_told_whatever_became_of_the_others(tmp_path: Path) -> None:
    """A source that is away is no figure of this machine, and a failure all the same."""
    async with ModelHost() as host:
        host.host("/m.safetensors", HostedFile(b"", twist=Twist(503)))
        manifest = f'[{{"kind": "checkpoint", "url": "{host.url("/m.safetensors")}"}}]'
        environ = {"WORKER_FITNESS_VRAM": "1GB", "WORKER_FITNESS_DOWNLOAD": "1MB", "WORKER_FITNESS_STEP": "1s"}
        found = await line({**environ, "WORKER_MODELS_MANIFEST": manifest})
    assert found is not None
    vram, download, step = found.finding.text.split("; ")
    assert found.code == FAILED
    assert vram.startswith("vram 2.1 GB")
    assert download.startswith("download cannot be measured: ")
    assert step == "step is measured by the worker's warm-up"


async def test_a_good_line_is_told_with_its_speed() -> None:
    async with ModelHost() as host:
        host.host("/m.safetensors", os.urandom(3_000_000))
        manifest = f'[{{"kind": "checkpoint", "url": "{host.url("/m.safetensors")}"}}]'
        found = await line({"WORKER_FITNESS_DOWNLOAD": "1kB", "WORKER_MODELS_MANIFEST": manifest})
    assert found is not None
    assert (found.code, "3 MB from http" in found.finding.text) == (OK, True)


async def test_refused_credentials_are_bad_configuration() -> None:
    async with ModelHost() as host:
        host.host("/m.safetensors", HostedFile(b"", twist=FORBIDDEN))
        manifest = f'[{{"kind": "checkpoint", "url": "{host.url("/m.safetensors")}"}}]'
        found = await line({"WORKER_FITNESS_DOWNLOAD": "1kB", "WORKER_MODELS_MANIFEST": manifest})
    assert found is not None
    assert found.code == BAD_CONFIGURATION

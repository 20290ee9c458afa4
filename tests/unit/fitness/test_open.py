"""Which checks the settings ask for."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.clock import CorrectedClock, SystemClock
from worker.errors import DiskFull, Owner
from worker.fitness import Site, checks_of, open_fitness
from worker.fitness.disk import DiskRoom
from worker.fitness.download import DownloadSpeed
from worker.fitness.open import named_by
from worker.fitness.verdict import Reading
from worker.job import Limits
from worker.models.base import Wanted
from worker.settings import load_settings
from worker.status import Status
from worker.urls import Guard
from worker.warmup import DEFAULT, canary_job

BUCKET = {"WORKER_S3_BUCKET": "images"}
MANIFEST = {"WORKER_MODELS_MANIFEST": json.dumps([{"kind": "vae", "url": "https://x.test/v.safetensors"}])}
WARM_UP = {
    **DEFAULT,
    "checkpoint": "m.safetensors",
    "models": [{"kind": "lora", "name": "l.safetensors", "url": "https://x.test/l.safetensors", "size": 7}],
}


async def nothing(url: str, limit: int) -> bytes:
    raise AssertionError("nothing is asked for")


def site(**given: Any) -> Site:
    return Site(Guard(), CorrectedClock(SystemClock()), "node-1", nothing, **given)


def asked(**environ: str) -> dict[str, float | None]:
    return {check.name: check.wanted for check in checks_of(load_settings(environ), site())}


def test_without_a_variable_the_disk_alone_is_told() -> None:
    assert asked() == {"disk": None}
    assert asked(WORKER_DISK_SIZE="100GB") == {"disk": None}


def test_each_demand_has_its_check_the_quickest_first() -> None:
    """The two lines last, one after the other."""
    demands = {"WORKER_FITNESS_VRAM": "20GB", "WORKER_FITNESS_UPLOAD": "1MB", "WORKER_FITNESS_DOWNLOAD": "10MB"}
    assert list(asked(**demands, **BUCKET, **MANIFEST).items()) == [
        ("vram", 20e9),
        ("disk", None),
        ("upload", 1e6),
        ("download", 10e6),
    ]


def test_a_disk_as_ordered_counts_on_a_node_that_has_to_be_fit() -> None:
    """Less what stays free of us; the default is nobody's order."""
    assert asked(WORKER_FITNESS_STEP="1s")["disk"] is None
    assert asked(WORKER_FITNESS_STEP="1s", WORKER_DISK_SIZE="100GB")["disk"] == 98e9


async def test_the_disk_is_what_may_be_filled() -> None:
    """By default what is free; the cache's own account takes its place. Nobody can tell: that is said."""

    def broken() -> int:
        raise DiskFull("the folder cannot be read")

    [disk] = checks_of(load_settings({}), site().over(lambda: 70))
    assert await disk.measure() == Reading(70, lasting=True)
    [disk] = checks_of(load_settings({}), site())
    assert ((await disk.measure()).value or 0) > 0
    assert await DiskRoom(None, broken).measure() == Reading(None, "cannot be told: the folder cannot be read")


def test_the_warm_up_names_models_to_measure_with() -> None:
    """What it lists, then its checkpoint; they are the operator's."""
    job = canary_job(json.dumps(WARM_UP).encode(), Limits())
    assert named_by(job) == (
        Wanted("lora", "l.safetensors", "https://x.test/l.safetensors", size=7, owner=Owner.OPERATOR),
        Wanted("checkpoint", "m.safetensors", owner=Owner.OPERATOR),
    )
    assert named_by(None) == ()


@pytest.mark.parametrize(
    ("manifest", "kinds"), [(MANIFEST, ["vae", "lora", "checkpoint"]), ({}, ["lora", "checkpoint"])]
)
async def test_the_manifest_comes_before_the_warm_up(manifest: dict[str, str], kinds: list[str]) -> None:
    """As at the start itself."""
    job = canary_job(json.dumps(WARM_UP).encode(), Limits())
    source = {"WORKER_MODELS_SOURCE": "https://cdn.test/{kind}/{name}", "WORKER_WARMUP": json.dumps(WARM_UP)}
    settings = load_settings({"WORKER_FITNESS_DOWNLOAD": "1MB", **source, **manifest})
    [check] = [one for one in checks_of(settings, site(warm_up=job)) if isinstance(one, DownloadSpeed)]
    assert [wanted.kind for wanted in await check.listed()] == kinds


def test_the_pace_is_asked_for_in_seconds() -> None:
    """The verdict is open until the warm-up has been timed."""
    node = open_fitness(load_settings({"WORKER_FITNESS_STEP": "500ms"}), site(), Status())
    assert node.described() == {"verdict": "measuring", "reason": None, "figures": {}}

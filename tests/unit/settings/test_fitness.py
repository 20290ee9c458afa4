"""What a fit node must have, as the operator asks for it."""

from __future__ import annotations

import json
from datetime import timedelta

import pytest

from worker.errors import ConfigError
from worker.settings import load_settings
from worker.settings.node import FitnessSettings

MANIFEST = json.dumps([{"kind": "checkpoint", "url": "https://x.test/m.safetensors"}])
DOWNLOAD = {"WORKER_FITNESS_DOWNLOAD": "10MB"}
SOURCE = {"WORKER_MODELS_SOURCE": "https://cdn.test/{kind}/{name}"}


def mistakes_of(environ: dict[str, str]) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return {mistake.field: mistake.message for mistake in caught.value.mistakes}


def test_demands_are_read_as_people_write_them() -> None:
    environ = {"WORKER_FITNESS_VRAM": "20GB", "WORKER_FITNESS_STEP": "500ms", "WORKER_FITNESS_UPLOAD": "1MB"}
    found = load_settings({**environ, **DOWNLOAD, "WORKER_S3_BUCKET": "images", "WORKER_MODELS_MANIFEST": MANIFEST})
    asked = FitnessSettings(vram=20_000_000_000, download=10_000_000, upload=1_000_000, step=timedelta(seconds=0.5))
    assert found.fitness == asked


@pytest.mark.parametrize(
    ("environ", "variable", "said"),
    [
        ({"WORKER_FITNESS_UPLOAD": "1MB"}, "WORKER_FITNESS_UPLOAD", "WORKER_S3_BUCKET, which is not set"),
        ({"WORKER_FITNESS_UPLOAD": "1MB", "WORKER_STORAGE": "presigned"}, "WORKER_FITNESS_UPLOAD", "not set"),
        (DOWNLOAD, "WORKER_FITNESS_DOWNLOAD", "there is none"),
        ({**DOWNLOAD, **SOURCE}, "WORKER_FITNESS_DOWNLOAD", "needs a model to fetch from WORKER_MODELS_SOURCE"),
        (
            {**DOWNLOAD, "WORKER_MODELS_MANIFEST": MANIFEST, "WORKER_MODELS_BANDWIDTH": "9MB"},
            "WORKER_FITNESS_DOWNLOAD",
            "more than WORKER_MODELS_BANDWIDTH",
        ),
        ({"WORKER_FITNESS_STEP": "1s", "WORKER_WARMUP": "none"}, "WORKER_FITNESS_STEP", "WORKER_WARMUP is none"),
        ({"WORKER_FITNESS_VRAM": "0"}, "WORKER_FITNESS_VRAM", "greater than 0"),
        ({"WORKER_FITNESS_STEP": "0"}, "WORKER_FITNESS_STEP", "greater than"),
    ],
)
def test_what_nothing_can_measure_is_a_mistake(environ: dict[str, str], variable: str, said: str) -> None:
    """Else every node would be given up, one after the other, for what the operator forgot."""
    found = mistakes_of(environ)
    assert set(found) == {variable}
    assert said in found[variable]


def test_a_warm_up_may_name_a_model_by_its_url() -> None:
    """An inline job document is none, whatever it holds."""
    job = {"params": {"prompt": "x"}, "models": [{"kind": "lora", "name": "l.safetensors", "url": "https://x.test/l"}]}
    environ = {**DOWNLOAD, **SOURCE, "WORKER_WARMUP": json.dumps(job)}
    assert load_settings(environ).engine.warmup == json.dumps(job)


@pytest.mark.parametrize(
    "environ",
    [
        {"WORKER_MODELS_MANIFEST": MANIFEST},
        {"WORKER_MODELS_CATALOG": "https://x.test/catalog.json"},
        {**SOURCE, "WORKER_WARMUP": '{"params": {"prompt": "x"}, "checkpoint": "m.safetensors"}'},
        {"CKPT_URLS": "https://x.test/m.safetensors"},
    ],
    ids=["manifest", "catalogue", "warm-up", "another image's list"],
)
def test_any_model_will_do_to_measure_with(environ: dict[str, str]) -> None:
    assert load_settings({**DOWNLOAD, **environ}).fitness.download == 10_000_000

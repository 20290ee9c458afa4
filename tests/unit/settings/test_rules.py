"""What single values must be, and what ties several of them together."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from worker.errors import ConfigError
from worker.settings import load_settings

KEY = "QUJDREVGR0hJSktMTU5PUFFSU1RVVldY"


def mistakes_of(**environ: str) -> dict[str, str]:
    with pytest.raises(ConfigError) as caught:
        load_settings(environ)
    return {mistake.field: mistake.message for mistake in caught.value.mistakes}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_ENGINE_URL", "localhost:7860"),
        ("WORKER_ENGINE_START_TIMEOUT", "0"),
        ("WORKER_JOB_TIMEOUT", "0s"),
        ("WORKER_MAX_PIXELS", "0"),
        ("WORKER_HTTP_PORT", "65536"),
        ("WORKER_QUEUE_WINDOW", "0"),
        ("WORKER_QUEUE_WINDOW", "33"),
        ("WORKER_QUEUE_VISIBILITY", "100ms"),
        ("WORKER_QUEUE_VISIBILITY", "13h"),
        ("WORKER_QUEUE", "kafka"),
        ("WORKER_S3_BUCKET", "a/b"),
        ("WORKER_S3_PREFIX", "a//b"),
        ("WORKER_S3_PREFIX", "../a"),
        ("WORKER_RESULT_PREFIX", "a/./b"),
        ("WORKER_S3_ENDPOINT_URL", "s3://bucket"),
        ("WORKER_S3_PRESIGN_TTL", "31d"),
        ("WORKER_S3_KEY", "{id}/{index}-{hash}.{format}"),
        ("WORKER_S3_KEY", "{id}/{index:03}-{hash}"),
        ("WORKER_S3_KEY", "{id!r}/{index}-{hash}"),
        ("WORKER_S3_KEY", "{id}/{index}-{hash"),
        ("WORKER_S3_KEY", "../{id}/{index}-{hash}"),
        ("WORKER_S3_KEY", "{id}/{}-{index}-{hash}"),
        ("WORKER_OUTPUT_QUALITY", "101"),
        ("WORKER_OUTPUT_FLAT", "maybe"),
        ("WORKER_WEBHOOK_EVENTS", "succeeded,exploded"),
        ("WORKER_WEBHOOK_EVENTS", ","),
        ("WORKER_WEBHOOK_SECRET", "hunter2"),
        ("WORKER_WEBHOOK_SECRET", "whsec_%%%"),
        ("WORKER_WEBHOOK_SECRET", f"whsec_{KEY} whsec_short"),
        ("WORKER_URLS_ALLOW_PRIVATE", "10.0.0.0/33"),
        ("WORKER_NODE_ID", "two words"),
        ("WORKER_DISK_SIZE", "1GB"),
        ("WORKER_PRICE_PER_HOUR", "-1"),
        ("WORKER_DRAIN_TIMEOUT", "2d"),
        ("WORKER_ENGINE_RESTARTS", "often"),
        ("WORKER_WARMUP", "/no/such/file.json"),
        ("WORKER_WARMUP", "{"),
        ("WORKER_WARMUP", '{"params": {"prompt": "x", "steps": 100000}}'),
        ("WORKER_WARMUP", '{"v": 9, "params": {"prompt": "x"}}'),
        ("WORKER_WARMUP", "ftp://host/warmup.json"),
        ("WORKER_WEBHOOK_SECRETS_FILE", "/no/such/file.json"),
        ("WORKER_MODELS_DIR", "/no/such/folder"),
        ("WORKER_MODELS_DIR", __file__),
        ("WORKER_MODELS_DIRS", "controlnet"),
        ("WORKER_MODELS_DIRS", "controlnet=models/controlnet"),
        ("WORKER_MODELS_DIRS", "Controlnet=/models"),
        ("WORKER_MODELS_DIRS", "vae=/a vae=/b"),
        ("WORKER_MODELS_MAX_SIZE", "0"),
        ("WORKER_MODELS_SOURCE", "s3://models/{kind}"),
        ("WORKER_MODELS_SOURCE", "s3://models/{name}/{size}"),
        ("WORKER_MODELS_SOURCE", "s3://models/{name"),
        ("WORKER_MODELS_SOURCE", "ftp://models/{name}"),
        ("WORKER_MODELS_SOURCE", "https://a.example/{name} models/{name}"),
        ("WORKER_MODELS_CATALOG", "/no/such/catalog.json"),
        ("WORKER_MODELS_CATALOG", "ftp://host/catalog.json"),
        ("WORKER_MODELS_MANIFEST", "/no/such/manifest.json"),
        ("WORKER_MODELS_MANIFEST", "ftp://host/manifest.json"),
        ("WORKER_MODELS_MANIFEST", "file\0name"),
        ("WORKER_MODELS_S3_ENDPOINT_URL", "minio:9000"),
        ("WORKER_MODELS_START_TIMEOUT", "0"),
        ("WORKER_MODELS_BANDWIDTH", "0"),
        ("WORKER_MODELS_CONNECTIONS", "0"),
        ("WORKER_MODELS_CONNECTIONS", "65"),
        ("WORKER_MODELS_HOSTS", "https://huggingface.co"),
        ("WORKER_MODELS_HOSTS", "*.example.com"),
        ("WORKER_MODELS_ALLOW_PICKLE", "perhaps"),
        ("WORKER_LOG_LEVEL", "loud"),
    ],
)
def test_a_wrong_value_is_a_mistake_of_its_variable(name: str, value: str) -> None:
    """Each bound is checked at the start, by the name that the operator knows; the value is not repeated."""
    found = mistakes_of(**{name: value})
    assert set(found) == {name}
    assert value not in found[name] or len(value) < 3


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("WORKER_S3_KEY", "{id}/{hash}/{index}"),
        ("WORKER_S3_PREFIX", "a/b"),
        ("WORKER_URLS_ALLOW_PRIVATE", "TRUE"),
        ("WORKER_URLS_ALLOW_PRIVATE", "minio.internal, 10.0.0.0/8 fd00::/8 [::1]"),
        ("WORKER_WEBHOOK_SECRET", f"whsec_{KEY} whsec_{KEY}"),
        ("WORKER_WARMUP", "none"),
        ("WORKER_WARMUP", "https://example.com/warmup.json"),
        ("WORKER_WARMUP", '{"params": {"prompt": "a lighthouse", "steps": 4}}'),
        ("WORKER_S3_PRESIGN_TTL", "30d"),
        ("WORKER_STORAGE", "s4"),
        ("WORKER_DRAIN_TIMEOUT", "0"),
        ("WORKER_HTTP_PORT", "0"),
        ("WORKER_MODELS_DIR", "/"),
        ("WORKER_MODELS_DIRS", "controlnet=/webui/extensions-builtin/sd-webui-controlnet/models vae=/vae"),
        ("WORKER_MODELS_MAX_SIZE", "40GB"),
        ("WORKER_MODELS_SOURCE", "s3://models/{kind}/{name} https://cdn.example/{kind}/{name}"),
        ("WORKER_MODELS_CATALOG", "https://example.com/catalog.json"),
        ("WORKER_MODELS_CATALOG", __file__),
        ("WORKER_MODELS_MANIFEST", "s3://models/manifest.json"),
        ("WORKER_MODELS_MANIFEST", " [{"),
        ("WORKER_MODELS_START_TIMEOUT", "50m"),
        ("WORKER_MODELS_BANDWIDTH", "20MB"),
        ("WORKER_MODELS_CONNECTIONS", "64"),
        ("WORKER_MODELS_HOSTS", "*"),
        ("WORKER_MODELS_HOSTS", "HuggingFace.co, cdn.example"),
        ("WORKER_MODELS_ALLOW_PICKLE", "true"),
    ],
)
def test_a_right_value_is_none(name: str, value: str) -> None:
    """The bounds leave room for what people use."""
    assert load_settings({name: value}) != load_settings({})


@pytest.mark.parametrize(
    ("environ", "variable"),
    [
        ({"WORKER_JOB_TIMEOUT": "2h"}, "WORKER_JOB_TIMEOUT"),
        ({"WORKER_STORAGE": "s3"}, "WORKER_S3_BUCKET"),
        ({"WORKER_S3_BUCKET": "renders", "WORKER_S3_PRESIGN_TTL": "8d"}, "WORKER_S3_PRESIGN_TTL"),
        ({"WORKER_QUEUE": "availability", "WORKER_STORAGE": "inline"}, "WORKER_AVAILABILITY_URL"),
        ({"WORKER_QUEUE": "availability", "WORKER_AVAILABILITY_URL": "https://host"}, "WORKER_STORAGE"),
        ({"WORKER_WEBHOOK_TIMEOUT": "2m"}, "WORKER_WEBHOOK_TIMEOUT"),
        ({"WORKER_ENGINE_USERNAME": "u"}, "WORKER_ENGINE_PASSWORD"),
        ({"WORKER_ENGINE_PASSWORD": "p"}, "WORKER_ENGINE_USERNAME"),
        ({"WORKER_MODELS_S3_ACCESS_KEY_ID": "k"}, "WORKER_MODELS_S3_SECRET_ACCESS_KEY"),
        ({"WORKER_MODELS_S3_SECRET_ACCESS_KEY": "s"}, "WORKER_MODELS_S3_ACCESS_KEY_ID"),
        ({"MANIFEST": "/no/such/manifest.yaml"}, "MANIFEST"),
    ],
)
def test_values_that_contradict_each_other_are_mistakes(environ: dict[str, str], variable: str) -> None:
    """Each value alone is fine; together they cannot work."""
    assert set(mistakes_of(**environ)) == {variable}


@pytest.mark.parametrize(
    ("environ", "chosen"),
    [
        ({}, "directory"),
        ({"WORKER_S3_BUCKET": "renders"}, "s3"),
        ({"WORKER_S3_BUCKET": "renders", "WORKER_STORAGE": "inline"}, "inline"),
        ({"WORKER_STORAGE": "presigned"}, "presigned"),
        ({"WORKER_STORAGE": "s4", "WORKER_S3_BUCKET": "renders"}, "s4"),
        ({"SALAD_MACHINE_ID": "m", "SALAD_CONTAINER_GROUP_ID": "g", "SALAD_ORGANIZATION_NAME": "o"}, "directory"),
    ],
)
def test_auto_storage_is_s3_where_there_is_a_bucket(environ: dict[str, str], chosen: str) -> None:
    """Else images go to the folder beside the embedded queue; what is named wins."""
    assert load_settings(environ).storage.chosen == chosen


def test_what_works_but_hardly_as_meant_is_a_warning() -> None:
    """An endpoint without a bucket stores nothing there, and webhooks without a secret are not signed."""
    odd = {"WORKER_S3_ENDPOINT_URL": "http://[::1]:9000", "WORKER_WEBHOOK_URL": "https://example.com/"}
    assert {w.field for w in load_settings(odd).warnings} == {"WORKER_S3_ENDPOINT_URL", "WORKER_WEBHOOK_SECRET"}


def test_a_scheduling_server_that_is_not_asked_is_a_warning() -> None:
    """Its URL alone does not make it the queue."""
    (warning,) = load_settings({"WORKER_AVAILABILITY_URL": "https://host"}).warnings
    assert warning.field == "WORKER_AVAILABILITY_URL"


def test_a_fleet_whose_images_stay_on_the_node_is_a_warning() -> None:
    """A folder that all nodes share is fine, and cannot be told from one that dies with the node."""
    fleet = {"WORKER_QUEUE": "availability", "WORKER_AVAILABILITY_URL": "https://host"}
    (warning,) = load_settings({**fleet, "WORKER_STORAGE": "directory"}).warnings
    assert warning.field == "WORKER_STORAGE"
    assert load_settings({**fleet, "WORKER_S3_BUCKET": "renders"}).warnings == ()
    assert load_settings({**fleet, "WORKER_STORAGE": "presigned"}).warnings == ()


def test_a_cache_larger_than_the_disk_is_a_warning() -> None:
    """What is written stays 2 GB below the disk; nobody is warned of the default."""
    assert load_settings({"WORKER_DISK_SIZE": "30GB"}).warnings == ()
    (warning,) = load_settings({"WORKER_DISK_SIZE": "30GB", "WORKER_MODELS_MAX_SIZE": "29GB"}).warnings
    assert str(warning).startswith("WORKER_MODELS_MAX_SIZE: has no effect beyond 28 GB")
    assert load_settings({"WORKER_DISK_SIZE": "30GB", "WORKER_MODELS_MAX_SIZE": "28GB"}).warnings == ()


def test_the_folders_of_kinds_are_told_apart() -> None:
    """Each exception by its kind."""
    models = load_settings({"WORKER_MODELS_DIRS": "vae=/data/vae  lora=/data/lora"}).models
    assert models.folders == {"vae": Path("/data/vae"), "lora": Path("/data/lora")}


def test_a_warmup_file_is_read_and_checked(tmp_path: Path) -> None:
    """A document that no job could have is told before the node is warmed up with it."""
    path = tmp_path / "warmup.json"
    path.write_text('{"params": {"prompt": "x"}}')
    assert load_settings({"WORKER_WARMUP": str(path)}).engine.warmup == str(path)
    path.write_text('{"params": {"prompt": "x", "widht": 64}}')
    assert "widht" in mistakes_of(WORKER_WARMUP=str(path))["WORKER_WARMUP"]


@pytest.mark.parametrize("content", ["", "[]", '{"a": 1}', '{"a": "sesame"}', '{"a": "whsec_sesame!"}'])
def test_a_secrets_file_must_hold_secrets(content: str, tmp_path: Path) -> None:
    """What it holds wrongly is told without what it holds."""
    path = tmp_path / "secrets.json"
    path.write_text(content)
    message = mistakes_of(WORKER_WEBHOOK_SECRETS_FILE=str(path))["WORKER_WEBHOOK_SECRETS_FILE"]
    assert "sesame" not in message


def test_a_good_secrets_file_is_accepted(tmp_path: Path) -> None:
    """Names to `whsec_` secrets."""
    path = tmp_path / "secrets.json"
    path.write_text(json.dumps({"shop": f"whsec_{KEY}"}))
    assert load_settings({"WORKER_WEBHOOK_SECRETS_FILE": str(path)}).webhook.secrets_file == path


@pytest.mark.parametrize(
    ("environ", "takes"),
    [
        ({}, True),
        ({"WORKER_QUEUE": "sqlite"}, False),
        ({"WORKER_QUEUE": "sqlite", "WORKER_API_KEY": "k"}, True),
        ({"WORKER_QUEUE": "sqlite", "WORKER_HTTP_JOBS": "on"}, True),
        ({"WORKER_QUEUE": "sqlite", "WORKER_API_KEY": "k", "WORKER_HTTP_JOBS": "off"}, False),
    ],
)
def test_http_takes_jobs_where_there_is_no_queue_or_a_key(environ: dict[str, str], takes: bool) -> None:
    """Unless the operator says otherwise."""
    assert load_settings(environ).takes_http_jobs is takes


def test_a_worker_that_no_job_could_reach_is_a_mistake() -> None:
    """Without a queue HTTP is the only way."""
    with pytest.raises(ConfigError, match="WORKER_HTTP_JOBS: is off"):
        load_settings({"WORKER_HTTP_JOBS": "off"})


@pytest.mark.parametrize(
    ("environ", "warned"),
    [
        ({}, False),
        ({"WORKER_MAX_WAIT": "10m"}, False),
        ({"WORKER_HTTP_TIMEOUT": "95s"}, False),
        ({"WORKER_HTTP_TIMEOUT": "60s"}, True),
        ({"WORKER_HTTP_TIMEOUT": "95s", "WORKER_MAX_WAIT": "2m"}, True),
        ({"WORKER_HTTP_TIMEOUT": "30s", "WORKER_QUEUE": "sqlite"}, False),
    ],
)
def test_a_job_should_not_wait_longer_than_its_caller_is_kept(environ: dict[str, str], warned: bool) -> None:
    """Else it is taken, and answered 504 though it waited only."""
    assert ["WORKER_MAX_WAIT" in str(warning) for warning in load_settings(environ).warnings] == [True] * warned

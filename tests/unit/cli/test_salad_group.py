"""`sd-worker salad-group`: a container group that SaladCloud's API takes, and that fits the settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from tests.support.container_group import CONTAINER_GROUP
from tests.unit.cli.conftest import Command, Ran
from worker.cli.salad_group import NO_DELAY_MOST, STARTUP_MOST, startup_times

Group = Callable[..., tuple[dict[str, Any], str]]
Refused = Callable[..., dict[str, str]]

MANIFEST = '[{"kind": "lora", "name": "a.safetensors", "url": "https://models.example/a"}]'
LONG = "x" * 1001


@pytest.fixture(autouse=True)
def _no_cloud(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [*os.environ]:
        if name.startswith(("AWS_", "SALAD_")):
            monkeypatch.delenv(name)


@pytest.fixture
def ran(command: Command, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Ran]:
    def run(*argv: str, **environ: str) -> Ran:
        for name, value in environ.items():
            monkeypatch.setenv(name, value)
        return command("salad-group", *argv)

    return run


@pytest.fixture
def group(ran: Callable[..., Ran]) -> Group:
    """The group as the API would read it, and what was said beside."""

    def run(*argv: str, **environ: str) -> tuple[dict[str, Any], str]:
        done = ran(*argv, **environ)
        assert done.code == 0, done.err
        found = json.loads(done.out)
        jsonschema.Draft202012Validator(CONTAINER_GROUP).validate(found)
        return found, done.err

    return run


@pytest.fixture
def refused(ran: Callable[..., Ran]) -> Refused:
    """The mistakes by what they are of."""

    def run(*argv: str, **environ: str) -> dict[str, str]:
        done = ran(*argv, **environ)
        assert (done.code, done.out) == (64, "")
        return dict(line.split(": ", 1) for line in done.err.splitlines()[1:])

    return run


def _variables(found: dict[str, Any]) -> dict[str, str]:
    return dict(found["container"]["environment_variables"])


def test_a_group_for_the_gateway(group: Group) -> None:
    """Its own authentication where the worker asks for no key, and the longest timeouts that there are."""
    found, said = group("--gateway")
    assert found["networking"] == {
        "protocol": "http",
        "port": 3000,
        "auth": True,
        "load_balancer": "least_number_of_connections",
        "single_connection_limit": False,
        "client_request_timeout": 100_000,
        "server_response_timeout": 100_000,
    }
    assert "queue_connection" not in found
    assert (found["restart_policy"], found["autostart_policy"], found["replicas"]) == ("always", True, 3)
    assert said == (
        "warning: WORKER_API_KEY: is not set: the gateway asks for a Salad-Api-Key instead\n"
        "fill in: <IMAGE>, <GPU_CLASS_ID>\n"
    )


def test_a_group_for_a_queue_of_the_platform(group: Group) -> None:
    """The worker takes its jobs itself, job documents unless they are sent elsewhere, with or without a key."""
    found, said = group("--queue", "my-queue", WORKER_HTTP_PORT="8080", WORKER_API_KEY="sesame")
    assert found["queue_connection"] == {"path": "/v1/jobs", "port": 8080, "queue_name": "my-queue"}
    assert "networking" not in found
    assert _variables(found)["WORKER_QUEUE"] == "salad"
    assert said == "fill in: <IMAGE>, <GPU_CLASS_ID>, <WORKER_API_KEY>\n"


def test_a_group_whose_nodes_fetch_their_jobs(group: Group) -> None:
    """Neither gateway nor queue; named after its server."""
    found, said = group(
        WORKER_QUEUE="availability",
        WORKER_AVAILABILITY_URL="https://jobs.example",
        WORKER_STORAGE="s4",
        WORKER_ENGINE="comfyui",
    )
    assert not {"networking", "queue_connection"} & found.keys()
    assert found["name"] == "sd-worker-comfyui"
    assert _variables(found) == {
        "WORKER_ENGINE": "comfyui",
        "WORKER_QUEUE": "availability",
        "WORKER_AVAILABILITY_URL": "https://jobs.example",
        "WORKER_STORAGE": "s4",
    }
    assert said == "fill in: <IMAGE>, <GPU_CLASS_ID>\n"


@pytest.mark.parametrize("argv", [("--gateway",), ()])
def test_probes_are_asked_of_the_worker_over_http(group: Group, argv: tuple[str, ...]) -> None:
    """The platform's address family changes with the gateway; the worker listens on both."""
    found, _ = group(*argv, WORKER_HTTP_PORT="8080")
    paths = {name: found[f"{name}_probe"]["http"] for name in ("startup", "liveness", "readiness")}
    assert {name: http["path"] for name, http in paths.items()} == {
        "startup": "/startup",
        "liveness": "/live",
        "readiness": "/ready",
    }
    assert {http["port"] for http in paths.values()} == {8080}


@pytest.mark.parametrize(("host", "over"), [("0.0.0.0", "http"), ("127.0.0.1", "exec"), ("::1", "exec")])
def test_a_worker_that_listens_for_itself_is_probed_by_a_command(group: Group, host: str, over: str) -> None:
    """Nobody else reaches it there; without the gateway probes come by IPv4."""
    found, _ = group(WORKER_HTTP_HOST=host)
    probe = found["liveness_probe"]
    assert over in probe
    assert over == "http" or probe["exec"]["command"] == ["sd-worker", "probe", "live"]


def test_disk_and_memory_are_those_of_the_settings(group: Group) -> None:
    """The server may hold 90 % of the container's memory."""
    found, _ = group(WORKER_DISK_SIZE="100GiB", WORKER_ENGINE_MEMORY_MAX="28GiB")
    resources = found["container"]["resources"]
    assert resources["storage_amount"] == 100 * 2**30
    assert resources["memory"] == 31_858
    assert resources["gpu_classes"] == ["<GPU_CLASS_ID>"]


def test_nothing_secret_is_printed(group: Group, tmp_path: Path) -> None:
    """Neither on stdout nor beside: whatever holds a credential is a placeholder as a whole, and told."""
    key = tmp_path / "key"
    key.write_text("sesame-1")
    found, said = group(
        "--gateway",
        WORKER_API_KEY_FILE=str(key),
        HF_TOKEN="sesame-2",
        WORKER_WEBHOOK_URL="https://user:sesame-3@hooks.example/",
        WORKER_MODELS_SOURCE="https://cdn.example/{name}?token=sesame-4",
        WORKER_S3_BUCKET="renders",
        WORKER_ENGINE="comfyui",
        WEBHOOK_SECRET="c2VzYW1lLTVzZXNhbWUtNXNlc2FtZS01",
        AWS_ACCESS_KEY_ID="sesame-6",
        AWS_SESSION_TOKEN="sesame-7",
        AWS_REGION="eu-central-1",
    )
    blank = {name for name, value in _variables(found).items() if value == f"<{name}>"}
    assert blank == {
        "WORKER_API_KEY",
        "HF_TOKEN",
        "WORKER_WEBHOOK_URL",
        "WORKER_MODELS_SOURCE",
        "WEBHOOK_SECRET",
        "AWS_ACCESS_KEY_ID",
        "AWS_SECRET_ACCESS_KEY",
    }
    assert {name for name in _variables(found) if name not in blank} == {
        "WORKER_S3_BUCKET",
        "WORKER_ENGINE",
        "AWS_REGION",
    }
    assert found["networking"]["auth"] is False
    assert "sesame" not in json.dumps(found) + said
    assert "c2VzYW1l" not in json.dumps(found) + said
    assert "warning: WORKER_API_KEY_FILE: is not on the nodes: give WORKER_API_KEY its value" in said
    assert "warning: WORKER_WEBHOOK_URL: holds credentials: give it its value" in said
    assert "warning: AWS_SESSION_TOKEN: is left out" in said
    assert all(f"<{name}>" in said.splitlines()[-1] for name in blank)


def test_a_bucket_needs_a_key_pair_on_the_nodes(group: Group) -> None:
    """Which is not in this environment where a profile holds it."""
    found, _ = group("--gateway", WORKER_S3_BUCKET="renders", AWS_PROFILE="me")
    assert _variables(found) == {
        "WORKER_S3_BUCKET": "renders",
        "AWS_ACCESS_KEY_ID": "<AWS_ACCESS_KEY_ID>",
        "AWS_SECRET_ACCESS_KEY": "<AWS_SECRET_ACCESS_KEY>",
    }


def test_what_is_each_nodes_own_stays_behind(group: Group) -> None:
    """As does what the platform sets, what is empty, and what is no setting."""
    found, said = group(
        WORKER_NODE_ID="me",
        WORKER_PLATFORM="plain",
        SALAD_MACHINE_ID="m",
        SALAD_ORGANIZATION_NAME="acme",
        WORKER_LOG_LEVEL="",
        WORKER_QUEUE_WINDOW=" 2 ",
        WORKER_UNHEARD_OF="1",
        WORKER_HTTP_PORT="tcp://10.0.0.1:80",
        LRU_CACHE_SIZE_GB="20",
    )
    assert _variables(found) == {"WORKER_QUEUE_WINDOW": "2", "LRU_CACHE_SIZE_GB": "20"}
    assert "warning: WORKER_NODE_ID: is left out: each node has its own" in said
    assert "warning: WORKER_UNHEARD_OF: is unknown and has no effect" in said


@pytest.mark.parametrize(
    ("environ", "says"),
    [
        ({"WORKER_MODELS_MANIFEST": f'[{{"kind": "lora", "name": "{LONG}"}}]'}, "its path or URL"),
        ({"WORKER_MODELS_MANIFEST": "[\n]"}, "has a line break"),
        ({"WORKER_WARMUP": f'{{"params": {{"prompt": "{LONG}"}}}}'}, "its path or URL"),
        ({"WORKER_API_KEY": LONG}, "set it in the image"),
        ({"WORKER_ENGINE_COMMAND": f"python {LONG}"}, "the image's CMD"),
        ({"CKPT_URLS": f"https://models.example/{LONG}"}, "WORKER_MODELS_MANIFEST"),
    ],
)
def test_a_value_that_the_platform_does_not_take_is_told_with_a_way_out(
    refused: Refused, environ: dict[str, str], says: str
) -> None:
    """By its name and never by its value."""
    (found,) = refused("--gateway", **environ).items()
    assert found[0] in environ
    assert says in found[1]
    assert LONG not in found[1]


@pytest.mark.parametrize(
    ("argv", "environ", "named"),
    [
        (("--gateway", "--queue", "jobs"), {}, "--queue"),
        (("--queue", "My_Queue"), {}, "--queue"),
        (("--queue", "a"), {}, "--queue"),
        ((), {"WORKER_HTTP_PORT": "0"}, "WORKER_HTTP_PORT"),
        (("--gateway",), {"WORKER_HTTP_HOST": "0.0.0.0"}, "WORKER_HTTP_HOST"),
        (("--gateway",), {"WORKER_QUEUE": "sqlite"}, "WORKER_HTTP_JOBS"),
        (("--queue", "jobs"), {"WORKER_QUEUE": "sqlite"}, "WORKER_QUEUE"),
        ((), {"WORKER_QUEUE": "salad"}, "WORKER_QUEUE"),
        ((), {"WORKER_DISK_SIZE": "300GB"}, "WORKER_DISK_SIZE"),
        ((), {"WORKER_ENGINE_MEMORY_MAX": "60GB"}, "WORKER_ENGINE_MEMORY_MAX"),
        ((), {"WORKER_QUEUE": "kafka"}, "WORKER_QUEUE"),
    ],
)
def test_what_could_never_work_there_is_a_mistake(
    refused: Refused, argv: tuple[str, ...], environ: dict[str, str], named: str
) -> None:
    """Exit 64 and nothing on stdout."""
    assert set(refused(*argv, **environ)) == {named}


def test_all_mistakes_are_told_at_once(refused: Refused) -> None:
    """Of the settings against the platform, as of the settings alone."""
    found = refused("--gateway", WORKER_HTTP_PORT="0", WORKER_DISK_SIZE="300GB", WORKER_HTTP_HOST="::1")
    assert set(found) == {"WORKER_HTTP_PORT", "WORKER_DISK_SIZE", "WORKER_HTTP_HOST"}


def test_the_startup_probe_gives_the_server_its_time(group: Group) -> None:
    """Without anything to fetch that is all; what is fetched before comes on top, and what is too long is told."""
    probe = group()[0]["startup_probe"]
    assert (probe["initial_delay_seconds"], probe["period_seconds"], probe["failure_threshold"]) == (0, 60, 20)
    found, said = group(WORKER_MODELS_MANIFEST=MANIFEST, WORKER_MODELS_START_TIMEOUT="30m")
    assert (found["startup_probe"]["initial_delay_seconds"], found["startup_probe"]["period_seconds"]) == (600, 120)
    assert "takes a startup probe that begins after 10 minutes" in said
    assert "the node is moved" not in said
    found, said = group(WORKER_MODELS_MANIFEST=MANIFEST, WORKER_MODELS_START_TIMEOUT="")
    assert found["startup_probe"]["initial_delay_seconds"] == 1200
    assert "come to 70 minutes; the longest startup probe ends after 60 minutes, and the node is moved then" in said


def test_a_startup_probe_lasts_as_long_as_it_must_and_waits_no_longer() -> None:
    """Within the platform's limits, whatever the settings ask for."""
    for seconds in (*range(1, 3700, 7), 2400, 2401, 3600, 36_000):
        needs = timedelta(seconds=seconds)
        delay, period = startup_times(needs)
        lasts = timedelta(seconds=delay + 20 * period)
        assert min(needs, STARTUP_MOST) <= lasts < min(needs, STARTUP_MOST) + timedelta(seconds=20)
        assert 0 <= delay <= 1200
        assert 1 <= period <= 120
        assert (delay > 0) is (needs > NO_DELAY_MOST)


def test_a_timeout_that_the_gateway_does_not_wait_for_is_doubtful(group: Group) -> None:
    """It cuts an answer off after 100 s; the platform's default for the worker is below."""
    assert "WORKER_HTTP_TIMEOUT" not in group("--gateway")[1]
    assert "warning: WORKER_HTTP_TIMEOUT: is not below the 100 s" in group("--gateway", WORKER_HTTP_TIMEOUT="2m")[1]

"""The Dockerfiles: what a builder would not notice, and a node would."""

from __future__ import annotations

import shlex

import pytest

from tests.support.dockerfiles import ENGINES, ROOT, dockerfile
from worker.cli import launch
from worker.cli.run import with_command
from worker.settings import load_settings
from worker.settings.groups import PORTS

pytestmark = pytest.mark.parametrize("engine", ENGINES)


def test_the_command_that_is_checked_is_the_one_that_runs(engine: str) -> None:
    """A Dockerfile cannot refer to its CMD, so the words stand there twice."""
    checks = [rest for rest in dockerfile(engine).all("RUN") if rest.startswith("sd-worker check --image")]
    assert [shlex.split(rest.partition(" -- ")[2]) for rest in checks] == [dockerfile(engine).words("CMD")]


def test_the_worker_is_the_entrypoint_and_tells_its_health(engine: str) -> None:
    """In exec form: a shell in between would be the first process, and would not pass signals on."""
    file = dockerfile(engine)
    assert file.words("ENTRYPOINT") == ["sd-worker", "run", "--"]
    options, _, probe = file.last("HEALTHCHECK").partition(" CMD ")
    assert probe == '["sd-worker", "probe", "live"]'
    assert "--start-period=" in options
    assert file.last("EXPOSE") == str(load_settings({}).http.port)


def test_the_settings_of_the_image_are_right(engine: str) -> None:
    """No mistake, nothing doubtful, and the server on loopback where the worker looks for it."""
    file = dockerfile(engine)
    settings = with_command(load_settings(file.variables("ENV")), tuple(file.words("CMD")))
    assert not settings.warnings
    assert settings.engine.kind == engine
    assert settings.engine.addresses == (f"http://127.0.0.1:{launch.port_of(settings.engine.command)}",)
    assert launch.port_of(settings.engine.command) == PORTS[engine]


def test_variables_of_the_base_have_no_effect_unseen(engine: str) -> None:
    """comfyui-api's image names a command of its own, which would stand beside ours."""
    base = {"CMD": "comfy launch -- --listen *", "COMFY_HOME": "/opt/ComfyUI", "BASE": "", "OUTPUT_DIR": "/out"}
    base |= {"MODEL_DIR": "/opt/ComfyUI/models", "INPUT_DIR": "/in"} if engine == "comfyui" else {}
    environ = base | dockerfile(engine).variables("ENV") | {"WORKER_MODELS_DIR": str(ROOT)}
    honoured = [one.variable for one in load_settings(environ).inherited if one.honoured]
    assert honoured == []


def test_images_tell_what_they_are(engine: str) -> None:
    """By the labels that registries and scanners read; the base is named as it was built on."""
    labels = dockerfile(engine).variables("LABEL")
    prefix = "org.opencontainers.image."
    assert labels[f"{prefix}title"] == f"sd-worker-{engine}"
    assert labels[f"{prefix}base.name"] == "${BASE}"
    assert {f"{prefix}{name}" for name in ("description", "licenses", "version", "revision")} <= labels.keys()


def test_no_secret_is_a_build_argument(engine: str) -> None:
    """Arguments stay in an image's history; secrets are mounted for one instruction."""
    file = dockerfile(engine)
    assert not [name for name in file.arguments() if "TOKEN" in name or "KEY" in name or "SECRET" in name]
    (bake,) = (rest for rest in file.all("RUN") if "/run/bake" in rest and "MODELS" in rest)
    assert all(f"type=secret,id={name}," in bake for name in ("hf_token", "civitai_token", "aws_credentials"))


def test_the_base_is_pinned_and_the_binary_built_on_an_old_glibc(engine: str) -> None:
    """Both can be replaced by build arguments."""
    file = dockerfile(engine)
    assert file.all("FROM") == ["${BUILDER} AS binary", "${BASE}"]
    base, builder = file.arguments()["BASE"], file.arguments()["BUILDER"]
    assert base.rpartition(":")[2] not in ("latest", base)
    assert builder.startswith("quay.io/pypa/manylinux_2_28_x86_64:2")
    assert "make binary GLIBC=2.31 PYTHON=python3.11" in file.all("RUN")


def test_only_a_base_that_needs_it_runs_as_root(engine: str) -> None:
    """Automatic1111's own entrypoint does."""
    user = dockerfile(engine).last("USER")
    assert user == "0" if engine == "a1111" else int(user.partition(":")[0]) >= 1000

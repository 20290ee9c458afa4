"""The scripts that run while an image is built, with a stand-in for the binary."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

import pytest

from tests.support.dockerfiles import ROOT

HASH = "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
SAYS = '#!/bin/sh\necho "$* ${HF_TOKEN_FILE-} ${CIVITAI_TOKEN_FILE-} ${AWS_SHARED_CREDENTIALS_FILE-}"\n'


def program(folder: Path, text: str) -> Path:
    path = folder / "sd-worker"
    path.write_text(text)
    path.chmod(0o755)
    return path


def ran(script: str, *arguments: str, **environ: str) -> subprocess.CompletedProcess[str]:
    command = ["sh", str(ROOT / "docker" / script), *arguments]
    return subprocess.run(command, env=os.environ | environ, capture_output=True, text=True, timeout=60)


@pytest.fixture
def path(tmp_path: Path) -> str:
    """A search path on which `sd-worker` says what it is given."""
    program(tmp_path, SAYS)
    return f"{tmp_path}:{os.environ['PATH']}"


@pytest.mark.parametrize(
    ("word", "arguments"),
    [
        ("hf://org/repo/model.safetensors@main", "-- hf://org/repo/model.safetensors@main"),
        ("checkpoint=https://host/a?b=c", "--kind checkpoint -- https://host/a?b=c"),
        ("https://host/a?kind=lora", "-- https://host/a?kind=lora"),
        (f"clip_vision=s3://b/k#sha256={HASH}", f"--sha256 {HASH} --kind clip_vision -- s3://b/k"),
        ("urn:air:sdxl:lora:civitai:82098@87153", "-- urn:air:sdxl:lora:civitai:82098@87153"),
        ("lora/ink.safetensors", "-- lora/ink.safetensors"),
        ("https://host/*", "-- https://host/*"),
    ],
)
def test_each_word_is_a_model(word: str, arguments: str, path: str, tmp_path: Path) -> None:
    """With its kind in front and its hash behind, where they are given."""
    done = ran("bake", f"{word}  {word}", PATH=path, BAKE_SECRETS=str(tmp_path / "none"))
    assert done.stdout.splitlines() == [f"models pull --bake {arguments}   "] * 2


def test_nothing_to_bake_is_fine(path: str) -> None:
    """An image without models is the default."""
    done = ran("bake", "", PATH=path)
    assert (done.returncode, done.stdout) == (0, "")


def test_a_model_that_does_not_come_ends_the_build(tmp_path: Path) -> None:
    """At the first one: what a node would lack shows in the build."""
    program(tmp_path, "#!/bin/sh\necho tried\nexit 1\n")
    done = ran("bake", "civitai://1 civitai://2", PATH=f"{tmp_path}:{os.environ['PATH']}")
    assert (done.returncode, done.stdout) == (1, "tried\n")


def test_secrets_are_used_where_they_are_mounted(path: str, tmp_path: Path) -> None:
    """By their files, so that they stand in no environment."""
    (tmp_path / "hf_token").write_text("hf_secret")
    (tmp_path / "aws_credentials").write_text("[default]")
    done = ran("bake", "civitai://1", PATH=path, BAKE_SECRETS=str(tmp_path))
    assert done.stdout == f"models pull --bake -- civitai://1 {tmp_path}/hf_token  {tmp_path}/aws_credentials\n"


def test_only_the_shell_program_of_the_binary_stays(tmp_path: Path) -> None:
    """What is unpacked already is not in the image a second time."""
    binary = tmp_path / "dist-sd-worker"
    stub = '#!/bin/sh\nOFFSET=00   \necho "$SD_WORKER_BUNDLE_DIR $*" >>"${0%/*}/calls"\nexit 0\n'
    stub = stub.replace("00", str(len(stub) + 1))
    binary.write_bytes(stub.encode() + b"\x1f\x8b\x00 the archive")
    binary.chmod(0o755)
    (tmp_path / "bin").mkdir()
    environ = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "INSTALL_TARGET": str(tmp_path / "bin/sd-worker")}
    done = ran("install", str(binary), **environ)
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "bin/sd-worker").read_text() == stub
    assert (tmp_path / "calls").read_text() == "/opt/sd-worker version\n"
    assert (tmp_path / "bin/calls").read_text() == " version\n"

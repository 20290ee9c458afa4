"""`sd-worker check --image`: what can be known while an image is built."""

from __future__ import annotations

import errno
import platform
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.unit.cli.conftest import Command
from worker.cli import local
from worker.settings import load_settings


def findings(**environ: str) -> dict[str, local.Finding]:
    return dict(local.image_findings(load_settings(environ)))


def test_a_good_image_passes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """Neither server nor store is needed."""
    monkeypatch.setenv("WORKER_QUEUE", "sqlite")
    monkeypatch.setenv("WORKER_HTTP_PORT", "0")
    ran = command("check", "--image")
    assert ran.code == 0
    assert [line.split("\t")[1].strip() for line in ran.out.splitlines()] == [
        *("settings", "libc", "user", "queue", "storage", "temp", "port")
    ]


def test_a_taken_port_fails(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """The server of the image must not listen where the probes are answered."""
    with socket.socket(socket.AF_INET6) as taken:
        taken.bind(("::", 0))
        taken.listen()
        monkeypatch.setenv("WORKER_HTTP_PORT", str(taken.getsockname()[1]))
        ran = command("check", "--image")
    assert ran.code == 1
    assert "FAILED\tport" in ran.out


def test_a_kernel_without_ipv6_is_fine(monkeypatch: pytest.MonkeyPatch) -> None:
    """The daemon listens on IPv4 there."""
    real = socket.socket

    def without_ipv6(family: int, *rest: Any) -> socket.socket:
        if family == socket.AF_INET6:
            raise OSError(errno.EAFNOSUPPORT, "Address family not supported by protocol")
        return real(family, *rest)

    monkeypatch.setattr(socket, "socket", without_ipv6)
    assert findings(WORKER_HTTP_PORT="0")["port"] == local.Finding.ok("0.0.0.0 port 0 is free")


def test_an_address_of_another_machine_fails() -> None:
    """It cannot be listened on."""
    assert findings(WORKER_HTTP_HOST="192.0.2.1")["port"].verdict == "FAILED"


def test_a_folder_that_cannot_be_written_fails() -> None:
    """By the nearest folder that exists."""
    folders = {"WORKER_STORAGE_DIRECTORY": "/proc/self/outputs", "WORKER_SQLITE_PATH": "/proc/sd/q.db"}
    found = findings(WORKER_QUEUE="sqlite", **folders)
    assert found["storage"].verdict == found["queue"].verdict == "FAILED"
    assert "/proc" in found["storage"].text


def test_a_folder_is_asked_for_only_where_it_is_used(tmp_path: Path) -> None:
    """With a bucket nothing is written beside the queue, and without a queue images go into answers."""
    assert "storage" not in findings(WORKER_QUEUE="sqlite", WORKER_S3_BUCKET="bucket")
    assert not {"queue", "storage"} & findings().keys()
    found = findings(WORKER_QUEUE="sqlite", WORKER_STORAGE_DIRECTORY=str(tmp_path))
    assert found["storage"].text == f"{tmp_path} can be written"


@pytest.mark.parametrize(
    ("libc", "verdict"), [(("glibc", "2.36"), "ok"), (("glibc", "2.17"), "FAILED"), (("", ""), "note")]
)
def test_libc_is_told(libc: tuple[str, str], verdict: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Too old a glibc cannot load our wheels; another libc is worth knowing."""
    monkeypatch.setattr(platform, "libc_ver", lambda: libc)
    assert findings()["libc"].verdict == verdict


def test_the_servers_command_must_be_there() -> None:
    """A wrong base image fails the build and not the node."""
    assert "command" not in findings(WORKER_HTTP_PORT="0")
    good = findings(WORKER_HTTP_PORT="0", WORKER_ENGINE_COMMAND="sh -c 'exec python'")["command"]
    assert (good.verdict, good.text.endswith("/sh")) == ("ok", True)
    bad = findings(WORKER_HTTP_PORT="0", WORKER_ENGINE_COMMAND="no-such-server --api")["command"]
    assert bad.verdict == "FAILED"
    assert "no-such-server" in bad.text
    nobody = findings(WORKER_HTTP_PORT="0", WORKER_ENGINE_COMMAND="sh", WORKER_ENGINE_USER="no-such-user")["command"]
    assert nobody.verdict == "FAILED"
    assert "WORKER_ENGINE_USER" in nobody.text

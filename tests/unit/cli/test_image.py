"""`sd-worker check --image`: what can be known while an image is built."""

from __future__ import annotations

import errno
import platform
import shlex
import socket
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from tests.unit.cli.conftest import Command
from worker.cli import launch, local
from worker.settings import load_settings
from worker.simulators import free_port


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


def in_image(*command: str, **environ: str) -> dict[str, local.Finding]:
    """Findings about a server's command of these words."""
    return findings(WORKER_HTTP_PORT="0", WORKER_ENGINE_COMMAND=shlex.join(command), **environ)


def test_the_script_must_be_there(tmp_path: Path) -> None:
    """Every image has a Python; what tells a wrong base is the server's own file."""
    missing = in_image("sh", "main.py", "--port", "7860", WORKER_ENGINE="sdnext")["command"]
    assert (missing.verdict, "'main.py' is not found" in missing.text) == ("FAILED", True)
    (tmp_path / "main.py").touch()
    found = in_image("sh", "main.py", "--port", "7860", WORKER_ENGINE="sdnext")["command"]
    assert (found.verdict, found.text.endswith("/sh, main.py")) == ("ok", True)


def test_the_python_behind_an_entrypoint_must_be_there() -> None:
    """Where the image's own entrypoint stands before it."""
    found = in_image("sh", "python9.9", "-u", "webui.py")["command"]
    assert (found.verdict, found.text) == ("FAILED", "'python9.9' is not found")


@pytest.mark.parametrize("port", [["--port", "7861"], ["--port=7861"]])
def test_the_server_must_be_looked_for_where_it_listens(port: list[str]) -> None:
    """Else the node would wait for it until it is given up."""
    found = in_image("sh", *port, WORKER_ENGINE="sdnext")["server"]
    assert (found.verdict, "port 7861" in found.text, "WORKER_ENGINE_URL" in found.text) == ("FAILED", True, True)
    at = in_image("sh", *port, WORKER_ENGINE_URL="http://127.0.0.1:7861")["server"]
    assert at == local.Finding.ok("looked for at http://127.0.0.1:7861")


def test_the_server_must_not_listen_where_the_worker_does() -> None:
    """One of the two could not start."""
    environ = {"WORKER_HTTP_PORT": str(free_port()), "WORKER_ENGINE_COMMAND": "sh"}
    found = findings(WORKER_ENGINE_URL=f"http://127.0.0.1:{environ['WORKER_HTTP_PORT']}", **environ)["server"]
    assert (found.verdict, "WORKER_HTTP_PORT" in found.text) == ("FAILED", True)
    assert findings(WORKER_ENGINE_URL="http://images.example", **environ)["server"].verdict == "ok"


@pytest.mark.parametrize(
    ("command", "script", "pythons", "port"),
    [
        (["python", "-u", "main.py", "--listen=::1", "--port=8188"], "main.py", [], 8188),
        (["/docker/entrypoint.sh", "python", "-u", "webui.py", "--port", "7860"], "webui.py", ["python"], 7860),
        (
            ["runuser", "-u", "webui-user", "--", "/opt/conda/bin/python3", "a.py"],
            "a.py",
            ["/opt/conda/bin/python3"],
            None,
        ),
        (["sh", "-c", "exec python main.py --port 1", "--port"], None, [], None),
        (["server", "--port", "many"], None, [], None),
    ],
)
def test_what_a_command_tells(command: list[str], script: str | None, pythons: list[str], port: int | None) -> None:
    """By its words alone; a text of a shell is not looked into."""
    assert launch.script_of(command) == script
    assert list(launch.interpreters_of(command)) == pythons
    assert launch.port_of(command) == port


def test_the_command_stands_after_the_dashes(command: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    """As it will be given to `run`, so that a Dockerfile checks the very command that it names."""
    monkeypatch.setenv("WORKER_HTTP_PORT", "0")
    ran = command("check", "--image", "--", "no-such-server", "--port", "7860")
    assert ran.code == 1
    assert "no-such-server" in ran.out


def test_a_user_without_a_home_is_worth_knowing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Servers keep their caches there."""
    monkeypatch.setenv("HOME", "/proc/self")
    assert findings()["user"].verdict == "note"
    monkeypatch.setattr(Path, "home", Mock(side_effect=RuntimeError))
    assert "no home" in findings()["user"].text

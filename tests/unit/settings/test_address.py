"""Where the probes are answered, read without the settings."""

from __future__ import annotations

import pytest

from worker.settings import load_settings
from worker.settings.address import probe_address


@pytest.mark.parametrize(
    ("environ", "hosts", "port"),
    [
        ({}, ("::1", "127.0.0.1"), 3000),
        ({"WORKER_HTTP_PORT": " 8080 ", "WORKER_HTTP_HOST": "0.0.0.0"}, ("::1", "127.0.0.1"), 8080),
        ({"WORKER_HTTP_PORT": "tcp://10.0.0.1:3000"}, ("::1", "127.0.0.1"), 3000),
        ({"WORKER_HTTP_HOST": "10.0.0.5"}, ("10.0.0.5",), 3000),
        ({"WORKER_HTTP_PORT": "http"}, ("::1", "127.0.0.1"), 0),
        ({"WORKER_HTTP_PORT": "70000"}, ("::1", "127.0.0.1"), 0),
    ],
)
def test_the_probe_finds_the_daemon(environ: dict[str, str], hosts: tuple[str, ...], port: int) -> None:
    """Loopback for a daemon that listens everywhere, else the address it listens on."""
    assert probe_address(environ) == (hosts, port)


@pytest.mark.parametrize("environ", [{}, {"WORKER_HTTP_PORT": "8080"}, {"WORKER_HTTP_PORT": "tcp://10.0.0.1:1"}])
def test_probe_and_daemon_agree_on_the_port(environ: dict[str, str]) -> None:
    """The two readers of the variable never differ."""
    assert probe_address(environ)[1] == load_settings(environ).http.port

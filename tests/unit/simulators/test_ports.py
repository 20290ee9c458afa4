from __future__ import annotations

import socket
from pathlib import Path

import pytest

from worker.simulators import free_port, ports


def test_a_free_port_is_none_that_the_kernel_gives_to_others(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    said = tmp_path / "range"
    said.write_text("20000\t60999\n")
    monkeypatch.setattr(ports, "RANGE_FILE", said)
    assert all(ports.LOWEST <= free_port() < 20_000 for _ in range(20))


def test_where_the_kernel_does_not_say_its_range_the_usual_one_is_left_alone(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(ports, "RANGE_FILE", tmp_path / "none")
    assert all(ports.LOWEST <= free_port() <= 32_767 for _ in range(20))


def test_no_port_is_given_twice_and_none_that_is_taken(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    first = free_port(8)
    monkeypatch.setattr(ports, "_given", {first, first + 3, first + 7})
    monkeypatch.setattr(ports, "LOWEST", first)
    monkeypatch.setattr(ports, "_highest", lambda: first + 7)
    with (
        socket.create_server(("127.0.0.1", first + 1)),
        socket.create_server(("::1", first + 5), family=socket.AF_INET6),
    ):
        assert {free_port() for _ in range(3)} == {first + 2, first + 4, first + 6}
        with pytest.raises(OSError, match=f"no port from {first} to {first + 7} is free"):
            free_port()


def test_neighbours_are_free_together() -> None:
    first = free_port(3)
    with (
        socket.create_server(("::1", first), family=socket.AF_INET6),
        socket.create_server(("::1", first + 1), family=socket.AF_INET6),
        socket.create_server(("::1", first + 2), family=socket.AF_INET6),
    ):
        assert free_port() not in range(first, first + 3)

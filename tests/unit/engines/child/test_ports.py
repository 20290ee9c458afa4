"""Who listens where, as the kernel's tables tell it."""

from __future__ import annotations

import ipaddress
import socket
from pathlib import Path

import pytest

from worker.engines.child import ports, processes
from worker.engines.child.ports import Listener, Misplaced, Place, misplaced, parse_address, parse_listeners, place_of
from worker.simulators import free_port

TCP = """\
  sl  local_address rem_address   st tx_queue rx_queue tr tm->when retrnsmt   uid  timeout inode
   0: 0100007F:1EB4 00000000:0000 0A 00000000:00000000 00:00000000 00000000     0        0 111 1 0 100 0 0 10 0
   1: 0100007F:1EB4 0100007F:C350 01 00000000:00000000 00:00000000 00000000     0        0 112 1 0 20 4 30 10 -1
"""
TCP6 = """\
  sl  local_address                         remote_address                        st tx_queue rx_queue tr inode
   0: 00000000000000000000000001000000:1EB5 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 113 1 0
   1: 0000000000000000FFFF00000100007F:1EB6 00000000000000000000000000000000:0000 0A 0:0 00:0 0 0 0 114 1 0
"""


def at(address: str, port: int, inode: int) -> Listener:
    return Listener(ports._plain(ipaddress.ip_address(address)), port, inode)


def test_the_kernels_table_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """Listening sockets only; words in little-endian order; IPv4 within IPv6 is IPv4."""
    monkeypatch.setattr("sys.byteorder", "little")
    assert parse_listeners(TCP) == [at("127.0.0.1", 7860, 111)]
    assert parse_listeners(TCP6) == [at("::1", 7861, 113), at("127.0.0.1", 7862, 114)]
    assert parse_address("B80D01200000000000000000EF000000") == ipaddress.ip_address("2001:db8::ef")


def test_a_big_endian_machine_writes_words_as_they_are(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel prints its own order of bytes."""
    monkeypatch.setattr("sys.byteorder", "big")
    assert parse_address("7F000001") == ipaddress.ip_address("127.0.0.1")


@pytest.mark.parametrize(
    ("url", "address", "reached"),
    [
        ("http://[::1]:7860", "::1", True),
        ("http://[::1]:7860", "127.0.0.1", True),
        ("http://[::1]:7860", "::", True),
        ("http://[::1]:7860", "0.0.0.0", True),
        ("http://[::1]:7860", "10.0.0.5", False),
        ("http://127.0.0.1:7860", "127.0.0.2", True),
        ("http://10.0.0.5:7860", "10.0.0.5", True),
        ("http://10.0.0.5:7860", "127.0.0.1", False),
        ("http://0.0.0.0:7860", "10.0.0.5", True),
        ("http://localhost:7860", "::1", True),
        ("http://[::1]:7861", "::1", False),
    ],
)
def test_an_address_is_reached_by_what_may_answer_there(url: str, address: str, reached: bool) -> None:
    """Both loopbacks stand for each other, and who listens everywhere listens here."""
    assert place_of(url).reached_by(at(address, 7860, 1)) is reached


@pytest.mark.parametrize(
    ("url", "place", "local"),
    [
        ("http://[::1]:7860", Place("::1", 7860), True),
        ("http://localhost", Place("localhost", 80), True),
        ("https://gpu.example", Place("gpu.example", 443), False),
        ("http://10.0.0.5:1", Place("10.0.0.5", 1), False),
    ],
)
def test_a_url_names_a_place(url: str, place: Place, local: bool) -> None:
    """With the scheme's own port where it has none."""
    assert place_of(url) == place
    assert place.local is local


HERE = [Place("::1", 7860)]


def test_a_server_at_its_place_is_not_misplaced() -> None:
    """Whatever else it listens on, and whoever listens elsewhere."""
    found = [at("::", 7860, 1), at("127.0.0.1", 9000, 1), at("::1", 80, 5)]
    assert misplaced(HERE, found, {1}) is None
    assert misplaced(HERE, [], set()) is None
    assert misplaced([Place("::1", 7860), Place("::1", 8188)], [at("0.0.0.0", 8188, 2)], {2}) is None


def test_a_server_beside_its_place_is_misplaced() -> None:
    """Its port is another's, or nobody's while it took a neighbour as gradio does."""
    other = misplaced(HERE, [at("::1", 7860, 9), at("::1", 7861, 1)], {1})
    assert other is not None
    assert other == Misplaced(7860, frozenset({9}), (7861,))
    moved = misplaced(HERE, [at("::1", 7861, 1)], {1})
    assert str(moved) == "nothing listens on port 7860; the server listens on 7861"


def test_a_far_port_while_it_starts_means_nothing() -> None:
    """Plugins open ports of their own before the server listens."""
    assert misplaced(HERE, [at("::1", 29500, 1)], {1}) is None


def test_the_address_that_is_tried_first_decides() -> None:
    """A stranger at ``[::1]`` answers before our server at ``127.0.0.1`` is asked."""
    found = [at("::1", 7860, 9), at("127.0.0.1", 7860, 1)]
    assert misplaced(HERE, found, {1}) is not None
    assert misplaced([Place("127.0.0.1", 7860)], found, {1}) is None


def test_without_proc_a_taken_port_is_found_by_trying(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who holds it cannot be told then."""
    monkeypatch.setattr(processes, "PROC", tmp_path)
    port = free_port()
    with socket.create_server(("::1", port), family=socket.AF_INET6):
        assert ports.taken([Place("::1", port)]) == f"port {port} is in use"
        assert ports.taken([Place("localhost", port)]) == f"port {port} is in use"
    assert ports.taken([Place("::1", port)]) is None
    assert ports.taken([Place("127.0.0.2", port)]) is None


def test_the_holder_of_a_port_is_named() -> None:
    """By name and number; where it cannot be seen that is said too."""
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        own = processes.look_at(__import__("os").getpid())
        assert ports.taken([Place("::1", port)]) == f"port {port} is held by {own}"
    assert ports.held(7860, None) == "port 7860 is held by another process"

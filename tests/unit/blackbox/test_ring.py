"""The file of the latest records: what stands there after any end of its writer."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from worker.blackbox.ring import MOST, SIZE, SLOT, SLOTS, Ring


@pytest.fixture(name="path")
def a_path(tmp_path: Path) -> Path:
    return tmp_path / "blackbox"


def written(path: Path, *texts: bytes) -> None:
    ring = Ring(path)
    for text in texts:
        ring.append(text)
    ring.close()


def read(path: Path) -> list[bytes]:
    ring = Ring(path)
    ring.close()
    return list(ring.records)


def numbered(first: int, end: int) -> list[bytes]:
    return [b"record %d" % number for number in range(first, end)]


def test_the_latest_records_stand_there_in_their_order(path: Path) -> None:
    """Over several runs; the file never grows."""
    assert read(path) == []
    written(path, *numbered(0, 20))
    written(path, *numbered(20, 50))
    assert read(path) == numbered(50 - SLOTS, 50)
    assert path.stat().st_size == SIZE


def test_a_record_that_was_written_in_part_is_none(path: Path) -> None:
    """Its end is that of the record which stood there before, or zeros."""
    written(path, *numbered(0, SLOTS + 2))
    for at in (0, SLOT):
        with path.open("r+b") as file:
            file.seek(at + 24)
            file.write(b"torn")
    assert read(path) == numbered(2, SLOTS)
    written(path, b"next")
    assert read(path)[-1] == b"next"


@pytest.mark.parametrize("content", [b"", b"not a box", os.urandom(SIZE), os.urandom(3 * SIZE), b"\xff" * SIZE])
def test_whatever_stood_in_the_file_it_can_be_used(path: Path, content: bytes) -> None:
    """A damaged file costs its records."""
    path.write_bytes(content)
    assert read(path) == []
    written(path, b"one")
    assert read(path) == [b"one"]
    assert path.stat().st_size == SIZE


def test_a_record_in_anothers_place_is_none(path: Path) -> None:
    """As where a file was put together from two."""
    written(path, *numbered(0, 2))
    whole = path.read_bytes()
    path.write_bytes(whole[SLOT : 2 * SLOT] + whole[SLOT:])
    assert read(path) == numbered(1, 2)


def test_two_cannot_have_it(path: Path) -> None:
    """Until the first has closed it; what is written after that is dropped."""
    first = Ring(path)
    with pytest.raises(BlockingIOError):
        Ring(path)
    first.close()
    first.close()
    first.append(b"late")
    assert read(path) == []


def test_a_record_has_at_most_one_slot(path: Path) -> None:
    """The longest fits, one byte more is a mistake of ours."""
    ring = Ring(path)
    ring.append(b"x" * MOST)
    with pytest.raises(ValueError, match="at most"):
        ring.append(b"x" * (MOST + 1))
    ring.close()
    assert read(path) == [b"x" * MOST]


def test_what_is_no_file_of_ours_is_left_alone(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A link, a pipe, another user's file: the folder may be one where anybody writes."""
    (path.parent / "elsewhere").write_bytes(b"precious")
    path.symlink_to("elsewhere")
    with pytest.raises(OSError, match="symbolic links"):
        Ring(path)
    path.unlink()
    os.mkfifo(path)
    with pytest.raises(PermissionError):
        Ring(path)
    path.unlink()
    path.write_bytes(b"precious")
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    with pytest.raises(PermissionError, match="belongs to"):
        Ring(path)
    assert path.read_bytes() == b"precious"
    assert (path.parent / "elsewhere").read_bytes() == b"precious"

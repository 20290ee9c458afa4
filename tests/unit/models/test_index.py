"""The index: what survives, and what happens to one that cannot be read or written."""

from __future__ import annotations

import dataclasses
import sqlite3
from pathlib import Path

import pytest

from worker.errors import Owner
from worker.mentions import Place
from worker.models.base import Entry, Wanted
from worker.models.index import NAME, Found, Index, Records, Transfer, peek

A, B, C = (Place("lora", f"{name}.safetensors") for name in "abc")
ENTRY = Entry(A, 100, 3, "ab" * 32, frozenset({"https://x/a", "hf://o/r/a@main"}), mtime_ns=1_700_000_000_123_456_789)
BAKED = Entry(Place("checkpoint", "größe/模型.ckpt"), 5, 1, baked=True)
WANTED = Wanted("lora", "b.safetensors", url="https://x/b", sha256="cd" * 32, size=9, owner=Owner.OPERATOR)
TRANSFER = Transfer(B, "key", WANTED)


def opened(folder: Path) -> Index:
    index = Index(folder)
    index.open()
    return index


def reread(folder: Path) -> tuple[Found, Records]:
    index = Index(folder)
    found = index.open()
    index.close()
    return found


def test_what_was_recorded_is_there_after_a_kill(tmp_path: Path) -> None:
    """Each write is on disk before it returns: nothing was closed here. Entries come in the order of their use."""
    folder = tmp_path / "ours"
    index = Index(folder)
    assert index.open() == (Found.NOTHING, Records())
    index.put([ENTRY, BAKED])
    index.begin(TRANSFER)
    assert reread(folder) == (Found.GOOD, Records((BAKED, ENTRY), (TRANSFER,)))
    assert peek(folder) == Records((BAKED, ENTRY), (TRANSFER,))
    index.close()


def test_a_landing_ends_the_transfer(tmp_path: Path) -> None:
    """In one step; before it, the index says what the file is about to become."""
    index, entry = opened(tmp_path), dataclasses.replace(ENTRY, place=B)
    landing = dataclasses.replace(TRANSFER, landing=entry)
    index.begin(TRANSFER)
    index.begin(landing)
    assert peek(tmp_path).transfers == (landing,)
    index.landed(entry)
    assert peek(tmp_path) == Records((entry,))
    index.close()


def test_uses_and_ends_are_recorded(tmp_path: Path) -> None:
    """A use changes the order alone; what is forgotten is gone."""
    index = opened(tmp_path)
    index.put([ENTRY, BAKED])
    index.begin(TRANSFER)
    index.use({BAKED.place: 9, C: 5})
    assert peek(tmp_path).entries == (ENTRY, dataclasses.replace(BAKED, used=9))
    index.forget([A, C])
    index.ended([B, C])
    assert peek(tmp_path) == Records((dataclasses.replace(BAKED, used=9),))
    index.close()


@pytest.mark.parametrize("damage", ["garbage", "cut", "value", "newer", "foreign"])
def test_a_damaged_index_is_moved_aside(tmp_path: Path, damage: str) -> None:
    """Whatever is wrong with it: the new one works at once, and the old one is kept for who wants to see it."""
    index = opened(tmp_path)
    index.put([dataclasses.replace(ENTRY, place=Place("lora", f"{i}.pt")) for i in range(300)])
    index.close()
    path = tmp_path / NAME
    content = path.read_bytes()
    if damage == "garbage":
        path.write_bytes(b"not a database at all" * 100)
    elif damage == "cut":
        path.write_bytes(content[: len(content) // 2])
    else:
        with sqlite3.connect(path) as db:
            db.execute(
                {
                    "value": "UPDATE entries SET urls = '{' WHERE name = '7.pt'",
                    "newer": "PRAGMA user_version = 2",
                    "foreign": "PRAGMA application_id = 5",
                }[damage]
            )
        db.close()
    index = Index(tmp_path)
    assert index.open() == (Found.DAMAGED, Records())
    index.put([ENTRY])
    index.close()
    assert reread(tmp_path) == (Found.GOOD, Records((ENTRY,)))
    assert (tmp_path / f"{NAME}.damaged").exists()


def test_a_folder_that_cannot_be_written_keeps_nothing(tmp_path: Path) -> None:
    """The worker goes on, with an index that lasts as long as it does."""
    (tmp_path / "file").write_bytes(b"")
    index = Index(tmp_path / "file" / "ours")
    assert index.open() == (Found.NOTHING, Records())
    index.put([ENTRY])
    failed = index.behind
    index.close()
    assert not failed
    assert peek(tmp_path / "file" / "ours") == Records()


def test_a_database_that_cannot_be_opened_is_kept_in_memory(tmp_path: Path) -> None:
    """It is not ours to move what may be in order."""
    (tmp_path / NAME).mkdir()
    index = Index(tmp_path)
    assert index.open()[0] is Found.NOTHING
    assert (tmp_path / NAME).is_dir()
    index.close()


def test_a_write_that_fails_leaves_the_index_behind(tmp_path: Path) -> None:
    """It raises nothing, changes nothing by halves, and is made good by writing everything anew."""
    index = opened(tmp_path)
    index.put([ENTRY])
    limit(index, 1)
    index.put([dataclasses.replace(ENTRY, place=Place("lora", f"{i}" * 60)) for i in range(500)])
    assert index.behind
    index.forget([A])
    assert peek(tmp_path).entries in ((), (ENTRY,))
    limit(index, 1_000_000)
    everything = Records((BAKED, ENTRY), (TRANSFER,))
    index.rewrite(everything)
    assert peek(tmp_path) == everything
    index.close()


def limit(index: Index, pages: int) -> None:
    """A database that may not grow answers as a full disk does."""
    assert index._db is not None
    index._db.execute(f"PRAGMA max_page_count = {pages}")


def test_an_index_that_breaks_while_it_is_used_is_made_anew(tmp_path: Path) -> None:
    """The next write of everything goes to a new file."""
    index = opened(tmp_path)
    index.put([ENTRY])
    broken = sqlite3.DatabaseError("database disk image is malformed")
    broken.sqlite_errorcode = sqlite3.SQLITE_CORRUPT

    class Broken:
        in_transaction = False

        def execute(self, *_: object) -> None:
            raise broken

        def close(self) -> None:
            raise broken

    assert index._db is not None
    index._db.close()
    index._db = Broken()  # type: ignore[assignment]
    index.put([BAKED])
    assert index.behind
    index.use({A: 1})
    index.rewrite(Records((BAKED,)))
    assert reread(tmp_path) == (Found.GOOD, Records((BAKED,)))
    index.close()


def test_an_index_can_be_removed(tmp_path: Path) -> None:
    """With all that lies beside it, so that the next one is new."""
    index = opened(tmp_path)
    index.put([ENTRY])
    index.remove()
    assert list(tmp_path.iterdir()) == []
    index.close()
    assert reread(tmp_path) == (Found.NOTHING, Records())


def test_nobody_else_may_read_it(tmp_path: Path) -> None:
    """URLs stand in it."""
    index = opened(tmp_path / "ours")
    assert (tmp_path / "ours").stat().st_mode & 0o777 == 0o700
    assert (tmp_path / "ours" / NAME).stat().st_mode & 0o777 == 0o600
    index.close()

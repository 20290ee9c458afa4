"""What the index says and what the folders hold, made one."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from worker.mentions import Place
from worker.models.baked import Baked, baked_of
from worker.models.base import Entry
from worker.models.folders import File, Scan
from worker.models.reconcile import Reconciled, reconciled

SHA = "ab" * 32
PLACES = [Place("lora", f"{letter}.safetensors") for letter in "abcd"]
A, B, C, D = PLACES


def entry_of(place: Place, used: int = 1, *, size: int = 10, mtime_ns: int = 5, baked: bool = False) -> Entry:
    return Entry(place, size, used, SHA, frozenset({"https://x/y"}), baked, mtime_ns)


def file_of(place: Place, size: int = 10, mtime_ns: int = 5, link: bool = False) -> File:
    return File(Path("/models", place.name), size, mtime_ns, link)


def taken(
    known: list[Entry],
    files: dict[Place, File],
    *,
    broken: frozenset[Place] = frozenset(),
    baked: Baked | None = None,
    first: bool = False,
    landings: dict[Place, Entry] | None = None,
    complete: bool = True,
) -> Reconciled:
    return reconciled(
        known,
        Scan(files, complete=complete),
        check=lambda place, _: "is broken" if place in broken else "",
        baked=baked or Baked(seen=True),
        first=first,
        landings=landings,
    )


def test_what_is_as_it_was_is_not_looked_at() -> None:
    """Thousands of known files cost no reading."""
    now = taken([entry_of(A)], {A: file_of(A)}, broken=frozenset({A}))
    assert now.entries == (entry_of(A),)
    assert not now.changes


def test_new_files_come_after_the_known_ones_by_their_time() -> None:
    """Who recorded nothing has the files' times alone."""
    files = {A: file_of(A, mtime_ns=30), B: file_of(B, mtime_ns=20), C: file_of(C)}
    now = taken([entry_of(C, used=7)], files)
    assert [(entry.place, entry.used) for entry in now.entries] == [(C, 7), (B, 8), (A, 9)]
    assert now.changes.added == (B, A)


def test_a_file_that_was_about_to_get_its_name_has_its_hash() -> None:
    """It is the most recent one; the words of another size or time are not its own."""
    landings = {A: entry_of(A), B: entry_of(B, size=11), C: entry_of(C, mtime_ns=6)}
    now = taken([], {place: file_of(place) for place in (A, B, C, D)}, landings=landings)
    assert now.entries[-1].place == A
    assert {entry.place: entry.sha256 for entry in now.entries} == {A: SHA, B: None, C: None, D: None}


def test_a_landing_over_another_file_is_that_file() -> None:
    """Killed between its name and its record, which is still that of the file before."""
    before, landing = entry_of(A, size=99), entry_of(A)
    now = taken([before], {A: file_of(A)}, landings={A: landing})
    assert now.entries == (landing,)


def test_the_image_is_known_by_size_until_it_has_run() -> None:
    """Layers change the times of files; once it has run, another time means other bytes."""
    shipped = entry_of(A, used=0, mtime_ns=1, baked=True)
    for seen, sha256 in ((False, SHA), (True, None)):
        now = taken([], {A: file_of(A)}, baked=baked_of([shipped], seen=seen), first=not seen)
        (entry,) = now.entries
        assert (entry.sha256, entry.baked, entry.mtime_ns) == (sha256, not seen, 5)


def test_the_image_adds_what_the_index_does_not_know() -> None:
    """A hash that the index has stands."""
    shipped, known = entry_of(A, used=0, baked=True), Entry(A, 10, 3, baked=True, mtime_ns=5)
    (entry,) = taken([known], {A: file_of(A)}, baked=baked_of([shipped], seen=True)).entries
    assert (entry.sha256, entry.urls, entry.used) == (SHA, shipped.urls, 3)
    mine = Entry(A, 10, 3, "cd" * 32, baked=True, mtime_ns=5)
    assert taken([mine], {A: file_of(A)}, baked=baked_of([shipped], seen=True)).entries == (mine,)


states = st.none() | st.tuples(st.integers(9, 10), st.integers(5, 6), st.booleans())


@settings(max_examples=200, deadline=None)
@given(
    known=st.lists(st.sampled_from(PLACES), unique=True),
    now=st.tuples(*[states] * 4),
    broken=st.frozensets(st.sampled_from(PLACES)),
    first=st.booleans(),
    complete=st.booleans(),
)
def test_nothing_is_served_that_is_not_there(
    known: list[Place],
    now: tuple[tuple[int, int, bool] | None, ...],
    broken: frozenset[Place],
    first: bool,
    complete: bool,
) -> None:
    """Every file is an entry of its own size or unusable; a hash belongs to unchanged files; the order is one."""
    files = {place: file_of(place, *state) for place, state in zip(PLACES, now, strict=True) if state is not None}
    before = {place: entry_of(place, used) for used, place in enumerate(known, 1)}
    found = taken(list(before.values()), files, broken=broken, first=first, complete=complete)
    entries = {entry.place: entry for entry in found.entries}
    missing = set() if complete else before.keys() - files.keys()
    assert entries.keys() | found.unusable.keys() == files.keys() | missing
    assert not entries.keys() & found.unusable.keys()
    assert [entry.used for entry in found.entries] == sorted({entry.used for entry in found.entries})
    for place in entries.keys() - missing:
        entry, file = entries[place], files[place]
        assert (entry.size, entry.mtime_ns) == (file.size, file.mtime_ns)
        same = place in before and (file.size, file.mtime_ns) == (10, 5)
        assert entry == before[place] if same else entry.sha256 is None
        assert same or entry.baked is (file.link or (first and place not in before))
    assert set(found.changes.gone) == before.keys() - entries.keys()
    assert set(found.changes.added) == entries.keys() - before.keys()

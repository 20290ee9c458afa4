"""What is measured beside what is wanted."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.fitness.verdict import (
    PAUSES_S,
    TRIES,
    UNITS,
    Figure,
    Name,
    Reading,
    amount,
    better,
    pause_s,
    suffices,
    unfit_of,
)

values = st.none() | st.floats(0, 1e12)


@pytest.mark.parametrize(
    ("name", "value", "fit"),
    [
        ("download", 10e6, True),
        ("download", 9.99e6, False),
        ("download", None, False),
        ("step", 10e6, True),
        ("step", 10.01e6, False),
        ("vram", None, False),
    ],
)
def test_a_value_as_good_as_wanted_suffices(name: Name, value: float | None, fit: bool) -> None:
    """Of everything at least as much, of a step's seconds at most as many; what is not there never does."""
    assert suffices(name, value, 10e6) is fit
    assert Figure(name, 10e6, Reading(value)).fit is fit


@given(st.sampled_from(sorted(UNITS)), values, values, st.floats(1, 1e12))
@settings(max_examples=60)
def test_the_better_of_two_speaks_for_the_node(
    name: Name, one: float | None, other: float | None, wanted: float
) -> None:
    """Whatever one of two tries suffices for, the better of them does."""
    best = better(name, Reading(one), Reading(other))
    assert suffices(name, best.value, wanted) is (suffices(name, one, wanted) or suffices(name, other, wanted))


def test_the_first_try_is_the_best_so_far() -> None:
    assert better("vram", Reading(None, "no card"), None) == Reading(None, "no card")


def test_what_nobody_asks_for_is_told_and_not_judged() -> None:
    """It can make no node unfit."""
    figure = Figure("disk", None, Reading(5e9))
    assert figure.fit is None
    assert unfit_of([figure]) == ""
    assert str(figure) == "disk 5 GB"


def test_the_reason_tells_every_figure_that_falls_short() -> None:
    """With what was wanted, and how often it was tried, for the platform's record and the operator's log."""
    figures = [
        Figure("download", 10e6, Reading(2_100_000, "10.5 MB from the CDN in 5 s"), tries=3),
        Figure("disk", 20e9, Reading(30e9)),
        Figure("vram", 20e9, Reading(None, "there is no GPU")),
    ]
    assert unfit_of(figures) == (
        "download 2.1 MB/s, 10 MB/s wanted, the best of 3 tries, 10.5 MB from the CDN in 5 s; "
        "vram none, 20 GB wanted, there is no GPU"
    )


def test_a_figure_is_told_with_its_unit() -> None:
    """Four digits are more than it is worth."""
    assert Figure("step", 0.5, Reading(0.123456, "of four"), tries=2).described() == {
        "fit": True,
        "measured": 0.1235,
        "wanted": 0.5,
        "unit": "s",
        "tries": 2,
        "detail": "of four",
    }
    assert Figure("vram", 1, Reading(None)).described()["measured"] is None


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("step", 0.25, "0.25 s"),
        ("upload", 1500, "1.5 kB/s"),
        ("upload", 12, "12 bytes/s"),
        ("disk", 52.4e9, "52.4 GB"),
        ("vram", None, "none"),
    ],
)
def test_amounts_are_written_as_people_do(name: Name, value: float | None, text: str) -> None:
    assert amount(name, value) == text


def test_the_pauses_grow_and_the_last_one_stays() -> None:
    pauses = [pause_s(tries) for tries in range(1, TRIES + 3)]
    assert pauses == sorted(pauses)
    assert pauses[-1] == PAUSES_S[-1]

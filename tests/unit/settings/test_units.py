"""Values as people write them."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from worker.settings.units import (
    Rate,
    check_url,
    duration_text,
    parse_duration,
    parse_rate,
    parse_size,
    size_text,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("90s", 90),
        ("10m", 600),
        ("3h", 10_800),
        ("45", 45),
        ("1.5", 1.5),
        ("250ms", 0.25),
        ("2d", 172_800),
        (" 5 M ", 300),
    ],
)
def test_durations_are_read_as_written(text: str, seconds: float) -> None:
    """Units are ms, s, m, h and d; a bare number is seconds."""
    assert parse_duration(text) == timedelta(seconds=seconds)


@pytest.mark.parametrize("text", ["", "ten", "-5s", "5x", "1h30m", "nan", "inf", "٣s", "9" * 16, "1e3", "99999d"])
def test_what_is_no_duration_is_refused(text: str) -> None:
    """Nothing is guessed, and no number overflows."""
    with pytest.raises(ValueError, match=r"no duration|ten years"):
        parse_duration(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("50GB", 50 * 10**9),
        ("50GiB", 50 * 2**30),
        ("1.5kb", 1500),
        ("2 MiB", 2 * 2**20),
        ("7", 7),
        ("7b", 7),
        ("9007199254740993", 9007199254740993),
        ("1TB", 10**12),
    ],
)
def test_sizes_are_read_as_written(text: str, size: int) -> None:
    """GB is 10^9, GiB 2^30, a bare number bytes, exactly."""
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "big", "-1", "1EB", "1ib", "9" * 25, "10000000TB"])
def test_what_is_no_size_is_refused(text: str) -> None:
    """Nothing is guessed, and no number overflows."""
    with pytest.raises(ValueError, match=r"no size|any disk"):
        parse_size(text)


def test_a_rate_is_a_count_in_a_time() -> None:
    """`5/10m` is five in ten minutes, and writes itself so."""
    assert parse_rate("5 / 10m") == Rate(5, timedelta(minutes=10))
    assert str(Rate(5, timedelta(minutes=10))) == "5/10m"


@pytest.mark.parametrize("text", ["5", "/10m", "5/", "5/x", "0/10m", "5/0", "-1/1m"])
def test_what_is_no_rate_is_refused(text: str) -> None:
    """Both halves are needed, and neither may be nothing."""
    with pytest.raises(ValueError, match=r"rate|count|duration"):
        parse_rate(text)


@pytest.mark.parametrize("parse", [parse_duration, parse_size, parse_rate])
def test_typed_values_pass_through(parse: Callable[[Any], Any]) -> None:
    """A value that is no text is left to pydantic."""
    assert parse(5) == 5


@given(st.integers(0, 10**12).map(lambda ms: timedelta(milliseconds=ms % (300 * 10**9))))
def test_a_duration_survives_being_written(duration: timedelta) -> None:
    """What is printed is read as the same value, to the millisecond."""
    assert abs(parse_duration(duration_text(duration)) - duration) < timedelta(milliseconds=1)


@given(st.integers(0, 2**63 - 1))
def test_a_size_survives_being_written(size: int) -> None:
    """What is printed is read as the same value."""
    assert parse_size(size_text(size)) == size


@pytest.mark.parametrize("size", [50_000_000_000, 4096, 2**40, 1500, 0])
def test_a_size_is_written_in_its_largest_unit(size: int) -> None:
    """Defaults look in `config` as in the README."""
    wanted = {50_000_000_000: "50GB", 4096: "4KiB", 2**40: "1TiB", 1500: "1500", 0: "0"}
    assert size_text(size) == wanted[size]


@pytest.mark.parametrize("url", ["http://[::1]:7860", "https://example.com/a?b=c", "http://u:p@host:1/"])
def test_urls_are_kept_as_they_are(url: str) -> None:
    """A valid URL comes back untouched."""
    assert check_url(url) == url


@pytest.mark.parametrize(
    "url",
    [
        "example.com",
        "ftp://host/",
        "http://",
        "http://host:99999",
        "http://ho st/",
        "http://[::1",
        "http://a\nb/",
        "http://h\x00/",
    ],
)
def test_what_is_no_web_url_is_refused(url: str) -> None:
    """The message tells the form and never the value, which may hold a password."""
    with pytest.raises(ValueError, match=r"URL|blanks") as caught:
        check_url(url)
    assert "host/" not in str(caught.value).replace("//host/path", "")

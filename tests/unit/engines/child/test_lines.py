"""What a process prints, cut into lines: whatever the bytes and however they arrive."""

from __future__ import annotations

import random

import pytest

from worker import log
from worker.engines.child.lines import FLOOD, KEPT_OF_FLOOD, LINE_MOST, Allowance, Piece, Splitter, Tail, plain


def lines(data: bytes) -> list[Piece]:
    splitter = Splitter()
    return [*splitter.feed(data), *filter(None, [splitter.end()])]


@pytest.mark.parametrize(
    ("data", "texts"),
    [
        (b"one\ntwo\n", ["one", "two"]),
        (b"one\r\ntwo\r\n", ["one", "two"]),
        (b"one\n\ntwo", ["one", "", "two"]),
        ("Straße ✓\n".encode(), ["Straße ✓"]),
        (b"caf\xe9 \xff\n", ["caf\ufffd \ufffd"]),
        (b"\x1b[31mred\x1b[0m \x1b]8;;http://x\x07link\x1b]8;;\x1b\\ \x1b[2K\x1b(Bend\n", ["red link end"]),
        (b"a\x00b\x08c\td\n", ["abc\td"]),
    ],
)
def test_a_line_is_text_that_can_be_shown(data: bytes, texts: list[str]) -> None:
    """Both line ends, broken UTF-8, colours, links and control characters leave plain text."""
    assert [piece.text for piece in lines(data)] == texts


def test_a_carriage_return_alone_makes_a_passing_line() -> None:
    """The states of a progress bar are passing, the last one is not."""
    assert lines(b"\r 10%\r 20%\r100%\n") == [
        Piece("", passing=True),
        Piece(" 10%", passing=True),
        Piece(" 20%", passing=True),
        Piece("100%"),
    ]


def test_the_pieces_do_not_depend_on_how_the_bytes_arrive() -> None:
    """Cut anywhere, between `\\r` and `\\n` and within a character too, the lines are the same."""
    data = "eins\r\nzwei\rdrei\r\n✓✓\nvier\r\r\nfünf\r".encode() * 3
    whole = lines(data)
    rng = random.Random(4)
    for _ in range(200):
        splitter, found, rest = Splitter(), [], data
        while rest:
            size = rng.randint(1, 7)
            found += splitter.feed(rest[:size])
            rest = rest[size:]
        assert [*found, *filter(None, [splitter.end()])] == whole


def test_a_state_that_another_is_to_be_written_over_can_be_seen() -> None:
    """Of a progress bar without an end the present state is known; of a line that is being written it is not."""
    splitter = Splitter()
    splitter.feed(b"loading")
    assert splitter.passing() is None
    splitter.feed(b"\r 50%")
    assert splitter.passing() == Piece(" 50%", passing=True)
    splitter.feed(b"\rdone\nnext")
    assert splitter.passing() is None


def test_a_line_without_end_is_cut() -> None:
    """Of megabytes without a newline a bounded part is held, and how much is missing is said."""
    splitter = Splitter()
    for _ in range(50):
        assert splitter.feed(b"x" * 100_000) == []
    assert len(splitter._rest) == LINE_MOST
    (piece,) = splitter.feed(b"x\n")
    assert piece.text == "x" * LINE_MOST + f" ...{5_000_001 - LINE_MOST} more bytes"
    assert splitter.feed(b"short\n") == [Piece("short")]


def test_a_cut_line_keeps_the_carriage_return_at_its_end() -> None:
    """A long line that ends with `\\r` is still written over by the next one."""
    splitter = Splitter()
    splitter.feed(b"y" * (LINE_MOST + 5) + b"\r")
    first, last = splitter.feed(b"next\n")
    assert first.passing
    assert last == Piece("next")


@pytest.mark.parametrize("end", [b"\n", b"\r\n", b"\r"])
def test_of_a_flood_only_the_last_lines_are_looked_at(end: bytes) -> None:
    """More lines at once than anybody reads cost no more than a few hundred, and are counted."""
    splitter = Splitter()
    count = FLOOD * 5
    pieces = splitter.feed(b"first" + b"".join(b"%d" % number + end for number in range(count)) + b"x\n")
    texts = [piece.text for piece in pieces if piece.text]
    assert len(texts) <= KEPT_OF_FLOOD + 1
    assert texts[-1] in ("x", f"{count - 1}")
    assert splitter.skipped >= count - KEPT_OF_FLOOD - 1


def test_the_tail_is_bounded_in_lines_and_characters() -> None:
    """The oldest lines go first, by number and by size."""
    tail = Tail(lines=3, characters=10)
    for text in ("a", "b", "c", "d"):
        tail.add("stdout", Piece(text))
    assert tail.since(0) == ("b", "c", "d")
    tail.add("stdout", Piece("123456789"))
    assert tail.since(0) == ("d", "123456789")
    tail.add("stdout", Piece("x" * 11))
    assert tail.since(0) == ()


def test_lines_after_a_mark_are_those_that_came_later() -> None:
    """Also when a progress bar's state was the last line before it."""
    tail = Tail()
    tail.add("stderr", Piece("50%", passing=True))
    mark = tail.mark()
    assert tail.since(mark) == ()
    tail.add("stderr", Piece("100%"))
    assert tail.since(mark) == ("100%",)
    assert tail.since(0) == ("100%",)


def test_a_bar_takes_one_line_of_the_tail() -> None:
    """Its states replace each other, but nothing of the other stream."""
    tail = Tail()
    tail.add("stdout", Piece("hello"))
    tail.add("stderr", Piece("1%", passing=True))
    tail.add("stderr", Piece("2%", passing=True))
    tail.add("stdout", Piece("world"))
    tail.add("stderr", Piece("3%", passing=True))
    assert tail.since(0) == ("hello", "2%", "world", "3%")


def test_the_tail_hides_secrets(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the log hides never reaches an error message by way of the tail."""
    monkeypatch.setattr(log, "_secrets", set())
    monkeypatch.setattr(log, "_secrets_pattern", None)
    log.hide(["hunter22"])
    tail = Tail()
    tail.add("stdout", Piece("token=hunter22"))
    assert tail.since(0) == ("token=***",)


def test_an_allowance_is_a_burst_and_then_a_rate() -> None:
    """What was not used comes back, up to the burst."""
    allowance = Allowance(2, 1.0)
    assert [allowance.take(0.0) for _ in range(3)] == [True, True, False]
    assert [allowance.take(1.0) for _ in range(2)] == [True, False]
    assert [allowance.take(100.0) for _ in range(3)] == [True, True, False]


def test_random_bytes_never_break_it() -> None:
    """Anything may be printed."""
    rng = random.Random(11)
    for _ in range(200):
        for piece in lines(rng.randbytes(500)):
            assert "\n" not in piece.text
            assert "\x1b" not in piece.text
            piece.text.encode()
    assert plain(b"\x1b[") == "["

"""Log lines: what each one carries, and what none of them may."""

from __future__ import annotations

import ast
import asyncio
import io
import json
import logging
import re
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import SecretStr

from tests.support.logs import restored_log
from worker import log

ROOT = Path(__file__).parents[2] / "worker"
EVENT = re.compile(r"[a-z]+(_[a-z0-9]+)*")
LEVELS = ("debug", "info", "warning", "error", "exception")


@pytest.fixture(autouse=True)
def restored() -> Iterator[None]:
    """Each test sets the log up anew, and leaves the process as it was."""
    with restored_log():
        yield


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def lines(stream: io.StringIO) -> list[dict[str, Any]]:
    return [json.loads(line) for line in stream.getvalue().splitlines()]


def json_log(level: str = "info") -> io.StringIO:
    stream = io.StringIO()
    log.setup(level, "json", stream)
    return stream


def test_a_line_is_one_json_object_with_the_fields_that_collectors_know() -> None:
    """Timestamp in RFC 3339, severity in capitals, the event's name, then its fields."""
    stream = json_log()
    log.get("worker.intake").warning("slot_taken", seconds=1.5)
    (line,) = lines(stream)
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", line.pop("timestamp"))
    assert line == {"severity": "WARNING", "event": "slot_taken", "module": "worker.intake", "seconds": 1.5}


def test_an_identity_token_is_hidden_by_its_shape() -> None:
    """It is another one every few minutes, so that nobody registers it; words beside it stay."""
    stream = json_log()
    jwt = "eyJhbGciOiJFUzI1NiJ9.eyJzdWIiOiJtYWNoaW5lLTcifQ.c2lnbmF0dXJl-_x"
    log.get().info("token_sent", header=f"Bearer {jwt}", nested={"tokens": [jwt]}, said=f"refused {jwt}, again")
    (line,) = lines(stream)
    assert (line["header"], line["nested"], line["said"]) == ("Bearer ***", {"tokens": ["***"]}, "refused ***, again")
    assert log.redact("worker.log.redact and eyJ.eyJ. stay") == "worker.log.redact and eyJ.eyJ. stay"


@pytest.mark.parametrize(
    ("level", "heard"),
    [("debug", ["DEBUG", "INFO", "WARNING", "ERROR"]), ("warning", ["WARNING", "ERROR"]), ("error", ["ERROR"])],
)
def test_what_is_less_severe_than_the_level_is_left_out(level: str, heard: list[str]) -> None:
    """WORKER_LOG_LEVEL names the least severe that is printed."""
    stream = json_log(level)
    for name in ("debug", "info", "warning", "error"):
        getattr(log.get(), name)("thing_happened")
    assert [line["severity"] for line in lines(stream)] == heard


async def test_ids_are_on_each_line_of_a_job_and_of_what_it_starts() -> None:
    """Tasks and threads begun within a job carry its id; a neighbour's never mix in."""
    stream = json_log()
    log.identify(worker="w1", machine="m1")

    async def job(name: str) -> None:
        with log.bind_job(name, delivery=2):
            await asyncio.to_thread(log.get().info, "thread_ran", of=name)
            await asyncio.create_task(asyncio.sleep(0), name="child")
            log.get().info("job_ran", of=name)

    await asyncio.gather(job("a"), job("b"))
    log.get().info("nothing_bound")
    *bound, last = lines(stream)
    assert len(bound) == 4
    assert all(line["job"] == line["of"] and line["delivery"] == 2 for line in bound)
    assert "job" not in last
    assert all((line["worker"], line["machine"]) == ("w1", "m1") for line in (*bound, last))


def test_library_lines_come_out_of_the_same_renderer_from_warning_up() -> None:
    """uvicorn, httpx and botocore speak through the standard library's logging."""
    stream = json_log("debug")
    logging.getLogger("httpx").info("GET http://x/?token=1")
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("uvicorn.error").exception("broke on %s", "http://u:p@h/a?key=1")
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        logging.captureWarnings(True)
        warnings.warn("odd", UserWarning, stacklevel=1)
    broke, odd = lines(stream)
    assert broke["event"] == odd["event"] == "library_logged"
    assert (broke["severity"], broke["module"]) == ("ERROR", "uvicorn.error")
    assert broke["message"] == "broke on http://***@h/a?***"
    assert "ZeroDivisionError" in broke["exception"]
    assert "odd" in odd["message"]


def test_setup_twice_writes_each_line_once() -> None:
    """The last set-up counts."""
    first, second = json_log(), json_log()
    logging.getLogger("httpx").warning("once")
    log.get().info("said_once")
    assert first.getvalue() == ""
    assert len(lines(second)) == 2


def test_a_traceback_is_one_field() -> None:
    """A line stays a line."""
    stream = json_log()
    try:
        raise RuntimeError("what happened")
    except RuntimeError:
        log.get().exception("job_broke")
    (line,) = lines(stream)
    assert line["severity"] == "ERROR"
    assert line["exception"].startswith("Traceback")
    assert line["exception"].endswith("RuntimeError: what happened")


def test_registered_secrets_never_appear() -> None:
    """Neither in fields, nested or as keys, nor in tracebacks, nor quoted, nor part of a list of signing secrets."""
    stream = json_log("debug")
    log.hide([SecretStr("hunter2 &"), "ab", "whsec_QUJDREVG whsec_R0hJSktM"])
    try:
        raise RuntimeError("refused hunter2 &")
    except RuntimeError as error:
        log.get().exception("auth_failed", nested={"hunter2 &": ["hunter2 &"]}, quoted="hunter2%20%26", error=error)
    log.get().info("parts_printed", a="QUJDREVG", b="whsec_R0hJSktM", c="x ab y", d="abbey")
    logging.getLogger("botocore").error("hunter2 &")
    text = stream.getvalue()
    assert not any(secret in text for secret in ("hunter2", "QUJDREVG", "R0hJSktM", " ab "))
    assert "abbey" in text


def test_a_secret_object_prints_itself_masked() -> None:
    """Even one that was never registered."""
    stream = json_log()
    log.get().info("object_printed", secret=SecretStr("hunter2"))
    assert "hunter2" not in stream.getvalue()


def test_pictures_never_appear() -> None:
    """Bytes become a count, base64 of more than 200 characters a length, wrapped lines of it too."""
    stream = json_log()
    wrapped = "\n".join(["QUJD" * 19] * 4)
    log.get().info(
        "picture_made", data=b"\x89PNG", text=f"data:image/png;base64,{'A' * 201}==", wrapped=wrapped, ok="A" * 200
    )
    (line,) = lines(stream)
    assert line["data"] == "<4 bytes>"
    assert line["text"] == "data:image/png;base64,<base64, 203 characters>"
    assert "QUJD" not in line["wrapped"]
    assert line["ok"] == "A" * 200


@pytest.mark.parametrize("level", ["debug", "info", "error"])
def test_prompts_are_left_out_above_debug(level: str) -> None:
    """At any depth: prompts are the users' own."""
    stream = json_log("debug")
    getattr(log.get(), level)(
        "job_read", prompt="a cat", params={"negative_prompt": "a dog", "all": [{"prompt": "a cow"}]}
    )
    shown = re.findall("a cat|a dog|a cow", stream.getvalue())
    assert len(shown) == (3 if level == "debug" else 0)


@pytest.mark.parametrize(
    ("text", "redacted"),
    [
        ("see https://u:p@host:1/a/b?sig=1#frag now", "see https://***@host:1/a/b?***#*** now"),
        ("postgresql://u:p@ss@db/jobs", "postgresql://***@db/jobs"),
        ("http://[::1]:7860/x", "http://[::1]:7860/x"),
        ("a?b=c and user@host", "a?b=c and user@host"),
    ],
)
def test_urls_lose_user_query_and_fragment(text: str, redacted: str) -> None:
    """Presigned links and credentials stand there."""
    assert log.redact(text) == redacted


@given(
    st.dictionaries(
        st.text("abcdefgh", min_size=1, max_size=8),
        st.one_of(
            st.text(max_size=40), st.text('aé\n\x00"', max_size=20).map(lambda t: t * 700), st.integers(), st.floats()
        ),
        max_size=6,
    )
)
def test_every_line_is_bounded_json_whatever_its_fields(fields: dict[str, Any]) -> None:
    """Collectors cut or drop longer lines; surrogates, control characters and NaN must not break one either."""
    stream = json_log()
    log.get().info("thing_happened", **fields)
    line, end = stream.getvalue().split("\n")
    assert end == ""
    assert len(line) <= log.LINE_MAX
    read = json.loads(line, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    assert read["event"] == "thing_happened"
    assert read["severity"] == "INFO"


def test_the_longest_field_is_cut_and_keeps_its_end() -> None:
    """The end of a traceback says what happened; the other fields stay whole."""
    stream = json_log()
    log.get().error("job_broke", exception="start " + "x " * 20_000 + "the end", code="internal")
    (line,) = lines(stream)
    assert line["code"] == "internal"
    assert line["exception"].startswith("start")
    assert line["exception"].endswith("the end")
    assert len(stream.getvalue()) > log.LINE_MAX * 0.9


def test_a_line_of_too_many_fields_keeps_the_first_ones() -> None:
    """Then at least what, when and who."""
    stream = json_log()
    log.identify(worker="w1", machine="m1")
    log.get().info("many_fields", **{f"field_{i}": "x" * 50 for i in range(500)})
    (line,) = lines(stream)
    assert set(line) == {"timestamp", "severity", "event", "worker", "machine", "cut"}


def test_a_terminal_gets_lines_for_people() -> None:
    """`auto` is console rendering there; what must not be printed is not printed there either."""
    stream = Terminal()
    log.hide(["hunter2"])
    log.setup("info", "auto", stream)
    log.get().warning("thing_happened", secret="hunter2", prompt="a cat")
    logging.getLogger("httpx").warning("said")
    text = stream.getvalue()
    assert "thing_happened" in text
    assert "said" in text
    assert "warning" in text
    assert "hunter2" not in text
    assert "a cat" not in text


def test_no_terminal_gets_json() -> None:
    """`auto` is JSON for whatever collects the lines."""
    stream = io.StringIO()
    log.setup("info", "auto", stream)
    log.get().info("thing_happened")
    assert lines(stream)[0]["event"] == "thing_happened"


def test_stdout_is_the_default(capsys: pytest.CaptureFixture[str]) -> None:
    """Containers collect it."""
    log.setup(fmt="json")
    log.get().info("thing_happened")
    assert "thing_happened" in capsys.readouterr().out


def test_a_reader_that_went_away_ends_no_job() -> None:
    """A line that cannot be written is lost, and nothing else."""

    class Gone(io.StringIO):
        def write(self, text: str) -> int:
            raise BrokenPipeError

    stream = Gone()
    log.setup("info", "json", stream)
    log.get().info("thing_happened")
    logging.getLogger("httpx").error("said")
    assert stream.getvalue() == ""


def _events() -> Iterator[tuple[str, int, ast.expr]]:
    for path in ROOT.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            match node:
                case ast.Call(func=ast.Attribute(value=ast.Name(id="log"), attr=level), args=[first, *_]) if (
                    level in LEVELS
                ):
                    yield str(path.relative_to(ROOT)), node.lineno, first


def test_events_are_constant_names_in_snake_case() -> None:
    """A name that can be searched for, never a sentence with values in it; constants in capitals count."""
    wrong = []
    for path, line, event in _events():
        match event:
            case ast.Constant(value=str(name)) if EVENT.fullmatch(name):
                continue
            case ast.Name(id=name) if name.isupper():
                continue
            case _:
                wrong.append(f"{path}:{line}")
    assert wrong == []

"""What is kept of the socket's messages."""

from __future__ import annotations

import json
import struct
from typing import Any

import pytest

from worker.engines.comfyui.events import Plan, Track

PROMPT = "p-1"


def told(kind: str, **data: Any) -> str:
    return json.dumps({"type": kind, "data": {"prompt_id": PROMPT, **data}})


def frame(data: bytes, event: int = 1, kind: int = 2) -> bytes:
    return struct.pack(">II", event, kind) + data


def track(samplers: str = "", loaders: str = "", senders: str = "", steps: int | None = None) -> Track:
    return Track(PROMPT, Plan(frozenset(samplers), frozenset(loaders), frozenset(senders), steps))


def test_a_run_is_followed() -> None:
    """Start, cached nodes, the node at work, its outputs, the end."""
    t = track()
    assert not t.hear(told("execution_start", timestamp=1795218564912))
    assert (t.started, t.running, t.began_s) == (True, False, 1795218564.912)
    t.hear(told("execution_cached", nodes=["4", "5"]))
    assert (t.running, t.cached) == (True, ("4", "5"))
    t.hear(told("executing", node="9"))
    assert t.node == "9"
    assert not t.hear(told("executed", node="9", output={"images": []}))
    assert t.executed == {"9": {"images": []}}
    assert not t.hear(told("execution_success"))
    assert (t.succeeded, t.over) == (True, False)
    assert t.hear(told("executing", node=None))
    assert t.over


@pytest.mark.parametrize(
    "message",
    [
        "no json",
        "[]",
        "{}",
        '{"type": "executing"}',
        '{"type": "progress_state", "data": {"nodes": {}}}',
        '{"type": "status", "data": {}}',
        '{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 1}}}}',
        '{"type": "executing", "data": {"node": null}}',
        '{"type": "executing", "data": {"node": null, "prompt_id": "another"}}',
        b"",
        b"short",
        frame(b"x"),
    ],
)
def test_what_is_not_ours_changes_nothing(message: str | bytes) -> None:
    """Broken messages, other prompts', and what comes without a prompt at a connection's start."""
    t = track()
    assert not t.hear(message)
    assert not t.started
    assert not t.over


def test_a_server_at_rest_is_worth_a_look() -> None:
    """All that a socket opened anew hears of our prompt's end."""
    assert track().hear('{"type": "status", "data": {"status": {"exec_info": {"queue_remaining": 0}}}}')


def test_an_error_of_a_blocked_node_is_not_the_end() -> None:
    """ComfyUI sends it and goes on."""
    t = track()
    assert not t.hear(told("execution_error", exception_type="ExecutionBlocked"))
    assert not t.over


def test_progress_is_that_of_samplers() -> None:
    """Where it is known who samples, another node's bar is no step; impossible values are none at all."""
    t = track(samplers="3")
    for value, most, node in ((1, 2, "99"), (float("nan"), 2, "3"), (3, 2, "3"), ("1", 2, "3"), (-1, 2, "3")):
        t.hear(
            json.dumps({"type": "progress", "data": {"prompt_id": PROMPT, "node": node, "value": value, "max": most}})
        )
    assert (t.step, t.steps) == (0, 0)
    t.hear(told("progress", node="3", value=1, max=4))
    assert (t.step, t.steps) == (1, 4)
    report = t.report(t.left(2.0))
    assert (report.fraction, report.step, report.steps, report.eta_s, report.sampling) == (0.25, 1, 4, 6.0, True)


def test_the_fraction_covers_all_samplers_and_never_falls() -> None:
    """Two samplers of four steps: the second begins at a half."""
    t = track(samplers="ab")
    seen = []
    for node in "ab":
        for step in (1, 4):
            t.hear(told("progress", node=node, value=step, max=4))
            seen.append(t.report(None).fraction)
    assert seen == [0.125, 0.5, 0.625, 1.0]
    t.hear(told("progress", node="b", value=1, max=4))
    assert t.report(None).fraction == 1.0


def test_with_known_steps_the_fraction_is_theirs() -> None:
    """A refiner that does the last steps of ten goes on where the other stopped."""
    t = track(samplers="ab", steps=10)
    t.hear(told("progress", node="a", value=8, max=8))
    assert t.report(None).fraction == 0.8
    t.hear(told("progress", node="b", value=1, max=2))
    assert t.report(None).fraction == 0.9
    assert t.left(3.0) == 3.0


def test_what_is_left_is_unknown_before_the_first_step() -> None:
    """Neither without a step nor without a measured one."""
    t = track()
    assert t.left(1.0) is None
    t.hear(told("progress", node="3", value=1, max=2))
    assert t.left(0.0) is None


def test_pictures_belong_to_the_node_at_work() -> None:
    """Frames of a node that sends pictures are kept in order; a sampler's previews are not."""
    t = track(senders="9")
    t.hear(told("executing", node="3"))
    t.hear(frame(b"preview", kind=1))
    t.hear(told("executing", node="9"))
    t.hear(frame(b"one"))
    t.hear(frame(b"two"))
    t.hear(frame(b"text", event=3))
    assert t.frames == {"9": [b"one", b"two"]}


def test_every_movement_has_a_signature_of_its_own() -> None:
    """What the watchdog goes by: nodes, steps, outputs and frames."""
    t = track(senders="9", loaders="4")
    seen = {t.signature}
    for message in (
        told("executing", node="4"),
        told("executing", node="9"),
        told("progress", node="9", value=1, max=2),
        frame(b"x"),
        told("executed", node="9", output={}),
    ):
        t.hear(message)
        seen.add(t.signature)
        assert t.loading == (t.node == "4")
    assert len(seen) == 6

"""What is said to a scheduling server, and what its answers mean."""

from __future__ import annotations

import json
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic_core import from_json
from structlog.testing import capture_logs

from tests.support.clock import START
from tests.support.scheduling import EXAMPLE_ANSWER, EXAMPLE_REQUEST, a_node
from worker.clock import isoformat
from worker.errors import QueueUnavailable
from worker.node import Orders, Report
from worker.queues.availability import answers
from worker.queues.availability.held import Held, running_of
from worker.queues.base import Attempt, Delivery
from worker.queues.policy import HandOver, Policy
from worker.wire import Answer, Availability, DiskReport, Download, Evict, Generation, HeldModel, Rates, Running

POLICY = Policy(visibility=timedelta(seconds=90), max_attempts=3, max_deliveries=4)
MODELS = (
    HeldModel(kind="checkpoint", name="dreamshaper_8.safetensors", tier="vram", sha256="ab" * 32, size=5),
    HeldModel(kind="lora", name="add_detail.safetensors", tier="vram"),
    HeldModel(kind="checkpoint", name="Juggernaut_X_RunDiffusion_Hyper.safetensors"),
    HeldModel(kind="upscaler", name="nomos8khatLOtf_v20.safetensors"),
)


def asked(report: Report, *running: Running) -> dict[str, Any]:
    body: dict[str, Any] = json.loads(answers.availability(a_node().identity, report, running, 20.0))
    return body


def delivery_of(**generation: Any) -> Delivery:
    return answers.delivery_of(Generation.model_validate(generation), "made-up", POLICY)


def test_the_published_request_is_said_word_for_word() -> None:
    """The lists and the node's fields stand in the shape of the published example; the rest stands beside them."""
    body = asked(Report(models=MODELS, vram_gb=24))
    example = json.loads(EXAMPLE_REQUEST)
    assert {name: body[name] for name in ("vram_models", "disk_models")} == {
        name: example[name] for name in ("vram_models", "disk_models")
    }
    assert {name: body["node"][name] for name in ("gpu", "vram_gb")} == {"gpu": "rtx4090", "vram_gb": 24}
    assert (body["node"]["id"], body["node"]["instance"], body["node"]["version"]) == ("w1", "w1-1", "test")


def test_all_that_is_known_is_said() -> None:
    """Models with digests, disk, rates, what is held and how far it is; the server reads it back as it was."""
    disk, rates = DiskReport(used=5, cap=10, free=4), Rates(network=6e7, load=8.0)
    report = Report(models=MODELS, disk=disk, rates=rates, stats={"done": 3}, jobs={"a": (0.5, "generate")})
    held = [
        Held(Delivery("a", b"", timedelta(1), receipt=7), True, 0.0),
        Held(Delivery("b", b"", timedelta(1)), True, 0.0),
    ]
    running = running_of(held, report.jobs)
    read = Availability.model_validate(asked(report, *running))
    assert (read.models, read.disk, read.node.rates, read.stats) == (MODELS, disk, rates, {"done": 3})
    assert read.running == (Running(id="a", token=7, progress=0.5, hop="generate"), Running(id="b"))
    assert read.wait == 20.0


def test_what_is_not_known_is_left_out() -> None:
    """No null stands for what was never measured; the published lists are there though they are empty."""
    body = asked(Report())
    assert set(body) == {"node", "vram_models", "disk_models", "models", "running", "wait"}
    assert set(body["node"]) == {"id", "gpu", "instance", "version"}


@pytest.mark.parametrize(
    ("name", "word"),
    [
        ("NVIDIA GeForce RTX 4090", "rtx4090"),
        ("NVIDIA RTX A5000", "rtxa5000"),
        ("NVIDIA GeForce RTX 3060 Laptop GPU", "rtx3060laptop"),
        ("NVIDIA", "nvidia"),
    ],
)
def test_a_gpu_is_named_as_in_the_published_example(name: str, word: str) -> None:
    """Lower case, no maker, no blanks."""
    assert answers.gpu_word(name) == word


def test_a_heartbeat_tells_everything_held() -> None:
    """And that the node stops only when it does."""
    node, report = a_node().identity, Report(models=MODELS)
    beat = json.loads(answers.heartbeat(node, report, [Running(id="a", token=3)]))
    assert beat["running"] == [{"id": "a", "token": 3}]
    assert "away" not in beat
    assert json.loads(answers.heartbeat(node, report, [], away=True))["away"] is True


def test_the_published_answer_is_a_job_and_an_order() -> None:
    """A generation without an id is handed over once, under an id of ours that its document does not hold."""
    answer = answers.answer_of(from_json(EXAMPLE_ANSWER))
    assert answer.generation is not None
    delivery = answers.delivery_of(answer.generation, "made-up", POLICY)
    assert json.loads(delivery.body) == json.loads(EXAMPLE_ANSWER)["generation"]
    assert (delivery.id, delivery.receipt, delivery.visibility) == ("made-up", None, POLICY.visibility)
    assert (delivery.deliveries, delivery.redelivered, delivery.attempts) == (1, False, ())
    assert (delivery.last_attempt, delivery.last_delivery, delivery.over_limit) == (True, True, False)
    [url] = json.loads(EXAMPLE_ANSWER)["download"]["checkpoints"]
    assert answers.orders_of(answer) == Orders(download=(Download(url=url, kind="checkpoint"),))


def test_sources_stand_beside_the_document() -> None:
    """They are the server's word and go with the delivery; a job is the same with them and without."""
    document = {"id": "j", "checkpoint": "a.safetensors", "params": {"prompt": "a cat"}}
    told = {"kind": "checkpoint", "name": "a.safetensors", "url": "http://[::1]:9/a", "sha256": "ab" * 32, "size": 5}
    delivery = delivery_of(**document, sources=[told])
    assert (json.loads(delivery.body), delivery.sources) == (document, (Download.model_validate(told),))
    assert delivery_of(**document, sources=None).sources == ()
    nameless = delivery_of(params={"prompt": "a cat"}, sources=[told])
    assert (json.loads(nameless.body), len(nameless.sources)) == ({"params": {"prompt": "a cat"}}, 1)
    pointer = delivery_of(id="j", job_url="https://store.example/j.json", sources=[told])
    assert json.loads(pointer.body) == {"job_url": "https://store.example/j.json"}


@pytest.mark.parametrize("document", [None, {}, {"generation": None}, {"unheard": 1, "download": None}])
def test_no_work_has_many_forms(document: Any) -> None:
    """204, an empty object, a null generation, and fields that nobody knows."""
    assert answers.answer_of(document) == Answer()
    assert answers.orders_of(answers.answer_of(document)) is None


def test_the_lease_is_no_part_of_the_document() -> None:
    """Its fields are left out of the body; the job's own stay, ``x-`` fields and its id included."""
    job = {"id": "a", "params": {"prompt": "x"}, "x-mine": {"deep": [1, None]}, "priority": 3}
    lease = {
        "token": 5,
        "lease": 30,
        "deliveries": 1,
        "attempts": [],
        "max_attempts": 2,
        "queued_at": "2026-03-01T12:00:00Z",
    }
    delivery = delivery_of(**job, **lease, max_deliveries=9, redelivered=False)
    assert json.loads(delivery.body) == job
    assert (delivery.id, delivery.receipt, delivery.visibility) == ("a", 5, timedelta(seconds=30))
    assert (delivery.queued_at, delivery.redelivered) == (START, False)


def test_a_pointer_at_the_document_stands_alone() -> None:
    """What only names where the document is has no id beside that: the delivery has it."""
    delivery = delivery_of(id="a", job_url="s3://jobs/a.json", token=1)
    assert (delivery.id, json.loads(delivery.body)) == ("a", {"job_url": "s3://jobs/a.json"})


def test_what_the_server_does_not_tell_is_unknown() -> None:
    """Nothing is guessed of a job that a server leases without saying how often it did."""
    delivery = delivery_of(id="a", params={}, queued_at="yesterday", lease=None)
    assert (delivery.deliveries, delivery.redelivered, delivery.last_attempt, delivery.last_delivery) == (None,) * 4
    assert (delivery.queued_at, delivery.over_limit, delivery.visibility) == (None, False, POLICY.visibility)


def test_the_servers_limits_override_ours() -> None:
    """The last attempt and delivery are judged by what the answer says."""
    charged = {"worker": "w2", "ended": "2026-03-01T12:00:00Z", "code": "internal", "charged": True}
    ours = delivery_of(id="a", deliveries=2, attempts=[charged])
    theirs = delivery_of(id="a", deliveries=2, attempts=[charged], max_attempts=2, max_deliveries=1)
    assert (ours.last_attempt, ours.last_delivery, ours.over_limit, ours.redelivered) == (False, False, False, True)
    assert (theirs.last_attempt, theirs.last_delivery, theirs.over_limit) == (True, True, True)
    assert ours.attempts == (Attempt("w2", START, "internal", charged=True),)


def test_attempts_that_nobody_understands_do_not_cost_the_job() -> None:
    """They count for none, and the log says so."""
    with capture_logs() as logs:
        delivery = delivery_of(id="a", attempts=[{"worker": "w2", "ended": "soon"}], deliveries=1)
    assert (delivery.attempts, delivery.redelivered) == ((), None)
    assert [line["event"] for line in logs] == ["attempts_not_understood"]


ends = st.sampled_from([None, "internal", "draining", "engine_lost", "webhook_undelivered"])
histories = st.lists(st.tuples(ends, st.booleans(), st.integers(0, 1)), max_size=6)


@given(histories)
@settings(max_examples=100, deadline=None)
def test_a_delivery_comes_over_the_wire_as_the_policy_means_it(history: list[tuple[str | None, bool, int]]) -> None:
    """Whatever happened to a job before, worker and server judge its limits alike."""
    earlier = [HandOver(n, run, "w2", START, code, charged) for n, (code, charged, run) in enumerate(history)]
    meant = POLICY.delivery("a", b'{"id":"a"}', START, HandOver(99, 1, "w1"), earlier)
    came = delivery_of(
        id=meant.id,
        token=meant.receipt,
        lease=meant.visibility.total_seconds(),
        deliveries=meant.deliveries,
        redelivered=meant.redelivered,
        attempts=[
            {"worker": a.worker, "ended": a.ended and isoformat(a.ended), "code": a.code, "charged": a.charged}
            for a in meant.attempts
        ],
        max_attempts=POLICY.max_attempts,
        max_deliveries=POLICY.max_deliveries,
        queued_at=isoformat(START),
    )
    assert came == replace(meant, receipt=came.receipt)
    assert came.receipt == 99


def test_a_job_is_taken_though_its_orders_cannot_be_read() -> None:
    """A server with a strange order does not lose the job that it leased."""
    with capture_logs() as logs:
        answer = answers.answer_of({"generation": {"id": "a"}, "evict": "everything"})
    assert answer.generation is not None
    assert answers.orders_of(answer) is None
    assert [line["event"] for line in logs] == ["orders_not_understood"]


@pytest.mark.parametrize("document", [[], "work", {"generation": {"id": ["a"]}}, {"generation": 7, "evict": 7}])
def test_what_is_no_answer_is_an_outage(document: Any) -> None:
    """It is told by field, without its values."""
    with pytest.raises(QueueUnavailable, match="not understood"):
        answers.answer_of(document)


@pytest.mark.parametrize("document", [[], {"lost": "all"}, "ok"])
def test_what_is_no_answer_to_a_heartbeat_renews_nothing(document: Any) -> None:
    """A page of a proxy must not keep a lease alive in our eyes."""
    with pytest.raises(QueueUnavailable, match="not understood"):
        answers.beat_of(document)


def test_an_empty_answer_to_a_heartbeat_renews_everything() -> None:
    """204 and an empty object alike."""
    assert answers.beat_of(None) == answers.beat_of({})
    assert answers.beat_of({}).lost == ()


def test_orders_are_joined_each_once() -> None:
    """Those that nobody took yet come before the later ones."""
    first = Orders(download=(Download(url="u", kind="lora"),), cancel=("a",))
    second = Orders(evict=(Evict(kind="vae", name="v"),), cancel=("a", "b"))
    assert answers.merged(first, second) == Orders(first.download, second.evict, ("a", "b"))
    assert answers.merged(None, second) is second
    assert answers.merged(first, None) is first
    assert answers.merged(None, None) is None


def test_jobs_are_read_from_a_list_or_an_object() -> None:
    """What else the server says of them is ignored; what cannot be read is an outage."""
    job = {"id": "a", "status": "leased", "node": "w2", "attempts": [{"worker": "w2", "code": None}]}
    [listed], [held] = answers.states_of([job]), answers.states_of({"jobs": [job], "next": None})
    assert listed == held == answers.state_of(job)
    assert (held.status, held.deliveries, held.attempts) == ("leased", 0, (Attempt("w2", None, None),))
    with pytest.raises(QueueUnavailable, match="not understood"):
        answers.states_of({"jobs": [{"status": "leased"}]})

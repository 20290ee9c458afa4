"""What the dispatcher tells a node of where a job's models are to be had: the catalogue's word beside the document."""

from __future__ import annotations

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from dispatcher.documents import Counts, generation_of, new_job, sources_of
from dispatcher.needs import Catalogue, needs_of
from dispatcher.store.base import Grant
from dispatcher.words import Need, Source, Waiting
from worker.job import Limits
from worker.queues.base import Attempt

DIGEST, OTHER = "ab" * 32, "cd" * 32
URL = "https://cdn.example/a"
CATALOGUE = Catalogue(
    [
        Source("checkpoint", "a.safetensors", URL, DIGEST, 2_000),
        Source("lora", "b.safetensors", "https://cdn.example/b"),
        Source("vae", "c.pt"),
    ]
)
A = {"kind": "checkpoint", "name": "a.safetensors", "url": URL, "sha256": DIGEST, "size": 2_000}
NOW = datetime(2026, 3, 1, tzinfo=UTC)


def sources(document: dict[str, Any], catalogue: Catalogue = CATALOGUE) -> list[dict[str, Any]]:
    """What goes beside a job that was submitted under `CATALOGUE`, without what is not known."""
    found = sources_of(needs_of(document, CATALOGUE), catalogue) or ()
    return [one.model_dump(exclude_none=True) for one in found]


def test_the_catalogue_tells_where_models_are_to_be_had() -> None:
    """A checkpoint and a LoRA that are only named, as the entries name them; of a VAE without a URL nothing."""
    document = {"checkpoint": "a", "params": {"prompt": "", "vae": "c.pt", "loras": [{"name": "b"}]}}
    assert sources(document) == [A, {"kind": "lora", "name": "b.safetensors", "url": "https://cdn.example/b"}]
    assert sources_of(needs_of({"params": {"prompt": "", "vae": "c.pt"}}, CATALOGUE), CATALOGUE) is None


@pytest.mark.parametrize("entry", [{"sha256": OTHER}, {"size": 7}, {"url": "https://mine.example/a"}, {}])
def test_each_file_is_told_once_whatever_the_job_says_of_it(entry: dict[str, Any]) -> None:
    """Whether the job contradicts it is for the node to see, which reads the whole document."""
    listed = {"kind": "checkpoint", "name": "a.safetensors", **entry}
    assert sources({"checkpoint": "a", "params": {"prompt": ""}, "models": [listed]}) == [A]


def test_the_entry_of_today_counts() -> None:
    """A job that waits since before its entry had another digest is told of the new file."""
    moved = Catalogue([Source("checkpoint", "a.safetensors", "https://cdn.example/a2", OTHER)])
    told = sources({"checkpoint": "a", "params": {"prompt": ""}}, moved)
    assert [(one["url"], one["sha256"]) for one in told] == [("https://cdn.example/a2", OTHER)]
    assert sources({"checkpoint": "a", "params": {"prompt": ""}}, Catalogue()) == []


def test_the_document_stays_what_its_user_sent() -> None:
    """The catalogue adds nothing to it."""
    document = {"id": "j", "checkpoint": "a", "params": {"prompt": ""}}
    assert new_job(document, CATALOGUE, Limits()).document == document


def test_a_grant_becomes_a_generation() -> None:
    """The document, everything by which the worker judges its lease, and the sources, of which no user has a say."""
    attempts = (Attempt("w1", NOW, "engine_oom", True), Attempt("w2", None, None))
    job = Waiting("j", (Need("checkpoint/a", "checkpoint", "a.safetensors"),))
    grant = Grant(job, {"id": "j", "params": {}, "x-note": 1}, 7, 3, attempts, timedelta(seconds=90), NOW, True)
    assert generation_of(grant, Counts(4, 9), CATALOGUE).model_dump(mode="json") == {
        "id": "j",
        "params": {},
        "x-note": 1,
        "token": 7,
        "lease": 90.0,
        "deliveries": 3,
        "attempts": [
            {"worker": "w1", "ended": "2026-03-01T00:00:00.000Z", "code": "engine_oom", "charged": True},
            {"worker": "w2", "ended": None, "code": None, "charged": False},
        ],
        "max_attempts": 4,
        "max_deliveries": 9,
        "queued_at": "2026-03-01T00:00:00.000Z",
        "redelivered": True,
        "sources": [A],
    }
    smuggled = replace(grant, document={**grant.document, "sources": [{"url": "http://[::1]/"}]})
    assert generation_of(smuggled, Counts(), Catalogue()).sources is None

"""Documents as they become jobs, and orders as nodes get them."""

from __future__ import annotations

import pytest

from dispatcher.documents import (
    downloads_of,
    evictions_of,
    new_job,
    read_orders,
    stored_orders,
)
from dispatcher.needs import Catalogue
from dispatcher.words import Need, NodeOrders, Source
from worker.errors import InvalidJob
from worker.job import Limits

DIGEST = "ab" * 32
URL = "https://cdn.example/a"
SOURCE = Source("checkpoint", "a.safetensors", URL, DIGEST, 2_000)
CATALOGUE = Catalogue([SOURCE, Source("lora", "b.safetensors", "https://cdn.example/b"), Source("vae", "c.pt")])


def test_a_job_is_known_by_its_document() -> None:
    """Its fingerprint is the same for the same request, whatever the catalogue adds, and no other's."""
    document = {"id": "j", "checkpoint": "a", "params": {"prompt": ""}, "priority": 4}
    one, two = new_job(document, CATALOGUE, Limits(), user="u"), new_job(document, Catalogue(), Limits())
    other = new_job({**document, "params": {"prompt": "x"}}, CATALOGUE, Limits())
    assert (one.id, one.user, one.priority, one.needs[0].sha256) == ("j", "u", 4, DIGEST)
    assert one.fingerprint == two.fingerprint != other.fingerprint


def test_what_only_points_at_a_document_is_refused() -> None:
    """Whoever matches jobs to models must see which they need."""
    with pytest.raises(InvalidJob, match="job_url"):
        new_job({"job_url": "https://example.com/j.json"}, CATALOGUE, Limits())


def test_orders_in_the_published_form_are_urls() -> None:
    """And what has none cannot be ordered so; in ours everything that is known goes along."""
    known = Need("checkpoint@x", "checkpoint", "a.safetensors", 5, URL, DIGEST)
    orders = NodeOrders((known, Need("lora/b", "lora", "b.safetensors")), (Need("vae/c", "vae", "c.pt"),))
    assert downloads_of(orders, plain=True) == {"checkpoints": (URL,)}
    ours = downloads_of(orders, plain=False)
    assert ours is not None
    assert set(ours) == {"checkpoints", "loras"}
    evictions = evictions_of(orders)
    assert evictions is not None
    assert [(one.kind, one.name) for one in evictions] == [("vae", "c.pt")]
    assert downloads_of(NodeOrders(), plain=False) is None
    assert evictions_of(NodeOrders()) is None


def test_orders_are_read_as_they_were_stored() -> None:
    """For the other processes."""
    orders = NodeOrders((Need("checkpoint@x", "checkpoint", "a", 5, URL, DIGEST),), (Need("vae/c", "vae", "c.pt"),))
    assert read_orders(stored_orders(orders)) == orders
    assert read_orders({}) == NodeOrders()

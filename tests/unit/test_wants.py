"""What a job's mentions come to, and the job with the names that its files got."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.errors import InvalidJob, Owner
from worker.job import Job, Limits, document_of, parse
from worker.mentions import Mention, Place
from worker.wants import settled, wants_of

URL = "https://huggingface.co/org/repo/resolve/main/tiger.safetensors"
SHA = "ab" * 32


def job(**fields: Any) -> Job:
    body = {"id": "a", "params": {"prompt": "a tiger"}, **fields}
    return parse(document_of(json.dumps(body).encode(), max_body=100_000), fallback_id="a", limits=Limits())


CHECKPOINT = Mention("checkpoint", "tiger.safetensors", ("checkpoint",))


@pytest.mark.parametrize("called", ["tiger.safetensors", "tiger", "big/tiger.safetensors", "big/tiger"])
def test_what_models_say_of_a_file_holds_where_it_is_named(called: str) -> None:
    """By the whole name, the base name or either without its extension."""
    listed = {"kind": "checkpoint", "name": "big/tiger.safetensors", "url": URL, "sha256": SHA, "size": 5}
    one = job(checkpoint=called, models=[listed])
    wanted = wants_of(one, [Mention("checkpoint", called, ("checkpoint",))])[0]
    assert (wanted.name, wanted.url, wanted.sha256, wanted.size) == ("big/tiger.safetensors", URL, SHA, 5)
    assert (wanted.owner, wanted.field, wanted.known) == (Owner.JOB, "checkpoint", False)


def test_another_kind_of_the_same_name_is_another_file() -> None:
    """A LoRA says nothing of a checkpoint; a refiner is a checkpoint."""
    one = job(
        models=[{"kind": "lora", "name": "tiger.safetensors", "sha256": SHA}],
        params={"prompt": "a", "refiner": {"checkpoint": "tiger.safetensors"}},
    )
    assert wants_of(one, [CHECKPOINT])[0].sha256 is None
    refiner = Mention("refiner", "tiger.safetensors", ("params", "refiner", "checkpoint"))
    assert wants_of(one, [refiner])[0].place == Place("checkpoint", "tiger.safetensors")


def test_each_listed_model_is_wanted_as_it_stands() -> None:
    """Two of one base name are told apart by their place in the list; naming the base name alone is refused."""
    models = [{"kind": "lora", "name": f"{folder}/x.safetensors", "url": f"{URL}{folder}"} for folder in "ab"]
    one = job(models=models)
    mentions = [Mention("lora", f"{folder}/x.safetensors", ("models", i, "name")) for i, folder in enumerate("ab")]
    assert [wanted.url for wanted in wants_of(one, mentions)] == [f"{URL}a", f"{URL}b"]
    with pytest.raises(InvalidJob, match=r"params\.prompt: could be several"):
        wants_of(one, [Mention("lora", "x", ("params", "prompt"), tag=True)])


def test_a_file_that_the_server_finds_is_wanted_by_its_place() -> None:
    """The name below the folder, and that nothing need be fetched."""
    wanted = wants_of(job(), [Mention("checkpoint", "tiger", ("checkpoint",), known="cats/tiger.safetensors")])[0]
    assert (wanted.name, wanted.known) == ("cats/tiger.safetensors", True)


def test_a_url_in_a_graph_takes_its_name_and_hash_from_the_list() -> None:
    """And the mention's own name where the list has none of that URL."""
    one = job(models=[{"kind": "checkpoint", "name": "own.safetensors", "url": URL, "sha256": SHA}])
    path = ("workflow", "1", "inputs", "ckpt_name")
    wanted = wants_of(one, [Mention("checkpoint", "own.safetensors", path, url=URL)])[0]
    assert (wanted.name, wanted.url, wanted.sha256) == ("own.safetensors", URL, SHA)
    wanted = wants_of(one, [Mention("checkpoint", "other.safetensors", path, url=URL + "2")])[0]
    assert (wanted.name, wanted.url, wanted.sha256) == ("other.safetensors", URL + "2", None)


def test_names_that_stand_are_left_alone() -> None:
    """The very same job comes back when every file lies where the server finds it."""
    one = job(checkpoint="tiger.safetensors")
    assert settled(one, [CHECKPOINT], [Place("checkpoint", "tiger.safetensors")]) is one
    known = Mention("checkpoint", "tiger", ("checkpoint",), known="cats/tiger.safetensors")
    assert settled(one, [known], [Place("checkpoint", "cats/tiger.safetensors")]) is one


def test_every_reference_to_a_file_that_is_stored_apart_is_rewritten() -> None:
    """Checkpoint, list, parameters, tags and graphs; the digest stays that of what the user sent."""
    one = job(
        checkpoint="tiger.safetensors",
        params={"prompt": "a <lora:fur:0.5> b <lora:furry:1>", "loras": [{"name": "fur"}], "vae": "v.pt"},
        models=[{"kind": "lora", "name": "fur.safetensors", "url": URL}],
    )
    mentions = [
        CHECKPOINT,
        Mention("lora", "fur", ("params", "prompt"), tag=True),
        Mention("lora", "fur", ("params", "loras", 0, "name")),
        Mention("vae", "v.pt", ("params", "vae"), known="v.pt"),
        Mention("lora", "fur.safetensors", ("models", 0, "name")),
    ]
    apart = Place("lora", "fur~01234567.safetensors")
    places = [Place("checkpoint", "tiger~89abcdef.safetensors"), apart, apart, Place("vae", "v.pt"), apart]
    changed = settled(one, mentions, places)
    assert changed.checkpoint == "tiger~89abcdef.safetensors"
    assert changed.params is not None
    assert changed.params.prompt == "a <lora:fur~01234567:0.5> b <lora:furry:1>"
    assert changed.params.loras[0].name == changed.models[0].name == apart.name
    assert changed.params.vae == "v.pt"
    assert changed.sha256 == one.sha256 != ""


def test_a_url_in_a_graph_gives_way_to_the_files_name() -> None:
    """Even when the file has the very name that the URL ends with."""
    graph = {"1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": URL}}}
    body = {"id": "a", "workflow": graph}
    one = parse(document_of(json.dumps(body).encode(), max_body=100_000), fallback_id="a", limits=Limits())
    path = ("workflow", "1", "inputs", "ckpt_name")
    mention = Mention("checkpoint", "tiger.safetensors", path, url=URL)
    changed = settled(one, [mention], [Place("checkpoint", "tiger.safetensors")])
    assert changed.workflow == {
        "1": {"class_type": "CheckpointLoaderSimple", "inputs": {"ckpt_name": "tiger.safetensors"}}
    }

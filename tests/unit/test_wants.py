"""What a job's mentions come to, and the job with the names that its files got."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.errors import InvalidJob, Owner
from worker.job import Job, Limits, document_of, parse
from worker.mentions import Mention, Place
from worker.models.base import Wanted
from worker.wants import settled, wants_of
from worker.wire import Download

URL = "https://huggingface.co/org/repo/resolve/main/tiger.safetensors"
SHA, OTHER = "ab" * 32, "cd" * 32
PLACE = "http://[::1]:9/weights/1"


def job(**fields: Any) -> Job:
    body = {"id": "a", "params": {"prompt": "a tiger"}, **fields}
    return parse(document_of(json.dumps(body).encode(), max_body=100_000), fallback_id="a", limits=Limits())


CHECKPOINT = Mention("checkpoint", "tiger.safetensors", ("checkpoint",))


def source(name: str = "tiger.safetensors", kind: str = "checkpoint", **fields: Any) -> Download:
    return Download(kind=kind, name=name, **{"url": PLACE, "sha256": SHA, "size": 5, **fields})


def wanted_with(*sources: Download, mention: Mention = CHECKPOINT, **fields: Any) -> Wanted:
    """What a mention comes to in a job of these fields, beside these sources."""
    [wanted] = wants_of(job(**fields), [mention], sources)
    return wanted


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


@pytest.mark.parametrize(
    ("called", "path", "name"),
    [
        ("tiger.safetensors", "tiger.safetensors", "tiger.safetensors"),
        ("tiger", "tiger.safetensors", "tiger.safetensors"),
        ("tiger.ckpt", "tiger.safetensors", "tiger.safetensors"),
        ("tiger.safetensors", "big/tiger.safetensors", "tiger.safetensors"),
        ("tiger", "big/tiger.safetensors", "big/tiger.safetensors"),
        ("big\\tiger", "big/tiger.safetensors", "big/tiger.safetensors"),
    ],
)
def test_what_the_job_only_names_is_had_from_the_operators_source(called: str, path: str, name: str) -> None:
    """By path or base name, with or without extension: URL, digest and size are the operator's word."""
    wanted = wanted_with(source(path, sha256=SHA.upper()), mention=Mention("checkpoint", called, ("checkpoint",)))
    assert wanted == Wanted("checkpoint", name, PLACE, SHA, 5, Owner.OPERATOR, "checkpoint")


def test_a_refiner_is_had_where_checkpoints_are() -> None:
    """It lies among them; so does a LoRA's tag among the folders' names."""
    refiner = Mention("refiner", "tiger", ("params", "refiner", "checkpoint"))
    wanted = wanted_with(source(kind="checkpoints"), mention=refiner)
    assert (wanted.kind, wanted.url, wanted.owner) == ("refiner", PLACE, Owner.OPERATOR)
    tag = Mention("lora", "fur", ("params", "prompt"), tag=True)
    wanted = wanted_with(source("fur.safetensors", "loras"), mention=tag)
    assert (wanted.kind, wanted.name, wanted.url) == ("lora", "fur.safetensors", PLACE)


def test_a_checkpoint_may_turn_out_to_be_a_diffusion_model() -> None:
    """As the operator lists it; but not where the server has a checkpoint of the name, or a loader asks for one."""
    unet = source(kind="unet")
    assert wanted_with(unet).place == Place("unet", "tiger.safetensors")
    known = Mention("checkpoint", "tiger", ("checkpoint",), known="tiger.safetensors")
    assert wanted_with(unet, mention=known).url is None
    loader = Mention("checkpoint", "tiger.safetensors", ("workflow", "1", "inputs", "ckpt_name"))
    assert wanted_with(unet, mention=loader).url is None
    assert wanted_with(unet, source(url=URL)).url == URL


def test_a_url_of_the_jobs_own_is_its_word() -> None:
    """Guarded as ever, even where it is the operator's very URL; so is one that stands in the place of the name."""
    listed = {"kind": "checkpoint", "name": "tiger.safetensors", "url": PLACE}
    for wanted in (
        wanted_with(source(), models=[listed]),
        wanted_with(source(), mention=Mention("checkpoint", "tiger.safetensors", ("checkpoint",), url=PLACE)),
    ):
        assert (wanted.url, wanted.sha256, wanted.owner) == (PLACE, None, Owner.JOB)


@pytest.mark.parametrize("fields", [{"sha256": OTHER}, {"sha256": OTHER, "size": 5}])
def test_a_source_of_another_file_is_none(fields: dict[str, Any]) -> None:
    """A digest that contradicts the job's, whatever the size."""
    wanted = wanted_with(source(), models=[{"kind": "checkpoint", "name": "tiger.safetensors", **fields}])
    assert (wanted.url, wanted.sha256, wanted.owner) == (None, OTHER, Owner.JOB)


def test_sizes_tell_files_apart_where_digests_do_not() -> None:
    """And the digest decides where both sides have it."""
    listed = {"kind": "checkpoint", "name": "tiger.safetensors", "size": 7}
    assert wanted_with(source(sha256=None), models=[listed]).url is None
    wanted = wanted_with(source(), models=[{**listed, "sha256": SHA}])
    assert (wanted.url, wanted.size, wanted.claimed) == (PLACE, 7, False)


def test_a_digest_finds_a_file_of_any_name() -> None:
    """It keeps the name that the job has for it."""
    listed = {"kind": "checkpoint", "name": "tiger.safetensors", "sha256": SHA}
    wanted = wanted_with(source("lion.safetensors"), models=[listed])
    assert (wanted.name, wanted.url, wanted.owner) == ("tiger.safetensors", PLACE, Owner.OPERATOR)


def test_a_digest_that_only_the_job_tells_is_a_claim() -> None:
    """What it says of the operator's URL is checked for this job, and believed for no other."""
    listed = {"kind": "checkpoint", "name": "tiger.safetensors", "sha256": SHA}
    wanted = wanted_with(source(sha256=None), models=[listed])
    assert (wanted.url, wanted.sha256, wanted.owner, wanted.claimed) == (PLACE, SHA, Owner.OPERATOR, True)
    assert not wanted_with(source(sha256=None)).claimed


def test_of_several_sources_the_one_of_the_whole_name_counts() -> None:
    """A base name that several have tells none of them apart."""
    folders = [source("a/tiger.safetensors"), source("b/tiger.safetensors")]
    assert wanted_with(*folders).url is None
    assert wanted_with(*folders, source(url=URL)).url == URL


@pytest.mark.parametrize(
    "fields", [{"url": None}, {"name": None}, {"name": "../tiger.safetensors"}, {"kind": None}, {"sha256": "x"}]
)
def test_what_is_no_source_is_passed_over(fields: dict[str, Any]) -> None:
    """The job is no worse for it."""
    assert wanted_with(source().model_copy(update=fields)) == wanted_with()


def test_embeddings_that_only_a_source_names_are_wanted_too() -> None:
    """A server without the file takes the name for a word of the text; one that is mentioned is wanted once."""
    sources = [source("lazy.pt", "embeddings", url=URL), source("spare.pt", "lora")]
    assert wants_of(job(), [CHECKPOINT], sources)[1:] == (Wanted("embedding", "lazy.pt", URL, SHA, 5, Owner.OPERATOR),)
    mention = Mention("embedding", "lazy", ("params", "prompt"), tag=True)
    assert [one.name for one in wants_of(job(), [mention], sources)] == ["lazy.pt"]

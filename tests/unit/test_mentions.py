"""Names of models in a job's document, and the same document with others."""

from __future__ import annotations

from typing import Any

import pytest

from worker.errors import InvalidJob
from worker.job import Job, Limits, parse
from worker.mentions import (
    Gathering,
    Mention,
    Place,
    file_of,
    is_source,
    is_word_in,
    place_of,
    renamed,
    stem_of,
    unexplained,
)

HF = "https://huggingface.co/a/b/resolve/main/ink.safetensors?download=true"

EASY = ("embedding", "easy", "e/new.pt")


def job_of(**document: Any) -> Job:
    return parse({"id": "job-1", **document}, fallback_id="job-1", limits=Limits())


def drawn(prompt: str = "a cat", **params: Any) -> Job:
    return job_of(params={"prompt": prompt, **params}, timeout=30, deadline="2031-01-01T00:00:00Z")


def retold(prompt: str, *names: tuple[str, str, str]) -> str:
    """A prompt in which mentions by kind and name get the names of other files."""
    pairs = [(Mention(kind, old, ("params", "prompt"), tag=True), new) for kind, old, new in names]
    params = renamed(drawn(prompt), pairs).params
    assert params is not None
    return params.prompt


def test_a_place_is_one_whatever_its_kind_is_called() -> None:
    """Refiners are checkpoints, and folders' names stand for kinds; other folders are kinds of their own."""
    assert place_of("refiner", "x") == place_of("checkpoints", "x") == Place("checkpoint", "x")
    assert place_of("diffusion_models", "x") == Place("unet", "x")
    assert place_of("ipadapter", "x") == Place("ipadapter", "x")
    assert str(place_of("lora", "a/x.pt")) == "lora/a/x.pt"
    assert Mention("lora", "x", ("params", "loras", 0, "name")).field == "params.loras.0.name"


@pytest.mark.parametrize(
    ("name", "stem"), [("a.b.safetensors", "a.b"), ("A.SFT", "A"), ("v1.5", "v1.5"), (".pt", ".pt"), ("x.gguf", "x")]
)
def test_a_stem_keeps_the_dots_of_the_name(name: str, stem: str) -> None:
    """Only a model file's extension goes."""
    assert stem_of(name) == stem


@pytest.mark.parametrize(
    "text", [HF, "HTTP://h/x", "hf://o/r/x.pt@main", "civitai://5", "urn:air:sdxl:lora:civitai:1@2"]
)
def test_what_says_where_a_model_is_to_be_had_is_no_name(text: str) -> None:
    """URLs of every kind, and AIR names."""
    assert is_source(text)
    assert not is_source(f"x {text}")


@pytest.mark.parametrize(
    ("url", "name"),
    [
        (HF, "ink.safetensors"),
        ("hf://org/repo/sub/x.pt@v1.0", "x.pt"),
        ("hf://org/repo/x.pt", "x.pt"),
        ("s3://bucket/my%20model.ckpt#x", "my model.ckpt"),
        ("https://civitai.com/api/download/models/5", ""),
        ("civitai://5", ""),
        ("https://h/x.exe", ""),
        ("https://h/..%2f..%2fx.pt", ""),
        ("https://h/a%5cx.pt", ""),
        ("https://h/.pt", ""),
    ],
)
def test_a_url_may_tell_the_file_s_name(url: str, name: str) -> None:
    """By the last part of its path, when that is a model file's name and nothing but one."""
    assert file_of(url) == name


def test_gathering_asks_what_is_known_and_names_what_stands_behind_a_url() -> None:
    """The job's own list names it first; what is no text is left to admission."""
    asked = []

    def known(kind: str, name: str, field: str) -> Place | None:
        asked.append((kind, name, field))
        return Place("clip", "sub/t5.safetensors") if name == "t5" else None

    civitai = "https://civitai.com/api/download/models/5"
    listed = [{"kind": "lora", "name": "fine.safetensors", "url": civitai}]
    gathering = Gathering(job_of(request={}, models=listed), known)
    for at, value in enumerate((HF, civitai, "civitai://7", "", None, 5, ["x"])):
        gathering.add("loras", value, ("request", at))
    gathering.add("vae", "t5", ("request", "vae"))
    gathering.add("lora", "https://x", ("request", "prompt"), tag=True)
    assert [(m.kind, m.name, m.url, m.known) for m in gathering.found] == [
        ("loras", "ink.safetensors", HF, None),
        ("loras", "fine.safetensors", civitai, None),
        ("loras", "", "civitai://7", None),
        ("clip", "t5", None, "sub/t5.safetensors"),
        ("lora", "https://x", None, None),
    ]
    assert asked[0] == ("loras", "ink.safetensors", "request.0")
    assert [name for _, name, _ in asked] == ["ink.safetensors", "fine.safetensors", "t5", "https://x"]


def test_an_ambiguous_name_is_refused_while_gathering() -> None:
    """As at admission."""

    def known(kind: str, name: str, field: str) -> Place | None:
        raise InvalidJob("names several", field=field)

    with pytest.raises(InvalidJob) as caught:
        Gathering(drawn(), known).add("lora", "x", ("params", "loras", 0, "name"))
    assert caught.value.errors[0].field == "params.loras.0.name"


def test_what_neither_server_nor_job_explains() -> None:
    """A name with a URL somewhere in the job can be fetched; any other that is not known is worth another look."""
    listed = [{"kind": "lora", "name": "a/ink.safetensors", "url": HF}, {"kind": "vae", "name": "v.pt"}]
    job = job_of(request={}, models=listed)
    assert not unexplained(job, [])
    assert not unexplained(
        job, [Mention("lora", "ink", ()), Mention("lora", "", (), url=HF), Mention("vae", "v", (), known="v.pt")]
    )
    assert not unexplained(job, [Mention("lora", "b\\ink.safetensors", ())])
    assert unexplained(job, [Mention("vae", "v", ())])


def test_names_are_replaced_where_they_stand_and_nowhere_else() -> None:
    """The rest of the document is the same, and so is its digest: a redelivery must find the first run's result."""
    job = job_of(
        params={"prompt": "base", "loras": [{"name": "base"}, {"name": "ink", "weight": 0.5}]},
        checkpoint="base",
        models=[{"kind": "lora", "name": "ink"}],
        timeout=30,
        deadline="2031-01-01T00:00:00Z",
        metadata={"name": "ink"},
    )
    other = renamed(
        job,
        [
            (Mention("lora", "ink", ("params", "loras", 1, "name")), "sub/ink~1a2b3c4d.safetensors"),
            (Mention("lora", "ink", ("models", 0, "name")), "sub/ink~1a2b3c4d.safetensors"),
        ],
    )
    assert other.params is not None
    assert job.params is not None
    assert [lora.name for lora in other.params.loras] == ["base", "sub/ink~1a2b3c4d.safetensors"]
    assert other.models[0].name == "sub/ink~1a2b3c4d.safetensors"
    assert (other.checkpoint, other.metadata, other.sha256) == ("base", {"name": "ink"}, job.sha256)
    assert (other.timeout, other.deadline) == (job.timeout, job.deadline)
    assert renamed(job, []) is job


def test_names_deep_in_a_body_and_a_graph_are_replaced() -> None:
    """Lists and objects alike; an input by URL becomes a plain name."""
    body = {"override_settings": {"forge_additional_modules": ["a", "b"]}}
    path = ("request", "override_settings", "forge_additional_modules", 1)
    assert renamed(job_of(request=body), [(Mention("vae", "b", path), "c")]).request == {
        "override_settings": {"forge_additional_modules": ["a", "c"]}
    }
    graph = {"4": {"class_type": "LoraLoader", "inputs": {"lora_name": HF, "model": ["3", 0]}}}
    link = ("workflow", "4", "inputs", "lora_name")
    other = renamed(job_of(workflow=graph), [(Mention("lora", "ink.safetensors", link, url=HF), "ink.safetensors")])
    assert other.workflow == {
        "4": {"class_type": "LoraLoader", "inputs": {"lora_name": "ink.safetensors", "model": ["3", 0]}}
    }


@pytest.mark.parametrize(
    ("prompt", "names", "told"),
    [
        ("ink <lora:ink:1>, <LORA: ink :0.5>", [("lora", "ink", "sub/new.pt")], "ink <lora:new:1>, <LORA: new :0.5>"),
        ("<lyco:ink> <lora:inky:1>", [("lora", "ink", "new.pt")], "<lyco:new> <lora:inky:1>"),
        (r"<lora:a.b\1:1>", [("lora", r"a.b\1", r"c\2.pt")], r"<lora:c\2:1>"),
        ("<lora:a:1> <lora:b:1>", [("lora", "a", "b.pt"), ("lora", "b", "c.pt")], "<lora:b:1> <lora:c:1>"),
        ("easy, (Easy:1.2) easyneg un-easy easy.", [EASY], "new, (new:1.2) easyneg un-easy new."),
        ("easy (embedding:easy:1) embedding:easy/x", [EASY], "easy (embedding:e/new:1) embedding:easy/x"),
        ("embedding:easy.pt, embedding:easy.", [("embeddings", "easy", "new.pt")], "embedding:easy.pt, embedding:new."),
        ("a cat", [("lora", "ink", "new.pt")], "a cat"),
    ],
)
def test_tags_and_embeddings_get_the_stem_of_the_file(
    prompt: str, names: list[tuple[str, str, str]], told: str
) -> None:
    """The whole name only, all at once, and embeddings by the way in which the text names them."""
    assert retold(prompt, *names) == told


def test_an_embedding_is_named_by_a_word() -> None:
    """In any case, and not as part of another word; what is no text names none."""
    assert is_word_in("ugly, Easy", "easy")
    assert not is_word_in("easy~1", "easy")
    assert not is_word_in(None, "easy")

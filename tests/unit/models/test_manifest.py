"""The list of models that a node begins with, in our form and in comfyui-api's."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ConfigError, FieldError, Owner
from worker.models.base import Wanted
from worker.models.manifest import Manifest, When, joined, parse

SHA = "ab" * 32
URL = "https://cdn.example/x.safetensors"


def mistakes_of(document: Any, variable: str = "LIST") -> dict[str, str]:
    text = document if isinstance(document, str) else json.dumps(document)
    with pytest.raises(ConfigError) as caught:
        parse(text, variable)
    return {mistake.field: mistake.message for mistake in caught.value.mistakes}


def wanted_of(document: Any) -> list[Wanted]:
    return [item.wanted for item in parse(json.dumps(document), "LIST").items]


def test_an_item_says_all_that_is_known_of_a_model() -> None:
    """The operator is its owner, and its place in the list its name in messages."""
    one = {
        "kind": "lora",
        "name": "a/b.safetensors",
        "url": URL,
        "sha256": SHA.upper(),
        "size": 7,
        "when": "background",
    }
    (item,) = parse(json.dumps([one]), "LIST").items
    assert item.wanted == Wanted("lora", "a/b.safetensors", URL, SHA, 7, Owner.OPERATOR, "LIST[0]")
    assert item.when is When.BACKGROUND


def test_a_model_is_needed_before_the_server_starts_unless_said_otherwise() -> None:
    """A server that starts without its checkpoint fetches one of its own, or none works."""
    found = parse(json.dumps([{"kind": "vae", "name": "a"}, {"kind": "vae", "name": "b", "when": "before_ready"}]))
    assert [one.name for one in found.of(When.BEFORE_ENGINE)] == ["a"]
    assert [one.name for one in found.of(When.BEFORE_READY)] == ["b"]
    assert found.of(When.BACKGROUND) == ()


@pytest.mark.parametrize(
    ("url", "kind", "name"),
    [
        ("s3://models/loras/x.safetensors", "lora", "x.safetensors"),
        ("https://cdn.example/Stable-diffusion/x.safetensors?v=2", "checkpoint", "x.safetensors"),
        ("hf://Comfy-Org/flux/split_files/text_encoders/clip_l.safetensors@main", "clip", "clip_l.safetensors"),
        ("https://huggingface.co/a/b/resolve/main/diffusion_models/x.gguf", "unet", "x.gguf"),
        ("civitai://128713", "", ""),
        ("https://civitai.com/api/download/models/128713", "", ""),
        ("urn:air:sdxl:checkpoint:civitai:101055@128078", "checkpoint", ""),
        ("air:sd1:textualinversion:civitai:1@2", "embedding", ""),
        ("urn:air:sdxl:workflow:civitai:1@2", "", ""),
    ],
)
def test_a_bare_url_will_do_where_it_tells_the_kind(url: str, kind: str, name: str) -> None:
    """By a folder in its path or an AIR name's type; of its own files Civitai knows the kind."""
    assert wanted_of([url]) == [Wanted(kind, name, url, owner=Owner.OPERATOR, field="LIST[0]")]


@pytest.mark.parametrize(
    ("written", "kind"),
    [("checkpoints", "checkpoint"), ("Lora", "lora"), ("diffusion_models", "unet"), ("ipadapter", "ipadapter")],
)
def test_a_kind_may_be_the_name_of_a_folder(written: str, kind: str) -> None:
    """Known ones become the kind of the job document, so that a job finds the file."""
    assert [one.kind for one in wanted_of([{"kind": written, "name": "x"}])] == [kind]


def test_every_mistake_is_told_by_index_and_field() -> None:
    """All at once, and without repeating a value, which may hold a token."""
    wrong = [
        "https://cdn.example/x.safetensors?token=sesame",
        {"name": "sesame.safetensors"},
        {"kind": "vae"},
        {
            "kind": "../sesame",
            "name": "../sesame",
            "url": "ftp://sesame/x",
            "sha256": "sesame",
            "size": 0,
            "when": "now",
        },
        {"kind": "vae", "name": "x", "size": "7", "sesame": 1},
        7,
        {"kind": "vae", "url": "https://sesame.example/a b"},
        {"kind": "vae", "url": "https://"},
        {"kind": "vae", "url": "https://civitai.com/models/sesame"},
        {"kind": "vae", "url": "https://huggingface.co/sesame"},
        {"kind": "vae", "name": "a\\sesame"},
    ]
    found = mistakes_of(wrong)
    assert set(found) == {
        *("LIST[0]", "LIST[1]", "LIST[2]", "LIST[4].size", "LIST[4].sesame", "LIST[5]", "LIST[6].url", "LIST[7].url"),
        *(f"LIST[3].{field}" for field in ("kind", "name", "url", "sha256", "size", "when")),
        *("LIST[8].url", "LIST[9].url", "LIST[10].name"),
    }
    assert found["LIST[4].sesame"] == "unknown field"
    assert found["LIST[3].when"] == "must be 'before_engine', 'before_ready' or 'background'"
    assert "kind, name, url" in found["LIST[5]"]
    assert "sesame" not in "".join(found.values())


@pytest.mark.parametrize("text", ["", "nonsense", "7", "null", "<html></html>", '"list.json"'])
def test_what_is_no_list_is_refused(text: str) -> None:
    """An error page, or the name of a file that was meant to be read."""
    assert mistakes_of(text) == {"LIST": "must be a list of models, or comfyui-api's manifest"}


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("[{", "nor YAML: wrong in line 1"),
        ("- kind: vae\n name: x", "wrong in line 2"),
        ("a: 2024-99-99", "nor YAML"),
        ("[" * 1000, "not JSON"),
    ],
)
def test_what_is_neither_json_nor_yaml_is_told_by_line(text: str, said: str) -> None:
    """Whoever wrote it finds the place."""
    assert said in mistakes_of(text)["LIST"]


def test_yaml_is_read_as_json_is() -> None:
    """Comments and all."""
    text = f"# ours\n- kind: vae\n  url: {URL}\n  when: background\n- s3://m/lora/y.safetensors\n"
    as_json = [{"kind": "vae", "url": URL, "when": "background"}, "s3://m/lora/y.safetensors"]
    assert parse(text) == parse(json.dumps(as_json))


def test_one_model_named_twice_is_fetched_once_and_as_early_as_anybody_wants_it() -> None:
    """The first name stands."""
    one = {"kind": "lora", "url": URL}
    items = parse(json.dumps([{**one, "when": "background"}, {**one, "when": "before_ready"}, one])).items
    assert [(item.wanted.field, item.when) for item in items] == [("WORKER_MODELS_MANIFEST[0]", When.BEFORE_ENGINE)]


def test_two_models_under_one_name_are_a_mistake() -> None:
    """One of them would be stored under a name that no job knows; in other folders they do not meet."""
    first, second = {"kind": "lora", "url": URL}, {"kind": "lora", "url": URL.replace("cdn", "other")}
    assert mistakes_of([first, second]) == {"LIST[1]": "is another model under the name of LIST[0]; give one a name"}
    assert len(wanted_of([first, {**second, "kind": "vae"}, {**second, "name": "y.safetensors"}])) == 3
    assert len(wanted_of(["civitai://1", "civitai://2"])) == 2


COMFYUI = f"""
apt: [ffmpeg]
pip: []
custom_nodes:
  - https://github.com/someone/nodes
models:
  before_start:
    - url: {URL}
      local_path: /opt/ComfyUI/models/checkpoints/sub/one.safetensors
    - url: s3://bucket/two
      local_path: models/ipadapter/two.bin
  after_start:
    - url: https://civitai.com/api/download/models/1?type=Model
      local_path: /models/models/loras/three.safetensors
"""


def test_comfyui_apis_manifest_is_understood() -> None:
    """Its users move without rewriting it: folder and name come from the path below the server's models."""
    found = parse(COMFYUI, "MANIFEST")
    assert [(str(item.wanted.place), item.when, item.wanted.field) for item in found.items] == [
        ("checkpoint/sub/one.safetensors", When.BEFORE_ENGINE, "MANIFEST.models.before_start[0]"),
        ("ipadapter/two.bin", When.BEFORE_ENGINE, "MANIFEST.models.before_start[1]"),
        ("lora/three.safetensors", When.BACKGROUND, "MANIFEST.models.after_start[0]"),
    ]
    assert found.items[0].wanted.url == URL


def test_what_comfyui_api_installs_besides_is_named_as_not_done() -> None:
    """Only what is asked for; an empty section asks for nothing."""
    assert [note.field for note in parse(COMFYUI, "MANIFEST").notes] == ["MANIFEST.apt", "MANIFEST.custom_nodes"]
    assert parse('{"models": null}', "MANIFEST") == Manifest()


def test_mistakes_of_comfyui_apis_manifest_are_told_like_ours() -> None:
    """A path that lies in no folder of models says where such a model belongs."""
    found = mistakes_of(
        {
            "conda": [],
            "models": {
                "later": [],
                "before_start": [
                    {"url": URL, "local_path": "/opt/ComfyUI/custom_nodes/x.safetensors"},
                    {"url": URL, "local_path": "/opt/ComfyUI/models/x.safetensors"},
                    {"url": URL, "local_path": "/opt/ComfyUI/models/LLM/x.safetensors"},
                    {"url": URL, "local_path": "/opt/ComfyUI/models/loras/../x.safetensors"},
                    {"url": "x", "local_path": "", "sha256": SHA},
                ],
                "after_start": None,
            },
        }
    )
    start = "LIST.models.before_start"
    assert set(found) == {
        *("LIST.conda", "LIST.models.later", f"{start}[0]", f"{start}[1]", f"{start}[2]", f"{start}[3]"),
        *(f"{start}[4].url", f"{start}[4].local_path", f"{start}[4].sha256"),
    }
    assert "WORKER_MODELS_DIRS" in found[f"{start}[2]"]
    assert mistakes_of({"models": []}) == {"LIST.models": "must be an object with before_start and after_start"}
    assert mistakes_of({"models": {"after_start": 7}}) == {"LIST.models.after_start": "must be a list"}


def test_lists_are_joined_with_their_notes() -> None:
    """What two of them want is fetched once."""
    both = joined((parse(COMFYUI, "MANIFEST"), parse(json.dumps([{"kind": "lora", "name": "z"}]), "LIST")))
    assert (len(both.items), len(both.notes)) == (4, 2)
    assert joined((both, both)).items == both.items
    with pytest.raises(ConfigError, match="LIST\\[0\\]: is another model under the name of MANIFEST"):
        joined((parse(COMFYUI, "MANIFEST"), parse(json.dumps([{"kind": "ipadapter", "name": "two.bin"}]), "LIST")))


_SCALARS = st.none() | st.booleans() | st.integers() | st.text(max_size=20) | st.sampled_from([URL, SHA, "vae", "when"])
_NAMES = st.sampled_from(
    ["kind", "name", "url", "sha256", "size", "when", "models", "before_start", "local_path", "apt"]
)
_DOCUMENTS = st.recursive(
    _SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_NAMES, inner, max_size=4), max_leaves=12
)


@settings(max_examples=150, deadline=None)
@given(document=_DOCUMENTS)
def test_any_document_is_a_manifest_or_named_mistakes(document: Any) -> None:
    """Nothing that people write ends in another error, and each mistake says where it is."""
    found: Manifest | tuple[FieldError, ...]
    try:
        found = parse(json.dumps(document), "LIST")
    except ConfigError as error:
        found = error.mistakes
    if isinstance(found, Manifest):
        assert all(item.wanted.url or item.wanted.name for item in found.items)
    else:
        assert found != ()
        assert all(mistake.field.startswith("LIST") and mistake.message for mistake in found)


def test_a_note_says_its_field() -> None:
    """As every other message of the start."""
    assert parse('{"apt": ["x"]}', "MANIFEST").notes == (
        FieldError("MANIFEST.apt", "packages are not installed by the worker; put them into the image"),
    )

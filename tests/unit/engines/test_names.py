from __future__ import annotations

from typing import Any

import pytest

from worker.engines.sdapi.names import ModelFile, checkpoints, find, loras, modules, stem_of, without_extension
from worker.errors import InvalidJob

SHA = "4314aaf0bb" + "0" * 54
A1111: list[dict[str, Any]] = [
    {
        "title": "sub/second.safetensors [4314aaf0bb]",
        "model_name": "sub_second",
        "hash": "4314aaf0bb",
        "sha256": SHA,
        "filename": "/m/sub/second.safetensors",
        "config": None,
    },
    {"title": "full15.ckpt", "model_name": "full15", "hash": None, "sha256": None, "filename": "/m/full15.ckpt"},
    {"title": "v1.5-pruned.safetensors", "model_name": "v1.5-pruned", "filename": "/m/v1.5-pruned.safetensors"},
]
SDNEXT_2023 = [
    {
        "title": "Diffusers/org/tinyb [/models/or]",
        "name": "Diffusers/org/tinyb",
        "filename": "/models/Diffusers/org/tinyb",
        "type": "diffusers",
        "sha256": "/models/Diffusers/org/tinyb",
        "hash": "/models/",
    }
]


@pytest.mark.parametrize(
    "name",
    [
        "/m/sub/second.safetensors",
        "sub/second.safetensors [4314aaf0bb]",
        "sub/second.safetensors",
        "sub/second",
        "sub_second",
        "second.safetensors",
        "second",
        "4314aaf0bb",
        SHA,
        "second [4314aaf0bb]",
        "second.ckpt",
    ],
)
def test_every_identity_finds_the_file(name: str) -> None:
    """Path, title, name, hash, file name and stem; the extension may be another or missing."""
    found = find(checkpoints(A1111), name, field="checkpoint")
    assert found is not None
    assert found.filename == "/m/sub/second.safetensors"


@pytest.mark.parametrize("name", ["secon", "second2", "SECOND", "4314", "sub", "", "second [0000000000]", "m/second"])
def test_nothing_else_does(name: str) -> None:
    """Never a part, never the closest."""
    assert find(checkpoints(A1111), name, field="checkpoint") is None


def test_dots_in_a_name_are_no_extension() -> None:
    """A version number stays part of the name."""
    assert without_extension("v1.5-pruned") == "v1.5-pruned"
    found = find(checkpoints(A1111), "v1.5-pruned", field="checkpoint")
    assert found is not None
    assert found.stem == "v1.5-pruned"


def test_a_name_that_fits_two_files_is_refused() -> None:
    """The same stem in two folders is ambiguous; the path is not."""
    files = [ModelFile("a/x", "a/x", "/m/a/x.safetensors"), ModelFile("b/x", "b/x", "/m/b/x.safetensors")]
    with pytest.raises(InvalidJob, match="several"):
        find(files, "x", field="checkpoint")
    assert find(files, "b/x.safetensors", field="checkpoint") == files[1]


def test_the_extension_decides_between_two_formats() -> None:
    """x.ckpt beside x.safetensors: the full name finds its own file."""
    files = [ModelFile("x.ckpt", "x", "/m/x.ckpt"), ModelFile("x.safetensors", "x", "/m/x.safetensors")]
    assert find(files, "x.safetensors", field="checkpoint") == files[1]
    with pytest.raises(InvalidJob):
        find(files, "x", field="checkpoint")


def test_sdnext_of_2023_lists_other_keys() -> None:
    """``name`` instead of ``model_name``, and pieces of the path where hashes belong."""
    (file,) = checkpoints(SDNEXT_2023)
    assert (file.name, file.short_hash, file.sha256, file.hash10) == ("Diffusers/org/tinyb", None, None, None)
    assert find([file], "tinyb", field="checkpoint") == file
    assert find([file], "Diffusers/org/tinyb", field="checkpoint") == file


@pytest.mark.parametrize("body", [None, {}, [1, "x", {}, {"title": 3}]])
def test_broken_lists_are_empty(body: Any) -> None:
    """Whatever a server lists, it is read without harm."""
    assert checkpoints(body) == loras(body) == modules(body) == ()


def test_loras_answer_to_their_alias() -> None:
    """A LoRA has a name, an alias from its metadata, and a path."""
    known = loras([{"name": "my_style", "alias": "style", "path": "/m/Lora/sub/my.style.safetensors", "metadata": {}}])
    for name in ("my_style", "style", "my.style", "sub/my.style.safetensors"):
        assert find(known, name, field="x") == known[0]


def test_stems() -> None:
    """The last part, without hash, folder and extension."""
    assert stem_of("sub/dir/file.safetensors [0123456789]") == "file"
    assert stem_of("sub\\file.ckpt") == "file"
    assert without_extension(".safetensors") == ".safetensors"

"""What a model is: canonical URLs, identities, matches, and names that strangers chose."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.mentions import Place, place_of
from worker.models.base import Entry, Wanted
from worker.models.identity import (
    NAME_BYTES,
    CivitaiFile,
    HuggingFaceFile,
    Match,
    apart,
    canonical,
    disposition_name,
    has_extension,
    identity,
    is_pickle,
    matches,
    name_of,
    reference_of,
    safe_name,
)

SHA, OTHER = "a" * 64, "b" * 64
HF = "hf:org/repo@main/model.safetensors"


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://huggingface.co/org/repo/resolve/main/model.safetensors", HF),
        ("https://HuggingFace.co/org/repo/blob/main/model.safetensors?download=true#top", HF),
        ("https://hf.co/org/repo/raw/main/model.safetensors", HF),
        ("hf://org/repo/model.safetensors", HF),
        ("hf://org/repo/model.safetensors@main", HF),
        ("hf://org/repo@main/model.safetensors", HF),
        ("hf://models/org/repo/model.safetensors", HF),
        ("https://huggingface.co/gpt2/resolve/main/model.safetensors", "hf:gpt2@main/model.safetensors"),
        (
            "https://huggingface.co/datasets/o/r/resolve/refs%2Fpr%2F1/a%20b/c.bin",
            "hf:datasets/o/r@refs%2Fpr%2F1/a%20b/c.bin",
        ),
        ("hf://datasets/o/r/a b/c.bin@refs%2Fpr%2F1", "hf:datasets/o/r@refs%2Fpr%2F1/a%20b/c.bin"),
        ("https://civitai.com/api/download/models/12", "civitai:12"),
        ("https://www.civitai.com/api/download/models/12?token=secret", "civitai:12"),
        ("https://civitai.com/api/download/models/12?type=Model&fileId=3&format=SafeTensor", "civitai:12/3"),
        (
            "https://civitai.com/api/download/models/12?type=Model&format=SafeTensor",
            "civitai:12?format=SafeTensor&type=Model",
        ),
        ("https://civitai.com/api/v1/model-versions/12", "civitai:12"),
        ("https://civitai.com/model-versions/12", "civitai:12"),
        ("https://civitai.com/models/9/some-name?modelVersionId=12", "civitai:12"),
        ("civitai://12", "civitai:12"),
        ("civitai://12?file=3", "civitai:12/3"),
        ("civitai://12/3", "civitai:12/3"),
        ("urn:air:sdxl:checkpoint:civitai:9@12", "civitai:12"),
        ("air:sd1:lora:civitai:9@12.safetensor", "civitai:12?format=SafeTensor"),
        ("s3://Bucket/Some/Key.safetensors", "s3://Bucket/Some/Key.safetensors"),
        ("HTTPS://Example.COM:443/a/../%7Eb?z=1&a=2#f", "https://example.com/a/../~b?a=2&z=1"),
        ("http://u:p@[2001:DB8::1]:8080", "http://[2001:db8::1]:8080/"),
        ("https://x.test/a%2Fb", "https://x.test/a%2Fb"),
        ("https://x.test/m?X-Amz-Signature=1&X-Amz-Date=2&v=3&Expires=4&Signature=5&token=6", "https://x.test/m?v=3"),
        ("https://x.blob.test/m?sv=1&se=2&sig=3&id=4", "https://x.blob.test/m?id=4"),
        ("https://x.test/m?se=2&id=4", "https://x.test/m?id=4&se=2"),
    ],
)
def test_every_url_of_a_file_has_one_canonical_form(url: str, expected: str) -> None:
    """Tokens, signatures, fragments and ways to write it say nothing of the file; the rest of a query does."""
    assert canonical(url) == expected


@pytest.mark.parametrize(
    ("url", "complaint"),
    [
        ("https://huggingface.co/org/repo", "names no file at Hugging Face"),
        ("https://huggingface.co/org/repo/resolve/main/%2e%2e/x.bin", "names no file at Hugging Face"),
        ("hf://org/repo", "must be hf://"),
        ("https://civitai.com/models/9", "no version"),
        ("https://civitai.com/images/9", "names no file at Civitai"),
        ("civitai://nine", "must be civitai://"),
        ("civitai://12?file=x", "must be a number"),
        ("urn:air:sdxl:checkpoint:civitai:9", "without a version"),
        ("urn:air:sdxl:checkpoint:huggingface:o/r@1", "of huggingface"),
        ("urn:air:nonsense", "is not an AIR name"),
        ("model.safetensors", "is not a valid URL"),
        ("https://x.test:notaport/", "is not a valid URL"),
        ("https://[::1/", "is not a valid URL"),
    ],
)
def test_a_url_that_names_no_file_says_what_is_wrong(url: str, complaint: str) -> None:
    """A link to a page is a mistake of whoever wrote it, told in words."""
    with pytest.raises(ValueError, match=complaint):
        canonical(url)


def test_references_hold_what_a_hub_needs() -> None:
    """Only a hub's own URLs are references; a user's token is kept apart from every printed form."""
    assert reference_of("https://x.test/a.safetensors") is None
    assert reference_of("s3://b/k") is None
    file = reference_of("hf://org/repo/sub/m.safetensors@v1")
    assert file == HuggingFaceFile("org/repo", "v1", "sub/m.safetensors")
    assert (file.name, file.host, str(file)) == (
        "m.safetensors",
        "huggingface.co",
        "huggingface.co/org/repo/sub/m.safetensors",
    )
    version = reference_of("https://civitai.com/api/download/models/12?token=secret&fileId=3")
    assert isinstance(version, CivitaiFile)
    assert (version.token, version.name, version.host, str(version)) == (
        "secret",
        "",
        "civitai.com",
        "civitai.com version 12 file 3",
    )
    assert "secret" not in repr(version) + version.canonical


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=60))
def test_canonical_is_stable(text: str) -> None:
    """Whatever stands in a URL, its canonical form is its own canonical form."""
    try:
        once = canonical(f"https://x.test/{text}")
    except ValueError:
        return
    assert canonical(once) == once


def test_identity_is_hash_then_url_then_name() -> None:
    """A hash outweighs a URL, a URL a name; a refiner is a checkpoint."""
    url = "hf://org/repo/model.safetensors"
    assert identity(Wanted("refiner", "n", url=url, sha256=SHA.upper())) == f"checkpoint sha256:{SHA}"
    assert identity(Wanted("lora", "n", url=url)) == f"lora {HF}"
    assert identity(Wanted("lora", "a/n.safetensors")) == "lora name:a/n.safetensors"


def entry(**facts: object) -> Entry:
    return Entry(**{"place": Place("lora", "n.safetensors"), "size": 5, "used": 1, **facts})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("facts", "wanted", "expected"),
    [
        ({"sha256": SHA}, Wanted("lora", "other", sha256=SHA), Match.YES),
        ({"sha256": SHA}, Wanted("lora", "n.safetensors", sha256=OTHER), Match.NO),
        (
            {"urls": frozenset({HF})},
            Wanted("lora", "n.safetensors", url="hf://org/repo/model.safetensors", sha256=SHA),
            Match.UNKNOWN,
        ),
        ({"sha256": SHA}, Wanted("vae", "n", sha256=SHA), Match.NO),
        ({}, Wanted("lora", "n.safetensors", sha256=SHA, size=6), Match.NO),
        ({"urls": frozenset({HF})}, Wanted("lora", "x", url="hf://org/repo/model.safetensors"), Match.YES),
        ({"urls": frozenset({HF})}, Wanted("lora", "n.safetensors", url="https://x.test/n.safetensors"), Match.NO),
        ({}, Wanted("lora", "n.safetensors", url="https://x.test/n.safetensors"), Match.UNKNOWN),
        ({}, Wanted("lora", "n.safetensors"), Match.YES),
        ({}, Wanted("lora", "m.safetensors"), Match.NO),
        ({"place": place_of("refiner", "n")}, Wanted("checkpoint", "n"), Match.YES),
    ],
)
def test_a_file_is_what_is_wanted_by_identity(facts: dict[str, object], wanted: Wanted, expected: Match) -> None:
    """A file of that name with another identity is never used, and what only a hash can tell stays unknown."""
    assert matches(entry(**facts), wanted) is expected


def test_names_set_apart() -> None:
    """A second model of a name gets one of its own, in the same folder, always the same, and never too long."""
    first = apart("sub/n.v2.safetensors", "lora a")
    assert first == apart("sub/n.v2.safetensors", "lora a") != apart("sub/n.v2.safetensors", "lora b")
    folder, name = first.split("/")
    stem, _, tail = name.rpartition("~")
    assert (folder, stem, len(tail)) == ("sub", "n.v2", len("01234567.safetensors"))
    assert len(apart("é" * 300 + ".ckpt", "x").encode()) <= NAME_BYTES


@pytest.mark.parametrize(
    ("given_name", "expected"),
    [
        ("../../etc/passwd.safetensors", "passwd.safetensors"),
        ("C:\\models\\a.ckpt", "a.ckpt"),
        (".hidden.safetensors", "hidden.safetensors"),
        ("-rf.safetensors", "rf.safetensors"),
        ("a\x00b\nc\u202ed.safetensors", "abcd.safetensors"),
        ("CON.safetensors", "_CON.safetensors"),
        ("lpt1.v2.ckpt", "_lpt1.v2.ckpt"),
        ('a<b>:"c|?*.safetensors ', "abc.safetensors"),
        ("name. .safetensors", "name.safetensors"),
        ("~\xa0name\xa0.safetensors", "name.safetensors"),
        ("モデル.safetensors", "モデル.safetensors"),
        ("..", ""),
        ("", ""),
        ("a/", ""),
    ],
)
def test_safe_names(given_name: str, expected: str) -> None:
    """Names that strangers chose lose whatever could lead elsewhere, hide or confuse."""
    assert safe_name(given_name) == expected


@settings(deadline=None, max_examples=200)
@given(st.text(max_size=300), st.sampled_from(["", ".safetensors", ".ckpt"]))
def test_safe_names_are_safe(text: str, extension: str) -> None:
    """Any text gives a single short file name, or none; making it safe again changes nothing."""
    name = safe_name(text + extension)
    assert len(name.encode()) <= NAME_BYTES
    assert not set(name) & set("/\\\0\n")
    assert not name.startswith((".", "-"))
    assert safe_name(name) == name


@pytest.mark.parametrize(
    ("header", "expected"),
    [
        ('attachment; filename="a;b \\"c.safetensors"', "a;b c.safetensors"),
        ("attachment; filename=plain.ckpt", "plain.ckpt"),
        ("attachment; filename=\"x.ckpt\"; filename*=UTF-8''na%C3%AFve.safetensors", "naïve.safetensors"),
        ("attachment; filename*=iso-8859-1'en'na%EFve.pt", "naïve.pt"),
        ("attachment; filename*=broken; filename=kept.pt", "kept.pt"),
        ('attachment; filename="na\u00c3\u00afve.pt"', "naïve.pt"),
        ('attachment; filename="na\u00efve.pt"', "naïve.pt"),
        ('inline; FileName="../up.safetensors"', "up.safetensors"),
        ("attachment", ""),
        ("", ""),
    ],
)
def test_names_of_content_disposition(header: str, expected: str) -> None:
    """Quotes, escapes, RFC 6266's extended form, raw UTF-8, and paths that must not lead anywhere."""
    assert disposition_name(header) == expected


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("https://x.test/a/My%20Model.safetensors?sig=1", "My Model.safetensors"),
        ("hf://o/r/sub/m.ckpt@v1", "m.ckpt"),
        ("s3://b/k/m.gguf", "m.gguf"),
        ("civitai://12", ""),
        ("https://civitai.com/api/download/models/12", ""),
        ("https://x.test/download?id=5", ""),
        ("https://x.test/%2e%2e%2fevil.pt", "evil.pt"),
        ("https://[::1/x.pt", ""),
    ],
)
def test_names_that_urls_tell(url: str, expected: str) -> None:
    """A URL names a file only where it ends as model files do."""
    assert name_of(url) == expected


def test_formats() -> None:
    """Formats that run code when loaded are known by their ending, in any case."""
    assert is_pickle("a.CKPT")
    assert is_pickle("a.bin")
    assert is_pickle("a.fooocus.patch")
    assert not is_pickle("a.safetensors")
    assert has_extension("a.b.SafeTensors")
    assert not has_extension("a.b")

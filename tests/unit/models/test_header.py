"""What a model file shows at its beginning."""

from __future__ import annotations

import io
import json
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from worker.errors import ModelCorrupt
from worker.models import header
from worker.models.header import HEADER_MOST, check_model_file, looks_wrong

ZIP = b"PK\x03\x04" + bytes(40)


def tensors(offsets: list[tuple[int, int]], data: bytes, metadata: dict[str, str] | None = None) -> bytes:
    """A safetensors file with tensors at these offsets."""
    document: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    document |= {f"t{i}": {"dtype": "U8", "shape": [e - b], "data_offsets": [b, e]} for i, (b, e) in enumerate(offsets)}
    return raw(json.dumps(document).encode(), data)


def raw(document: bytes, data: bytes = b"") -> bytes:
    return struct.pack("<Q", len(document)) + document + data


def refusal(tmp_path: Path, content: bytes, name: str) -> str:
    """What is said of a file; empty when it is taken."""
    path = tmp_path / "some.part"
    path.write_bytes(content)
    try:
        check_model_file(path, name)
    except ModelCorrupt as error:
        return error.message
    return ""


def test_a_whole_safetensors_file_is_taken(tmp_path: Path) -> None:
    """Its tensors may stand in any order of names, and be empty; metadata are no tensor."""
    content = tensors([(4, 10), (0, 4), (4, 4)], bytes(10), {"format": "pt"})
    assert refusal(tmp_path, content, "A.SafeTensors") == ""


@pytest.mark.parametrize(
    ("content", "says"),
    [
        (tensors([(0, 10)], bytes(9)), "breaks off: it has"),
        (tensors([(0, 10)], bytes(11)), "1 bytes behind its last tensor"),
        (tensors([(0, 4), (5, 10)], bytes(10)), "overlap or leave a gap"),
        (tensors([(0, 6), (4, 10)], bytes(10)), "overlap or leave a gap"),
        (tensors([(0, 10)], bytes(10))[:30], "breaks off in its header"),
        (raw(b'{"t": {"data_offsets": [0]}}'), "cannot be read"),
        (raw(b'{"t": {"data_offsets": [0, true]}}'), "cannot be read"),
        (raw(b'{"t": 5}'), "cannot be read"),
        (raw(b'{"t": }'), "cannot be read"),
        (raw(b'{"t": {"data_offsets": [0, 0]}} x'), "cannot be read"),
        (struct.pack("<Q", HEADER_MOST + 1) + b"{}", "no safetensors file"),
        (struct.pack("<Q", 1) + b"{", "breaks off in its header"),
        (ZIP, "no safetensors file"),
        (b"short", "no safetensors file"),
    ],
)
def test_a_safetensors_file_that_is_not_whole_is_refused(tmp_path: Path, content: bytes, says: str) -> None:
    """Cut off, longer than it says, with holes, or with a header that is none."""
    assert says in refusal(tmp_path, content, "x.safetensors")


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_every_cut_of_a_safetensors_file_shows(data: st.DataObject) -> None:
    """Whatever its tensors are, no beginning of the file passes for the file."""
    sizes = data.draw(st.lists(st.integers(0, 40), min_size=1, max_size=5).filter(any))
    ends = [sum(sizes[: i + 1]) for i in range(len(sizes))]
    content = tensors([(end - size, end) for size, end in zip(sizes, ends, strict=True)], bytes(sum(sizes)))
    cut = data.draw(st.integers(1, len(content) - 1))
    assert looks_wrong(content[:512], "x.sft") == ""
    assert header._tensors_wrong(io.BytesIO(content), len(content)) == ""
    assert header._tensors_wrong(io.BytesIO(content[:cut]), cut) != ""


@pytest.mark.parametrize("whole", [True, False])
def test_a_very_long_header_is_searched_for_its_tensors(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: bool
) -> None:
    """It takes no memory for its objects, and what metadata say of offsets is no tensor."""
    monkeypatch.setattr(header, "_PARSED_MOST", 10)
    told = {"notes": '"data_offsets": [0, 99]', "more": '{"data_offsets":[7,8]}'}
    content = tensors([(0, 4), (4, 10)], bytes(10 if whole else 9), told)
    assert (refusal(tmp_path, content, "x.safetensors") == "") is whole


def test_a_very_long_header_that_is_no_object_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its last character tells."""
    monkeypatch.setattr(header, "_PARSED_MOST", 10)
    assert "cannot be read" in refusal(tmp_path, raw(b'{"t": 5, "lots": 1]'), "x.safetensors")


@pytest.mark.parametrize("name", ["x.safetensors", "x.ckpt", "x.gguf", "x.onnx", "x"])
@pytest.mark.parametrize(
    "page",
    [
        b"",
        b"\xef\xbb\xbf <!DOCTYPE html><title>Sign in</title>",
        b"\n<HTML><body>",
        b"<?xml version='1.0'?><Error><Code>AccessDenied</Code></Error>",
        b"<Error><Code>NoSuchKey</Code></Error>",
        b'{"error": "Unauthorized", "message": "The creator of this asset requires you to be logged in"}',
        b'[{"error": 1}]',
    ],
)
def test_an_error_page_is_never_a_model(tmp_path: Path, page: bytes, name: str) -> None:
    """Whatever its name says."""
    assert refusal(tmp_path, page, name) != ""


@pytest.mark.parametrize(
    ("name", "content", "taken"),
    [
        ("x.ckpt", ZIP, True),
        ("x.pt", b"\x80\x02}q\x00.", True),
        ("x.pth", b"\x80\x04\x95", True),
        ("x.bin", b"ordinary words", False),
        ("x.ckpt", tensors([(0, 1)], b"x"), False),
        ("x.gguf", b"GGUF\x03\0\0\0", True),
        ("x.gguf", ZIP, False),
        ("x.onnx", b"\x08\x07\x12\x07pytorch", True),
        ("x.onnx", ZIP, False),
        ("x.fooocus.patch", ZIP, True),
        ("x.fooocus.patch", b"\0" * 64, False),
        ("model", b"\x80\x02}", False),
    ],
)
def test_other_formats_begin_as_they_do(tmp_path: Path, name: str, content: bytes, taken: bool) -> None:
    """An unknown extension may hold any bytes that are no page, and no pickle under another name."""
    assert (refusal(tmp_path, content, name) == "") is taken


def test_a_missing_file_is_an_error_of_the_file_system(tmp_path: Path) -> None:
    """It says nothing about a model."""
    with pytest.raises(FileNotFoundError):
        check_model_file(tmp_path / "none", "x.safetensors")

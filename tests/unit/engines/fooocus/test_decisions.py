"""The pure decisions of the driver: sizes, progress, causes, metadata and verdicts, a row each."""

from __future__ import annotations

import struct
from typing import Any

import pytest

from tests.support.fooocus import ALL, NEW, OLD, offered
from tests.support.pictures import encoded, picture
from worker.engines.answer import Answer
from worker.engines.base import Expectation
from worker.engines.fooocus import sizes
from worker.engines.fooocus.dialects import Dialect, dialect_of
from worker.engines.fooocus.failure import checked, failed, has_died, tells, was_stopped
from worker.engines.fooocus.inputs import as_rgb, check_mask, size_of
from worker.engines.fooocus.inventory import find, inventory_of
from worker.engines.fooocus.metadata import saved
from worker.engines.fooocus.progress import reading_of
from worker.engines.fooocus.server import file_of
from worker.engines.fooocus.verdict import Made, judged, made
from worker.engines.given import decoded
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    EngineOutOfMemory,
    GenerationRejected,
    GpuFault,
    InvalidJob,
    ModelNotFound,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
    WrongModel,
)


def dialect(version: str) -> Dialect:
    """What is known of a version."""
    return offered(version).dialect


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("1152*896", (1152, 896)),
        ("1152×896", (1152, 896)),
        ("1152*896 9:7", (1152, 896)),
        ("9:7", None),
        ("1152*", None),
        (7, None),
    ],
)
def test_aspect_ratios_are_sizes(text: Any, size: sizes.Size | None) -> None:
    """Written with either sign, with or without the ratio after it."""
    assert sizes.aspect(text) == size


@pytest.mark.parametrize(
    ("size", "out"),
    [
        ((1152, 896), (1152, 896)),
        ((1200, 900), (1200, 896)),
        ((96, 72), (1152, 896)),
        ((512, 512), (1024, 1024)),
        ((4000, 3000), (2304, 1728)),
    ],
)
def test_what_a_variation_measures(size: sizes.Size, out: sizes.Size) -> None:
    """Within the bounds it stays, else it is brought to the nearer one; eighths are cut off."""
    assert sizes.varied(size) == out


@pytest.mark.parametrize(
    ("version", "method", "value", "out"),
    [
        (OLD, "Upscale (1.5x)", 1.0, (1500, 1200)),
        (OLD, "Upscale (1.5x)", 2.0, (2000, 1600)),
        (NEW, "Upscale (1.5x)", 2.0, (1496, 1200)),
        (NEW, "Upscale (Custom)", 1.2, (1200, 960)),
        (NEW, "Upscale (Custom)", None, (2000, 1600)),
        (OLD, "Upscale (2x)", None, (2000, 1600)),
        (OLD, "Upscale (Fast 2x)", None, (2000, 1600)),
        (OLD, "Upscale (2x)", 5.0, (5000, 4000)),
    ],
)
def test_what_an_upscaled_image_measures(version: str, method: str, value: float | None, out: sizes.Size) -> None:
    """0.4 lets the value count for each method; very large results are not sampled, so no eighths are cut off."""
    expected = (1496, 1200) if out == (1500, 1200) else out
    assert sizes.upscaled((1000, 800), method, value, dialect(version)) == expected


def test_small_images_are_upscaled_to_the_least() -> None:
    """Whatever the factor says."""
    assert sizes.ceil(sizes.upscaled((64, 64), "Upscale (1.5x)", None, dialect(NEW))) == 1024


def test_outpainting_adds_borders() -> None:
    """Three tenths of the image where no distance is given."""
    body = {"outpaint_selections": ["Left", "Bottom"], "outpaint_distance_left": 10, "outpaint_distance_bottom": -1}
    assert sizes.outpainted((100, 200), body) == (110, 260)


@pytest.mark.parametrize(
    ("document", "step", "steps", "begun", "sampling"),
    [
        ({"job_stage": "WAITING", "job_progress": 0, "job_status": None}, 0, 0, False, False),
        ({"job_stage": "RUNNING", "job_progress": 0, "job_status": None}, 0, 0, True, False),
        ({"job_stage": "WAITING", "job_progress": 13, "job_status": "Moving model to GPU ..."}, 0, 0, True, False),
        (
            {"job_stage": "RUNNING", "job_progress": 15, "job_status": "Step 0/30 in the 1-th Sampling"},
            1,
            60,
            True,
            True,
        ),
        (
            {"job_stage": "RUNNING", "job_progress": 99, "job_status": "Step 29/30 in the 2-th Sampling"},
            60,
            60,
            True,
            True,
        ),
    ],
)
def test_progress(document: dict[str, Any], step: int, steps: int, begun: bool, sampling: bool) -> None:
    """The first step reported is the one that runs; 0.5 says WAITING to the end."""
    reading = reading_of(document, 2, None)
    assert reading is not None
    assert (reading.step, reading.steps, reading.begun) == (step, steps, begun)
    assert reading.report.sampling is sampling
    assert 0 <= reading.report.fraction <= 1


def test_between_two_pictures_the_last_step_stands() -> None:
    """Saving and preparing are no step back; what is no document is no reading."""
    before = reading_of(
        {"job_stage": "RUNNING", "job_progress": 50, "job_status": "Step 29/30 in the 1-th Sampling"}, 2, None
    )
    after = reading_of({"job_stage": "RUNNING", "job_progress": 57, "job_status": "Saving image 1/2"}, 2, before)
    assert after is not None
    assert (after.step, after.steps) == (30, 60)
    assert reading_of([], 1, None) is None
    assert reading_of({}, 1, None) is None


@pytest.mark.parametrize(
    ("lines", "error", "said"),
    [
        ([], OutputEmpty, "cannot be read"),
        (["\x1b[31m[x] ERROR\x1b[0m [Fooocus] Process error: CUDA out of memory. Tried"], EngineOutOfMemory, "Tried"),
        (["[Fooocus] Worker error: ", "torch.cuda.OutOfMemoryError: CUDA out of memory."], EngineOutOfMemory, "failed"),
        (["[Fooocus] Process error: CUDA error: device-side assert triggered"], GpuFault, "device-side"),
        (["[Task Queue] Finish task with error: CUDNN_STATUS_INTERNAL, job_id=1"], GpuFault, "CUDNN"),
        (["[Fooocus] Worker error: not enough values to unpack (expected 2, got 1)"], GenerationRejected, "unpack"),
        (["[Task Queue] Import default pipeline error: no module"], OutputEmpty, "no module"),
        (["[Fooocus] Worker error: list index out of range"], OutputEmpty, "list index"),
        (["[Fooocus] User stopped"], OutputEmpty, "somebody else"),
        (["[Parameters] CFG = 4.0"], OutputEmpty, "does not tell why"),
    ],
)
def test_causes_by_the_log(lines: list[str], error: type[WorkerError], said: str) -> None:
    """Colours are left out; the last error counts; a cause may stand in the traceback alone."""
    found = failed(lines)
    assert type(found) is error
    assert said in found.message


def test_what_lines_tell() -> None:
    """Whether the end has been printed, a stop, and the death of the thread."""
    assert tells(["x", "[Fooocus] \x1b[33mUser stopped"])
    assert was_stopped(["User stopped"])
    assert not tells(["[Fooocus] Loading models ..."])
    assert has_died(["Exception in thread Thread-3 (task_schedule_loop):"])
    assert not has_died(["Exception in thread Thread-9 (prepare_text_encoder):"])


@pytest.mark.parametrize(
    ("status", "body", "error", "said"),
    [
        (403, b'{"detail":"Forbidden"}', AuthFailed, "403: Forbidden"),
        (401, b"", AuthFailed, "401"),
        (404, b'{"detail":"Not Found"}', EngineCrashed, "Not Found"),
        (503, b"", EngineCrashed, "503"),
        (
            422,
            b'{"detail":[{"loc":["body","prompt"],"msg":"bad","input":"secret"},1,{"loc":3}]}',
            GenerationRejected,
            "prompt: bad",
        ),
        (500, b"Internal Server Error", OutputEmpty, "500"),
    ],
)
def test_refusals(status: int, body: bytes, error: type[WorkerError], said: str) -> None:
    """Values of a request do not come back in the message."""
    with pytest.raises(error) as caught:
        checked(Answer(status, {}, body))
    assert said in caught.value.message
    assert "secret" not in caught.value.message
    assert checked(Answer(200, {}, b"[]")).json == []


def test_a_500_is_explained_by_the_log() -> None:
    """An image that is none was the request's fault; memory was not."""
    with pytest.raises(GenerationRejected):
        checked(Answer(500, {}, b""), ["PIL.UnidentifiedImageError: cannot identify image file"])
    with pytest.raises(EngineOutOfMemory):
        checked(Answer(500, {}, b""), ["RuntimeError: CUDA out of memory"])


def test_metadata_of_saved_files() -> None:
    """JSON and plain text; what is no PNG, cut off or without text is told apart."""
    assert saved(encoded(picture(), "JPEG")) is None
    assert saved(b"\x89PNG\r\n\x1a\nxx") == saved(b"\x89PNG\r\n\x1a\n")
    bare = saved(encoded(picture(64, 48)))
    assert bare is not None
    assert (bare.width, bare.height, bare.model) == (64, 48, None)
    told = saved(encoded(picture(), text='{"base_model": "a/b", "base_model_hash": "0123456789", "version": "v"}'))
    assert told is not None
    assert (told.model, told.hash10, told.version) == ("a/b", "0123456789", "v")
    plain = saved(encoded(picture(), text="Model: no\nSteps: 3, Model hash: 0123456789, Model: b, Version: v"))
    assert plain is not None
    assert (plain.model, plain.hash10) == ("b", "0123456789")
    wide = saved(encoded(picture(), text='{"base_model": "猫", "base_model_hash": ""}'))
    assert wide is not None
    assert (wide.model, wide.hash10) == ("猫", None)


def test_a_chunk_that_never_ends_is_no_loop() -> None:
    """A file that is cut within its chunks has no metadata."""
    whole = encoded(picture(), text="x" * 100)
    found = saved(whole[:60])
    assert found is not None
    assert found.model is None
    assert saved(whole[:8] + struct.pack(">I4s", 13, b"IHDR") + struct.pack(">II", 5, 6) + b"12345crc!") is not None


def item(**fields: Any) -> dict[str, Any]:
    """A result as the server lists it."""
    return {"url": "http://x/files/2026-01-01/j-0.png", "seed": "7", "finish_reason": "SUCCESS", **fields}


@pytest.mark.parametrize(
    ("document", "error"),
    [
        (None, OutputEmpty),
        ({"job_result": None}, OutputEmpty),
        ({"job_result": []}, OutputEmpty),
        ({"job_result": [1, item(url=None), item(finish_reason="USER_CANCEL")]}, OutputEmpty),
        ({"job_result": [item(seed="8")]}, OutputMismatch),
        ({"job_result": [item(seed="-1")]}, OutputMismatch),
        ({"job_result": [item(seed=7)]}, OutputMismatch),
    ],
)
def test_results_that_are_none(document: Any, error: type[WorkerError]) -> None:
    """Count, reason and seed of every picture."""
    with pytest.raises(error):
        made(document, Expectation(1, 64, 48, (7,)))


def test_results() -> None:
    """As many as were asked for; all of them where only the server knows how many."""
    document = {"job_result": [item(), item(seed="8")]}
    assert [m.seed for m in made(document, Expectation(1, None, None, (7,)))] == [7]
    assert [m.seed for m in made(document, Expectation(None, None, None, ()))] == [7, 8]


TOLD = '{"base_model": "%s", "base_model_hash": "%s"}'


@pytest.mark.parametrize(
    ("wanted", "told", "hashed", "sha256", "proof"),
    [
        ("a/b.safetensors", "a/b", "", None, "name"),
        ("a/b.safetensors", "b", "0123456789", None, "name"),
        ("a/b.safetensors", "b", "0123456789", "0123456789" + "0" * 54, "hash"),
        ("a\\b.safetensors", "a\\b", "", None, "name"),
        ("noextension", "noextension", "", None, "name"),
        (None, "b", "", None, "none"),
    ],
)
def test_proofs(wanted: str | None, told: str, hashed: str, sha256: str | None, proof: str) -> None:
    """0.4 tells the path, 0.5 stem and hash."""
    data = encoded(picture(64, 48), text=TOLD % (told.replace("\\", "\\\\"), hashed))
    expect = Expectation(1, 64, 48, (7,), wanted)
    output = judged([Made("u", 7)], [data], expect, version="0.5", sha256=sha256)
    assert output.engine.proof == proof
    assert output.warnings == (() if proof != "none" else ("model_unproven",))


@pytest.mark.parametrize(
    ("data", "error"),
    [
        (encoded(picture(64, 48), text=TOLD % ("other", "")), WrongModel),
        (encoded(picture(64, 48), text=TOLD % ("b", "9999999999")), WrongModel),
        (encoded(picture(64, 50)), OutputMismatch),
        (encoded(picture(64, 48), "JPEG"), OutputMismatch),
        (b"\x89PNG\r\n\x1a\n", OutputMismatch),
    ],
)
def test_pictures_that_are_not_what_was_asked_for(data: bytes, error: type[WorkerError]) -> None:
    """Another model, by name or hash, another size, another format."""
    expect = Expectation(1, 64, 48, (7,), "a/b.safetensors")
    with pytest.raises(error):
        judged([Made("u", 7)], [data], expect, version="0.5", sha256="0" * 64)


@pytest.mark.parametrize(
    ("url", "file"),
    [
        ("http://[:::8888/files/2026-01-01/j-0.png", "2026-01-01/j-0.png"),
        ("/files/2026-01-01/j-0.png", "2026-01-01/j-0.png"),
        ("http://x/files/../../etc/passwd", None),
        ("http://x/files/2026-01-01/a/b.png", None),
        ("", None),
    ],
)
def test_only_the_path_of_a_files_url_counts(url: str, file: str | None) -> None:
    """The host may be malformed, and nothing but a day's folder is visited."""
    assert file_of(url) == file


@pytest.mark.parametrize(("api", "listed"), [(None, {}), ({}, {}), ({"paths": {}}, {}), ({"paths": {}}, None)])
def test_what_is_no_fooocus(api: Any, listed: Any) -> None:
    """Its description must name its routes."""
    assert inventory_of(api, listed, None) is None


@pytest.mark.parametrize("version", ALL)
def test_versions_by_their_routes(version: str) -> None:
    """What each can do follows from what it describes."""
    found = dialect(version)
    new = version == NEW
    assert (found.cleans, found.deletes, found.uses_vae, "restart" in found.samplers) == (new,) * 4
    assert dialect_of({}) is None


def test_names_are_found_loosely_but_uniquely() -> None:
    """As listed, by file name, by stem; with what comes close in the refusal."""
    known = ["a/One.safetensors", "b\\two.safetensors", "c/same.safetensors", "d/same.ckpt"]
    assert find(known, "One", field="f", what="checkpoint") == "a/One.safetensors"
    assert find(known, "two.safetensors", field="f", what="checkpoint") == "b\\two.safetensors"
    assert find(known, "c/same.safetensors", field="f", what="checkpoint") == "c/same.safetensors"
    with pytest.raises(InvalidJob, match=r"f: means any of c/same\.safetensors, d/same\.ckpt"):
        find(known, "same", field="f", what="checkpoint")
    with pytest.raises(ModelNotFound, match="close to it: a/One"):
        find(known, "a/Ones.safetensors", field="f", what="checkpoint")


@pytest.mark.parametrize("value", ["data:image/png,abc", "***", "", "data:image/png;base64,"])
def test_what_is_no_base64(value: str) -> None:
    """Each is refused at the field where it stands."""
    with pytest.raises(InvalidJob, match="where: "):
        decoded(value, field="where")


def test_base64_with_line_breaks_and_data_uris() -> None:
    """Both are usual."""
    assert decoded("data:image/png;base64,aGVs\nbG8=", field="f") == b"hello"


def test_images_that_cannot_be_read_are_the_jobs_fault() -> None:
    """Wherever they are looked at."""
    for look in (
        lambda: size_of(b"hello", field="f"),
        lambda: as_rgb(b"hello", (8, 8), field="f"),
        lambda: check_mask(b"hello", inverted=False, field="f"),
    ):
        with pytest.raises(InvalidJob, match="f: is not an image"):
            look()
    assert saved(as_rgb(encoded(picture(20, 10, mode="LA")), (16, 8), field="f")) is not None


def test_an_inverted_mask_selects_what_is_black() -> None:
    """So a white one selects nothing."""
    from PIL import Image

    white = encoded(Image.new("L", (8, 8), 255))
    check_mask(white, inverted=False, field="f")
    with pytest.raises(InvalidJob, match="selects nothing"):
        check_mask(white, inverted=True, field="f")

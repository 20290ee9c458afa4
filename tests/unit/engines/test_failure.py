"""What each server's errors mean: bodies as the servers word them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from worker.engines.sdapi.failure import MESSAGE_MAX, error_text, failure
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    EngineFault,
    EngineOutOfMemory,
    GenerationRejected,
    GpuFault,
    OutputEmpty,
    WorkerError,
)

OOM = "CUDA out of memory. Tried to allocate 12.00 GiB. GPU 0 has a total capacity of 23.65 GiB."
SDNEXT_404 = {
    "error": "HTTPException",
    "code": 404,
    "detail": "Sampler not found",
    "body": "",
    "errors": "404: Sampler not found",
}
ALLOC = "[enforce fail at alloc_cpu.cpp:127] . DefaultCPUAllocator: can't allocate memory: you tried to allocate 250"


def a1111(kind: str, text: str) -> dict[str, Any]:
    return {"error": kind, "detail": "", "body": "", "errors": text}


def forge(kind: str, text: str) -> dict[str, Any]:
    return {"error": kind, "detail": "", "body": "", "message": text}


def sdnext(kind: str, text: str) -> dict[str, Any]:
    return {"error": kind, "code": 500, "detail": "", "body": "", "errors": text}


ROWS: list[tuple[str, int, Any, type[WorkerError], str]] = [
    (
        "pydantic 2 validation",
        422,
        {
            "detail": [
                {
                    "type": "int_parsing",
                    "loc": ["body", "steps"],
                    "msg": "Input should be a valid integer",
                    "input": "many",
                }
            ]
        },
        GenerationRejected,
        "steps: Input should be",
    ),
    (
        "pydantic 1 validation",
        422,
        {"detail": [{"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "type_error.integer"}]},
        GenerationRejected,
        "steps: value is not",
    ),
    ("unknown sampler", 404, SDNEXT_404, GenerationRejected, "Sampler not found"),
    (
        "sampler, 1.10",
        400,
        a1111("HTTPException", "") | {"detail": "Sampler not found"},
        GenerationRejected,
        "Sampler not found",
    ),
    (
        "always-on script",
        422,
        {"error": "HTTPException", "code": 422, "detail": "Always on script not found: nope"},
        GenerationRejected,
        "nope",
    ),
    ("script, Forge", 422, {"detail": "Script 'nope' not found"}, GenerationRejected, "Script 'nope'"),
    ("no init image, 2026", 400, {"error": "Init image is none"}, GenerationRejected, "Init image is none"),
    ("no init image, others", 404, {"detail": "Init image not found"}, GenerationRejected, "Init image"),
    ("bad image", 500, {"detail": "Invalid encoded image"}, GenerationRejected, "Invalid encoded image"),
    ("local URL", 500, {"detail": "Request to local resource not allowed"}, GenerationRejected, "not allowed"),
    ("unknown option", 500, forge("KeyError", "'nosuch'"), GenerationRejected, "nosuch"),
    ("answer of a wrong form", 500, a1111("ValidationError", "html_info"), GenerationRejected, "html_info"),
    ("missing refiner", 500, a1111("Exception", "Could not find checkpoint with name x"), GenerationRejected, "x"),
    ("too large", 413, None, GenerationRejected, "413"),
    ("out of memory", 500, a1111("OutOfMemoryError", OOM), EngineOutOfMemory, "OutOfMemoryError"),
    ("out of memory, Forge", 500, forge("RuntimeError", ALLOC), EngineOutOfMemory, "can't allocate"),
    ("out of memory by name", 500, a1111("OutOfMemoryError", ""), EngineOutOfMemory, "500"),
    (
        "dead context",
        500,
        a1111("RuntimeError", "CUDA error: an illegal memory access was encountered"),
        GpuFault,
        "CUDA error",
    ),
    ("device assert", 500, forge("RuntimeError", "CUDA error: device-side assert triggered"), GpuFault, "device-side"),
    (
        "cublas",
        500,
        sdnext("RuntimeError", "CUBLAS_STATUS_EXECUTION_FAILED when calling cublasSgemm"),
        GpuFault,
        "CUBLAS",
    ),
    ("no device", 500, a1111("RuntimeError", "No CUDA GPUs are available"), GpuFault, "No CUDA GPUs"),
    ("NaN", 500, a1111("NansException", "A tensor with all NaNs was produced in Unet."), OutputEmpty, "NansException"),
    (
        "no model, 2023",
        500,
        a1111("AttributeError", "'NoneType' object has no attribute 'images'"),
        OutputEmpty,
        "images",
    ),
    (
        "no model, Forge",
        500,
        forge("ValueError", "You do not have any model! Please download"),
        OutputEmpty,
        "any model",
    ),
    ("unreadable model", 500, sdnext("TypeError", "'NoneType' object is not callable"), OutputEmpty, "TypeError"),
    ("missing module", 500, sdnext("ModuleNotFoundError", "No module named 'triton'"), OutputEmpty, "triton"),
    ("bare text", 500, "unhashable type: 'list'", OutputEmpty, "unhashable"),
    ("routes missing", 404, {"detail": "Not Found"}, EngineCrashed, "routes are missing"),
    ("gateway", 503, None, EngineCrashed, "503"),
    ("credentials", 401, {"detail": "Incorrect username or password"}, AuthFailed, "Incorrect"),
    (
        "rate limit",
        429,
        {
            "error": "HTTPException",
            "code": 429,
            "detail": "::1:/sdapi/v1/txt2img: rate limit exceeded",
            "errors": "429: ...",
        },
        EngineFault,
        "rate limit",
    ),
]


@pytest.mark.parametrize(("status", "body", "kind", "said"), [row[1:] for row in ROWS], ids=[row[0] for row in ROWS])
def test_each_refusal_becomes_the_error_that_it_is(status: int, body: Any, kind: type[WorkerError], said: str) -> None:
    """Every row of the servers' error tables is told apart, and its text reaches the message."""
    error = failure(status, {}, b"" if body is None else json.dumps(body).encode())
    assert type(error) is kind
    assert said in error.message


def test_plain_text_is_an_answer_too() -> None:
    """A body that is no JSON is quoted."""
    error = failure(500, {}, b"Internal Server Error")
    assert type(error) is OutputEmpty
    assert "Internal Server Error" in error.message


def test_messages_are_short_and_hold_no_values() -> None:
    """A prompt that failed validation is not repeated, and a long text is cut."""
    body = {"detail": [{"loc": ["body", "prompt"], "msg": "str type expected", "input": "secret prompt"}, "odd"]}
    assert error_text(json.dumps(body).encode()) == "prompt: str type expected"
    assert len(error_text(json.dumps({"detail": "x" * 9999}).encode())) == MESSAGE_MAX
    assert error_text(b'{"detail": [], "other": 1}') == ""
    assert error_text(b"[]") == "[]"


@pytest.mark.parametrize(("value", "seconds"), [("7", 7.0), ("nonsense", None), (None, None)])
def test_retry_after_is_kept(value: str | None, seconds: float | None) -> None:
    """What a limiter asks to wait stands in the error."""
    error = failure(429, {"Retry-After": value} if value else {}, b"{}")
    assert (error.retry_after.total_seconds() if error.retry_after else None) == seconds

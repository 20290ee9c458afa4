"""What the server's refusals mean: a row for each that was seen."""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import CLASSIC, SERVER
from worker.engines.answer import Answer
from worker.engines.comfyui.failure import MESSAGE_MAX, refused
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    EngineOutOfMemory,
    GenerationRejected,
    GpuFault,
    ModelNotFound,
    OutputEmpty,
    WorkerError,
)


def answer(status: int, body: Any) -> Answer:
    raw = body if isinstance(body, bytes) else json.dumps(body).encode()
    return Answer(status, {}, raw)


def error(kind: str, message: str = "", details: str = "") -> dict[str, Any]:
    """The ``error`` of a 400."""
    return {"type": kind, "message": message, "details": details, "extra_info": {}}


def mistake(kind: str, message: str, name: str, details: str = "", **extra: Any) -> dict[str, Any]:
    """One of a node's errors."""
    return {"type": kind, "message": message, "details": details or name, "extra_info": {"input_name": name, **extra}}


def invalid(*mistakes: dict[str, Any], node: str = "3", kind: str = "KSampler", status: int = 400) -> Answer:
    """Outputs that failed validation; the reason is at the node alone."""
    body: dict[str, Any] = {
        "error": error("prompt_outputs_failed_validation", "Prompt outputs failed validation"),
        "node_errors": {node: {"errors": list(mistakes), "dependent_outputs": ["9"], "class_type": kind}},
    }
    if status == 200:
        body = {"prompt_id": "p", "number": 0, "node_errors": body["node_errors"]}
    return answer(status, body)


NOT_LISTED = mistake(
    "value_not_in_list",
    "Value not in list",
    "ckpt_name",
    "ckpt_name: 'nope.safetensors' not in ['tiny_a.safetensors']",
    received_value="nope.safetensors",
)
PLAIN_500 = b"500 Internal Server Error\n\nServer got itself in trouble"


@pytest.mark.parametrize(
    ("got", "kind", "said"),
    [
        (
            answer(400, {"error": error("no_prompt", "No prompt provided", "No prompt provided"), "node_errors": {}}),
            GenerationRejected,
            "No prompt provided",
        ),
        (
            answer(400, {"error": error("prompt_no_outputs", "Prompt has no outputs"), "node_errors": {}}),
            GenerationRejected,
            "Prompt has no outputs",
        ),
        (
            answer(
                400,
                {
                    "error": error(
                        "invalid_prompt",
                        "Cannot execute because a node is missing the class_type property.",
                        "Node ID '#3'",
                    ),
                    "node_errors": {},
                },
            ),
            GenerationRejected,
            'missing the class_type property: node 3 (KSampler "The sampler")',
        ),
        (
            answer(
                400,
                {
                    "error": error(
                        "invalid_prompt", "Cannot execute because node NoSuchNode does not exist.", "Node ID '#77'"
                    ),
                    "node_errors": {},
                },
            ),
            GenerationRejected,
            "node NoSuchNode does not exist: node 77",
        ),
        (
            answer(400, {"error": error("missing_node_type", "Node 'X' not found.", "Node ID '#3'")}),
            GenerationRejected,
            "Node 'X' not found: node 3",
        ),
        (
            answer(400, {"error": error("invalid_prompt_id", "prompt_id must be a valid UUID", "x")}),
            GenerationRejected,
            "must be a valid UUID: x",
        ),
        (
            answer(
                400,
                {
                    "error": error("prompt_outputs_failed_validation", "Prompt outputs failed validation"),
                    "node_errors": {},
                },
            ),
            GenerationRejected,
            "Prompt outputs failed validation",
        ),
        (
            answer(
                400, {"error": error("dependency_cycle", "Dependency cycle detected", "3 -> 5 -> 3"), "node_errors": []}
            ),
            GenerationRejected,
            "Dependency cycle detected: 3 -> 5 -> 3",
        ),
        (
            invalid(mistake("required_input_missing", "Required input is missing", "seed")),
            GenerationRejected,
            'node 3 (KSampler "The sampler"), seed: Required input is missing',
        ),
        (
            invalid(mistake("value_smaller_than_min", "Value 0 smaller than min of 1", "steps", received_value=0)),
            GenerationRejected,
            "steps: Value 0 smaller than min of 1, received 0",
        ),
        (
            invalid(mistake("value_bigger_than_max", "Value 1e9 bigger than max of 100", "cfg", received_value=1e9)),
            GenerationRejected,
            "cfg: Value 1e9 bigger than max of 100, received 1000000000.0",
        ),
        (
            invalid(
                mistake(
                    "invalid_input_type",
                    "Failed to convert an input value to a INT value",
                    "steps",
                    "steps, abc, invalid literal",
                    received_value="abc",
                )
            ),
            GenerationRejected,
            "to a INT value, received 'abc'",
        ),
        (
            invalid(mistake("value_not_in_list", "Value not in list", "sampler_name", received_value="bogus")),
            GenerationRejected,
            "sampler_name: Value not in list, received 'bogus'",
        ),
        (
            invalid(mistake("bad_linked_input", "Bad linked input", "model", received_value=["4"])),
            GenerationRejected,
            "model: Bad linked input, received a list",
        ),
        (
            invalid(
                mistake(
                    "return_type_mismatch",
                    "Return type mismatch between linked nodes",
                    "model",
                    "model, received_type(LATENT) mismatch input_type(MODEL)",
                    linked_node=["5", 0],
                )
            ),
            GenerationRejected,
            "received_type(LATENT) mismatch input_type(MODEL)",
        ),
        (
            invalid(
                {
                    "type": "exception_during_validation",
                    "message": "Exception when validating node",
                    "details": "'42'",
                    "extra_info": {"exception_type": "KeyError", "traceback": ["secret"]},
                }
            ),
            GenerationRejected,
            "Exception when validating node ('42')",
        ),
        (
            invalid(
                mistake(
                    "exception_during_inner_validation", "Exception when validating inner node", "model", "'inputs'"
                )
            ),
            GenerationRejected,
            "model: Exception when validating inner node ('inputs')",
        ),
        (
            invalid(
                mistake(
                    "custom_validation_failed",
                    "Custom validation failed for node",
                    "image",
                    "image - Invalid image file: nope.png",
                ),
                node="10",
                kind="LoadImage",
            ),
            GenerationRejected,
            "node 10 (LoadImage), image: Custom validation failed for node (Invalid image file: nope.png)",
        ),
        (
            invalid(NOT_LISTED, node="4", kind="CheckpointLoaderSimple"),
            ModelNotFound,
            "node 4 (CheckpointLoaderSimple), ckpt_name: Value not in list, received 'nope.safetensors'",
        ),
        (
            invalid(
                mistake(
                    "value_not_in_list",
                    "Value not in list",
                    "ckpt_name",
                    "x not in (list of length 30)",
                    input_config=None,
                    received_value="extensionless",
                ),
                node="4",
                kind="CheckpointLoaderSimple",
            ),
            ModelNotFound,
            "received 'extensionless'",
        ),
        (
            invalid(NOT_LISTED, mistake("required_input_missing", "Required input is missing", "seed")),
            GenerationRejected,
            "received 'nope.safetensors'; node 3",
        ),
        (
            invalid(
                mistake("custom_validation_failed", "Custom validation failed for node", "image", "image"), status=200
            ),
            GenerationRejected,
            "image: Custom validation failed for node",
        ),
        (answer(400, {"error": "Invalid", "node_errors": {"3": None}}), GenerationRejected, "Invalid"),
        (answer(400, {"error": "Invalid workflow"}), GenerationRejected, "Invalid workflow"),
        (answer(400, b"Bad Request"), GenerationRejected, "refused the prompt: Bad Request"),
        (answer(400, b""), GenerationRejected, "the prompt was refused"),
        (answer(400, {"error": {}}), GenerationRejected, "without a reason"),
        (answer(401, b""), AuthFailed, "401"),
        (answer(403, b""), AuthFailed, "403"),
        (answer(404, b"404: Not Found"), EngineCrashed, "answered 404 to a prompt: 404: Not Found"),
        (answer(405, b""), EngineCrashed, "405"),
        (answer(413, b"Maximum request body size 1048576 exceeded"), GenerationRejected, "--max-upload-size"),
        (answer(429, {"message": "slow down"}), EngineCrashed, "slow down"),
        (answer(502, b"<html>bad gateway</html>"), EngineCrashed, "502"),
        (answer(500, PLAIN_500), OutputEmpty, "Server got itself in trouble"),
        (answer(500, b""), OutputEmpty, "the server answered 500 to a prompt"),
        (answer(500, {"error": {"message": "CUDA error: device-side assert triggered"}}), GpuFault, "device-side"),
        (answer(500, b"MemoryError"), EngineOutOfMemory, "MemoryError"),
        (answer(200, b"{}"), OutputEmpty, "answered 200"),
    ],
)
def test_refusals(got: Answer, kind: type[WorkerError], said: str) -> None:
    """Each answer that starts nothing, or not everything, by what it tells."""
    found = refused(got, CLASSIC, SERVER)
    assert type(found) is kind
    assert said in str(found)


def test_a_missing_model_is_known_by_its_extension_too() -> None:
    """Where neither the graph nor the inventory is at hand."""
    assert type(refused(invalid(NOT_LISTED))) is ModelNotFound
    other = mistake("value_not_in_list", "Value not in list", "mode", received_value=None)
    assert type(refused(invalid(other))) is GenerationRejected


def test_messages_never_hold_long_values() -> None:
    """A received value may be a prompt, or an image in base64."""
    long = "a secret prompt " * 100
    found = str(refused(invalid(*[mistake("x", "y", "text", received_value=long)] * 9)))
    assert len(found) <= MESSAGE_MAX
    assert long[:100] in found
    assert long[:101] not in found
    detailed = mistake("x", "y", "text", f"text - {long}")
    assert long[:101] not in str(refused(invalid(detailed)))
    assert "a int" in str(refused(invalid(mistake("x", "y", "n", received_value=10**400))))

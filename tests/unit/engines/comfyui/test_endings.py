"""How prompts end by their entry in the history: a row for each that was seen."""

from __future__ import annotations

from typing import Any

import pytest

from tests.unit.engines.comfyui.graphs import CLASSIC
from worker.engines.comfyui.failure import MESSAGE_MAX, ended, failed
from worker.errors import (
    EngineOutOfMemory,
    GenerationRejected,
    GpuFault,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
)


def entry(*messages: Any, text: str | None = "error", outputs: Any = None) -> dict[str, Any]:
    """A history entry of the classic graph."""
    start = [["execution_start", {"prompt_id": "p"}], ["execution_cached", {"nodes": []}]]
    status = {"status_str": text, "completed": text == "success", "messages": [*start, *messages]}
    return {"prompt": [0, "p", CLASSIC, {}, ["9"]], "outputs": outputs or {}, "status": status if text else None}


def broke(kind: str, message: str, inputs: Any = None, node: str = "3") -> list[Any]:
    """The message that ends a prompt with an exception."""
    data = {
        "node_id": node,
        "node_type": "KSampler",
        "executed": [],
        "exception_message": message,
        "exception_type": kind,
        "traceback": ["secret"],
        "current_inputs": inputs or {},
    }
    return ["execution_error", data]


PICTURE = {"9": {"images": [{"filename": "x.png", "subfolder": "", "type": "output"}]}}
SUCCESS = ["execution_success", {"prompt_id": "p"}]
INTERRUPTED = ["execution_interrupted", {"node_id": "3"}]


@pytest.mark.parametrize(
    ("given", "kind"),
    [
        (entry(SUCCESS, text="success", outputs=PICTURE), None),
        (entry(SUCCESS, text="success"), None),
        (entry(SUCCESS, text="error", outputs=PICTURE), None),
        (entry(broke("ValueError", "x"), text="success", outputs=PICTURE), GenerationRejected),
        (entry(INTERRUPTED), OutputMismatch),
        (entry(INTERRUPTED, text="success", outputs=PICTURE), OutputMismatch),
        (entry(broke("ValueError", "x"), INTERRUPTED), OutputMismatch),
        (entry(broke("ValueError", "x"), ["own_event", {}]), GenerationRejected),
        (entry(text="error"), OutputEmpty),
        (entry(text="success"), OutputEmpty),
        (entry(text="success", outputs=PICTURE), None),
        (entry(text=None), OutputEmpty),
        (entry(text=None, outputs=PICTURE), None),
        (entry(["execution_error"]), OutputEmpty),
        (entry([], "x", None), OutputEmpty),
        (None, OutputEmpty),
        ({"status": {"messages": "x"}}, OutputEmpty),
    ],
)
def test_ends(given: Any, kind: type[WorkerError] | None) -> None:
    """The last message decides: the status text may be missing, alike for two ends, or an earlier prompt's."""
    found = ended(given)
    assert (None if found is None else type(found)) is kind


@pytest.mark.parametrize(
    ("type_", "message", "kind"),
    [
        ("torch.OutOfMemoryError", "Allocation on device 0 would exceed allowed memory.", EngineOutOfMemory),
        ("torch.cuda.OutOfMemoryError", "CUDA out of memory. Tried to allocate 2.00 GiB", EngineOutOfMemory),
        (
            "RuntimeError",
            "[enforce fail at alloc_cpu.cpp] DefaultCPUAllocator: can't allocate memory",
            EngineOutOfMemory,
        ),
        ("MemoryError", "", EngineOutOfMemory),
        ("RuntimeError", "CUDA error: an illegal memory access was encountered", GpuFault),
        ("torch.AcceleratorError", "CUDA error: device-side assert triggered", GpuFault),
        ("RuntimeError", "cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", GpuFault),
        ("RuntimeError", "No CUDA GPUs are available", GpuFault),
        ("ValueError", "not enough values to unpack", GenerationRejected),
        ("TypeError", "unsupported operand", GenerationRejected),
        ("KeyError", "'samples'", GenerationRejected),
        ("IndexError", "tuple index out of range", GenerationRejected),
        ("AssertionError", "", GenerationRejected),
        ("AttributeError", "'NoneType' object has no attribute 'encode'", GenerationRejected),
        ("NotImplementedError", "", GenerationRejected),
        ("RuntimeError", "mat1 and mat2 shapes cannot be multiplied (77x768 and 2048x640)", GenerationRejected),
        ("RuntimeError", "The size of tensor a (4) must match the size of tensor b (16)", GenerationRejected),
        ("RuntimeError", "Sizes of tensors must match except in dimension 1.", GenerationRejected),
        (
            "RuntimeError",
            "Given groups=1, weight of size [320, 4, 3, 3], expected input[1, 16, 8, 8] to have 4 channels",
            GenerationRejected,
        ),
        ("RuntimeError", "shape '[1, 2]' is invalid for input of size 3", GenerationRejected),
        ("RuntimeError", "ERROR: clip input is invalid: None", GenerationRejected),
        ("FileNotFoundError", "Model in folder 'checkpoints' with filename 'b.safetensors' not found.\n", OutputEmpty),
        ("safetensors_rust.SafetensorError", "Error while deserializing header: incomplete metadata", OutputEmpty),
        ("PIL.UnidentifiedImageError", "cannot identify image file", OutputEmpty),
        ("Exception", "Saving image outside the output folder is not allowed.", OutputEmpty),
        ("OSError", "No space left on device", OutputEmpty),
        ("", "", OutputEmpty),
    ],
)
def test_exceptions(type_: str, message: str, kind: type[WorkerError]) -> None:
    """Memory and the GPU by their words, what always comes again by its class, all else is for the canary."""
    found = ended(entry(broke(type_, message)))
    assert type(found) is kind
    assert str(found).startswith('node 3 (KSampler "The sampler"): ')


def test_nobody_can_blame_the_gpu_with_words_of_his_own() -> None:
    """What the node was given is no word of the server: a file of such a name must not close the gate."""
    name = "CUDA error out of memory.png"
    found = failed(broke("FileNotFoundError", f"No such file: {name}", {"image": [name], "n": [3]})[1])
    assert type(found) is OutputEmpty
    assert type(failed(broke("RuntimeError", f"CUDA error in {name}", {"image": name})[1])) is GpuFault


def test_an_exception_s_message_holds_no_long_text_of_the_job() -> None:
    """The node's inputs come with it: prompts."""
    prompt = "a secret\nprompt " * 12
    found = str(failed(broke("ValueError", f"cannot encode {prompt} here", {"text": [prompt], "odd": 3})[1]))
    assert " ".join(prompt.split()) not in found
    assert found.startswith("node 3 (KSampler): ValueError: cannot encode a secret prompt a secret prompt")
    assert found.endswith("... here")
    assert "\n" not in found
    assert len(str(failed(broke("ValueError", "x" * 5000)[1]))) == MESSAGE_MAX


def test_nodes_made_while_running_are_named_by_the_server() -> None:
    """They stand in no graph of ours."""
    assert str(ended(entry(broke("ValueError", "x", node="3.0.7")))) == "node 3.0.7 (KSampler): ValueError: x"
    assert str(failed(None)) == "node ?: failed"

"""What ComfyUI means when it refuses a prompt, and how a prompt of its history ended. No I/O.

===========================================  ===============================================================
the server says                              we raise
===========================================  ===============================================================
401, 403                                     `AuthFailed`
404, 405                                     `EngineCrashed`: its routes are not there yet, or no more
413                                          `GenerationRejected`: it takes no body so large
429, 502, 503, 504                           `EngineCrashed`: something before the server
400, or 200 with ``node_errors``             `GenerationRejected` naming node, input and value; `ModelNotFound`
                                             when nothing but model files are missing
500                                          `OutputEmpty`, or by its words `EngineOutOfMemory`, `GpuFault`
``execution_success``                        nothing
``execution_interrupted``                    `OutputMismatch`
``execution_error``, out of memory           `EngineOutOfMemory`
``execution_error``, CUDA and kin            `GpuFault`: every later prompt fails until a restart
``execution_error``, what comes again        `GenerationRejected`: wrong values, shapes that do not fit
any other ``execution_error``                `OutputEmpty`: a file that cannot be read, and all else; a fresh load
                                             and the canary tell whose fault that is
===========================================  ===============================================================

An error and an interrupt have the same status text, and that text may be an earlier prompt's or missing: the last
message decides.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import Any

from worker.engines.answer import Answer, cause
from worker.engines.comfyui.graph import title
from worker.engines.comfyui.inventory import Inventory, is_model_file
from worker.errors import (
    AuthFailed,
    EngineCrashed,
    GenerationRejected,
    ModelNotFound,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
)

MESSAGE_MAX = 500
VALUE_MAX = 100
_AWAY = frozenset({404, 405, 429, 502, 503, 504})
_JOBS = frozenset(
    {
        "ValueError",
        "TypeError",
        "KeyError",
        "IndexError",
        "AssertionError",
        "AttributeError",
        "NotImplementedError",
        "ZeroDivisionError",
        "OverflowError",
    }
)
"""Exceptions that come again however often the same graph is run."""

_SHAPES = re.compile(
    r"shapes cannot be multiplied|must match the size of tensor|Sizes of tensors must match|"
    r"is invalid for input of size|Given groups=|expected .{0,80}input.{0,80} to have|"
    r"Expected \d+D|size of tensor|mat1 and mat2|not divisible by|input is invalid: None",
)
_ENDS = ("execution_success", "execution_error", "execution_interrupted")
_NODE_IN_DETAILS = re.compile(r"#(\S{1,100})")


def refused(answer: Answer, graph: Any = None, inventory: Inventory | None = None) -> WorkerError:
    """What an answer to ``POST /prompt`` that starts nothing, or not everything, stands for. Never raises.

    ``graph`` is what was sent, for the titles of its nodes; with ``inventory`` the inputs that name model files are
    known, else they are told by the value's extension.
    """
    body = answer.json
    body = body if isinstance(body, Mapping) else {}
    if answer.status in (401, 403):
        return AuthFailed(_cut(f"the server answered {answer.status}"))
    if answer.status in _AWAY:
        return EngineCrashed(_cut(f"the server answered {answer.status} to a prompt: {_plain(answer)}"))
    if answer.status == 413:
        return GenerationRejected("the prompt is larger than the server takes (--max-upload-size)")
    if answer.status == 400 or (answer.ok and body.get("node_errors")):
        return _validation(body, graph, inventory, answer)
    text = _plain(answer)
    known = cause(text) or OutputEmpty
    said = f"the server answered {answer.status} to a prompt"
    return known(_cut(f"{said}: {text}" if text else said))


def ended(entry: Any) -> WorkerError | None:
    """How a prompt ended, by its entry in the history; None for success. Never raises.

    The last message decides; where no message tells, success needs both the status and outputs.
    """
    entry = entry if isinstance(entry, Mapping) else {}
    status = entry.get("status")
    status = status if isinstance(status, Mapping) else {}
    event, data = _last(status.get("messages"))
    if event == "execution_success":
        return None
    if event == "execution_error":
        return failed(data, _graph(entry))
    if event == "execution_interrupted":
        return OutputMismatch("the prompt was interrupted")
    text = status.get("status_str")
    if text == "error":
        return OutputEmpty("the prompt failed, and the server does not say why")
    if entry.get("outputs"):
        return None
    return OutputEmpty("the prompt ended without a success, an error or an output")


def failed(data: Any, graph: Any = None) -> WorkerError:
    """The error of an ``execution_error``, of the history or of the socket, which say the same. Never raises."""
    data = data if isinstance(data, Mapping) else {}
    kind = _text(data.get("exception_type")).rpartition(".")[2]
    message = _shortened(_text(data.get("exception_message")).strip(), data.get("current_inputs"))
    told = " ".join(message.split())
    said = _cut(f"{_where(data, graph)}: {kind or 'failed'}{': ' if told else ''}{told}")
    known = cause(f"{kind} {_own_words(message, data.get('current_inputs'))}")
    if known is not None:
        return known(said)
    if kind in _JOBS or _SHAPES.search(message):
        return GenerationRejected(said)
    return OutputEmpty(said)


def _validation(body: Mapping[str, Any], graph: Any, inventory: Inventory | None, answer: Answer) -> WorkerError:
    """The mistakes of every node, which alone tell the reason where ``error.details`` is empty."""
    mistakes = tuple(_mistakes(body.get("node_errors"), graph, inventory))
    if mistakes:
        missing = all(is_model for _, is_model in mistakes)
        said = "; ".join(text for text, _ in mistakes)
        return (ModelNotFound if missing else GenerationRejected)(_cut(said))
    error = body.get("error")
    if not isinstance(error, Mapping):
        text = _text(error) or _plain(answer)
        return GenerationRejected(_cut(f"the server refused the prompt: {text}" if text else "the prompt was refused"))
    message, details = _text(error.get("message")).rstrip("."), _text(error.get("details")).strip()
    node = _NODE_IN_DETAILS.search(details)
    if node is not None:
        details = title(graph, node[1].rstrip("'"))
    said = ": ".join(part for part in (message, details[:VALUE_MAX]) if part) or _text(error.get("type"))
    return GenerationRejected(_cut(said or "the server refused the prompt without a reason"))


def _mistakes(node_errors: Any, graph: Any, inventory: Inventory | None) -> Iterable[tuple[str, bool]]:
    """Each mistake in words, and whether it is a model file that is missing."""
    for node_id, found in node_errors.items() if isinstance(node_errors, Mapping) else ():
        if not isinstance(found, Mapping):
            continue
        errors, kind = found.get("errors"), found.get("class_type")
        where = _named(graph, str(node_id), kind)
        for error in errors if isinstance(errors, list) else ():
            if isinstance(error, Mapping):
                yield _mistake(error, where, kind, inventory)


def _mistake(error: Mapping[str, Any], where: str, kind: Any, inventory: Inventory | None) -> tuple[str, bool]:
    extra = error.get("extra_info")
    extra = extra if isinstance(extra, Mapping) else {}
    name, value = extra.get("input_name"), extra.get("received_value")
    input_name = name[:VALUE_MAX] if isinstance(name, str) else ""
    what = _text(error.get("message")) or _text(error.get("type")) or "is not valid"
    is_model = error.get("type") == "value_not_in_list" and _names_model(kind, input_name, value, inventory)
    said = f"{where}{f', {input_name}' if input_name else ''}: {what[:200]}"
    if "received_value" in extra:
        said += f", received {_shown(value)}"
    elif details := _detail(_text(error.get("details")), input_name):
        said += f" ({details})"
    return said, is_model


def _names_model(kind: Any, name: str, value: Any, inventory: Inventory | None) -> bool:
    declared = inventory.input(kind, name) if inventory is not None else None
    if declared is not None and declared.folder is not None:
        return True
    return isinstance(value, str) and is_model_file(value)


def _detail(details: str, name: str) -> str:
    """What the details say beyond the input's name: a file that is none, a key that is missing."""
    text = details.strip()
    return "" if text == name else text.removeprefix(f"{name} - ")[:VALUE_MAX]


def _last(messages: Any) -> tuple[str | None, Any]:
    """The last message that ends a prompt: its name and its data."""
    for message in reversed(messages) if isinstance(messages, list) else ():
        if isinstance(message, list | tuple) and message and message[0] in _ENDS:
            return message[0], message[1] if len(message) > 1 else None
    return None, None


def _graph(entry: Mapping[str, Any]) -> Any:
    """The graph of a history entry: ``[number, id, graph, extra data, output nodes]``."""
    prompt = entry.get("prompt")
    return prompt[2] if isinstance(prompt, list | tuple) and len(prompt) > 2 else None


def _where(data: Mapping[str, Any], graph: Any) -> str:
    node_id = data.get("node_id")
    return _named(graph, "?" if node_id is None else str(node_id), data.get("node_type"))


def _named(graph: Any, node_id: str, kind: Any) -> str:
    """A node by its title in the graph, or by the class that the server names, as for nodes made while it runs."""
    known = isinstance(graph, Mapping) and node_id in graph
    return title(graph if known else {node_id: {"class_type": kind}}, node_id)


def _shortened(message: str, inputs: Any) -> str:
    """The message with no more than the start of any long text that the node was given."""
    for value in _given(inputs, VALUE_MAX):
        message = message.replace(value, f"{value[:VALUE_MAX]}...")
    return message


def _own_words(message: str, inputs: Any) -> str:
    """The message without what the job itself put in, which must not pass for a fault of the GPU."""
    for value in _given(inputs, 3):
        message = message.replace(value, "").replace(f"{value[:VALUE_MAX]}...", "")
    return message


def _given(inputs: Any, longer: int) -> Iterable[str]:
    """The texts that a node was given, which the server tells as ``{input: [value]}``, longest first."""
    texts = [
        value
        for values in (inputs.values() if isinstance(inputs, Mapping) else ())
        for value in (values if isinstance(values, list) else (values,))
        if isinstance(value, str) and len(value) > longer
    ]
    return sorted(texts, key=len, reverse=True)


def _shown(value: Any) -> str:
    if isinstance(value, str):
        return repr(value if len(value) <= VALUE_MAX else f"{value[:VALUE_MAX]}...")
    if value is None or isinstance(value, bool | float) or (type(value) is int and value.bit_length() < 128):
        return repr(value)
    return f"a {type(value).__name__}"


def _plain(answer: Answer) -> str:
    """The words of a body: the server's own 500 is plain text."""
    body = answer.json
    if isinstance(body, Mapping):
        error = body.get("error")
        return _text(error.get("message") if isinstance(error, Mapping) else error or body.get("message"))
    return " ".join(answer.body[:MESSAGE_MAX].decode("utf-8", "replace").split())


def _text(value: Any) -> str:
    return value if isinstance(value, str) else ""


def _cut(text: str) -> str:
    return text if len(text) <= MESSAGE_MAX else f"{text[: MESSAGE_MAX - 3]}..."

"""`POST /prompt` checked as the server does it, with its words for each mistake."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from worker.simulators.comfyui.folders import Folders
from worker.simulators.comfyui.nodes.media import READS_FILE
from worker.simulators.comfyui.nodes.spec import InputSpec, NodeSpec

_TRACE = ['  File "/ComfyUI/execution.py", line 946, in validate_prompt\n']
_BROKEN = (KeyError, IndexError, TypeError, ValueError, AttributeError, RecursionError)
_SHORT_LIST = 20
_CORRUPT = "The workflow may be corrupted or a custom node is missing."

Problem = dict[str, Any]
Checked = tuple[bool, list[Problem]]


@dataclass(frozen=True)
class Verdict:
    """``error`` is None when at least one output is good; those are run and the others only named in errors."""

    error: Problem | None
    outputs: list[str]
    node_errors: dict[str, Any]


def _error(kind: str, message: str, details: str = "", extra: Mapping[str, Any] | None = None) -> Problem:
    return {"type": kind, "message": message, "details": details, "extra_info": dict(extra or {})}


def _missing_type(message: str, node_id: str, name: str | None, title: str | None) -> Problem:
    extra = {"node_id": node_id, "class_type": name, "node_title": title}
    return _error("missing_node_type", message, f"Node ID '#{node_id}'", extra)


class Validation:
    """One graph. Values are converted in place, as the server does it."""

    def __init__(self, graph: Any, nodes: Mapping[str, NodeSpec], folders: Folders, *, newest: bool) -> None:
        self._graph = graph
        self._nodes = nodes
        self._folders = folders
        self._newest = newest
        self._validated: dict[str, Checked] = {}
        self._visiting: list[str] = []

    def verdict(self, targets: Collection[str] | None) -> Verdict:
        """The judgement. Raises whatever the server stumbles over, which it answers with a 500."""
        outputs = []
        for node_id in self._graph:
            if error := self._unknown(node_id):
                return Verdict(error, [], {})
            if self._spec(node_id).output_node and (targets is None or node_id in targets):
                outputs.append(node_id)
        if not outputs:
            return Verdict(_error("prompt_no_outputs", "Prompt has no outputs"), [], {})
        return self._judged(outputs)

    def _spec(self, node_id: str) -> NodeSpec:
        return self._nodes[self._graph[node_id]["class_type"]]

    def _unknown(self, node_id: str) -> Problem | None:
        node = self._graph[node_id]
        where = f"Node ID '#{node_id}'"
        if "class_type" not in node and self._newest:
            return _missing_type(f"Node 'ID #{node_id}' has no class_type. {_CORRUPT}", node_id, None, None)
        if "class_type" not in node:
            message = "Cannot execute because a node is missing the class_type property."
            return _error("invalid_prompt", message, where)
        name = node["class_type"]
        if name in self._nodes:
            return None
        if not self._newest:
            return _error("invalid_prompt", f"Cannot execute because node {name} does not exist.", where)
        title = node.get("_meta", {}).get("title", name)
        message = f"Node '{title}' not found. The custom node may not be installed."
        return _missing_type(message, node_id, name, title)

    def _judged(self, outputs: list[str]) -> Verdict:
        good: list[str] = []
        details: list[str] = []
        node_errors: dict[str, Any] = {}
        for output in outputs:
            valid, problems = self._output(output)
            if valid:
                good.append(output)
                continue
            details += [f"{problem['message']}: {problem['details']}" for problem in problems]
            self._collect(output, node_errors)
        if good:
            return Verdict(None, good, node_errors)
        error = _error("prompt_outputs_failed_validation", "Prompt outputs failed validation", "\n".join(details))
        return Verdict(error, [], node_errors)

    def _output(self, output: str) -> Checked:
        try:
            return self._node(output)
        except _BROKEN as error:
            extra = {"exception_type": type(error).__name__, "traceback": list(_TRACE)}
            problem = _error("exception_during_validation", "Exception when validating node", str(error), extra)
            self._validated[output] = (False, [problem])
            return self._validated[output]

    def _collect(self, output: str, node_errors: dict[str, Any]) -> None:
        for node_id, (valid, problems) in self._validated.items():
            if valid or not problems:
                continue
            named = {
                "errors": problems,
                "dependent_outputs": [],
                "class_type": self._graph[node_id]["class_type"],
            }
            node_errors.setdefault(node_id, named)["dependent_outputs"].append(output)

    def _node(self, node_id: str) -> Checked:
        if node_id in self._validated:
            return self._validated[node_id]
        if self._newest and node_id in self._visiting:
            return self._cycle(node_id)
        self._visiting.append(node_id)
        try:
            checked = self._inputs(node_id)
        finally:
            self._visiting.pop()
        self._validated.setdefault(node_id, checked)
        if not self._newest:
            self._validated[node_id] = checked
        return self._validated[node_id]

    def _cycle(self, node_id: str) -> Checked:
        path = [*self._visiting[self._visiting.index(node_id) :], node_id]
        details = " -> ".join(f"{n} ({self._graph[n]['class_type']})" for n in path)
        for member in path[:-1]:
            extra = {"node_id": member, "cycle_nodes": path[:-1]}
            problem = _error("dependency_cycle", "Dependency cycle detected", details, extra)
            self._validated[member] = (False, [problem])
        return self._validated[node_id]

    def _inputs(self, node_id: str) -> Checked:
        spec, inputs = self._spec(node_id), self._graph[node_id]["inputs"]
        problems: list[Problem] = []
        sound = True
        for name, (wanted, required) in spec.inputs.items():
            if name not in inputs:
                if required:
                    problems.append(
                        _error("required_input_missing", "Required input is missing", name, {"input_name": name})
                    )
            elif isinstance(inputs[name], list):
                problem, upstream = self._link(spec, wanted, name, inputs[name])
                problems += [problem] if problem else []
                sound = sound and upstream
            elif problem := self._value(spec, wanted, name, inputs):
                problems.append(problem)
        problems += self._file(spec, inputs)
        return sound and not problems, problems

    def _link(self, spec: NodeSpec, wanted: InputSpec, name: str, value: list[Any]) -> tuple[Problem | None, bool]:
        """The problem with the link itself, and whether what it leads to is valid."""
        config = spec.typed(wanted, self._folders)
        extra: dict[str, Any] = {"input_name": name, "input_config": config}
        if len(value) != 2:
            message = "Bad linked input, must be a length-2 list of [node_id, slot_index]"
            return _error("bad_linked_input", message, name, extra | {"received_value": value}), True
        source, slot = value
        received = self._nodes[self._graph[source]["class_type"]].outputs[slot]
        if not _fits(received, config[0]):
            details = f"{name}, received_type({received}) mismatch input_type({config[0]})"
            extra |= {"received_type": received, "linked_node": value}
            return _error("return_type_mismatch", "Return type mismatch between linked nodes", details, extra), True
        try:
            return None, self._node(source)[0]
        except _BROKEN as error:
            extra |= {"exception_message": str(error), "exception_type": type(error).__name__}
            extra |= {"traceback": list(_TRACE), "linked_node": value}
            message = "Exception when validating inner node"
            problem = _error("exception_during_inner_validation", message, str(error), extra)
            self._validated[source] = (False, [problem])
            return None, False

    def _value(self, spec: NodeSpec, wanted: InputSpec, name: str, inputs: dict[str, Any]) -> Problem | None:
        kind, options = spec.typed(wanted, self._folders)
        value = inputs[name]
        if isinstance(value, dict) and "__value__" in value:
            value = inputs[name] = value["__value__"]
        extra: dict[str, Any] = {"input_name": name, "input_config": (kind, options), "received_value": value}
        try:
            value = inputs[name] = _converted(kind, value)
        except (TypeError, ValueError, OverflowError) as error:
            details = f"{name}, {value}, {error}"
            message = f"Failed to convert an input value to a {kind} value"
            return _error("invalid_input_type", message, details, extra | {"exception_message": str(error)})
        if spec.name in READS_FILE and name == "image":
            return None
        extra["received_value"] = value
        return _bounds(name, value, options, extra) or self._choice(name, value, kind, options, extra)

    def _choice(
        self, name: str, value: Any, kind: Any, options: dict[str, Any], extra: dict[str, Any]
    ) -> Problem | None:
        if kind == "COMBO" and self._newest:
            kind = options["options"]
        if not isinstance(kind, list) or value in kind:
            return None
        shown = str(kind)
        if len(kind) > _SHORT_LIST:
            shown, extra = f"(list of length {len(kind)})", extra | {"input_config": None}
        return _error("value_not_in_list", "Value not in list", f"{name}: '{value}' not in {shown}", extra)

    def _file(self, spec: NodeSpec, inputs: dict[str, Any]) -> list[Problem]:
        """An input picture is looked for by its path; a list of uploaded files plays no part."""
        image = inputs.get("image")
        if spec.name not in READS_FILE or image is None or isinstance(image, list):
            return []
        path = self._folders.annotated(image)
        if path.exists() and not (self._newest and self._folders.escapes(image)):
            return []
        details = f"image - Invalid image file: {image}"
        extra = {"input_name": "image"}
        return [_error("custom_validation_failed", "Custom validation failed for node", details, extra)]


def _fits(received: str, wanted: str | list[str]) -> bool:
    if isinstance(wanted, list):
        return False
    if "*" in (received, wanted):
        return True
    return bool({t.strip() for t in received.split(",")} & {t.strip() for t in wanted.split(",")})


def _converted(kind: object, value: Any) -> Any:
    match kind:
        case "INT":
            return int(value)
        case "FLOAT":
            return float(value)
        case "STRING":
            return str(value)
        case "BOOLEAN":
            return bool(value)
        case _:
            return value


def _bounds(name: str, value: Any, options: Mapping[str, Any], extra: Mapping[str, Any]) -> Problem | None:
    low, high = options.get("min"), options.get("max")
    if low is not None and value < low:
        return _error("value_smaller_than_min", f"Value {value} smaller than min of {low}", name, extra)
    if high is not None and value > high:
        return _error("value_bigger_than_max", f"Value {value} bigger than max of {high}", name, extra)
    return None

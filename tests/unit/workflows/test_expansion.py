"""From a job that names a workflow to the job that is done, and what may go wrong on the way."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.workflows import write
from worker.errors import Disposition, Fault, InvalidJob, WorkerError
from worker.job import Job, Limits, parse
from worker.workflows import WorkflowFailed, Workflows, load
from worker.workflows.python import PythonWorkflow
from worker.workflows.python import load as load_python

LIMITS = Limits()
HEAD = """
from datetime import timedelta
from enum import Enum
from typing import Literal
from pydantic import BaseModel, ConfigDict, Field, field_validator


class Mood(Enum):
    CALM = "calm"


class Input(BaseModel):
    mood: Mood = Mood.CALM
    colours: tuple[str, ...] = ()
    pause: timedelta = timedelta(0)

    @field_validator("colours")
    @classmethod
    def _known(cls, value):
        if "boom" in value:
            raise KeyError("boom")
        return value

"""


@pytest.fixture
def made(tmp_path: Path) -> Callable[..., Workflows]:
    """Workflows whose ``x`` is of this body, limited to that time."""

    def make(body: str, **rules: Any) -> Workflows:
        write(tmp_path, {"x.py": f"{HEAD}\ndef build(input):\n    {body}\n"})
        return Workflows([load_python("x", tmp_path)], root=tmp_path, **rules)

    return make


def job_of(given: dict[str, Any] | None = None, **fields: Any) -> Job:
    document = {"id": "j", "template": {"name": "x", "input": given or {}}, **fields}
    return parse(document, fallback_id="j", limits=LIMITS)


async def refused(workflows: Workflows, given: dict[str, Any] | None = None, limits: Limits = LIMITS) -> WorkerError:
    with pytest.raises(WorkerError) as caught, structlog.testing.capture_logs():
        await workflows.expanded(job_of(given), limits)
    return caught.value


async def test_a_job_without_a_template_is_left_alone() -> None:
    """The very same one."""
    job = parse({"params": {"prompt": "x"}}, fallback_id="j", limits=LIMITS)
    assert await Workflows().expanded(job, LIMITS) is job


async def test_the_document_takes_the_template_s_place(made: Callable[..., Workflows]) -> None:
    """Id and digest stay the job's own, whatever the document says; models of both are wanted, and its words on one
    model give way to the job's."""
    lora = {"kind": "lora", "name": "a.safetensors"}
    built = {
        "id": "other",
        "params": {"prompt": "x"},
        "models": [lora, {"kind": "vae", "name": "v"}],
        "output": {"format": "png", "quality": 80},
        "metadata": {"by": "workflow"},
        "timeout": 5,
        "x-note": 1,
    }
    ours = {**lora, "url": "https://models.example/a"}
    job = job_of(models=[ours], output={"format": "webp", "prefix": "p"}, metadata={"by": "caller"}, priority=3)
    expanded = await made(f"return {built!r}").expanded(job, LIMITS)
    assert (expanded.id, expanded.sha256, expanded.template, expanded.priority) == ("j", job.sha256, None, 3)
    assert expanded.params is not None
    assert (expanded.params.prompt, expanded.metadata) == ("x", {"by": "caller"})
    assert [(ref.kind, ref.url) for ref in expanded.models] == [("vae", None), ("lora", "https://models.example/a")]
    assert expanded.output.model_dump(exclude_unset=True) == {"format": "webp", "quality": 80, "prefix": "p"}
    assert expanded.timeout is not None
    assert expanded.timeout.total_seconds() == 5


async def test_what_python_builds_is_read_as_json(made: Callable[..., Workflows]) -> None:
    """Enums, tuples, whole numbers as keys, pydantic's own values; and a bare graph stands for its job."""
    node = "{1: {'class_type': 'A', 'inputs': {'mood': input.mood, 'all': input.colours, 'pause': input.pause}}}"
    expanded = await made(f"return {node}").expanded(job_of({"colours": ["red"], "pause": "PT3S"}), LIMITS)
    assert expanded.workflow == {"1": {"class_type": "A", "inputs": {"mood": "calm", "all": ["red"], "pause": "PT3S"}}}


@pytest.mark.parametrize(
    ("given", "fields"),
    [
        ({"mood": "loud"}, ["template.input.mood"]),
        ({"colours": [1, "a", 2]}, ["template.input.colours.0", "template.input.colours.2"]),
        ({"mood": None, "pause": "x"}, ["template.input.mood", "template.input.pause"]),
    ],
)
async def test_a_wrong_input_names_its_fields(
    made: Callable[..., Workflows], given: dict[str, Any], fields: list[str]
) -> None:
    """It is the job's fault, at whatever place of the document the input stands."""
    workflows = made("return {}")
    error = await refused(workflows, given)
    assert isinstance(error, InvalidJob)
    assert [one.field for one in error.errors] == fields
    with pytest.raises(InvalidJob) as caught:
        await workflows.check("x", given, field="input")
    assert [one.field for one in caught.value.errors] == [field.removeprefix("template.") for field in fields]


@pytest.mark.parametrize(
    ("body", "given", "said"),
    [
        ("raise ValueError('secret')", {}, "the workflow x failed: ValueError at x.py:26 (the worker's log has"),
        ("return input.nothing", {}, "AttributeError at x.py:26"),
        ("raise SystemExit", {}, "SystemExit at x.py:26"),
        ("return {}", {"colours": ["boom"]}, "KeyError at x.py:21"),
        ("return [1]", {}, "build returned list, not a job document"),
        ("return None", {}, "build returned NoneType"),
        ("return {'params': {'prompt': object()}}", {}, "build returned what JSON cannot say"),
        ("return {'params': {'prompt': 'x', 'cfg': float('nan')}}", {}, "build returned what JSON cannot say"),
        ("return {}", {}, "made no job document: exactly one of params"),
        ("return {'params': {'promt': 'x'}}", {}, "params.prompt: Field required; params.promt: unknown field"),
        ("return {'params': {'prompt': 'x'}, 'v': 2}", {}, "v: Input should be 1"),
        ("return {'params': {'prompt': 'x'}, 'models': 7}", {}, "models: Input should be a valid tuple"),
        ("return {'params': {'prompt': 'x'}, 'output': 7}", {}, "output: "),
        ("return {'template': {'name': 'x'}}", {}, "template: is not for a workflow to say"),
        ("return {'params': {'prompt': 'x'}, 'webhook': 'https://a.example'}", {}, "webhook: is not for"),
        ("return {'params': {'prompt': 'x'}, 'output': {'prefix': 'a'}}", {}, "output.prefix: is not for"),
    ],
)
async def test_what_is_the_workflow_s_own_fault_is_the_operator_s(
    made: Callable[..., Workflows], body: str, given: dict[str, Any], said: str
) -> None:
    """Told at once with the place in the file, and never with a value; another try would come to the same."""
    error = await refused(made(body), given)
    assert isinstance(error, WorkflowFailed)
    assert said in error.message
    assert "secret" not in error.message
    assert (error.code, error.fault, error.disposition) == ("workflow_failed", Fault.OPERATOR, Disposition.REJECT)


async def test_the_log_has_the_traceback(made: Callable[..., Workflows]) -> None:
    """One error line with the workflow's name, and the exception itself."""
    with structlog.testing.capture_logs() as lines, pytest.raises(WorkflowFailed):
        await made("return 1 / 0").expanded(job_of(), LIMITS)
    (line,) = lines
    assert (line["event"], line["log_level"], line["workflow"]) == ("workflow_failed", "error", "x")
    assert isinstance(line["exc_info"], ZeroDivisionError)
    assert "x.py:26" in line["error"]


async def test_beyond_the_limits_is_the_job_s_fault(made: Callable[..., Workflows]) -> None:
    """The same request succeeds nowhere, whoever wrote the number."""
    error = await refused(made("return {'params': {'prompt': 'x', 'steps': 151}}"))
    assert isinstance(error, InvalidJob)
    assert error.errors[0].field == "params.steps"


async def test_a_build_that_hangs_costs_that_request_alone(made: Callable[..., Workflows]) -> None:
    """It is told after its time; while too many hang on, the next is told so at once."""
    gate = threading.Event()
    (workflow,) = made("return {}")
    assert isinstance(workflow, PythonWorkflow)
    hanging = Workflows([replace(workflow, function=lambda _: gate.wait())], limit_s=0.05)
    said = set()
    try:
        while "earlier calls still hang" not in said:
            said.add((await refused(hanging)).message.partition("failed: ")[2])
    finally:
        gate.set()
    assert said == {"took longer than 0.05 s", "earlier calls still hang"}


async def test_json_is_filled_in_and_judged_by_its_schema(tmp_path: Path) -> None:
    """A native body, a graph, a whole document; defaults of the schema and of the places."""
    files = {
        "body.json": {"prompt": "{{prompt}}, {{style|sharp}}", "steps": "{{steps|20}}", "seed": "{{seed}}"},
        "body.schema.json": {
            "title": "A picture",
            "description": "Sharp.",
            "type": "object",
            "properties": {
                "prompt": {"type": "string"},
                "style": {"type": "string"},
                "steps": {"type": "integer", "minimum": 1},
                "seed": {"type": "integer", "default": -1},
            },
            "required": ["prompt"],
        },
        "again.json": {"prompt": "{{p}}", "init_images": ["{{image}}"]},
        "graph.json": {"3": {"class_type": "KSampler", "inputs": {"seed": "{{seed}}"}}},
        "whole.json": {"params": {"prompt": "x", "width": "{{width|64}}"}, "output": {"format": "{{format|webp}}"}},
    }
    found = await load(write(tmp_path, files))
    assert not found.broken

    async def expanded(name: str, **given: Any) -> Job:
        job = parse({"template": {"name": name, "input": given}}, fallback_id="j", limits=LIMITS)
        return await found.expanded(job, LIMITS)

    body = await expanded("body", prompt="a cat", steps=30)
    assert body.request == {"prompt": "a cat, sharp", "steps": 30, "seed": -1}
    again = await expanded("again", p="x", image="aW1n")
    assert (again.endpoint, again.request) == ("img2img", {"prompt": "x", "init_images": ["aW1n"]})
    assert (await expanded("graph", seed=7)).workflow == {"3": {"class_type": "KSampler", "inputs": {"seed": 7}}}
    assert (await expanded("whole")).output.format == "webp"
    with pytest.raises(InvalidJob, match=r"template\.input\.steps: must be of type integer"):
        await expanded("body", prompt="x", steps="many")
    with pytest.raises(InvalidJob, match=r"template\.input\.sed: unknown field"):
        await expanded("graph", seed=1, sed=2)
    described = {workflow.described.name: workflow.described for workflow in found}
    assert (described["body"].summary, described["body"].description) == ("A picture", "Sharp.")
    assert described["body"].example == {"prompt": "a text", "seed": -1}
    assert (described["graph"].summary, described["graph"].example) == ("graph", None)
    assert described["whole"].example == {"width": 64, "format": "webp"}


@pytest.mark.parametrize(
    ("given", "field"),
    [
        ({"width": "wide"}, "template.input.width"),
        ({"width": 100_000}, "template.input.width"),
        ({"prompt": "x" * 100_001}, "template.input.prompt"),
        ({"loras": [{"name": "a"}, {"nam": "b"}]}, "template.input.loras"),
    ],
)
async def test_a_part_of_the_input_is_found_again_where_it_stands(
    tmp_path: Path, given: dict[str, Any], field: str
) -> None:
    """What the document refuses there is the caller's, under the name that he knows."""
    params = {"prompt": "{{prompt|x}}!", "width": "{{width|64}}", "loras": "{{loras|[]}}"}
    found = await load(write(tmp_path, {"x.json": {"params": params}}))
    error = await refused(found, given)
    assert isinstance(error, InvalidJob)
    assert {one.field for one in error.errors} == {field}


async def test_a_document_wrong_by_itself_is_the_operator_s(tmp_path: Path) -> None:
    """Though placeholders stand elsewhere in it."""
    found = await load(write(tmp_path, {"x.json": {"params": {"prompt": "{{p}}", "width": "wide"}}}))
    error = await refused(found, {"p": "x"})
    assert isinstance(error, WorkflowFailed)
    assert "params.width: Input should be a valid integer" in error.message


def test_descriptions_come_from_the_file(tmp_path: Path) -> None:
    """The docstring's first line is the summary; an example that the model itself refuses is left out."""
    head = '"""Posters.\n\n    Big ones.\n"""\nfrom pydantic import BaseModel, Field\n'
    body = "class Input(BaseModel):\n    n: int = Field(examples=[5])\n"
    odd = "class Input(BaseModel):\n    n: int = Field(examples=['five'])\n"
    end = "def build(input, extra=1):\n    return {}\n"
    write(tmp_path, {"a.py": head + body + end, "b.py": head.partition('"""\n')[2] + odd + end})
    one, two = load_python("a", tmp_path).described, load_python("b", tmp_path).described
    assert (one.summary, one.description, one.example) == ("Posters.", "Big ones.", {"n": 5})
    assert (two.summary, two.description, two.example) == ("b", "", None)
    assert json.dumps(one.schema["required"]) == '["n"]'


def test_a_model_that_holds_itself_is_described(tmp_path: Path) -> None:
    """Its fields stand at the top, as those of any other."""
    head = "from __future__ import annotations\nfrom pydantic import BaseModel\n"
    model = "class Input(BaseModel):\n    name: str\n    more: list[Input] = []\n"
    write(tmp_path, {"x.py": head + model + "def build(input):\n    return {}\n"})
    described = load_python("x", tmp_path).described
    assert (described.schema["required"], described.example) == (["name"], {"name": "a text", "more": []})
    assert "$defs" in described.schema

"""The folder of workflows: each file by itself, and the broken ones by file and line."""

from __future__ import annotations

import json
import sys
import threading
from pathlib import Path
from typing import Any

import pytest
import structlog

from tests.support.waiting import wait_until
from tests.support.workflows import BUILD, GOOD, INPUT, write
from worker.errors import Fault, InvalidJob
from worker.job import Limits, parse
from worker.workflows import Defect, WorkflowBroken, Workflows, load, tell

LIMITS = Limits()


def files_below(root: Path) -> list[Path]:
    return list(root.rglob("*"))


def names(workflows: Workflows) -> list[str]:
    return [workflow.described.name for workflow in workflows]


async def built(workflows: Workflows, name: str, **given: Any) -> dict[str, Any]:
    """What the job becomes that names it."""
    job = parse({"template": {"name": name, "input": given}}, fallback_id="j", limits=LIMITS)
    return (await workflows.expanded(job, LIMITS)).model_dump(exclude_unset=True, exclude={"sha256", "id", "output"})


async def test_paths_are_names(tmp_path: Path) -> None:
    """Nested ones too; hidden files, shared parts and what is no workflow are none."""
    files = {
        "a.py": GOOD,
        "sd1.5/txt2img-x.json": {"prompt": "{{p}}"},
        "sd1.5/txt2img-x.schema.json": {"type": "object", "properties": {"p": {}}, "required": ["p"]},
        "_shared.py": "nonsense(",
        ".hidden.py": "nonsense(",
        "_parts/b.py": "nonsense(",
        ".git/c.py": "nonsense(",
        "README.md": "nothing",
        "__pycache__/d.py": "nonsense(",
    }
    found = await load(write(tmp_path, files))
    assert (names(found), found.broken, found.notes) == (["a", "sd1.5/txt2img-x"], {}, ())
    assert "a" in found
    assert "b" not in found


async def test_no_folder_is_no_mistake(tmp_path: Path) -> None:
    """Most workers have none."""
    found = await load(tmp_path / "absent")
    assert (names(found), found.broken, found.notes) == ([], {}, ())
    with structlog.testing.capture_logs() as lines:
        tell(found)
    assert lines == []


BROKEN: list[tuple[str, dict[str, Any], str]] = [
    ("syntax", {"x.py": "import json\n\ndef build(:\n"}, "x.py:3: SyntaxError: invalid syntax"),
    ("import", {"x.py": "import json\nimport no_such_module\n"}, "x.py:2: ModuleNotFoundError: No module named"),
    ("at load", {"x.py": INPUT + "\n1 / 0\n"}, "x.py:6: ZeroDivisionError: division by zero"),
    ("exit", {"x.py": "import sys\nsys.exit(3)\n"}, "x.py:2: SystemExit: 3"),
    ("no input", {"x.py": "def build(input): ...\n"}, "x.py: defines no class Input"),
    ("other input", {"x.py": "class Input: ...\n" + BUILD}, "x.py: defines no class Input"),
    ("root model", {"x.py": "import pydantic\nInput = pydantic.RootModel[int]\n" + BUILD}, "x.py: defines no class"),
    ("no build", {"x.py": INPUT}, "x.py: defines no function build"),
    ("no arguments", {"x.py": INPUT + "\ndef build():\n    ..."}, "x.py:6: build must take the input"),
    ("coroutine", {"x.py": INPUT + "\nasync def build(input):\n    ..."}, "x.py:6: build must be a plain function"),
    (
        "odd input",
        {"x.py": INPUT + "    f: type(len) = len\n    model_config = {'arbitrary_types_allowed': True}\n" + BUILD},
        "x.py: Input cannot be described",
    ),
    ("shared part", {"x.py": "from ._part import a\n", "_part.py": "b = 1\nb.c\n"}, "_part.py:2: AttributeError"),
    ("shared syntax", {"x.py": "from ._part import a\n", "_part.py": "\n\na = = 1\n"}, "_part.py:3: SyntaxError"),
    ("json", {"x.json": '{\n "a": 1,\n}'}, "x.json:3: not JSON: trailing comma"),
    ("list", {"x.json": "[]"}, "x.json: must hold a JSON object"),
    ("page's format", {"x.json": {"nodes": [], "links": [], "version": 0.4}}, "x.json: was saved for ComfyUI's page"),
    ("key", {"x.json": {"prompt": {"{{a}}": 1}}}, "x.json: {{a}} stands in a key"),
    ("two defaults", {"x.json": '{"prompt": "{{a|1}}",\n "steps": "{{a|2}}"}'}, "x.json:1: {{a}} has two defaults"),
    (
        "no schema entry",
        {
            "x.json": '{\n "prompt": "{{b}}",\n "steps": "{{a}}"\n}',
            "x.schema.json": {"type": "object", "properties": {"b": {}}, "required": ["b"]},
        },
        "x.json:3: {{a}} is not among the schema's properties",
    ),
    (
        "nothing to put there",
        {"x.json": {"prompt": "{{a}}"}, "x.schema.json": {"type": "object", "properties": {"a": {}}}},
        "x.json:1: {{a}} may be left out by the schema, and has no default",
    ),
    (
        "defaults that differ",
        {"x.json": {"prompt": "{{a|1}}"}, "x.schema.json": {"type": "object", "properties": {"a": {"default": 2}}}},
        "x.json:1: {{a}} has another default in the schema",
    ),
    ("schema", {"x.json": {}, "x.schema.json": {"type": "objekt"}}, "x.schema.json: no JSON Schema 2020-12: type:"),
    ("schema's json", {"x.json": {}, "x.schema.json": '{\n\n"a" 1}'}, "x.schema.json:3: not JSON"),
    ("twice", {"x.py": GOOD, "x.json": {"prompt": "x"}}, "x.json: x.py has the same name"),
    ("javascript", {"x.ts": "export default {}"}, "x.ts: is not run here: rewrite it as NAME.py"),
]


@pytest.mark.parametrize(("files", "said"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN])
async def test_a_broken_file_is_told_with_its_line(tmp_path: Path, files: dict[str, Any], said: str) -> None:
    """It takes no other down, and whoever asks for it learns that it is broken, and where."""
    found = await load(write(tmp_path, {**files, "good.py": GOOD}))
    assert names(found) == ["good"]
    assert str(found.broken["x"]).startswith(said)
    with pytest.raises(WorkflowBroken) as caught:
        found.find("x")
    assert found.broken["x"].place in caught.value.message
    assert caught.value.fault is Fault.OPERATOR


async def test_files_that_are_no_workflows_are_named(tmp_path: Path) -> None:
    """Scripts beside one that can be run, schemas of nothing, names that no path of a URL has."""
    root = write(
        tmp_path,
        {"a.py": GOOD, "a.js": "", "b.schema.json": {}, "my flow.py": GOOD, "-x.py": GOOD, "c..d.json": {"prompt": ""}},
    )
    found = await load(root)
    assert (names(found), found.broken) == (["a"], {})
    assert {note.file: note.message.split(":")[0] for note in found.notes} == {
        "a.js": "is not run here",
        "b.schema.json": "has no effect without b.json beside it",
        "my flow.py": "its path can be no endpoint's",
        "-x.py": "its path can be no endpoint's",
        "c..d.json": "its path can be no endpoint's",
    }


async def test_what_cannot_be_read_is_told(tmp_path: Path) -> None:
    """A link that leads nowhere, a name that is a folder's."""
    (tmp_path / "x.py").symlink_to("nowhere.py")
    (tmp_path / "y.json").symlink_to("nowhere.json")
    found = await load(tmp_path)
    assert [str(found.broken[name]) for name in ("x", "y")] == [
        "x.py: cannot be read: No such file or directory",
        "y.json: cannot be read: No such file or directory",
    ]


async def test_the_start_logs_all_of_it(tmp_path: Path) -> None:
    """An error line for each broken file, with file and line; a warning for what is not run; the names of the rest."""
    found = await load(write(tmp_path, {"a.py": GOOD, "b.py": "x = (", "c.ts": ""}))
    with structlog.testing.capture_logs() as lines:
        tell(found)
    assert [(line["event"], line["log_level"]) for line in lines] == [
        ("workflow_broken", "error"),
        ("workflow_not_runnable", "warning"),
        ("workflows_loaded", "info"),
    ]
    assert (lines[0]["file"], lines[0]["line"]) == (str(tmp_path / "b.py"), 1)
    assert lines[2]["names"] == ["a"]


async def test_a_file_that_never_ends_loading_costs_itself_alone(tmp_path: Path) -> None:
    """The start goes on without it."""
    found = await load(write(tmp_path, {"a.py": "while True: pass\n", "b.py": GOOD}), limit_s=0.5)
    assert (names(found), str(found.broken["a"])) == (["b"], "a.py: took longer than 0.5 s to load")
    await wait_until(lambda: all(thread.name != "workflow" for thread in threading.enumerate()))


async def test_modules_of_the_folder_stay_by_themselves(tmp_path: Path) -> None:
    """``sys.path`` is untouched, nothing is written beside them, equal names in two folders are two modules."""
    path = list(sys.path)
    body = "from __future__ import annotations\n" + INPUT.replace("class", "from ._size import SIZE\n\nclass") + BUILD
    one = write(
        tmp_path / "one", {"json.py": body, "_size.py": "SIZE = 1", "sub.d/re-x.py": body, "sub.d/_size.py": "SIZE = 2"}
    )
    two = write(tmp_path / "two", {"json.py": GOOD})
    first, second = await load(one), await load(two)
    assert (names(first), names(second)) == (["json", "sub.d/re-x"], ["json"])
    assert await built(first, "sub.d/re-x", n=2) == {"params": {"prompt": "2 cats"}}
    assert sys.path == path
    assert json.loads("1") == 1
    assert {path.name for path in files_below(tmp_path) if path.suffix == ".pyc"} <= {
        path.name for path in files_below(tmp_path) if "_size" in path.name
    }


async def test_a_module_that_failed_is_not_kept(tmp_path: Path) -> None:
    """Whoever imports it relatively fails too, instead of finding half of it."""
    found = await load(write(tmp_path, {"a.py": "x = 1\n1 / 0\n", "b.py": "from .a import x\n" + GOOD}))
    assert [found.broken[name].place for name in ("a", "b")] == ["a.py:2", "a.py:2"]


async def test_nothing_of_a_name_that_is_not_there(tmp_path: Path) -> None:
    """The field of the job document says what is wrong."""
    with pytest.raises(InvalidJob) as caught:
        await built(await load(tmp_path), "poster")
    assert [error.field for error in caught.value.errors] == ["template.name"]


def test_a_defect_without_a_line_names_the_file() -> None:
    """And one with a line both, as tools link them."""
    assert str(Defect("a.py", None, "no")) == "a.py: no"
    assert str(Defect("a.py", 3, "no")) == "a.py:3: no"

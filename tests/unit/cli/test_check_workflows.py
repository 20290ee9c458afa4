"""What `sd-worker check` says of custom workflows."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.workflows import GOOD, forgotten, write
from worker.cli import FAILED, OK
from worker.cli.check import workflow_reports
from worker.errors import ConfigError
from worker.settings import load_settings


@pytest.fixture(autouse=True)
def _forgotten() -> Iterator[None]:
    with forgotten():
        yield


async def told(folder: Path) -> list[tuple[str, str, int]]:
    settings = load_settings({"WORKER_WORKFLOWS_DIR": str(folder)})
    return [(one.finding.verdict, one.finding.text, one.code) async for one in workflow_reports(settings)]


async def test_each_file_that_cannot_be_used_has_a_line(tmp_path: Path) -> None:
    """A broken one fails the check; a script is only named; the others stand in one line."""
    write(tmp_path, {"a.py": GOOD, "b/c.json": {"prompt": "x"}, "bad.py": "\nx = (", "old.js": ""})
    bad, old, good = await told(tmp_path)
    assert bad == ("FAILED", "bad.py:2: SyntaxError: '(' was never closed", FAILED)
    assert old[0::2] == ("note", OK)
    assert old[1].startswith("old.js: is not run here")
    assert good == ("ok", f"a, b/c in {tmp_path}", OK)


async def test_without_any_nothing_is_said(tmp_path: Path) -> None:
    """Most workers have none; a folder that was named must be there."""
    assert await told(tmp_path) == []
    for name, said in (("absent", "does not exist"), ("file", "is a file")):
        write(tmp_path, {"file": ""})
        with pytest.raises(ConfigError, match=f"WORKER_WORKFLOWS_DIR: {said}"):
            load_settings({"WORKER_WORKFLOWS_DIR": str(tmp_path / name)})

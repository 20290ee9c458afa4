"""The server's folders: where they may be, what counts as shared, what may be read and removed."""

from __future__ import annotations

import asyncio
import os
import sys
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from worker.engines.comfyui.disk import OURS, Folders, candidates, claimed, started_in
from worker.engines.comfyui.outputs import Item


def places(argv: list[str], cwd: str | None = None, **paths: list[str]) -> dict[str, list[str]]:
    return {kind: [str(p) for p in found] for kind, found in candidates(argv, paths, cwd).items()}


@pytest.mark.parametrize(
    ("argv", "cwd", "paths", "output", "temp"),
    [
        (["main.py"], None, {}, [], []),
        (["main.py"], None, {"custom_nodes": ["/c/custom_nodes"]}, ["/c/output"], ["/c/temp"]),
        (["main.py"], "/srv", {}, ["/srv/output"], ["/srv/temp"]),
        (["/opt/c/main.py"], None, {}, ["/opt/c/output"], ["/opt/c/temp"]),
        (["main.py", "--base-directory", "/b"], None, {}, ["/b/output"], ["/b/temp"]),
        (["main.py", "--output-directory=/o", "--temp-directory", "/t"], None, {}, ["/o"], ["/t/temp"]),
        (["main.py", "--output-directory", "o"], "/srv", {}, ["/srv/o"], ["/srv/temp"]),
        (["main.py", "--output-directory", "o"], None, {}, [], []),
        (["main.py", "--output-directory"], "/srv", {}, ["/srv/output"], ["/srv/temp"]),
    ],
)
def test_folders_are_looked_for_by_flags_then_beside_models_and_program(
    argv: list[str], cwd: str | None, paths: dict[str, list[str]], output: list[str], temp: list[str]
) -> None:
    """As the server itself decides them; a relative one needs its working directory."""
    found = places(argv, cwd, **paths)
    assert (found["output"], found["temp"]) == (output, temp)


async def test_the_working_directory_is_that_of_the_process_with_these_words(tmp_path: Path) -> None:
    """Found among the processes that we may see."""
    words = ["-c", "import sys; sys.stdin.read()", f"{tmp_path.name}"]
    process = await asyncio.create_subprocess_exec(sys.executable, *words, cwd=tmp_path, stdin=asyncio.subprocess.PIPE)
    try:
        await wait_until(lambda: started_in(words) == os.path.realpath(tmp_path))
        assert started_in(["no", "such", "words"]) is None
        assert started_in([]) is None
    finally:
        await process.communicate(b"")


def test_only_what_the_server_stored_counts_as_shared(tmp_path: Path) -> None:
    """The same name with other contents is another's, and stays."""
    for name, content in (("theirs", b"other"), ("ours", b"content")):
        (tmp_path / name).mkdir()
        (tmp_path / name / "probe").write_bytes(content)
    where = [tmp_path / "missing", tmp_path / "theirs", tmp_path / "ours"]
    assert claimed(where, "probe", b"content") == tmp_path.resolve() / "ours"
    assert [(p / "probe").exists() for p in where] == [False, True, False]
    assert claimed(where, "probe", b"content") is None


@pytest.fixture
def folders(tmp_path: Path) -> Folders:
    shared = {kind: tmp_path.resolve() / kind for kind in ("input", "output", "temp")}
    for path in shared.values():
        path.mkdir()
    return Folders(shared, {"checkpoints": (str(tmp_path / "a"), str(tmp_path / "b"))})


@pytest.mark.parametrize("item", [Item("../x"), Item("x", ".."), Item("x", "/etc"), Item(".", ""), Item("link")])
def test_nothing_outside_a_folder_is_reached(folders: Folders, tmp_path: Path, item: Item) -> None:
    """By dots, by an absolute name, or through a link."""
    (tmp_path / "x").write_bytes(b"secret")
    (tmp_path / "output" / "link").symlink_to(tmp_path / "x")
    assert folders.path(item) is None
    assert folders.read(item) is None
    assert folders.remove([item], 0.0) == 0
    assert (tmp_path / "x").exists()


def test_files_are_read_where_they_are(folders: Folders) -> None:
    """By type and subfolder; what is not there, or not shared, is None."""
    path = folders.shared["temp"] / "sub" / "a.png"
    path.parent.mkdir()
    path.write_bytes(b"data")
    assert folders.read(Item("a.png", "sub", "temp")) == b"data"
    assert folders.read(Item("b.png", "sub", "temp")) is None
    assert Folders().read(Item("a.png")) is None


def test_only_what_a_prompt_made_is_removed(folders: Folders) -> None:
    """Previews always; an output when it is not older than the prompt; an input never here."""
    items = [Item("old.png"), Item("new.png"), Item("a.png", type="temp"), Item("a.png", type="input")]
    paths = [folders.shared[i.type] / i.filename for i in items]
    for path in paths:
        path.write_bytes(b"x")
    os.utime(paths[0], (100, 100))
    os.utime(paths[1], (200, 200))
    assert folders.remove([*items, Item("gone.png")], 150.0) == 0
    assert [path.exists() for path in paths] == [True, False, False, True]
    paths[1].write_bytes(b"x")
    folders.remove(items, None)
    assert paths[1].exists()


def test_what_cannot_be_removed_is_counted(folders: Folders) -> None:
    """A directory is no file."""
    (folders.shared["temp"] / "a.png").mkdir()
    assert folders.remove([Item("a.png", type="temp")], None) == 1


def test_our_folders_are_cleared(folders: Folders) -> None:
    """One of them, or all; never anybody else's."""
    for kind in ("input", "output"):
        for name in (f"{OURS}/one/a", f"{OURS}/two/a", "theirs/a"):
            path = folders.shared[kind] / name
            path.parent.mkdir(parents=True)
            path.write_bytes(b"x")
    assert folders.clear("one") == 0
    assert sorted(p.name for p in (folders.shared["input"] / OURS).iterdir()) == ["two"]
    assert folders.clear() == 0
    assert [p.name for p in folders.shared["output"].iterdir()] == ["theirs"]


def test_nothing_of_ours_stays_behind_the_last_folder(folders: Folders) -> None:
    """Not even an empty folder among the server's own."""
    (folders.shared["input"] / OURS / "one").mkdir(parents=True)
    assert folders.clear("one") == 0
    assert list(folders.shared["input"].iterdir()) == []


def test_a_model_is_found_in_the_first_of_its_places(folders: Folders, tmp_path: Path) -> None:
    """As the server takes it."""
    for place in ("b", "a"):
        (tmp_path / place).mkdir()
        (tmp_path / place / "m.safetensors").write_bytes(b"x")
    assert folders.model("checkpoints", "m.safetensors") == tmp_path / "a" / "m.safetensors"
    assert folders.model("checkpoints", "n.safetensors") is None
    assert folders.model("loras", "m.safetensors") is None

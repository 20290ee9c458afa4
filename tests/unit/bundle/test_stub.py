"""The shell in front of the binary: where it unpacks, what it trusts, what the program gets, and what goes wrong."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import pytest

from tests.support.waiting import wait_until
from tests.unit.bundle.conftest import PROGRAM, Stub, build

NASTY = ("a b", "", "line\nline", "*", "-n", "$HOME", "'\"")


def leftovers(base: Path) -> list[str]:
    return sorted(path.name for path in base.iterdir() if path.name.startswith("."))


def test_it_unpacks_once_into_a_folder_named_by_content(stub: Stub) -> None:
    """Later calls touch neither the archive nor the folder."""
    stub.run("one")
    assert [path.name for path in stub.base.iterdir()] == [stub.name]
    assert stub.home.stat().st_mode & 0o777 == 0o755
    before = stub.home.stat()
    with stub.path.open("r+b") as file:
        file.seek(-30, os.SEEK_END)
        file.write(bytes(30))
    assert "argument=[two]" in stub.run("two").stdout
    assert stub.home.stat() == before


def test_other_content_goes_beside_it(stub: Stub, tmp_path: Path) -> None:
    """An update runs its own program, whatever was unpacked before."""
    stub.run()
    (tmp_path / "update").mkdir()
    update = build(tmp_path / "update", PROGRAM + "# newer\n")
    update.run(environ=stub.environment())
    assert sorted(path.name for path in stub.base.iterdir()) == sorted({stub.name, update.name})


@pytest.mark.parametrize("call", [1, 2])
def test_the_program_takes_the_place_of_the_shell(stub: Stub, call: int) -> None:
    """The same process, so that PID 1 stays PID 1 and a signal arrives once; with nothing of the stub left in it."""
    for _ in range(call - 1):
        stub.run()
    with stub.start("run", "--", *NASTY, environ=stub.environment(ENDS="75")) as process:
        out, _ = process.communicate()
    said = out.replace("\nline]", "\\nline]").splitlines()
    assert process.returncode == 75
    assert f"pid={process.pid}" in said
    assert "bundle=unset" in said
    assert "descriptors=0, 1, 2, 3" in said
    wanted = ["-I", "-m", "worker", "run", "--", *NASTY]
    assert [line for line in said if line.startswith("argument=")] == [
        f"argument=[{word}]".replace("\n", "\\n") for word in wanted
    ]


@pytest.mark.parametrize("mask", [0o077, 0o002])
def test_the_callers_umask_changes_nothing_and_stays(stub: Stub, mask: int) -> None:
    """What is unpacked under a strict one is for all to read, and under a lax one for nobody else to write."""
    done = subprocess.run([stub.path], env=stub.environment(), capture_output=True, text=True, umask=mask)
    assert f"umask={mask:04o}" in done.stdout
    assert {path.stat().st_mode & 0o777 for path in [stub.home, stub.home / "bin"]} == {0o755}
    assert (stub.home / "NOTICES").stat().st_mode & 0o777 == 0o644


def test_without_a_choice_it_is_the_root_folder(stub: Stub) -> None:
    """Where images are built, root makes it, and whoever comes later finds it, whatever else they could write to."""
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(stub.base)}
    stub.run(environ=environ)
    assert (stub.root / stub.name).is_dir()
    assert not stub.base.exists()


def test_else_it_is_a_folder_of_the_callers_own(tmp_path: Path) -> None:
    """A read-only root needs no home either: only somewhere temporary."""
    stub = build(tmp_path)
    stub.root.parent.write_text("not a folder")
    stub.base.mkdir()
    environ = {"PATH": os.environ["PATH"], "TMPDIR": str(stub.base)}
    for _ in range(2):
        stub.run(environ=environ)
    assert [path.name for path in stub.base.iterdir()] == [f"sd-worker-{os.getuid()}"]
    stub.base.joinpath(f"sd-worker-{os.getuid()}").chmod(0o777)
    said = stub.run(environ=environ, code=70).stderr
    assert "no folder to unpack into" in said
    assert "can be written by others (mode 777)" in said
    assert "SD_WORKER_BUNDLE_DIR" in said


def test_a_relative_choice_counts_from_the_callers_folder(stub: Stub, tmp_path: Path) -> None:
    """And does not become another one when the program changes its folder."""
    done = subprocess.run(
        [stub.path], env=stub.environment(SD_WORKER_BUNDLE_DIR="here"), cwd=tmp_path, capture_output=True, text=True
    )
    assert done.returncode == 0
    assert (tmp_path / "here" / stub.name).is_dir()


@pytest.mark.parametrize("mode", [0o775, 0o757, 0o1777])
def test_a_folder_that_others_can_write_to_is_refused(stub: Stub, mode: int) -> None:
    """They could put a program there for us to run."""
    stub.run()
    stub.base.chmod(mode)
    said = stub.run(code=70).stderr
    assert f"can be written by others (mode {mode:o})" in said


def test_a_planted_program_is_not_run(stub: Stub, tmp_path: Path) -> None:
    """A folder of the right name counts only when nobody else could have made or changed it."""
    elsewhere = tmp_path / "elsewhere"
    (elsewhere / "bin").mkdir(parents=True)
    (elsewhere / "bin" / "sd-worker").write_text("#!/bin/sh\necho planted\n")
    (elsewhere / "bin" / "sd-worker").chmod(0o755)
    stub.base.mkdir()
    stub.home.symlink_to(elsewhere)
    said = stub.run(code=70)
    assert "planted" not in said.stdout
    assert "symbolic link" in said.stderr
    stub.home.unlink()
    elsewhere.rename(stub.home)
    stub.home.chmod(0o777)
    said = stub.run(code=70)
    assert "planted" not in said.stdout
    assert "can be written by others" in said.stderr


def test_a_link_is_no_folder_of_ours(stub: Stub, tmp_path: Path) -> None:
    """Whoever made the link chose where it leads."""
    (tmp_path / "real").mkdir()
    stub.base.symlink_to(tmp_path / "real")
    assert "is a symbolic link" in stub.run(code=70).stderr


@pytest.mark.parametrize("damage", ["changed", "cut"])
def test_a_damaged_file_says_so(stub: Stub, damage: str) -> None:
    """An interrupted download shows at once, and leaves nothing behind."""
    size = stub.path.stat().st_size
    with stub.path.open("r+b") as file:
        if damage == "cut":
            file.truncate(size - 1000)
        else:
            file.seek(size - 1000)
            file.write(b"x" * 100)
    assert "is damaged" in stub.run(code=70).stderr
    assert [*stub.base.iterdir()] == []


def test_what_cannot_be_run_is_not_kept(tmp_path: Path) -> None:
    """A folder mounted noexec, or a glibc that is too old, shows before the folder gets its name."""
    stub = build(tmp_path, "#!/nowhere/interpreter\n")
    said = stub.run(code=70).stderr
    assert "cannot run what was unpacked" in said
    assert "noexec" in said
    assert "SD_WORKER_BUNDLE_DIR" in said
    assert "glibc 2.31" in said
    assert [*stub.base.iterdir()] == []


def test_a_system_without_glibc_is_named(tmp_path: Path) -> None:
    """On musl the shell would only say "not found"."""
    stub = build(tmp_path, loader="/lib64/ld-nothing.so.2")
    assert "needs glibc and /lib64/ld-nothing.so.2" in stub.run(code=70).stderr


def test_no_room_says_how_much_is_needed(stub: Stub) -> None:
    """And names the variable that moves it; what was written is gone again."""
    limited = f'ulimit -f 8; exec "{stub.path}"'
    done = subprocess.run(["/bin/sh", "-c", limited], env=stub.environment(), capture_output=True, text=True)
    assert done.returncode == 70
    assert "cannot unpack into" in done.stderr
    assert "120 MB" in done.stderr
    assert "SD_WORKER_BUNDLE_DIR" in done.stderr
    assert [*stub.base.iterdir()] == []


def test_first_calls_at_once_all_run(stub: Stub) -> None:
    """One of them wins the name; the others use it and clear up after themselves."""
    calls = [stub.start(f"call {number}") for number in range(6)]
    for number, call in enumerate(calls):
        out, err = call.communicate()
        assert call.returncode == 0, err
        assert f"argument=[call {number}]" in out
    assert [path.name for path in stub.base.iterdir()] == [stub.name]
    assert {path.name for path in stub.home.iterdir()} == {"NOTICES", "bin"}


class Held:
    """A ``tar`` that waits until it is let go, for a call that is in the midst of unpacking."""

    def __init__(self, folder: Path) -> None:
        self.path, self._begun, self._gate = folder / "bin", folder / "begun", folder / "gate"
        self.path.mkdir()
        os.mkfifo(self._gate)
        tar = self.path / "tar"
        tar.write_text(f'#!/bin/sh\n: >"{self._begun}"\nread -r _ <"{self._gate}"\nexec /bin/tar "$@"\n')
        tar.chmod(0o755)

    async def begun(self) -> None:
        await wait_until(self._begun.exists)

    def let_go(self) -> None:
        self._gate.write_text("\n")


@pytest.mark.parametrize("sent", [signal.SIGKILL, signal.SIGTERM])
async def test_a_call_that_ends_half_way_leaves_nothing_that_counts(
    stub: Stub, tmp_path: Path, sent: signal.Signals
) -> None:
    """Stopped, it clears up; killed, it leaves a folder that has no name yet, and the next call is a first one."""
    held = Held(tmp_path)
    environ = stub.environment()
    with stub.start(environ={**environ, "PATH": f"{held.path}:{environ['PATH']}"}) as process:
        await held.begun()
        process.send_signal(sent)
        held.let_go()
        process.communicate()
    assert process.returncode == (-sent if sent is signal.SIGKILL else 128 + sent)
    assert not stub.home.exists()
    assert len(leftovers(stub.base)) == (1 if sent is signal.SIGKILL else 0)
    stub.run()
    assert stub.home.is_dir()


def test_what_killed_calls_left_goes_after_an_hour(stub: Stub) -> None:
    """A call that unpacks at this moment keeps its folder."""
    for name, age in (("old", 2 * 60 * 60), ("new", 60)):
        folder = stub.base / f".unpacking.{name}"
        (folder / "bin").mkdir(parents=True)
        then = folder.stat().st_mtime - age
        os.utime(folder, (then, then))
    stub.run()
    assert leftovers(stub.base) == [".unpacking.new"]

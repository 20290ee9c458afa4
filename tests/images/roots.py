"""What the images stand on here: a minimal Debian with a Python, and the libraries of the simulators."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from importlib.metadata import requires
from pathlib import Path

from packaging.requirements import Requirement

from tests.images.bases import DEBIAN, PACKAGES
from tests.images.store import ROOT, NotBuilt, Store

RELEASE = "bookworm"
INCLUDED = "ca-certificates,libtcmalloc-minimal4,procps,python3,python3-venv"
LIBRARIES = ("pillow", "pydantic", "starlette", "uvicorn", "websockets")
"""What `worker.simulators` imports."""

TOOLS = {"buildah": "buildah", "debootstrap": "debootstrap", "unshare": "util-linux", "nsenter": "util-linux"}
DRIVERS = ("overlay", "vfs")


def cache() -> Path:
    """Where what is made is kept between runs."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sd-worker-images")


def hindrance() -> str | None:
    """Why images cannot be built and run on this machine; None when they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "it needs root on Linux"
    lacking = {package for tool, package in TOOLS.items() if shutil.which(tool) is None}
    if lacking:
        return f"it needs {' and '.join(sorted(lacking))} (apt-get install {' '.join(sorted(lacking))})"
    tried = _run("unshare", "--pid", "--fork", "--mount", "--net", "--uts", "--ipc", "true")
    return None if tried.returncode == 0 else f"namespaces cannot be made here: {tried.stdout.strip()}"


def opened() -> Store:
    """The storage, with a driver that works there. Raises `NotBuilt`."""
    folder = cache()
    folder.mkdir(parents=True, exist_ok=True)
    for driver in DRIVERS:
        store = Store(folder, driver)
        try:
            store.run("rm", store.run("from", "scratch"))
        except NotBuilt as error:
            said = str(error)
        else:
            return store
    raise NotBuilt(said)


def prepare(store: Store) -> None:
    """Have `bases.DEBIAN` there. Raises `NotBuilt`: no mirror or package index answers, or nothing can be run."""
    bare, whole = _named(RELEASE, INCLUDED), _named(RELEASE, INCLUDED, PACKAGES, *_locked())
    if not store.has(bare):
        _made_bare(store, bare)
    if not store.has(whole):
        _made_whole(store, bare, whole)
    store.run("tag", whole, DEBIAN)
    container = store.run("from", "--pull-never", DEBIAN)
    store.run("run", "--isolation", "chroot", container, "true")
    store.run("rm", container)


def _made_bare(store: Store, tag: str) -> None:
    root = _emptied(store.folder / "root")
    _must("debootstrap", "--variant=minbase", f"--include={INCLUDED}", RELEASE, str(root))
    for leftover in ("var/cache/apt", "var/lib/apt/lists", "usr/share/doc", "usr/share/locale", "usr/share/man"):
        shutil.rmtree(root / leftover)
    _must("chroot", str(root), "python3", "-m", "venv", "--without-pip", "/opt/conda")
    _commit(store, "scratch", root, "/", tag)


def _made_whole(store: Store, bare: str, tag: str) -> None:
    """With the locked releases of the libraries, for that Debian's own Python."""
    folder = _emptied(store.folder / "packages")
    wanted = store.folder / "wanted.txt"
    wanted.write_text("\n".join(_locked()))
    kind = ("--python-version", "3.11", "--implementation", "cp", "--only-binary=:all:")
    tags = (f"{name}_{os.uname().machine}" for name in ("manylinux2014", "manylinux_2_28"))
    platforms = [word for one in tags for word in ("--platform", one)]
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--require-hashes")
    target = ("--target", str(folder), "-r", str(wanted))
    _must(sys.executable, "-m", "pip", "install", *quiet, *kind, *platforms, *target)
    _commit(store, bare, folder, PACKAGES, tag)


def _emptied(folder: Path) -> Path:
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def _commit(store: Store, base: str, folder: Path, to: str, tag: str) -> None:
    """An image of a base and a folder, which is gone afterwards."""
    container = store.run("from", "--pull-never", base)
    store.run("add", "-q", container, str(folder), to)
    store.run("commit", "-q", "--rm", container, tag)
    shutil.rmtree(folder)


def _named(*contents: str) -> str:
    """A tag that tells what is in the image."""
    return f"{DEBIAN}:{hashlib.sha256(repr(contents).encode()).hexdigest()[:12]}"


def _locked() -> Iterator[str]:
    """The entries of the lock that the simulators need."""
    names = set(_closure(LIBRARIES))
    for entry in re.split(r"\n(?=\S)", (ROOT / "requirements.lock").read_text()):
        if re.split(r"[=\[ ]", entry, maxsplit=1)[0].lower() in names:
            yield entry


def _closure(names: tuple[str, ...]) -> Iterator[str]:
    """These distributions and all that they need on Linux."""
    waiting, seen = list(names), set[str]()
    while waiting:
        name = waiting.pop().lower().replace("_", "-")
        if name in seen:
            continue
        seen.add(name)
        yield name
        wanted = map(Requirement, requires(name) or [])
        waiting += [one.name for one in wanted if one.marker is None or one.marker.evaluate({"extra": ""})]


def _must(*command: str) -> None:
    done = _run(*command)
    if done.returncode:
        lines = done.stdout.strip().splitlines()
        raise NotBuilt(f"{command[0]}: {lines[-1] if lines else f'ended with {done.returncode}'}")


def _run(*command: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, timeout=900)

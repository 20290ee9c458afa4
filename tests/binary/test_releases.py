"""The binary in roots of other distribution releases: the whole main job, or a clear refusal.

The oldest has the glibc of Ubuntu 20.04. A binary that was built on a later one is refused there, with what it needs.
"""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path

import pytest

from bundle.elf import version_of
from tests.binary.conftest import Binary

pytestmark = pytest.mark.binary

RELEASES = {"bullseye": "2.31", "bookworm": "2.36", "trixie": "2.41"}
"""Debian's, and their glibc."""


@pytest.fixture(params=RELEASES, scope="session")
def release(request: pytest.FixtureRequest) -> tuple[str, Path]:
    """A minimal root of it, with nothing that an image server would need; made once a machine."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "sd-worker-roots")
    root, made = cache / request.param, cache / f"{request.param}.made"
    if not made.exists():
        shutil.rmtree(root, ignore_errors=True)
        root.mkdir(parents=True)
        subprocess.run(["debootstrap", "--variant=minbase", request.param, root], check=True, stdout=subprocess.DEVNULL)
        made.touch()
    return request.param, root


def test_the_main_job_runs_on_other_releases(binary: Binary, release: tuple[str, Path], folder: Path) -> None:
    """Queue, server, images and webhooks, in a root that has neither Python nor libraries beyond the base system; what
    the other queues need loads there too."""
    name, root = release
    place = root / "mnt"
    mounts = f"""
    mount -t tmpfs place {place}
    cp {binary.path} {place}/sd-worker
    mount -t proc proc {root}/proc
    mount --bind /dev {root}/dev
    """
    imports = "import boto3, google.protobuf.empty_pb2, grpc.aio, redis.asyncio"
    script = f'/mnt/sd-worker demo --jobs 2 && exec /mnt/base/*/bin/sd-worker -I -c "{imports}"'
    words = ("chroot", root, "env", "-C", "/mnt", "sh", "-c", script)
    done = binary.apart(mounts, *words, SD_WORKER_BUNDLE_DIR="/mnt/base", PATH="/usr/sbin:/usr/bin:/sbin:/bin")
    if version_of(binary.glibc) <= version_of(RELEASES[name]):
        assert done.returncode == 0, done.stdout + done.stderr
        assert "succeeded" in done.stdout
    else:
        assert done.returncode == 70
        assert f"needs glibc {binary.glibc} or later" in done.stderr

"""Built images, and containers of them, in a network of their own that has loopback and nothing else."""

from __future__ import annotations

import ctypes
import fcntl
import os
import socket
import struct
from collections.abc import Callable, Iterator

import pytest

from tests.images import models
from tests.images.bases import BASES, BUILDER
from tests.images.boxes import Box
from tests.images.roots import opened
from tests.images.store import Store
from tests.support.dockerfiles import ENGINES, ROOT

CLONE_NEWNS, CLONE_NEWNET = 0x00020000, 0x40000000
SIOCSIFFLAGS, IFF_UP = 0x8914, 0x1

Build = Callable[..., str]


@pytest.fixture(scope="session", autouse=True)
def _apart() -> None:
    """Mounts that end with this process, and a network where nobody else has the images' ports, or can be reached."""
    libc = ctypes.CDLL(None, use_errno=True)
    if libc.unshare(CLONE_NEWNS | CLONE_NEWNET) or libc.mount(b"none", b"/", None, 0x44000, None):
        raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
    with socket.socket() as any_socket:
        fcntl.ioctl(any_socket, SIOCSIFFLAGS, struct.pack("16sh22x", b"lo", IFF_UP))


@pytest.fixture(scope="session")
def store(_apart: None) -> Store:
    return opened()


@pytest.fixture(scope="session")
def shelf(_apart: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[models.Shelf]:
    with models.opened(tmp_path_factory.mktemp("shelf")) as shelf:
        yield shelf


@pytest.fixture(scope="session")
def build(store: Store, shelf: models.Shelf) -> Build:
    """Builds the image for a server on some base, with a model of the shelf baked in; its tag."""

    def built(engine: str, base: str, word: str = shelf.word) -> str:
        tag = f"localhost/sd-worker-{engine}"
        arguments = {"BUILDER": BUILDER, "BASE": BASES[base].tag, "VERSION": "1.2.3"}
        arguments |= {"MODELS": word, "WORKER_MODELS_S3_ENDPOINT_URL": shelf.url}
        secret = f"id=aws_credentials,src={shelf.credentials}"
        store.build(tag, ROOT / f"Dockerfile.{engine}", "--secret", secret, arguments=arguments)
        return tag

    return built


@pytest.fixture(scope="session", params=ENGINES)
def image(request: pytest.FixtureRequest, build: Build) -> str:
    """The tag of each image in turn."""
    return build(request.param, request.param)


@pytest.fixture(scope="session")
def box(store: Store, image: str) -> Iterator[Box]:
    """A container of it that runs."""
    box = Box(store, image)
    try:
        box.start()
        yield box
    finally:
        box.close()

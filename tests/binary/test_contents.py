"""What the binary carries, asked of the Python within."""

from __future__ import annotations

import json
import subprocess

import pytest

from bundle import elf, interpreter
from tests.binary.conftest import Binary

pytestmark = pytest.mark.binary

NOT_CARRIED = {
    "_crypt", "_curses_panel", "_dbm", "_gdbm", "_tkinter", "antigravity", "crypt", "ensurepip", "idlelib",
    "msilib", "nis", "ossaudiodev", "readline", "spwd", "this", "tkinter", "turtle", "turtledemo",
}  # fmt: skip
"""Of the standard library: what `bundle.interpreter` leaves out; what opens a browser or prints at its import."""

IMPORTS = """
import importlib, json, pkgutil, sys, warnings
warnings.simplefilter("ignore")
WINDOWS = {"_msi", "_overlapped", "_scproxy", "_winapi", "msvcrt", "nt", "winreg", "winsound", "_osx_support"}
failed = {}
import worker
ours = [one.name for one in pkgutil.walk_packages(worker.__path__, "worker.") if not one.name.endswith("__main__")]
for name in [*sorted(sys.stdlib_module_names - WINDOWS), *ours]:
    try:
        importlib.import_module(name)
    except BaseException as error:
        failed[name] = repr(error)
print(json.dumps([failed, len(ours)]))
"""

PARTS = """
import json, os
from PIL import features
import boto3, certifi, grpc.aio, h11, jsonschema, redis, websockets, uvicorn.protocols.http.h11_impl
import uvicorn.protocols.websockets.auto
clients = [boto3.client(name, region_name="us-east-1", aws_access_key_id="a", aws_secret_access_key="b")
           for name in ("s3", "sqs", "sts")]
jsonschema.Draft202012Validator({"type": "object"}).validate({})
print(json.dumps({
    "codecs": [name for name in ("jpg", "zlib", "webp", "avif") if features.check(name)],
    "clients": [client.meta.service_model.service_name for client in clients],
    "roots": [open(file).read().count("BEGIN CERTIFICATE") for file in (
        certifi.where(), os.path.join(os.path.dirname(grpc.__file__), "_cython", "_credentials", "roots.pem"))],
}))
"""


def test_all_of_the_standard_library_and_of_the_worker_imports(binary: Binary) -> None:
    """Custom workflows may import anything; every driver is there before a setting asks for it."""
    failed, ours = json.loads(binary.python(IMPORTS).splitlines()[-1])
    assert set(failed) - NOT_CARRIED == set()
    assert ours > 200


def test_codecs_service_data_and_roots_are_carried(binary: Binary) -> None:
    """What is loaded by name or from a file, which no import shows."""
    found = json.loads(binary.python(PARTS))
    assert found["codecs"] == ["jpg", "zlib", "webp", "avif"]
    assert found["clients"] == ["s3", "sqs", "sts"]
    assert min(found["roots"]) > 50


def test_the_glibc_that_it_says_is_the_one_that_it_needs(binary: Binary) -> None:
    """Every ELF file that was unpacked is looked at; none wants a library that a host may lack."""
    found = [one for _, one in elf.below(binary.home)]
    assert len(found) > 50
    assert elf.glibc(found) == elf.version_of(binary.glibc)
    assert interpreter.strays(binary.home) == set()


def test_it_needs_no_byte_code_to_be_written(binary: Binary) -> None:
    """A read-only folder starts as fast as any."""
    sources = set(binary.home.rglob("*.py"))
    compiled = {path.parent.parent / f"{path.name.partition('.')[0]}.py" for path in binary.home.rglob("*.pyc")}
    assert sources - compiled == set()


def test_it_carries_its_licences(binary: Binary) -> None:
    """Also without a terminal and a home."""
    said = subprocess.run(
        [binary.path, "version", "--licenses"], env=binary.environment(), check=True, capture_output=True, text=True
    ).stdout
    assert all(f"  {name} " in said for name in ("boto3", "grpcio", "pillow", "redis", "sd-worker"))
    assert "Python Software Foundation" in said

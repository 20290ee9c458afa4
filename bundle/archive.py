"""The one file: the stub, then the folder as a gzipped tar. The same folder gives the same bytes."""

from __future__ import annotations

import gzip
import hashlib
import tarfile
from collections.abc import Mapping
from pathlib import Path

STUB = Path(__file__).with_name("stub.sh")
ROOT_BASE = "/opt/sd-worker"
NAME = 16
"""Hexadecimal digits of the payload's SHA-256 that name the unpacked folder."""


def pack(folder: Path, target: Path) -> None:
    """Write a tree as a gzipped tar, the one compression that every base image can undo."""
    with (
        target.open("wb") as file,
        gzip.GzipFile(filename="", fileobj=file, mode="wb", compresslevel=9, mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w|", format=tarfile.GNU_FORMAT) as tar,
    ):
        for path in sorted(folder.rglob("*")):
            tar.add(path, path.relative_to(folder).as_posix(), recursive=False, filter=_plain)


def write(target: Path, payload: Path, facts: Mapping[str, str]) -> None:
    """Put the stub in front of the payload; ``facts`` fill its places, beside what is known of the payload itself."""
    with payload.open("rb") as file:
        digest = hashlib.file_digest(file, "sha256").hexdigest()
    text = STUB.read_text()
    for name, value in {"ROOT_BASE": ROOT_BASE, **facts, "SHA256": digest, "NAME": digest[:NAME]}.items():
        text = text.replace(f"@{name}@", value)
    text = text.replace("@OFFSET@", str(len(text.encode()) + 1).ljust(len("@OFFSET@")))
    target.parent.mkdir(parents=True, exist_ok=True)
    partial = target.with_name(f".{target.name}.partial")
    with partial.open("wb") as out, payload.open("rb") as file:
        out.write(text.encode())
        while block := file.read(1 << 20):
            out.write(block)
    partial.chmod(0o755)
    partial.replace(target)


def _plain(entry: tarfile.TarInfo) -> tarfile.TarInfo:
    entry.uid = entry.gid = 0
    entry.uname = entry.gname = ""
    entry.mtime = 0
    entry.mode = 0o755 if entry.isdir() or entry.mode & 0o111 else 0o644
    return entry

"""A private bucket with a model in it, for images to bake in."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from tests.support.s3 import ACCESS_KEY, SECRET_KEY, running_rclone
from tests.support.weights import weights

NAME = "baked-model.safetensors"
BODY = weights("baked")


@dataclass(frozen=True)
class Shelf:
    """``url`` of the store, and the file with what opens it."""

    url: str
    credentials: Path

    @property
    def word(self) -> str:
        """As MODELS takes it, with its hash."""
        return f"checkpoint=s3://models/{NAME}#sha256={hashlib.sha256(BODY).hexdigest()}"


@contextmanager
def opened(folder: Path) -> Iterator[Shelf]:
    bucket, credentials = folder / "store/models", folder / "credentials"
    bucket.mkdir(parents=True)
    (bucket / NAME).write_bytes(BODY)
    credentials.write_text(f"[default]\naws_access_key_id = {ACCESS_KEY}\naws_secret_access_key = {SECRET_KEY}\n")
    with running_rclone(folder / "store") as url:
        yield Shelf(url, credentials)

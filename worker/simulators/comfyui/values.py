"""What flows between the nodes of a graph. A key names everything that a value was made of."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass, field

from PIL import Image

Images = tuple[Image.Image, ...]


@dataclass(frozen=True)
class Weights:
    """A model, a text encoder, a VAE or another network. ``names`` are the files that it came from."""

    key: str
    names: tuple[str, ...]
    architecture: str | None = None

    def patched(self, how: str, name: str | None = None) -> Weights:
        """The same network, changed."""
        return Weights(f"{self.key}+{how}", (*self.names, *([name] if name else [])), self.architecture)


@dataclass(frozen=True)
class Conditioning:
    """A text as a model understands it."""

    key: str
    text: str


@dataclass(frozen=True)
class Latent:
    """Pictures in the making. ``images`` shine through as far as ``strength`` is below 1; ``mask`` keeps the rest."""

    key: str
    width: int
    height: int
    count: int
    images: Images = ()
    strength: float = 1.0
    mask: Image.Image | None = None


@dataclass(frozen=True)
class Sigmas:
    """A noise schedule."""

    scheduler: str
    steps: int
    denoise: float


@dataclass(frozen=True)
class Guider:
    """A model with its conditions."""

    model: Weights
    positive: Conditioning
    negative: Conditioning | None = None
    cfg: float = 1.0


@dataclass(frozen=True)
class Audio:
    """A sound of so many seconds."""

    seconds: float
    rate: int = 44100


@dataclass(frozen=True)
class Result:
    """What a node gives: its outputs by slot, and what it shows, None for nothing."""

    outputs: tuple[object, ...] = ()
    ui: dict[str, object] | None = field(default=None)


class NodeFailed(Exception):
    """An exception of this type and message was raised by a node."""

    def __init__(self, kind: str, message: str) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message


class Interrupted(Exception):
    """The running prompt was interrupted."""


class WorkerDied(Exception):
    """The thread that runs prompts is gone; HTTP goes on."""


def digest(images: Iterable[Image.Image]) -> str:
    """A key of pictures by their contents."""
    found = hashlib.sha256()
    for image in images:
        found.update(repr((image.mode, image.size)).encode())
        found.update(image.tobytes())
    return found.hexdigest()[:16]

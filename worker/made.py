"""What one generation made: verified, encoded as it is wanted, and ready to be stored."""

from __future__ import annotations

from dataclasses import dataclass

from worker.engines.base import Expectation, Output
from worker.errors import OutputEmpty
from worker.files import MadeFile, verify_files
from worker.images import Encoding, Picture, verify_all
from worker.result import FileResult, ImageResult
from worker.storage.base import Artifact, FileArtifact, Storable

Stored = ImageResult | FileResult
"""How a result document names one thing that was made."""


@dataclass(frozen=True, slots=True)
class Made:
    """Images first, then files, in the order of their indices; ``flat``: one of the images is of one colour."""

    output: Output
    artifacts: tuple[Storable[Stored], ...]
    flat: bool

    @property
    def size(self) -> int:
        """Bytes to be stored."""
        return sum(len(artifact.data) for artifact in self.artifacts)


async def verified(output: Output, expect: Expectation, encoding: Encoding) -> Made:
    """What a server handed over, verified in threads.

    Raises `OutputEmpty` when there is neither an image nor a file, and what `verify_all` and `verify_files` raise.
    """
    pictures = await verify_all(
        output.images, count=expect.count, width=expect.width, height=expect.height, encoding=encoding
    )
    files = await verify_files(output.files, first=len(pictures))
    artifacts: tuple[Storable[Stored], ...] = (
        *(_image(picture) for picture in pictures),
        *(_file(file) for file in files),
    )
    if not artifacts:
        raise OutputEmpty("neither an image nor a file was made")
    return Made(output, artifacts, any(picture.flat for picture in pictures))


def _image(picture: Picture) -> Artifact:
    return Artifact(
        picture.index, picture.data, picture.format, picture.width, picture.height, picture.seed, picture.sha256
    )


def _file(file: MadeFile) -> FileArtifact:
    return FileArtifact(file.index, file.data, file.name, file.kind, file.sha256, file.node)

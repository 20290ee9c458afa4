"""What a generation made: images as asked for, then files, and never nothing."""

from __future__ import annotations

import pytest

from tests.support.fakes import SIDE, png
from tests.support.made import a_text, a_video
from worker.engines.base import Expectation, Output, RawFile, RawImage
from worker.errors import OutputEmpty, OutputMismatch
from worker.images import Encoding
from worker.made import verified
from worker.result import EngineResult, FileResult

ENGINE = EngineResult(name="fake")
ANY = Expectation(None, None, None, ())


def output(*images: bytes, files: tuple[RawFile, ...] = ()) -> Output:
    return Output(tuple(RawImage(data, seed=7) for data in images), ENGINE, files=files)


async def test_images_come_first_and_files_go_on_counting() -> None:
    """So that keys and upload URLs by index never meet."""
    made = await verified(output(png(1), png(2), files=(a_video(), a_text())), ANY, Encoding())
    named = [artifact.result(key="k") for artifact in made.artifacts]
    assert [one.index for one in named] == [0, 1, 2, 3]
    assert [isinstance(one, FileResult) for one in named] == [False, False, True, True]
    assert [one.format for one in named] == ["png", "png", "mp4", "text"]
    assert [artifact.media_type for artifact in made.artifacts][2:] == ["video/mp4", "text/plain; charset=utf-8"]
    assert made.size == sum(len(artifact.data) for artifact in made.artifacts)


async def test_a_graph_without_images_is_fine_when_it_made_files() -> None:
    """Where only the server knows how many images there will be."""
    made = await verified(output(files=(a_video(),)), ANY, Encoding())
    assert [artifact.index for artifact in made.artifacts] == [0]
    assert not made.flat


async def test_nothing_at_all_is_empty() -> None:
    """A 200 with neither image nor file is no success, however open the request was."""
    with pytest.raises(OutputEmpty, match="neither"):
        await verified(output(), ANY, Encoding())


async def test_files_stand_for_no_image_that_was_asked_for() -> None:
    """Where the count of images is settled."""
    with pytest.raises(OutputEmpty, match="0 images instead of 1"):
        await verified(output(files=(a_video(),)), Expectation(1, SIDE, SIDE, (7,)), Encoding())


async def test_a_broken_file_breaks_what_was_made() -> None:
    """An image beside it does not make up for it."""
    with pytest.raises(OutputMismatch, match="breaks off"):
        await verified(output(png(1), files=(RawFile(a_video().data[:-3], "clip.mp4"),)), ANY, Encoding())


async def test_only_images_can_be_flat() -> None:
    """One of one colour among them is enough; no file is looked at."""
    flat = png(3, flat=True)
    assert (await verified(output(png(1), flat), ANY, Encoding())).flat
    assert not (await verified(output(png(1), files=(RawFile(flat, "frame.png"),)), ANY, Encoding())).flat


async def test_files_keep_their_encoding() -> None:
    """The wanted format is of images alone."""
    made = await verified(output(png(1), files=(RawFile(png(2), "frame.png"),)), ANY, Encoding(format="webp"))
    assert [artifact.extension for artifact in made.artifacts] == ["webp", "png"]
    assert made.artifacts[1].data == png(2)

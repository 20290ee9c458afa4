"""Inline results are bounded and stand nowhere."""

from __future__ import annotations

import pytest

from tests.support.storage import a_failure, a_file_artifact, a_job, a_result, an_artifact
from worker.errors import ResultTooLarge
from worker.storage.inline import InlineStorage


async def test_an_image_at_the_limit_is_taken_and_one_above_is_not() -> None:
    """The limit counts characters of base64."""
    artifact = an_artifact(size=292)
    assert len((await InlineStorage(400).put_artifact(a_job(), artifact)).base64 or "") == 400
    with pytest.raises(ResultTooLarge, match="400 characters of base64, 399 are allowed"):
        await InlineStorage(399).put_artifact(a_job(), artifact)


async def test_the_limit_is_of_all_images_together() -> None:
    """Each alone would fit."""
    storage, job = InlineStorage(700), a_job()
    images = [await storage.put_artifact(job, an_artifact(index, size=292)) for index in range(2)]
    assert await storage.put_mark(job, a_result(job, images[0])) == a_result(job, images[0])
    with pytest.raises(ResultTooLarge, match="800"):
        await storage.put_mark(job, a_result(job, *images))


async def test_nothing_stands_afterwards() -> None:
    """There is no mark to find, for failures neither."""
    storage, job = InlineStorage(700), a_job()
    storage.accepts(job, 16)
    await storage.put_mark(job, a_result(job))
    await storage.put_failure(job, a_failure(job), attempt=1)
    assert await storage.find_mark(job) is None


async def test_the_limit_is_of_files_as_well() -> None:
    """An image and a sound share it; each alone would fit."""
    storage, job = InlineStorage(799), a_job()
    image = await storage.put_artifact(job, an_artifact(0, size=292))
    file = await storage.put_artifact(job, a_file_artifact(1, size=288))
    assert len(file.base64 or "") == 400
    assert await storage.put_mark(job, a_result(job, files=(file,))) == a_result(job, files=(file,))
    with pytest.raises(ResultTooLarge, match="800"):
        await storage.put_mark(job, a_result(job, image, files=(file,)))

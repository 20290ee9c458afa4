"""Jobs that make videos, sound or text, with images or without: stored, named and bounded like images."""

from __future__ import annotations

from dataclasses import replace

from tests.support.fakes import FakeEngine, FakeStorage
from tests.support.made import a_text, a_video
from tests.support.virtual import elapse, virtual
from tests.support.world import World
from worker.engines.base import Files, Output, Progress, RawFile, Work
from worker.errors import InvalidJob, UploadFailed
from worker.job import Job
from worker.live import Hop


class GraphEngine(FakeEngine):
    """Runs graphs: nobody knows beforehand what comes; ``makes`` says it for each job, the canary gets an image."""

    def __init__(self, makes: dict[str, tuple[RawFile, ...]], *, images: bool = False) -> None:
        super().__init__()
        self.makes = makes
        self.images = images

    async def admit(self, job: Job) -> Work:
        work = await super().admit(job)
        return replace(work, expect=replace(work.expect, count=None, width=None, height=None))

    async def generate(self, work: Work, files: Files, on_progress: Progress, *, fresh: bool = False) -> Output:
        output = await super().generate(work, files, on_progress, fresh=fresh)
        made = self.makes.get(str(work.request["id"]))
        if made is None:
            return output
        return replace(output, images=output.images if self.images else (), files=made)


class FewUrls(FakeStorage):
    """Has room for so many outputs of a job."""

    def __init__(self, room: int) -> None:
        super().__init__()
        self.room = room
        self.asked: list[int] = []

    def accepts(self, job: Job, outputs: int) -> None:
        self.asked.append(outputs)
        if outputs > self.room:
            raise InvalidJob(f"{outputs} outputs need as many URLs", field="output.upload_urls")


@virtual
async def test_a_job_that_makes_only_files_succeeds() -> None:
    """They lie in the store, the result names them, the webhook and the metrics tell of them."""
    video, text = a_video(), a_text()
    world = World(engine=GraphEngine({"a": (video, text)}))
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    result = world.storage.results()["a"]
    assert (result.status, result.images) == ("succeeded", ())
    assert [(file.index, file.name, file.format, file.node) for file in result.files] == [
        (0, "clip_00001_.mp4", "mp4", "9"),
        (1, "caption.txt", "text", None),
    ]
    assert [world.storage.objects[file.key or ""] for file in result.files] == [video.data, text.data]
    told = next(body for _, body in world.receiver.taken if body["type"] == "job.succeeded")
    assert [file["name"] for file in told["data"]["files"]] == ["clip_00001_.mp4", "caption.txt"]
    assert world.metrics.value("sd_worker_uploads_bytes_total") == len(video.data) + len(text.data)


@virtual
async def test_files_stand_beside_the_images_of_their_job() -> None:
    """With indices that go on, so that no key is given twice."""
    world = World(engine=GraphEngine({"a": (a_video(),)}, images=True))
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    result = world.storage.results()["a"]
    assert [one.index for one in result.outputs] == [0, 1]
    assert all(one.key in world.storage.objects for one in result.outputs)


@virtual
async def test_a_graph_that_makes_nothing_is_repeated_and_then_charged() -> None:
    """Two turns an attempt, and the canary says that the node is fit."""
    world = World(engine=GraphEngine({"a": ()}))
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.code("a") == "output_empty"
    assert world.engine.generated == ["a"] * 6
    assert world.engine.fresh == ["a"] * 3


@virtual
async def test_a_truncated_video_gets_one_fresh_turn() -> None:
    """As a truncated image does."""
    engine = GraphEngine({"a": (RawFile(a_video().data[:-2], "clip.mp4"),)})
    world = World(engine=engine)
    async with world.running():
        await world.submit("a")
        await world.until(lambda: engine.generated == ["a"])
        engine.makes["a"] = (a_video(),)
        await world.ended("a")
    assert world.storage.results()["a"].warnings == ("repeated_output_mismatch",)
    assert engine.fresh == ["a"]


@virtual
async def test_more_outputs_than_there_is_room_for_are_refused_before_the_first_upload() -> None:
    """One may be all there is; how many came is asked for again once it is known."""
    storage = FewUrls(2)
    world = World(engine=GraphEngine({"a": (a_video(), a_text(), a_text("more"))}), storage=storage)
    async with world.running():
        await world.submit("a")
        await world.ended("a")
        assert await world.code("a") == "invalid_job"
        await world.submit("b")
        await world.ended("b")
    assert storage.asked == [1, 3, 1, 1]
    assert storage.calls.count("put_artifact") == 1
    assert not any(key.startswith("a/") and key.endswith(".mp4") for key in storage.objects)


@virtual
async def test_a_file_takes_what_it_weighs_of_the_unpublished_bytes() -> None:
    """While it is uploaded slowly, the next job waits, which beside a picture of the usual size would run."""
    heavy = a_video(body=bytes(6_000_000))
    world = World(engine=GraphEngine({"heavy": (heavy,)}), unpublished=9_000_000)
    async with world.running():
        world.storage.delays[Hop.UPLOAD, "heavy"] = 300.0
        await world.submit("heavy")
        await world.at(Hop.UPLOAD, "heavy")
        assert world.tools.budget.taken == len(heavy.data)
        await world.submit("next")
        await elapse(200)
        assert world.engine.generated == ["heavy"]
        await world.ended("heavy", "next")
    assert world.tools.budget.taken == 0
    assert world.engine.generated == ["heavy", "next"]


@virtual
async def test_a_store_that_fails_for_one_file_stores_the_others_once() -> None:
    """Each is tried on its own, and no turn is taken again."""
    world = World(engine=GraphEngine({"a": (a_video(), a_text())}))
    failures = [UploadFailed("503")]
    real = world.storage.put_artifact

    async def flaky(*args: object) -> object:
        if failures:
            raise failures.pop()
        return await real(*args)  # type: ignore[arg-type]

    world.storage.put_artifact = flaky  # type: ignore[method-assign, assignment]
    async with world.running():
        await world.submit("a")
        await world.ended("a")
    assert world.storage.calls.count("put_artifact") == 2
    assert world.engine.generated == ["a"]


@virtual
async def test_a_redelivered_job_is_settled_with_the_files_that_stand() -> None:
    """Without a second turn, by another worker."""
    video = a_video()
    first = World(engine=GraphEngine({"a": (video,)}))
    async with first.running():
        await first.submit("a")
        first.receiver.down_for_ever()
        await first.until(lambda: "a" in first.storage.results())
        await elapse(90)
    second = World(engine=GraphEngine({}), storage=first.storage, queue=first.queue, worker="w2")
    async with second.running():
        await second.ended("a")
    assert second.engine.generated == []
    told = next(body for _, body in second.receiver.taken if body["type"] == "job.succeeded")
    assert told["data"]["files"][0]["sha256"] == first.storage.results()["a"].files[0].sha256

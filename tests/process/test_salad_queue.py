"""A real worker on the platform's job queue: job documents, native requests."""

from __future__ import annotations

from pathlib import Path

from tests.support.metadata import token
from tests.support.salad_at_work import TXT2IMG, at_work, body, size_of, until_over


async def test_documents_and_native_requests(tmp_path: Path) -> None:
    """Each is answered in its own language, what can never succeed with the error, each handed over once."""
    async with at_work(tmp_path) as (_, life, queue):
        queue.submit("doc", {"params": {"prompt": "a cat", "width": 64, "height": 64, "steps": 2}})
        queue.submit("native", body("a dog", seed=7), path=TXT2IMG)
        queue.submit("wrong", {"params": {"prompt": "a", "widht": 64}})
        queue.submit("refused", body("a cow", steps=100_000), path=TXT2IMG)
        queue.submit("nowhere", body("a hen"), path="/no/such/endpoint")
        told = await until_over(life, queue)
        assert (told["doc"]["status"], told["doc"]["id"]) == ("succeeded", "doc")
        assert size_of(told["doc"]["images"][0]["base64"]) == (64, 64)
        assert size_of(told["native"]["images"][0]) == (64, 64)
        assert told["native"]["parameters"]["prompt"] == "a dog"
        assert (told["wrong"]["status"], told["wrong"]["error"]["code"]) == ("failed", "invalid_job")
        assert (told["refused"]["status"], told["refused"]["code"]) == (422, "invalid_job")
        assert (told["nowhere"]["status"], told["nowhere"]["code"]) == (404, "not_found")
        assert {one.attempts for one in queue.jobs.values()} == {1}
        assert queue.calls == {("RejectJob", "NOT_FOUND"): 1, ("AcceptJobs", "OK"): 1, ("CompleteJob", "OK"): 5}
        assert (await life.get("/openapi.json")).json()["paths"].keys().isdisjoint({TXT2IMG, "/v1/jobs"})
        await life.drained()
        assert not any(token(number) in life.log.read_text() for number in range(1, 9))

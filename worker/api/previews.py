"""A look at the picture that a running job is making, where the image server gives one."""

from __future__ import annotations

import asyncio

from fastapi import APIRouter, HTTPException, Response

from worker.errors import WorkerError
from worker.images import sniffed
from worker.live import Live, Preview
from worker.web.problems import Problem

LOOK_S = 5.0
"""How long the image server has to give one."""

BYTES_MOST = 4_000_000

NOTHING = "there is no look at such a picture now"
_IMAGES: dict[str, dict[str, str]] = {"image/jpeg": {}, "image/png": {}, "image/webp": {}}


def routes(live: Live) -> APIRouter:
    router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

    @router.get(
        "/{job_id}/preview",
        summary="A look at the picture that the job is making",
        response_class=Response,
        responses={
            200: {"content": _IMAGES, "description": "The newest that there is"},
            404: {"model": Problem, "description": "The job is not generating here, or the server shows nothing"},
        },
    )
    async def preview(job_id: str) -> Response:
        job = next((job for job in live if job.id == job_id and job.preview is not None), None)
        if job is None or job.preview is None:
            raise HTTPException(404, NOTHING)
        picture, media_type = await _asked(job.preview)
        headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
        return Response(picture, media_type=media_type, headers=headers)

    return router


async def _asked(look: Preview) -> tuple[bytes, str]:
    """The picture and its media type. Raises 404 where the server shows none, none in time, or nothing that is one."""
    try:
        async with asyncio.timeout(LOOK_S):
            picture = await look() or b""
        if len(picture) > BYTES_MOST:
            raise HTTPException(404, NOTHING)
        return picture, f"image/{sniffed(picture)}"
    except (TimeoutError, WorkerError):
        raise HTTPException(404, NOTHING) from None

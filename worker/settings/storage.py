"""Where images and results are kept, and how many of them are under way."""

from __future__ import annotations

from datetime import timedelta
from pathlib import Path
from typing import Literal

from worker.settings.checks import Bucket, KeyPattern, KeyPrefix
from worker.settings.fields import ZERO, Group, var
from worker.settings.units import Duration, Size, WebUrl

StorageKind = Literal["s3", "directory", "inline", "presigned", "s4"]

LONGEST_LINK = timedelta(days=30)
LONGEST_S3_LINK = timedelta(days=7)
"""What the signature of S3 allows."""


class StorageSettings(Group):
    kind: Literal["auto", "s3", "directory", "inline", "presigned", "s4"] = var(
        "WORKER_STORAGE",
        "auto",
        "`auto`: s3 when a bucket is set; else inline for HTTP jobs, directory for `sqlite`; `s4`, SaladCloud's own store for 30 days, is never chosen by itself",
    )
    directory: Path = var("WORKER_STORAGE_DIRECTORY", Path("./outputs"), "where `directory` stores", shown="./outputs")
    keep: Duration = var(
        "WORKER_STORAGE_KEEP",
        timedelta(0),
        "local images are deleted after that age; `0`: never; `result.json` stays",
        shown="0, on Salad 1h",
    )
    bucket: Bucket | None = var("WORKER_S3_BUCKET", None, "any S3-compatible store; credentials by the standard chain")
    prefix: KeyPrefix = var("WORKER_S3_PREFIX", "", "before every key, of S4 too")
    endpoint_url: WebUrl | None = var("WORKER_S3_ENDPOINT_URL", None, "of a store that is not AWS")
    region: str | None = var("WORKER_S3_REGION", None, "of the bucket")
    public_url: WebUrl | None = var("WORKER_S3_PUBLIC_URL", None, "results link there instead of presigning")
    presign_ttl: Duration = var(
        "WORKER_S3_PRESIGN_TTL",
        timedelta(hours=24),
        "how long signed links work: of S3 at most 7 days, of S4 from 60 s to 30 days",
        shown="24h",
        gt=ZERO,
        le=LONGEST_LINK,
    )
    key: KeyPattern = var(
        "WORKER_S3_KEY",
        "{prefix}/{id}/{index}-{hash}.{ext}",
        "pattern of an image's key; `{id}`, `{index}` and `{hash}` are required",
    )
    result_prefix: KeyPrefix | None = var(
        "WORKER_RESULT_PREFIX", None, "where result documents go", shown="the images'"
    )
    inline_max: Size = var(
        "WORKER_INLINE_MAX", 8_000_000, "total length of the base64 text in a result", shown="8MB", gt=0
    )
    upload_concurrency: int = var("WORKER_UPLOAD_CONCURRENCY", 4, "uploads at a time", ge=1)
    unpublished_max: Size = var("WORKER_UNPUBLISHED_MAX", 512_000_000, "finished images in memory", shown="512MB", gt=0)

    @property
    def chosen(self) -> StorageKind:
        """The kind in effect: what `auto` comes to."""
        if self.kind == "auto":
            return "directory" if self.bucket is None else "s3"
        return self.kind

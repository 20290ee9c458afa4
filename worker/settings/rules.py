"""Rules that tie several settings together, as pure functions of the whole tree.

A rule names the variables that it reads and is left out while one of them is wrong by itself, so that no
mistake is told twice. What it finds is a `FieldError` whose field is a variable.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from worker.errors import FieldError, InvalidJob, UnsupportedDocument
from worker.job import Limits, as_job, document_of, parse
from worker.settings.groups import Settings
from worker.settings.http import HttpSettings
from worker.settings.inherited import LISTS, MANIFESTS, SWITCHES
from worker.settings.models import ModelsSettings
from worker.settings.storage import LONGEST_S3_LINK
from worker.settings.units import check_url
from worker.signature import read_secrets

Found = Iterator[FieldError]

DISK_RESERVE = 2_000_000_000
"""Bytes of WORKER_DISK_SIZE that nothing is written to."""


class Rule(NamedTuple):
    reads: tuple[str, ...]
    check: Callable[[Settings], Found]


RULES: list[Rule] = []
NODE_RULES: list[Rule] = []
"""What a node minds, and not who only asks something of a queue."""

HINTS: list[Rule] = []


def _rule(
    *reads: str, into: list[Rule] = RULES
) -> Callable[[Callable[[Settings], Found]], Callable[[Settings], Found]]:
    def register(check: Callable[[Settings], Found]) -> Callable[[Settings], Found]:
        into.append(Rule(reads, check))
        return check

    return register


def mistakes(settings: Settings, wrong: Collection[str], *, elsewhere: bool = False) -> tuple[FieldError, ...]:
    """Every broken rule, but for those that read a variable which is ``wrong`` already.

    ``elsewhere``: the settings are not a node's.
    """
    return _found(RULES if elsewhere else RULES + NODE_RULES, settings, wrong)


def hints(settings: Settings) -> tuple[FieldError, ...]:
    """What works, but hardly as it was meant."""
    return _found(HINTS, settings, ())


def _found(rules: list[Rule], settings: Settings, wrong: Collection[str]) -> tuple[FieldError, ...]:
    return tuple(found for rule in rules if not set(rule.reads) & set(wrong) for found in rule.check(settings))


@_rule("WORKER_JOB_TIMEOUT", "WORKER_JOB_TIMEOUT_MAX")
def _job_timeout(settings: Settings) -> Found:
    if settings.engine.job_timeout > settings.engine.job_timeout_max:
        yield FieldError("WORKER_JOB_TIMEOUT", "is longer than WORKER_JOB_TIMEOUT_MAX")


@_rule("WORKER_ENGINE_USERNAME", "WORKER_ENGINE_PASSWORD")
def _engine_credentials(settings: Settings) -> Found:
    if (settings.engine.username is None) != (settings.engine.password is None):
        missing = "USERNAME" if settings.engine.username is None else "PASSWORD"
        yield FieldError(f"WORKER_ENGINE_{missing}", "is needed beside the other half of the server's credentials")


@_rule("WORKER_STORAGE", "WORKER_S3_BUCKET")
def _bucket(settings: Settings) -> Found:
    if settings.storage.kind == "s3" and settings.storage.bucket is None:
        yield FieldError("WORKER_S3_BUCKET", "is needed with WORKER_STORAGE=s3")


@_rule("WORKER_S3_BUCKET", "WORKER_S3_PRESIGN_TTL", "WORKER_S3_PUBLIC_URL")
def _longest_link(settings: Settings) -> Found:
    storage = settings.storage
    if storage.bucket is not None and storage.public_url is None and storage.presign_ttl > LONGEST_S3_LINK:
        yield FieldError("WORKER_S3_PRESIGN_TTL", "is longer than 7 days, the most that a link of S3 can be signed for")


@_rule("WORKER_QUEUE", "WORKER_HTTP_JOBS")
def _work(settings: Settings) -> Found:
    if settings.queue.kind == "none" and settings.http.jobs == "off":
        yield FieldError("WORKER_HTTP_JOBS", "is off, and WORKER_QUEUE is none: no job could ever come")


@_rule("WORKER_QUEUE", "WORKER_AVAILABILITY_URL")
def _scheduling_server(settings: Settings) -> Found:
    if settings.queue.kind == "availability" and settings.queue.availability_url is None:
        yield FieldError("WORKER_AVAILABILITY_URL", "is needed with WORKER_QUEUE=availability")


@_rule("WORKER_QUEUE", "WORKER_SQS_QUEUE_URL")
def _sqs_queue(settings: Settings) -> Found:
    if settings.queue.kind == "sqs" and settings.queue.sqs_queue_url is None:
        yield FieldError("WORKER_SQS_QUEUE_URL", "is needed with WORKER_QUEUE=sqs")


REDIS_SCHEMES = ("redis://", "rediss://")


@_rule("WORKER_QUEUE", "WORKER_REDIS_URL")
def _redis_server(settings: Settings) -> Found:
    url = settings.queue.redis_url
    if settings.queue.kind != "redis":
        return
    if url is None:
        yield FieldError("WORKER_REDIS_URL", "is needed with WORKER_QUEUE=redis")
    elif not url.get_secret_value().startswith(REDIS_SCHEMES):
        yield FieldError("WORKER_REDIS_URL", "must begin with redis:// or rediss://")


@_rule("WORKER_QUEUE", "WORKER_PLATFORM", into=NODE_RULES)
def _salads_own_queue(settings: Settings) -> Found:
    if settings.queue.kind == "salad" and settings.platform != "salad":
        yield FieldError("WORKER_QUEUE", "is salad, which is there on SaladCloud alone (WORKER_PLATFORM=salad)")


OF_A_FLEET = ("availability", "sqs", "redis")
"""Queues whose results must outlive the node."""


@_rule("WORKER_QUEUE", "WORKER_STORAGE", "WORKER_S3_BUCKET", into=NODE_RULES)
def _store_of_a_fleet(settings: Settings) -> Found:
    storage, kind = settings.storage, settings.queue.kind
    if kind in OF_A_FLEET and storage.kind == "auto" and storage.bucket is None:
        yield FieldError(
            "WORKER_STORAGE",
            f"is needed with WORKER_QUEUE={kind}, or WORKER_S3_BUCKET: images would die with the node",
        )


@_rule("WORKER_WEBHOOK_TIMEOUT", "WORKER_WEBHOOK_BUDGET")
def _webhook_budget(settings: Settings) -> Found:
    if settings.webhook.timeout > settings.webhook.budget:
        yield FieldError("WORKER_WEBHOOK_TIMEOUT", "is longer than WORKER_WEBHOOK_BUDGET")


@_rule("WORKER_WEBHOOK_SECRETS_FILE")
def _secrets_file(settings: Settings) -> Found:
    if settings.webhook.secrets_file is not None:
        try:
            read_secrets(settings.webhook.secrets_file)
        except ValueError as mistake:
            yield FieldError("WORKER_WEBHOOK_SECRETS_FILE", str(mistake))


@_rule("WORKER_WARMUP", "WORKER_MAX_PIXELS", "WORKER_MAX_STEPS", "WORKER_MAX_IMAGES", "WORKER_JOB_TIMEOUT_MAX")
def _warmup(settings: Settings) -> Found:
    warmup = settings.engine.warmup
    if warmup in ("default", "none"):
        return
    try:
        if is_inline(warmup):
            parse_warmup(warmup.encode(), settings.limits)
        elif "://" in warmup:
            check_url(warmup, ("s3", "http", "https"))
        else:
            parse_warmup(Path(warmup).read_bytes(), settings.limits)
    except OSError as error:
        yield FieldError("WORKER_WARMUP", f"names a file that cannot be read ({error.strerror})")
    except (InvalidJob, UnsupportedDocument, ValueError) as error:
        yield FieldError("WORKER_WARMUP", str(error))


@_rule("WORKER_WORKFLOWS_DIR")
def _workflows_folder(settings: Settings) -> Found:
    folder = settings.http.workflows_dir
    if folder != HttpSettings().workflows_dir and not folder.is_dir():
        yield FieldError("WORKER_WORKFLOWS_DIR", "is a file" if folder.exists() else "does not exist")


@_rule("WORKER_MODELS_DIR")
def _models_folder(settings: Settings) -> Found:
    folder = settings.models.dir
    if folder is not None and not folder.is_dir():
        yield FieldError("WORKER_MODELS_DIR", "is a file" if folder.exists() else "does not exist")


@_rule("WORKER_MODELS_S3_ACCESS_KEY_ID", "WORKER_MODELS_S3_SECRET_ACCESS_KEY")
def _models_credentials(settings: Settings) -> Found:
    models = settings.models
    if (models.s3_access_key_id is None) != (models.s3_secret_access_key is None):
        missing = "ACCESS_KEY_ID" if models.s3_access_key_id is None else "SECRET_ACCESS_KEY"
        yield FieldError(f"WORKER_MODELS_S3_{missing}", "is needed beside the other half of the credentials")


@_rule("WORKER_MODELS_MANIFEST", "WORKER_MODELS_CATALOG")
def _model_lists(settings: Settings) -> Found:
    named = [("WORKER_MODELS_MANIFEST", settings.models.manifest), ("WORKER_MODELS_CATALOG", settings.models.catalog)]
    named += [(one.variable, one.value) for one in settings.inherited if one.variable == "MANIFEST" and one.honoured]
    for variable, value in named:
        inline = variable != "WORKER_MODELS_CATALOG" and value is not None and is_inline(value)
        if value is not None and not inline and (mistake := _unreadable(value)):
            yield FieldError(variable, mistake)


@_rule("WORKER_FITNESS_UPLOAD", "WORKER_S3_BUCKET")
def _upload_without_bucket(settings: Settings) -> Found:
    if settings.fitness.upload is not None and settings.storage.bucket is None:
        yield FieldError("WORKER_FITNESS_UPLOAD", "is measured against WORKER_S3_BUCKET, which is not set")


@_rule("WORKER_FITNESS_DOWNLOAD", "WORKER_MODELS_BANDWIDTH")
def _download_beyond_bandwidth(settings: Settings) -> Found:
    wanted, most = settings.fitness.download, settings.models.bandwidth
    if wanted is not None and most is not None and wanted > most:
        yield FieldError("WORKER_FITNESS_DOWNLOAD", "is more than WORKER_MODELS_BANDWIDTH lets any node show")


@_rule(
    *("WORKER_FITNESS_DOWNLOAD", "WORKER_MODELS_SOURCE", "WORKER_MODELS_CATALOG", "WORKER_MODELS_MANIFEST"),
    "WORKER_WARMUP",
)
def _download_without_source(settings: Settings) -> Found:
    models, listing = settings.models, (*MANIFESTS, *LISTS, *SWITCHES)
    if settings.fitness.download is None or models.catalog is not None or models.manifest is not None:
        return
    if any(one.variable in listing and one.honoured for one in settings.inherited):
        return
    if not models.source:
        what = "is measured against the first model source, and there is none"
    elif settings.engine.warmup in ("default", "none"):
        what = "needs a model to fetch from WORKER_MODELS_SOURCE"
    else:
        return
    yield FieldError("WORKER_FITNESS_DOWNLOAD", f"{what}: list one in WORKER_MODELS_MANIFEST or WORKER_MODELS_CATALOG")


@_rule("WORKER_FITNESS_STEP", "WORKER_WARMUP")
def _step_without_warmup(settings: Settings) -> Found:
    if settings.fitness.step is not None and settings.engine.warmup == "none":
        yield FieldError("WORKER_FITNESS_STEP", "is measured by the warm-up job, and WORKER_WARMUP is none")


def is_inline(value: str) -> bool:
    """Whether the value is the document itself, and not the path or URL of one."""
    return value.lstrip().startswith(("[", "{"))


def _unreadable(value: str) -> str | None:
    """Why the path or URL can never be read, in words that do not repeat it; None when it may be."""
    try:
        if "://" in value:
            check_url(value, ("s3", "http", "https"))
            return None
        with Path(value).open("rb") as file:
            file.read(1)
    except OSError as error:
        return f"names a file that cannot be read ({error.strerror})"
    except ValueError as error:
        return str(error)
    return None


def parse_warmup(body: bytes, limits: Limits) -> None:
    """Raise `InvalidJob` or `UnsupportedDocument` when this is no document of a warm-up job."""
    parse(as_job(document_of(body, max_body=limits.max_body)), fallback_id="warmup", limits=limits)


@_rule(into=HINTS)
def _unsigned(settings: Settings) -> Found:
    if settings.webhook.url is not None and settings.webhook.secret is None:
        yield FieldError("WORKER_WEBHOOK_SECRET", "is not set: webhooks to WORKER_WEBHOOK_URL are not signed")


@_rule(into=HINTS)
def _scheduling_server_unused(settings: Settings) -> Found:
    if settings.queue.kind != "availability" and settings.queue.availability_url is not None:
        yield FieldError("WORKER_AVAILABILITY_URL", "has no effect without WORKER_QUEUE=availability")


@_rule(into=HINTS)
def _folder_of_a_fleet(settings: Settings) -> Found:
    if settings.queue.kind in OF_A_FLEET and settings.storage.chosen == "directory":
        yield FieldError("WORKER_STORAGE", "is a directory: unless all nodes share it, images die with the node")


@_rule(into=HINTS)
def _store_without_bucket(settings: Settings) -> Found:
    if (
        settings.storage.kind == "auto"
        and settings.storage.bucket is None
        and settings.storage.endpoint_url is not None
    ):
        yield FieldError("WORKER_S3_ENDPOINT_URL", "has no effect without WORKER_S3_BUCKET: images stay on this node")


@_rule(into=HINTS)
def _cache_beyond_disk(settings: Settings) -> Found:
    models, most = settings.models, settings.node.disk_size - DISK_RESERVE
    if models.max_size > most and models.max_size != ModelsSettings().max_size:
        yield FieldError(
            "WORKER_MODELS_MAX_SIZE", f"has no effect beyond {most / 10**9:g} GB: WORKER_DISK_SIZE, less 2 GB, counts"
        )


@_rule(into=HINTS)
def _wait_beyond_answer(settings: Settings) -> Found:
    http = settings.http
    if settings.takes_http_jobs and http.timeout is not None and http.max_wait >= http.timeout:
        yield FieldError(
            "WORKER_MAX_WAIT", "is not shorter than WORKER_HTTP_TIMEOUT: jobs are taken that are then answered 504"
        )

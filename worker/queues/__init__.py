"""Queues: where deliveries come from. The one place that knows which driver a setting means."""

from __future__ import annotations

from typing import TYPE_CHECKING, assert_never

from pydantic import SecretStr

from worker.clock import Clock, CorrectedClock
from worker.errors import ConfigError, FieldError
from worker.node import Node
from worker.queues.base import Producer, Queue
from worker.queues.policy import Policy
from worker.settings.node import SaladSettings
from worker.settings.queue import QueueSettings
from worker.settings.storage import StorageSettings

if TYPE_CHECKING:
    from worker.queues.memory import MemoryQueue
    from worker.queues.redis import RedisPlace
    from worker.queues.sqs import Overflow


def open_queue(
    settings: QueueSettings, node: Node, clock: CorrectedClock, *, salad: SaladSettings | None = None
) -> Queue:
    """The configured queue, for the worker that ``node`` is. Nothing is touched before its first use.

    ``salad``: where the platform's own queue is.
    """
    match settings.kind:
        case "none":
            return open_desk_queue(settings, node, clock)
        case "sqlite":
            from worker.queues.sqlite import SqliteQueue

            return SqliteQueue(settings.sqlite_path, clock, worker=node.identity.id, policy=_policy(settings))
        case "availability":
            from worker.queues.availability import AvailabilityQueue

            token = _secret(settings.availability_token)
            return AvailabilityQueue(_server(settings), node, clock, token=token, policy=_policy(settings))
        case "sqs":
            from worker.queues.sqs import SqsQueue

            return SqsQueue(_sqs(settings), clock, policy=_policy(settings))
        case "redis":
            from worker.queues.redis import RedisQueue

            return RedisQueue(_redis(settings), worker=node.identity.id, policy=_policy(settings))
        case "salad":
            from worker.queues.salad import SaladQueue

            return SaladQueue(salad or SaladSettings(), node, clock, policy=_policy(settings))
        case unknown:
            assert_never(unknown)


def open_desk_queue(settings: QueueSettings, node: Node, clock: Clock) -> MemoryQueue:
    """The queue of jobs that come over HTTP, under the limits of the configured one."""
    from worker.queues.memory import MemoryQueue

    return MemoryQueue(clock, worker=node.identity.id, policy=_policy(settings), can_delay=False)


def submittable(
    settings: QueueSettings, queue: Queue | None, clock: CorrectedClock, *, store: StorageSettings | None = None
) -> Producer | None:
    """The submitting side beside a worker's ``queue``, which it may be itself; None where nothing may be submitted.

    The caller closes one that is not ``queue``. ``store``: as `open_producer` has it.
    """
    match settings.kind:
        case "none":
            return None
        case "sqlite":
            from worker.queues.sqlite import SqliteProducer

            return queue if isinstance(queue, SqliteProducer) else open_producer(settings, clock)
        case "availability":
            return None if settings.availability_user_token is None else open_producer(settings, clock)
        case "sqs" | "redis":
            return open_producer(settings, clock, store=store)
        case "salad":
            return None
        case unknown:
            assert_never(unknown)


def open_producer(settings: QueueSettings, clock: CorrectedClock, *, store: StorageSettings | None = None) -> Producer:
    """The submitting side of the configured queue. Nothing is touched before its first use.

    Documents that are too large for a message go to the bucket of ``store``, where there is one.
    """
    match settings.kind:
        case "none":
            said = "is none: there is no queue to submit to; post jobs to a worker, with --url"
            raise ConfigError((FieldError("WORKER_QUEUE", said),))
        case "sqlite":
            from worker.queues.sqlite import SqliteProducer

            return SqliteProducer(settings.sqlite_path, clock, policy=_policy(settings))
        case "availability":
            from worker.queues.availability import AvailabilityProducer

            token = _secret(settings.availability_user_token)
            return AvailabilityProducer(_server(settings), clock, token=token)
        case "sqs":
            from worker.queues.sqs import SqsProducer

            return SqsProducer(_sqs(settings), clock, overflow=_overflow(store))
        case "redis":
            from worker.queues.redis import RedisProducer

            return RedisProducer(_redis(settings), policy=_policy(settings))
        case "salad":
            said = "is salad: jobs are created by the platform's API, POST .../queues/{queue}/jobs"
            raise ConfigError((FieldError("WORKER_QUEUE", said),))
        case unknown:
            assert_never(unknown)


def _policy(settings: QueueSettings) -> Policy:
    return Policy(settings.visibility, settings.max_attempts, settings.max_deliveries)


def _server(settings: QueueSettings) -> str:
    if settings.availability_url is None:
        raise ConfigError((FieldError("WORKER_AVAILABILITY_URL", "is needed with WORKER_QUEUE=availability"),))
    return settings.availability_url


def _sqs(settings: QueueSettings) -> str:
    if settings.sqs_queue_url is None:
        raise ConfigError((FieldError("WORKER_SQS_QUEUE_URL", "is needed with WORKER_QUEUE=sqs"),))
    return settings.sqs_queue_url


def _overflow(store: StorageSettings | None) -> Overflow | None:
    from worker.queues.sqs import Overflow

    if store is None or store.bucket is None:
        return None
    prefix = store.prefix if store.result_prefix is None else store.result_prefix
    return Overflow(store.bucket, prefix, store.endpoint_url, store.region)


def _redis(settings: QueueSettings) -> RedisPlace:
    from worker.queues.redis import RedisPlace

    if settings.redis_url is None:
        raise ConfigError((FieldError("WORKER_REDIS_URL", "is needed with WORKER_QUEUE=redis"),))
    return RedisPlace(settings.redis_url.get_secret_value(), settings.redis_stream, settings.redis_group)


def _secret(secret: SecretStr | None) -> str | None:
    return None if secret is None else secret.get_secret_value()

"""A queue in Redis: a stream with a consumer group, and beside it a ledger of what became of each job."""

from worker.queues.redis.driver import RedisProducer, RedisQueue
from worker.queues.redis.place import RedisPlace

__all__ = ["RedisPlace", "RedisProducer", "RedisQueue"]

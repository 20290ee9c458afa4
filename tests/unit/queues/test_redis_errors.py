"""What the redis driver makes of servers that refuse, cannot or are not what they should be."""

from __future__ import annotations

import inspect
from collections.abc import AsyncIterator, Iterator
from contextlib import ExitStack, contextmanager
from datetime import timedelta
from pathlib import Path

import pytest
from pydantic import SecretStr
from redis import exceptions

from tests.support.queues import result_of, taken
from tests.support.redis import RedisServer
from tests.support.redis_relay import saying
from tests.support.scheduling import a_node
from tests.support.waiting import wait_until
from worker.clock import CorrectedClock, SystemClock
from worker.errors import AuthFailed, ConfigError, InternalError, QueueUnavailable, WorkerError
from worker.queues import open_producer, open_queue, submittable
from worker.queues.redis import RedisPlace, RedisProducer, RedisQueue
from worker.queues.redis import client as redis_client
from worker.queues.redis.failures import translating
from worker.settings.queue import QueueSettings

pytest_plugins = ("tests.support.redis_fixtures",)

BRIEF = timedelta(milliseconds=20)
PLACE = RedisPlace("redis://someone:hunter2@queue.example:6380/3", "jobs", "workers")
SECRET = "hunter2"


@contextmanager
def refused(kind: type[WorkerError], said: str | None = None) -> Iterator[None]:
    """It raises this, so that whoever only knows `QueueUnavailable` waits, and repeats no secret."""
    with pytest.raises(QueueUnavailable, match=said) as caught:
        yield
    assert isinstance(caught.value, kind)
    assert SECRET not in caught.value.message


@pytest.fixture(name="queue")
async def open_redis(own_redis: RedisServer) -> AsyncIterator[RedisQueue]:
    queue = RedisQueue(own_redis.place(), worker="w1", wait=BRIEF)
    yield queue
    await queue.aclose()


@pytest.mark.parametrize(
    "url",
    [
        *("http://host", "redis:", "redis://", "redis://:6379", "host:6379", "unix:///run/redis.sock"),
        *("redis://host:0", "redis://host:notaport", "redis://host/one", "redis://host/0/1", "redis://host#1"),
        *(
            f"redis://:{SECRET}/x@host",
            f"redis://:12/{SECRET}@host",
            f"redis://u:{SECRET}#x@host",
            f"redis://:{SECRET}?@h",
        ),
    ],
)
def test_url_that_is_none(url: str) -> None:
    """It is the operator's mistake, told by the variable's name and without the URL, in which a password may be."""
    with pytest.raises(ConfigError) as caught:
        RedisPlace(url, "jobs", "workers")
    assert [one.field for one in caught.value.mistakes] == ["WORKER_REDIS_URL"]
    assert SECRET not in caught.value.message


@pytest.mark.parametrize("url", ["redis://h", "rediss://u:p@h:1/2", "redis://:a%2Fb@[::1]:7/?socket_keepalive=no"])
def test_url_that_is_one(url: str) -> None:
    """Neither what is shown of a place nor its repr has credentials."""
    place = RedisPlace(url, "jobs", "workers")
    assert "@" not in place.shown
    assert url not in repr(place)
    assert "workers" in repr(place)


async def test_unknown_option() -> None:
    """An option that the library does not know is a mistake in the variable."""
    queue = RedisProducer(RedisPlace("redis://127.0.0.1/?colour=red", "jobs", "workers"))
    with refused(ConfigError, "WORKER_REDIS_URL: has an option"):
        await queue.check()


def test_library_that_is_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without the extra it says what to install."""
    monkeypatch.setattr(redis_client, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"WORKER_QUEUE: is redis, which needs the extra: sd-worker\[redis\]"):
        RedisProducer(PLACE)


def library_errors() -> list[type[Exception]]:
    """Every error of the library that a command can end with."""
    known = [one for _, one in inspect.getmembers(exceptions, inspect.isclass) if issubclass(one, Exception)]
    ours = (exceptions.RedisError, exceptions.RedisClusterException)
    return [one for one in known if issubclass(one, ours) and one is not exceptions.NoScriptError]


@pytest.mark.parametrize("kind", library_errors())
def test_errors_of_the_library(kind: type[Exception]) -> None:
    """None of them leaves the driver as it is."""
    said = "1 127.0.0.1:1" if issubclass(kind, exceptions.AskError) else "it said no"
    with pytest.raises(QueueUnavailable, match=r"queue\.example:6380/3: "), translating(PLACE):
        raise kind(said)


@pytest.mark.parametrize(
    ("answer", "kind", "said"),
    [
        (b"-LOADING Redis is loading the dataset in memory", QueueUnavailable, "loading"),
        (
            b"-MASTERDOWN Link with MASTER is down",
            QueueUnavailable,
            "MASTER",
        ),
        (b"-CLUSTERDOWN The cluster is down", QueueUnavailable, "cluster is down"),
        (b"-TRYAGAIN Multiple keys request during rehashing of slot", QueueUnavailable, "rehashing"),
        (b"-ASK 3999 127.0.0.1:6381", QueueUnavailable, "3999"),
        (b"-MISCONF Redis is configured to save RDB snapshots", QueueUnavailable, "MISCONF"),
        (b"-NOREPLICAS Not enough good replicas to write.", QueueUnavailable, "NOREPLICAS"),
        (b"-BUSY Redis is busy running a script.", QueueUnavailable, "BUSY"),
        (b"-ERR max number of clients reached", QueueUnavailable, "max number"),
        (b"-NOAUTH Authentication required.", AuthFailed, "required"),
        (b"-NOPERM this user has no permissions to run the 'evalsha' command", AuthFailed, "no permissions"),
        (b"-ERR ACL failure in script: User half has no permissions to run it", AuthFailed, "no permissions"),
        (b"-ERR unknown command `EVALSHA`, with args beginning with: ", ConfigError, "lacks commands"),
        (b"-ERR SELECT is not allowed in cluster mode", ConfigError, "has only the first"),
        (b"HTTP/1.1 400 Bad Request", QueueUnavailable, "Protocol Error"),
    ],
)
async def test_answers(answer: bytes, kind: type[WorkerError], said: str) -> None:
    """What a server says instead of an answer is what it means."""
    async with saying(answer + b"\r\n") as port:
        queue = RedisQueue(RedisPlace(f"redis://127.0.0.1:{port}", "jobs", "workers"), worker="w1", wait=BRIEF)
        for asked in (queue.receive(), queue.submit("a", b"{}"), queue.check()):
            with refused(kind, said):
                await asked
        await queue.aclose()


async def test_script_that_breaks(queue: RedisQueue, own_redis: RedisServer) -> None:
    """What only a mistake of ours can cause is a bug."""
    with pytest.raises(InternalError, match="attempt to call"):
        await queue._ledger._verb("no such verb")


async def test_wrong_password(own_redis: RedisServer) -> None:
    """Credentials that the server refuses are the operator's, at each of the ways to have none."""
    own_redis.ask("CONFIG", "SET", "requirepass", "secret")
    for credentials in ("", f":{SECRET}@", f"nobody:{SECRET}@"):
        queue = RedisQueue(own_redis.place(credentials), worker="w1")
        with refused(AuthFailed):
            await queue.check()
        await queue.aclose()
    queue = RedisQueue(own_redis.place(":secret@"), worker="w1")
    assert "0 open" in await queue.check()
    await queue.aclose()


async def test_password_that_was_rotated(own_redis: RedisServer) -> None:
    """With the old one withdrawn every verb says so, and nothing is lost: with a valid one it goes on."""
    own_redis.ask("ACL", "SETUSER", "worker", "on", ">old", "~*", "+@all")
    queue = RedisQueue(own_redis.place("worker:old@"), worker="w1", wait=BRIEF)
    await queue.submit("a", b"{}")
    delivery = await taken(queue)
    own_redis.ask("ACL", "SETUSER", "worker", "<old", ">new")
    own_redis.ask("CLIENT", "KILL", "USER", "worker")
    with refused(AuthFailed):
        await queue.extend(delivery)
    with refused(AuthFailed):
        await queue.receive()
    own_redis.ask("ACL", "SETUSER", "worker", ">old")
    await queue.ack(delivery, result_of("a"))
    await queue.aclose()


async def test_user_who_may_not(own_redis: RedisServer) -> None:
    """A user without the commands or keys that a worker needs is one whose credentials are not enough."""
    own_redis.ask("ACL", "SETUSER", "reader", "on", ">pass", "~*", "+@read")
    own_redis.ask("ACL", "SETUSER", "other", "on", ">pass", "~elsewhere*", "+@all")
    own_redis.ask("ACL", "SETUSER", "half", "on", ">pass", "~*", "+@all", "-xreadgroup")
    for user in ("reader", "other", "half"):
        queue = RedisQueue(own_redis.place(f"{user}:pass@"), worker="w1", wait=BRIEF)
        with refused(AuthFailed):
            await queue.receive()
        await queue.aclose()


async def test_least_permissions(own_redis: RedisServer) -> None:
    """What a worker's user has to be allowed, as the documentation tells it, is enough."""
    place = own_redis.place("worker:pass@")
    keys = (f"~{place.stream}", f"~{{{place.stream}}}:*")
    allowed = ("+@stream", "+@hash", "+@sortedset", "+eval", "+evalsha", "+time", "+info")
    own_redis.ask("ACL", "SETUSER", "worker", "on", ">pass", *keys, "-@all", *allowed)
    queue = RedisQueue(place, worker="w1", wait=BRIEF)
    await queue.check()
    assert (await queue.receive()).delivery is None
    for job_id in ("a", "b", "c"):
        await queue.submit(job_id, b"{}")
    await queue.ack(await taken(queue), result_of("a"))
    await queue.reject(await taken(queue), result_of("b", "failed", code="invalid_job"))
    await queue.nack(await taken(queue), timedelta(0), "draining", charged=False)
    assert await queue.requeue("b")
    assert await queue.cancel("c")
    assert len(await queue.jobs()) == 3
    await queue.aclose()


async def test_key_of_another_kind(queue: RedisQueue, own_redis: RedisServer) -> None:
    """A stream's name that is something else's is a mistake in the variable."""
    own_redis.ask("SET", queue._place.stream, "something")
    for asked in (queue.receive(), queue.submit("a", b"{}"), queue.check()):
        with refused(ConfigError, "WORKER_REDIS_STREAM"):
            await asked


async def test_database_that_is_not_there(own_redis: RedisServer) -> None:
    """A database beyond those that the server has is a mistake in the URL; another one is another queue."""
    queue, other = (RedisProducer(own_redis.place(suffix=suffix)) for suffix in ("/99", "/1"))
    with refused(ConfigError, "WORKER_REDIS_URL"):
        await queue.check()
    await other.submit("a", b"{}")
    assert own_redis.ask("DBSIZE") == 0
    for one in (queue, other):
        await one.aclose()


async def test_full_server(queue: RedisQueue, own_redis: RedisServer) -> None:
    """It takes no more jobs, and those that are there are still done: that is how it gets room."""
    for job_id in ("a", "b", "c"):
        await queue.submit(job_id, b"{}")
    own_redis.ask("CONFIG", "SET", "maxmemory", "1")
    with refused(QueueUnavailable, "maxmemory"):
        await queue.submit("d", b"{}")
    first, second, third = [await taken(queue) for _ in range(3)]
    await queue.extend(first)
    await queue.ack(first, result_of("a"))
    await queue.reject(second, result_of("b", "failed", code="invalid_job"))
    await queue.nack(third, timedelta(0), "draining", charged=False)
    assert (await taken(queue)).id == "c"


async def test_replica(queue: RedisQueue, own_redis: RedisServer) -> None:
    """A server that became a replica takes no orders; once it is a master again, it does."""
    await queue.submit("a", b"{}")
    delivery = await taken(queue)
    own_redis.ask("REPLICAOF", "127.0.0.1", 1)
    for asked in (queue.extend(delivery), queue.receive(), queue.submit("b", b"{}")):
        with refused(QueueUnavailable, "read only replica"):
            await asked
    own_redis.ask("REPLICAOF", "NO", "ONE")
    await queue.ack(delivery, result_of("a"))


async def test_moved_slot(redis_server: RedisServer) -> None:
    """A node that has not the queue's slot says who has; that one is asked from then on, as long as it answers."""
    place = redis_server.place()
    async with saying(b"-MOVED 3999 127.0.0.1:%d\r\n" % redis_server.port) as port:
        queue = RedisQueue(RedisPlace(f"redis://127.0.0.1:{port}", place.stream, "workers"), worker="w1", wait=BRIEF)
        await queue.submit("a", b"{}")
        await queue.ack(await taken(queue), result_of("a"))
        assert (await queue.receive()).delivery is None
        await queue.aclose()


@pytest.mark.parametrize("answer", [b"-MOVED 3999 127.0.0.1:1\r\n", b"-MOVED 3999 :6379\r\n"])
async def test_cluster_at_odds_with_itself(answer: bytes) -> None:
    """A node that names one that is away, or itself, is an unavailable queue."""
    async with saying(answer) as port:
        queue = RedisQueue(RedisPlace(f"redis://127.0.0.1:{port}", "jobs", "workers"), worker="w1", wait=BRIEF)
        for _ in range(2):
            with refused(QueueUnavailable):
                await queue.receive()
        await queue.aclose()


@pytest.mark.chaos
async def test_cluster(tmp_path: Path) -> None:
    """The slot's node is found, and found again when the slot moved; until somebody has it, nobody answers."""
    with ExitStack() as stack:
        folders = [tmp_path / name for name in ("one", "two")]
        for folder in folders:
            folder.mkdir()
        options = ("--cluster-enabled", "yes", "--cluster-require-full-coverage", "no")
        one, two = (stack.enter_context(RedisServer(folder, *options)) for folder in folders)
        place = one.place()
        queue = RedisQueue(place, worker="w1", wait=BRIEF)
        with refused(QueueUnavailable, "slot not served"):
            await queue.receive()
        slot = one.ask("CLUSTER", "KEYSLOT", place.stream)
        assert slot == one.ask("CLUSTER", "KEYSLOT", f"{{{place.stream}}}:jobs")
        two.ask("CLUSTER", "ADDSLOTS", slot)
        await point_to(one, two, slot)
        await queue.submit("a", b"{}")
        delivery = await taken(queue)
        assert (one.ask("DBSIZE"), two.ask("EXISTS", place.stream)) == (0, 1)
        two.stop()
        with refused(QueueUnavailable):
            await queue.extend(delivery)
        one.ask("CLUSTER", "DELSLOTS", slot)
        one.ask("CLUSTER", "ADDSLOTS", slot)
        await served_by(one)
        assert await queue.submit("b", b"{}")
        assert (await taken(queue)).id == "b"
        await queue.aclose()


async def point_to(one: RedisServer, other: RedisServer, slot: int) -> None:
    """Have a node know that another has the slot."""
    name = other.ask("CLUSTER", "MYID")
    one.ask("CLUSTER", "MEET", "127.0.0.1", other.port)
    await wait_until(lambda: name in one.ask("CLUSTER", "NODES"))
    one.ask("CLUSTER", "SETSLOT", slot, "NODE", name)
    await served_by(other)


async def served_by(node: RedisServer) -> None:
    """A node waits two seconds before it takes part."""
    await wait_until(lambda: b"cluster_state:ok" in node.ask("CLUSTER", "INFO"))


async def test_check_tells_what_is_not_safe(queue: RedisQueue, own_redis: RedisServer) -> None:
    """A server that may drop jobs is told of, one that may not is not."""
    await queue.submit("a", b"{}")
    safe = await queue.check()
    assert safe.endswith("1 open, 0 done, 0 dead")
    own_redis.ask(
        "CONFIG",
        "SET",
        "appendonly",
        "no",
    )
    own_redis.ask("CONFIG", "SET", "maxmemory-policy", "allkeys-lru")
    assert "allkeys-lru: jobs may be evicted" in await queue.check()
    assert "appendonly is off" in await queue.check()


async def test_server_that_is_too_old() -> None:
    """Its version is told, and the one that is needed."""
    told = b"# Server\r\nredis_version:5.0.14\r\n"
    async with saying(b"$%d\r\n%s\r\n" % (len(told), told)) as port:
        queue = RedisProducer(RedisPlace(f"redis://127.0.0.1:{port}", "jobs", "workers"))
        with refused(ConfigError, r"is of Redis 5\.0\.14; at least 6\.2"):
            await queue.check()
        await queue.aclose()


async def test_opened_by_settings(own_redis: RedisServer) -> None:
    """The settings name the server, the stream and the group."""
    settings = QueueSettings(kind="redis", redis_url=SecretStr(own_redis.url()), redis_stream="pictures")
    producer = open_producer(settings, CorrectedClock(SystemClock()))
    assert isinstance(producer, RedisProducer)
    await producer.submit("a", b"{}")
    assert own_redis.ask("XLEN", "pictures") == 1
    queue = open_queue(settings, a_node("node-7"), CorrectedClock(SystemClock()))
    await queue.nack(await taken(queue), timedelta(0), "draining", charged=False)
    state = await producer.state("a")
    assert state is not None
    assert state.attempts[0].worker == "node-7"
    assert isinstance(submittable(settings, queue, CorrectedClock(SystemClock())), RedisProducer)
    await queue.aclose()
    await producer.aclose()
    with pytest.raises(ConfigError, match="WORKER_REDIS_URL"):
        open_producer(QueueSettings(kind="redis"), CorrectedClock(SystemClock()))

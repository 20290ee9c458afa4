"""A real SQS server for tests: moto's, on a socket of its own. Tests may move its time and bend its answers.

Other than AWS moto takes an old receipt for ever; that a lease has ended is for the driver to know.
"""

from __future__ import annotations

import functools
import importlib
import io
import json
import random
import threading
import time
import uuid
from collections import Counter
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from tests.support.s3 import ACCESS_KEY, REGION, SECRET_KEY
from worker.clock import Clock, CorrectedClock, SystemClock
from worker.queues.policy import Policy
from worker.queues.sqs import SqsProducer, SqsQueue

if TYPE_CHECKING:
    from types_boto3_sqs.client import SQSClient

Start = Callable[[str, list[tuple[str, str]]], Any]
Answered = Sequence[bytes]
ACCOUNT = "123456789012"
LOOK_S = 0.02
"""How often it is looked for messages that are seen again."""


@dataclass(frozen=True, slots=True)
class Refused:
    """An answer of SQS that refuses; ``query`` is the code in its older form, where the service sends that too."""

    code: str
    status: int = 400
    message: str = "by the test"
    query: str | None = None

    def send(self, start: Start) -> Answered:
        headers = [("Content-Type", "application/x-amz-json-1.0")]
        if self.query is not None:
            headers.append(("x-amzn-query-error", f"{self.query};Sender"))
        headers.append(("Date", format_datetime(SystemClock().now(), usegmt=True)))
        start(f"{self.status} no", headers)
        return [json.dumps({"__type": f"com.amazonaws.sqs#{self.code}", "message": self.message}).encode()]


class Hung:
    """No answer before `release`, then what the server says; ``began`` is set when the request was there.

    ``after``: it is carried out at once; ``then``: what is said instead of the server's answer.
    """

    def __init__(self, *, after: bool = False, then: Refused | None = None) -> None:
        self.after, self.then = after, then
        self.began, self._over = threading.Event(), threading.Event()

    def release(self) -> None:
        self._over.set()

    def wait(self) -> None:
        self.began.set()
        self._over.wait(30)


class Lost:
    """The request is carried out and its answer is lost."""


Deed = Refused | Hung | Lost


@dataclass
class Bent:
    """What the server does to requests before, or instead of, answering them.

    ``keys`` are the access keys that it knows; all where None. ``strict_time``: signatures of another time than its own
    are refused. ``calls`` counts the verbs.
    """

    keys: set[str] | None = None
    strict_time: bool = False
    calls: Counter[str] = field(default_factory=Counter)
    _deeds: dict[str, tuple[Deed, int | None]] = field(default_factory=dict)

    def do(self, verb: str, deed: Deed, times: int | None = None) -> None:
        """Do this to so many requests of the verb from now on, or to those of every verb for ``*``; to all for None."""
        self._deeds[verb] = (deed, times)

    def mend(self) -> None:
        for deed, _ in self._deeds.values():
            if isinstance(deed, Hung):
                deed.release()
        self._deeds.clear()
        self.keys, self.strict_time = None, False

    def reset(self) -> None:
        self.mend()
        self.calls.clear()

    def next(self, verb: str) -> Deed | None:
        for name in (verb, "*"):
            deed, left = self._deeds.get(name, (None, 0))
            if left != 0 and deed is not None:
                self._deeds[name] = (deed, None if left is None else left - 1)
                return deed
        return None


class Server:
    """``url`` is its root; ``bent`` is reset by whoever uses it."""

    def __init__(self, port: int = 0) -> None:
        from moto.moto_server.werkzeug_app import DomainDispatcherApplication, MotoRequestHandler, create_backend_app
        from werkzeug.serving import make_server

        self.bent = Bent()
        self._turn = threading.Lock()
        self._moto = DomainDispatcherApplication(create_backend_app)
        self._server = make_server("127.0.0.1", port, self._answer, threaded=True, request_handler=MotoRequestHandler)
        self._server.daemon_threads = True  # type: ignore[attr-defined]
        self._thread = threading.Thread(target=self._server.serve_forever, name="moto-sqs", daemon=True)
        self._thread.start()
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def _answer(self, environ: dict[str, Any], start: Start) -> Answered:
        verb = environ.get("HTTP_X_AMZ_TARGET", "").rpartition(".")[2]
        self.bent.calls[verb] += 1
        key = environ.get("HTTP_AUTHORIZATION", "").partition("Credential=")[2].partition("/")[0]
        if self.bent.keys is not None and key not in self.bent.keys:
            return Refused("InvalidClientTokenId", 403, "The security token is invalid.").send(start)
        if self.bent.strict_time and not _is_now(environ.get("HTTP_X_AMZ_DATE", "")):
            return Refused("InvalidSignatureException", 403, "Signature expired: it is another time").send(start)
        deed = self.bent.next(verb)
        if isinstance(deed, Hung) and not deed.after:
            deed.wait()
            deed = deed.then
        if isinstance(deed, Refused):
            return deed.send(start)
        answer = self._carried_out(environ, (lambda *_: None) if isinstance(deed, Lost) else start)
        if isinstance(deed, Hung) and deed.after:
            deed.wait()
        return Refused("InternalFailure", 500).send(start) if isinstance(deed, Lost) else answer

    def _carried_out(self, environ: dict[str, Any], start: Start) -> Answered:
        """Moto hands a message to two who ask at the same time, so that one asks after the other.

        Who waits for a message does so here, and asks once there is one or the time is over.
        """
        body = environ["wsgi.input"].read(int(environ.get("CONTENT_LENGTH") or 0))
        asked = json.loads(body or "{}")
        wait_s = asked.get("WaitTimeSeconds", 0)
        given = json.dumps({**asked, "WaitTimeSeconds": 0}).encode() if wait_s else body
        until = time.monotonic() + wait_s
        heads: list[Any] = []
        while True:
            if wait_s:
                _wait_for_message(asked["QueueUrl"], until)
            once = {**environ, "wsgi.input": io.BytesIO(given), "CONTENT_LENGTH": str(len(given))}
            with self._turn:
                answer = list(self._moto(once, lambda *head: heads.append(head)))
            if time.monotonic() >= until or b'"Messages"' in b"".join(answer) or not heads[-1][0].startswith("200"):
                start(*heads[-1])
                return answer
            time.sleep(LOOK_S)

    def stop(self) -> None:
        self.bent.mend()
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()


def _is_now(stamp: str) -> bool:
    """Whether a signature is of the last or next quarter of an hour."""
    at = datetime.strptime(stamp, "%Y%m%dT%H%M%SZ").replace(tzinfo=UTC)
    return abs(SystemClock().now() - at) < timedelta(minutes=15)


def _queue(url: str) -> Any:
    """The queue of this URL as moto has it in this process; None where it has none."""
    models: Any = importlib.import_module("moto.sqs.models")
    account, _, name = urlsplit(url).path.strip("/").partition("/")
    found = [one.queues[name] for one in models.sqs_backends[account].values() if name in one.queues]
    return found[0] if found else None


def messages(url: str) -> list[Any]:
    """The messages of a queue as moto has them: seen, hidden or delayed."""
    return list(_queue(url)._messages)


def _wait_for_message(url: str, until: float) -> None:
    """Until there is one to be received, or the time is over."""
    queue = _queue(url)
    while queue is not None and time.monotonic() < until and not queue.messages:
        with queue._messages_lock:
            queue._messages_lock.wait(LOOK_S)


@contextmanager
def running_sqs(port: int = 0) -> Iterator[Server]:
    server = Server(port)
    try:
        yield server
    finally:
        server.stop()


@dataclass(frozen=True, slots=True)
class Line:
    """A queue of its own on the server, seen through a client that the worker has no part in."""

    url: str
    dead_url: str | None

    @property
    def name(self) -> str:
        return self.url.rpartition("/")[2]

    def client(self) -> SQSClient:
        parts = urlsplit(self.url)
        return _client(f"{parts.scheme}://{parts.netloc}")

    def put(self, body: str, **message: Any) -> str:
        """Send as other programs do; the id of the message."""
        return self.client().send_message(QueueUrl=self.url, MessageBody=body, **message)["MessageId"]

    def counts(self, *, dead: bool = False) -> tuple[int, int]:
        """How many messages wait, and how many are hidden."""
        url = self.dead_url if dead else self.url
        assert url is not None
        found = self.client().get_queue_attributes(QueueUrl=url, AttributeNames=["All"])["Attributes"]
        hidden = int(found["ApproximateNumberOfMessagesNotVisible"])
        return int(found["ApproximateNumberOfMessages"]), hidden

    def dead(self) -> list[Any]:
        """The dead letters, which are looked at but not taken."""
        assert self.dead_url is not None
        return list(
            self.client()
            .receive_message(
                QueueUrl=self.dead_url,
                MaxNumberOfMessages=10,
                VisibilityTimeout=0,
                AttributeNames=["All"],
                MessageAttributeNames=["All"],
            )
            .get("Messages", [])
        )

    def set(self, **attributes: str) -> None:
        self.client().set_queue_attributes(QueueUrl=self.url, Attributes=attributes)  # type: ignore[arg-type]


def made_line(server: Server, *, fifo: bool = False, dead_after: int | None = None, **attributes: str) -> Line:
    """A new queue; with dead letters where ``dead_after`` says after how many receives SQS moves a message there."""
    sqs, end = _client(server.url), ".fifo" if fifo else ""
    name = f"jobs-{uuid.uuid4().hex[:12]}"
    given: Any = {"FifoQueue": "true"} if fifo else {}
    dead_url = None
    more: Any = dict(attributes)
    if dead_after is not None:
        dead_url = sqs.create_queue(QueueName=f"{name}-dead{end}", Attributes=given)["QueueUrl"]
        arn = f"arn:aws:sqs:{REGION}:{ACCOUNT}:{name}-dead{end}"
        more["RedrivePolicy"] = json.dumps({"deadLetterTargetArn": arn, "maxReceiveCount": str(dead_after)})
    url = sqs.create_queue(QueueName=f"{name}{end}", Attributes=given | more)["QueueUrl"]
    return Line(url, dead_url)


@functools.cache
def _client(endpoint_url: str) -> SQSClient:
    from boto3 import Session
    from botocore.config import Config

    session = Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)
    client: SQSClient = session.client("sqs", endpoint_url=endpoint_url, config=Config(proxies={}))
    return client


@contextmanager
def moved_time(clock: Clock) -> Iterator[None]:
    """Have every queue of moto's in this process live by this clock; polls go on by real time too."""
    models: Any = importlib.import_module("moto.sqs.models")
    began, kept, ticks = time.monotonic(), (models.unix_time, models.unix_time_millis), iter(range(10**9))
    models.unix_time = lambda *_: clock.now().timestamp() + time.monotonic() - began
    models.unix_time_millis = lambda *_: clock.now().timestamp() * 1000 + next(ticks) * 1e-3
    try:
        yield
    finally:
        models.unix_time, models.unix_time_millis = kept


@asynccontextmanager
async def taking(
    line: Line, *, visibility_s: float = 120, seconds: Callable[[], float] | None = None, **options: Any
) -> AsyncIterator[SqsQueue]:
    """A worker's driver on this queue, which asks briefly; ``seconds`` measures its leases."""
    policy = Policy(visibility=timedelta(seconds=visibility_s), max_attempts=3, max_deliveries=4)
    given: dict[str, Any] = {"wait": timedelta(0), "policy": policy, "rng": random.Random(1), **options}
    queue = SqsQueue(line.url, CorrectedClock(SystemClock()), elapsed=seconds, **given)
    try:
        yield queue
    finally:
        await queue.aclose()


@asynccontextmanager
async def submitting(line: Line, **options: Any) -> AsyncIterator[SqsProducer]:
    producer = SqsProducer(line.url, CorrectedClock(SystemClock()), **options)
    try:
        yield producer
    finally:
        await producer.aclose()

"""Fixtures of a real SQS server; a test module asks for them by ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator
from datetime import timedelta

import pytest

from tests.support.s3 import set_credentials
from tests.support.sqs import Line, Server, made_line, running_sqs
from worker.queues.sqs import producer


@pytest.fixture(scope="session")
def sqs_process_server() -> Iterator[Server]:
    with running_sqs() as server:
        yield server


@pytest.fixture
def sqs_server(sqs_process_server: Server, monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    """The session's server, unbent, with the tests' key pair in the standard chain.

    It is no cluster: who looks at dead letters need not wait for all of its servers.
    """
    set_credentials(monkeypatch)
    monkeypatch.setattr(producer, "PEEK_WAIT", timedelta(0))
    monkeypatch.delenv("AWS_ENDPOINT_URL_SQS", raising=False)
    sqs_process_server.bent.reset()
    yield sqs_process_server
    sqs_process_server.bent.reset()


@pytest.fixture
def line(sqs_server: Server) -> Line:
    """A standard queue with dead letters."""
    return made_line(sqs_server, dead_after=50)

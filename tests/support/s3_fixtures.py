"""Fixtures of real S3 servers; a test module asks for them by ``pytest_plugins``."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.support.s3 import Bucket, made_bucket, running_moto, running_rclone, set_credentials


@pytest.fixture
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    """The tests' key pair in the standard chain."""
    set_credentials(monkeypatch)


@pytest.fixture(scope="session")
def rclone_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    with running_rclone(tmp_path_factory.mktemp("rclone")) as url:
        yield url


@pytest.fixture(scope="session")
def moto_server() -> Iterator[str]:
    with running_moto() as url:
        yield url


@pytest.fixture
def rclone_bucket(rclone_server: str) -> Bucket:
    """A bucket of a store that ignores ``If-None-Match``."""
    return made_bucket(rclone_server)


@pytest.fixture
def moto_bucket(moto_server: str) -> Bucket:
    """A bucket of a store that honours ``If-None-Match``."""
    return made_bucket(moto_server)

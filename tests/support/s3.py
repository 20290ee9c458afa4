"""Real S3 servers for tests: ``rclone serve s3`` (ignores ``If-None-Match``) and moto's (honours it)."""

from __future__ import annotations

import functools
import subprocess
import sys
import threading
import uuid
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from worker import aws

if TYPE_CHECKING:
    from types_boto3_s3.client import S3Client

ACCESS_KEY = "AKIDEXAMPLE12345678"
SECRET_KEY = "a-secret-of-the-tests"
REGION = "us-east-1"


@dataclass(frozen=True, slots=True)
class Bucket:
    """An empty bucket of its own on a running server, seen through a client that the worker has no part in."""

    endpoint_url: str
    name: str

    def client(self) -> S3Client:
        return _client(self.endpoint_url)

    def keys(self) -> set[str]:
        return {item["Key"] for item in self.client().list_objects_v2(Bucket=self.name).get("Contents", [])}

    def read(self, key: str) -> bytes:
        return self.client().get_object(Bucket=self.name, Key=key)["Body"].read()

    def whole(self, key: str) -> bytes | None:
        """The same; None for the rest of an upload that was cut off, which rclone lists for a while and cannot read."""
        from botocore.exceptions import ClientError

        try:
            return self.read(key)
        except ClientError as error:
            if error.response["Error"]["Code"] not in ("InternalError", "NoSuchKey"):
                raise
            return None

    def write(self, key: str, body: bytes) -> None:
        self.client().put_object(Bucket=self.name, Key=key, Body=body)

    def head(self, key: str) -> dict[str, Any]:
        return dict(self.client().head_object(Bucket=self.name, Key=key))

    def presigned(self, method: str, key: str, **params: str) -> str:
        return self.client().generate_presigned_url(
            method, Params={"Bucket": self.name, "Key": key, **params}, ExpiresIn=600
        )


@functools.cache
def _client(endpoint_url: str) -> S3Client:
    from boto3 import Session
    from botocore.config import Config

    session = Session(aws_access_key_id=ACCESS_KEY, aws_secret_access_key=SECRET_KEY, region_name=REGION)
    config = Config(signature_version="s3v4", s3={"addressing_style": "path"}, proxies={})
    client: S3Client = session.client("s3", endpoint_url=endpoint_url, config=config)
    return client


def made_bucket(endpoint_url: str) -> Bucket:
    """A new one, empty."""
    bucket = Bucket(endpoint_url, f"images-{uuid.uuid4().hex[:12]}")
    bucket.client().create_bucket(Bucket=bucket.name)
    return bucket


@contextmanager
def running_rclone(root: Path, *, host: str = "[::1]") -> Iterator[str]:
    """The URL of ``rclone serve s3`` over a folder, whose sub-folders are its buckets."""
    command = [
        str(Path(sys.executable).with_name("rclone")),
        *("serve", "s3", "--addr", f"{host}:0", "--auth-key", f"{ACCESS_KEY},{SECRET_KEY}"),
        *("--config", "/dev/null", "--vfs-cache-mode", "off", str(root)),
    ]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        stderr = process.stderr
        assert stderr is not None
        try:
            started = next((line for line in stderr if "Starting s3 server on" in line), None)
            if started is None:
                raise RuntimeError("rclone ended before it served")
            reading = threading.Thread(target=lambda: deque(stderr, maxlen=0), name="rclone-stderr", daemon=True)
            reading.start()
            try:
                yield started.split("[", 1)[1].strip().removesuffix("]").rstrip("/")
            finally:
                process.terminate()
                reading.join()
        finally:
            process.terminate()


@contextmanager
def running_moto() -> Iterator[str]:
    from moto.server import ThreadedMotoServer

    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    try:
        host, port = server.get_host_and_port()
        yield f"http://{host}:{port}"
    finally:
        server.stop()


def set_credentials(monkeypatch: pytest.MonkeyPatch, *, key: str | None = ACCESS_KEY, secret: str = SECRET_KEY) -> None:
    """What the standard chain of credentials finds from now on; None: nothing at all."""
    for name in ("AWS_PROFILE", "AWS_SESSION_TOKEN", "AWS_ENDPOINT_URL", "AWS_ENDPOINT_URL_S3", "AWS_DEFAULT_REGION"):
        monkeypatch.delenv(name, raising=False)
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, "/dev/null")
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    for name, value in (("AWS_ACCESS_KEY_ID", key), ("AWS_SECRET_ACCESS_KEY", key and secret)):
        if value is None:
            monkeypatch.delenv(name, raising=False)
        else:
            monkeypatch.setenv(name, value)
    found = None if aws.session.cache_info().currsize == 0 else aws.session().get_credentials()
    if found is None or (found.access_key, found.secret_key) != (key, secret):
        aws.session.cache_clear()

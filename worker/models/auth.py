"""Credentials that a request brings for the URLs of its models: which URL they are for, and what is sent. No I/O.

They are comfyui-api's five kinds. They open this request's URLs alone: nothing of them is stored, logged or echoed.
"""

from __future__ import annotations

import base64
import functools
import hashlib
import re
import secrets
from collections.abc import Sequence
from typing import Annotated, Literal
from urllib.parse import parse_qsl, quote, urlencode, urlsplit

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, SecretStr, StringConstraints

PATTERN_MOST = 2048
_SENDABLE = re.compile(r"[\x21-\x7e]([\x20-\x7e]*[\x21-\x7e])?")
_OURS = frozenset(
    {
        *("host", "connection", "te", "trailer", "upgrade", "expect", "range", "if-range"),
        *("content-length", "transfer-encoding", "accept-encoding"),
    }
)
"""Headers that say how a file is asked for, and not who asks."""


def _sendable(value: SecretStr) -> SecretStr:
    if not _SENDABLE.fullmatch(value.get_secret_value()):
        raise ValueError("must be printable ASCII, as a header is")
    return value


def _own(name: str) -> str:
    if name.lower() in _OURS:
        raise ValueError("is a header that the worker itself sends")
    return name


Secret = Annotated[SecretStr, Field(min_length=1, max_length=4096)]
Header = Annotated[Secret, AfterValidator(_sendable)]
HeaderName = Annotated[
    str, StringConstraints(pattern=r"^[A-Za-z0-9!#$%&'*+.^_`|~-]{1,100}$", max_length=100), AfterValidator(_own)
]


class _Auth(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    def headers(self) -> dict[str, str]:
        """What goes to the URL's own origin with each request, and nowhere else."""
        return {}

    def address(self, url: str) -> str:
        """The URL as it is asked for."""
        return url

    @property
    def mark(self) -> str:
        """Tells these credentials from others, for as long as this process lives; nobody can guess them from it."""
        shown = {name: _shown(value) for name, value in self}
        text = "\0".join(f"{name}\1{value}" for name, value in sorted(shown.items()))
        return hashlib.blake2b(text.encode("utf-8", "surrogatepass"), key=_key(), digest_size=16).hexdigest()


class BearerAuth(_Auth):
    type: Literal["bearer"]
    token: Header

    def headers(self) -> dict[str, str]:
        return {"authorization": f"Bearer {self.token.get_secret_value()}"}


class BasicAuth(_Auth):
    type: Literal["basic"]
    username: Annotated[str, StringConstraints(max_length=4096, pattern=r"^[^:]*$")]
    password: Annotated[SecretStr, Field(max_length=4096)]

    def headers(self) -> dict[str, str]:
        pair = f"{self.username}:{self.password.get_secret_value()}"
        return {"authorization": "Basic " + base64.b64encode(pair.encode("utf-8", "replace")).decode("ascii")}


class HeaderAuth(_Auth):
    type: Literal["header"]
    header_name: HeaderName
    header_value: Header

    def headers(self) -> dict[str, str]:
        return {self.header_name.lower(): self.header_value.get_secret_value()}


class QueryAuth(_Auth):
    type: Literal["query"]
    query_param: Annotated[str, StringConstraints(min_length=1, max_length=100)]
    query_value: Secret

    def address(self, url: str) -> str:
        parts = urlsplit(url)
        kept = [(name, value) for name, value in parse_qsl(parts.query, True) if name != self.query_param]
        query = urlencode([*kept, (self.query_param, self.query_value.get_secret_value())], quote_via=quote)
        return parts._replace(query=query, fragment="").geturl()


class S3Auth(_Auth):
    type: Literal["s3"]
    access_key_id: Annotated[str, StringConstraints(min_length=1, max_length=256, pattern=r"^[\x21-\x7e]+$")]
    secret_access_key: Header
    session_token: Header | None = None
    region: Annotated[str, StringConstraints(pattern=r"^[a-z0-9-]{1,64}$")] | None = None
    endpoint: Annotated[str, StringConstraints(min_length=1, max_length=2048)] | None = None

    @property
    def signing_region(self) -> str:
        return self.region or "us-east-1"

    @property
    def store(self) -> str:
        """Where the bucket is, without a slash at the end."""
        return (self.endpoint or f"https://s3.{self.signing_region}.amazonaws.com").rstrip("/")


Auth = BearerAuth | BasicAuth | HeaderAuth | QueryAuth | S3Auth
AnyAuth = Annotated[Auth, Field(discriminator="type")]


class Credential(BaseModel):
    """``url_pattern``: ``*`` is anything but a slash, ``**`` anything at all, ``?`` one character."""

    model_config = ConfigDict(extra="forbid", frozen=True, hide_input_in_errors=True)

    url_pattern: Annotated[str, StringConstraints(min_length=1, max_length=PATTERN_MOST)]
    auth: AnyAuth


Credentials = Sequence[Credential]


def auth_for(url: str, credentials: Credentials) -> Auth | None:
    """Those of the first pattern that fits the URL."""
    return next((one.auth for one in credentials if fits(one.url_pattern, url)), None)


def fits(pattern: str, url: str) -> bool:
    """Whether the whole URL is as the pattern says.

    In time proportional to their lengths, whatever the pattern: all ways to read it are followed at once, each a bit.
    """
    tokens = _tokens(pattern)
    single = _bits(tokens, "?")
    within, across = _bits(tokens, "*"), _bits(tokens, "**")
    literal: dict[str, int] = {}
    for place, (kind, text) in enumerate(tokens):
        if kind == "literal":
            literal[text] = literal.get(text, 0) | 1 << place
    at = _past(1, within | across)
    for character in url:
        stays = at & (across if character == "/" else across | within)
        at = _past((at & (literal.get(character, 0) | single)) << 1 | stays, within | across)
        if not at:
            return False
    return bool(at >> len(tokens) & 1)


def _past(at: int, stars: int) -> int:
    """A star may stand for nothing; no two of them follow each other."""
    return at | (at & stars) << 1


def _tokens(pattern: str) -> list[tuple[str, str]]:
    found = re.findall(r"\*+|\?|[^*?]", pattern, re.DOTALL)
    return [("literal", one) if one[0] not in "*?" else (one[:2], "") for one in found]


def _bits(tokens: Sequence[tuple[str, str]], kind: str) -> int:
    return sum(1 << place for place, (found, _) in enumerate(tokens) if found == kind)


def _shown(value: object) -> str:
    return value.get_secret_value() if isinstance(value, SecretStr) else str(value)


@functools.cache
def _key() -> bytes:
    return secrets.token_bytes(32)

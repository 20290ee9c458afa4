"""The port of the probes, read with the standard library alone: `sd-worker probe` may import nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

DEFAULT_PORT = 3000
_LINK = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


def is_service_link(name: str, value: str) -> bool:
    """Whether this is what Kubernetes sets for a service called ``worker-http``, and no setting of ours."""
    return name.endswith("_PORT") and bool(_LINK.match(value.strip()))


def http_port(environ: Mapping[str, str] | None = None) -> int | None:
    """The port of WORKER_HTTP_PORT; None when it is no port."""
    environ = os.environ if environ is None else environ  # noqa: TID251
    value = environ.get("WORKER_HTTP_PORT", "").strip()
    if not value or is_service_link("WORKER_HTTP_PORT", value):
        return DEFAULT_PORT
    return int(value) if value.isascii() and value.isdigit() and 0 < int(value) <= 65535 else None

"""Where the probes are answered, read with the standard library alone: `sd-worker probe` imports nothing heavy."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping

DEFAULT_PORT = 3000
_EVERYWHERE = ("", "::", "0.0.0.0", "localhost")  # noqa: S104
_LINK = re.compile(r"(tcp|udp|sctp)://", re.IGNORECASE)


def is_service_link(name: str, value: str) -> bool:
    """Whether this is what Kubernetes sets for a service called ``worker-http``, and no setting of ours."""
    return name.endswith("_PORT") and bool(_LINK.match(value.strip()))


def probe_address(environ: Mapping[str, str] | None = None) -> tuple[tuple[str, ...], int]:
    """The addresses to try in this order, and the port; port 0 where WORKER_HTTP_PORT is none."""
    environ = os.environ if environ is None else environ  # noqa: TID251
    host = environ.get("WORKER_HTTP_HOST", "").strip().strip("[]")
    port = environ.get("WORKER_HTTP_PORT", "").strip()
    hosts = ("::1", "127.0.0.1") if host in _EVERYWHERE else (host,)
    if not port or is_service_link("WORKER_HTTP_PORT", port):
        return hosts, DEFAULT_PORT
    return hosts, int(port) if port.isascii() and port.isdigit() and int(port) <= 65535 else 0

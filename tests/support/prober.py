"""`python tests/support/prober.py PORT`: asks for the probes until its input ends, and prints how long each took.

An empty line says that it has begun.

A process of its own, with the standard library alone, so that it feels nobody's load but the worker's.
"""

from __future__ import annotations

import http.client
import json
import select
import sys
import time

PACE_S = 0.005
PATHS = ("/ready", "/live", "/startup")


def main() -> None:
    connection = http.client.HTTPConnection("::1", int(sys.argv[1]), timeout=30)
    took: list[float] = []
    statuses: dict[str, int] = {}
    connection.connect()
    print(flush=True)
    while not select.select([sys.stdin], [], [], PACE_S)[0]:
        path = PATHS[len(took) % len(PATHS)]
        began = time.perf_counter()
        connection.request("GET", path)
        answer = connection.getresponse()
        answer.read()
        took.append(time.perf_counter() - began)
        statuses[f"{path} {answer.status}"] = statuses.get(f"{path} {answer.status}", 0) + 1
    print(json.dumps({"took": took, "statuses": statuses}))


if __name__ == "__main__":
    main()

"""`python -m benchmarks.watched FILE run`: a worker that notes in FILE for how long its event loop stood still."""

from __future__ import annotations

import asyncio
import json
import sys
import time
from pathlib import Path
from typing import Any

from worker import app
from worker.__main__ import main as worker_main

TICK_S = 0.002
NOTED_S = 0.01
"""Shorter stalls are not noted."""


async def tick(file: Path) -> None:
    with file.open("a", buffering=1) as notes:
        while True:
            before = time.perf_counter()
            await asyncio.sleep(TICK_S)
            stall_s = time.perf_counter() - before - TICK_S
            if stall_s > NOTED_S:
                notes.write(json.dumps(stall_s) + "\n")


def main() -> None:
    file = Path(sys.argv.pop(1))
    run = app.run

    async def watched(*given: Any, **named: Any) -> Any:
        ticking = asyncio.create_task(tick(file), name="ticking")
        try:
            return await run(*given, **named)
        finally:
            ticking.cancel()

    app.run = watched
    worker_main()


if __name__ == "__main__":
    main()

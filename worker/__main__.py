"""The process: hands over to a command, and ends with its exit code without waiting for threads.

A probe is answered before anything heavy is imported.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from typing import NoReturn

INTERNAL = 70
PROBES = ("startup", "live", "ready")


def main() -> NoReturn:
    """Run the command line and end the process: 70 when a bug ended it.

    `os._exit`, since the interpreter would wait for executor threads that hang in somebody's network.
    """
    code = INTERNAL
    try:
        code = _run(sys.argv[1:])
    finally:
        if (error := sys.exception()) is not None:
            _report(error)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError):
                stream.flush()
        os._exit(code)


def _run(argv: list[str]) -> int:
    if len(argv) == 2 and argv[0] == "probe" and argv[1] in PROBES:
        from worker.cli.probe import answer

        return answer(argv[1])
    from worker.cli import main as command_line

    return command_line(argv)


def _report(error: BaseException) -> None:
    import traceback

    from worker.log import redact

    sys.stderr.write(redact("".join(traceback.format_exception(error))))


if __name__ == "__main__":
    main()

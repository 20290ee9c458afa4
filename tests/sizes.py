"""The size gate of `make check`: no file over 400 lines, no function over 60, but for the exceptions named here.

An exception is frozen at its size: it may shrink, and then has to be lowered or removed here.
"""

from __future__ import annotations

import ast
import sys
from collections.abc import Iterator
from pathlib import Path

FILE_MOST, FUNCTION_MOST = 400, 60
FOLDERS = ("bundle", "demo", "dispatcher", "worker", "tests", "benchmarks")
EXCEPTIONS: dict[str, int] = {}


def sizes(root: Path) -> Iterator[tuple[str, int, int]]:
    """Every file and function as (name, lines, lines allowed)."""
    for folder in FOLDERS:
        for path in sorted((root / folder).rglob("*.py")):
            name, text = path.relative_to(root).as_posix(), path.read_text()
            yield name, len(text.splitlines()), FILE_MOST
            for node in ast.walk(ast.parse(text)):
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    yield f"{name}:{node.name}", (node.end_lineno or node.lineno) - node.lineno + 1, FUNCTION_MOST


def complaints(root: Path, exceptions: dict[str, int]) -> list[str]:
    """What is too large, and exceptions that are no longer needed as they stand."""
    found, unused = [], dict(exceptions)
    for name, lines, most in sizes(root):
        allowed = exceptions.get(name, most)
        if name in exceptions and lines > most:
            unused.pop(name, None)
            if lines < allowed:
                found.append(f"{name} has shrunk to {lines} lines: lower its exception from {allowed}")
        if lines > allowed:
            found.append(f"{name} has {lines} lines, {allowed} are allowed")
    return found + [f"{name} needs no exception any more" for name in unused]


if __name__ == "__main__":
    problems = complaints(Path(__file__).parent.parent, EXCEPTIONS)
    print("\n".join(problems) or "sizes: fine")
    sys.exit(bool(problems))

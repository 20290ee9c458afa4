"""The folder of workflows, read once: each file by itself, so that a broken one takes no other down."""

from __future__ import annotations

import asyncio
import os
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import structlog

from worker.workflows import python, written
from worker.workflows.base import Defect, Unusable, Workflow, is_name
from worker.workflows.workflows import Workflows, place_of
from worker.workflows.workshop import Overdue, Raised, Workshop

log = structlog.get_logger()

LOAD_LIMIT_S = 20.0
"""What a file may take to be run; a worker's start waits for it."""

_SCHEMA = ".schema.json"
_SCRIPTS = (".js", ".ts")
NOT_RUN = "is not run here: rewrite it as NAME.py, or export its graph in API format as NAME.json with {{placeholders}}"


@dataclass
class _Files:
    """What lies in the folder, by the names of workflows; ``others`` are defects of files that are none."""

    named: dict[str, list[str]] = field(default_factory=lambda: defaultdict(list))
    others: list[Defect] = field(default_factory=list)


async def load(root: Path, *, limit_s: float = LOAD_LIMIT_S) -> Workflows:
    """Every workflow below the folder; none where there is no such folder."""
    files = await asyncio.to_thread(_listed, root)
    workshop = Workshop()
    found: list[Workflow] = []
    broken: dict[str, Defect] = {}
    notes = [*files.others]
    for name in sorted(files.named):
        endings = sorted(files.named[name])
        scripts = [Defect(name + ending, None, NOT_RUN) for ending in endings if ending in _SCRIPTS]
        notes += scripts
        usable = [ending for ending in endings if ending not in _SCRIPTS]
        if not usable:
            broken[name] = scripts[0]
            continue
        loaded = await _loaded(name, usable, root, workshop, limit_s)
        if isinstance(loaded, Defect):
            broken[name] = loaded
        else:
            found.append(loaded)
    return Workflows(found, root=root, broken=broken, notes=notes, workshop=workshop)


def tell(workflows: Workflows) -> None:
    """Log what was found, and each file that cannot be used, with its line."""
    root = workflows.root
    for defect in workflows.broken.values():
        if defect not in workflows.notes:
            log.error("workflow_broken", file=str(root / defect.file), line=defect.line, error=defect.message)
    for note in workflows.notes:
        log.warning("workflow_not_runnable", file=str(root / note.file), detail=note.message)
    if names := [workflow.described.name for workflow in workflows]:
        log.info("workflows_loaded", folder=str(root), names=names)


def _listed(root: Path) -> _Files:
    files = _Files()

    def unreadable(error: OSError) -> None:
        if Path(error.filename) != root or root.exists():
            files.others.append(Defect(_below(error.filename, root), None, f"cannot be read: {error.strerror}"))

    for folder, folders, names in os.walk(root, onerror=unreadable):
        folders[:] = sorted(name for name in folders if not name.startswith(("_", ".")))
        for name in sorted(name for name in names if not name.startswith(("_", "."))):
            _sort(Path(_below(folder, root)) / name, names, files)
    return files


def _below(path: str, root: Path) -> str:
    return os.path.relpath(path, root)


def _sort(path: Path, beside: list[str], files: _Files) -> None:
    """Where a file belongs; one of another kind is nobody's business."""
    if path.name.endswith(_SCHEMA):
        document = path.name.removesuffix(_SCHEMA) + ".json"
        if document not in beside:
            files.others.append(Defect(path.as_posix(), None, f"has no effect without {document} beside it"))
    elif path.suffix in (".py", ".json", *_SCRIPTS):
        name = path.with_suffix("").as_posix()
        if is_name(name):
            files.named[name].append(path.suffix)
        else:
            said = (
                "its path can be no endpoint's: letters, digits, '.', '_' and '-' are taken, the first and last no sign"
            )
            files.others.append(Defect(path.as_posix(), None, said))


async def _loaded(name: str, endings: list[str], root: Path, workshop: Workshop, limit_s: float) -> Workflow | Defect:
    file = name + endings[0]
    if len(endings) > 1:
        return Defect(file, None, f"{name + endings[1]} has the same name; one of them must go")
    load: Callable[[], Workflow] = (
        (lambda: python.load(name, root)) if endings[0] == ".py" else (lambda: _read(name, root))
    )
    try:
        return await workshop.run(name, load, limit_s=limit_s)
    except Overdue:
        return Defect(file, None, f"took longer than {limit_s:g} s to load")
    except Raised as raised:
        error = raised.error
        if isinstance(error, Unusable):
            return Defect(f"{name}{_SCHEMA}" if error.schema else file, error.line, str(error))
        if isinstance(error, OSError) and place_of(error, root) is None:
            return Defect(file, None, f"cannot be read: {error.strerror}")
        return place_of(error, root) or Defect(file, None, f"{type(error).__name__}: {error}")


def _read(name: str, root: Path) -> Workflow:
    schema = root / f"{name}{_SCHEMA}"
    return written.load(name, (root / f"{name}.json").read_bytes(), schema.read_bytes() if schema.exists() else None)

"""A load from a file: what a service really saw, a JSON object a line, in any order.

A job: ``{"t": 12.5, "model": "dreamshaper_8"}``, or with more of what is known::

    {"t": 12.5, "id": "a1", "user": "ann", "priority": 0, "work": 6.2,
     "needs": [{"kind": "checkpoint", "name": "dreamshaper_8", "size": 2100000000}, {"kind": "lora", "name": "ink"}]}

``t`` in seconds from any start, ``work`` in seconds of rendering on an average node, sizes in bytes. The first need is
the model that takes the memory. What is left out is as the assumptions have it.

A node that vanishes: ``{"t": 300, "lost": 17, "back": 900}``; ``lost`` counts nodes from 0, ``back`` is when an empty
one takes its place (left out: never).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from dispatcher.simulate.load import SDXL, Assumptions, Load, Loss, Submission, generated
from dispatcher.words import Need, Waiting, key_of

Seconds = Annotated[float, Field(allow_inf_nan=False)]


class BadTrace(ValueError):
    """A line of the trace is not what it should be; the message names it."""


class _File(BaseModel):
    model_config = ConfigDict(extra="forbid")

    kind: str
    name: str
    size: Annotated[int, Field(gt=0)] | None = None


class _Line(BaseModel):
    model_config = ConfigDict(extra="forbid")

    t: Seconds
    id: str | None = None
    user: str = ""
    priority: int = 0
    work: Annotated[float, Field(gt=0, allow_inf_nan=False)] | None = None
    model: str | None = None
    needs: tuple[_File, ...] = ()
    lost: Annotated[int, Field(ge=0)] | None = None
    back: Seconds | None = None


def read(lines: Iterable[str], assumed: Assumptions) -> Load:
    """The load of a trace, on the nodes that the assumptions describe, with empty disks. Raises `BadTrace`.

    Times are counted from the earliest line's. A trace that tells of no lost nodes loses none.
    """
    parsed = [(number, _parse(number, text)) for number, text in enumerate(lines, 1) if text.strip()]
    parsed.sort(key=lambda found: found[1].t)
    jobs = [line for _, line in parsed if line.lost is None]
    if not jobs:
        raise BadTrace("there is no job in it")
    begin = parsed[0][1].t
    submissions = tuple(Submission(line.t - begin, _job(at, line, assumed)) for at, line in enumerate(jobs))
    if len({sent.job.id for sent in submissions}) < len(submissions):
        raise BadTrace("an id is there twice")
    fleet = generated(replace(assumed, jobs=1, life_s=0.0))
    losses = tuple(_losses(parsed, [node.id for node in fleet.nodes], begin))
    return replace(fleet, submissions=submissions, losses=losses, horizon=submissions[-1].at, stock={})


def _losses(parsed: Iterable[tuple[int, _Line]], nodes: Sequence[str], begin: float) -> Iterator[Loss]:
    away: dict[int, float] = {}
    for number, line in parsed:
        if line.lost is None:
            continue
        if line.lost >= len(nodes):
            raise BadTrace(f"line {number}: there are {len(nodes)} nodes, counted from 0")
        if line.t < away.get(line.lost, -math.inf):
            raise BadTrace(f"line {number}: node {line.lost} is away")
        away[line.lost] = math.inf if line.back is None else line.back
        yield Loss(nodes[line.lost], line.t - begin, away[line.lost] - begin)


def _parse(number: int, text: str) -> _Line:
    try:
        line = _Line.model_validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the line"
        raise BadTrace(f"line {number}: {where}: {first['msg']}") from None
    if line.lost is None and line.model is not None and line.needs:
        raise BadTrace(f"line {number}: say model or needs, not both")
    if line.back is not None and line.back <= line.t:
        raise BadTrace(f"line {number}: back is not after t")
    return line


def _job(number: int, line: _Line, assumed: Assumptions) -> Waiting:
    files = line.needs or ((_File(kind="checkpoint", name=line.model),) if line.model else ())
    needs = tuple(Need(key_of(f.kind, f.name), f.kind, f.name, f.size or _usual(f.kind)) for f in files)
    return Waiting(
        id=line.id or f"job-{number:07}",
        needs=needs,
        priority=line.priority,
        work_s=line.work or assumed.render_s,
        user=line.user,
    )


def _usual(kind: str) -> int:
    return SDXL if kind in ("checkpoint", "unet") else 200_000_000

"""`python -m benchmarks.parking`: what parking is worth, and how many jobs would go down with a node.

The real worker in virtual time, with fakes at its seams: short jobs behind a store that takes 400 ms an object and a
receiver that takes 300 ms, and models that take long to come. Computing takes no time there, so that the figures are
those of the decisions alone, and the same on every machine.
"""

from __future__ import annotations

import asyncio

import structlog

from tests.support.mixes import Mix, Played, mean_of, played
from tests.support.virtual import run

QUIET = 50
MIXES = {
    "300 ms, all near": Mix(burst=0),
    "300 ms, 2 of 80 far (20 s)": Mix(burst=2),
    "300 ms, 3 of 80 far (20 s)": Mix(burst=3),
    "300 ms, 5 of 80 far (20 s)": Mix(burst=5),
    "3 s, all near": Mix(jobs=120, every=30, burst=0, job_s=3.0),
    "3 s, 3 of 30 far (60 s)": Mix(jobs=120, every=30, burst=3, job_s=3.0, far_s=60.0),
}
PLACES = (0, 2, 4)


def row(name: str, places: int, found: Played) -> str:
    held, undone = found.hostages.held, found.hostages.undone
    return (
        f"| {name} | {places} | {found.duty:.1%} | {mean_of(held):.1f}, {max(held)} | "
        f"{mean_of(undone):.1f}, {max(undone)} |"
    )


async def table() -> None:
    print("| jobs | places | duty | held: mean, most | not yet generated: mean, most |")
    print("| --- | --- | --- | --- | --- |")
    for name, mix in MIXES.items():
        tried = PLACES if mix.burst else (2,)
        found = await asyncio.gather(*(played(mix, parked=places) for places in tried))
        for places, one in zip(tried, found, strict=True):
            print(row(name, places, one))


if __name__ == "__main__":
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(QUIET))
    run(table())

"""`python -m demo`: the command behind `make demo-fleet`."""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Annotated

import typer

from demo.plan import Plan
from demo.run import FAILED, Demo
from worker.cli.output import complain
from worker.clock import SystemClock
from worker.errors import WorkerError

DEFAULT = Plan("")


def fleet(
    out: Annotated[Path, typer.Option(help="Where images, results and logs go.")] = Path("demo-output"),
    workers: Annotated[int, typer.Option(min=1, max=20)] = DEFAULT.workers,
    models: Annotated[int, typer.Option(min=1, max=99, help="Models that jobs ask for.")] = DEFAULT.models,
    jobs: Annotated[int, typer.Option(min=1, max=900)] = DEFAULT.jobs,
    kill: Annotated[int, typer.Option(min=0, help="Workers that get SIGKILL on the way.")] = DEFAULT.kills,
    freeze: Annotated[int, typer.Option(min=0, help="Times that a worker is frozen past its lease.")] = DEFAULT.freezes,
    lease: Annotated[float, typer.Option(min=1, help="DISPATCHER_LEASE, in seconds.")] = DEFAULT.lease_s,
    seed: Annotated[int, typer.Option(help="The same seed, the same jobs.")] = DEFAULT.seed,
    database: Annotated[str | None, typer.Option(help="postgresql://... instead of SQLite.")] = None,
) -> None:
    """A dispatcher and a small fleet, some of it killed and frozen; ends with the ledger of every job."""
    if kill >= workers or (freeze and workers - kill < 2):
        raise typer.BadParameter("somebody must be left to do the jobs")
    run = f"fleet-{SystemClock().now():%Y%m%d-%H%M%S}"
    folder = out.resolve() / run
    folder.mkdir(parents=True)
    plan = Plan(run, workers, models, jobs, kill, freeze, lease, seed)
    try:
        code = asyncio.run(_whole(Demo(plan, folder, database)))
    except WorkerError as error:
        complain(f"{error.code}: {error.message}; the logs in {folder} say why")
        code = FAILED
    sys.exit(code)


async def _whole(demo: Demo) -> int:
    """Run it; SIGTERM ends it as Ctrl-C does, and no process is left behind."""
    running = asyncio.current_task()
    if running is not None:
        asyncio.get_running_loop().add_signal_handler(signal.SIGTERM, running.cancel)
    try:
        return await demo.run()
    except asyncio.CancelledError:
        complain("stopped")
        return FAILED


app = typer.Typer(add_completion=False)
app.command()(fleet)

if __name__ == "__main__":
    app()

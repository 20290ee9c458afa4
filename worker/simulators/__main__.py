"""`python -m worker.simulators sdnext --port 7860`: a simulated server by hand."""

from __future__ import annotations

import argparse
import asyncio
import os
import signal
from functools import partial
from pathlib import Path

from worker.simulators.dialects import DIALECTS
from worker.simulators.knobs import Knobs
from worker.simulators.server import DEFAULT_MODELS, running
from worker.simulators.state import until


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.simulators", description=__doc__)
    parser.add_argument("dialect", choices=sorted(DIALECTS))
    parser.add_argument("--host", default="::1")
    parser.add_argument("--port", type=int, default=7860, help="0 takes a free one")
    parser.add_argument("--models", type=_names, default=list(DEFAULT_MODELS), help="file names, comma between")
    parser.add_argument("--loras", type=_names, default=[])
    parser.add_argument("--vaes", type=_names, default=[])
    parser.add_argument("--models-dir", type=Path, help="a real models folder that refreshes look into too")
    parser.add_argument("--auth", help="user:password")
    parser.add_argument("--step-seconds", type=float, default=0.02)
    parser.add_argument("--load-seconds", type=float, default=0.5)
    parser.add_argument("--overhead-seconds", type=float, default=0.0)
    parser.add_argument("--start-seconds", type=float, default=0.0, help="until the port opens")
    parser.add_argument("--routes-seconds", type=float, default=0.0, help="from there until the routes answer")
    parser.add_argument("--model-seconds", type=float, default=0.0, help="from there until the model is loaded")
    parser.add_argument("--knobs", default="{}", help="more of them, as for POST /simulator/knobs")
    return parser.parse_args()


def _knobs(arguments: argparse.Namespace) -> Knobs:
    import json

    knobs = Knobs(
        step_seconds=arguments.step_seconds,
        load_seconds=arguments.load_seconds,
        overhead_seconds=arguments.overhead_seconds,
        start_port_seconds=arguments.start_seconds,
        start_routes_seconds=arguments.routes_seconds,
        start_model_seconds=arguments.model_seconds,
    )
    knobs.turn(json.loads(arguments.knobs))
    return knobs


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 0)
    async with running(
        arguments.dialect,
        _knobs(arguments),
        models=arguments.models,
        loras=arguments.loras,
        vaes=arguments.vaes,
        models_dir=arguments.models_dir,
        host=arguments.host,
        port=arguments.port,
        auth=arguments.auth,
    ) as simulator:
        simulator.on_exit = partial(loop.call_later, 0.02, os._exit, 1)
        await until(lambda: simulator.listening)
        print(f"{arguments.dialect} simulator listening on {simulator.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(_arguments()))

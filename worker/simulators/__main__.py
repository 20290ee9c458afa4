"""`python -m worker.simulators sdnext --port 7860`: a simulated server by hand."""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import signal
from collections.abc import Callable, Iterable
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from worker.simulators import comfyui, fooocus, server
from worker.simulators.dialects import DIALECTS
from worker.simulators.knobs import Knobs
from worker.simulators.state import until


@dataclass(frozen=True)
class Family:
    """Servers of one kind: their names and usual port, their own options, and how one is opened."""

    names: Iterable[str]
    port: int
    add: Callable[[argparse.ArgumentParser], None]
    opened: Callable[[argparse.Namespace], AbstractAsyncContextManager[Any]]


def _names(text: str) -> list[str]:
    return [name for name in text.split(",") if name]


def _sdapi_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--models", type=_names, default=list(server.DEFAULT_MODELS), help="file names, comma between")
    parser.add_argument("--vaes", type=_names, default=[])
    parser.add_argument("--models-dir", type=Path, help="a real models folder that refreshes look into too")
    parser.add_argument("--auth", help="user:password")
    parser.add_argument("--overhead-seconds", type=float, default=0.0)
    parser.add_argument("--routes-seconds", type=float, default=0.0, help="from there until the routes answer")
    parser.add_argument("--model-seconds", type=float, default=0.0, help="from there until the model is loaded")


def _sdapi(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Any]:
    knobs = Knobs(
        step_seconds=arguments.step_seconds,
        load_seconds=arguments.load_seconds,
        overhead_seconds=arguments.overhead_seconds,
        start_port_seconds=arguments.start_seconds,
        start_routes_seconds=arguments.routes_seconds,
        start_model_seconds=arguments.model_seconds,
    )
    knobs.turn(json.loads(arguments.knobs))
    return server.running(
        arguments.server,
        knobs,
        models=arguments.models,
        loras=arguments.loras,
        vaes=arguments.vaes,
        models_dir=arguments.models_dir,
        host=arguments.host,
        port=arguments.port,
        auth=arguments.auth,
    )


def _comfyui_options(parser: argparse.ArgumentParser) -> None:
    models = list(comfyui.DEFAULT_CHECKPOINTS)
    parser.add_argument("--models", type=_names, default=models, help="checkpoints, comma between")
    parser.add_argument("--vaes", type=_names, default=[])
    parser.add_argument("--base-dir", type=Path, help="holds models, input, output and temp; else a temporary folder")


def _comfyui(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Any]:
    knobs = comfyui.Knobs(
        step_seconds=arguments.step_seconds,
        load_seconds=arguments.load_seconds,
        start_seconds=arguments.start_seconds,
    )
    knobs.turn(json.loads(arguments.knobs))
    return comfyui.running(
        knobs,
        checkpoints=arguments.models,
        loras=arguments.loras,
        vaes=arguments.vaes,
        base_dir=arguments.base_dir,
        host=arguments.host,
        port=arguments.port,
    )


_FOOOCUS = {"fooocus": "0.5", "fooocus-0.4": "0.4.1.1"}


def _fooocus_options(parser: argparse.ArgumentParser) -> None:
    models = list(fooocus.DEFAULT_MODELS)
    parser.add_argument("--models", type=_names, default=models, help="checkpoints, comma between")
    parser.add_argument("--models-dir", type=Path, help="a real folder with checkpoints and loras that is listed too")
    parser.add_argument("--outputs", type=Path, help="where pictures are saved; else a temporary folder")
    parser.add_argument("--auth", help="the key that X-API-KEY must have")
    parser.add_argument("--overhead-seconds", type=float, default=0.0)
    parser.add_argument("--model-seconds", type=float, default=0.0, help="from there until the model is loaded")


def _fooocus(arguments: argparse.Namespace) -> AbstractAsyncContextManager[Any]:
    """What the server logs goes to stdout, where alone it tells why a job failed."""
    knobs = fooocus.Knobs(
        step_seconds=arguments.step_seconds,
        load_seconds=arguments.load_seconds,
        overhead_seconds=arguments.overhead_seconds,
        start_port_seconds=arguments.start_seconds,
        start_model_seconds=arguments.model_seconds,
    )
    knobs.turn(json.loads(arguments.knobs))
    return fooocus.running(
        _FOOOCUS[arguments.server],
        knobs,
        models=arguments.models,
        loras=arguments.loras or fooocus.DEFAULT_LORAS,
        models_dir=arguments.models_dir,
        outputs=arguments.outputs,
        host=arguments.host,
        port=arguments.port,
        api_key=arguments.auth,
        on_line=partial(print, flush=True),
    )


FAMILIES = (
    Family(sorted(DIALECTS), 7860, _sdapi_options, _sdapi),
    Family(("comfyui",), 8188, _comfyui_options, _comfyui),
    Family(_FOOOCUS, 8888, _fooocus_options, _fooocus),
)


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m worker.simulators", description=__doc__)
    servers = parser.add_subparsers(dest="server", required=True, metavar="SERVER")
    for family in FAMILIES:
        for name in family.names:
            own = servers.add_parser(name)
            own.set_defaults(opened=family.opened)
            own.add_argument("--host", default="::1")
            own.add_argument("--port", type=int, default=family.port, help="0 takes a free one")
            own.add_argument("--loras", type=_names, default=[])
            own.add_argument("--step-seconds", type=float, default=0.02)
            own.add_argument("--load-seconds", type=float, default=0.5)
            own.add_argument("--start-seconds", type=float, default=0.0, help="until the port opens")
            own.add_argument("--knobs", default="{}", help="more of them, as for POST /simulator/knobs")
            family.add(own)
    return parser.parse_args()


async def _serve(arguments: argparse.Namespace) -> None:
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, os._exit, 0)
    async with arguments.opened(arguments) as simulator:
        simulator.on_exit = partial(loop.call_later, 0.02, os._exit, 1)
        await until(lambda: simulator.listening)
        print(f"{arguments.server} simulator listening on {simulator.url}", flush=True)
        await asyncio.Event().wait()


if __name__ == "__main__":
    asyncio.run(_serve(_arguments()))

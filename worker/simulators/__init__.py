"""Protocol-faithful stand-ins of image servers, for the demo, tests and benchmarks; no code of the worker in them."""

from worker.simulators import comfyui, fooocus
from worker.simulators.dialects import DIALECTS
from worker.simulators.knobs import Fault, Knobs
from worker.simulators.models import ModelFile
from worker.simulators.ports import free_port
from worker.simulators.server import DEFAULT_MODELS, Simulator, running

__all__ = [
    "DEFAULT_MODELS",
    "DIALECTS",
    "Fault",
    "Knobs",
    "ModelFile",
    "Simulator",
    "comfyui",
    "fooocus",
    "free_port",
    "running",
]

"""A protocol-faithful stand-in of Fooocus-API in two versions; no code of the worker in it."""

from worker.simulators.fooocus.knobs import Fault, Knobs
from worker.simulators.fooocus.server import DEFAULT_LORAS, DEFAULT_MODELS, VERSIONS, Fooocus, running

__all__ = ["DEFAULT_LORAS", "DEFAULT_MODELS", "VERSIONS", "Fault", "Fooocus", "Knobs", "running"]

"""A protocol-faithful stand-in of ComfyUI: HTTP, websocket, queue, node cache, files and faults."""

from worker.simulators.comfyui.knobs import Fault, Knobs
from worker.simulators.comfyui.server import DEFAULT_CHECKPOINTS, ComfyUI, running
from worker.simulators.comfyui.weights import Architecture, write_checkpoint

__all__ = ["DEFAULT_CHECKPOINTS", "Architecture", "ComfyUI", "Fault", "Knobs", "running", "write_checkpoint"]

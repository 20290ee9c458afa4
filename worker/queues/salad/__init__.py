"""SaladCloud's own job queue, over gRPC: the platform hands each node of a container group one job at a time.

The library writes lines of its own to stderr unless it is told to be silent: what they say is in our log.
"""

from worker.settings.libraries import supposed

with supposed("GRPC_VERBOSITY", "NONE"):
    from worker.queues.salad.driver import SaladQueue

__all__ = ["SaladQueue"]

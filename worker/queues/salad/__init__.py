"""SaladCloud's own job queue, over gRPC: the platform hands each node of a container group one job at a time."""

from worker.queues.salad.driver import SaladQueue

__all__ = ["SaladQueue"]

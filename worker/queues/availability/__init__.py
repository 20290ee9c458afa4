"""The queue of a scheduling server: each node is given the job whose model it already has."""

from worker.queues.availability.driver import AvailabilityQueue
from worker.queues.availability.producer import AvailabilityProducer

__all__ = ["AvailabilityProducer", "AvailabilityQueue"]

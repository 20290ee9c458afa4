"""Amazon SQS, standard and FIFO, and what speaks like it."""

from worker.queues.sqs.driver import SqsQueue
from worker.queues.sqs.producer import Overflow, SqsProducer

__all__ = ["Overflow", "SqsProducer", "SqsQueue"]

"""The desk: where jobs that come over HTTP are taken in, waited for and answered. They run as those of a queue do."""

from worker.desk.desk import Desk, Rules
from worker.desk.tickets import Ended, Ticket

__all__ = ["Desk", "Ended", "Rules", "Ticket"]

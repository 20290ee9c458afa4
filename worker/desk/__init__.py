"""The desk: where jobs that come over HTTP are taken in, waited for and answered. They run as those of a queue do."""

from worker.desk.desk import Desk, Rules
from worker.desk.elsewhere import Elsewhere
from worker.desk.tickets import Ended, Ticket

__all__ = ["Desk", "Elsewhere", "Ended", "Rules", "Ticket"]

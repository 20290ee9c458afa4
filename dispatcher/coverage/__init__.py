"""Which nodes fetch and drop which models: a pure decision.

What jobs ask for decides how many copies of a model the fleet should have, as far as its disks take them; copies that
are missing are fetched by the nodes that have them soonest, and what is too many gives way where room is needed.
"""

from dispatcher.coverage.place import plan, plan_in_steps
from dispatcher.coverage.targets import Targets, copies_for, targets_of, value

__all__ = ["Targets", "copies_for", "plan", "plan_in_steps", "targets_of", "value"]

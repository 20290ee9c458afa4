"""What the node was doing, second by second, on its own disk: at the next start it tells how the last run ended."""

from worker.blackbox.box import BlackBox
from worker.blackbox.place import place_of
from worker.blackbox.readings import Machine

__all__ = ["BlackBox", "Machine", "place_of"]

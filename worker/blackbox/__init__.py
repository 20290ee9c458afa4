"""What the node was doing, second by second, on its own disk: at the next start it tells how the last run ended."""

from worker.blackbox.box import BlackBox, Seen
from worker.blackbox.place import place_of

__all__ = ["BlackBox", "Seen", "place_of"]

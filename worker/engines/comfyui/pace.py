"""How long this driver waits for what, and how often it asks."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Pace:
    """Seconds throughout. ``quiet_s`` bounds how long the server may take to react to an interrupt; it fits into a
    usual drain, so that a job whose step takes longer is still given back."""

    poll_s: float = 1.0
    """Between two looks at the history, which is the truth; the socket only makes it faster."""
    tick_s: float = 0.5
    """Between two reports of progress, and between two looks at the clock."""
    eager_s: float = 0.05
    """Between two looks at the history once the socket told of the end."""
    eager_for_s: float = 2.0
    """For so long; the history may lag behind the socket."""
    interrupt_s: float = 1.0
    quiet_s: float = 20.0
    dead_s: float = 10.0
    """Nothing runs although our prompt waits: the server's worker thread is dead."""
    mute_s: float = 60.0
    """Nothing follows the start of our prompt: its worker thread died with it."""
    submit_s: float = 60.0
    """For the answer to a submit, which validates the whole graph first."""
    heartbeat_s: float = 12.0
    reconnect_s: float = 0.5
    """Before the second try to open the socket; doubled up to 5 s."""
    free_s: float = 2.0


NORMAL = Pace()

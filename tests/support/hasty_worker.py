"""A worker whose waits are short: `python -m tests.support.hasty_worker run -- COMMAND`.

Only what no setting names is shortened; everything else is the product's own command line.
"""

from __future__ import annotations

from worker import pressure, recovery
from worker.engines.comfyui import pace
from worker.engines.fooocus import run as fooocus
from worker.engines.sdapi import run as sdapi

QUIET_S = 1.0
"""From the first interrupt until a server counts as deaf to them."""


def hurry() -> None:
    """Have this process be so."""
    recovery.IDLE_LOOK_S, recovery.IDLE_CANARY_S = 0.2, 0.5
    pressure.LOOK_BUSY_S, pressure.LOOK_IDLE_S = 0.2, 0.5
    for normal in (sdapi.NORMAL, pace.NORMAL, fooocus.NORMAL):
        object.__setattr__(normal, "quiet_s", QUIET_S)


if __name__ == "__main__":
    from worker.__main__ import main

    hurry()
    main()

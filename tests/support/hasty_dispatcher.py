"""A dispatcher that looks after everything often: `python -m tests.support.hasty_dispatcher serve`.

Only what no setting names is shortened; everything else is the product's own command line.
"""

from __future__ import annotations

from dataclasses import astuple

from dispatcher import upkeep
from tests.support.dispatching import QUICK


def hurry() -> None:
    """Have this process be so."""
    upkeep.Pace.__init__.__defaults__ = astuple(QUICK)


if __name__ == "__main__":
    from dispatcher.__main__ import main

    hurry()
    main()

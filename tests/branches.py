"""The coverage gate of `make test`: at least 90 % of the branches, of all folders of the product together."""

from __future__ import annotations

import json
import subprocess
import sys

LEAST = 90.0


def share(totals: dict[str, float]) -> float:
    """Percent of the branches that were taken."""
    return 100.0 * totals["covered_branches"] / max(1.0, totals["num_branches"])


if __name__ == "__main__":
    report = subprocess.run(
        [sys.executable, "-m", "coverage", "json", "-q", "-o", "-"], capture_output=True, check=True
    )
    taken = share(json.loads(report.stdout)["totals"])
    print(f"branches covered: {taken:.1f} % (at least {LEAST:g} %)")
    sys.exit(taken < LEAST)

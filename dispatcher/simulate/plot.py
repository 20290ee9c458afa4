"""The simulation as one picture: loads over waiting, for each policy, with the clairvoyant bound."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any

from dispatcher.simulate.report import Summary


def drawn(summaries: Sequence[Summary], bound: Mapping[float, float], title: str) -> bytes:
    """An SVG that needs nothing of the network.

    Further down is fewer loads, further left is less waiting. Each policy is a line at its loads, from the wait that
    half of its jobs stay below to that of 99 %, and to the longest. Nobody can be below the bound with all of its jobs
    to the left of it.
    """
    pygal = _pygal()
    chart = pygal.XY(
        title=title,
        x_title="seconds of waiting: half, 99 % and all of the jobs",
        y_title="model loads for 1,000 jobs",
        logarithmic=True,
        js=[],
        style=pygal.style.CleanStyle(font_family="sans-serif"),
        legend_at_bottom=True,
        dots_size=4,
    )
    chart.uuid = "simulation"
    for each in summaries:
        waits = (("p50", each.waits.p50), ("p99", each.waits.p99), ("longest", each.waits.max))
        loads = max(each.per_1000["loads"], 0.1)
        chart.add(each.policy, [{"value": (max(wait, 0.1), loads), "label": name} for name, wait in waits])
    if bound:
        points = [(wait, max(loads, 0.1)) for wait, loads in sorted(bound.items())]
        chart.add("clairvoyant bound", points, stroke_style={"dasharray": "4, 4"})
    chart.add_xml_filter(_without_scripts)
    found: bytes = chart.render()
    return found


def _without_scripts(root: Any) -> Any:
    """What the picture would tell a tooltip's script, which is not there."""
    for parent in [*root.iter()]:
        for script in parent.findall("script"):
            parent.remove(script)
    return root


def _pygal() -> Any:
    """The library without the finder that it leaves in `sys.meta_path`.

    That one offers ``find_module`` alone, of which Python 3.11 warns at each later import in the process; it is there
    for maps, which are not drawn here.
    """
    before = [*sys.meta_path]
    import pygal
    import pygal.style

    sys.meta_path[:] = [finder for finder in sys.meta_path if finder in before or type(finder).__module__ != "pygal"]
    return pygal

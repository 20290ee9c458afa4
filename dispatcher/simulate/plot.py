"""The simulation as one picture: loads over waiting, for each policy, with the clairvoyant bound."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pygal
from pygal.style import CleanStyle

from dispatcher.simulate.report import Summary


def drawn(summaries: Sequence[Summary], bound: Mapping[float, float], title: str) -> bytes:
    """An SVG that needs nothing of the network.

    Further down is fewer loads, further left is less waiting. Each policy is a line at its loads, from the wait that
    half of its jobs stay below to that of 99 %, and to the longest. Nobody can be below the bound with all of its jobs
    to the left of it.
    """
    chart = pygal.XY(
        title=title,
        x_title="seconds of waiting: half, 99 % and all of the jobs",
        y_title="model loads for 1,000 jobs",
        logarithmic=True,
        xrange=None,
        js=[],
        style=CleanStyle(font_family="sans-serif"),
        legend_at_bottom=True,
        disable_xml_declaration=False,
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
    found: bytes = chart.render()
    return found

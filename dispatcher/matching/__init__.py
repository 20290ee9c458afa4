"""Which waiting job a node gets: a pure decision.

In this order: a job that was passed over too often; the higher priority; what needs no download and no swap here; what
lies on this node's disk; what must be downloaded. Among models that are not in memory the one with the most waiting
work for each node that serves it goes first, the longer its first job has waited the sooner.

A model in memory gives way only where it is not needed, or where the work that waits for the other outweighs the load
and that need. Nothing keeps a node idle for longer than what it would spare by that, and nothing keeps a job waiting
for ever: see `Rules.max_skips`.
"""

from dispatcher.matching.choice import choose
from dispatcher.matching.cost import bytes_of, cost_s, fits, load_s
from dispatcher.matching.index import Pressure, interests, pressure

__all__ = ["Pressure", "bytes_of", "choose", "cost_s", "fits", "interests", "load_s", "pressure"]

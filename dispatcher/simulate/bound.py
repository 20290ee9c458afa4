"""What somebody who knew all arrivals could do at best: the clairvoyant bound."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from dispatcher.simulate.load import Load, Submission
from dispatcher.words import Key


def fewest_loads(load: Load, wait_s: float, begun: float = 0.0) -> float:
    """Loads that no policy can do without if every job submitted since ``begun`` starts within ``wait_s`` seconds.

    It is a lower bound for whoever knows all arrivals, with loads and transfers that take no time, disks without end,
    and a model in memory that serves any number of jobs at once. Real policies need more.

    Of each model take the first job, then the first one submitted more than ``wait_s`` after that, and so on. Each of
    these starts before the next is submitted. So from ``wait_s`` after the one until the submission of the next, some
    node has the model in memory all the time, or there is a load between the former and the start of the latter; and
    no such load is counted twice, as these spans do not overlap. To bridge a gap takes memory for as long as it is,
    of which there is that of one model a node for the length of the run. The fewest loads are left where the shortest
    gaps are bridged first, the last one in part. Besides, each model is loaded once, but for one a node that may have
    been there at the start. Jobs that the run's end spares from starting are left out.
    """
    submissions = [sent for sent in load.submissions if begun <= sent.at <= load.horizon - wait_s and sent.job.needs]
    gaps, models = _gaps(submissions, wait_s)
    memory_s = len(load.nodes) * (load.horizon - begun)
    return max(0, models - len(load.nodes)) + _left_over(gaps, memory_s)


def _gaps(submissions: Sequence[Submission], wait_s: float) -> tuple[list[float], int]:
    """The gaps of all models, in seconds, and how many models there are."""
    anchors, gaps = dict[Key, float](), list[float]()
    for sent in submissions:
        last = anchors.get(sent.job.key)
        if last is None or sent.at - last > wait_s:
            anchors[sent.job.key] = sent.at
            if last is not None:
                gaps.append(sent.at - last - wait_s)
    return gaps, len(anchors)


def _left_over(gaps: Iterable[float], budget: float) -> float:
    """How many gaps remain, the shortest being bridged first, the last one in part, until the budget is spent."""
    ordered = sorted(gaps)
    for bridged, gap in enumerate(ordered):
        if gap > budget:
            return len(ordered) - bridged - budget / gap
        budget -= gap
    return 0.0


def frontier(load: Load, waits_s: Iterable[float], begun: float = 0.0) -> Mapping[float, float]:
    """Loads for each 1,000 jobs by the longest wait that is allowed, as `fewest_loads` bounds them."""
    jobs = sum(sent.at >= begun for sent in load.submissions)
    return {wait_s: 1000 * fewest_loads(load, wait_s, begun) / jobs for wait_s in waits_s} if jobs else {}

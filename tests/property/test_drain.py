"""Which held jobs may still finish before a drain's deadline, and how long a generation takes yet."""

from __future__ import annotations

from hypothesis import assume, given
from hypothesis import strategies as st

from worker.drain import ENOUGH, fits, remaining
from worker.live import Hop, LiveJob
from worker.lookahead import Pace

seconds = st.floats(0, 10_000, allow_nan=False)
fractions = st.floats(0, 1)
paces = st.builds(Pace, generate_s=st.none() | seconds, settle_s=st.none() | seconds)


@st.composite
def jobs(draw: st.DrawFn) -> tuple[LiveJob, float]:
    """A job at any hop with any reports so far, and a time not before the last of them."""
    job = LiveJob("a", lambda: None, since=0.0, hop_since=draw(seconds), hop=draw(st.sampled_from(Hop)))
    now = job.hop_since
    if draw(st.booleans()):
        first, gained = draw(fractions), draw(fractions)
        job.progress_from = (now + draw(seconds), first)
        job.progress_at = job.progress_from[0] + draw(seconds)
        job.progress = min(1.0, first + gained)
        job.eta_s = draw(st.none() | seconds)
        now = job.progress_at
    return job, now + draw(seconds)


@given(jobs(), seconds, seconds, paces)
def test_more_time_never_makes_a_job_unfit(
    job_now: tuple[LiveJob, float], left: float, more: float, pace: Pace
) -> None:
    """Monotone in the deadline."""
    job, now = job_now
    if fits(job, now=now, deadline=now + left, pace=pace):
        assert fits(job, now=now, deadline=now + left + more, pace=pace)


@given(jobs(), seconds, paces, seconds)
def test_slower_settling_never_makes_a_job_fit(
    job_now: tuple[LiveJob, float], left: float, pace: Pace, more: float
) -> None:
    """Monotone in the usual time after the engine."""
    job, now = job_now
    slower = Pace(generate_s=pace.generate_s, settle_s=(pace.settle_s or 0.0) + more)
    if fits(job, now=now, deadline=now + left, pace=slower):
        assert fits(job, now=now, deadline=now + left, pace=pace)


@given(jobs(), paces, st.floats(-1000, 0))
def test_nothing_fits_after_the_deadline(job_now: tuple[LiveJob, float], pace: Pace, left: float) -> None:
    """Not even what only has to be acknowledged."""
    job, now = job_now
    assert not fits(job, now=now, deadline=now + left, pace=pace)


@given(jobs(), paces, st.floats(0.001, 1000))
def test_what_has_not_begun_never_fits_and_what_left_the_engine_always_does(
    job_now: tuple[LiveJob, float], pace: Pace, left: float
) -> None:
    """Before the deadline, whatever was measured."""
    job, now = job_now
    if job.hop.is_past_engine:
        assert fits(job, now=now, deadline=now + left, pace=pace)
    elif job.hop is not Hop.GENERATE:
        assert not fits(job, now=now, deadline=now + left, pace=pace)


@given(jobs(), paces, seconds)
def test_what_is_left_never_grows_while_nothing_is_reported(
    job_now: tuple[LiveJob, float], pace: Pace, later: float
) -> None:
    """A long step does not push the end away."""
    job, now = job_now
    left, then = remaining(job, now=now, pace=pace), remaining(job, now=now + later, pace=pace)
    assert (left is None) == (then is None)
    if left is not None and then is not None:
        assert 0 <= then <= left


@given(st.floats(1, 100), st.floats(0, 0.5), st.floats(0.2, 0.5), st.floats(0, 1000))
def test_a_steady_generation_is_foretold_however_long_it_loaded(
    speed_s: float, first: float, gained: float, loading: float
) -> None:
    """From the speed between two reports; loading before the first has no part in it."""
    assume(gained >= ENOUGH)
    job = LiveJob("a", lambda: None, since=0.0, hop_since=0.0, hop=Hop.GENERATE)
    job.progress_from = (loading, first)
    job.progress = first + gained
    job.progress_at = loading + gained * speed_s
    left = remaining(job, now=job.progress_at, pace=Pace(generate_s=1.0))
    assert left is not None
    assert abs(left - (1 - first - gained) * speed_s) < 1e-6 * speed_s + 1e-6

"""Whatever jobs, transfers and the server do: the cap holds, sets stay whole, and nobody waits for ever."""

from __future__ import annotations

import dataclasses
from collections import OrderedDict
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass, field

from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from worker.errors import DiskFull, ModelTooLarge
from worker.mentions import Place
from worker.models.base import Entry
from worker.models.plan import Fetch, Need, Plan, Ready, Refuse, Shelf, UnloadFirst, Wait, plan, trim

PLACES = tuple(Place("lora", name) for name in "abcdefgh")
CAP = 100

places = st.sampled_from(PLACES)
sizes = st.sampled_from([1, 5, 10, 20, 30, 30, 50, 60, 70, 110])


@dataclass(eq=False)
class Job:
    """``told``: bytes by place, None where the job does not know; ``claims`` what it has waited for so far."""

    told: dict[Place, int | None]
    claims: set[Place] = field(default_factory=set)
    end: str = ""

    @property
    def needs(self) -> list[Need]:
        return [Need(place, size) for place, size in self.told.items()]


def step_of(told: Mapping[Place, int | None], there: Mapping[Place, Entry], cap: int) -> int:
    """What a file of unknown size takes at first, beside the others of its set."""
    known = sum(there[p].size if p in there and not there[p].baked else 0 for p in told)
    known += sum(size for p, size in told.items() if p not in there and size is not None)
    unknown = sum(p not in there and size is None for p, size in told.items())
    return max(1, min(max(1, cap // 16), (cap - known) // unknown)) if unknown else 0


def fits(told: Mapping[Place, int | None], shelf: Shelf, gone: Collection[Place]) -> bool:
    """Whether the set would fit, under the cap and on the disk, if all of ``gone`` were."""
    step = step_of(told, shelf.entries, shelf.cap)
    entries = {p: e for p, e in shelf.entries.items() if p not in gone and not e.baked}
    reserved = {p: size for p, size in shelf.reserved.items() if p not in gone}
    for place, size in told.items():
        if place not in shelf.entries and (size is not None or place not in reserved or place in shelf.idle):
            reserved[place] = max(reserved.get(place, 0), step if size is None else size)
    disk = shelf.free + shelf.taken
    return sum(e.size for e in entries.values()) + sum(reserved.values()) <= min(shelf.cap, disk)


def expected(told: Mapping[Place, int | None], shelf: Shelf) -> type:
    """The mildest thing that helps, found by giving up all that each may give up."""
    missing = {place for place in told if place not in shelf.entries}
    if not missing:
        return Ready
    least = {p: 1 if told[p] is None and p not in shelf.idle else fresh_of(p, told, shelf) for p in missing}
    if all(shelf.reserved.get(p, 0) >= size for p, size in least.items()):
        return Fetch
    pinned = {p for p in shelf.pinned if p not in told}
    loaded = {p for p in shelf.loaded if p not in told} - pinned - set(shelf.kept)
    stuck = {p for p in shelf.kept if p not in told} - pinned
    now = {p for p in shelf.entries if p not in told} - pinned - loaded - stuck
    now |= {p for p in shelf.idle if p not in told or shelf.reserved[p] > fresh_of(p, told, shelf)}
    if fits(told, shelf, now):
        return Fetch
    if fits(told, shelf, now | loaded):
        return UnloadFirst
    flights = {p for p in shelf.reserved if p not in told or shelf.reserved[p] > fresh_of(p, told, shelf)}
    return Wait if fits(told, shelf, now | loaded | pinned | flights) else Refuse


def fresh_of(place: Place, told: Mapping[Place, int | None], shelf: Shelf) -> int:
    size = told[place]
    return step_of(told, shelf.entries, shelf.cap) if size is None else size


class World:
    """A cache that does at once what it is told, and checks what it is told against what it knows."""

    def __init__(self, true: Mapping[Place, int], *, disk: int = 10**6, baked: Collection[Place] = ()) -> None:
        self.true = true
        self.entries = OrderedDict((place, Entry(place, true[place], 0, baked=True)) for place in baked)
        self.reserved: dict[Place, int] = {}
        self.loaded: set[Place] = set()
        self.stubborn: set[Place] = set()
        self.kept: set[Place] = set()
        self.admitted: list[Job] = []
        self.queue: list[Job] = []
        self.ended: list[Job] = []
        self.disk = disk
        self.tick = 0

    @property
    def pinned(self) -> set[Place]:
        return {place for job in self.admitted for place in job.told}

    @property
    def idle(self) -> set[Place]:
        return set(self.reserved) - self.pinned

    @property
    def flights(self) -> list[Place]:
        return [place for place in self.reserved if place in self.pinned]

    @property
    def taken(self) -> int:
        return sum(e.size for e in self.entries.values() if not e.baked) + sum(self.reserved.values())

    def shelf(self, before: Iterable[Job] = ()) -> Shelf:
        ahead = list(before)
        return Shelf(
            entries=self.entries,
            counted=self.taken - sum(self.reserved.values()),
            reserved=self.reserved,
            pinned=self.pinned,
            loaded=self.loaded | self.kept,
            cap=CAP,
            free=self.disk - self.taken,
            idle=self.idle,
            kept=self.kept,
            behind=bool(ahead),
            claimed={place for job in ahead for place in job.claims},
        )

    def arrive(self, job: Job) -> None:
        self.queue.append(job)
        self.pump()

    def pump(self) -> None:
        """Ask for everybody who waits, in order, until nothing changes."""
        while any(self._asked(job) for job in list(self.queue)):
            pass

    def _asked(self, job: Job) -> bool:
        before = self.queue[: self.queue.index(job)]
        shelf = self.shelf(before)
        decided = plan(job.needs, shelf)
        self._judge(decided, job, shelf)
        match decided:
            case Ready() | Fetch():
                self.queue.remove(job)
                self.admitted.append(job)
                self._apply(decided, job.told)
                for place in job.told:
                    self._touch(place)
            case Refuse():
                self._leave(job, "refused")
            case UnloadFirst():
                job.claims |= set(decided.places)
                self.loaded -= set(decided.places)
                self.kept |= set(decided.places) & self.stubborn
            case Wait():
                job.claims |= decided.for_
                return False
        return True

    def _judge(self, decided: Plan, job: Job, shelf: Shelf) -> None:
        """A refusal exactly where nothing helps, and the mildest thing else unless somebody else comes first."""
        wanted = expected(job.told, shelf)
        if not shelf.behind or wanted is Refuse:
            assert type(decided) is wanted
        elif isinstance(decided, Ready | Fetch):
            assert not shelf.claimed & job.told.keys()
            assert isinstance(decided, Ready) or all(shelf.reserved.get(p) == n for p, n in decided.reserve.items())
        else:
            assert decided == Wait()
        if isinstance(decided, Refuse):
            step = step_of(job.told, shelf.entries, CAP)
            rest = [(p, n) for p, n in job.told.items() if p not in self.entries or not self.entries[p].baked]
            alone = sum(self.entries[p].size if p in self.entries else n or step for p, n in rest)
            assert type(decided.error) is (ModelTooLarge if alone > CAP else DiskFull)

    def _apply(self, decided: Ready | Fetch, own: Collection[Place]) -> None:
        if isinstance(decided, Ready):
            return
        before = dict(self.reserved)
        held = (self.pinned - set(decided.drop)) | self.loaded | self.kept | set(own)
        self._check_order(decided, held)
        for place in decided.evict:
            assert place not in held
            assert not self.entries.pop(place).baked
        for place in decided.drop:
            del self.reserved[place]
        grows = sum(decided.reserve.values()) > sum(before.get(p, 0) for p in decided.reserve)
        self.reserved.update(decided.reserve)
        assert all(self.reserved[n.place] >= (n.size or 1) for n in decided.download)
        if grows or decided.evict:
            assert self.taken <= min(CAP, self.disk)
            for gone in decided.evict:
                assert self.taken + self.true[gone] > min(CAP, self.disk)

    def _check_order(self, decided: Fetch, held: Collection[Place]) -> None:
        """What was used before the last victim would not have been enough, nor what nobody waits for."""
        candidates = [p for p, e in self.entries.items() if not e.baked and p not in held]
        if decided.evict and self.idle.isdisjoint(decided.reserve):
            extra = sum(n - self.reserved.get(p, 0) for p, n in decided.reserve.items())
            short = self.taken + extra - min(CAP, self.disk)
            older = candidates[: max(candidates.index(p) for p in decided.evict)]
            assert sum(self.true[p] for p in older) + sum(self.reserved[p] for p in self.idle) < short

    def land(self, place: Place) -> None:
        """All of a file has come: under its reservation, or after that has grown; else it is given up."""
        size = self.true[place]
        if size > self.reserved[place]:
            decided = plan([Need(place, size)], self.shelf())
            if not isinstance(decided, Fetch):
                self._give_up(place, size)
                return
            self._apply(decided, [place])
        del self.reserved[place]
        self.entries[place] = Entry(place, size, 0)
        self._touch(place)
        self.pump()

    def _give_up(self, place: Place, size: int) -> None:
        """Who waits for it lets go of everything and waits anew, with the size that has turned out."""
        del self.reserved[place]
        for job in [job for job in self.admitted if place in job.told]:
            self.admitted.remove(job)
            self.queue.append(dataclasses.replace(job, told={**job.told, place: size}, claims=set()))
        self.pump()

    def fail(self, place: Place, *, leaves: bool) -> None:
        if not leaves:
            del self.reserved[place]
        for job in [job for job in self.admitted if place in job.told]:
            self._leave(job, "failed")
        self.pump()

    def finish(self, job: Job) -> None:
        """It has generated: the server holds its first model now, and no longer what it held."""
        self.loaded, self.kept = {next(iter(job.told))}, set()
        self._leave(job, "done")
        self.pump()

    def _leave(self, job: Job, end: str) -> None:
        (self.admitted if job in self.admitted else self.queue).remove(job)
        job.end = end
        self.ended.append(job)

    def _touch(self, place: Place) -> None:
        self.tick += 1
        if place in self.entries:
            self.entries[place] = dataclasses.replace(self.entries[place], used=self.tick)
            self.entries.move_to_end(place)

    @property
    def complete(self) -> list[Job]:
        return [job for job in self.admitted if all(place in self.entries for place in job.told)]

    def settle(self) -> None:
        """Let everything come to its end; each round ends a transfer or a job."""
        rounds = 0
        while self.admitted:
            rounds += 1
            assert rounds < 200
            if self.complete:
                self.finish(self.complete[0])
            else:
                self.land(self.flights[0])
        assert not self.queue


class Jobs(RuleBasedStateMachine):
    """Any number of jobs over few models, of which some are larger than the cap and some came with the image."""

    @initialize(
        true=st.fixed_dictionaries(dict.fromkeys(PLACES, sizes)),
        disk=st.sampled_from([10**6, 120, 90]),
        baked=st.sets(places, max_size=1),
        stubborn=st.sets(places, max_size=1),
    )
    def begin(self, true: dict[Place, int], disk: int, baked: set[Place], stubborn: set[Place]) -> None:
        self.world = World(true, disk=disk, baked=baked)
        self.world.stubborn = stubborn

    @rule(wanted=st.dictionaries(places, st.booleans(), min_size=1, max_size=3))
    def arrive(self, wanted: dict[Place, bool]) -> None:
        self.world.arrive(Job({place: self.world.true[place] if known else None for place, known in wanted.items()}))

    @precondition(lambda self: self.world.flights)
    @rule(data=st.data())
    def land(self, data: st.DataObject) -> None:
        self.world.land(data.draw(st.sampled_from(self.world.flights)))

    @precondition(lambda self: self.world.flights)
    @rule(data=st.data(), leaves=st.booleans())
    def fail(self, data: st.DataObject, leaves: bool) -> None:
        self.world.fail(data.draw(st.sampled_from(self.world.flights)), leaves=leaves)

    @precondition(lambda self: self.world.complete)
    @rule(data=st.data())
    def finish(self, data: st.DataObject) -> None:
        self.world.finish(data.draw(st.sampled_from(self.world.complete)))

    @precondition(lambda self: self.world.queue)
    @rule(data=st.data())
    def cancel(self, data: st.DataObject) -> None:
        self.world._leave(data.draw(st.sampled_from(self.world.queue)), "cancelled")
        self.world.pump()

    @rule(place=places)
    def written_by_somebody_else(self, place: Place) -> None:
        """The server fetches a file itself, which may be too much: what may go goes at once."""
        world = self.world
        if place not in world.entries and place not in world.reserved and world.true[place] <= CAP:
            world.entries[place] = Entry(place, world.true[place], 0)
            world._touch(place)
            shelf = world.shelf()
            decided = trim(shelf)
            held = world.pinned | world.loaded | world.kept
            could = sum(e.size for p, e in world.entries.items() if p not in held and not e.baked)
            could += sum(world.reserved[p] for p in world.idle)
            over = max(0, world.taken - min(CAP, world.disk))
            freed = sum(world.entries.pop(p).size for p in decided.evict) + sum(
                world.reserved.pop(p) for p in decided.drop
            )
            assert min(over, could) <= freed
            assert held.isdisjoint(decided.evict)
            world.pump()

    @invariant()
    def sets_are_whole(self) -> None:
        """Who is let in has every file, or a transfer of it that goes on; who waits holds nothing."""
        for job in self.world.admitted:
            assert all(place in self.world.entries or place in self.world.reserved for place in job.told)
        for place in self.world.flights:
            assert any(place in job.told for job in self.world.admitted)

    def teardown(self) -> None:
        if hasattr(self, "world"):
            self.world.settle()


TestJobs = Jobs.TestCase
TestJobs.settings = settings(
    max_examples=100, stateful_step_count=25, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)


@settings(max_examples=50, deadline=None)
@given(stream=st.lists(st.sampled_from("bcd"), min_size=60, max_size=60))
def test_no_stream_of_later_jobs_keeps_one_waiting(stream: list[str]) -> None:
    """Two of three models are always in use, by jobs that came later; still the one that needs their room is served."""
    world = World(dict.fromkeys(PLACES, 30) | {PLACES[0]: 60})
    for place in PLACES[1:4]:
        world.arrive(Job({place: 30}))
        world.land(place)
    waiter = Job({PLACES[0]: 60})
    world.arrive(waiter)
    assert waiter in world.queue
    for name in stream:
        world.arrive(Job({Place("lora", name): 30}))
        oldest = world.complete[0]
        if (
            len({place for job in world.complete if job is not oldest for place in job.told}) > 1
            or waiter.claims & oldest.told.keys()
        ):
            world.finish(oldest)
        if waiter not in world.queue:
            break
    assert waiter not in world.queue

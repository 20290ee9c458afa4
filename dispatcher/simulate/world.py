"""The simulation: what happens to a fleet in virtual time, one event after another.

Nodes call for work as the worker does, are told of orders when they call or beat, vanish without a word, and empty
ones take their place. The dispatcher knows what nodes reported, when they reported it; the leases of one that vanished
end, and its jobs wait again. Requests and answers take no time: loads, transfers and rendering do.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable
from itertools import count

from dispatcher.simulate.account import Life, Measures, Spent, Tally
from dispatcher.simulate.desk import Desk
from dispatcher.simulate.load import Assumptions, Load, Loss, Speeds
from dispatcher.simulate.machine import Machine, Transfer
from dispatcher.simulate.policies import Policy
from dispatcher.words import Waiting

Event = tuple[float, int, Callable[..., None], tuple[object, ...]]


class World:
    """One run of one policy over one load. ``run`` it once."""

    def __init__(self, load: Load, policy: Policy, assumed: Assumptions) -> None:
        self._load, self._policy, self._assumed = load, policy, assumed
        self._desk = Desk(fair=policy.fair)
        self._machines: dict[str, Machine] = {}
        self._place: dict[str, str] = {}
        self._heard: dict[str, float] = {}
        self._idle: set[str] = set()
        self._catalogue = load.catalogue
        self._to_come = iter(load.submissions)
        self._events: list[Event] = []
        self._number = count()
        self._measures = Measures()

    def run(self) -> Measures:
        """Until the horizon; what is under way then stays so."""
        self._begin()
        while self._events and self._events[0][0] <= self._load.horizon:
            at, _, act, args = heapq.heappop(self._events)
            self._pass(at)
            act(*args)
        self._pass(self._load.horizon)
        return self._close()

    def _at(self, when: float, act: Callable[..., None], *args: object) -> None:
        heapq.heappush(self._events, (when, next(self._number), act, args))

    def _pass(self, now: float) -> None:
        if self._idle and len(self._desk.line):
            self._measures.backed_up += len(self._idle) * (now - self._desk.now)
        self._desk.now = now

    def _begin(self) -> None:
        load, assumed = self._load, self._assumed
        self._at(assumed.warm_up * load.horizon, self._measure)
        for loss in load.losses:
            self._at(loss.at, self._vanish, loss)
        for number, node in enumerate(load.nodes):
            self._appear(node, 0, assumed.heartbeat_s * (number + 1) / len(load.nodes))
        for _ in range(load.backlog or 1):
            self._submit_next()
        self._at(assumed.plan_s, self._plan)
        self._at(assumed.poll_s, self._poll)

    # jobs

    def _submit_next(self) -> None:
        """With a backlog the next job comes when one was taken, else at its time."""
        sent = next(self._to_come, None)
        if sent is not None:
            self._at(self._desk.now if self._load.backlog else sent.at, self._submit, sent.job)

    def _submit(self, job: Waiting) -> None:
        self._measures.lives[job.id] = Life(job.key, self._desk.now, job.work_s)
        ranked = self._desk.submit(job)
        if not self._load.backlog:
            self._submit_next()
        for node in self._policy.asked(ranked, self._desk):
            self._call(self._machines[node], new=False)
            if ranked not in self._desk.line:
                break

    def _give(self, machine: Machine, job: Waiting) -> None:
        tier = "download" if machine.missing(job) else "disk" if job.needs and job.key not in machine.loaded else "warm"
        taken = self._measures.taken
        taken[tier] = taken.get(tier, 0) + 1
        self._heard[machine.id] = self._desk.now
        self._desk.grant(job, machine.id)
        machine.take(job, self._desk.now)
        if self._load.backlog:
            self._submit_next()

    def _give_back(self, jobs: list[Waiting]) -> None:
        for job in jobs:
            self._desk.give_back(job)

    # nodes

    def _appear(self, speeds: Speeds, times: int, beat: float) -> None:
        """A node comes: the first time with its stock, later another one, with nothing, in its place."""
        now, stock = self._desk.now, () if times else self._load.stock.get(speeds.id, ())
        machine = Machine(f"{speeds.id}.{times}", speeds, stock, self._assumed.parked, now)
        self._machines[machine.id] = machine
        self._place[speeds.id] = machine.id
        self._at(now + beat, self._beat, machine)
        self._call(machine, new=True)

    def _here(self, machine: Machine) -> bool:
        return self._machines.get(machine.id) is machine

    def _call(self, machine: Machine, *, new: bool) -> None:
        """It asks for work until it has enough, or its call is held; ``new``: with a request, which brings orders."""
        desk, now = self._desk, self._desk.now
        while machine.calls:
            self._report(machine, told=new)
            job = self._policy.pick(desk.views[machine.id], desk)
            if job is None:
                desk.callers.setdefault(machine.id, now)
                break
            desk.callers.pop(machine.id, None)
            self._give(machine, job)
            self._go_on(machine)
        else:
            desk.callers.pop(machine.id, None)
        self._go_on(machine)

    def _report(self, machine: Machine, *, told: bool) -> None:
        now = self._desk.now
        self._heard[machine.id] = now
        if told:
            machine.accept(self._desk.told(machine.id))
        self._desk.see(machine.view(now, now - self._desk.callers.get(machine.id, now)))

    def _go_on(self, machine: Machine) -> None:
        """Whatever it can do now, it does."""
        now = self._desk.now
        pulling = machine.pull(now)
        if pulling is not None:
            self._at(now + pulling, self._fetched, machine, machine.transfer)
        started = machine.start(now)
        if started is not None:
            job, load_s, render_s = started
            self._measures.lives[job.id].first_step = now + load_s
            self._at(now + load_s + render_s, self._finish, machine)
        if machine.running is None and not machine.parked:
            self._idle.add(machine.id)
        else:
            self._idle.discard(machine.id)

    def _finish(self, machine: Machine) -> None:
        if self._here(machine):
            job = machine.finish(self._desk.now)
            self._measures.lives[job.id].ended = self._desk.now
            self._go_on(machine)
            self._call(machine, new=True)

    def _fetched(self, machine: Machine, transfer: Transfer) -> None:
        if self._here(machine) and machine.transfer is transfer:
            machine.arrived(self._desk.now)
            self._go_on(machine)
            self._call(machine, new=True)

    def _beat(self, machine: Machine) -> None:
        if self._here(machine):
            self._report(machine, told=True)
            self._go_on(machine)
            self._at(self._desk.now + self._assumed.heartbeat_s, self._beat, machine)

    def _vanish(self, loss: Loss) -> None:
        """Nobody is told. What it held waits again when its lease ends; its models count until its silence is noted."""
        machine = self._machines.pop(self._place[loss.node])
        machine.account(self._desk.now)
        self._take_in(machine)
        self._idle.discard(machine.id)
        self._desk.callers.pop(machine.id, None)
        jobs, heard = machine.held, self._heard[machine.id]
        self._measures.held.append(len(jobs))
        for job in jobs:
            self._measures.lives[job.id].first_step = None
        self._at(heard + self._assumed.lease_s, self._give_back, jobs)
        self._at(heard + self._assumed.node_timeout_s, self._desk.silent, machine.id)
        self._at(loss.back, self._appear, machine.speeds, int(machine.id.rpartition(".")[2]) + 1, 0.0)

    # what happens by the clock

    def _poll(self) -> None:
        """Nodes whose call is held are asked again: time alone may have changed the answer."""
        for node in list(self._desk.callers):
            if not len(self._desk.line):
                break
            if node in self._desk.callers:
                self._call(self._machines[node], new=False)
        self._at(self._desk.now + self._assumed.poll_s, self._poll)

    def _plan(self) -> None:
        views = [view for _, view in sorted(self._desk.views.items())]
        self._desk.plan(self._policy.orders(views, self._desk, self._catalogue))
        self._at(self._desk.now + self._assumed.plan_s, self._plan)

    # what is measured

    def _measure(self) -> None:
        """From now on it counts."""
        for machine in self._machines.values():
            machine.account(self._desk.now)
            machine.spent, machine.tally = Spent(), Tally()
        self._desk.most_passed = 0
        self._measures = Measures(begun=self._desk.now, lives=self._measures.lives)

    def _take_in(self, machine: Machine) -> None:
        measures, now = self._measures, self._desk.now
        measures.spent.add(machine.spent)
        measures.tally.add(machine.tally)
        measures.capacity_s += machine.speeds.render * (now - max(machine.born, measures.begun))

    def _close(self) -> Measures:
        measures = self._measures
        for machine in self._machines.values():
            machine.account(self._desk.now)
            self._take_in(machine)
        measures.over = self._desk.now
        measures.passed, measures.waiting = self._desk.most_passed, len(self._desk.line)
        return measures

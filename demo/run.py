"""The demo from its first process to its ledger."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path

from demo.beside import Costs, computed
from demo.host import ModelHost
from demo.ledger import Ledger, Witness, balanced
from demo.nodes import Node
from demo.plan import Plan, Wanted, jobs_of
from demo.service import NotServing, Service
from demo.show import Show, showing
from worker.cli.demo_parts import new_secret
from worker.cli.output import complain, print_rows
from worker.queues.base import JobState
from worker.tasks import gather_bare, run_guarded

OK, FAILED = 0, 1
PATIENCE_S = 300.0
LOOK_S = 0.1
ASKED_AT_ONCE = 8


class GoneWrong(Exception):
    """The demo cannot go on; the message says why."""


@dataclass(slots=True)
class Losses:
    """What was done to nodes. ``killed``: when, in seconds after the first job; ``held``: jobs that they then had."""

    killed: dict[str, float] = field(default_factory=dict)
    held: dict[str, int] = field(default_factory=dict)
    frozen: list[str] = field(default_factory=list)


@dataclass(slots=True)
class Fleet:
    """Everything that runs."""

    plan: Plan
    jobs: list[Wanted]
    host: ModelHost
    witness: Witness
    service: Service
    nodes: list[Node]
    show: Show
    began: float = 0.0
    took_s: float = 0.0
    losses: Losses = field(default_factory=Losses)

    async def work(self) -> None:
        """Until every job is over; the disturbances happen on the way. Raises `GoneWrong`."""
        self.began = _now()
        try:
            async with asyncio.timeout(PATIENCE_S):
                await run_guarded(
                    gather_bare([self._submit(), self._disturb(), self._follow()], name="fleet"), self._watch()
                )
        except TimeoutError:
            raise GoneWrong(
                f"{self.witness.ended} of {len(self.jobs)} jobs were over after {PATIENCE_S:.0f} s"
            ) from None
        self.took_s = _now() - self.began

    async def _submit(self) -> None:
        for at, batch in groupby(self.jobs, key=lambda job: job.at):
            await asyncio.sleep(max(0.0, self.began + at - _now()))
            await self.service.submit(list(batch))

    async def _follow(self) -> None:
        """Until all jobs are over, for the dispatcher too: a webhook comes before its job's acknowledgement."""
        while (ended := self.witness.ended) < len(self.jobs):
            self.show.done(ended, f"{sum(node.alive for node in self.nodes)} nodes, {self._loads} models loaded")
            await asyncio.sleep(LOOK_S)
        self.show.done(ended, "all jobs are over")
        ids = {job.id for job in self.jobs}
        while any(held & ids for held in (await self.service.leased()).values()):
            await asyncio.sleep(LOOK_S)

    async def _watch(self) -> None:
        """End everything when a process dies that nobody killed."""
        while True:
            if self.service.ended:
                raise GoneWrong("the dispatcher ended by itself")
            if dead := [node.name for node in self.nodes if node.ended]:
                raise GoneWrong(f"{dead[0]} ended by itself")
            await asyncio.sleep(LOOK_S)

    async def _disturb(self) -> None:
        for share, act in self.plan.disturbances:
            while self.witness.ended < share * len(self.jobs):
                await asyncio.sleep(LOOK_S)
            node, held = await self._frozen_at_work()
            if act == "kill":
                self.losses.killed[node.name] = _now() - self.began
                self.losses.held[node.name] = len(held)
                await node.kill()
                self.show.tell(f"{node.name} was killed; it held {len(held)} jobs")
            else:
                self.losses.frozen.append(node.name)
                self.show.tell(f"{node.name} was frozen; it held {len(held)} jobs")
                while await self._holds(node) & held:
                    await asyncio.sleep(LOOK_S)
                node.thaw()
                self.show.tell(f"{node.name} goes on; its leases are over")

    async def _frozen_at_work(self) -> tuple[Node, set[str]]:
        """A node that stands still with jobs in its hands, and their ids. Raises `GoneWrong` where none has any."""
        while self.witness.ended < len(self.jobs):
            leased = await self.service.leased()
            node = max((node for node in self.nodes if node.alive), key=lambda node: len(leased.get(node.name, ())))
            node.freeze()
            if held := await self._holds(node):
                return node, held
            node.thaw()
            await asyncio.sleep(LOOK_S)
        raise GoneWrong("all jobs were over before every disturbance had happened; ask for more jobs")

    async def _holds(self, node: Node) -> set[str]:
        return (await self.service.leased()).get(node.name, set())

    @property
    def _loads(self) -> int:
        return sum(node.loads for node in self.nodes)

    @property
    def spent(self) -> Costs:
        return Costs(self._loads, self.host.begun, self.host.sent)

    async def states(self) -> dict[str, JobState | None]:
        """How every job stands, as the dispatcher tells it."""
        slots = asyncio.Semaphore(ASKED_AT_ONCE)

        async def asked(job: Wanted) -> tuple[str, JobState | None]:
            async with slots:
                return job.id, await self.service.state(job.id)

        return dict(await gather_bare([asked(job) for job in self.jobs], name="state"))

    async def stop(self) -> list[str]:
        """End what still runs as a platform would; what did not end well."""
        left = [node for node in self.nodes if node.alive]
        codes = await gather_bare([node.drained() for node in left], name="drain")
        return [f"{node.name} ended with {code}" for node, code in zip(left, codes, strict=True) if code]


@dataclass(frozen=True, slots=True)
class Demo:
    """``out`` is a new folder; ``database`` a URL, None for SQLite there."""

    plan: Plan
    out: Path
    database: str | None = None

    async def run(self) -> int:
        """The exit code: 0 only when the ledger balances."""
        plan, jobs = self.plan, jobs_of(self.plan)
        print(f"{plan.jobs} jobs for {plan.models} models on {plan.workers} nodes, {self.out}", flush=True)
        try:
            with showing(len(jobs)) as show:
                async with self._fleet(jobs, show) as fleet:
                    await fleet.work()
                    wrong = await fleet.stop()
                    states = await fleet.states()
                    if code := await fleet.service.stopped():
                        wrong.append(f"the dispatcher ended with {code}")
        except (GoneWrong, NotServing) as error:
            complain(f"{error}; the logs in {self.out} say why")
            return FAILED
        ledger = balanced(jobs, states, fleet.witness.deliveries, self._store)
        ledger.problems += wrong
        self._tell_costs(fleet, jobs)
        return self._tell(ledger)

    @property
    def _store(self) -> Path:
        return self.out / "images"

    @asynccontextmanager
    async def _fleet(self, jobs: list[Wanted], show: Show) -> AsyncIterator[Fleet]:
        plan, secret = self.plan, new_secret()
        async with AsyncExitStack() as stack:
            witness = await stack.enter_async_context(Witness.listening(secret))
            host = await stack.enter_async_context(ModelHost.listening(plan.names))
            hook = {"WEBHOOK_URL": witness.url, "WEBHOOK_SECRET": secret}
            service = await stack.enter_async_context(Service.running(self.out / "dispatcher.log", self._rules(hook)))
            await service.put_models(host.catalogue)
            variables = {f"WORKER_{name}": value for name, value in hook.items()} | {
                "WORKER_QUEUE": "availability",
                "WORKER_AVAILABILITY_URL": service.url,
                "WORKER_AVAILABILITY_TOKEN": service.node_token,
                "WORKER_STORAGE": "directory",
                "WORKER_STORAGE_DIRECTORY": str(self._store),
            }
            nodes = [
                await stack.enter_async_context(Node.running(name, self.out / name, variables)) for name in plan.nodes
            ]
            show.tell(f"a dispatcher at {service.url}; {plan.workers} workers start")
            await _all_there(service, nodes)
            yield Fleet(plan, jobs, host, witness, service, nodes, show)

    def _rules(self, hook: dict[str, str]) -> dict[str, str]:
        return {f"DISPATCHER_{name}": value for name, value in hook.items()} | {
            "DISPATCHER_DATABASE_URL": self.database or f"sqlite:///{self.out / 'dispatcher.db'}",
            "DISPATCHER_LEASE": str(self.plan.lease_s),
            "DISPATCHER_NODE_TIMEOUT": str(self.plan.lease_s),
        }

    def _tell_costs(self, fleet: Fleet, jobs: list[Wanted]) -> None:
        fifo = computed("fifo", self.plan, jobs, fleet.losses.killed)
        rows = [
            ("models loaded", str(fleet.spent.loads), str(fifo.loads)),
            ("models downloaded", str(fleet.spent.downloads), str(fifo.downloads)),
            ("megabytes downloaded", f"{fleet.spent.bytes / 1e6:.0f}", f"{fifo.bytes / 1e6:.0f}"),
        ]
        print_rows(("", "here, measured", "FIFO, computed"), rows)
        again = sum(node.generations for node in fleet.nodes) - len(jobs)
        held = ", ".join(f"{node} held {count}" for node, count in fleet.losses.held.items()) or "none"
        frozen = ", ".join(fleet.losses.frozen) or "none"
        print(f"killed: {held}; frozen: {frozen}; pictures made again: {again}; {fleet.took_s:.0f} s")

    def _tell(self, ledger: Ledger) -> int:
        print_rows(("ledger", ""), ledger.rows())
        complain(*ledger.problems)
        print("the ledger balances" if ledger.balances else f"the ledger does not balance; {self.out} has all logs")
        return OK if ledger.balances else FAILED


async def _all_there(service: Service, nodes: list[Node]) -> None:
    """Wait until every node has asked for work. Raises `GoneWrong`."""
    ends = _now() + PATIENCE_S
    while {node.name for node in nodes} - await service.nodes():
        if dead := [node.name for node in nodes if node.ended]:
            raise GoneWrong(f"{dead[0]} ended by itself")
        if _now() > ends:
            raise GoneWrong("not every worker became ready")
        await asyncio.sleep(LOOK_S)


def _now() -> float:
    return asyncio.get_running_loop().time()

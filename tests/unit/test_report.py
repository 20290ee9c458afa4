"""What the node says of itself: what was seen of the server, what lies on the disk, and nothing that is only meant."""

from __future__ import annotations

import asyncio
import dataclasses
from datetime import timedelta
from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.cache import KB, content, kept, wanted
from tests.support.made import safetensors
from tests.support.virtual import virtual
from worker.engines.base import EngineState, Expectation, Output, RawImage, Reach, Work
from worker.errors import DownloadFailed
from worker.live import Hop, Live
from worker.mentions import Mention, Place
from worker.metrics import Metrics
from worker.models.base import Entry
from worker.node import Use, Vitals
from worker.rates import Speeds
from worker.report import Bill, Proof, Reporter, changed, held, in_memory, proof_of, told_by, used
from worker.result import EngineResult
from worker.wire import DiskReport, HeldModel, HeldThen, PreviousRun, Rates

CAT, DOG = Place("checkpoint", "cat.safetensors"), Place("checkpoint", "sub/dog.safetensors")
INK, SOFT, FLUX = Place("lora", "ink.safetensors"), Place("vae", "soft.safetensors"), Place("unet", "flux.safetensors")
GB = 1_000_000_000


@dataclasses.dataclass
class FakeShelf:
    """A cache with these files; ``broken``: nobody can tell what the disk has left."""

    files: tuple[Entry, ...] = ()
    broken: bool = False
    bytes: int = 4 * GB
    cap: int = 10 * GB

    @property
    def free(self) -> int:
        if self.broken:
            raise DownloadFailed("the folder cannot be read")
        return 6 * GB

    def entries(self) -> tuple[Entry, ...]:
        return self.files


def entry(place: Place, size: int = 2 * GB, sha256: str | None = None) -> Entry:
    return Entry(place, size, 0, sha256)


def work(*uses: Place, steps: int | None = 20) -> Work:
    return Work({}, "txt2img", Expectation(1, 16, 16, (1,)), steps=steps, uses=frozenset(uses))


def output(load_s: float = 0.0, generate_s: float = 2.0, model: str | None = None, digest: str | None = None) -> Output:
    engine = EngineResult(name="fake", model=model, model_hash=digest)
    return Output((RawImage(b""),), engine, load_s, generate_s)


def reporter(shelf: FakeShelf | None = None) -> Reporter:
    return Reporter(Live(), Metrics(), shelf=lambda: shelf, vram_gb=24.0)


def vram(one: Reporter) -> set[Place]:
    return {Place(model.kind, model.name) for model in one.report().models if model.tier == "vram"}


def holds(*places: Place) -> EngineState:
    return EngineState(Reach.READY, "sdnext", holds=frozenset(places))


def test_a_new_worker_knows_nothing_of_the_server() -> None:
    """No verified generation, and a server that does not tell: nothing is in memory, however likely it is."""
    one = reporter(FakeShelf((entry(CAT),)))
    one.looked(EngineState(Reach.READY, "comfyui"))
    found = one.report()
    assert found.models == (HeldModel(kind="checkpoint", name=CAT.name, size=2 * GB),)
    assert found.disk == DiskReport(used=4 * GB, cap=10 * GB, free=6 * GB)
    assert (found.rates, found.vram_gb, dict(found.jobs)) == (Rates(), 24.0, {})


def test_a_verified_generation_shows_what_is_in_memory() -> None:
    """Checkpoint, LoRAs and VAE of it, until another one is verified."""
    one = reporter(FakeShelf((entry(CAT), entry(DOG), entry(INK))))
    one.verified(work(CAT, INK), output())
    assert vram(one) == {CAT, INK}
    one.verified(work(DOG), output())
    assert vram(one) == {DOG}


def test_without_a_folder_only_the_memory_is_known() -> None:
    """Files of the server's own have no size that we know, and there is no disk to tell of."""
    one = reporter()
    one.verified(work(CAT), output())
    found = one.report()
    assert found.models == (HeldModel(kind="checkpoint", name=CAT.name, tier="vram"),)
    assert found.disk is None


def test_the_servers_own_word_counts_from_when_it_is_given() -> None:
    """The later of word and proof; what a proof shows beside its checkpoint goes and stays with that."""
    one = reporter(FakeShelf((entry(CAT), entry(DOG), entry(INK))))
    one.looked(holds(CAT))
    assert vram(one) == {CAT}
    one.verified(work(DOG, INK), output())
    assert vram(one) == {DOG, INK}
    one.looked(holds(DOG))
    assert vram(one) == {DOG, INK}
    one.looked(holds(CAT))
    assert vram(one) == {CAT}
    one.looked(holds())
    assert vram(one) == set()


def test_a_look_that_tells_nothing_takes_nothing_back() -> None:
    """Most servers are looked at every few seconds and never say what they hold."""
    one = reporter()
    one.verified(work(CAT), output())
    one.looked(EngineState(Reach.READY, "comfyui"))
    assert vram(one) == {CAT}


def test_a_server_that_went_away_holds_nothing() -> None:
    """Another process has another memory; what the last one proved is no proof of this one."""
    one = reporter()
    one.verified(work(CAT), output())
    one.looked(EngineState(Reach.PORT_CLOSED))
    assert vram(one) == set()
    one.looked(EngineState(Reach.READY, "comfyui"))
    assert vram(one) == set()


def test_while_the_server_is_recovered_nobody_knows_what_it_holds() -> None:
    """The files on disk are there all the same."""
    fit = [True]
    one = Reporter(Live(), Metrics(), shelf=lambda: FakeShelf((entry(CAT),)), fit=lambda: fit[0])
    one.verified(work(CAT), output())
    assert [model.tier for model in one.report().models] == ["vram"]
    fit[0] = False
    assert [model.tier for model in one.report().models] == ["disk"]


def test_a_job_without_a_checkpoint_shows_the_one_that_its_answer_tells() -> None:
    """By the hash where there is one, else by the name; where two could be meant, none is."""
    files = (entry(CAT, sha256="ab" * 32), entry(DOG, sha256="cd" * 32), entry(INK, sha256="ab" * 32))
    assert told_by(output(digest="ab" * 5, model="whatever").engine, files) == {CAT}
    assert told_by(output(model="dog").engine, files) == {DOG}
    assert told_by(output(model="sub/dog.safetensors").engine, files) == {DOG}
    assert told_by(output(model="ink").engine, files) == frozenset()
    assert told_by(output().engine, files) == frozenset()
    other = entry(Place("checkpoint", "dog.safetensors"))
    assert told_by(output(model="dog").engine, (*files, other)) == frozenset()
    one = reporter(FakeShelf(files))
    one.verified(work(INK), output(model="dog"))
    assert vram(one) == {DOG, INK}


def test_loading_is_timed_where_another_checkpoint_had_to_come() -> None:
    """Not the first generation, whose model may have been there, nor one more of the same, nor one of unknown ones."""
    one = reporter()
    one.verified(work(CAT), output(load_s=99.0))
    one.verified(work(CAT, INK), output(load_s=0.3))
    one.verified(work(INK), output(load_s=50.0))
    one.verified(work(CAT), output(load_s=60.0))
    assert one.report().rates.load is None
    one.verified(work(DOG), output(load_s=8.0))
    assert one.report().rates.load == 8.0


def test_a_first_load_tells_how_fast_files_are_read() -> None:
    """Later ones may come from the server's RAM, and those of a new process come from the disk again."""
    one = reporter(FakeShelf((entry(CAT, 2 * GB), entry(DOG, 4 * GB))))
    one.verified(work(CAT), output(load_s=1.0))
    one.verified(work(DOG), output(load_s=8.0))
    assert one.report().rates == Rates(disk=0.5 * GB, load=8.0, step=0.1)
    one.verified(work(CAT), output(load_s=0.1))
    assert one.report().rates.disk == 0.5 * GB
    one.verified(work(FLUX), output(load_s=0.1))
    assert one.report().rates.disk == 0.5 * GB, "of a file of the server's own nobody knows the size"


def test_a_generation_that_may_have_loaded_tells_nothing_of_a_step() -> None:
    """Where its first step was not seen, and the checkpoint is not known to have been there before."""
    one = reporter()
    for place in (CAT, DOG, CAT):
        one.verified(work(place), output(load_s=0.0, generate_s=30.0))
    assert one.report().rates == Rates()
    one.verified(work(CAT), output(load_s=0.0, generate_s=3.0))
    assert one.report().rates == Rates(step=0.15)


def test_the_warm_up_is_no_typical_generation() -> None:
    """It shows what is loaded, and nothing of the time that a step of a job takes."""
    one = reporter()
    one.verified(work(CAT, steps=4), output(generate_s=0.4), typical=False)
    assert vram(one) == {CAT}
    assert one.report().rates.step is None


def test_a_disk_that_cannot_be_read_is_left_out() -> None:
    """A report raises nothing."""
    assert reporter(FakeShelf(broken=True)).report().disk is None


@virtual
async def test_jobs_are_told_with_hop_and_progress() -> None:
    """And what came of earlier ones, in numbers."""
    live, metrics = Live(), Metrics()
    one = Reporter(live, metrics)
    for status, code in (("succeeded", None), ("succeeded", None), ("failed", "invalid_job"), ("returned", "internal")):
        metrics.settled(status, code)
    metrics.busy(12.34)
    with live.holding("a") as first, live.holding("b"):
        first.enter(Hop.GENERATE)
        first.report(0.25, None)
        found = one.report()
    assert dict(found.jobs) == {"a": (0.25, "generate"), "b": (None, "received")}
    assert dict(found.stats) == {"done": 2, "failed": 1, "busy_s": 12.3}


@virtual
async def test_the_machine_the_money_and_the_run_before_are_told() -> None:
    """What a scheduler needs to tell a node that vanished from a job that kills nodes."""
    metrics, vitals = Metrics(), Vitals()
    one = Reporter(Live(), metrics, vitals=vitals, bill=lambda: Bill(3.6, 10.0, metrics.busy_s, 4))
    assert dict(one.report().stats) == {
        "done": 0,
        "failed": 0,
        "busy_s": 0.0,
        "paid_s": 10.0,
        "cost": 0.01,
        "cost_per_image": 0.0025,
    }
    vitals.memory, vitals.vram = Use(1, 2), Use(3, 4)
    vitals.previous = PreviousRun(ended="killed", run="r", jobs=(HeldThen(id="a", token=1),))
    found = one.report().stats
    assert (found["memory"], found["vram"]) == ({"used": 1, "total": 2}, {"used": 3, "total": 4})
    assert PreviousRun.model_validate(found["previous"]) == vitals.previous
    assert "cost" not in Reporter(Live(), metrics).report().stats


def mention(place: Place, *path: str | int) -> Mention:
    return Mention(place.kind, place.name, path)


def test_what_a_job_only_lists_is_not_used() -> None:
    """Unless the request that the server gets names it, as a graph names the files of a model in several parts."""
    mentions = (mention(CAT, "checkpoint"), mention(INK, "models", 0, "name"), mention(SOFT, "models", 1, "name"))
    places = (CAT, INK, SOFT)
    assert used({"prompt": "ink"}, mentions, places) == {CAT}
    graph = {"3": {"inputs": {"vae_name": "soft.safetensors", "image": "x" * 5000, "links": [["1", 0]]}}}
    assert used(graph, mentions, places) == {CAT, SOFT}
    deep = (mention(DOG, "models", 0, "name"),)
    assert used({"name": "sub\\dog.safetensors"}, deep, (DOG,)) == {DOG}, "as Windows writes it"


def test_a_renamed_file_is_known_by_the_name_that_it_got() -> None:
    """Another model of that name was here already: the place counts, not the mention."""
    stored = Place("lora", "ink~12345678.safetensors")
    assert used({}, (mention(INK, "params", "loras", 0, "name"),), (stored,)) == {stored}


places = st.frozensets(st.sampled_from((CAT, DOG, INK, SOFT, FLUX)))


@given(st.none() | places, st.none() | places, st.booleans())
@settings(max_examples=200, deadline=None)
def test_memory_holds_only_what_was_shown(
    told: frozenset[Place] | None, proven: frozenset[Place] | None, is_newer: bool
) -> None:
    """Never a file that neither the server told nor a verified generation used; a later word on checkpoints rules."""
    proof = None if proven is None else Proof(proven)
    found = in_memory(told, proof, is_newer=is_newer)
    assert found <= (told or frozenset()) | (proven or frozenset())
    if told is not None and is_newer:
        assert Proof(found).main == Proof(told).main
    if proof is not None and not is_newer:
        assert found >= proof.uses


@given(places, places)
@settings(max_examples=100, deadline=None)
def test_every_file_is_told_once(on_disk: frozenset[Place], memory: frozenset[Place]) -> None:
    """With its tier: in memory, whether it lies on our disk or not, else on disk."""
    found = held([entry(place) for place in on_disk], memory)
    assert len(found) == len(on_disk | memory)
    assert {Place(one.kind, one.name): one.tier for one in found} == {
        place: "vram" if place in memory else "disk" for place in on_disk | memory
    }


def test_more_of_the_same_is_no_other_checkpoint() -> None:
    """A LoRA more is no load; a second checkpoint (a refiner) is one."""
    assert not changed(Proof(frozenset({CAT})), Proof(frozenset({CAT, INK})))
    assert not changed(Proof(frozenset({CAT, DOG})), Proof(frozenset({CAT})))
    assert changed(Proof(frozenset({CAT})), Proof(frozenset({CAT, DOG})))
    assert proof_of(work(CAT), output(model="dog"), [entry(DOG)]) == Proof(frozenset({CAT}))


@virtual
async def test_a_download_tells_how_fast_the_network_is(tmp_path: Path) -> None:
    """The cache measures each transfer that brings enough, and each file that it has to read for its hash."""
    size = 300 * KB
    async with kept(tmp_path / "m", cap=1000 * KB) as cache:
        cache.hub.has("a", content("a", size)).seconds = 0.1
        await cache.cache.fetch(wanted("a.safetensors", at="a"))
        network = cache.carrier.measured.network
        assert network is not None
        assert abs(network - KB / 0.1) < KB
        assert cache.carrier.measured.disk is None


async def test_a_file_that_is_hashed_tells_how_fast_the_disk_is(tmp_path: Path) -> None:
    """What lay there before us has to be read to be known."""
    async with kept(tmp_path / "m", cap=10 * 1000 * KB) as cache:
        path = cache.path("a.safetensors")
        path.parent.mkdir(exist_ok=True)
        await asyncio.to_thread(path.write_bytes, safetensors(content("a", 600 * KB)))
        await cache.cache.tidy(older_than=timedelta(0))
        assert await cache.carrier.hash(Place("lora", "a.safetensors")) is not None
        assert [one.sha256 is not None for one in cache.cache.entries()] == [True]
        assert (cache.carrier.measured.disk or 0) > 0
        await cache.carrier.hash(Place("lora", "a.safetensors"))
        assert cache.carrier.measured == dataclasses.replace(Speeds(), disk=cache.carrier.measured.disk)

"""Which file a wanted model comes to: what is there is used, what is not is fetched and stored apart."""

from __future__ import annotations

from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from tests.support.cache import HOST, KB, Kept, content, kept, sha256, wanted
from tests.support.made import safetensors
from tests.support.virtual import virtual
from worker.errors import DownloadFailed, InvalidJob, ModelNotFound, Owner
from worker.mentions import Place
from worker.models.base import Wanted

DOG, CAT = content("dog", KB), content("cat", KB)


async def provided(cache: Kept, *wants: Wanted) -> list[str]:
    """The names that these come to."""
    async with cache.cache.provided(wants) as found:
        assert {place for place in found.places if place in cache.disk.entries} <= set(cache.carrier.books.pinned)
        return [place.name for place in found.places]


def dropped(cache: Kept, name: str, data: bytes) -> None:
    """A file that somebody else wrote into the server's folder."""
    path = cache.path(name)
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(data)


@virtual
async def test_a_missing_model_is_fetched_once(tmp_path: Path) -> None:
    """The first use fetches, the second finds it; the version tells that a file came, and both are counted.

    A file that a job mentions twice is counted once.
    """
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        before = cache.cache.version
        assert await provided(cache, wanted("a.safetensors", at="a")) == ["a.safetensors"]
        assert cache.cache.version > before
        after = cache.cache.version
        twice = [wanted("a.safetensors", at="a")] * 2
        assert await provided(cache, *twice) == ["a.safetensors"] * 2
        assert cache.cache.version == after
        assert cache.path("a.safetensors").read_bytes() == DOG
        assert cache.hub.fetches.total() == 1
        assert (cache.tally.hits, cache.tally.misses, cache.tally.downloaded) == (1, 1, KB)
        assert cache.idle


@virtual
async def test_each_use_counts_as_one(tmp_path: Path) -> None:
    """What is used last is evicted last, whether it was fetched then or long before."""
    async with kept(tmp_path / "m") as cache:
        for name in "abc":
            cache.hub.has(name, content(name, KB))
            await provided(cache, wanted(f"{name}.safetensors", at=name))
        await provided(cache, wanted("a.safetensors"))
        assert cache.names == ["b.safetensors", "c.safetensors", "a.safetensors"]


@virtual
async def test_another_model_of_the_same_name_is_stored_apart(tmp_path: Path) -> None:
    """A file of that name with another identity is never used, and both stay for those who mean them."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("dogs/a", DOG)
        cache.hub.has("cats/a", CAT)
        dog, cat = wanted("a.safetensors", at="dogs/a"), wanted("a.safetensors", at="cats/a")
        first, second = await provided(cache, dog), await provided(cache, cat)
        assert first == ["a.safetensors"]
        assert second[0].startswith("a~")
        assert second[0].endswith(".safetensors")
        assert cache.path(second[0]).read_bytes() == CAT
        assert await provided(cache, cat, dog) == [*second, *first]
        assert cache.hub.fetches.total() == 2


@virtual
async def test_two_models_of_one_name_in_one_job(tmp_path: Path) -> None:
    """A set may hold different files of the same name, and the same file twice."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("dogs/a", DOG)
        cache.hub.has("cats/a", CAT)
        dog, cat = wanted("a.safetensors", at="dogs/a"), wanted("a.safetensors", at="cats/a")
        names = await provided(cache, dog, cat, dog)
        assert names[0] == names[2] != names[1]
        assert [cache.path(name).read_bytes() for name in names] == [DOG, CAT, DOG]
        assert cache.hub.fetches.total() == 2


@virtual
async def test_same_bytes_under_another_url_are_not_fetched(tmp_path: Path) -> None:
    """When the source tells the hash of a file that is there, that one is used, and known by the URL from then on."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        cache.hub.has("mirror", DOG, tells=frozenset({"sha256"}))
        await provided(cache, wanted("a.safetensors", at="a"))
        assert await provided(cache, wanted("b.safetensors", at="mirror")) == ["a.safetensors"]
        assert cache.hub.asked[HOST + "mirror"] == 1
        assert await provided(cache, wanted("b.safetensors", at="mirror")) == ["a.safetensors"]
        assert cache.hub.asked[HOST + "mirror"] == 1
        assert cache.hub.fetches.total() == 1


@virtual
async def test_same_bytes_are_stored_once(tmp_path: Path) -> None:
    """When only the bytes themselves tell, what came is dropped for the file that is there, which learns the URL."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        cache.hub.has("mirror", DOG)
        await provided(cache, wanted("a.safetensors", at="a"))
        assert await provided(cache, wanted("b.safetensors", at="mirror")) == ["a.safetensors"]
        assert await provided(cache, wanted("c.safetensors", at="mirror")) == ["a.safetensors"]
        assert cache.hub.fetches.total() == 2
        assert cache.names == ["a.safetensors"]
        assert cache.cache.bytes == cache.written() == KB


@virtual
async def test_a_name_alone_finds_the_same_bytes_again(tmp_path: Path) -> None:
    """A model of the operator's source that is there under another name is fetched once, not at each use."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        cache.hub.has("https://operator.example/lora/b.safetensors", DOG, owner=Owner.OPERATOR)
        await provided(cache, wanted("a.safetensors", at="a"))
        for _ in range(2):
            assert await provided(cache, wanted("b.safetensors")) == ["a.safetensors"]
        assert cache.hub.fetches.total() == 2


@virtual
async def test_a_job_cannot_teach_a_url(tmp_path: Path) -> None:
    """What a job says that its URL gives is believed of no other job: the next one by that URL gets what is there."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        cache.hub.has("popular", CAT)
        await provided(cache, wanted("a.safetensors", at="a"))
        assert await provided(cache, wanted("b.safetensors", at="popular", sha256=sha256(DOG))) == ["a.safetensors"]
        assert await provided(cache, wanted("b.safetensors", at="popular")) == ["b.safetensors"]
        assert cache.path("b.safetensors").read_bytes() == CAT


@virtual
async def test_the_operator_teaches_a_url(tmp_path: Path) -> None:
    """What a manifest or order says of a URL holds."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        await provided(cache, wanted("a.safetensors", at="a"))
        await provided(cache, wanted("b.safetensors", at="mirror", sha256=sha256(DOG), owner=Owner.OPERATOR))
        assert await provided(cache, wanted("b.safetensors", at="mirror")) == ["a.safetensors"]
        assert cache.hub.fetches.total() == 1


@virtual
async def test_a_job_cannot_teach_a_url_of_the_operators(tmp_path: Path) -> None:
    """Of a URL whose file the operator told no digest of, a job's digest is a claim that no other job need believe."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        cache.hub.has("listed", CAT, owner=Owner.OPERATOR)
        await provided(cache, wanted("a.safetensors", at="a"))
        named = wanted("b.safetensors", at="listed", owner=Owner.OPERATOR)
        assert await provided(cache, replace(named, sha256=sha256(DOG), claimed=True)) == ["a.safetensors"]
        assert await provided(cache, named) == ["b.safetensors"]
        assert cache.path("b.safetensors").read_bytes() == CAT
        assert await provided(cache, replace(named, sha256=sha256(CAT), claimed=True)) == ["b.safetensors"]
        assert cache.hub.fetches.total() == 2


@virtual
async def test_a_file_is_hashed_when_it_matters(tmp_path: Path) -> None:
    """A file that the server fetched itself is used for a hash that it has, and stands in nobody's way otherwise."""
    data = safetensors()
    async with kept(tmp_path / "m") as cache:
        dropped(cache, "a.safetensors", data)
        await cache.cache.tidy(timedelta(0))
        assert await provided(cache, wanted("a.safetensors", sha256=sha256(data))) == ["a.safetensors"]
        assert cache.disk.entries[Place("lora", "a.safetensors")].sha256 == sha256(data)
        cache.hub.has("other", DOG)
        other = await provided(cache, wanted("a.safetensors", at="other", sha256=sha256(DOG)))
        assert other != ["a.safetensors"]
        assert cache.hub.fetches.total() == 1


@virtual
async def test_a_file_of_unknown_origin_may_be_the_one(tmp_path: Path) -> None:
    """A job's URL gives the very bytes of a file that nobody knows the origin of: stored once, known from then on."""
    data = safetensors(bytes(KB))
    async with kept(tmp_path / "m") as cache:
        dropped(cache, "a.safetensors", data)
        await cache.cache.tidy(timedelta(0))
        cache.hub.has("a", data)
        for _ in range(2):
            assert await provided(cache, wanted("a.safetensors", at="a")) == ["a.safetensors"]
        assert cache.names == ["a.safetensors"]
        assert cache.hub.fetches.total() == 1


@virtual
async def test_a_file_that_has_gone_is_fetched(tmp_path: Path) -> None:
    """One that somebody deleted behind our back is noticed when it is to be hashed."""
    async with kept(tmp_path / "m") as cache:
        dropped(cache, "a.safetensors", safetensors())
        await cache.cache.tidy(timedelta(0))
        cache.path("a.safetensors").unlink()
        cache.hub.has("a", DOG)
        assert await provided(cache, wanted("a.safetensors", at="a", sha256=sha256(DOG))) == ["a.safetensors"]
        assert cache.path("a.safetensors").read_bytes() == DOG


@virtual
async def test_an_unreadable_file_ends_the_job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that is there and cannot be hashed is told of, once."""

    async def unreadable(_: Path) -> None:
        return None

    monkeypatch.setattr("worker.models.carrier.sha256_of", unreadable)
    async with kept(tmp_path / "m") as cache:
        dropped(cache, "a.safetensors", safetensors())
        await cache.cache.tidy(timedelta(0))
        with pytest.raises(DownloadFailed, match=r"lora/a\.safetensors cannot be read"):
            await provided(cache, wanted("a.safetensors", sha256="0" * 64))
        assert cache.idle


@virtual
async def test_what_the_server_has_elsewhere_is_taken_as_it_is(tmp_path: Path) -> None:
    """A name that the server lists from another folder needs no file of ours; a URL does, under a name of its own."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        assert await provided(cache, wanted("a.safetensors", known=True)) == ["a.safetensors"]
        assert cache.names == []
        entry = await cache.cache.fetch(wanted("a.safetensors", known=True))
        assert (entry.size, entry.baked) == (0, True)
        apart = await provided(cache, wanted("a.safetensors", known=True, at="a"))
        assert apart != ["a.safetensors"]
        assert cache.names == apart


@virtual
async def test_a_cut_off_file_is_not_served_though_the_server_lists_it(tmp_path: Path) -> None:
    """It is fetched anew under its own name, or not found."""
    (tmp_path / "m" / "loras").mkdir(parents=True)
    for name in "ab":
        (tmp_path / "m" / "loras" / f"{name}.safetensors").write_bytes(DOG[:-1])
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("https://operator.example/lora/a.safetensors", DOG)
        assert await provided(cache, wanted("a.safetensors", known=True)) == ["a.safetensors"]
        assert cache.path("a.safetensors").read_bytes() == DOG
        with pytest.raises(ModelNotFound):
            await provided(cache, wanted("b.safetensors", known=True))


@virtual
async def test_a_url_without_a_name_gets_one(tmp_path: Path) -> None:
    """The source tells how the file is called, and how one ends whose name was given without an ending."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("1", DOG, name="dog.safetensors", tells=frozenset({"name"}))
        cache.hub.has("2", CAT, name="Cat v2.safetensors", tells=frozenset({"name"}))
        assert await provided(cache, wanted("", at="1"), wanted("cat", at="2")) == [
            "dog.safetensors",
            "cat.safetensors",
        ]


@virtual
async def test_a_short_name_finds_the_file(tmp_path: Path) -> None:
    """As servers do, a name without folder or ending is enough where it fits one file alone."""
    async with kept(tmp_path / "m") as cache:
        for at in ("x/dog.safetensors", "cat.safetensors", "y/cat.safetensors"):
            cache.hub.has(at, content(at, KB))
            await provided(cache, wanted(at, at=at))
        assert await provided(cache, wanted("dog"), wanted("dog.safetensors")) == ["x/dog.safetensors"] * 2
        with pytest.raises(ModelNotFound):
            await provided(cache, wanted("cat"))


@virtual
async def test_names_that_the_server_would_not_find_are_refused(tmp_path: Path) -> None:
    """Before a byte is fetched: a kind without a folder, a wrong ending, a name that leads out, a URL that is none."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG, name="a.zip", tells=frozenset({"name"}))
        for want, words in (
            (wanted("a.zip", at="a"), "such files end with one of"),
            (wanted("../a.safetensors", at="a"), "is no name of a file"),
            (wanted("a.safetensors", kind="configs", at="a"), "has no folder for models"),
            (wanted("a.safetensors", url="https://civitai.com/models/1"), "names a model at Civitai but no version"),
        ):
            with pytest.raises(InvalidJob, match=words):
                await provided(cache, want)
        assert cache.hub.fetches.total() == 0
        assert cache.idle


@virtual
async def test_no_source_has_it(tmp_path: Path) -> None:
    """What no source has is not found, and leaves nothing behind."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        with pytest.raises(ModelNotFound):
            await provided(cache, wanted("a.safetensors", at="a"), wanted("b.safetensors"))
        assert cache.hub.fetches.total() == 0
        assert cache.idle


@virtual
async def test_a_kind_has_one_name(tmp_path: Path) -> None:
    """A folder's name and the kind that it is for are the same; a refiner is a checkpoint."""
    async with kept(tmp_path / "m") as cache:
        cache.hub.has("a", DOG)
        await provided(cache, wanted("a.safetensors", kind="refiner", at="a"))
        async with cache.cache.provided([wanted("a.safetensors", kind="checkpoints", at="a")]) as found:
            assert found.places == (Place("checkpoint", "a.safetensors"),)
        assert cache.hub.fetches.total() == 1

"""Finding out which server answers."""

from __future__ import annotations

from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from tests.support.fakes import FakeEngine
from tests.support.serving import serving
from worker.engines.auto import PROBES, AutoEngine, kind_of
from worker.engines.base import Engine, Files, NativeCall, Reach
from worker.errors import AuthFailed, EngineCrashed
from worker.job import Limits, parse
from worker.mentions import Place
from worker.settings.groups import EngineKind, EngineSettings


@pytest.mark.parametrize(
    ("path", "body", "kind"),
    [
        ("/system_stats", {"system": {"comfyui_version": "0.3.64"}, "devices": []}, "comfyui"),
        ("/system_stats", {"system": {"os": "posix"}, "devices": [{"type": "cpu"}]}, "comfyui"),
        ("/system_stats", {"status": "ok"}, None),
        ("/v1/engines/all-models", {"model_filenames": [], "lora_filenames": []}, "fooocus"),
        ("/v1/engines/all-models", {"detail": "Not Found"}, None),
        ("/sdapi/v1/samplers", [{"name": "Euler"}], "a1111"),
        ("/sdapi/v1/samplers", {"detail": "Not Found"}, None),
        ("/sdapi/v1/samplers", None, None),
        ("/", [], None),
    ],
)
def test_each_family_has_an_answer_of_its_own(path: str, body: Any, kind: EngineKind | None) -> None:
    """One that only happens to answer there is none."""
    assert kind_of(path, body) == kind


BODIES: dict[str, dict[str, Any]] = {
    "comfyui": {PROBES[0]: {"system": {"comfyui_version": "0.3.64"}, "devices": []}},
    "fooocus": {PROBES[1]: {"model_filenames": ["a.safetensors"], "lora_filenames": []}},
    "a1111": {PROBES[2]: [{"name": "Euler"}]},
}


def application(kind: str, status: int = 200) -> Starlette:
    """A server that answers one family's probe, with 404 beside it."""

    async def answer(request: Request) -> JSONResponse:
        return JSONResponse(BODIES[kind][request.url.path], status_code=status)

    return Starlette(routes=[Route(path, answer) for path in BODIES[kind]])


class Opened:
    """What the search opened."""

    def __init__(self) -> None:
        self.kinds: list[tuple[EngineKind, str]] = []
        self.driver = FakeEngine()

    def __call__(self, kind: EngineKind, settings: EngineSettings) -> Engine:
        self.kinds.append((kind, settings.address))
        return self.driver


HELD = Place("checkpoint", "x.pt")
NAMED = parse({"params": {"prompt": "x"}, "checkpoint": "x.pt"}, fallback_id="job-1", limits=Limits())
JOB = parse({"params": {"prompt": "x"}}, fallback_id="job-1", limits=Limits())


@pytest.mark.parametrize("kind", BODIES)
async def test_what_answers_is_driven_from_then_on(kind: EngineKind) -> None:
    """A look finds it; everything goes to its driver, which is opened once."""
    opened = Opened()
    async with serving(application(kind), "::1") as server:
        engine = AutoEngine(EngineSettings(url=server.url()), opened)
        assert engine.name == "auto"
        assert (await engine.look()).reach is Reach.READY
        assert (await engine.look()).reach is Reach.READY
        assert opened.kinds == [(kind, server.url())]
        assert engine.name == "fake"
        await engine.prepare()
        output = await engine.generate(await engine.admit(JOB), Files(), lambda report: None)
        await engine.free(everything=True)
        await engine.relay(NativeCall("GET", "/x"))
        opened.driver.files.add(HELD)
        opened.driver.held.add(HELD)
        assert [m.known for m in await engine.mentions(NAMED)] == ["x.pt"]
        assert await engine.loaded() == {HELD}
        await engine.unload([HELD])
        assert await engine.loaded() == frozenset()
        await engine.aclose()
    assert len(output.images) == 1
    assert opened.driver.unloaded == [frozenset({HELD})]
    assert (opened.driver.prepared, opened.driver.freed) == (1, 1)
    assert [call.path for call in opened.driver.relayed] == ["/x"]


async def test_a_server_that_is_no_known_one_is_waited_for() -> None:
    """It may be starting: its routes are not there yet."""
    opened = Opened()
    async with serving(Starlette(), "::1") as server:
        engine = AutoEngine(EngineSettings(url=server.url()), opened)
        state = await engine.look()
        assert (state.reach, opened.kinds) == (Reach.ROUTES_MISSING, [])
        assert server.url() in state.detail
        with pytest.raises(EngineCrashed):
            await engine.prepare()
        with pytest.raises(EngineCrashed):
            await engine.admit(JOB)
        with pytest.raises(EngineCrashed):
            await engine.mentions(JOB)
        assert await engine.loaded() == frozenset()
        await engine.aclose()
    assert (await engine.look()).reach is Reach.PORT_CLOSED


async def test_refused_credentials_are_told() -> None:
    """A server that knows us not is the operator's to configure."""
    async with serving(application("a1111", 401), "::1") as server:
        engine = AutoEngine(EngineSettings(url=server.url()), Opened())
        with pytest.raises(AuthFailed):
            await engine.look()


async def test_without_a_url_every_servers_own_port_is_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    """The one that answers is found wherever it listens by default."""
    opened = Opened()
    async with serving(application("comfyui"), "::1") as server:
        monkeypatch.setattr("worker.settings.groups.PORTS", {"a1111": 1, "sdnext": 1, "comfyui": server.port})
        engine = AutoEngine(EngineSettings(), opened)
        assert (await engine.look()).reach is Reach.READY
        assert opened.kinds == [("comfyui", server.url())]

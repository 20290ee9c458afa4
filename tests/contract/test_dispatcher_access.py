"""Who may do what at the dispatcher: users, nodes with a shared token, nodes that the platform vouches for."""

from __future__ import annotations

import base64
import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import timedelta
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from jwt.algorithms import ECAlgorithm

from dispatcher.auth import KeysUnavailable
from dispatcher.identity import keys_of
from tests.support.clock import FakeClock
from tests.support.dispatching import AS_NODE, AS_USER, MODEL, NODE, USER, Talk, a_job, a_node, dispatching
from tests.support.receiver import Answer, ScriptedServer

GROUP, ORGANIZATION = "group-1", "organization-1"


def basic(password: str) -> dict[str, str]:
    return {"authorization": "Basic " + base64.b64encode(f"me:{password}".encode()).decode()}


@pytest.fixture(name="talk")
async def open_talk(tmp_path: Path) -> AsyncIterator[Talk]:
    async with dispatching(tmp_path) as talk:
        yield talk


class Platform(ScriptedServer):
    """Publishes the keys of one issuer, and signs tokens with them."""

    def __init__(self) -> None:
        super().__init__()
        self.clock = FakeClock()
        self.keys: dict[str, ec.EllipticCurvePrivateKey] = {}
        self.renew("k1")

    def renew(self, name: str) -> None:
        """Publish a new key beside the others."""
        self.keys[name] = ec.generate_private_key(ec.SECP256R1())
        public = [
            {**ECAlgorithm.to_jwk(key.public_key(), as_dict=True), "kid": kid, "alg": "ES256", "use": "sig"}
            for kid, key in self.keys.items()
        ]
        self.otherwise = Answer(body=json.dumps({"keys": public}).encode())

    def token(self, *, key: str = "k1", lasts: timedelta = timedelta(minutes=5), **claims: Any) -> dict[str, str]:
        """The header with a token for a node of the group."""
        now = self.clock.now()
        whole = {
            "sub": "machine-1",
            "aud": ORGANIZATION,
            "salad_workload_id": GROUP,
            "iat": int(now.timestamp()),
            "exp": int((now + lasts).timestamp()),
            **claims,
        }
        whole = {name: value for name, value in whole.items() if value is not None}
        return {"authorization": "Bearer " + jwt.encode(whole, self.keys[key], "ES256", headers={"kid": key})}


@asynccontextmanager
async def vouched(folder: Path) -> AsyncIterator[tuple[Talk, Platform]]:
    async with (
        Platform() as platform,
        dispatching(
            folder,
            clock=platform.clock,
            keys=platform.url("/jwks.json"),
            SALAD_ORGANIZATION_ID=ORGANIZATION,
            SALAD_CONTAINER_GROUP_IDS=f"{GROUP} group-2",
        ) as talk,
    ):
        yield talk, platform


async def test_users_present_their_token_in_any_usual_way(talk: Talk) -> None:
    """Bearer, a header of its own, or the password of HTTP Basic, as a browser has it."""
    talk.client.headers.clear()
    for headers in (AS_USER, {"x-api-key": USER}, basic(USER)):
        assert (await talk.client.get("/fleet", headers=dict(headers))).status_code == 200


async def test_nothing_is_read_without_a_token(talk: Talk) -> None:
    """401 with a challenge that browsers understand, whatever is asked for and presented."""
    talk.client.headers.clear()
    wrong: tuple[dict[str, str], ...] = (
        {},
        {"x-api-key": "no"},
        {"authorization": "Basic !"},
        {"authorization": "Odd x"},
    )
    for path in ("/fleet", "/jobs", "/models", "/metrics", "/", "/docs", "/openapi.json", "/jobs/j1"):
        for headers in wrong:
            answer = await talk.client.get(path, headers=headers)
            assert (answer.status_code, answer.json()["code"]) == (401, "unauthorized")
            assert "Basic" in answer.headers["www-authenticate"]


async def test_probes_need_no_token(talk: Talk) -> None:
    """Whoever runs the service can tell that it works."""
    talk.client.headers.clear()
    assert [(await talk.client.get(path)).status_code for path in ("/live", "/ready")] == [200, 200]


async def test_a_node_sees_nothing_but_its_own_jobs(talk: Talk) -> None:
    """Its token opens no user's endpoint, and a user's token none of the nodes'."""
    await talk.submit(a_job("j1"))
    for method, path in (
        ("GET", "/jobs/j1"),
        ("DELETE", "/jobs/j1"),
        ("POST", "/jobs"),
        ("GET", "/fleet"),
        ("GET", "/models"),
    ):
        answer = await talk.client.request(method, path, headers=AS_NODE)
        assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
    for path in ("/availability", "/heartbeat", "/jobs/j1/result", "/jobs/j1/release"):
        assert (await talk.node(path, a_node(), headers=AS_USER)).status_code == 403
        assert (await talk.node(path, a_node(), headers={"authorization": "Bearer wrong"})).status_code == 401
    assert (await talk.job("j1"))["status"] == "waiting"


async def test_an_open_service_asks_nobody(tmp_path: Path) -> None:
    """Without any token everybody may do everything: it listens on loopback alone."""
    async with dispatching(tmp_path, USER_TOKENS="", NODE_TOKENS="") as talk:
        talk.client.headers.clear()
        assert talk.view.settings.host == "localhost"
        await talk.submit(a_job("j1"))
        assert (await talk.node("/availability", a_node(loaded=(MODEL,)), headers={})).json()["generation"][
            "id"
        ] == "j1"


async def test_a_node_that_the_platform_vouches_for_is_named_by_it(tmp_path: Path) -> None:
    """Its token's subject is its id, whatever it calls itself; keys are fetched once, good tokens checked once."""
    async with vouched(tmp_path) as (talk, platform):
        await talk.submit(a_job("j1"))
        token = platform.token()
        answer = await talk.node("/availability", a_node("liar", loaded=(MODEL,)), headers=token)
        job = answer.json()["generation"]
        assert (await talk.job("j1"))["node"] == "machine-1"
        beat = {"node": {"id": "liar"}, "running": [{"id": "j1", "token": job["token"]}]}
        assert (await talk.node("/heartbeat", beat, headers=token)).json()["lost"] == []
        assert len(platform.requests) == 1


async def test_a_vouched_node_is_kept_from_others_jobs(tmp_path: Path) -> None:
    """Knowing the token of another's lease opens nothing: 403, and a heartbeat does not renew it."""
    async with vouched(tmp_path) as (talk, platform):
        await talk.submit(a_job("j1"))
        owner, other = platform.token(), platform.token(sub="machine-2")
        job = (await talk.node("/availability", a_node(loaded=(MODEL,)), headers=owner)).json()["generation"]
        talk.view.heartbeats.over("j1")
        for path, body in (
            ("/jobs/j1/result", {"token": job["token"], "result": {}}),
            ("/jobs/j1/release", {"token": job["token"], "reason": "draining"}),
        ):
            answer = await talk.node(path, body, headers=other)
            assert (answer.status_code, answer.json()["code"]) == (403, "forbidden")
        beat = {"node": {"id": "x"}, "running": [{"id": "j1", "token": job["token"]}]}
        assert (await talk.node("/heartbeat", beat, headers=other)).json()["lost"] == ["j1"]
        released = await talk.node("/jobs/j1/release", {"token": job["token"], "reason": "draining"}, headers=owner)
        assert released.status_code == 204
        assert (await talk.node("/jobs/no/release", {"token": 1, "reason": "x"}, headers=owner)).status_code == 403


WRONG_CLAIMS: tuple[tuple[dict[str, Any], int, str], ...] = (
    ({"salad_workload_id": "group-9"}, 403, "container group is not listed"),
    ({"salad_workload_id": None}, 403, "container group is not listed"),
    ({"aud": "organization-9"}, 403, "another organization"),
    ({"aud": None}, 403, "another organization"),
    ({"sub": None}, 401, "names no node"),
    ({"sub": ""}, 401, "names no node"),
    ({"exp": None}, 401, "does not say when it ends"),
    ({"exp": "soon"}, 401, "does not say when it ends"),
    ({"exp": 1}, 401, "not good at this time"),
    ({"nbf": 2**40}, 401, "not good at this time"),
)


async def test_what_a_token_says_is_checked(tmp_path: Path) -> None:
    """Audience, group, subject and times; each refusal says in clear words what is wrong."""
    async with vouched(tmp_path) as (talk, platform):
        for claims, status, words in WRONG_CLAIMS:
            answer = await talk.node("/availability", a_node(), headers=platform.token(**claims))
            assert (answer.status_code, words in answer.json()["detail"]) == (status, True), claims
        headers = platform.token(aud=["other", ORGANIZATION])
        assert (await talk.node("/availability", a_node(), headers=headers)).status_code == 200


async def test_a_token_ends_although_it_was_good(tmp_path: Path) -> None:
    """What is remembered of a good token is forgotten with its end."""
    async with vouched(tmp_path) as (talk, platform):
        headers = platform.token()
        assert (await talk.node("/availability", a_node(), headers=headers)).status_code == 200
        platform.clock.advance(timedelta(minutes=6))
        assert (await talk.node("/availability", a_node(), headers=headers)).status_code == 401


async def test_forged_tokens_open_nothing(tmp_path: Path) -> None:
    """Another's signature, no signature, the public key as a secret, an unknown key, and what is no token."""
    async with vouched(tmp_path) as (talk, platform):
        good = platform.token()["authorization"].removeprefix("Bearer ")
        head, claims, _ = good.split(".")
        stranger = Platform().token()["authorization"].removeprefix("Bearer ")
        body = jwt.decode(good, options={"verify_signature": False})
        symmetric = jwt.encode(body, "x" * 32, "HS256", headers={"kid": "k1"})
        unsigned = jwt.encode(body, "", "none", headers={"kid": "k1"})
        nameless = jwt.encode(body, platform.keys["k1"], "ES256")
        for token in (stranger, symmetric, unsigned, nameless, f"{head}.{claims}.", "a.b.c", "no-token"):
            answer = await talk.node("/availability", a_node(), headers={"authorization": f"Bearer {token}"})
            assert answer.status_code == 401
        assert len(platform.requests) == 1


async def test_renewed_keys_are_fetched(tmp_path: Path) -> None:
    """A key that is new is looked for, but not more often than every half minute: anybody can invent one."""
    async with vouched(tmp_path) as (talk, platform):
        assert (await talk.node("/availability", a_node(), headers=platform.token())).status_code == 200
        platform.renew("k2")
        assert (await talk.node("/availability", a_node(), headers=platform.token(key="k2"))).status_code == 401
        assert len(platform.requests) == 1


async def test_without_the_platforms_keys_nobody_is_refused_for_good(tmp_path: Path) -> None:
    """While they cannot be fetched: 503, to ask again; shared tokens work all the same."""
    async with vouched(tmp_path) as (talk, platform):
        platform.otherwise = Answer(500)
        answer = await talk.node("/availability", a_node(), headers=platform.token())
        assert (answer.status_code, answer.json()["code"]) == (503, "keys_unavailable")
        assert int(answer.headers["retry-after"]) > 0
        assert (await talk.node("/availability", a_node(), headers={"x-api-key": NODE})).status_code == 200


@pytest.mark.parametrize("body", [b"{", b"[]", b'{"keys": 1}', b"{}"])
def test_what_is_no_document_of_keys_is_told(body: bytes) -> None:
    """`KeysUnavailable`, whatever it is."""
    with pytest.raises(KeysUnavailable):
        keys_of(body)


def test_keys_of_other_kinds_are_passed_over() -> None:
    """What cannot be used does not keep the others from it."""
    assert keys_of(json.dumps({"keys": [{"kid": "a", "kty": "odd"}, {"kty": "EC"}, 1]}).encode()) == {}

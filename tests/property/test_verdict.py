"""The verdict is total: whatever a server answers, it is an output or an error of ours."""

from __future__ import annotations

import base64
import json
from typing import Any

from hypothesis import given, settings
from hypothesis import strategies as st

from tests.support.pictures import encoded, picture
from worker.engines.base import Expectation, Output
from worker.engines.sdapi.names import ModelFile
from worker.engines.sdapi.verdict import Context, classify
from worker.errors import WorkerError

PNG = base64.b64encode(encoded(picture(64, 48))).decode()
FILE = ModelFile("a.safetensors [0123456789]", "a", "/m/a.safetensors", "0123456789")

json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.just(PNG) | st.just("Steps: 1, Model: a"),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=12,
)
KEYS = ("seed", "all_seeds", "index_of_first_image", "sd_model_name", "sd_model_hash", "infotexts", "version")
infos = st.dictionaries(st.sampled_from(KEYS), json_values).map(json.dumps)
images = st.lists(st.just(PNG) | st.binary(max_size=40).map(lambda b: base64.b64encode(b).decode()) | json_values)
documents = st.fixed_dictionaries(
    {},
    optional={
        "images": images | json_values,
        "image": json_values,
        "info": infos | json_values,
        "error": json_values,
        "detail": json_values,
        "errors": json_values,
        "message": json_values,
    },
)
bodies = st.binary(max_size=200) | (documents | json_values).map(lambda value: json.dumps(value).encode())
contexts = st.builds(
    Context,
    engine=st.just("a1111"),
    checkpoint=st.none() | st.just(FILE),
    sizes=st.just(frozenset()) | st.just(frozenset({(64, 48)})),
    oom=st.booleans(),
    interrupted=st.booleans(),
    scripted=st.booleans(),
    single=st.booleans(),
)
expectations = st.builds(
    Expectation,
    count=st.integers(1, 4),
    width=st.none() | st.just(64),
    height=st.none() | st.just(48),
    seeds=st.lists(st.integers(), max_size=4).map(tuple),
)


def judged(status: int, body: bytes, expect: Expectation, context: Context) -> Output | WorkerError:
    try:
        return classify(status, {"retry-after": "x"}, body, expect, context)
    except WorkerError as error:
        return error


@settings(max_examples=400, deadline=None)
@given(st.sampled_from([200, 200, 200, 204, 400, 401, 404, 418, 429, 500, 503, 599]), bodies, expectations, contexts)
def test_every_answer_has_a_verdict(status: int, body: bytes, expect: Expectation, context: Context) -> None:
    """No answer makes it raise anything outside the error tree, and only a 2xx can be an output."""
    verdict = judged(status, body, expect, context)
    if isinstance(verdict, Output):
        assert 200 <= status < 300
        assert verdict.images
        assert context.scripted or len(verdict.images) == (1 if context.single else expect.count)
    else:
        assert len(verdict.message) < 2000


@settings(max_examples=100, deadline=None)
@given(st.integers(1, 4), st.integers(0, 4), json_values)
def test_enough_pictures_of_the_right_size_pass(count: int, more: int, parameters: Any) -> None:
    """With the expected seeds and model, an answer with at least the asked-for number is always an output."""
    seeds = tuple(range(5, 5 + count))
    info = {"all_seeds": list(seeds), "sd_model_name": "a", "sd_model_hash": "0123456789"}
    body = {"images": [PNG] * (count + more), "parameters": parameters, "info": json.dumps(info)}
    verdict = judged(200, json.dumps(body).encode(), Expectation(count, 64, 48, seeds), Context("a1111", FILE))
    assert isinstance(verdict, Output)
    assert [i.seed for i in verdict.images] == list(seeds)
    assert verdict.engine.proof == "hash"

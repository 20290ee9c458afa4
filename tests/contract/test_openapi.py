"""What `/openapi.json` says is what is true: for each kind of server, and whatever is sent to what it describes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from openapi_spec_validator import OpenAPIV31SpecValidator

from tests.support.bench import running_worker
from tests.support.fuzzing import fuzzed, gateway, mutated

KINDS = ("sdnext", "a1111", "comfyui", "fooocus")
PROBES = ("/startup", "/live", "/ready", "/health")


async def described(root: Path, kind: str) -> dict[str, Any]:
    variables: Any = {"WORKER_ENGINE": kind, "WORKER_QUEUE": "none", "WORKER_WARMUP": "none", "WORKER_API_KEY": "key"}
    async with running_worker(root, kind, ready=False, **variables) as worker:
        answer = await worker.client.get("/openapi.json", headers={"x-api-key": "key"})
    document: dict[str, Any] = answer.json()
    return document


@pytest.mark.parametrize("kind", KINDS)
async def test_the_document_is_valid(kind: str, tmp_path: Path) -> None:
    """OpenAPI 3.1; every operation has a name of its own, a summary, and says what problems it has and that it needs
    the key; examples are what their schemas say."""
    document = await described(tmp_path, kind)
    assert document["openapi"].startswith("3.1.")
    OpenAPIV31SpecValidator(document).validate()
    operations = [(path, verb, one) for path, item in document["paths"].items() for verb, one in item.items()]
    names = [one["operationId"] for _, _, one in operations]
    assert sorted(set(names)) == sorted(names)
    for path, verb, one in operations:
        assert one.get("summary"), (verb, path)
        if path in PROBES:
            assert "security" not in one
            continue
        assert one["security"], (verb, path)
        assert list(one["responses"]["401"]["content"]) == ["application/problem+json"]
        for schema, example in examples(one):
            whole = {"components": document["components"], "allOf": [schema]}
            found = list(Draft202012Validator(whole).iter_errors(example))
            assert found == [], (verb, path, found)


def examples(operation: dict[str, Any]) -> list[tuple[Any, Any]]:
    """The schema and the example of each body that has both."""
    found = []
    for content in operation.get("requestBody", {}).get("content", {}).values():
        named = [one["value"] for one in content.get("examples", {}).values()]
        alone = [content["example"]] if "example" in content else []
        found += [(content.get("schema", {}), example) for example in [*alone, *named]]
    return found


async def test_nothing_that_is_sent_breaks_it(tmp_path: Path) -> None:
    """Generated requests, and examples with something else in one place: each is answered as the document says, and
    never with a bug."""
    async with gateway(tmp_path, "sdnext") as here:
        wrong = await fuzzed(here, examples=1)
        wrong |= await mutated(here, examples=4)
        assert wrong == {}
        assert await here.bugs() == 0

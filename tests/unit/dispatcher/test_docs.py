"""The pages on the dispatcher say what is so: its settings, endpoints, examples, metrics, events and words."""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from dispatcher import metrics
from dispatcher.api.app import create_app
from dispatcher.api.models import ENTRIES
from dispatcher.documents import new_job
from dispatcher.needs import Catalogue
from dispatcher.service import opened
from dispatcher.settings import Settings, variables
from dispatcher.words import Skip, Why
from tests.support.databases import emptied_file
from tests.support.dispatching import settings_of
from worker.job import Limits
from worker.settings.environment import names_of
from worker.settings.table import inserted
from worker.wire import Answer, Availability, Ended, Heartbeat, Release

ROOT = Path(__file__).parents[3]
OPERATIONS, DISPATCHER, README = (ROOT / name for name in ("docs/operations.md", "docs/dispatcher.md", "README.md"))
PAGES = (README, ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").glob("*.md")))

_VARIABLE = re.compile(r"DISPATCHER_[A-Z][A-Z_]*[A-Z]")
_ENDPOINT = re.compile(r"`(GET|POST|PUT|DELETE) (/[^\s?`]*)")
_CURL = re.compile(r"curl (?:-X [A-Z]+ )?\S*?(/[a-z/]+) [^'\n]*-d '(.*?)'", re.DOTALL)
_JSON = re.compile(r"```json\n(.*?)```", re.DOTALL)
_LINK = re.compile(r"\]\(([^)\s]*)\)")
_UNDESCRIBED = frozenset({("GET", "/"), ("GET", "/docs"), ("GET", "/openapi.json")})


def text(page: Path) -> str:
    return page.read_text("utf-8")


def test_the_table_of_settings_is_the_current_one() -> None:
    """Who changes a setting puts the table that `markdown_table(Settings)` makes between the page's markers."""
    page = text(OPERATIONS)
    assert inserted(page, Settings) == page


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_page_names_a_setting_that_there_is_not(page: Path) -> None:
    """Nobody sets what has no effect because a page told them to."""
    assert set(_VARIABLE.findall(text(page))) <= set(names_of(variables()))


def anchors(page: Path) -> set[str]:
    """Its headings as links name them."""
    found = re.findall(r"^#+ (.*)$", text(page), re.MULTILINE)
    return {re.sub(r"[^\w -]", "", heading.lower()).replace(" ", "-") for heading in found}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_no_link_leads_nowhere(page: Path) -> None:
    """Every link within the pages names a file that is there, and a heading of it."""
    inner = [link for link in _LINK.findall(text(page)) if "://" not in link]
    ends = [(link, page.parent / link.partition("#")[0] if link[0] != "#" else page) for link in inner]
    assert [link for link, end in ends if not end.exists()] == []
    assert [link for link, end in ends if "#" in link and link.partition("#")[2] not in anchors(end)] == []


async def test_every_endpoint_is_in_the_docs_and_no_other(tmp_path: Path) -> None:
    """The table of the page has what the OpenAPI document has, and the three that describe themselves."""
    async with opened(settings_of(emptied_file(tmp_path))) as dispatcher:
        paths: dict[str, dict[str, Any]] = create_app(dispatcher.view).openapi()["paths"]
    there = {(method.upper(), path) for path, methods in paths.items() for method in methods}
    assert set(_ENDPOINT.findall(text(DISPATCHER))) == there | _UNDESCRIBED


def submitted(body: Any) -> None:
    new_job(body, Catalogue(), Limits())


TAKEN: dict[str, Callable[[Any], object]] = {
    "/jobs": submitted,
    "/models": ENTRIES.validate_python,
    "/availability": Availability.model_validate,
    "/heartbeat": Heartbeat.model_validate,
}


def curls() -> Iterator[tuple[str, str]]:
    for page in (README, DISPATCHER, OPERATIONS):
        yield from _CURL.findall(text(page))


def test_what_the_examples_send_is_taken() -> None:
    """Copied from the page they work, each at its endpoint."""
    sent = list(curls())
    assert {path for path, _ in sent} == set(TAKEN)
    for path, body in sent:
        TAKEN[path](json.loads(body))


def test_what_the_examples_show_is_what_is_said() -> None:
    """Every answer on the page is JSON; the one with a job is one as a worker reads it."""
    shown = [json.loads(block) for block in _JSON.findall(text(DISPATCHER))]
    answers = [Answer.model_validate(one) for one in shown if "generation" in one]
    assert [one.generation.id for one in answers if one.generation is not None] == ["cat-1"]
    explained = next(one for one in shown if "would_get" in one)
    assert Skip(explained["weighed"][1]["skip"]) is Skip.SWAP_NOT_WORTH


def test_the_ends_that_the_page_tells_of_are_taken() -> None:
    """The bodies of an end and of a release, as they stand in the text."""
    bodies = [
        json.loads(found.replace("{...}", "{}")) for found in re.findall(r"`(\{\"token\".*?\})`", text(DISPATCHER))
    ]
    assert [Ended.model_validate(bodies[0]).token, Release.model_validate(bodies[1]).reason] == [1, "draining"]
    with pytest.raises(ValidationError):
        Release.model_validate(bodies[0])


def test_every_word_of_a_decision_is_explained() -> None:
    """Who reads `skipped` or `why` finds what it means."""
    page = text(DISPATCHER)
    assert [word for word in (*Skip, *Why) if f"`{word}`" not in page] == []


def test_every_metric_is_in_the_docs() -> None:
    """Under its name without the prefix, which the table's head has."""
    names = [name for name in vars(metrics).values() if isinstance(name, str) and name.startswith(metrics.PREFIX)]
    page = text(OPERATIONS)
    short = [name.removeprefix(metrics.PREFIX) for name in names if name != metrics.PREFIX]
    assert len(short) > 10
    assert [name for name in short if not re.search(rf"`{name}[`{{]", page)] == []


def events() -> Iterator[str]:
    """The names of everything that the dispatcher logs."""
    for file in sorted((ROOT / "dispatcher").rglob("*.py")):
        for node in ast.walk(ast.parse(text(file))):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.args:
                of, said = node.func.value, node.args[0]
                if isinstance(of, ast.Name) and of.id in ("log", "logger") and isinstance(said, ast.Constant):
                    yield str(said.value)


def test_every_event_of_the_log_is_in_the_docs() -> None:
    """Who is woken by a line of the log finds what it means."""
    page, logged = text(OPERATIONS), set(events())
    assert "database_unavailable" in logged
    assert sorted(event for event in logged if f"`{event}`" not in page) == []

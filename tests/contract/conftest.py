"""Which of these tests are traced for the coverage of branches."""

from __future__ import annotations

from pathlib import Path

import pytest

HERE = Path(__file__).parent
UNTRACED = (
    "test_comfyui_faults",
    "test_engines_faults",
    "test_examples",
    "test_fitness",
    "test_fooocus_faults",
    "test_gateway_",
    "test_hostile",
    "test_openapi",
    "test_portable",
    "test_sdapi_pitfalls",
    "test_secrecy",
    "test_store_",
)
"""Long ones that say the same of code that others trace already: tracing costs half as much again."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if item.path.parent == HERE and item.path.name.startswith(UNTRACED):
            item.add_marker(pytest.mark.no_cover)

"""The README's table, and what is in effect."""

from __future__ import annotations

from pathlib import Path

import pytest

from worker.settings import Settings, load_settings
from worker.settings.groups import variables
from worker.settings.table import effective, inserted, markdown_table

README = Path(__file__).parents[3] / "README.md"


def test_the_readme_has_the_current_table() -> None:
    """Who changes a setting runs `sd-worker config --markdown` and puts its table between the README's markers."""
    page = README.read_text("utf-8")
    assert inserted(page) == page


def test_the_table_has_every_variable_once() -> None:
    """Also the defaults, as they would be written."""
    table = markdown_table()
    assert all(table.count(f"| `{v.name}` |") == 1 for v in variables())
    assert "| `WORKER_DISK_SIZE` | `50GB` |" in table
    assert "| `WORKER_NODE_ID` | the host's name, on Salad the machine's id |" in table


def test_the_choices_of_a_variable_are_in_its_row() -> None:
    """Whoever reads the table needs no other place to look."""
    rows = {line.split("`")[1]: line for line in markdown_table().splitlines() if line.startswith("| `")}
    assert all(f"`{kind}`" in rows["WORKER_STORAGE"] for kind in ("auto", "s3", "directory", "inline", "presigned"))


def test_a_page_without_markers_is_refused() -> None:
    """Nothing is written where nothing belongs."""
    with pytest.raises(ValueError, match="lacks"):
        inserted("# A page")


def test_what_is_in_effect_can_be_set_again() -> None:
    """Every printed value that is no secret is read as the same setting."""
    environ = {
        "WORKER_JOB_TIMEOUT": "75s",
        "WORKER_MAX_BODY": "1GiB",
        "WORKER_WEBHOOK_EVENTS": "failed,started",
        "WORKER_ENGINE_COMMAND": "python launch.py --ckpt '/models/my model.safetensors'",
        "WORKER_MODELS_DIRS": "controlnet=/c vae=/v",
        "WORKER_MODELS_HOSTS": "huggingface.co,*",
        "WORKER_MODELS_SOURCE": "s3://models/{kind}/{name} https://cdn.example/{name}",
    }
    settings = load_settings(environ)
    printed = {row.variable: row.value for row in effective(settings)}
    assert load_settings(printed) == settings
    assert {row.variable for row in effective(settings) if row.changed} == set(environ)


def test_defaults_are_not_marked_as_changed() -> None:
    """The mark tells what the operator set."""
    assert not any(row.changed for row in effective(Settings()))

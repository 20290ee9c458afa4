from __future__ import annotations

from typing import Any

import pytest

from worker.engines.sdapi.samplers import SAMPLERS, Samplers, with_scheduler
from worker.errors import InvalidJob

NEW = Samplers.listed(
    [
        {"name": "Euler", "aliases": ["k_euler"], "options": {}},
        {"name": "Euler a", "aliases": ["k_euler_a", 3]},
        {"name": "DPM++ 2M", "aliases": None},
        {"name": "LMS"},
        "odd",
    ],
    [
        {"name": "automatic", "label": "Automatic"},
        {"name": "karras", "label": "Karras"},
        {"name": "uniform", "label": "Uniform"},
        {"name": "beta", "label": None},
    ],
)
OLD = Samplers.listed([{"name": "Euler"}, {"name": "DPM++ 2M"}, {"name": "DPM++ 2M Karras"}], None)
SDNEXT = Samplers.listed([{"name": "Default"}, {"name": "KDPM2 a"}, {"name": "LMSD"}, {"name": "DPM++ 2M"}], None)


@pytest.mark.parametrize(
    ("ours", "samplers", "theirs"),
    [
        ("euler", NEW, "Euler"),
        ("euler_ancestral", NEW, "Euler a"),
        ("lms", NEW, "LMS"),
        ("lms", SDNEXT, "LMSD"),
        ("dpm_2_ancestral", SDNEXT, "KDPM2 a"),
        ("dpmpp_2m_gpu", NEW, "DPM++ 2M"),
        ("k_euler", NEW, "Euler"),
        ("Euler a", NEW, "Euler a"),
    ],
)
def test_comfyuis_names_are_translated(ours: str, samplers: Samplers, theirs: str) -> None:
    """By the server's own list; its own names are understood too."""
    assert samplers.portable(ours, field="params.sampler") == theirs


def test_an_unknown_sampler_names_the_close_ones() -> None:
    """The refusal helps."""
    with pytest.raises(InvalidJob, match="close: euler") as caught:
        NEW.portable("eulr", field="params.sampler")
    assert caught.value.errors[0].field == "params.sampler"
    with pytest.raises(InvalidJob, match="known: dpmpp_2m, euler"):
        NEW.portable("zzzzzzzz", field="params.sampler")
    with pytest.raises(InvalidJob):
        OLD.portable("lms", field="params.sampler")


def test_the_table_is_comfyuis() -> None:
    """Keys are ComfyUI's spelling."""
    assert all(name == name.lower() and " " not in name for name in SAMPLERS)


@pytest.mark.parametrize(
    ("name", "theirs"),
    [("Euler a", "Euler a"), ("euler A", "Euler a"), ("k_euler_a", "Euler a"), ("DPM++ 2M Karras", "DPM++ 2M Karras")],
)
def test_native_names_become_the_servers_spelling(name: str, theirs: str) -> None:
    """Aliases and case are understood; from 1.9 on a name with its scheduler is split by the server."""
    assert NEW.canonical(name, field="request.sampler_name") == theirs


def test_native_names_that_would_be_replaced_are_refused() -> None:
    """Without schedulers there is nothing to split; an unlisted name is unknown."""
    with pytest.raises(InvalidJob, match=r"close: DPM\+\+ 2M"):
        SDNEXT.canonical("DPM++ 2M Karras", field="request.sampler_name")
    assert SDNEXT.canonical("Same as primary", field="x", also=("Same as primary",)) == "Same as primary"
    assert Samplers().canonical("anything", field="x") == "anything"


def test_native_schedulers() -> None:
    """By name or label; where the server lists none there is nothing to compare."""
    assert NEW.scheduler("Karras", field="x") == "Karras"
    assert NEW.scheduler("karras", field="x") == "karras"
    assert OLD.scheduler("anything", field="x") == "anything"
    with pytest.raises(InvalidJob, match="close: Karras"):
        NEW.scheduler("karas", field="request.scheduler")


@pytest.mark.parametrize(
    ("samplers", "scheduler", "fields", "options", "added"),
    [
        (NEW, "karras", (), (), {"scheduler": "Karras"}),
        (NEW, "normal", (), (), {"scheduler": "Uniform"}),
        (NEW, "beta", (), (), {"scheduler": "beta"}),
        (OLD, "karras", (), (), {"sampler_name": "DPM++ 2M Karras"}),
        (OLD, "normal", (), (), {}),
        (SDNEXT, "karras", ("schedulers_sigma",), (), {"schedulers_sigma": "karras"}),
        (SDNEXT, "normal", ("schedulers_sigma",), (), {"schedulers_sigma": "default"}),
        (SDNEXT, "karras", (), ("schedulers_use_karras",), {"override_settings": {"schedulers_use_karras": True}}),
        (SDNEXT, "normal", (), ("schedulers_use_karras",), {"override_settings": {"schedulers_use_karras": False}}),
    ],
)
def test_each_server_takes_schedulers_its_own_way(
    samplers: Samplers, scheduler: str, fields: Any, options: Any, added: dict[str, Any]
) -> None:
    """A field, a part of the sampler's name, or an option."""
    body = {"sampler_name": "DPM++ 2M"}
    assert with_scheduler(body, samplers, scheduler, fields=fields, options=options) == {**body, **added}


@pytest.mark.parametrize(("samplers", "fields"), [(NEW, ()), (OLD, ()), (SDNEXT, ("schedulers_sigma",))])
def test_an_unknown_scheduler_is_refused(samplers: Samplers, fields: Any) -> None:
    """It would be ignored."""
    with pytest.raises(InvalidJob) as caught:
        with_scheduler({}, samplers, "sgm_uniform", fields=fields, options=())
    assert caught.value.errors[0].field == "params.scheduler"

"""What callers may ask of a server of the family beside the jobs, and what they may have changed."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pydantic_core
import pytest

from tests.support.described import native, refused, server
from worker.engines.answer import Answer
from worker.engines.base import NativeCall
from worker.engines.sdapi.dialects import FORGE, SDNEXT
from worker.engines.sdapi.neutral import NEUTRAL, is_neutral
from worker.engines.sdapi.progress import from_progress, from_status, progress_of
from worker.engines.sdapi.relaying import CHECKPOINT, OPTIONS, checked, is_secret, settable, sound, without_secrets
from worker.errors import EngineOutOfMemory, GenerationRejected, GpuFault, InvalidJob, ModelNotFound

NOW: dict[str, Any] = {
    "sd_model_checkpoint": "base.safetensors [0123456789]",
    "sd_vae": "Automatic",
    "samples_format": "png",
    "civitai_token": "t0ken",
    "CLIP_stop_at_last_layers": 1,
}


@pytest.mark.parametrize(
    "name",
    ["api_auth", "auth", "huggingface_token", "google_api_key", "ngrok", "aws_secret_access", "gradio_auth_path"],
)
def test_names_of_credentials(name: str) -> None:
    """Options and flags that hold one."""
    assert is_secret(name)


@pytest.mark.parametrize("name", ["keyedit_attention", "token_merging_ratio_hr_x"[6:], "tls_keyfile", "author"])
def test_names_that_only_look_like_it(name: str) -> None:
    """A part of a word is none."""
    assert not is_secret(name)


def test_credentials_are_blanked() -> None:
    """Everything else stays as it was, in its order; what is no object passes."""
    body = {"a": 1, "api_auth": "u:p", "civitai_token": "t", "gradio_auth": None, "b": "x"}
    shown = without_secrets(Answer(200, {}, pydantic_core.to_json(body)))
    assert shown.json == {**body, "api_auth": "", "civitai_token": ""}
    assert list(shown.json) == list(body)
    for other in (b"null", b"[1]", b"<html>"):
        assert without_secrets(Answer(200, {}, other)).body == other


def test_all_that_was_read_may_be_set_again() -> None:
    """Clients read all options, change one and send them all; a credential that they saw blanked is left alone."""
    sent = {**NOW, "civitai_token": "", "CLIP_stop_at_last_layers": 2}
    wanted = {**NOW, "CLIP_stop_at_last_layers": 2}
    del wanted["civitai_token"]
    assert settable(sent, server(), NOW) == wanted


def test_models_are_named_as_the_server_lists_them() -> None:
    """So that it neither unloads the present one for a name that it does not know, nor takes the first."""
    inventory = server()
    assert settable({"sd_model_checkpoint": "other"}, inventory, NOW) == {"sd_model_checkpoint": "other.safetensors"}
    assert settable({"sd_vae": "sharp"}, inventory, NOW) == {"sd_vae": "sharp.pt"}
    for name in ("sd_model_checkpoint", "sd_vae"):
        with pytest.raises(ModelNotFound, match=f"^{name}: "):
            settable({name: "nope"}, inventory, NOW)


@pytest.mark.parametrize(
    ("document", "field"),
    [
        ({"samples_format": "jpg"}, "samples_format"),
        ({"nosuch": 1}, "nosuch"),
        ({"sd_model_checkpoint": 3}, "sd_model_checkpoint"),
    ],
)
def test_settings_that_may_not_be_changed(document: dict[str, Any], field: str) -> None:
    """What the answers to jobs rest on is the operator's."""
    with pytest.raises(InvalidJob) as caught:
        settable(document, server(), NOW)
    assert [error.field for error in caught.value.errors] == [field]


def test_a_server_that_tells_no_options_is_believed() -> None:
    """Typed ones fail on a stored value of the wrong type."""
    assert settable({"whatever": 1}, server(), {}) == {"whatever": 1}


def test_a_checked_call() -> None:
    """Only the two ways to choose a model are looked into."""
    chosen = NativeCall("POST", CHECKPOINT, {"sd_model_checkpoint": "other", "force": "true"})
    query = {"sd_model_checkpoint": "other.safetensors", "force": "true"}
    assert checked(chosen, server(), NOW).query == query
    plain = NativeCall("POST", CHECKPOINT, {"force": "true"})
    assert checked(plain, server(), NOW) is plain
    options = NativeCall("POST", OPTIONS, body=b'{"sd_vae": "sharp"}')
    assert checked(options, server(), NOW).body == b'{"sd_vae":"sharp.pt"}'
    for body in (None, b"[]", b"nonsense"):
        with pytest.raises(InvalidJob):
            checked(replace(options, body=body), server(), NOW)


def test_progress_from_the_status() -> None:
    """Both are read alike: what ``/progress`` would say is in ``/status``, but for the preview."""
    status = {
        "status": "running",
        "task": "Inference",
        "timestamp": "20261121000007",
        "current": "",
        "id": "b7d7",
        "job": 0,
        "jobs": 1,
        "step": 56,
        "steps": 200,
        "eta": 5.3,
        "progress": 0.28,
    }
    told = progress_of(status)
    assert told is not None
    pulse, other = from_status(status), from_progress(told)
    assert pulse is not None
    assert other is not None
    assert pulse.report == other.report
    assert (told["id"], told["state"]["job"], told["current_image"]) == ("b7d7", "Inference", None)
    idle = progress_of({"status": "idle", "timestamp": None, "eta": None})
    assert idle is not None
    assert (idle["progress"], idle["eta_relative"], idle["state"]["job_timestamp"]) == (0.0, 0.0, "0")
    assert progress_of("broken") is None


def test_a_field_that_asks_for_nothing_is_left_out() -> None:
    """The client ``webuiapi`` sends every field of Automatic1111 to whichever server it talks to."""
    fields = {"s_churn": 0, "s_noise": 1, "restore_faces": False, "image_cfg_scale": 1.5, "hr_sampler_name": None}
    for dialect in (SDNEXT, FORGE):
        request = native(server(dialect), **fields, prompt="a cat").request
        assert not set(fields) & set(request)


def test_a_wish_that_cannot_be_fulfilled_is_refused() -> None:
    """The server would drop it without a word."""
    for field, value in (("s_churn", 0.5), ("restore_faces", True), ("s_noise", 2), ("nosuch", None), ("nosuch", 0)):
        assert refused({"request": {"prompt": "x", field: value}}) == f"request.{field}"


def test_null_asks_for_nothing_everywhere() -> None:
    """Of every field in the table."""
    assert all(is_neutral(field, None) for field in NEUTRAL)
    assert not is_neutral("prompt", None)


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("Invalid encoded image", GenerationRejected),
        ("CUDA out of memory. Tried to allocate 12.00 GiB.", EngineOutOfMemory),
        ("CUDA error: an illegal memory access was encountered", GpuFault),
    ],
)
def test_a_500_may_tell_whose_fault_it_is(text: str, error: type[Exception]) -> None:
    """A bad image is the caller's, and a broken GPU is noticed whatever it was asked for."""
    with pytest.raises(error):
        sound(Answer(500, {}, pydantic_core.to_json({"error": "RuntimeError", "detail": text})))


@pytest.mark.parametrize("answer", [Answer(200, {}, b"{}"), Answer(422, {}, b"{}"), Answer(500, {}, b"oops")])
def test_any_other_answer_passes(answer: Answer) -> None:
    """Also a failure that tells nothing."""
    assert sound(answer) is answer

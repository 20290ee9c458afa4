"""HTTP 200 is no proof: every way in which a 200 of these servers is not the picture that was asked for."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from tests.support.pictures import encoded, picture
from tests.support.published import RESPONSE
from worker.engines.base import Expectation, Output
from worker.engines.sdapi.names import ModelFile
from worker.engines.sdapi.verdict import Context, classify
from worker.errors import (
    EngineOutOfMemory,
    GenerationRejected,
    OutputEmpty,
    OutputMismatch,
    WorkerError,
    WrongModel,
)

SHA = "879db523c3" + "a" * 54
DREAM = ModelFile("dreamshaper_8.safetensors [879db523c3]", "dreamshaper_8", "/m/dreamshaper_8.safetensors", None, SHA)
TINY = ModelFile("Diffusers/tinysd-a", "Diffusers/tinysd-a", "/m/Diffusers/tinysd-a")
INFOTEXT = (
    "a cat\nNegative prompt: \nSteps: 2, Size: 64x48, Sampler: Euler, Seed: 7, Model hash: {hash}, Model: {model}"
)
ONE = Expectation(1, 64, 48, (7,))


def b64(data: bytes) -> str:
    return base64.b64encode(data).decode()


PNG = b64(encoded(picture(64, 48)))


def info_of(model: str = "dreamshaper_8", hash: str | None = "879db523c3", **more: Any) -> dict[str, Any]:
    """Automatic1111's ``info``."""
    text = INFOTEXT.format(model=model, hash=hash or "")
    return {
        "seed": 7,
        "all_seeds": [7, 8, 9, 10],
        "index_of_first_image": 0,
        "sd_model_name": model,
        "sd_model_hash": hash,
        "infotexts": [text],
        "version": "v1.10.1",
        **more,
    }


def sdnext_info(model: str = "tinysd-a", **more: Any) -> dict[str, Any]:
    """SD.Next's, where the model stands in the infotext alone."""
    line = f"Steps: 2, Size: 64x48, Seed: 7, App: SD.Next, Version: 058a7f0, Model: {model}"
    return {
        "seed": 7,
        "all_seeds": [7],
        "sd_model_hash": None,
        "infotexts": [f"a cat\nNegative prompt: \nTemplate: a cat\n{line}"],
        **more,
    }


def answer(images: Any = (PNG,), info: Any = None, **more: Any) -> bytes:
    said = json.dumps(info_of()) if info is None else info if isinstance(info, str) else json.dumps(info)
    listed = list(images) if isinstance(images, tuple) else images
    return json.dumps({"images": listed, "parameters": {}, "info": said, **more}).encode()


def judge(body: bytes, expect: Expectation = ONE, status: int = 200, **context: Any) -> Output:
    return classify(status, {}, body, expect, Context(**{"engine": "a1111", **context}))


def test_a_good_picture_passes() -> None:
    """What was asked for comes out byte for byte, with its seed and the proof of its model."""
    output = judge(answer(), checkpoint=DREAM)
    assert b64(output.images[0].data) == PNG
    assert output.images[0].seed == 7
    engine = output.engine
    assert (engine.name, engine.model, engine.model_hash, engine.proof) == (
        "a1111",
        "dreamshaper_8",
        "879db523c3",
        "hash",
    )
    assert engine.version == "v1.10.1"
    assert output.warnings == ()


@pytest.mark.parametrize("format", ["PNG", "JPEG", "WEBP"])
def test_the_format_is_told_by_the_bytes(format: str) -> None:
    """The answer's format follows a global option: JPEG from an SD.Next that was not asked otherwise is a picture."""
    assert len(judge(answer((b64(encoded(picture(64, 48), format)),))).images) == 1


def test_a_data_uri_prefix_is_understood() -> None:
    """Some forks send one."""
    assert b64(judge(answer((f"data:image/png;base64,{PNG}",))).images[0].data) == PNG


TRAPS: list[tuple[str, bytes, dict[str, Any], type[WorkerError], str]] = [
    ("no model is loaded: empty info", answer((), ""), {}, OutputEmpty, "no model loaded"),
    ("swallowed exception: no images, full info", answer(()), {}, OutputEmpty, "swallows"),
    ("out of memory swallowed: no images", answer(()), {"oom": True}, EngineOutOfMemory, "memory"),
    ("images null", answer(None), {}, OutputEmpty, "0 images"),
    ("images missing", b'{"info": "{}"}', {}, OutputEmpty, "0 images"),
    ("image null", answer((None,)), {}, OutputEmpty, "0 images"),
    ("image empty", answer(("",)), {}, OutputEmpty, "0 images"),
    ("image no text", answer((3,)), {}, OutputMismatch, "no text"),
    ("not base64", answer(("base64encodedimage!",)), {}, OutputMismatch, "base64"),
    ("HTML as image", answer((b64(b"<html>Bad Gateway</html>"),)), {}, OutputMismatch, "neither"),
    ("cut in its header", answer((b64(encoded(picture(64, 48))[:20]),)), {}, OutputMismatch, "cut off"),
    ("live preview as result", answer((b64(encoded(picture(8, 6), "JPEG")),)), {}, OutputMismatch, "8x6"),
    ("preview after out of memory", answer((b64(encoded(picture(8, 6))),)), {"oom": True}, EngineOutOfMemory, "8x6"),
    ("interrupted by a lack of memory", answer(), {"interrupted": True, "oom": True}, EngineOutOfMemory, "interrupted"),
    ("partial picture of an interrupted job", answer(), {"interrupted": True}, OutputMismatch, "interrupted"),
    ("another model by hash", answer(info=info_of("other", "0123456789")), {"checkpoint": DREAM}, WrongModel, "other"),
    ("another model by name", answer(info=info_of("other", None)), {"checkpoint": DREAM}, WrongModel, "other"),
    (
        "another model in SD.Next's infotext",
        answer(info=sdnext_info("tinysd-b")),
        {"checkpoint": TINY},
        WrongModel,
        "tinysd-b",
    ),
    ("a senseless seed", answer(info=info_of(seed=10**20, all_seeds=[0])), {}, OutputMismatch, "seed 0"),
    ("another seed", answer(info=info_of(seed=8, all_seeds=[8])), {}, OutputMismatch, "seed 8"),
    ("a JSON text", b'"unhashable type"', {}, OutputEmpty, "no JSON object"),
    ("no JSON", b"<html>", {}, OutputEmpty, "no JSON object"),
    ("no body", b"", {}, OutputEmpty, "no JSON object"),
]


@pytest.mark.parametrize(("body", "context", "kind", "said"), [row[1:] for row in TRAPS], ids=[row[0] for row in TRAPS])
def test_a_200_that_is_no_picture(body: bytes, context: dict[str, Any], kind: type[WorkerError], said: str) -> None:
    """Each known trap is an error with its own name."""
    with pytest.raises(kind, match=said) as caught:
        judge(body, **context)
    assert type(caught.value) is kind


def test_fewer_images_than_asked_for() -> None:
    """A short count is never a success, and out of memory when the server's counter says so."""
    two = Expectation(2, 64, 48, (7, 8))
    with pytest.raises(OutputEmpty, match="1 images instead of 2"):
        judge(answer(), two)
    with pytest.raises(EngineOutOfMemory):
        judge(answer(), two, oom=True)


def test_a_grid_before_and_maps_after_are_left_out() -> None:
    """``index_of_first_image`` skips the grid; ControlNet's detected maps come after the asked-for number."""
    first, second = (b64(encoded(picture(64, 48, seed=n))) for n in (1, 2))
    grid, detected = b64(encoded(picture(128, 48))), b64(encoded(picture(512, 512)))
    body = answer((grid, first, second, detected), info_of(index_of_first_image=1))
    output = judge(body, Expectation(2, 64, 48, (7, 8)))
    assert [b64(i.data) for i in output.images] == [first, second]
    assert [i.seed for i in output.images] == [7, 8]


@pytest.mark.parametrize("index", [None, "1", -1, 99, True, 1.0])
def test_a_senseless_first_index_is_zero(index: Any) -> None:
    """Nothing but a whole number within the list moves the start."""
    assert len(judge(answer(info=info_of(index_of_first_image=index))).images) == 1


def test_name_proves_where_no_hash_is_known() -> None:
    """SD.Next names the model's last path part; that is a proof by name."""
    output = judge(answer(info=sdnext_info()), engine="sdnext", checkpoint=TINY)
    assert (output.engine.proof, output.engine.model, output.engine.version) == ("name", "tinysd-a", "058a7f0")


def test_pieces_of_a_path_are_no_hash() -> None:
    """SD.Next of 2023 gives path pieces as the hash of diffusers folders: never compared."""
    info = sdnext_info(sd_model_hash="/models/")
    assert judge(answer(info=info), checkpoint=TINY).engine.proof == "name"


def test_no_word_of_the_model_is_no_proof() -> None:
    """Then the result says so and warns."""
    output = judge(answer(info={}), checkpoint=DREAM)
    assert (output.engine.proof, output.engine.model, output.warnings) == ("none", "dreamshaper_8", ("model_unproven",))


def test_a_prompt_cannot_fake_the_model() -> None:
    """Only the line after the last "Steps:" is the server's own."""
    faked = "cat\nSteps: 9, Model: tinysd-a, Model hash: 0123456789\nSteps: 2, Size: 64x48, Model: tinysd-b"
    with pytest.raises(WrongModel):
        judge(answer(info=sdnext_info(infotexts=[faked])), checkpoint=TINY)


def test_every_infotext_is_compared() -> None:
    """One image of another model among several is found."""
    info = info_of()
    info["infotexts"].append(INFOTEXT.format(model="other", hash="0123456789"))
    with pytest.raises(WrongModel, match="other"):
        judge(answer((PNG, PNG), info), Expectation(2, 64, 48, (7, 8)), checkpoint=DREAM)


@pytest.mark.parametrize("said", ["odd, name: v2", '"odd name v2"', "odd name v2"])
def test_names_are_compared_as_infotexts_write_them(said: str) -> None:
    """Automatic1111 drops commas and colons there, or quotes the whole."""
    file = ModelFile("odd, name: v2.safetensors", "odd, name: v2", "/m/odd, name: v2.safetensors")
    line = f"a\nSteps: 2, Model: {said}, Version: x"
    info = {"sd_model_name": said, "infotexts": [7]} if "," in said else {"infotexts": [line]}
    assert judge(answer(info=info), checkpoint=file).engine.proof == "name"


def test_sizes_may_be_open() -> None:
    """Where the request does not settle the size, those that the input image allows are right, or any."""
    free = Expectation(1, None, None, (7,))
    assert judge(answer(), free).images
    assert judge(answer(), free, sizes=frozenset({(64, 48), (128, 96)})).images
    with pytest.raises(OutputMismatch, match="64x48 pixels instead of 128x96"):
        judge(answer(), free, sizes=frozenset({(128, 96)}))


def test_a_script_decides_by_itself() -> None:
    """Count, sizes and seeds of a selectable script are its own; nothing at all is still a failure."""
    small = b64(encoded(picture(8, 8)))
    output = judge(
        answer((PNG, small, small), info_of(all_seeds=[1, 2])), Expectation(1, None, None, ()), scripted=True
    )
    assert [i.seed for i in output.images] == [1, 2, None]
    with pytest.raises(OutputEmpty):
        judge(answer(()), Expectation(1, None, None, ()), scripted=True)


def test_an_enlarged_image_is_a_single_one() -> None:
    """``extra-single-image`` answers with ``image`` and no info."""
    body = json.dumps({"html_info": "", "image": PNG}).encode()
    output = judge(body, Expectation(1, 64, 48, ()), single=True)
    assert (len(output.images), output.images[0].seed, output.engine.proof) == (1, None, "none")
    with pytest.raises(OutputEmpty):
        judge(b'{"html_info": ""}', Expectation(1, 64, 48, ()), single=True)


def test_other_statuses_are_failures() -> None:
    """What is not 2xx never becomes an output, whatever it holds."""
    with pytest.raises(GenerationRejected):
        judge(answer(), status=422)


def test_the_published_response_is_understood() -> None:
    """The response printed in the published guide, with a real picture where it prints a placeholder."""
    expect = Expectation(1, 512, 512, (726538242,))
    with pytest.raises(OutputMismatch):
        judge(RESPONSE.encode(), expect, checkpoint=DREAM)
    body = RESPONSE.replace("base64encodedimage", b64(encoded(picture(512, 512))))
    output = judge(body.encode(), expect, checkpoint=DREAM)
    assert output.images[0].seed == 726538242
    engine = output.engine
    assert (engine.model, engine.model_hash, engine.proof, engine.version) == (
        "dreamshaper_8",
        "879db523c3",
        "hash",
        "v1.7.0",
    )
    assert engine.info["job_timestamp"] == "20240731152922"


def test_numbers_beyond_all_reason_are_ignored() -> None:
    """An integer of four thousand digits is valid JSON, but no seed, no place, no state."""
    huge = "9" * 4000
    body = f'{{"images": ["{PNG}"], "info": {{"all_seeds": [{huge}], "index_of_first_image": {huge}}}}}'
    assert judge(body.encode()).images[0].seed == 7
    with pytest.raises(GenerationRejected, match="odd"):
        judge(f'{{"detail": [{{"loc": [{huge}], "msg": "odd"}}, {{"msg": {huge}}}]}}'.encode(), status=422)


def test_the_rest_of_the_answer_is_kept() -> None:
    """For callers who asked in the server's language: its echo, its very info, pictures beside the real ones."""
    info = json.dumps(info_of(), indent=1)
    output = judge(answer((PNG, "map", 3), info, parameters={"prompt": "a cat"}))
    assert output.native == {"parameters": {"prompt": "a cat"}, "info": info, "images_beside": ("map",)}
    gridded = judge(answer(("grid", PNG, "map"), info_of(index_of_first_image=1)))
    assert gridded.native["images_beside"] == ("map",)
    scripted = judge(answer((PNG, PNG)), scripted=True)
    assert scripted.native["images_beside"] == ()


def test_one_image_has_its_own_words() -> None:
    """``extra-single-image`` tells of what it did as HTML."""
    body = json.dumps({"html_info": "<p>", "image": PNG}).encode()
    assert judge(body, expect=Expectation(1, 64, 48, ()), single=True).native == {"html_info": "<p>"}

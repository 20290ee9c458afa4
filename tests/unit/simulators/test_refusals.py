"""What the servers refuse, and in which words."""

from __future__ import annotations

from typing import Any

import pytest

from tests.support.sims import A1111, ALL, SDNEXT, info, simulated
from worker.simulators import Knobs


def http_body(dialect: str, status: int, detail: str) -> dict[str, Any]:
    """The body of the server's own refusals."""
    if dialect == "forge":
        return {"detail": detail}
    if dialect == "sdnext":
        text = f"{status}: {detail}"
        return {"error": "HTTPException", "code": status, "detail": detail, "body": "", "errors": text}
    return {"error": "HTTPException", "detail": detail, "body": "", "errors": ""}


def exception_body(dialect: str, kind: str, text: str) -> dict[str, Any]:
    """The body of exceptions that got out."""
    code = {"code": 500} if dialect == "sdnext" else {}
    return {"error": kind, **code, "detail": "", "body": ""} | {"message" if dialect == "forge" else "errors": text}


WRONG_STEPS_2 = {
    "type": "int_parsing",
    "loc": ["body", "steps"],
    "msg": "Input should be a valid integer, unable to parse string as an integer",
    "input": "many",
}
WRONG_STEPS_1 = {"loc": ["body", "steps"], "msg": "value is not a valid integer", "type": "type_error.integer"}


@pytest.mark.parametrize("dialect", ALL)
async def test_a_wrong_type_is_refused_in_the_words_of_its_pydantic(dialect: str) -> None:
    """422 with pydantic 2's items, Forge's with a link, or pydantic 1's."""
    async with simulated(dialect) as s:
        response = await s.generate(steps="many")
    wanted: dict[str, Any] = WRONG_STEPS_2 if dialect in ("sdnext", "forge") else WRONG_STEPS_1
    if dialect == "forge":
        wanted = wanted | {"url": "https://errors.pydantic.dev/2.8/v/int_parsing"}
    assert (response.status_code, response.json()) == (422, {"detail": [wanted]})


@pytest.mark.parametrize(
    ("field", "value", "kind"),
    [
        ("cfg_scale", "high", "type_error.float"),
        ("enable_hr", "perhaps", "type_error.bool"),
        ("prompt", [], "type_error.str"),
        ("styles", "none", "type_error.list"),
        ("override_settings", [], "type_error.dict"),
        ("send_images", None, "type_error.none.not_allowed"),
    ],
)
async def test_pydantic_1_names_every_type(field: str, value: Any, kind: str) -> None:
    """The older servers' codes for the other types."""
    async with simulated("a1111-1.7") as s:
        fields: dict[str, Any] = {field: value}
        response = await s.generate(**fields)
    assert [p["type"] for p in response.json()["detail"]] == [kind]


async def test_pydantic_1_takes_numbers_for_text_and_cuts_fractions() -> None:
    """What the newer servers refuse, the older ones bend into shape."""
    odd: dict[str, Any] = {"prompt": 5, "steps": 2.9}
    async with simulated("a1111-1.7") as s:
        assert (await s.generate(**odd)).json()["parameters"]["steps"] == 2
    async with simulated("sdnext") as s:
        assert (await s.generate(**odd)).status_code == 422


@pytest.mark.parametrize("dialect", ["sdnext", "a1111"])
@pytest.mark.parametrize(
    ("content", "kind", "types"),
    [
        (b"", "application/json", ("missing", "value_error.missing")),
        (b"{broken", "application/json", ("json_invalid", "value_error.jsondecode")),
        (b"[]", "application/json", ("model_attributes_type", "type_error.dict")),
        (b"{}", "text/plain", ("model_attributes_type", "type_error.dict")),
    ],
)
async def test_a_body_that_is_no_json_object_is_refused(
    dialect: str, content: bytes, kind: str, types: tuple[str, str]
) -> None:
    """Nothing, broken JSON, a list and plain text are validation errors."""
    async with simulated(dialect) as s:
        url = "/sdapi/v1/txt2img"
        response = await s.client.post(url, content=content, headers={"content-type": kind})
    assert response.status_code == 422
    assert response.json()["detail"][0]["type"] == types[dialect == "a1111"]


async def test_a_body_in_no_known_encoding_is_a_bad_request() -> None:
    """Bytes that are no text at all: 400."""
    async with simulated("sdnext") as s:
        response = await s.client.post("/sdapi/v1/txt2img", content=b'{"prompt":"\xff\xfe"}')
        options = await s.post("options", ["no object"])
    assert response.status_code == 400
    assert options.status_code == 422


@pytest.mark.parametrize("dialect", ALL)
async def test_an_unknown_sampler_is_refused_or_silently_replaced(dialect: str) -> None:
    """404 from SD.Next and Automatic1111 up to 1.8; since 1.9 the first sampler is used and nobody says so."""
    async with simulated(dialect) as s:
        response = await s.generate(sampler_name="No Such Sampler")
    if dialect in ("a1111", "forge"):
        assert response.status_code == 200
        assert info(response)["sampler_name"] == "DPM++ 2M"
        assert "Schedule type: Karras" in info(response)["infotexts"][0]
    else:
        assert (response.status_code, response.json()) == (404, http_body(dialect, 404, "Sampler not found"))


@pytest.mark.parametrize(
    ("dialect", "asked", "ran"),
    [
        ("sdnext", "euler A", "Euler a"),
        ("sdnext", "DPM++ 2M Karras", None),
        ("sdnext-2023", "euler a", None),
        ("sdnext-2023", "Euler a", "Euler a"),
        ("a1111-1.7", "DPM++ 2M Karras", "DPM++ 2M Karras"),
        ("a1111", "DPM++ 2M Karras", "DPM++ 2M"),
        ("a1111", "Euler a", "Euler a"),
        ("sdnext", "", "Default"),
    ],
)
async def test_sampler_names_are_read_as_each_server_reads_them(dialect: str, asked: str, ran: str | None) -> None:
    """Case, and the scheduler in the name, matter to some."""
    async with simulated(dialect) as s:
        response = await s.generate(sampler_name=asked)
    assert response.status_code == (404 if ran is None else 200)
    if ran:
        assert info(response)["sampler_name"] == ran


async def test_a_scheduler_goes_beside_the_sampler() -> None:
    """Since 1.9 the scheduler is a field of its own, by name or label."""
    async with simulated("a1111") as s:
        text = info(await s.generate(sampler_name="Euler", scheduler="sgm_uniform"))["infotexts"][0]
    assert "Schedule type: SGM Uniform" in text


@pytest.mark.parametrize("dialect", ALL)
async def test_unknown_scripts_are_refused(dialect: str) -> None:
    """422 with a plain text as detail; SD.Next of today minds the always-on ones only."""
    async with simulated(dialect) as s:
        always = await s.generate(alwayson_scripts={"nope": {}})
        named = await s.generate(script_name="nope")
        known = await s.generate(alwayson_scripts={"controlnet": {"args": []}})
    detail = "Always on script not found: nope" if dialect == "sdnext" else "Script 'nope' not found"
    assert (always.status_code, always.json()) == (422, http_body(dialect, 422, detail))
    assert named.status_code == (200 if dialect == "sdnext" else 422)
    assert known.status_code == 200


@pytest.mark.parametrize("dialect", ALL)
async def test_an_unknown_override_fails_or_is_ignored(dialect: str) -> None:
    """A KeyError everywhere but in the current SD.Next; null passes."""
    async with simulated(dialect) as s:
        response = await s.generate(override_settings={"no_such_option": 1})
        null = await s.generate(override_settings={"no_such_option": None})
        option = await s.post("options", {"no_such_option": 1})
    assert null.status_code == 200
    if dialect == "sdnext":
        assert response.status_code == 200
        assert option.json() == {"updated": [{"no_such_option": False}]}
    else:
        wanted = exception_body(dialect, "KeyError", "'no_such_option'")
        assert (response.status_code, response.json()) == (500, wanted)
        assert (option.status_code, option.json()) == (500, wanted)


@pytest.mark.parametrize("dialect", ALL)
async def test_img2img_without_an_image_is_refused(dialect: str) -> None:
    """SD.Next of today has a body of its own for it."""
    async with simulated(dialect) as s:
        response = await s.post("img2img", {"prompt": "p"})
    if dialect == "sdnext":
        assert (response.status_code, response.json()) == (400, {"error": "Init image is none"})
    else:
        assert (response.status_code, response.json()) == (404, http_body(dialect, 404, "Init image not found"))


@pytest.mark.parametrize("dialect", ALL)
@pytest.mark.parametrize(
    ("value", "detail"),
    [
        ("bm8gaW1hZ2U=", "Invalid encoded image"),
        ("data:image/png;base64,###", "Invalid encoded image"),
        ("http://127.0.0.1/x.png", "Request to local resource not allowed"),
        ("https://example.com/x.png", "Invalid image url"),
    ],
)
async def test_an_input_image_that_is_none_is_an_error(dialect: str, value: str, detail: str) -> None:
    """500 with a text; only Automatic1111 would fetch URLs."""
    async with simulated(dialect) as s:
        response = await s.post("img2img", {"prompt": "p", "init_images": [value]})
    wanted = "Invalid encoded image" if dialect in SDNEXT else detail
    assert (response.status_code, response.json()) == (500, http_body(dialect, 500, wanted))


@pytest.mark.parametrize(
    ("dialect", "fields", "kind"),
    [
        ("sdnext", {"n_iter": 0}, "IndexError"),
        ("sdnext", {"width": 8}, "TypeError"),
        ("forge", {"steps": 0}, "ZeroDivisionError"),
        ("a1111", {"width": -64}, "RuntimeError"),
        ("a1111", {"refiner_checkpoint": "nosuch"}, "Exception"),
        ("a1111", {"enable_hr": True, "hr_checkpoint_name": "nosuch"}, "Exception"),
    ],
)
async def test_nonsense_makes_the_server_stumble(dialect: str, fields: dict[str, Any], kind: str) -> None:
    """Requests that pass the schema and break the code: 500 with the exception's name."""
    async with simulated(dialect) as s:
        response = await s.generate(**fields)
    assert (response.status_code, response.json()["error"]) == (500, kind)


@pytest.mark.parametrize("dialect", SDNEXT)
async def test_sdnext_answers_an_impossible_size_with_no_picture(dialect: str) -> None:
    """A negative width, or one too large for the memory, is 200, no image, and a complete info."""
    async with simulated(dialect) as s:
        negative = await s.generate(width=-64)
        huge = await s.generate(width=100_000, height=100_000)
        memory = (await s.get("memory")).json()["cuda"]["events"]["oom"]
    for response in (negative, huge):
        assert (response.status_code, response.json()["images"]) == (200, [])
        assert info(response)["prompt"] == "a cat"
    assert memory == 1


@pytest.mark.parametrize("dialect", A1111)
async def test_automatic1111_answers_a_size_too_large_with_an_error(dialect: str) -> None:
    """The same is an honest 500 there."""
    async with simulated(dialect) as s:
        response = await s.generate(width=100_000, height=100_000)
    assert (response.status_code, response.json()["error"]) == (500, "OutOfMemoryError")


@pytest.mark.parametrize("dialect", ALL)
async def test_paths_and_methods_that_do_not_exist(dialect: str) -> None:
    """404 and 405 in the framework's own words, and the old lists' absence."""
    async with simulated(dialect) as s:
        path, method = await s.get("nosuch"), await s.get("txt2img")
    assert (path.status_code, path.json()) == (404, {"detail": "Not Found"})
    assert (method.status_code, method.json()) == (405, {"detail": "Method Not Allowed"})


@pytest.mark.parametrize("dialect", ALL)
async def test_login_is_asked_for_as_each_server_does(dialect: str) -> None:
    """HTTP Basic; only Forge keeps the header; Automatic1111's LoRA list stays open."""
    async with simulated(dialect, auth="u:p") as s:
        missing = await s.get("options")
        wrong = await s.get("options", auth=("u", "wrong"))
        right = await s.get("options", auth=("u", "p"))
        loras = await s.get("loras")
    detail = "Unauthorized" if dialect in SDNEXT else "Incorrect username or password"
    assert (missing.status_code, missing.json()) == (401, http_body(dialect, 401, "Not authenticated"))
    assert (wrong.status_code, wrong.json()) == (401, http_body(dialect, 401, detail))
    assert ("www-authenticate" in missing.headers) == (dialect == "forge")
    assert right.status_code == 200
    assert loras.status_code == (401 if dialect in SDNEXT else 200)


async def test_the_rate_limiter_throws_finished_work_away() -> None:
    """SD.Next allows 300 points a minute, a generation costs five, and the answer is 429 after the work."""
    async with simulated("sdnext", Knobs(step_seconds=0)) as s:
        await s.post("options", {"server_rate_limit": 10})
        codes = [(await s.generate()).status_code for _ in range(3)]
        limited = await s.generate()
        assert codes == [200, 200, 429]
        assert limited.json() == http_body("sdnext", 429, "::1:/sdapi/v1/txt2img: rate limit exceeded")
        assert "retry-after" not in limited.headers
        assert len(s.sim.stats.generations) == 4
        assert [(await s.get("status")).status_code for _ in range(11)] == [200] * 10 + [429]
        await s.post("options", {"server_rate_limit": 0})
        assert (await s.generate()).status_code == 200


async def test_other_servers_have_no_rate_limiter() -> None:
    """Salad's fork and Automatic1111 never answer 429 by themselves."""
    async with simulated("sdnext-2023") as s:
        codes = {(await s.get("progress")).status_code for _ in range(301)}
    assert codes == {200}

"""The pages of a real worker with work under way, in a real browser."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest

from tests.support.bench import RunningWorker, params, running_worker
from tests.support.browser import Page, browser
from tests.support.model_host import ModelHost
from tests.support.receiver import Answer
from tests.support.stocked import Stocked, stocked
from worker.simulators import comfyui

pytestmark = pytest.mark.browser

KEY = "sésame"
NASTY = "<img/src=x/onerror=alert(1)>"
LORA = "ink.safetensors"
SLOW = {"width": 256, "height": 256, "steps": 60}
OVERLAP = """(() => {
  const lane = (hop) => [...document.querySelectorAll(`rect.hop-${hop}`)].map((bar) => bar.getBoundingClientRect());
  const beside = (a) => lane("generate").filter((b) => b.left < a.right - 2 && a.left < b.right - 2);
  return lane("settle").some((a) => beside(a).length > 1);
})()"""
"""Whether a webhook was under way while several jobs generated, one after the other."""


@pytest.fixture
async def page(tmp_path: Path) -> AsyncIterator[Page]:
    async with browser(tmp_path / "profile") as found:
        yield found


def origin(worker: RunningWorker[Any]) -> str:
    return str(worker.client.base_url).rstrip("/")


def strays(page: Page, worker: RunningWorker[Any]) -> list[str]:
    """What the page asked for that is not the worker's own."""
    return [url for url in page.requests if not url.startswith((origin(worker) + "/", "data:", "blob:"))]


def complaints(page: Page) -> list[str]:
    """A look may come too late for its job; that is no fault of the page's."""
    return [said for said in page.complaints if not said.endswith("/preview")]


async def busy(stock: Stocked, host: ModelHost) -> None:
    """Jobs that ended well and badly, the webhook of one held up, and one that runs while another is held."""
    worker = stock.worker
    stock.offer(f"/lora/{LORA}", "ink", kind="lora", size=400_000)
    worker.receiver.script.append(Answer(hang=True))
    models = [stock.ref("lora", LORA, f"/lora/{LORA}")]
    await worker.submit("first", params={**params("a cat"), "loras": [{"name": LORA}]}, models=models)
    for number in range(4):
        await worker.submit(f"cat-{number}", params=params("a cat", steps=12))
    await worker.submit("bad", params=params("a cat", width=100_000))
    await worker.ended("cat-3")
    await worker.ended("bad")
    await worker.ended("first")
    for number in range(3):
        await worker.submit(f"dog-{number}", params={"prompt": "a dog", **SLOW})


async def test_the_page_shows_work_under_way(tmp_path: Path, page: Page) -> None:
    """Phase, the running job with progress and a look, the timeline, models against the cap, counters, the node."""
    knobs = comfyui.Knobs(preview_method="latent2rgb", step_seconds=0.05)
    async with (
        ModelHost() as host,
        stocked(
            "comfyui",
            tmp_path,
            host,
            knobs=knobs,
            WORKER_WEBHOOK_TIMEOUT="2s",
            WORKER_HTTP_JOBS="on",
            WORKER_MODELS_MAX_SIZE="1MB",
        ) as stock,
    ):
        await busy(stock, host)
        await page.open(origin(stock.worker) + "/")
        await page.becomes("document.getElementById('phase').textContent === '✓ ready'")
        await page.becomes("document.getElementById('bar').value > 0.3 && !document.getElementById('bar').hidden")
        await page.becomes("document.getElementById('preview').naturalWidth > 0")
        await page.picture(tmp_path / "page.png")
        assert (await page.texts("#job"))[0].startswith("▸ dog-")
        assert "left" in (await page.texts("#left"))[0]
        assert {"✓ succeeded", "✗ failed: invalid job"} <= set(await page.texts("#last td.good, #last td.bad"))
        assert len(await page.texts("#bars g.job")) >= 7
        assert await page.value(OVERLAP)
        assert {"models", "generate", "images", "upload", "webhook"} == set(await page.texts("#lanes text"))
        assert "of the cap of 1.0 MB used" in (await page.texts("#room"))[0]
        assert LORA in await page.texts("#models td:first-child")
        assert "● in the server's memory" in await page.texts("#models td:nth-child(3)")
        assert {"✓ succeeded", "✗ failed: invalid job", "received"} <= set(await page.texts("#counters span"))
        assert {"w1", "sqlite", "directory"} <= set(await page.texts("#node dd"))
        assert "Waiting HTTP jobs: 0 of at most 16" in await page.texts("#desk")
        assert (strays(page, stock.worker), complaints(page)) == ([], [])


async def test_a_bar_tells_of_its_job(tmp_path: Path, page: Page) -> None:
    """Whoever points at it or goes there by the keyboard reads which job it is, and what its hops took; it stays."""
    async with running_worker(tmp_path, "sdnext") as worker:
        await worker.done("cat-1")
        await page.open(origin(worker) + "/")
        await page.becomes("document.querySelectorAll('#bars g.job').length === 1")
        await page.value("document.querySelector('#bars g.job').focus()")
        assert (await page.texts("#told"))[0].startswith("cat-1: succeeded; models ")
        seen = await page.value("document.getElementById('last').tBodies[0].rows[0].cells[2].textContent")
        await page.becomes(f"document.getElementById('last').tBodies[0].rows[0].cells[2].textContent !== {seen!r}")
        assert await page.value("document.activeElement === document.querySelector('#bars g.job')")


async def test_names_of_jobs_are_only_texts(tmp_path: Path, page: Page) -> None:
    """On a phone, too, where nothing is wider than the screen."""
    async with running_worker(tmp_path, "sdnext", WORKER_NODE_ID=NASTY) as worker:
        await worker.done("j" * 128)
        await page.open(origin(worker) + "/", width=380, height=800, dark=True)
        await page.becomes("document.querySelectorAll('#bars g.job').length === 1")
        await page.picture(tmp_path / "phone.png")
        assert await page.value("document.documentElement.scrollWidth <= innerWidth")
        assert NASTY in await page.texts("#node dd")
        assert await page.value("document.querySelectorAll('dd img').length") == 0
        assert (strays(page, worker), complaints(page)) == ([], [])


async def test_the_page_says_when_the_worker_is_gone(tmp_path: Path, page: Page) -> None:
    """What stands there is of then."""
    async with running_worker(tmp_path, "sdnext") as worker:
        await page.open(origin(worker) + "/")
        await page.becomes("document.getElementById('phase').textContent === '✓ ready'")
        assert await page.value("document.getElementById('away').hidden")
    await page.becomes("!document.getElementById('away').hidden && document.body.className === 'away'")
    [said] = await page.texts("#away")
    assert said.startswith("This worker does not answer since ")


@pytest.mark.parametrize(("dialect", "path"), [("sdnext", "/sdapi/v1/txt2img"), ("comfyui", "/v1/jobs")])
async def test_an_example_is_sent_by_a_click(tmp_path: Path, page: Page, dialect: str, path: str) -> None:
    """With a key the browser asks for it; the answer's pictures are shown as such, and each example can be chosen."""
    async with running_worker(
        tmp_path, dialect, WORKER_QUEUE="none", WORKER_API_KEY=KEY, WORKER_STORAGE="inline"
    ) as worker:
        await page.logs_in("anybody", KEY)
        await page.open(origin(worker) + "/docs")
        await page.becomes(f"!!document.getElementById('post{path}')")
        box = f"document.getElementById('post{path}')"
        await page.value(f"{box}.open = true")
        await page.becomes(f"!!{box}.querySelector('select.example')")
        names = await page.value(f"[...{box}.querySelector('select.example').options].map((one) => one.value)")
        chosen = f"{box}.querySelector('select.example')"
        await page.value(f"{chosen}.selectedIndex = {len(names) - 1}; {chosen}.dispatchEvent(new Event('change'))")
        await page.value(f"{box}.querySelector('button').click()")
        await page.becomes(f"({box}.querySelector('.gallery img') || {{}}).naturalWidth > 0")
        assert (await page.value(f"{box}.querySelector('pre.answer').textContent")).startswith("200 OK, after ")
        await page.value(f"{box}.scrollIntoView()")
        await page.picture(tmp_path / "docs.png", whole=False)
        assert (strays(page, worker), complaints(page)) == ([], [])


async def test_the_key_may_be_given_on_the_page(tmp_path: Path, page: Page) -> None:
    """Sent as a header; without it the page says what it was answered."""
    async with running_worker(tmp_path, "sdnext", WORKER_QUEUE="none", WORKER_API_KEY="sesame") as worker:
        await page.logs_in("anybody", "sesame")
        await page.open(origin(worker) + "/docs")
        await page.becomes("!!document.getElementById('get/v1/status')")
        await page.value("document.getElementById('key').value = 'sesame'")
        await page.value("document.getElementById('get/v1/status').open = true")
        button = "document.getElementById('get/v1/status').querySelector('button')"
        await page.becomes(f"!!{button}")
        await page.value(f"{button}.click()")
        shown = "document.getElementById('get/v1/status').querySelector('pre.answer').textContent"
        await page.becomes(f"{shown}.startsWith('200 OK')")

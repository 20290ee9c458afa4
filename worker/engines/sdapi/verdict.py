"""Whether an answer is the picture that was asked for: HTTP 200 is no proof. No I/O, and total.

Whatever the bytes are, `classify` gives an `Output` or raises an error of `worker.errors`. What it answers to:
SD.Next swallows out of memory and a missing model and says 200 with no image or with the live preview; an
interrupted job is 200 with a partial one; unknown models in overrides are silently ignored by all; grids come
before the images and ControlNet's maps after them; formats follow a global option.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import pybase64

from worker.engines.answer import parsed
from worker.engines.base import Expectation, Output, RawImage
from worker.engines.sdapi.failure import failure
from worker.engines.sdapi.header import read_header
from worker.engines.sdapi.names import ModelFile, stem_of
from worker.errors import EngineOutOfMemory, OutputEmpty, OutputMismatch, WrongModel
from worker.result import EngineResult

Proof = Literal["hash", "name", "none"]
_HASH10 = re.compile(r"[0-9a-f]{10}")
_UNSAFE = str.maketrans("", "", ",:")


@dataclass(frozen=True, slots=True)
class Context:
    """What only the driver knows about an answer.

    ``sizes``: the sizes in pixels that are right where the expectation names none; empty: any. ``oom``: the
    server's own counter of out-of-memory events grew meanwhile. ``interrupted``: it says that it was stopped.
    ``scripted``: a script runs the job, and it alone decides how many images come, of which size and seed.
    """

    engine: str
    checkpoint: ModelFile | None = None
    sizes: frozenset[tuple[int, int]] = frozenset()
    oom: bool = False
    interrupted: bool = False
    scripted: bool = False
    single: bool = False


@dataclass(frozen=True, slots=True)
class _Identity:
    hash10: str | None
    name: str | None
    version: str | None


def classify(
    status: int, headers: Mapping[str, str], body: bytes, expect: Expectation, context: Context = Context("a1111")
) -> Output:
    """The images and what made them, or the error that the answer stands for."""
    if not 200 <= status < 300:
        raise failure(status, headers, body)
    document = parsed(body)
    if not isinstance(document, dict):
        raise OutputEmpty("the server answered 200 with something that is no JSON object")
    info = _info(document.get("info"))
    encoded = [document.get("image")] if context.single else document.get("images")
    datas = _images(encoded, info, document.get("info"), expect, context)
    for data in datas:
        _check_picture(data, expect, context)
    if context.interrupted:
        raise _spoilt("the server says that the generation was interrupted or skipped", context)
    proof, identity = _prove(info, expect, context)
    warnings = ("model_unproven",) if context.checkpoint is not None and proof == "none" else ()
    seeds = _seeds(info, len(datas), expect, context)
    engine = EngineResult(
        name=context.engine,
        version=identity.version,
        model=identity.name or (context.checkpoint.name if context.checkpoint else None),
        model_hash=identity.hash10,
        proof=proof,
        info=info or None,
    )
    images = tuple(RawImage(data, seed) for data, seed in zip(datas, seeds, strict=True))
    return Output(images, engine, warnings=warnings, native=_native(document, len(datas), expect, context))


def _native(document: Mapping[str, Any], count: int, expect: Expectation, context: Context) -> dict[str, Any]:
    """What the answer holds beside the images; ``images_beside`` are those that came after the real ones."""
    if context.single:
        return {"html_info": document.get("html_info", "")}
    listed, info = document.get("images"), _info(document.get("info"))
    after = listed[_first(listed, info) + count :] if isinstance(listed, list) and not context.scripted else []
    told = {key: document.get(key) for key in ("parameters", "info")}
    return {**told, "images_beside": tuple(image for image in after if isinstance(image, str))}


def _info(value: Any) -> dict[str, Any]:
    """``info`` is a text that holds JSON; SD.Next's is empty when no model was there."""
    found = parsed(value.encode("utf-8", "replace")) if isinstance(value, str) else value
    return found if isinstance(found, dict) else {}


def _images(encoded: Any, info: dict[str, Any], raw_info: Any, expect: Expectation, context: Context) -> list[bytes]:
    """The real images, decoded: without a grid before them and ControlNet's maps after them."""
    listed = encoded if isinstance(encoded, list) else []
    first = _first(listed, info)
    count = 1 if context.scripted else expect.count or 1
    chosen = listed if context.scripted else listed[first : first + count]
    if len(chosen) < count or not any(chosen):
        raise _too_few(len([c for c in chosen if c]), raw_info, expect, context)
    return [_decoded(item) for item in chosen]


def _first(listed: Sequence[Any], info: Mapping[str, Any]) -> int:
    """Where the real images begin: a grid may come before them."""
    first = info.get("index_of_first_image")
    return first if type(first) is int and 0 < first < len(listed) else 0


def _too_few(count: int, raw_info: Any, expect: Expectation, context: Context) -> OutputEmpty | EngineOutOfMemory:
    said = f"the server answered 200 with {count} images instead of {expect.count}"
    if context.oom:
        return EngineOutOfMemory(f"{said}, and ran out of memory meanwhile")
    if count == 0 and raw_info == "":
        return OutputEmpty(f"{said}: it has no model loaded")
    return OutputEmpty(f"{said}: it swallows its own errors" if count == 0 else said)


def _decoded(item: Any) -> bytes:
    if not isinstance(item, str):
        raise OutputMismatch("an image is no text")
    text = item.partition(",")[2] if item.startswith("data:") else item
    try:
        return pybase64.b64decode(text, validate=True)
    except ValueError:
        raise OutputMismatch("an image is not valid base64") from None


def _check_picture(data: bytes, expect: Expectation, context: Context) -> None:
    header = read_header(data)
    if header is None:
        raise OutputMismatch("an image is neither PNG, JPEG nor WebP")
    right = context.sizes
    if expect.width is not None and expect.height is not None:
        right = frozenset({(expect.width, expect.height)})
    size = (header.width, header.height)
    if 0 in size:
        raise OutputMismatch(f"a {header.format} image is cut off in its header")
    if context.scripted or not right or size in right:
        return
    said = f"an image has {size[0]}x{size[1]} pixels instead of {' or '.join(f'{w}x{h}' for w, h in sorted(right))}"
    raise _spoilt(said, context)


def _spoilt(said: str, context: Context) -> OutputMismatch | EngineOutOfMemory:
    """SD.Next gives its preview as the result when it runs out of memory, and calls the job interrupted."""
    if context.oom:
        return EngineOutOfMemory(f"{said}, and it ran out of memory meanwhile")
    return OutputMismatch(said)


def _prove(info: dict[str, Any], expect: Expectation, context: Context) -> tuple[Proof, _Identity]:
    """How sure it is that the expected model was used: by hash before name; `WrongModel` when it was another."""
    texts = info.get("infotexts")
    said = [_from_infotext(t) for t in texts if isinstance(t, str)] if isinstance(texts, list) else []
    name, hashed = info.get("sd_model_name"), info.get("sd_model_hash")
    own = _Identity(
        hashed if isinstance(hashed, str) and _HASH10.fullmatch(hashed) else None,
        name if isinstance(name, str) and name else None,
        info["version"] if isinstance(info.get("version"), str) else None,
    )
    identities = [own, *said]
    best = _Identity(
        next((i.hash10 for i in identities if i.hash10), None),
        next((i.name for i in identities if i.name), None),
        next((i.version for i in identities if i.version), None),
    )
    if context.checkpoint is None:
        return "none", best
    proofs = {_compared(identity, context.checkpoint) for identity in identities}
    return ("hash" if "hash" in proofs else "name" if "name" in proofs else "none"), best


def _compared(said: _Identity, wanted: ModelFile) -> Proof:
    if said.hash10 and wanted.hash10 and len(wanted.hash10) == 10:
        if said.hash10 != wanted.hash10:
            raise WrongModel(f"the model {(said.name or '?')[:200]} [{said.hash10}] was used instead of {wanted.title}")
        return "hash"
    if not said.name:
        return "none"
    theirs = {_plain(said.name), _plain(stem_of(said.name))}
    ours = {_plain(wanted.stem), _plain(wanted.name), _plain(stem_of(wanted.title)), _plain(wanted.title)}
    if theirs & ours:
        return "name"
    raise WrongModel(f"the model {said.name[:200]} was used instead of {wanted.title}")


def _plain(name: str) -> str:
    """As infotexts write names: Automatic1111 drops commas and colons there."""
    return name.translate(_UNSAFE).strip()


_MODEL = re.compile(r'(?:^|, )Model: (?:"((?:[^"\\]|\\.)*)"|([^,\n]*))')
_MODEL_HASH = re.compile(r"(?:^|, )Model hash: ([0-9a-f]{10})(?:,|$)")
_VERSION = re.compile(r"(?:^|, )Version: ([^,\n]*)")


def _from_infotext(text: str) -> _Identity:
    """Only what follows the last ``Steps:`` line is the server's: the prompt before it may say anything."""
    line = ("\n" + text).rpartition("\nSteps: ")[2].split("\n", 1)[0]
    model, hashed, version = _MODEL.search(line), _MODEL_HASH.search(line), _VERSION.search(line)
    name = (model[1] if model[1] is not None else model[2]).strip() if model else None
    return _Identity(hashed[1] if hashed else None, name or None, version[1].strip() if version else None)


def _seeds(info: dict[str, Any], count: int, expect: Expectation, context: Context) -> Sequence[int | None]:
    """The seed of each image, which must be the ones that were asked for, where the server tells any."""
    told = info.get("all_seeds")
    told = told if isinstance(told, list) and told else [info.get("seed")]
    listed = [s for s in told if type(s) is int and abs(s) < 2**65]
    if context.scripted or not expect.seeds:
        return [listed[i] if i < len(listed) else None for i in range(count)]
    for ours, theirs in zip(expect.seeds, listed, strict=False):
        if ours != theirs:
            raise OutputMismatch(f"an image has the seed {theirs} instead of {ours}")
    return [expect.seeds[i] if i < len(expect.seeds) else None for i in range(count)]

"""Whether a finished job made what was asked for: SUCCESS is no proof. No I/O, and total.

The server silently uses its default model for a name that it does not know; the file that it saves says which one
was used (0.5 with the model's hash), unless the request turned that off.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any, Literal

from worker.engines.base import Expectation, Output, RawImage
from worker.engines.fooocus.metadata import Saved, saved
from worker.errors import OutputEmpty, OutputMismatch, WrongModel
from worker.result import EngineResult

SUCCESS = "SUCCESS"
Proof = Literal["hash", "name", "none"]


@dataclass(frozen=True, slots=True)
class Made:
    """A picture as ``job_result`` names it."""

    url: str
    seed: int | None


def made(document: Any, expect: Expectation) -> tuple[Made, ...]:
    """The pictures of a finished job. Raises `OutputEmpty` for fewer than were asked for, `OutputMismatch`."""
    listed = document.get("job_result") if isinstance(document, dict) else None
    found = [_made(item) for item in listed] if isinstance(listed, list) else []
    good = tuple(item for item in found if item is not None)
    if len(good) < (expect.count or 1):
        raise OutputEmpty(f"the job ended with {len(good)} pictures instead of {expect.count or 'any'}")
    good = good[: expect.count] if expect.count is not None else good
    for wanted, picture in zip(expect.seeds, good, strict=False):
        if picture.seed != wanted:
            raise OutputMismatch(f"a picture has the seed {picture.seed} instead of {wanted}")
    return good


def _made(item: Any) -> Made | None:
    if not isinstance(item, dict) or item.get("finish_reason") != SUCCESS or not isinstance(item.get("url"), str):
        return None
    seed = item.get("seed")
    number = int(seed) if isinstance(seed, str) and seed.isascii() and seed.isdecimal() and len(seed) < 20 else None
    return Made(item["url"], number)


def judged(
    pictures: Sequence[Made], datas: Sequence[bytes], expect: Expectation, *, version: str, sha256: str | None
) -> Output:
    """The output, once each file is what it should be. ``sha256``: the wanted model's, where the job gives it."""
    found = [_checked(data, expect) for data in datas]
    proofs = {_proof(f, expect.checkpoint, sha256) for f in found}
    proof: Proof = "none" if "none" in proofs else "name" if "name" in proofs else "hash"
    first = found[0]
    engine = EngineResult(
        name="fooocus",
        version=version,
        model=expect.checkpoint or first.model,
        model_hash=first.hash10,
        proof=proof,
        info=first.info,
    )
    images = tuple(RawImage(data, picture.seed) for data, picture in zip(datas, pictures, strict=True))
    return Output(images, engine, warnings=("model_unproven",) if proof == "none" else ())


def _checked(data: bytes, expect: Expectation) -> Saved:
    found = saved(data)
    if found is None:
        raise OutputMismatch("a picture is no PNG")
    if not found.width or not found.height:
        raise OutputMismatch("a picture is cut off in its header")
    if expect.width is not None and (found.width, found.height) != (expect.width, expect.height):
        said = f"a picture has {found.width}x{found.height} pixels instead of {expect.width}x{expect.height}"
        raise OutputMismatch(said)
    return found


def _proof(found: Saved, wanted: str | None, sha256: str | None) -> Proof:
    if wanted is None or found.model is None:
        return "none"
    if sha256 is not None and found.hash10 is not None:
        if not sha256.startswith(found.hash10):
            raise WrongModel(f"the model {found.model[:200]} [{found.hash10}] was used instead of {wanted}")
        return "hash"
    theirs, ours = found.model.replace("\\", "/"), wanted.replace("\\", "/")
    whole = ours.rpartition(".")[0] or ours
    if theirs not in (whole, PurePosixPath(whole).name, ours, PurePosixPath(ours).stem):
        raise WrongModel(f"the model {found.model[:200]} was used instead of {wanted}")
    return "name"

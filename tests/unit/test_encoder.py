"""What an encoder is told beyond the quality counts in the file."""

from __future__ import annotations

import random
from io import BytesIO

import pytest
from PIL import Image

from tests.support.pictures import Sent, encoded, picture
from worker.errors import InvalidJob
from worker.images import Encoding, verified
from worker.job import EncoderSpec, Job, Limits, parse


def made(sent: bytes, encoding: Encoding) -> bytes:
    return verified(Sent(sent), 0, width=64, height=48, encoding=encoding).data


def test_a_jpeg_is_progressive_and_keeps_all_colours_where_it_is_told_to() -> None:
    """Otherwise it is neither, as ever."""
    sent = encoded(picture())
    told = EncoderSpec(progressive=True, subsampling="4:4:4", optimize=True)
    plain, other = (
        Image.open(BytesIO(made(sent, Encoding(format="jpeg", encoder=spec)))) for spec in (EncoderSpec(), told)
    )
    assert [one.info.get("progressive") for one in (plain, other)] == [None, 1]
    assert [one.layer[0][1:3] for one in (plain, other)] == [(2, 2), (1, 1)]  # type: ignore[attr-defined]


def test_a_webp_takes_as_much_effort_as_it_is_told() -> None:
    """And what is transparent may lose more than the colours do."""
    noisy = picture(mode="RGBA")
    noisy.putalpha(Image.frombytes("L", noisy.size, random.Random(1).randbytes(64 * 48)))
    sent = encoded(noisy)
    specs = (EncoderSpec(effort=0), EncoderSpec(effort=6), EncoderSpec(effort=6, alpha_quality=0))
    sizes = [len(made(sent, Encoding(format="webp", encoder=spec))) for spec in specs]
    assert sizes == sorted(set(sizes), reverse=True)


@pytest.mark.parametrize(("field", "value"), [("effort", 7), ("alpha_quality", -1), ("subsampling", "4:1:1"), ("x", 1)])
def test_a_job_tells_what_encoders_know(field: str, value: object) -> None:
    """Any other value is refused by its field."""
    document = {"params": {"prompt": "x"}, "output": {"encoder": {field: value}}}
    with pytest.raises(InvalidJob, match=rf"output\.encoder\.{field}"):
        parse(document, fallback_id="j", limits=Limits())
    assert Job(id="j", params={"prompt": "x"}).output.encoder == EncoderSpec()

"""What the endpoints in a server's own language share."""

from __future__ import annotations

import asyncio
import weakref
from typing import Any, cast

from tests.support.native import Caller
from tests.support.office import Office
from tests.support.virtual import virtual
from worker.api.native import Native, done
from worker.desk import Ended


class Document(dict[str, Any]):
    """One that can be seen to be let go of."""


@virtual
async def test_the_document_is_let_go_of_while_its_job_waits() -> None:
    """It may hold images, and many may wait."""
    office = Office()
    office.engine.seconds = 100
    caller = Caller()
    await caller.request.body()
    document = Document(params={"prompt": "x"})
    held = weakref.ref(document)
    async with office.open():
        answer = done(caller.request, cast("Native", office), document)
        del document
        task = asyncio.create_task(answer, name="caller")
        await office.until(lambda: len(tuple(office.desk.tickets)) == 1)
        assert held() is None
        end = await task
    assert isinstance(end, Ended)
    assert end.made is not None

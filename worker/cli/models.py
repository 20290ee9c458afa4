"""`sd-worker models`: what lies in the model folders, fetching, removing and verifying it."""

from __future__ import annotations

import asyncio
import dataclasses
import json
import re
import sys
from collections.abc import AsyncIterator, Sequence
from typing import Annotated

import typer

from worker.cli import FAILED
from worker.cli.output import complain, print_rows
from worker.cli.pulling import Pulled, pull, shown, wanted_of
from worker.cli.rows import Row, rows_of, size_shown, survey_rows
from worker.cli.running import running
from worker.cli.shelf import bake as bake_all
from worker.cli.shelf import folders_of, opened, own, unlimited
from worker.cli.start import read_settings
from worker.errors import InvalidJob, WorkerError
from worker.mentions import Place, place_of
from worker.models.acts import survey
from worker.models.audit import State, examined
from worker.models.base import Wanted
from worker.models.folders import Folders
from worker.models.reconcile import Reconciled
from worker.settings.groups import Settings

HEAD = ("kind", "name", "size", "used", "sha256", "baked", "state")
_SHA256 = re.compile(r"[0-9a-f]{64}")

app = typer.Typer(no_args_is_help=True, add_completion=False, help="The model folders of the image server.")
Names = Annotated[list[str], typer.Argument(help="As `list` shows them: KIND/NAME.")]


@app.command("list")
def list_models(as_json: Annotated[bool, typer.Option("--json", help="A JSON list.")] = False) -> None:
    """List the models on disk, the last used first, and what is on its way."""
    rows = asyncio.run(_rows(read_settings(told=True)))
    if as_json:
        print(json.dumps([dataclasses.asdict(row) for row in rows], indent=2))
    else:
        print_rows(HEAD, [row.cells() for row in rows])


@app.command("pull")
def pull_models(
    models: Annotated[
        list[str], typer.Argument(help="URLs (https, s3, hf://, civitai://), AIR names, KIND/NAME, or names of --kind.")
    ],
    kind: Annotated[str | None, typer.Option(help="`checkpoint`, `lora`, `vae` ...: of all of them.")] = None,
    sha256: Annotated[str | None, typer.Option(help="Of the one model that is named.")] = None,
    name: Annotated[str | None, typer.Option(help="To store the one URL's file under.")] = None,
    bake: Annotated[bool, typer.Option("--bake", help="Make them part of the image that is being built.")] = False,
) -> None:
    """Fetch models, several at a time, each verified; exit 1 if one failed."""
    settings = read_settings(told=True)
    wanted = _all_wanted(models, kind, sha256, name)
    sys.exit(asyncio.run(_pull(settings, wanted, bake=bake)))


@app.command()
def remove(models: Names) -> None:
    """Delete models; exit 1 if one is not there, or is used."""
    places = [_place(text) for text in models]
    sys.exit(asyncio.run(_remove(read_settings(told=True), places)))


@app.command()
def verify(models: Annotated[list[str] | None, typer.Argument(help="KIND/NAME; without: all.")] = None) -> None:
    """Check headers and hashes, a line each; exit 1 if one is bad. Changes nothing."""
    places = [_place(text) for text in models or []]
    sys.exit(asyncio.run(_verify(folders_of(read_settings(told=True)), places)))


async def _rows(settings: Settings) -> list[Row]:
    """As the worker tells that has the folder, else as the folder itself does."""
    folders = await asyncio.to_thread(folders_of, settings)
    worker = await running(settings, folders)
    if worker is None:
        return await asyncio.to_thread(survey_rows, folders)
    async with worker:
        return rows_of(await worker.document())


def _all_wanted(models: Sequence[str], kind: str | None, sha256: str | None, name: str | None) -> list[Wanted]:
    """Each once. Usage errors for what cannot be."""
    if len(models) > 1 and (sha256 or name):
        raise typer.BadParameter("--sha256 and --name are for one model")
    digest = sha256.lower() if sha256 else None
    if digest is not None and not _SHA256.fullmatch(digest):
        raise typer.BadParameter("--sha256 must be 64 hexadecimal digits")
    found = {}
    for text in models:
        try:
            found[text] = wanted_of(text, kind, digest, name)
        except ValueError as error:
            raise typer.BadParameter(f"{text.partition('?')[0]}: {error}") from None
    return list(found.values())


async def _pull(settings: Settings, wanted: Sequence[Wanted], *, bake: bool) -> int:
    async with own(unlimited(settings)) if bake else opened(settings) as shelf:
        pulled = await pull(shelf, wanted, _tell)
    failed = [one for one in pulled if one.error is not None]
    complain(*(f"{shown(one.wanted)}: {one.error.code}: {one.error.message}" for one in failed if one.error))
    if bake and not failed:
        complain(f"{await bake_all(settings)} models are part of the image")
    return FAILED if failed else 0


def _tell(pulled: Pulled) -> None:
    """A line for what has come."""
    if pulled.entry is not None:
        entry = pulled.entry
        print("\t".join((str(entry.place), size_shown(entry.size), entry.sha256 or "")), flush=True)


async def _remove(settings: Settings, places: Sequence[Place]) -> int:
    code = 0
    async with opened(settings) as shelf:
        for place in places:
            try:
                await shelf.remove(place)
                print(place, flush=True)
            except WorkerError as error:
                complain(f"{place}: {error.code}: {error.message}")
                code = FAILED
    return code


async def _verify(folders: Folders, places: Sequence[Place]) -> int:
    code = 0
    async for place, verdict, text in _verdicts(folders, places):
        print_rows((), [(f"{verdict:<6}", str(place), text)])
        sys.stdout.flush()
        code = FAILED if verdict == "FAILED" else code
    return code


async def _verdicts(folders: Folders, places: Sequence[Place]) -> AsyncIterator[tuple[Place, str, str]]:
    """Each file with a verdict, and what there is to say of it."""
    found: Reconciled = await asyncio.to_thread(survey, folders)
    entries = {entry.place: entry for entry in found.entries}
    for place in [_canonical(folders, one) for one in places] or [*entries, *found.unusable]:
        if place in found.unusable:
            yield place, "FAILED", f"is no model: {found.unusable[place]}"
        elif place not in entries:
            yield place, "FAILED", "is not there"
        else:
            looked = await examined(folders.path(place), entries[place])
            match looked.state:
                case State.GOOD:
                    yield place, "ok", f"sha256 {looked.sha256}"
                case State.HASHED:
                    yield place, "ok", f"sha256 {looked.sha256}, of which nothing was known to compare with"
                case State.CORRUPT:
                    yield place, "FAILED", f"is corrupt: {looked.detail}; `sd-worker models remove` deletes it"
                case State.UNREADABLE:
                    yield place, "FAILED", looked.detail


def _place(text: str) -> Place:
    kind, slash, name = text.partition("/")
    if not (kind and slash and name):
        raise typer.BadParameter(f"{text}: write KIND/NAME, as `sd-worker models list` shows them")
    return place_of(kind, name)


def _canonical(folders: Folders, place: Place) -> Place:
    try:
        return folders.canonical(place)
    except InvalidJob:
        return place

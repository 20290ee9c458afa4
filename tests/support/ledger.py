"""The promises, checked from the outside: what the queue, the store, the receiver and the image server saw."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from worker.queues.base import JobState

ENDS = ("succeeded", "invalid_job", "output_empty", "generation_rejected")
"""Codes by which a hand-over ends its job for good, among those that these jobs meet."""


@dataclass(frozen=True, slots=True)
class Told:
    """A webhook that the receiver took, its signature verified; ``at`` in Unix seconds."""

    at: float
    id: str
    type: str
    data: dict[str, Any]


@dataclass(frozen=True, slots=True)
class Made:
    """A generation that the image server began; ``at`` in Unix seconds."""

    at: float
    prompt: str


@dataclass(slots=True)
class Ledger:
    """Everything seen in one run. ``wanted`` maps job ids to their codes, None for a success."""

    wanted: Mapping[str, str | None]
    states: Sequence[JobState]
    objects: dict[str, bytes]
    stood_since: Mapping[str, float]
    told: Sequence[Told]
    made: Sequence[Made]
    refused: Sequence[str]
    pictures: int = 1
    one_result: bool = True
    """Whether queue, store and receiver must have the very same images; not where two workers made one job."""
    _found: list[str] = field(default_factory=list)

    def breaches(self) -> list[str]:
        """Every promise that was not kept, in words; empty when all is well."""
        self._found = [f"a webhook was refused: {why}" for why in self.refused]
        states = {state.id: state for state in self.states}
        self._expect(len(states) == len(self.states), "a job stands in the queue twice")
        self._expect(states.keys() == self.wanted.keys(), f"jobs were lost: {self.wanted.keys() - states.keys()}")
        for state in states.values():
            self._judge_end(state, self.wanted[state.id])
            if self.wanted[state.id] is None:
                self._judge_success(state)
            else:
                self._judge_failure(state)
        return self._found

    def strays(self) -> set[str]:
        """Objects that no result names; allowed, but few."""
        named = {image["key"] for document in self._documents() for image in document["images"]}
        return {key for key in self.objects if not key.endswith(".json")} - named

    def _documents(self) -> Iterator[dict[str, Any]]:
        for key, body in self.objects.items():
            if key.endswith("/result.json"):
                yield json.loads(body)

    def _expect(self, holds: bool, otherwise: str) -> None:
        if not holds:
            self._found.append(otherwise)

    def _judge_end(self, state: JobState, code: str | None) -> None:
        status = "done" if code is None else "dead"
        self._expect(state.status == status, f"{state.id} is {state.status} ({state.code}), not {status}")
        self._expect(state.code == code, f"{state.id} has the code {state.code}, not {code}")
        final = [one.code for one in state.attempts if one.code in ENDS and one is state.attempts[-1]]
        early = [one.code for one in state.attempts[:-1] if one.code in ("succeeded", "invalid_job")]
        self._expect(final == [code or "succeeded"] and not early, f"{state.id} ended as {[*early, *final]}")
        charged = [one for one in state.attempts if one.code in (None, "draining") and one.charged]
        self._expect(not charged, f"{state.id} was charged for the loss of a node: {charged}")

    def _judge_success(self, state: JobState) -> None:
        job = state.id
        stored = self.objects.get(f"{job}/result.json")
        if stored is None or state.result is None:
            self._found.append(f"{job} succeeded without a result")
            return
        document = json.loads(stored)
        self._expect((document["id"], document["status"]) == (job, "succeeded"), f"{job}: a foreign result")
        told = [one for one in self.told if one.data["id"] == job]
        ids = {one.id for one in told if one.type == "job.succeeded"}
        self._expect(len(ids) == 1, f"{job} has the success webhook ids {ids}")
        self._expect(all(one.type == "job.succeeded" for one in told), f"{job}: a failure was told of a success")
        queued = state.result.model_dump(mode="json")["images"]
        versions = [document["images"], queued, *(one.data["images"] for one in told)]
        for images in versions:
            self._judge_images(job, images)
        digests = {tuple(image["sha256"] for image in images) for images in versions}
        self._expect(len(digests) == 1 or not self.one_result, f"{job} has results that differ")
        stood = min([self.stood_since[f"{job}/result.json"], *(one.at for one in told)])
        late = [one.at - stood for one in self.made if one.prompt == job and one.at > stood]
        self._expect(not late, f"{job} was generated again {late} s after its success stood")

    def _judge_images(self, job: str, images: Sequence[Mapping[str, Any]]) -> None:
        self._expect(len(images) == self.pictures, f"{job} has {len(images)} images")
        for image in images:
            data = self.objects.get(image["key"])
            if data is None:
                self._found.append(f"{job} names {image['key']}, which does not exist")
                continue
            sound = (len(data), hashlib.sha256(data).hexdigest()) == (image["bytes"], image["sha256"])
            self._expect(sound, f"{job}: {image['key']} is not the image that the result names")

    def _judge_failure(self, state: JobState) -> None:
        job = state.id
        self._expect(f"{job}/result.json" not in self.objects, f"{job} failed and has a result")
        kept = [key for key in self.objects if key.startswith(f"{job}/failure-")]
        self._expect(bool(kept), f"{job} failed without a document")
        told = [one for one in self.told if one.data["id"] == job]
        ids = {one.id for one in told if one.type == "job.failed"}
        self._expect(len(ids) == 1, f"{job} has the failure webhook ids {ids}")
        self._expect(all(one.type == "job.failed" for one in told), f"{job}: a success was told of a failure")

"""What a job costs a node before its first step, and whether its models fit there at all."""

from __future__ import annotations

from collections.abc import Mapping

from dispatcher.words import Key, Need, NodeView, Rules, Waiting, Why

MAIN = ("checkpoint", "unet")
"""Kinds of which a server has one in memory."""

MAIN_KEYS = tuple(f"{kind}{mark}" for kind in MAIN for mark in "/@")
"""How their keys begin."""

_SIZES: Mapping[str, int] = {
    "lora": 200_000_000,
    "vae": 335_000_000,
    "controlnet": 1_400_000_000,
    "upscaler": 67_000_000,
    "embedding": 100_000,
    "clip": 2_000_000_000,
    "clip_vision": 1_300_000_000,
}
"""Bytes of a file whose size nobody knows, by kind; of any other kind `Rules.size`."""


def held_size(node: NodeView, key: Key) -> int | None:
    """The size of a file that the node has, under whatever key."""
    return node.sizes.get(key) or node.sizes.get(node.same.get(key, key))


def bytes_of(need: Need, node: NodeView, rules: Rules) -> int:
    """The size of a file as far as anybody knows it, else what its kind usually takes."""
    return need.size or held_size(node, need.key) or _SIZES.get(need.kind, rules.size)


def load_s(node: NodeView, size: int, rules: Rules) -> float:
    """Seconds in which this node's server takes a model of this size from disk into memory.

    Measured loads are of checkpoints of the usual size; no model is read faster than the disk gives it.
    """
    return max(node.measured.load * size / rules.size, size / node.measured.disk)


def cost_s(node: NodeView, job: Waiting, rules: Rules) -> tuple[Why, float]:
    """What a job costs here before its first step, in seconds, and of which sort that is.

    Nothing for what is in memory; for what is on disk its load, which for small files is the time to read them; for
    what is missing its transfer besides. A transfer that an order has begun counts half.
    """
    seconds, missing, swap = 0.0, False, False
    measured = node.measured
    for at, need in enumerate(job.needs):
        if need.key in node.loaded:
            continue
        size = bytes_of(need, node, rules)
        main = at == 0 or need.kind in MAIN
        seconds += load_s(node, size, rules) if main else size / measured.disk
        swap = swap or at == 0
        if need.key not in node.held:
            missing = True
            seconds += size / measured.network * (0.5 if need.key in node.coming else 1.0)
    if missing:
        return Why.DOWNLOAD, seconds
    return (Why.DISK if swap else Why.WARM), seconds


def fits(node: NodeView, job: Waiting) -> bool:
    """Whether all of a job's models can be on this node at once, by the sizes that are known."""
    if node.cap is None or node.held.issuperset([need.key for need in job.needs]):
        return True
    unique = {need.key: need.size or held_size(node, need.key) or 0 for need in job.needs}
    return sum(unique.values()) <= node.cap

"""Whether a session's answers are those of explicit caches."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from ...runtime.contract import CacheLayout, Manifest, tokens_per_call
from .cache import unpack
from .plan import TestCase

Tensors = dict[str, np.ndarray]


def session_cases(cases: Sequence[TestCase], manifest: Manifest) -> Iterator[TestCase]:
    """Of each signature that has a form for sessions, the first and the last case with
    something cached that fits the slots."""
    for name in dict.fromkeys(case.signature for case in cases):
        if f"session_{name}" in manifest.signatures:
            fitting = [
                case
                for case in cases
                if case.signature == name and _fits(case, **manifest.sessions)
            ]
            yield from dict.fromkeys([*fitting[:1], *fitting[-1:]])


def _fits(case: TestCase, slots: int, positions: int) -> bool:
    more = tokens_per_call(case.signature) or 0
    longest = max(row.past + row.new + more for row in case.rows)
    cached = any(row.past for row in case.rows)
    return cached and len(case.rows) <= slots and longest <= positions


def session_problems(
    case: TestCase,
    inputs: Tensors,
    layout: CacheLayout,
    call: Callable[[str, Tensors], Tensors],
) -> Iterator[str]:
    """Where a session differs from an explicit cache, a sentence each.

    Args:
        case: of a signature that takes a cache.
        inputs: all its inputs.
        layout: of the cache.
        call: from a signature's name and inputs to its outputs.
    """
    B, name = len(case.rows), case.signature
    past: np.ndarray = inputs["cache_length"]
    cache = inputs["cache"][:, : past.max()]  # as much as a session gathers
    explicit = call(name, {**inputs, "cache": cache})
    held = call("session_open", {"row": np.zeros(B, np.int32)})
    start = np.zeros(B, np.int32)
    written = {"cache": cache, "start": start, "cache_length": past}
    alive = [call("session_write", {**held, **written})["alive"]]
    rest = {key: value for key, value in inputs.items() if key != "cache"}
    reply = call(f"session_{name}", {**held, **rest})
    new = explicit["new_cache"]
    fed = inputs["input_length"] + explicit.get("count", 1) - 1
    rows = call("session_read", {**held, "start": past, "size": fed})
    for outputs in (reply, rows):
        alive.append(outputs["alive"])
    if not np.all(alive):
        yield f"session_{name} {case}: a session is not alive"
    for key in reply.keys() & explicit.keys() - {"top_ids"}:  # of equals any is first
        if not _alike(reply[key], explicit[key]):
            yield f"session_{name} {case}: {key} differs from the explicit cache's"
    for b in range(B):
        pair = (unpack(x[b, : fed[b]], layout) for x in (rows["cache"], new))
        if not _alike(*pair):
            yield f"session_{name} {case}: the rows written differ"
    void = {**held, "ticket": held["ticket"] ^ 1}
    if call(f"session_{name}", {**void, **rest})["alive"].any():
        yield f"session_{name}: a void ticket is alive"


def _alike(actual: np.ndarray, expected: np.ndarray) -> bool:
    """Calls of the same sizes compute the same, but for the order of sums."""
    if actual.dtype.kind == "i":
        return np.array_equal(actual, expected)
    return np.allclose(actual, expected, rtol=1e-3, atol=1e-3, equal_nan=True)

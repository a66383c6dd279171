"""Several calls as one: their rows in one batch, and each one's part of the reply.

Every tensor of the contract has rows as axis 0 and lengths instead of masks, so that
calls of one signature can be joined row by row whatever their other sizes are. Of
``generate_{N}`` the largest N is called: what each row makes is bounded by its own
``max_new_tokens``.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ..codec import RowBlocks, Tensor
from ..contract import MESSAGE_LIMIT, session_tokens_per_call, tokens_per_call
from ..errors import MalformedReply
from .base import Call, Described, Expectation, Reply

_FILL = {"history": -1, "stop_ids": -1, "bias_ids": -1}
_PER_TOKEN = ("tokens", "logprobs", "top_ids", "top_logprobs")
_NO_VERSION = -1


def most_new_tokens(call: Call) -> int:
    """N of ``generate_{N}``, in sessions as well; 0 of other signatures."""
    name = call.signature
    return tokens_per_call(name) or session_tokens_per_call(name) or 0


def joined(calls: Sequence[Call], rows: int, *, steps: int | None = None) -> Call:
    """One call with the rows of all, and idle ones after them up to ``rows``.

    With ``steps`` no row makes more new tokens than that.
    """
    lead = max(calls, key=most_new_tokens)
    padding = rows - sum(call.rows for call in calls)
    stateful = lead.signature.startswith("session_")
    inputs: dict[str, Tensor] = {}
    for name in lead.inputs:
        tensors = [call.inputs[name] for call in calls]
        if name == "cache":
            inputs[name] = _join_blocks(tensors, padding)
            continue
        arrays = [np.asarray(tensor) for tensor in tensors]
        if padding:
            idle = arrays[0][:1]
            # An idle row of a session writes what the row that it repeats writes.
            if name in ("cache_length", "max_new_tokens") and not stateful:
                idle = np.zeros_like(idle)
            arrays += [idle] * padding
        inputs[name] = _join(arrays, _FILL.get(name, 0))
    if steps is not None and "max_new_tokens" in inputs:
        asked = np.asarray(inputs["max_new_tokens"])
        inputs["max_new_tokens"] = np.minimum(asked, np.int32(steps))
    expected = _JoinedExpectation(tuple(map(_Part.of_call, calls)), rows)
    return replace(lead, inputs=inputs, expected=expected)


def shares(reply: Reply, calls: Sequence[Call], rows: int) -> list[Reply]:
    """A joined call's reply, one for each call; outputs are views."""
    total = sum(call.rows for call in calls)
    parts = [_Part.of_call(call) for call in calls]
    return [
        replace(
            reply,
            outputs=outputs,
            bytes_sent=reply.bytes_sent * part.rows // total,
            bytes_received=reply.bytes_received * part.rows // total,
        )
        for part, outputs in zip(
            parts, _sliced(reply.outputs, parts, rows), strict=True
        )
    ]


@dataclass(frozen=True)
class _Part:
    """One of the calls: its rows, its N, and what its reply must be like."""

    rows: int
    most_new_tokens: int
    expected: Expectation | None

    @classmethod
    def of_call(cls, call: Call) -> _Part:
        return cls(call.rows, most_new_tokens(call), call.expected)


@dataclass(frozen=True)
class _JoinedExpectation:
    """What the reply to a joined call must be like: each call's part as that says."""

    parts: tuple[_Part, ...]
    rows: int

    @property
    def version(self) -> int | None:
        """The version that all parts are about; one that none is about otherwise."""
        versions = {
            part.expected.version if part.expected else _NO_VERSION
            for part in self.parts
        }
        return versions.pop() if len(versions) == 1 else _NO_VERSION

    @property
    def most_bytes(self) -> int:
        """As many for each row as the part with the largest rows; twice that where one
        part may have the longest prompt and another one the largest N."""
        known = [(part.expected, part.rows) for part in self.parts]
        per_row = [-(-reply.most_bytes // rows) for reply, rows in known if reply]
        if len(per_row) < len(known):
            return MESSAGE_LIMIT
        unequal = len({part.most_new_tokens for part in self.parts}) > 1
        return min(max(per_row) * self.rows * (1 + unequal), MESSAGE_LIMIT)

    def of(self, model: Described) -> _JoinedExpectation:
        """Each part of another model."""
        parts = tuple(
            replace(part, expected=part.expected and part.expected.of(model))
            for part in self.parts
        )
        return replace(self, parts=parts)

    def check(self, outputs: Mapping[str, np.ndarray]) -> None:
        """Raise ``MalformedReply`` where a part's call would."""
        slices = _sliced(outputs, self.parts, self.rows)
        for part, own in zip(self.parts, slices, strict=True):
            if part.expected:
                part.expected.check(own)


def _sliced(
    outputs: Mapping[str, np.ndarray], parts: Sequence[_Part], rows: int
) -> list[dict[str, np.ndarray]]:
    """A joined call's outputs for each of its calls, as views.

    Raises:
        MalformedReply: an output without these rows.
    """
    for name, array in outputs.items():
        if not array.ndim or len(array) != rows:
            raise MalformedReply(
                f"output {name!r} has shape {list(array.shape)}, expected {rows} rows"
            )
    N = max(part.most_new_tokens for part in parts)
    ends = list(itertools.accumulate(part.rows for part in parts))
    return [
        {
            name: _cut(name, array[end - part.rows : end], N - part.most_new_tokens)
            for name, array in outputs.items()
        }
        for part, end in zip(parts, ends, strict=True)
    ]


def _cut(name: str, array: np.ndarray, surplus: int) -> np.ndarray:
    """Without what is there only because another call has a larger N."""
    if not surplus or array.ndim < 2 or name not in (*_PER_TOKEN, "new_cache"):
        return array
    return array[:, : max(array.shape[1] - surplus, 0)]


def _join(arrays: Sequence[np.ndarray], fill: int) -> np.ndarray:
    """Along axis 0, with ``fill`` after what is shorter along axis 1."""
    if arrays[0].ndim < 2 or len({array.shape[1] for array in arrays}) == 1:
        return np.concatenate(arrays)
    width = max(array.shape[1] for array in arrays)
    out = np.full((sum(map(len, arrays)), width), fill, arrays[0].dtype)
    start = 0
    for array in arrays:
        out[start : start + len(array), : array.shape[1]] = array
        start += len(array)
    return out


def _join_blocks(caches: Sequence[Tensor], padding: int) -> RowBlocks:
    rows: list[tuple[np.ndarray, ...]] = []
    for cache in caches:
        if isinstance(cache, RowBlocks):
            rows += cache.rows
        else:
            rows += [(row,) for row in cache]
    rows += [(rows[0][0][:0],)] * padding
    return RowBlocks(tuple(rows), max(cache.shape[1] for cache in caches))

"""Log-probabilities and hidden states of given texts: one call for several rows."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..codec import RowBlocks, Tensor
from ..contract import MESSAGE_LIMIT
from ..errors import InvalidRequest
from ..results import Score
from ..transports.base import Call, Reply
from .expected_reply import ExpectedReply
from .loop import CallRequest, Task, answering_model
from .model_versions import ModelVersions
from .served_model import ServedModel

_LOGITS_LIMIT = 1 << 29
"""Bytes of logits that one call may make a server compute: ``score`` needs those of
every token, and 32 texts of 2048 tokens would be 13 GB."""


def score(
    prompts: Sequence[Sequence[int]],
    versions: ModelVersions,
    capacity: int,
    deadline: float | None,
) -> Task[list[Score]]:
    """Each token's log-probability given those before it; NaN for the first."""
    rows = yield from _run("score", "logprobs", prompts, versions, capacity, deadline)
    scores = []
    for ids, values in zip(prompts, rows, strict=True):
        logprobs = values.astype(np.float64)
        logprobs[0] = np.nan
        scores.append(Score(list(ids), [float(x) for x in logprobs]))
    return scores


def embed(
    prompts: Sequence[Sequence[int]],
    versions: ModelVersions,
    capacity: int,
    deadline: float | None,
) -> Task[list[np.ndarray]]:
    """The last hidden states ``[tokens, E]`` of each prompt, float32."""
    output = "last_hidden_state"
    return (yield from _run("embed", output, prompts, versions, capacity, deadline))


def _run(
    signature: str,
    output: str,
    prompts: Sequence[Sequence[int]],
    versions: ModelVersions,
    capacity: int,
    deadline: float | None,
) -> Task[list[np.ndarray]]:
    model = versions.current
    model.require(signature, f"{signature}()")
    results: dict[int, np.ndarray] = {}
    for chosen in _groups(prompts, model, capacity):
        rows = [prompts[i] for i in chosen]
        size = model.whole_size(max(map(len, rows)))
        count = model.batch_size(len(rows))
        ids = np.full((count, size), model.manifest.pad_token_id, np.int32)
        lengths = np.ones(count, np.int32)
        for b, row in enumerate(rows):
            ids[b, : len(row)] = row
            lengths[b] = len(row)
        inputs: dict[str, Tensor] = {"input_ids": ids, "input_length": lengths}
        if any(s.name == "cache" for s in model.signature(signature).inputs):
            inputs |= _no_cache(model, count)
        fed = tuple(map(len, rows))
        expected = ExpectedReply(model, signature, (output,), count, fed, size)
        call = Call(signature, inputs, (output,), expected=expected)
        reply: Reply = yield CallRequest(call, deadline)
        yield from answering_model(call, reply, versions, deadline)
        for b, i in enumerate(chosen):
            results[i] = np.array(reply.outputs[output][b, : len(prompts[i])])
    return [results[i] for i in range(len(prompts))]


def _no_cache(model: ServedModel, rows: int) -> dict[str, Tensor]:
    empty = (np.zeros((0, *model.layout.row_shape), np.float32),)
    return {
        "cache": RowBlocks((empty,) * rows, model.cache_size(0)),
        "cache_length": np.zeros(rows, np.int32),
    }


def most_rows(model: ServedModel, size: int, capacity: int) -> int:
    """Most rows of ``size`` tokens that one call should have.

    Raises:
        InvalidRequest: the reply for one row could pass the 2 GiB limit.
    """
    row_bytes = 4 * size * int(model.manifest.config["hidden_size"])
    if row_bytes > MESSAGE_LIMIT:
        raise InvalidRequest(
            f"the reply for {size} tokens would have {row_bytes} bytes, more than "
            "one message may have (2 GiB): use shorter texts"
        )
    logits_bytes = 4 * size * model.manifest.vocab_size
    fits = min(MESSAGE_LIMIT // row_bytes, _LOGITS_LIMIT // logits_bytes)
    return max(1, min(capacity, fits))


def _groups(
    prompts: Sequence[Sequence[int]], model: ServedModel, capacity: int
) -> Iterator[list[int]]:
    """Indices of prompts of like length, so that padding wastes little."""
    order = sorted(range(len(prompts)), key=lambda i: len(prompts[i]))
    group: list[int] = []
    for i in order:
        size = model.whole_size(len(prompts[i]))
        fits = most_rows(model, size, capacity)
        if group and (
            len(group) >= fits or model.whole_size(len(prompts[group[0]])) != size
        ):
            yield group
            group = []
        group.append(i)
    if group:
        yield group

"""What a reply gives each sequence of its step."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..transports.base import Reply
from .kv_cache import KVCache
from .scheduler import Step, distinct_counters
from .sequence import Sequence
from .served_model import ServedModel
from .session_cache import SessionCache


def apply(
    step: Step, reply: Reply, model: ServedModel
) -> list[tuple[Sequence, np.ndarray | None]]:
    """Give each sequence what the reply, checked before, holds for it.

    Returns:
        Each sequence of the step, with the raw logits ``[V]`` of its next token where
        it chooses for itself, else None.
    """
    _count(step, reply)
    outputs = reply.outputs
    chooses = not (step.tokens_per_call or step.partial)
    alive = outputs.get("alive")
    for b, sequence in enumerate(step.sequences):
        if alive is not None and not alive[b]:
            sequence.lose_slot(evicted=True)
            continue
        sequence.version, sequence.model_id = reply.version, reply.model_id
        new = int(outputs["count"][b]) if step.tokens_per_call else 1
        rows = step.fed[b] + new - 1
        if isinstance(sequence.cache, SessionCache):
            sequence.cache.grow(rows)
        else:
            if sequence.cache is None:
                sequence.cache = KVCache(model.layout)
            sequence.cache.append(outputs["new_cache"][b, :rows])
        if step.tokens_per_call:
            _take(sequence, {name: x[b] for name, x in outputs.items()}, new)
    logits = outputs["logits"] if chooses else [None] * len(step.sequences)
    return [
        (sequence, own)
        for b, (sequence, own) in enumerate(zip(step.sequences, logits, strict=False))
        if alive is None or alive[b]
    ]


def _take(sequence: Sequence, row: Mapping[str, np.ndarray], new: int) -> None:
    """Its ``new`` tokens, up to one that ends it."""
    for i in range(new):
        if sequence.finish_reason is not None:
            return
        if count := sequence.options.top_logprobs:
            sequence.report(row["top_ids"][i, :count], row["top_logprobs"][i, :count])
        sequence.accept(int(row["tokens"][i]), float(row["logprobs"][i]))


def _count(step: Step, reply: Reply) -> None:
    share = len(step.sequences)
    for sequence in step.sequences:
        sequence.counters.bytes_sent += reply.bytes_sent // share
        sequence.counters.bytes_received += reply.bytes_received // share
    for counters in distinct_counters(step.sequences):
        counters.calls += 1
        counters.retries += reply.retries
        counters.session_calls += step.in_session

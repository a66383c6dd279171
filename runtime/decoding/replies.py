"""What a reply gives each sequence of its step, checked against the contract."""

from __future__ import annotations

import numpy as np

from ..errors import MalformedReply
from ..transports.base import Reply
from .kv_cache import KVCache
from .scheduler import Step, distinct_counters
from .sequence import Sequence
from .served_model import ServedModel


def apply(
    step: Step, reply: Reply, model: ServedModel
) -> list[tuple[Sequence, np.ndarray | None]]:
    """Give each sequence what the reply holds for it.

    Returns:
        Each sequence of the step, with the raw logits ``[V]`` of its next token where
        it chooses for itself, else None.

    Raises:
        MalformedReply: not what the contract promises.
    """
    new_cache = _output(reply, "new_cache", len(step.sequences), 6)
    out: list[tuple[Sequence, np.ndarray | None]] = []
    _count(step, reply)
    for b, sequence in enumerate(step.sequences):
        sequence.version = reply.version
        if sequence.cache is None:
            sequence.cache = KVCache(model.layout)
        tokens: list[int] = []
        if step.tokens_per_call:
            tokens = _tokens(step, reply, b, model)
        rows = step.fed[b] + max(len(tokens) - 1, 0)
        if rows > new_cache.shape[1]:
            raise MalformedReply(
                f"new_cache must have {rows} rows, the model returned "
                f"{new_cache.shape[1]}"
            )
        sequence.cache.append(new_cache[b, :rows])
        if step.tokens_per_call:
            logprobs = _output(reply, "logprobs", len(step.sequences), 2)[b]
            for token, logprob in zip(tokens, logprobs, strict=False):
                if sequence.finish_reason is None:
                    sequence.accept(token, float(logprob))
        out.append((sequence, _logits(step, reply, b, model)))
    return out


def _tokens(step: Step, reply: Reply, b: int, model: ServedModel) -> list[int]:
    counts = _output(reply, "count", len(step.sequences), 1)
    generated = _output(reply, "tokens", len(step.sequences), 2)
    count, most = int(counts[b]), min(step.tokens_per_call, step.sequences[b].remaining)
    if not 1 <= count <= min(most, generated.shape[1]):
        raise MalformedReply(
            f"the model must generate 1 to {most} tokens for a row, it says {count}"
        )
    tokens = [int(token) for token in generated[b, :count]]
    if not all(0 <= token < model.manifest.vocab_size for token in tokens):
        raise MalformedReply(
            f"the model returned token ids outside its vocabulary: {tokens}"
        )
    return tokens


def _logits(step: Step, reply: Reply, b: int, model: ServedModel) -> np.ndarray | None:
    if step.tokens_per_call or step.partial:
        return None
    logits = _output(reply, "logits", len(step.sequences), 2)[b]
    if logits.shape != (model.manifest.vocab_size,) or np.isnan(logits).any():
        raise MalformedReply(
            f"logits must be {model.manifest.vocab_size} numbers, the model returned "
            f"{logits.size}, {int(np.isnan(logits).sum())} of them NaN"
        )
    return logits.astype(np.float32, copy=False)


def _output(reply: Reply, name: str, rows: int, rank: int) -> np.ndarray:
    array = reply.outputs.get(name)
    if array is None or array.ndim != rank or array.shape[0] < rows:
        got = "nothing" if array is None else f"shape {array.shape}"
        raise MalformedReply(
            f"output {name!r} must have rank {rank} and {rows} rows, the model "
            f"returned {got}"
        )
    return array


def _count(step: Step, reply: Reply) -> None:
    share = len(step.sequences)
    for sequence in step.sequences:
        sequence.counters.bytes_sent += reply.bytes_sent // share
        sequence.counters.bytes_received += reply.bytes_received // share
    for counters in distinct_counters(step.sequences):
        counters.calls += 1
        counters.retries += reply.retries

"""Generations: how many tokens are asked for, and what holds for any sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...runtime.contract import tokens_per_call
from .plan import TestCase

FEW_TOKENS = 4
"""Tokens that are enough to tell whether a signature samples as it should, or goes on
from a cache of some length."""


def greedy_limits(case: TestCase) -> np.ndarray:
    """Tokens [B] that each row generates, of the most that its signature can.

    All of them after one token and in a batch, whose rows don't end together; a few
    after longer prompts and caches, where the first ones tell.
    """
    most = tokens_per_call(case.signature) or 0
    first, *others = case.rows
    if others:
        return np.maximum(most >> np.arange(len(case.rows), dtype=np.int32), 1)
    few = first.past + first.new > 1
    return np.array([min(most, FEW_TOKENS) if few else most], np.int32)


def greedy_inputs(case: TestCase) -> dict[str, np.ndarray]:
    """The inputs of ``generate_{N}`` that say how tokens are chosen."""
    limits = greedy_limits(case)
    rows = len(limits)
    return {
        "max_new_tokens": limits,
        "history": np.full((rows, 1), -1, np.int32),
        "stop_ids": np.full((rows, 1), -1, np.int32),
        "seed": np.tile(np.array([7, 11], np.int32), (rows, 1)),
        "temperature": np.zeros(rows, np.float32),
        "top_k": np.zeros(rows, np.int32),
        "top_p": np.ones(rows, np.float32),
        "repetition_penalty": np.ones(rows, np.float32),
    }


def sampling_problems(
    case: TestCase,
    inputs: dict[str, np.ndarray],
    greedy: list[dict[str, np.ndarray]],
    call: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> Iterator[str]:
    """Where sampling breaks what holds for any model, a sentence each.

    ``top_k`` 1 is greedy, a seed repeats, limits hold.

    Args:
        case: a generation.
        inputs: all its inputs.
        greedy: its greedy answer.
        call: the signature, from inputs to outputs.
    """
    B, name = len(case.rows), case.signature
    few = np.minimum(inputs["max_new_tokens"], FEW_TOKENS)
    narrow = {"temperature": np.ones(B, np.float32), "top_k": np.ones(B, np.int32)}
    outputs = call({**inputs, **narrow, "max_new_tokens": few})
    for b, row in enumerate(greedy):
        start = {key: row[key][:FEW_TOKENS] for key in ("tokens", "logprobs")}
        if not _equally_likely(start, {key: x[b] for key, x in outputs.items()}):
            yield f"{name} {case}: top_k 1 differs from greedy"
    warm = {**inputs, "temperature": np.full(B, 5.0, np.float32)}
    warm["max_new_tokens"] = np.maximum(few // 2, 1)
    first, second = (call(warm) for _ in range(2))
    if not np.array_equal(first["tokens"], second["tokens"]):
        yield f"{name}: a seed does not repeat"
    if (first["count"] != warm["max_new_tokens"]).any():
        yield (
            f"{name}: {first['count'].tolist()} tokens generated where "
            f"max_new_tokens is {warm['max_new_tokens'].tolist()}"
        )


def _equally_likely(
    greedy: dict[str, np.ndarray], other: dict[str, np.ndarray]
) -> bool:
    """Whether two rows have the same tokens up to a tie, if there is one.

    Of tokens with equal logits greedy takes the first; sampling may take any.
    """
    length = len(greedy["tokens"])
    different = np.flatnonzero(greedy["tokens"] != other["tokens"][:length])
    if not different.size:
        return True
    first = different[0]
    return bool(np.isclose(greedy["logprobs"][first], other["logprobs"][first], 1e-6))

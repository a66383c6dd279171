"""Generations: how many tokens are asked for, and what holds for any sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import numpy as np

from ...runtime.contract import TOP_LOGPROBS, tokens_per_call
from ...runtime.sampling import Sampling
from .plan import TestCase

FEW_TOKENS = 4
"""Tokens that are enough to tell whether a signature samples as it should, or goes on
from a cache of some length."""

_SEED = 7 | 11 << 32
_FAVOURED, _FAR = 3, 1e4  # a token, and what no logits are apart


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
    greedy = Sampling(temperature=0.0, seed=_SEED).params(top_logprobs=TOP_LOGPROBS)
    rows = len(limits)
    nothing = np.full((rows, 1), -1, np.int32)
    return {
        "max_new_tokens": limits,
        "history": nothing,
        "stop_ids": nothing,
        "bias_ids": nothing,
        "bias": np.zeros((rows, 1), np.float32),
        **{name: x.repeat(rows, 0) for name, x in greedy._asdict().items()},
    }


def sampling_problems(
    case: TestCase,
    inputs: dict[str, np.ndarray],
    greedy: list[dict[str, np.ndarray]],
    call: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> Iterator[str]:
    """Where sampling breaks what holds for any model, a sentence each.

    ``top_k`` 1 is greedy, a seed repeats, limits hold, modifiers modify.

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
    if "min_p" in inputs:
        yield from _modifier_problems(name, {**inputs, "max_new_tokens": few}, call)


def _modifier_problems(
    name: str,
    inputs: dict[str, np.ndarray],
    call: Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]],
) -> Iterator[str]:
    """Where numbers far beyond any logit don't decide what is chosen."""
    few = inputs["max_new_tokens"]
    favoured, B = np.full((len(few), 1), _FAVOURED, np.int32), len(few)
    biased = {"bias_ids": favoured, "bias": np.full((B, 1), 1.5 * _FAR, np.float32)}
    counting = {"frequency_penalty": np.full(B, _FAR, np.float32)}
    tokens = call({**inputs, **biased, **counting})["tokens"]
    for row, count in zip(tokens, few, strict=True):
        is_favoured = (row[:count] == _FAVOURED).tolist()
        if is_favoured != [True, True, False, False][:count]:
            yield f"{name}: bias and frequency_penalty gave {row[:count].tolist()}"
    late = {"stop_ids": favoured, "min_new_tokens": np.ones(B, np.int32)}
    for row, count in zip(
        call({**inputs, **biased, **late})["tokens"], few, strict=True
    ):
        is_favoured = (row[:count] == _FAVOURED).tolist()
        if is_favoured != [False, True, False, False][:count]:
            yield f"{name}: min_new_tokens 1 gave {row[:count].tolist()}"


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

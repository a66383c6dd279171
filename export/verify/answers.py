"""What a test case got, brought to a form that can be compared."""

from __future__ import annotations

from typing import Any

import numpy as np

from ...runtime.contract import CacheLayout, Manifest, signature, tokens_per_call
from .cache import unpack
from .plan import TestCase
from .sampling import greedy_limits

Answer = list[dict[str, np.ndarray]]
"""By row of a test case: its outputs by name, without padding, caches as numbers."""


def check_shapes(
    case: TestCase, manifest: Manifest, outputs: dict[str, np.ndarray]
) -> None:
    """Compare dtypes and shapes with the contract's.

    Raises:
        ValueError: an output is missing or another one.
    """
    spec = signature(
        case.signature,
        manifest.cache_layout,
        version=manifest.contract_version,
        vocab_size=manifest.vocab_size,
    )
    generated = tokens_per_call(case.signature) or 1
    sizes: dict[Any, int] = {
        "B": len(case.rows),
        "S": case.size,
        "S+N-1": case.size + generated - 1,
    }
    for tensor in spec.outputs:
        if tensor.name not in outputs:
            raise ValueError(f"no output {tensor.name}")
        got = outputs[tensor.name]
        shape = [sizes.get(dim, dim) for dim in tensor.shape]
        fits = len(shape) == got.ndim and all(
            isinstance(expected, str) or expected == size
            for expected, size in zip(shape, got.shape, strict=True)
        )
        if not fits or got.dtype != tensor.numpy_dtype():
            raise ValueError(
                f"{tensor.name} is {got.dtype}{list(got.shape)}, expected "
                f"{tensor.dtype}{shape}"
            )


def answer_of(
    case: TestCase, layout: CacheLayout, outputs: dict[str, np.ndarray]
) -> Answer:
    """The real part of each row's outputs.

    Raises:
        ValueError: a generation of another length than was asked for.
    """
    return [
        _row_answer(case, b, layout, {name: x[b] for name, x in outputs.items()})
        for b in range(len(case.rows))
    ]


def _row_answer(
    case: TestCase, b: int, layout: CacheLayout, row: dict[str, np.ndarray]
) -> dict[str, np.ndarray]:
    new = fed = case.rows[b].new
    if tokens_per_call(case.signature):
        count = _checked_count(case, b, row)
        row = {name: value for name, value in row.items() if name != "count"}
        generated = ("tokens", "logprobs", "top_ids", "top_logprobs")
        row |= {name: row[name][:count] for name in generated if name in row}
        fed = new + count - 1
    elif case.signature == "score":
        given = ("logprobs", "top_ids", "top_logprobs")
        row |= {name: row[name][1:new] for name in given if name in row}
    elif case.signature in ("serving_default", "embed"):
        begin = case.size - new if case.left else 0
        row = {
            name: value if name == "pooled" else value[begin : begin + new]
            for name, value in row.items()
        }
    if "top_ids" in row:
        _check_likeliest(row["top_logprobs"], row.pop("top_ids"), row)
    if "new_cache" in row:
        row["new_cache"] = unpack(row["new_cache"][:fed], layout)
    return row


def _check_likeliest(
    logprobs: np.ndarray, ids: np.ndarray, row: dict[str, np.ndarray]
) -> None:
    """The likeliest tokens [T,5] come in order, and a greedy choice is the first."""
    if (np.diff(logprobs) > 0).any() or any(
        len(set(step)) < 5 for step in ids.tolist()
    ):
        raise ValueError(f"the likeliest tokens {ids.tolist()} are not in order")
    if "tokens" in row:
        other = row["tokens"] != ids[:, 0]
        if not np.allclose(logprobs[other, 0], row["logprobs"][other], 1e-6):
            raise ValueError(f"the likeliest are {ids[:, 0]}, chosen {row['tokens']}")


def _checked_count(case: TestCase, b: int, row: dict[str, np.ndarray]) -> int:
    count = int(row["count"])
    limit = greedy_limits(case)[b]
    if count != limit:  # nothing stops a row before
        raise ValueError(f"count is {count}, expected {limit}")
    if (row["tokens"][count:] != -1).any():
        raise ValueError(f"tokens after the end are not -1: {row['tokens']}")
    return count


def brief(error: Exception) -> str:
    """An error's text in one line of bearable length."""
    text = " ".join(str(error).split()) or type(error).__name__
    return text if len(text) <= 300 else f"{text[:300]}…"

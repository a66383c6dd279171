"""What smaller numbers cost: the shipped checkpoint's held-out loss and greedy choices,
read through the exported signatures.
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
from optserve.export.options import ExportOptions
from optserve.models.tokenizer import Tokenizer

from tests.export.exports import Served, choosing, export_to

pytestmark = pytest.mark.slow

ROOT = Path(__file__).parents[2]
TINY = ROOT / "models" / "tiny_shakespeare"
WINDOW, ROWS = 128, 64  # 8,128 tokens, each given those before it in its window
START, MADE = 32, 64  # free running: tokens given and tokens made, for each row

LIMITS = {"float32": 1e-5, "bfloat16": 1e-3, "int8": 5e-3, "int4": 5e-3}
"""By how much the loss may grow, as a share of float32's."""

SAME = {"int8": 0.95, "int4": 0.9}
"""At what share of positions the likeliest token stays the same, 0.98 with others."""

VARIANTS = [
    ("tf", weights, cache)
    for weights, cache in (
        ("float32", "bfloat16"),
        ("float32", "int8"),
        ("bfloat16", "float32"),
        ("bfloat16", "bfloat16"),
        ("int8", "float32"),
        ("int8", "int8"),
    )
] + [
    ("jax", "float32", "float32"),
    ("jax", "bfloat16", "bfloat16"),
    ("jax", "int8", "int8"),
    ("jax", "int4", "float32"),
]


class Reading(NamedTuple):
    """Losses in nats per token, and which token is likeliest at each position."""

    score: float  # through `score`
    decode: float  # through `decode`, one token per call, over the cache
    best: np.ndarray  # [ROWS, WINDOW − 1]
    free: np.ndarray  # [ROWS, MADE], through `generate_8`


def held_out() -> np.ndarray:
    """Windows [ROWS, WINDOW] from the corpus's last tenth, which training never saw."""
    text = (ROOT / "tests" / "data" / "tinyshakespeare.txt").read_text("utf-8")
    ids = Tokenizer.from_directory(TINY).encode(text[int(0.9 * len(text)) :])
    starts = np.linspace(1, len(ids) - WINDOW, ROWS).astype(int)
    windows = np.stack([ids[s - 1 : s - 1 + WINDOW] for s in starts])
    windows[:, 0] = 2  # `</s>`, as before every prompt
    return windows.astype(np.int32)


@pytest.fixture(scope="module")
def read(tmp_path_factory):
    """``read(framework, weights, cache)``: what that export makes of the text."""
    ids = held_out()

    @functools.cache
    def reading(framework: str, weights: str, cache: str) -> Reading:
        sizes = {}
        if framework == "jax":
            sizes = {
                "prompt_buckets": (1, 32, 128),
                "batch_sizes": (ROWS,),
            }
        model = Served(
            export_to(
                tmp_path_factory.mktemp("out"),
                TINY,
                ExportOptions(
                    framework=framework,
                    weights=weights,
                    cache=cache,
                    generate=(8,),
                    **sizes,
                ),
            )
        )
        lengths = np.full(ROWS, WINDOW, np.int32)
        scored = model(
            "score",
            input_ids=ids,
            input_length=lengths,
            cache=np.zeros((ROWS, 0, *model.row_shape), np.float32),
            cache_length=np.zeros(ROWS, np.int32),
        )["logprobs"]
        loss, best = decode(model, ids)
        return Reading(-float(scored[:, 1:].mean()), loss, best, free(model, ids))

    return reading


def decode(model: Served, ids: np.ndarray) -> tuple[float, np.ndarray]:
    """The text token by token: mean loss, and the likeliest tokens."""
    ones, cache = np.ones(ROWS, np.int32), None
    losses, best = [], []
    for slot in range(WINDOW - 1):
        inputs = {"input_ids": ids[:, slot : slot + 1], "input_length": ones}
        if cache is None:
            outputs = model("prefill", **inputs)
            cache = np.zeros(
                (ROWS, WINDOW, *outputs["new_cache"].shape[2:]), np.float32
            )
        else:
            some = cache[:, : -(-slot // 32) * 32]
            past = {"cache": some, "cache_length": ones * slot}
            outputs = model("decode", **inputs, **past)
        cache[:, slot] = outputs["new_cache"][:, 0]
        logits = outputs["logits"].astype(np.float64)
        chosen = logits[np.arange(ROWS), ids[:, slot + 1]]
        top = logits.max(-1)
        losses.append(top + np.log(np.exp(logits - top[:, None]).sum(-1)) - chosen)
        best.append(logits.argmax(-1))
    return float(np.mean(losses)), np.stack(best, 1)


def free(model: Served, ids: np.ndarray) -> np.ndarray:
    """Greedy continuations of the windows' first tokens."""
    ones = np.ones(ROWS, np.int32)
    fresh, length, cache = ids[:, :START], 0, None
    tokens: list[np.ndarray] = []
    for _ in range(MADE // 8):
        if cache is None:
            cache = np.zeros((ROWS, WINDOW, *model.row_shape), np.float32)
        outputs = model(
            "generate_8",
            input_ids=fresh,
            input_length=ones * fresh.shape[1],
            cache=cache,
            cache_length=ones * length,
            max_new_tokens=ones * 8,
            **choosing(ROWS),
        )
        more = fresh.shape[1] + 7
        cache[:, length : length + more] = outputs["new_cache"][:, :more]
        length += more
        tokens.append(outputs["tokens"])
        fresh = outputs["tokens"][:, -1:]
    return np.concatenate(tokens, 1)


def prefix(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """How many tokens each row has in common with the other's before they part."""
    return np.cumprod(a == b, axis=1).sum(1)


@pytest.mark.parametrize(("framework", "weights", "cache"), VARIANTS)
def test_loss_and_greedy_choices(framework, weights, cache, read, capsys):
    exact, actual = read("tf", "float32", "float32"), read(framework, weights, cache)
    limit = max(LIMITS[weights], LIMITS[cache])
    by_score = actual.score / exact.score - 1
    by_decode = actual.decode / exact.decode - 1
    same = (actual.best == exact.best).mean()
    common = prefix(actual.free, exact.free)
    with capsys.disabled():
        print(
            f"\n| {framework} | {weights} | {cache} | {100 * by_score:+.3f} % "
            f"| {100 * by_decode:+.3f} % | {100 * same:.2f} % "
            f"| {common.mean():.1f} of {MADE} | ({exact.decode:.4f} nats)"
        )
    assert exact.decode == pytest.approx(exact.score, rel=1e-5)
    assert exact.score < 4  # it has learned: a uniform guess costs 6.9
    assert by_score <= limit and by_decode <= limit
    least = min(SAME.get(dtype, 0.98) for dtype in (weights, cache))
    assert same > least

"""What ``generate`` costs, ours and Transformers' own, in one process and in turns.

    python tests/benchmarks/generate.py tf         # or: flax

Needs the environment of ``make test-reference`` (transformers<5, tf-keras). 125m shapes
with random weights, one row, a prompt of 128 tokens, greedy: the best call for
20 new tokens, and the time of 16 of them over 16. Flax runs inside ``jax.jit``: without
it Transformers' class compiles at each call.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable
from functools import partial
from typing import Any

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np
import optserve.models as ours
import transformers as theirs

PACKAGES = {"ours": ours, "theirs": theirs}
SHORT, LONG = 4, 20
ROUNDS = {"tf": 3, "flax": 7}
IDS = np.random.default_rng(0).integers(3, 50_000, [1, 128]).astype(np.int32)
SPECIAL = {"pad_token_id": 1, "eos_token_id": 50_271}
"""Transformers' Flax class needs an end token: one that is not in the prompt, which
random weights repeat."""

Generate = Callable[[int], Any]
"""So many new tokens: the sequence [1, 128 + new]."""


def tensorflow() -> dict[str, Generate]:
    """Both classes, called eagerly."""

    def generate(model, tokens):
        return model.generate(IDS, max_new_tokens=tokens)

    return {
        name: partial(generate, package.TFOPTForCausalLM(package.OPTConfig(**SPECIAL)))
        for name, package in PACKAGES.items()
    }


def flax() -> dict[str, Generate]:
    """Both classes, compiled by the caller, with the weights of ours."""
    import jax

    params = ours.FlaxOPTForCausalLM(ours.OPTConfig(**SPECIAL)).params

    def generate(compiled, tokens):
        return compiled(IDS, params=params, max_new_tokens=tokens).sequences

    runs = {}
    for name, package in PACKAGES.items():
        config = package.OPTConfig(**SPECIAL)
        model = package.FlaxOPTForCausalLM(config, _do_init=False)
        compiled = jax.jit(model.generate, static_argnames="max_new_tokens")
        runs[name] = partial(generate, compiled)
    return runs


def seconds(generate: Generate, tokens: int) -> float:
    """One call."""
    start = time.perf_counter()
    out = np.asarray(generate(tokens))
    end = time.perf_counter()
    assert out.shape == (1, 128 + tokens)
    assert SPECIAL["pad_token_id"] not in out[:, 128:]
    return end - start


def main() -> None:
    """Print a line for each."""
    framework = sys.argv[1]
    runs = {"tf": tensorflow, "flax": flax}[framework]()
    first = {name: seconds(run, LONG) for name, run in runs.items()}
    best = {(name, n): float("inf") for name in runs for n in (SHORT, LONG)}
    for run in runs.values():
        seconds(run, SHORT)
    for _ in range(ROUNDS[framework]):
        for name, n in best:
            best[name, n] = min(best[name, n], seconds(runs[name], n))
    for name in runs:
        short, long = best[name, SHORT], best[name, LONG]
        token = (long - short) / (LONG - SHORT)
        print(
            f"{name} {framework}: first call {first[name]:.1f} s, then {LONG} tokens "
            f"in {long:.2f} s, {1000 * token:.1f} ms per token"
        )


if __name__ == "__main__":
    main()

"""What is generated in chaos, and what of it in peace."""

from __future__ import annotations

import numpy as np
from optserve.runtime import Client, Sampling

PROMPTS = 50
MODES = (None, Sampling(temperature=0.9, top_k=60, seed=3))
OPTIONS = {"max_new_tokens": 24, "stop_token_ids": []}


def prompts() -> list[list[int]]:
    """Half of them begin alike, with more than a block of the prefix cache."""
    rng = np.random.default_rng(5)
    shared = rng.integers(4, 127, 16).tolist()
    tails = [rng.integers(4, 127, rng.integers(1, 8)).tolist() for _ in range(PROMPTS)]
    return [[2, *(shared if i % 2 else []), *tail] for i, tail in enumerate(tails)]


def undisturbed(target: str) -> list[list[list[int]]]:
    """Tokens of every mode and prompt, of one replica in peace, by explicit caches."""
    with Client(target, sessions=False) as client:
        return [
            [g.tokens for g in client.generate(prompts(), sampling=mode, **OPTIONS)]
            for mode in MODES
        ]

"""Greedy text from either framework's class, the cache carried along.

python -m optserve.models.examples.greedy models/tiny_shakespeare "ROMEO:" tf
"""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np

from ..tokenizer import Tokenizer

NEW_TOKENS = 40


def keras_tokens(checkpoint: Path, ids: list[int]) -> list[int]:
    """The cache is an output and the next call's input."""
    from .. import TFOPTForCausalLM

    model = TFOPTForCausalLM.from_pretrained(checkpoint)
    fed, past, tokens = ids, None, []
    while len(tokens) < NEW_TOKENS:
        out = model(input_ids=np.array([fed]), past_key_values=past, use_cache=True)
        fed, past = [int(np.argmax(out.logits[0, -1]))], out.past_key_values
        tokens += fed
    return tokens


def flax_tokens(checkpoint: Path, ids: list[int]) -> list[int]:
    """The cache has its whole length from the start, for XLA's sake."""
    from .. import FlaxOPTForCausalLM

    model = FlaxOPTForCausalLM.from_pretrained(checkpoint)
    past, length = model.init_cache(1, len(ids) + NEW_TOKENS), 0
    fed, tokens = ids, []
    while len(tokens) < NEW_TOKENS:
        positions = np.arange(length, length + len(fed))[None]
        mask = np.ones([1, len(ids) + NEW_TOKENS], int)
        out = model(np.array([fed]), mask, past_key_values=past, position_ids=positions)
        length += len(fed)
        fed, past = [int(np.argmax(out.logits[0, -1]))], out.past_key_values
        tokens += fed
    return tokens


def main(checkpoint: str, prompt: str, framework: str) -> None:
    """Print the prompt and what follows."""
    tokenizer = Tokenizer.from_directory(checkpoint)
    make = {"tf": keras_tokens, "jax": flax_tokens}[framework]
    tokens = make(Path(checkpoint), tokenizer.encode(prompt))
    print(prompt + tokenizer.decode(tokens))


if __name__ == "__main__":
    main(*sys.argv[1:])

"""What a token costs in ``generate`` of the four frameworks' classes.

    python tests/benchmarks/generate.py ours tf        # or: theirs, flax

``theirs`` are the transformers package's own classes (<5, with tf-keras), for one run
of both in the environment of ``make test-reference``. 125m shapes with random weights,
one row, a prompt of 128 tokens; the time of 16 more tokens over 16.
"""

from __future__ import annotations

import os
import sys
import time

os.environ["TF_USE_LEGACY_KERAS"] = "1"

import numpy as np

CLASSES = {"tf": "TFOPTForCausalLM", "flax": "FlaxOPTForCausalLM"}
SHORT, LONG = 4, 20


def seconds(model, tokens: int) -> float:
    """One call that makes ``tokens`` new ones."""
    ids = np.random.default_rng(0).integers(3, 50_000, [1, 128]).astype(np.int32)
    start = time.perf_counter()
    out = model.generate(
        ids, max_new_tokens=tokens, do_sample=False, eos_token_id=None, pad_token_id=1
    )
    np.asarray(getattr(out, "sequences", out))
    return time.perf_counter() - start


def main() -> None:
    """Print the line."""
    whose, framework = sys.argv[1:3]
    if whose == "ours":
        import optserve.models as package
    else:
        import transformers as package
    model = getattr(package, CLASSES[framework])(package.OPTConfig(eos_token_id=None))
    first = seconds(model, LONG)
    short, long = (min(seconds(model, n) for _ in range(3)) for n in (SHORT, LONG))
    token = 1000 * (long - short) / (LONG - SHORT)
    print(f"{whose} {framework}: first call {first:.1f} s, {token:.1f} ms per token")


if __name__ == "__main__":
    main()

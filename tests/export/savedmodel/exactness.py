"""Whether this processor's int8 products are exact, and what ``exact`` says of it.

    python -m tests.export.savedmodel.exactness AVX2 AVX512_CORE

prints it for processors that have no more than those instructions, a line for each.
"""

from __future__ import annotations

import json
import os
import sys
from typing import Any

import numpy as np
from optserve.models.quiet import import_tensorflow


def exact_int8() -> bool:
    """What ``exact`` says of this processor."""
    import tensorflow as tf
    from optserve.export.savedmodel.int8_matmul import available, exact

    return available() and bool(tf.function(exact)())


def exactness() -> dict[str, Any]:
    """Whether products of several sizes are exact, of int8 numbers and of numbers of 7
    bits, and what ``exact`` has ``claimed`` of int8's."""
    rng = np.random.default_rng(0)
    found: dict[str, Any] = {"int8": [], "seven bits": [], "claimed": exact_int8()}
    for rows, size, out in [(2, 64, 48), (16, 768, 200), (70, 3072, 96)]:
        values = rng.integers(-127, 128, (out, size)).astype(np.int8)
        values[0] = 127
        x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
        x[0], x[1] = 127, -127
        unsigned = rng.integers(0, 127, (rows, size)).astype(np.uint8)
        unsigned[0] = 126
        for keep in (False, True):
            found["int8"].append(_is_exact(x, values, keep))
            found["seven bits"].append(_is_exact(unsigned, values, keep))
    return found


def _is_exact(x: np.ndarray, values: np.ndarray, keep: bool) -> bool:
    import tensorflow as tf
    from optserve.export.savedmodel.int8_matmul import accumulators

    run = tf.function(lambda x: accumulators(x, values, keep=keep))
    right = x.astype(np.int64) @ values.T.astype(np.int64)
    return all(np.array_equal(run(x), right.astype(np.float32)) for _ in range(2))


def main(instructions: list[str]) -> None:
    """Ask in a copy of this process for each: oneDNN looks at the variable once."""
    import_tensorflow()
    for limit in instructions:
        if not (child := os.fork()):
            os.environ["ONEDNN_MAX_CPU_ISA"] = limit
            print(json.dumps(exactness()), flush=True)
            os._exit(0)
        os.waitpid(child, 0)


if __name__ == "__main__":
    main(sys.argv[1:])

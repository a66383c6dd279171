"""Whether this processor's int8 products are exact, and what ``exact`` says of it.

    python -m tests.export.savedmodel.exactness AVX2 AVX512_CORE

prints it for processors that have no more than those instructions, a line for each.
"""

from __future__ import annotations

import json
import os
import sys

import numpy as np
from optserve.models.quiet import import_tensorflow


def exactness() -> list[tuple[bool, bool]]:
    """For products of several sizes: whether they are exact, what ``exact`` says."""
    import tensorflow as tf
    from optserve.export.savedmodel.int8_matmul import accumulators, exact

    rng = np.random.default_rng(0)
    answers = []
    for rows, size, out in [(2, 64, 48), (16, 768, 200), (70, 3072, 96)]:
        x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
        x[0], x[1] = 127, -127
        values = rng.integers(-127, 128, (out, size)).astype(np.int8)
        values[0] = 127
        right = x.astype(np.int64) @ values.T.astype(np.int64)
        for keep in (False, True):
            run = tf.function(lambda x, w=values, k=keep: accumulators(x, w, keep=k))
            same = [np.array_equal(run(x), right.astype(np.float32)) for _ in range(2)]
            answers.append((all(same), bool(tf.function(exact)())))
    return answers


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

"""The measurements that comments in the code rest on, made again.

    python tests/benchmarks/claims.py            # or some of them: tf-norm huge-pages

Each line has the two sides of a claim, in ms: the way that is taken, and the other.
On an idle machine; the least of some rounds counts.
"""

from __future__ import annotations

import mmap
import sys
import time
from collections.abc import Callable
from typing import Any

import numpy as np

Sides = dict[str, Callable[[], Any]]


def milliseconds(function: Callable[[], Any], rounds: int = 15) -> float:
    """The quickest call, after one that may compile."""
    function()
    times = []
    for _ in range(rounds):
        start = time.perf_counter()
        function()
        times.append(time.perf_counter() - start)
    return 1e3 * min(times)


def numbers(*shape: int) -> np.ndarray:
    """Normal float32 numbers."""
    return np.random.default_rng(0).standard_normal(shape, np.float32)


def jax_row() -> Sides:
    """One row times 256 MB of float32 (``models/flax/xla_workarounds.py``)."""
    from optserve.models.flax.xla_workarounds import matmul_transposed

    inputs = numbers(1, 1024), numbers(65536, 1024)
    return {
        **by_both_compilers("matmul_transposed", matmul_transposed, *inputs),
        **by_both_compilers("x @ matrix.T", lambda x, m: x @ m.T, *inputs),
    }


def by_both_compilers(name: str, function: Any, *inputs: np.ndarray) -> Sides:
    """Compiled by jaxlib's XLA and, as in an export, by TensorFlow's."""
    import jax
    import tensorflow as tf
    from jax.experimental import jax2tf

    held, tensors = (
        [jax.device_put(x) for x in inputs],
        [tf.Variable(tf.constant(x)) for x in inputs],
    )
    by_jax = jax.jit(function)
    exported = jax2tf.convert(function)
    by_tf = tf.function(lambda: exported(*tensors), jit_compile=True, autograph=False)
    return {
        f"{name} (jaxlib)": lambda: by_jax(*held).block_until_ready(),
        f"{name} (TensorFlow)": lambda: by_tf().numpy(),
    }


def jax_bias() -> Sides:
    """A bias added to a product of one row (``models/flax/xla_workarounds.py``)."""
    from jax import lax
    from optserve.models.flax.xla_workarounds import barrier

    def product(keep: Callable[..., Any]) -> Callable[..., Any]:
        contract = (((1,), (1,)), ((), ()))
        return lambda x, m, b: keep(lax.dot_general(x, m, contract)) + b

    inputs = numbers(1, 768), numbers(50272, 768), numbers(50272)
    return {
        **by_both_compilers("after a barrier", product(barrier), *inputs),
        **by_both_compilers("fused", product(lambda x: x), *inputs),
    }


def jax_panels() -> Sides:
    """One row times 64 MB of int8 in rows of 8192 (``export/weights.py``)."""
    from optserve.models.flax.xla_workarounds import matmul_transposed

    x, matrix = numbers(1, 8192), numbers(8192, 8192).astype(np.int8)
    panels = np.stack(np.split(matrix, 4, axis=1))
    return {
        **by_both_compilers("panels", matmul_transposed, x, panels),
        **by_both_compilers("whole rows", matmul_transposed, x, matrix),
    }


def int4_row() -> Sides:
    """One row times 64 M numbers of four and eight bits (``export/README.md``)."""
    from optserve.export import int4
    from optserve.export.savedmodel.int4_jax import Int4Matrix
    from optserve.models.flax.xla_workarounds import matmul_transposed

    def product(x, words, scale):
        return Int4Matrix(words, scale).matmul(x)

    x, matrix = numbers(1, 2048), numbers(32768, 2048)
    return {
        **by_both_compilers("int4", product, x, *int4.pack(matrix)),
        **by_both_compilers("int8", matmul_transposed, x, matrix.astype(np.int8)),
    }


def tf_norm() -> Sides:
    """25 layer norms of one row (``export/savedmodel/matmul_tf.py``)."""
    import tensorflow as tf
    from optserve.export.savedmodel.matmul_tf import Norm
    from optserve.models.tf.model import layer_norm

    weight, bias = (tf.Variable(tf.constant(numbers(768))) for _ in range(2))
    x = tf.constant(numbers(1, 768))

    def many(norm: Callable[[Any], Any]) -> Callable[[], Any]:
        @tf.function
        def run(x):
            for _ in range(25):
                x = tf.nn.relu(norm(x))
            return x

        return lambda: run(x).numpy()

    plain = many(lambda x: layer_norm(x, weight, bias))
    return {"Norm": many(Norm(weight, bias)), "layer_norm": plain}


def tf_attention() -> Sides:
    """One query of 8 rows in 12 layers (``export/savedmodel/attention_tf.py``)."""
    import tensorflow as tf
    from optserve.export.savedmodel.attention_tf import attend_token

    keys = [tf.Variable(tf.constant(numbers(8, 12, 160, 64))) for _ in range(12)]
    q = tf.constant(numbers(8, 12, 1, 64))

    def many(attend: Callable[..., Any]) -> Callable[[], Any]:
        @tf.function
        def run(q):
            for k in keys:
                q = attend(q, k, k, 0.0)
            return q

        return lambda: run(q).numpy()

    def by_onednn(q, keys, values, bias):
        scores = tf.matmul(q, keys, transpose_b=True) + bias
        return tf.matmul(tf.nn.softmax(scores), values)

    return {"attend_token": many(attend_token), "oneDNN": many(by_onednn)}


def float32_row() -> Sides:
    """One row times 48 matrices of float32 (``export/savedmodel/matmul_tf.py``)."""
    import tensorflow as tf
    from optserve.export.savedmodel.matmul_tf import Matrix

    stored = [tf.Variable(tf.constant(numbers(768, 768))) for _ in range(48)]
    x = tf.constant(numbers(1, 768))

    @tf.function
    def own(x):
        for values in stored:
            x = Matrix(values).matmul(x)
        return x

    @tf.function
    def by_onednn(x):
        for values in stored:
            x = tf.matmul(x, values, transpose_b=True)
        return x

    return {"Matrix": lambda: own(x).numpy(), "oneDNN": lambda: by_onednn(x).numpy()}


def int8_rows() -> Sides:
    """8 rows times int8 weights (``export/savedmodel/int8_matmul.py``)."""
    import tensorflow as tf
    from optserve.export.savedmodel import int8_matmul

    values = tf.Variable(tf.constant(numbers(50272, 768).astype(np.int8)))
    wide = tf.Variable(tf.cast(values, tf.float32))
    half = tf.Variable(tf.cast(values, tf.bfloat16))
    x = tf.constant(numbers(8, 768))
    two = tf.function(lambda: int8_matmul.product(x, values, keep=True))
    seven = tf.function(lambda: int8_matmul.product(x, values, bits=7))
    one = tf.function(lambda: tf.matmul(x, wide, transpose_b=True))
    short = tf.cast(x, tf.bfloat16)
    rounded = tf.function(lambda: tf.matmul(short, half, transpose_b=True))
    return {
        "int8, two products": lambda: two().numpy(),
        "int8, 7 bits": lambda: seven().numpy(),
        "float32": lambda: one().numpy(),
        "bfloat16": lambda: tf.cast(rounded(), tf.float32).numpy(),
    }


def int8_rounding() -> Sides:
    """A prompt's numbers rounded to int8 (``export/savedmodel/int8_matmul.py``)."""
    import tensorflow as tf
    from optserve.export.savedmodel.int8_matmul import round_to_int8

    x = tf.Variable(tf.constant(numbers(128, 768)))

    def by_division(x):
        scale = tf.reduce_max(tf.abs(x), axis=[-1], keepdims=True) / 127
        return tf.cast(tf.round(x / scale), tf.int8)

    def many(rounded: Callable[[Any], Any]) -> Callable[[], Any]:
        @tf.function(autograph=False)
        def run():
            y = x.read_value()
            for _ in range(48):  # as many as a prompt takes
                y = tf.cast(rounded(y), tf.float32)
            return y

        return lambda: run().numpy()

    return {
        "multiplied": many(lambda x: round_to_int8(x).parts),
        "divided": many(by_division),
    }


def packed_rows() -> Sides:
    """15 and 16 rows times one matrix (``export/verify/plan.py``)."""
    import tensorflow as tf

    matrix = tf.Variable(tf.constant(numbers(8192, 2048)))
    rows = {n: tf.constant(numbers(n, 2048)) for n in (15, 16)}
    product = tf.function(lambda x: tf.matmul(x, matrix, transpose_b=True))
    return {f"{n} rows": lambda x=x: product(x).numpy() for n, x in rows.items()}


def huge_pages() -> Sides:
    """All of 1 GB read (``runtime/memory.py``)."""
    from optserve.runtime.memory import on_huge_pages

    def block() -> np.ndarray:
        """Not numpy's memory, for which it asks for huge pages by itself."""
        private = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS
        values = np.frombuffer(mmap.mmap(-1, 1 << 30, private), np.float32)
        values[:] = 1
        return values

    with on_huge_pages():
        huge = block()
    time.sleep(5)  # a thread moves them
    small = block()  # after that, or it could move along with its neighbour
    return {"huge pages": huge.sum, "4 KiB pages": small.sum}


def freed_memory() -> Sides:
    """A block of 100 MB filled, as by a request (``runtime/memory.py``)."""
    from optserve.runtime.memory import keep_freed_memory

    def fill() -> None:
        np.ones(100 << 18, np.float32)

    before = milliseconds(fill)
    keep_freed_memory()
    return {"kept": fill, f"given back: {before:.1f}; kept again": fill}


def codec() -> Sides:
    """A cache of 19 MB to bytes and back (``runtime/codec/``)."""
    from optserve.runtime import codec

    cache = numbers(1, 300, 12, 2, 12, 64)[:, :256]
    spec = codec.ModelSpec("opt", "decode", 1)
    reply = codec.encode_predict_response(spec, {"cache": cache})
    return {
        "encode": lambda: codec.encode_predict_request(spec, {"cache": cache}),
        "copy": cache.tobytes,
        "decode": lambda: codec.decode_predict_response(reply),
    }


CLAIMS = {
    "jax-row": jax_row,
    "jax-bias": jax_bias,
    "jax-panels": jax_panels,
    "int4-row": int4_row,
    "tf-norm": tf_norm,
    "tf-attention": tf_attention,
    "float32-row": float32_row,
    "int8-rows": int8_rows,
    "int8-rounding": int8_rounding,
    "packed-rows": packed_rows,
    "huge-pages": huge_pages,
    "codec": codec,
    "freed-memory": freed_memory,  # the last: it holds for the whole process
}


if __name__ == "__main__":
    for name in sys.argv[1:] or CLAIMS:
        sides = {side: milliseconds(run) for side, run in CLAIMS[name]().items()}
        print(name, "; ".join(f"{side} {ms:.2f}" for side, ms in sides.items()))

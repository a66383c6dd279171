"""The model ``rec`` of the recordings, rebuilt: echo, scalar and prefill."""

from __future__ import annotations

import os

import tensorflow as tf

DTYPES = {
    "f32": tf.float32,
    "f16": tf.float16,
    "bf16": tf.bfloat16,
    "f64": tf.float64,
    "i32": tf.int32,
    "i64": tf.int64,
    "u8": tf.uint8,
    "i8": tf.int8,
    "b": tf.bool,
    "u32": tf.uint32,
    "s": tf.string,
}


def save(path: str | os.PathLike[str]) -> None:
    """Write the SavedModel to the version folder ``path``."""
    module = tf.Module()

    @tf.function(
        input_signature=[tf.TensorSpec([None, None], d, n) for n, d in DTYPES.items()]
    )
    def echo(f32, f16, bf16, f64, i32, i64, u8, i8, b, u32, s):
        given = (f32, f16, bf16, f64, i32, i64, u8, i8, b, u32, s)
        return {n: tf.identity(v) for n, v in zip(DTYPES, given, strict=True)}

    @tf.function(input_signature=[tf.TensorSpec([], tf.float32, "x")])
    def scalar(x):
        return {"y": 2.0 * x}

    @tf.function(
        input_signature=[
            tf.TensorSpec([None, 4], tf.float32, "x"),
            tf.TensorSpec([None], tf.int32, "n"),
        ]
    )
    def prefill(x, n):
        total = tf.reduce_sum(x, axis=1) + tf.cast(n, tf.float32)
        return {"y": 2.0 * x, "total": total}

    signatures = {"echo": echo, "scalar": scalar, "prefill": prefill}
    tf.saved_model.save(module, os.fspath(path), signatures=signatures)

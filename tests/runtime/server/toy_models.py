"""Tiny SavedModels for the tests of versions, warm-up and batching."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import tensorflow as tf

ROWS = [tf.TensorSpec([None, None], tf.float32, "x")]


def save(path: str | os.PathLike[str], **signatures) -> Path:
    """Write a SavedModel to the version folder ``path``."""
    tf.saved_model.save(tf.Module(), os.fspath(path), signatures=signatures)
    return Path(path)


def save_scaled(path: str | os.PathLike[str], factor: float) -> Path:
    """``serving_default``: x → y = factor · x."""

    @tf.function(input_signature=ROWS)
    def scaled(x):
        return {"y": factor * x}

    return save(path, serving_default=scaled)


def save_counter(path: str | os.PathLike[str]) -> Path:
    """``add``: adds n to a variable and returns the new value."""
    module = tf.Module()
    module.total = tf.Variable(0)

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "n")])
    def add(n):
        return {"total": module.total.assign_add(tf.reduce_sum(n))[None]}

    tf.saved_model.save(module, os.fspath(path), signatures={"add": add})
    return Path(path)


def save_batchable(path: str | os.PathLike[str], size: int = 8) -> Path:
    """Signatures for batching.

    ``rows``: x → y = x · W, and ``width``, how many rows ran together;
    ``scalar``: x → the sum of all, no axis;
    ``ragged``: first and last column; ``nothing``: no inputs.
    """
    matrix = tf.constant(np.eye(size, dtype=np.float32) * 3)

    @tf.function(input_signature=[tf.TensorSpec([None, size], tf.float32, "x")])
    def rows(x):
        count = tf.fill([tf.shape(x)[0]], tf.shape(x)[0])
        return {"y": x @ matrix, "width": count}

    @tf.function(input_signature=ROWS)
    def scalar(x):
        return {"y": tf.reduce_sum(x)}

    @tf.function(input_signature=ROWS)
    def ragged(x):
        return {"last": x[:, -1], "first": x[:, 0]}

    @tf.function(input_signature=[])
    def nothing():
        return {"y": tf.constant([1.0])}

    return save(path, rows=rows, scalar=scalar, ragged=ragged, nothing=nothing)


def save_heavy(path: str | os.PathLike[str], size: int = 1024) -> Path:
    """``heavy``: 16 products with a matrix, so memory bounds a single row's speed."""
    module = tf.Module()
    module.matrices = [tf.Variable(tf.eye(size)) for _ in range(16)]

    @tf.function(input_signature=[tf.TensorSpec([None, size], tf.float32, "x")])
    def heavy(x):
        for matrix in module.matrices:
            x = x @ matrix
        return {"y": x[:, :1]}

    tf.saved_model.save(module, os.fspath(path), signatures={"heavy": heavy})
    return Path(path)


def save_endless(path: str | os.PathLike[str]) -> Path:
    """``endless``: counts to a billion, one step at a time."""

    @tf.function(input_signature=[tf.TensorSpec([None], tf.int32, "n")])
    def endless(n):
        return {"n": tf.while_loop(lambda i: i < 10**9, lambda i: (i + 1,), [n[0]])[0]}

    return save(path, endless=endless)

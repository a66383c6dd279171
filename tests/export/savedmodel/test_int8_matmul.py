"""Products of int8 weights by TensorFlow's int8 kernel, and the loop made of them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.options import ExportOptions
from optserve.export.savedmodel import int8_matmul
from optserve.export.savedmodel.int8_matmul import accumulators, joined, split_int8
from optserve.export.savedmodel.matmul_tf import KeptInt8Matrix, Kernels, Matrix
from safetensors.numpy import load_file, save_file

from tests.export.exports import (
    CASES,
    GOLDEN,
    Served,
    choosing,
    export_to,
    exported,
    int32,
    served,
)


def test_two_int8_numbers_hold_sixteen_bits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 300)).astype(np.float32)
    x[1, 7], x[2] = 60, 0  # an outlier, a row of nothing
    split = split_int8(tf.constant(x))
    high, low = np.split(split.parts.numpy().astype(np.float64), 2)
    actual = (255 * high + low) * split.scale.numpy()
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(actual - x) <= largest / 64770 * 1.001).all()
    assert split.parts.dtype == tf.int8


@pytest.mark.parametrize("size", [1e-38, 1e30, 3e38])
def test_numbers_of_any_size_are_split(size: float) -> None:
    x = np.float32([[0.5 * size, -size, 0.25 * size]])
    split = split_int8(tf.constant(x))
    high, low = np.split(split.parts.numpy().astype(np.float64), 2)
    actual = (255 * high + low) * split.scale.numpy().astype(np.float64)
    assert np.abs(actual - x).max() <= max(size, 1e-30) / 64000


def test_joined_is_the_product_of_the_numbers_that_were_split() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(-127, 128, (2, 3, 50))
    weights = rng.integers(-127, 128, (4, 50))
    sums = np.concatenate([high, low]) @ weights.T
    scale = np.float32([[1], [0.5], [4]])
    actual = joined(tf.constant(sums, tf.float32), scale)
    np.testing.assert_array_equal(actual, (255 * high + low) @ weights.T * scale)


_PROBE = """
import numpy as np, tensorflow as tf
from optserve.export.savedmodel.int8_matmul import accumulators, exact
rng = np.random.default_rng(0)
for rows, size, out in [(2, 64, 48), (16, 768, 200), (70, 3072, 96)]:
    x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
    x[0], x[1] = 127, -127
    values = rng.integers(-127, 128, (out, size)).astype(np.int8)
    values[0] = 127
    for keep in (False, True):
        run = tf.function(lambda x, keep=keep: accumulators(x, values, keep=keep))
        right = x.astype(np.int64) @ values.T.astype(np.int64)
        same = [np.array_equal(run(x), right.astype(np.float32)) for _ in range(2)]
        print(all(same), tf.function(exact)().numpy())
"""


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "ALL"])
def test_a_processor_that_does_not_sum_exactly_is_found(instructions: str) -> None:
    done = subprocess.run(
        [sys.executable, "-c", _PROBE],
        env=os.environ | {"ONEDNN_MAX_CPU_ISA": instructions},
        capture_output=True,
        text=True,
        check=True,
    )
    answers = [line.split() for line in done.stdout.strip().splitlines()]
    assert len(answers) == 6
    claimed = {claim for _, claim in answers}
    assert len(claimed) == 1
    if claimed == {"True"}:
        assert all(right == "True" for right, _ in answers)
    else:
        assert any(right == "False" for right, _ in answers)


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
def test_a_place_keeps_its_matrix_for_any_number_of_rows() -> None:
    rng = np.random.default_rng(4)
    values = rng.integers(-127, 128, (48, 768)).astype(np.int8)
    matrix = KeptInt8Matrix(tf.constant(values))
    product = tf.function(
        matrix.matmul, input_signature=[tf.TensorSpec([None, 768])], autograph=False
    )
    once = tf.function(int8_matmul.product)
    for rows in (1, 8, 2, 64, 1):
        x = rng.standard_normal((rows, 768)).astype(np.float32)
        np.testing.assert_array_equal(product(x), once(x, values))


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
@pytest.mark.parametrize("case", CASES)
def test_the_loop_of_kept_matrices_is_the_loop_over_layers(case) -> None:
    """The other one multiplies in float32 here, so the products of 16 bits differ."""
    model = served(case, weights="int8")
    with (
        model.answering("exact_int8", False),
        model.answering("native_bfloat16", False),
    ):
        right = _logprobs(model)
    with model.answering("exact_int8", True):
        actual = _logprobs(model)
    np.testing.assert_allclose(actual, right, atol=2e-3)


def test_a_matrix_multiplies_int8_as_such_where_that_is_exact() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 96)).astype(np.float32)
    values = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    exact = tf.function(int8_matmul.exact)()
    kernels = Kernels(native_bfloat16=tf.constant(True), exact_int8=exact)
    matrix = Matrix(tf.constant(values), kernels=kernels)
    right = x.astype(np.float64) @ values.T
    error = np.abs(tf.function(matrix.matmul)(x).numpy() - right).max()
    # Otherwise it multiplies in bfloat16, which keeps 8 bits of every factor.
    assert error <= (2**-14 if exact else 2**-7) * np.abs(right).max()


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
def test_sums_of_nothing() -> None:
    parts, values = tf.zeros([4, 64], tf.int8), tf.ones([8, 64], tf.int8)
    actual = tf.function(lambda: accumulators(parts, values))()
    np.testing.assert_array_equal(actual, np.zeros([4, 8]))


def test_versions_in_one_process_keep_their_own_weights(tmp_path) -> None:
    rng = np.random.default_rng(5)
    other = tmp_path / "other"
    other.mkdir()
    shutil.copy(GOLDEN / "pre_ln" / "config.json", other)
    weights = load_file(GOLDEN / "pre_ln" / "model.safetensors")
    shifts = {name: rng.normal(0, 0.05, x.shape) for name, x in weights.items()}
    save_file(
        {name: (x + shifts[name]).astype(x.dtype) for name, x in weights.items()},
        other / "model.safetensors",
    )
    options = {"weights": "int8", "generate": (8,)}
    old = exported("pre_ln", **options)
    new = export_to(tmp_path / "out", other, ExportOptions(**options))

    alone = _logprobs(Served(new))
    both = [Served(old), Served(new)]
    before, after, again = (_logprobs(both[i]) for i in (0, 1, 0))

    np.testing.assert_array_equal(after, alone)
    np.testing.assert_array_equal(again, before)
    assert np.abs(after - before).max() > 0.1


def _logprobs(model: Served) -> np.ndarray:
    return model(
        "generate_8",
        input_ids=np.int32([[5, 9], [7, 8], [3, 4]]),
        input_length=int32(2, 2, 1),
        cache=np.zeros((3, 0, *model.row_shape), np.float32),
        cache_length=int32(0, 0, 0),
        max_new_tokens=int32(8, 8, 8),
        **choosing(3),
    )["logprobs"]

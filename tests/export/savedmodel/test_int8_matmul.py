"""Products of int8 weights by TensorFlow's int8 kernel, and the loop made of them."""

from __future__ import annotations

import contextlib
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optserve.export.options import ExportOptions
from optserve.export.savedmodel import int8_matmul
from optserve.export.savedmodel.int8_matmul import accumulators, joined, split_int8
from optserve.export.savedmodel.matmul_tf import KeptInt8Matrix, Kernels, Matrix
from optserve.export.verify.tolerances import INT8_ACTIVATIONS
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint

from tests.export.exports import Served, choosing, export_only, int32, served
from tests.export.savedmodel.exactness import exactness
from tests.export.savedmodel.processors import has_kernels, sums_int8

ROOT = Path(__file__).parents[3]


BARE = OPTConfig(
    vocab_size=64,
    hidden_size=16,
    num_hidden_layers=2,
    ffn_dim=32,
    num_attention_heads=2,
    max_position_embeddings=24,
    word_embed_proj_dim=8,
    do_layer_norm_before=False,
    enable_bias=False,
    layer_norm_elementwise_affine=False,
    activation_function="gelu",
    tie_word_embeddings=False,
    init_std=0.3,
)
"""Without all that the golden checkpoint ``pre_ln`` has, and with what that has not."""


@pytest.fixture(scope="module")
def bare(tmp_path_factory) -> Served:
    """An int8 export of random weights."""
    out = tmp_path_factory.mktemp("bare")
    checkpoint = write_random_checkpoint(out / "checkpoint", BARE)
    options = ExportOptions(weights="int8", generate=(8,))
    return Served(export_only(out / "out", checkpoint, options, ("generate_8",)))


def with_other_weights(version: Path, folder: Path) -> Served:
    """The same graph, each row of its int8 matrices in the reverse order."""
    shutil.copytree(version, folder, dirs_exist_ok=True)
    prefix = str(folder / "variables" / "variables")
    stored = tf.train.load_checkpoint(prefix)
    names = stored.get_variable_to_dtype_map()
    values = {name: stored.get_tensor(name) for name in names}
    for name, value in values.items():
        if np.asarray(value).dtype == np.int8:
            values[name] = value[..., ::-1]
    tf.raw_ops.SaveV2(
        prefix=prefix,
        tensor_names=[*values],
        shape_and_slices=[""] * len(values),
        tensors=[*values.values()],
    )
    return Served(folder)


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


@pytest.fixture(scope="module")
def found_with_less() -> dict[str, dict[str, Any]]:
    """What is found on processors with fewer instructions."""
    names = ["AVX2", "AVX512_CORE"]
    done = subprocess.run(
        [sys.executable, "-m", "tests.export.savedmodel.exactness", *names],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    return dict(zip(names, map(json.loads, done.stdout.splitlines()), strict=True))


@has_kernels
@pytest.mark.parametrize("instructions", ["AVX2", "AVX512_CORE", "all there are"])
def test_a_processor_that_does_not_sum_exactly_is_found(instructions, request) -> None:
    if instructions == "all there are":
        found = exactness()
    else:
        found = request.getfixturevalue("found_with_less")[instructions]
    assert len(found["int8"]) == len(found["seven bits"]) == 6
    assert found["claimed"] == all(found["int8"])
    assert all(found["seven bits"])


@has_kernels
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


@pytest.mark.parametrize("rows", [1, 3, 200])
@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize(
    "bits", [pytest.param(7, marks=has_kernels), pytest.param(8, marks=sums_int8)]
)
def test_rounded_activations(bits: int, rows: int, keep: bool) -> None:
    rng = np.random.default_rng(rows)
    x = rng.standard_normal((rows, 96)).astype(np.float32)
    x[0, 5] = 30  # an outlier of one row is nothing to the others
    values = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    largest = np.abs(x).max(axis=1, keepdims=True)
    lowest = x.min(axis=1, keepdims=True)
    if bits == 8:
        step, zero = largest / 127, 0
    else:
        step, zero = (x.max(axis=1, keepdims=True) - lowest) / 126, lowest
    columns = rng.uniform(0.5, 2, 40).astype(np.float32)
    rounded = np.rint((x - zero) / step) * step + zero
    right = rounded.astype(np.float64) @ values.T * columns

    @tf.function(input_signature=[tf.TensorSpec([None, 96])], autograph=False)
    def product(x):
        return int8_matmul.product(
            x, tf.constant(values), tf.constant(columns), keep=keep, bits=bits
        )

    # A number that is half-way between two may go to either.
    most = np.abs(values).max() * step * 2
    difference = np.abs(product(x) - right)
    assert (difference <= 1.01 * most).all()
    assert (difference < 1e-3 * most).mean() > 0.99


@has_kernels
@pytest.mark.parametrize("x", [[0, 0, 0], [5, 5, 5], [-3, -3, -3], [1e36, 0, 3e35]])
def test_seven_bits_hold_what_all_numbers_of_a_row_are(x: list[float]) -> None:
    values = np.int8([[1, 2, 3], [-127, 127, 0]])
    actual = tf.function(int8_matmul.product)(np.float32([x]), values, bits=7)
    expected = np.float64([x]) @ values.T
    largest = 127 * max(np.abs(x))
    np.testing.assert_allclose(actual, expected, atol=largest / 126)


@has_kernels
@pytest.mark.parametrize("bits", [7, 8])
@pytest.mark.parametrize("bad", [np.nan, np.inf])
def test_rounding_a_row_without_numbers_gives_none(bits: int, bad: float) -> None:
    x = np.float32([[bad, 1], [2, 1]])
    values = np.int8([[1, 2], [3, 4]])
    actual = tf.function(int8_matmul.product)(x, values, bits=bits).numpy()
    assert not np.isfinite(actual[0]).any()
    np.testing.assert_allclose(actual[1], [4, 10], rtol=0.02)


@sums_int8
@pytest.mark.parametrize("has", ["everything", "as little as can be"])
def test_the_loop_of_kept_matrices_is_the_loop_over_layers(has, request) -> None:
    """The other one multiplies in float32 here, so the products of 16 bits differ."""
    if has == "everything":
        model = served("pre_ln", weights="int8")
    else:
        model = request.getfixturevalue("bare")
    with model.answering("exact_int8", True):
        actual = _logprobs(model)
    np.testing.assert_allclose(actual, _by_layers(model), atol=2e-3)


@has_kernels
def test_the_loop_in_seven_bits_differs_by_little() -> None:
    """From the one in float32 of the same weights, whose scales were not moved."""
    options = {"weights": "int8", "generate": (8,), "only": ("generate_8",)}
    rounded = served("pre_ln", **options, activations="int8")
    with rounded.answering("exact_int8", False):
        actual = _logprobs(rounded)
    difference = np.abs(actual - _by_layers(served("pre_ln", weights="int8")))
    assert 0 < difference.max() < INT8_ACTIVATIONS


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


@has_kernels
def test_sums_of_nothing() -> None:
    parts, values = tf.zeros([4, 64], tf.int8), tf.ones([8, 64], tf.int8)
    actual = tf.function(lambda: accumulators(parts, values))()
    np.testing.assert_array_equal(actual, np.zeros([4, 8]))


def test_versions_in_one_process_keep_their_own_weights(bare, tmp_path) -> None:
    before = _logprobs(bare)
    new = with_other_weights(bare.path, tmp_path)
    after = _logprobs(new)
    np.testing.assert_allclose(after, _by_layers(new), atol=2e-3)
    np.testing.assert_array_equal(_logprobs(bare), before)
    assert np.abs(after - before).max() > 0.1


def _by_layers(model: Served) -> np.ndarray:
    asked = ["native_bfloat16"]
    if int8_matmul.available():
        asked.append("exact_int8")
    with contextlib.ExitStack() as answers:
        for name in asked:
            answers.enter_context(model.answering(name, False))
        return _logprobs(model)


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

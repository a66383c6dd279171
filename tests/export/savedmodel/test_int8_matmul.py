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
from optserve.export.savedmodel import autotune, graph_tf, int8_loop, int8_matmul
from optserve.export.savedmodel.backends import unstacked
from optserve.export.savedmodel.exporter import export_savedmodel
from optserve.export.savedmodel.graph_tf import Request
from optserve.export.savedmodel.int8_matmul import (
    Halves,
    compiled_sums,
    in_halves,
    integer_sums,
    joined,
)
from optserve.export.savedmodel.matmul_tf import Matrix
from optserve.export.weights import assemble, packed_weights
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.generation.sampling import SamplingParams
from safetensors.numpy import load_file, save_file

from tests.export.exports import CASES, FEW_SHAPES, GOLDEN, Served, exported


def test_halves_hold_sixteen_bits() -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((6, 300)).astype(np.float32)
    x[1, 7], x[2] = 60, 0  # an outlier, a row of nothing
    halves = in_halves(tf.constant(x))
    high, low = np.split(halves.parts.numpy().astype(np.float64), 2)
    found = (256 * high + low) * halves.scale.numpy()
    largest = np.abs(x).max(axis=1, keepdims=True)
    assert (np.abs(found - x) <= largest / 65024 * 1.001).all()
    assert halves.parts.dtype == tf.int8


def test_joined_is_the_product_of_the_numbers_that_halves_hold() -> None:
    rng = np.random.default_rng(1)
    high, low = rng.integers(-127, 128, (2, 3, 50))
    weights = rng.integers(-127, 128, (4, 50))
    sums = np.concatenate([high, low]) @ weights.T
    scale = np.float32([[1], [0.5], [4]])
    found = joined(tf.constant(sums, tf.float32), scale)
    np.testing.assert_array_equal(found, (256 * high + low) @ weights.T * scale)


_PROBE = """
import numpy as np, tensorflow as tf
from optserve.export.savedmodel.int8_matmul import exact, integer_sums
rng = np.random.default_rng(0)
for rows, size, out in [(2, 64, 48), (16, 768, 200), (70, 3072, 96)]:
    x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
    x[0], x[1] = 127, -127
    values = rng.integers(-127, 128, (out, size)).astype(np.int8)
    values[0] = 127
    for keep in (False, True):
        run = tf.function(lambda x, keep=keep: integer_sums(x, values, keep=keep))
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


@pytest.mark.parametrize("rows, size, out", [(2, 64, 48), (16, 768, 203), (7, 3072, 9)])
def test_compiled_sums_are_exact(rows, size, out) -> None:
    rng = np.random.default_rng(4)
    x = rng.integers(-127, 128, (rows, size)).astype(np.int8)
    values = rng.integers(-127, 128, (out, size)).astype(np.int8)
    x[0], values[0] = 127, -127
    found = tf.function(compiled_sums, jit_compile=True)(x, values)
    np.testing.assert_array_equal(found, x.astype(np.int64) @ values.T.astype(np.int64))


@pytest.fixture
def sums_of_floats(monkeypatch):
    """The kernel's sums on any processor: of less than 2^24 they are exact."""

    def sums(parts, values, *, keep=False):
        as_floats = (tf.cast(x, tf.float32) for x in (parts, values))
        return tf.matmul(*as_floats, transpose_b=True)

    monkeypatch.setattr(int8_loop, "integer_sums", sums)


@pytest.mark.parametrize("way", ["ops", "pieces", "whole"])
@pytest.mark.parametrize("case", CASES)
def test_the_loop_of_int8_products_is_the_loop(case, way, sums_of_floats) -> None:
    config = OPTConfig.from_pretrained(GOLDEN / case)
    stored = dict(packed_weights(config, open_weights(GOLDEN / case), "int8"))
    params = unstacked(
        config,
        assemble(
            config,
            stored,
            lambda name, values, scale: Matrix(tf.constant(values), scale),
        ),
    )
    N, request = 6, _request(config, rows=5, slots=9)

    right = graph_tf.generate(
        config, lambda step: params, "float32", N, request, compiled=False
    )
    loop = int8_loop.Int8Loop(
        config, "float32", N, compiled=way != "ops", whole=way == "whole"
    )
    found = tf.function(
        lambda: loop.generate(params, request, keep=False),
        autograph=False,
        jit_compile=way == "whole",
    )()

    np.testing.assert_array_equal(found[0], right[0])  # tokens
    np.testing.assert_array_equal(found[2], right[2])  # counts
    np.testing.assert_allclose(found[1], right[1], atol=2e-3)
    assert sorted(set(right[2].numpy())) == [0, 2, 3, 6]
    for row, count in enumerate(right[2].numpy()):
        made = [loops[3][:, :, row, :, :count] for loops in (found, right)]
        np.testing.assert_allclose(*made, atol=2e-3)


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
def test_an_export_has_the_whole_loop_for_projections_too(tmp_path, monkeypatch):
    monkeypatch.setattr(int8_matmul, "exact", lambda: tf.constant(True))
    monkeypatch.setattr(autotune, "quicker_compiled", lambda: tf.constant(True))
    options = {"weights": "int8", "generate": (8,)}
    plain = exported("post_ln_proj", **options)
    compiled = {**FEW_SHAPES, "compiler": "xla"}
    folder = export_savedmodel(
        GOLDEN / "post_ln_proj", tmp_path / "out", ExportOptions(**options, **compiled)
    )
    found, right = _logprobs(Served(folder)), _logprobs(Served(plain))
    np.testing.assert_allclose(found, right, atol=2e-3)


def _request(config: OPTConfig, *, rows: int, slots: int) -> Request:
    rng = np.random.default_rng(3)
    shape = [rows, slots, config.num_hidden_layers, 2, config.num_attention_heads]
    vocabulary = [rows, config.vocab_size]
    return Request(
        tf.constant(rng.integers(4, 60, rows), tf.int32),
        tf.constant(rng.standard_normal([*shape, config.head_dim]), tf.float32),
        tf.constant([9, 4, 0, 7, 1]),
        tf.constant([6, 3, 6, 0, 2]),
        tf.zeros(vocabulary, tf.bool),
        tf.constant(rng.random(vocabulary) < 0.1),
        tf.constant(6),
        SamplingParams(
            tf.constant(rng.integers(-9, 9, (rows, 2)), tf.int32),
            tf.constant([0.0, 0.7, 1.3, 0.0, 0.0]),
            tf.constant([0, 5, 0, 0, 0]),
            tf.constant([1.0, 0.9, 1.0, 1.0, 1.0]),
            tf.constant([1.0, 1.0, 1.2, 1.0, 1.3]),
        ),
    )


def test_a_matrix_multiplies_int8_as_such_where_that_is_exact() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((3, 96)).astype(np.float32)
    values = rng.integers(-127, 128, (40, 96)).astype(np.int8)
    exact = tf.function(int8_matmul.exact)()
    matrix = Matrix(tf.constant(values), native=tf.constant(True), exact=exact)
    right = x.astype(np.float64) @ values.T
    error = np.abs(tf.function(matrix.matmul)(x).numpy() - right).max()
    # Otherwise it multiplies in bfloat16, which keeps 8 bits of every factor.
    assert error <= (2**-14 if exact else 2**-7) * np.abs(right).max()


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
def test_sums_of_nothing() -> None:
    halves = Halves(tf.zeros([4, 64], tf.int8), tf.ones([2, 1]))
    values = tf.ones([8, 64], tf.int8)
    found = tf.function(lambda: integer_sums(halves.parts, values))()
    np.testing.assert_array_equal(found, np.zeros([4, 8]))


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
    new = export_savedmodel(other, tmp_path / "out", ExportOptions(**options))

    alone = _logprobs(Served(new))
    both = [Served(old), Served(new)]
    before, after, again = (_logprobs(both[i]) for i in (0, 1, 0))

    np.testing.assert_array_equal(after, alone)
    np.testing.assert_array_equal(again, before)
    assert np.abs(after - before).max() > 0.1


def _logprobs(model: Served) -> np.ndarray:
    prompts = {"input_ids": [[5, 9], [7, 8], [3, 4]], "input_length": [2, 2, 1]}
    cache = {"cache": np.zeros((3, 0, *model.row_shape)), "cache_length": [0] * 3}
    ends = {"max_new_tokens": [8] * 3, "stop_ids": [[-1]] * 3, "history": [[-1]] * 3}
    ways = {"temperature": [0.0], "top_k": [0], "top_p": [1.0]}
    ways |= {"repetition_penalty": [1.0], "seed": [[0, 0]]}
    inputs = prompts | cache | ends | {name: value * 3 for name, value in ways.items()}
    real = {"cache", "temperature", "top_p", "repetition_penalty"}
    return model(
        "generate_8",
        **{
            name: np.asarray(value, np.float32 if name in real else np.int32)
            for name, value in inputs.items()
        },
    )["logprobs"]

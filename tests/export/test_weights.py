"""Weights as they are stored, against plain numpy."""

from __future__ import annotations

import itertools
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest
from optserve.export.weights import SCALE, by_blocks, packed_weights, quantize
from optserve.models.config import OPTConfig
from optserve.models.weights import weight_shapes

# A table of many blocks that its last one doesn't fill, and matrices of a part of one.
CONFIG = OPTConfig(
    vocab_size=4099,
    hidden_size=96,
    num_hidden_layers=2,
    ffn_dim=128,
    num_attention_heads=3,
    max_position_embeddings=16,
)
QKV = "decoder.layers.self_attn.qkv_proj"
FC2 = "decoder.layers.fc2.weight"


@pytest.fixture(scope="module")
def weights() -> dict[str, np.ndarray]:
    random = np.random.default_rng(0)
    shapes = weight_shapes(CONFIG)
    return {n: random.standard_normal(s, np.float32) for n, s in shapes.items()}


def test_every_row_is_in_one_block():
    matrix = np.zeros((4099, 96))
    seen = np.zeros(len(matrix), int)

    def count(rows: slice) -> None:
        assert rows.stop <= len(matrix)
        seen[rows] += 1

    by_blocks(count, matrix)
    assert (seen == 1).all()


def test_quantize(weights):
    matrix = weights["decoder.embed_tokens.weight"].copy()
    matrix[7] = 0
    values, scales = quantize(matrix)
    largest = np.abs(matrix).max(axis=1)
    expected = np.where(largest > 0, largest / 127, 1).astype(np.float32)
    np.testing.assert_array_equal(scales, expected)
    np.testing.assert_array_equal(values, np.rint(matrix / expected[:, None]))


@pytest.mark.parametrize("dtype", [np.float32, ml_dtypes.bfloat16])
def test_projections_are_one_matrix_in_memory_of_its_own(weights, dtype):
    given = {name: array.astype(dtype) for name, array in weights.items()}
    packed = dict(packed_weights(CONFIG, given, "float32"))
    for leaf, i in itertools.product(("weight", "bias"), range(2)):
        at = f"decoder.layers.{i}.self_attn"
        parts = [
            given[f"{at}.{p}_proj.{leaf}"].astype(np.float32) for p in ("q", "k", "v")
        ]
        parts[0] *= np.float32(CONFIG.head_dim**-0.5)
        actual = packed[f"{QKV}.{leaf}"][i]
        np.testing.assert_array_equal(actual, np.concatenate(parts))
    for name, array in packed.items():
        assert array.dtype == np.float32 and array.ctypes.data % 64 == 0
        if name in given:
            assert not np.shares_memory(array, given[name])
            np.testing.assert_array_equal(array, given[name].astype(np.float32))


def test_layers_are_stacked_in_their_order(weights):
    packed = dict(packed_weights(CONFIG, weights, "float32"))
    for name in ("fc1.weight", "final_layer_norm.bias", "self_attn.out_proj.bias"):
        layers = [weights[f"decoder.layers.{i}.{name}"] for i in range(2)]
        np.testing.assert_array_equal(packed[f"decoder.layers.{name}"], layers)
    int8 = dict(packed_weights(CONFIG, weights, "int8"))
    for i in range(2):
        values, scales = quantize(weights[f"decoder.layers.{i}.fc2.weight"])
        np.testing.assert_array_equal(int8[FC2][i], values)
        np.testing.assert_array_equal(int8[FC2 + SCALE][i], scales)


def test_matrices_are_of_the_type_and_the_rest_is_float32(weights):
    packed = dict(packed_weights(CONFIG, weights, "int8"))
    table = "decoder.embed_tokens.weight"
    assert packed[table].dtype == packed[f"{QKV}.weight"].dtype == np.int8
    assert packed[table + SCALE].shape == (4099,)
    assert packed[f"{QKV}.bias"].dtype == np.float32
    assert packed["decoder.embed_positions.weight"].dtype == np.float32


@pytest.mark.parametrize(("width", "count"), [(4095, 1), (6000, 3), (10240, 5)])
@pytest.mark.parametrize("dtype", ["int8", "bfloat16"])
def test_long_rows_are_in_panels_for_a_compiler(dtype, width, count):
    random = np.random.default_rng(1)
    config = replace(CONFIG, ffn_dim=width)
    weights = {
        name: random.standard_normal(shape, np.float32)
        for name, shape in weight_shapes(config).items()
    }
    plain = dict(packed_weights(config, weights, dtype))
    packed = dict(packed_weights(config, weights, dtype, compiled=True))
    panels = packed.pop(FC2)
    if count > 1:
        assert panels.shape == (2, count, 96, width // count)
        panels = np.concatenate(list(panels.swapaxes(0, 1)), axis=2)
    np.testing.assert_array_equal(panels, plain.pop(FC2))
    assert packed.keys() == plain.keys()
    for name, array in plain.items():
        np.testing.assert_array_equal(packed[name], array)


def test_rows_that_no_few_panels_divide_stay_whole():
    config = replace(CONFIG, ffn_dim=4099)  # a prime
    weights = {n: np.zeros(s, np.float32) for n, s in weight_shapes(config).items()}
    packed = dict(packed_weights(config, weights, "int8", compiled=True))
    assert packed[FC2].shape == (2, 96, 4099)

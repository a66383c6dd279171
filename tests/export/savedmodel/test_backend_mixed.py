"""Who computes what in a graph that has plain ops and programs: the same bits as in an
export that has the one or the other alone."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from optserve.export.savedmodel import int8_matmul

from tests.export.exports import INT8_MIXED, MIXED, Served, choosing, exported

CASE = "pre_ln"
FED = ("decode", "embed")
TEXTS = ("score", "serving_default")
ALL = (*FED, *TEXTS, "generate_8")
FEW: dict[str, Any] = {"generate": (8,), "only": ALL}


class Exports:
    """Of the same weights: both ways to compute in one graph, and each alone."""

    def __init__(
        self, mixed: dict[str, Any], programs: dict[str, Any], plain: dict[str, Any]
    ) -> None:
        self.mixed = Served(exported(CASE, **mixed))
        self.programs = Served(exported(CASE, framework="jax", **programs))
        self.plain = Served(exported(CASE, **plain))

    def assert_equal(self, other: Served, sizes: tuple[int, int], names) -> None:
        for name in names:
            inputs = request(name, *sizes)
            expected = other(name, **inputs)
            for output, value in self.mixed(name, **inputs).items():
                np.testing.assert_array_equal(value, expected[output], f"{name}")


@pytest.fixture(scope="module")
def int8() -> Exports:
    if not int8_matmul.available():
        pytest.skip("no int8 kernels")
    int8 = {**FEW, "weights": "int8"}
    sizes = {"prompt_buckets": (16,), "batch_sizes": (1,)}
    scales_stay = {"activations": "int16"}
    return Exports(INT8_MIXED, {**int8, **sizes}, {**int8, **scales_stay})


@pytest.fixture(scope="module")
def float32() -> Exports:
    return Exports(MIXED, {}, {})  # the others are there for other tests


def request(name: str, rows: int, tokens: int) -> dict[str, np.ndarray]:
    """Some tokens for each row after four cached slots, where there is a cache."""
    random = np.random.default_rng(rows)
    ids = random.integers(3, 90, (rows, tokens), np.int32)
    if name == "serving_default":
        return {"input_ids": ids, "attention_mask": np.ones_like(ids)}
    given = {"input_ids": ids, "input_length": np.full(rows, tokens, np.int32)}
    if name == "embed":
        return given
    cache = random.standard_normal((rows, 4, 3, 2, 4, 8)).astype(np.float32)
    given |= {"cache": cache, "cache_length": np.full(rows, 4, np.int32)}
    if name == "generate_8":
        given |= {"max_new_tokens": np.full(rows, 8, np.int32), **choosing(rows)}
    return given


@pytest.mark.parametrize("sizes", [(1, 1), (3, 5)])
def test_programs_compute_all_where_int8_is_not_exact(int8, sizes):
    with int8.mixed.answering("exact_int8", False):
        int8.assert_equal(int8.programs, sizes, ALL)


def test_programs_compute_one_row_of_int8(int8):
    with int8.mixed.answering("exact_int8", True):
        int8.assert_equal(int8.programs, (1, 1), (*FED, "generate_8"))


@pytest.mark.parametrize("sizes", [(2, 1), (5, 3)])
def test_plain_ops_compute_several_rows_of_int8_where_that_is_exact(int8, sizes):
    with (
        int8.mixed.answering("exact_int8", True),
        int8.plain.answering("exact_int8", True),
    ):
        int8.assert_equal(int8.plain, sizes, ALL)


@pytest.mark.parametrize("tokens", [1, 5])
def test_plain_ops_compute_texts_of_int8_where_that_is_exact(int8, tokens):
    with (
        int8.mixed.answering("exact_int8", True),
        int8.plain.answering("exact_int8", True),
    ):
        int8.assert_equal(int8.plain, (1, tokens), ("serving_default",))


def test_programs_compute_a_short_prompt_of_float32(float32):
    float32.assert_equal(float32.programs, (1, 16), (*FED, "generate_8"))


@pytest.mark.parametrize("sizes", [(1, 17), (3, 2)])
def test_plain_ops_compute_the_rest_of_float32(float32, sizes):
    float32.assert_equal(float32.plain, sizes, ("embed", *TEXTS))
    if sizes[0] > 1:
        float32.assert_equal(float32.plain, sizes, ("decode", "generate_8"))

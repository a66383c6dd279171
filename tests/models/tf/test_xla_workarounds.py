"""What each workaround is for, seen in what XLA compiles: with it and without."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import tensorflow as tf
from optserve.models.tf.sampling import threefry2x32
from optserve.models.tf.xla_workarounds import first_argmax, sum_rows

ROWS = tf.TensorSpec([4, 1000])


def program(function: Callable[..., Any], *inputs: tf.TensorSpec) -> str:
    """The program that XLA makes."""
    graph = tf.function(function, input_signature=inputs, jit_compile=True)
    zeros = [tf.zeros(spec.shape, spec.dtype) for spec in inputs]
    return graph.experimental_get_compiler_ir(*zeros)(stage="optimized_hlo")


def test_a_largest_number_is_searched_without_pairs():
    """XLA makes no vector code of a reduction of pairs, which an argmax is."""
    pairs = r"= \(.*\) reduce\("
    assert not re.search(pairs, program(first_argmax, ROWS))
    assert re.search(pairs, program(lambda x: tf.argmax(x, axis=1), ROWS))


def longest_sum(text: str) -> int:
    """Most numbers of a row that are added up one by one."""
    names = dict(re.findall(r"%?(\S+) = f32\[\d+,(\d+)\]", text))
    added = re.findall(r"= f32\[\d+\]\S* reduce\(%?([^,)]+)", text)
    return max(int(names[name.split()[-1].lstrip("%")]) for name in added)


def test_sums_are_of_parts_of_a_row():
    def summed(compiled: bool):
        return lambda x: sum_rows(tf.exp, x, compiled=compiled)

    assert longest_sum(program(summed(True), ROWS)) <= 1000 // 8 + 8
    assert longest_sum(program(summed(False), ROWS)) > 200


@pytest.mark.parametrize("compiled", [False, True])
@pytest.mark.parametrize("size", [7, 8, 1003])
def test_sums_equal_numpys(size, compiled):
    x = np.random.default_rng(2).standard_normal((3, size)).astype(np.float32)
    actual = sum_rows(tf.square, tf.constant(x), compiled=compiled)
    np.testing.assert_allclose(actual, np.square(x).sum(axis=1), rtol=1e-5)


def test_the_rounds_of_a_cipher_are_compiled_in_pieces():
    """In one piece they take XLA minutes."""
    word = tf.TensorSpec([4, 1000], tf.uint32)
    text = program(lambda *x: threefry2x32(*x, compiled=True), word, word, word, word)
    assert max(part.count("\n") for part in text.split("\n\n")) < 200

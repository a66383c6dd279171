"""What is found out when a version is loaded."""

from __future__ import annotations

import pytest
import tensorflow as tf
from optserve.export.savedmodel import autotune, int8_matmul
from optserve.export.savedmodel.autotune import EXACT_INT8, NATIVE_BFLOAT16


def test_only_what_the_weights_need_is_asked() -> None:
    def asked(weights: tf.DType, *, portable: bool = False) -> set[str]:
        return set(autotune.questions(weights, portable=portable))

    int8 = {EXACT_INT8} if int8_matmul.available() else set()
    assert asked(tf.int8) == {NATIVE_BFLOAT16} | int8
    assert asked(tf.int8, portable=True) == {NATIVE_BFLOAT16}
    assert asked(tf.bfloat16) == {NATIVE_BFLOAT16}
    assert asked(tf.float32) == asked(tf.float16) == set()


@pytest.mark.parametrize("answer", [False, True])
def test_the_answer_is_found_when_a_version_is_loaded(answer) -> None:
    resource = autotune.FoundAtLoad(lambda: tf.constant(answer), f"test_{answer}")
    resource._initialize()
    assert bool(tf.function(resource.read)()) == answer


@pytest.mark.skipif(not int8_matmul.available(), reason="no int8 kernels")
def test_many_rows_are_not_multiplied_as_two_int8_numbers() -> None:
    questions = autotune.questions(tf.int8, portable=False)
    for question in questions.values():
        tf.raw_ops.AssignVariableOp(
            resource=question.resource_handle, value=tf.constant(True)
        )

    def answer(rows: int, *, int8_activations: bool) -> bool:
        def ask(rows):
            return autotune.kernels(
                questions, rows, int8_activations=int8_activations
            ).exact_int8

        return bool(tf.function(ask)(tf.constant(rows)))

    assert answer(64, int8_activations=False)
    assert not answer(65, int8_activations=False)
    assert answer(65, int8_activations=True)

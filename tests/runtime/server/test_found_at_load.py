"""What a version says that it found out about the processor."""

from __future__ import annotations

import logging
import threading

import tensorflow as tf
from optserve.runtime.contract import FOUND_AT_LOAD
from optserve.runtime.server.found_at_load import found_at_load
from optserve.runtime.server.progress import Progress


def session(answers: dict[str, bool]) -> tf.compat.v1.Session:
    """With a variable for each name, as in a loaded SavedModel."""
    with tf.Graph().as_default() as graph:
        handles = {
            name: tf.raw_ops.VarHandleOp(dtype=tf.bool, shape=[], shared_name=name)
            for name in answers
        }
        writes = [
            tf.raw_ops.AssignVariableOp(resource=handles[name], value=answer)
            for name, answer in answers.items()
        ]
    opened = tf.compat.v1.Session(graph=graph)
    opened.run(writes)
    return opened


def test_answers_are_read_from_the_variables_of_an_export() -> None:
    bfloat16, int8 = FOUND_AT_LOAD
    with session({bfloat16: True, int8: False, "another": True}) as opened:
        assert found_at_load(opened) == {
            FOUND_AT_LOAD[bfloat16]: True,
            FOUND_AT_LOAD[int8]: False,
        }


def test_a_model_that_asks_nothing_has_no_answers() -> None:
    with session({"another": True}) as opened:
        assert found_at_load(opened) == {}


def test_each_answer_is_a_line_of_the_log(caplog) -> None:
    progress = Progress("opt", 3, threading.Event())
    with caplog.at_level(logging.INFO, "optserve.server"):
        progress.found({"something": True, "something else": False})
    assert [record.getMessage() for record in caplog.records] == [
        "version 3 of model opt: something: yes",
        "version 3 of model opt: something else: no",
    ]
    assert [record.answer for record in caplog.records] == [True, False]

"""Calls joined row by row, and each one's part of the reply."""

from __future__ import annotations

import numpy as np
import pytest
from optserve.runtime.codec import RowBlocks
from optserve.runtime.errors import MalformedReply
from optserve.runtime.transports.base import Call, Reply
from optserve.runtime.transports.joining import joined, shares


def test_each_input_is_padded_with_what_is_never_read():
    def call(rows, slots, history):
        cache = RowBlocks(tuple((np.ones((2, 3), "f4"),) for _ in range(rows)), slots)
        return Call(
            "decode",
            {
                "input_ids": np.full((rows, 1), 7, np.int32),
                "cache": cache,
                "cache_length": np.full(rows, 2, np.int32),
                "history": np.array([history] * rows, np.int32),
            },
        )

    both = joined([call(1, 4, [-1, 5]), call(2, 8, [-1, 6, 7, -1])], 4)
    assert both.inputs["cache"].shape == (4, 8, 3)
    np.testing.assert_array_equal(both.inputs["cache_length"], [2, 2, 2, 0])
    np.testing.assert_array_equal(both.inputs["history"][0], [-1, 5, -1, -1])
    np.testing.assert_array_equal(
        np.asarray(both.inputs["cache"])[:, :3, 0].sum(1), [2, 2, 2, 0]
    )


def asking(name, *steps):
    """A call of one token for each row, which asks for so many new ones."""
    ids = np.arange(len(steps), dtype=np.int32)[:, None]
    return Call(name, {"input_ids": ids, "max_new_tokens": np.array(steps, np.int32)})


def test_the_largest_n_is_called_and_steps_bound_every_row():
    calls = [asking("generate_8", 5, 2), asking("generate_32", 30)]
    assert joined(calls, 3).signature == "generate_32"
    np.testing.assert_array_equal(joined(calls, 3).inputs["max_new_tokens"], [5, 2, 30])
    bounded = joined(calls, 4, steps=4)
    np.testing.assert_array_equal(bounded.inputs["max_new_tokens"], [4, 2, 4, 0])


def test_a_part_has_the_shapes_of_its_own_n():
    calls = [asking("generate_2", 2), asking("generate_4", 4, 4)]
    tokens = np.arange(12).reshape(3, 4)
    rows = np.zeros((3, 5 + 4 - 1, 7))  # S of the joined call is 5
    reply = Reply({"tokens": tokens, "new_cache": rows, "count": np.ones(3)})
    first, second = shares(reply, calls, 3)
    np.testing.assert_array_equal(first.outputs["tokens"], [[0, 1]])
    assert first.outputs["new_cache"].shape == (1, 5 + 2 - 1, 7)
    np.testing.assert_array_equal(second.outputs["tokens"], tokens[1:])
    assert second.outputs["new_cache"].shape == (2, 8, 7)
    assert second.outputs["count"].shape == (2,)


def test_a_reply_without_the_rows_is_refused():
    reply = Reply({"tokens": np.zeros((2, 4))})
    with pytest.raises(MalformedReply, match="expected 3 rows"):
        shares(reply, [asking("generate_4", 4, 4, 4)], 3)

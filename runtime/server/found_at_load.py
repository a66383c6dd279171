"""What a version has found out about the processor while it was loaded."""

from __future__ import annotations

import tensorflow as tf

from ..contract import FOUND_AT_LOAD


def found_at_load(session: tf.compat.v1.Session) -> dict[str, bool]:
    """The answers in a session's variables, by what they decide; none of a model that
    asks nothing."""
    reads = {}
    for op in session.graph.get_operations():
        if op.type == "VarHandleOp":
            what = FOUND_AT_LOAD.get(op.get_attr("shared_name").decode())
            if what is not None:
                reads[what] = op.outputs[0]
    with session.graph.as_default():
        answers = {
            what: tf.raw_ops.ReadVariableOp(resource=handle, dtype=tf.bool)
            for what, handle in reads.items()
        }
    found = session.run(answers) if answers else {}
    return {what: bool(answer) for what, answer in found.items()}

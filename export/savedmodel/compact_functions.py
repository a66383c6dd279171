"""Functions of a SavedModel in fewer nodes and bytes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ...runtime.model_dir import SAVED_MODEL_FILE

_INFERRED = "_output_shapes"
"""What TensorFlow notes of each node, and infers again when it loads it."""


def compact_functions(folder: Path) -> None:
    """Make one of a function's equal constants, and leave out what is inferred.

    A server goes through all functions for each signature while it gets ready, and many
    times through those that the signature calls: a fifth of their nodes are constants
    that equal others.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / SAVED_MODEL_FILE
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    (graph,) = model.meta_graphs
    for function in graph.graph_def.library.function:
        _share_constants(function)
        for node in function.node_def:
            if _INFERRED in node.attr:
                del node.attr[_INFERRED]
    path.write_bytes(model.SerializeToString(deterministic=True))


def _share_constants(function: Any) -> None:
    """Use the first of equal constants for all of them."""
    first: dict[bytes, str] = {}
    instead: dict[str, str] = {}
    kept = []
    for node in function.node_def:
        # One with an input waits for something: for a branch that is taken, perhaps.
        if node.op == "Const" and not node.input:
            value = node.attr["value"].SerializeToString(deterministic=True)
            known = first.setdefault(value, node.name)
            if known != node.name:
                instead[node.name] = known
                continue
        kept.append(node)
    for node in kept:
        node.input[:] = [_renamed(source, instead) for source in node.input]
    for output, source in list(function.ret.items()):
        function.ret[output] = _renamed(source, instead)
    kept = [type(node).FromString(node.SerializeToString()) for node in kept]
    del function.node_def[:]
    function.node_def.extend(kept)


def _renamed(source: str, instead: dict[str, str]) -> str:
    """``^NODE``, ``NODE:OUTPUT:NUMBER`` or an argument's name, of another node."""
    if source.startswith("^"):
        return f"^{instead.get(source[1:], source[1:])}"
    node, *output = source.split(":")
    return ":".join([instead.get(node, node), *output])

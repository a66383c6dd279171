"""Outputs that a server can fetch one by one."""

from __future__ import annotations

from pathlib import Path

from ...runtime.model_dir import SAVED_MODEL_FILE


def separate_outputs(folder: Path, signatures: tuple[str, ...]) -> None:
    """Make each output of the ``signatures`` a node of the graph by itself.

    TensorFlow writes a signature as one node that calls its function, and computes all
    of a function whose node is fetched. Fetched through another node the call is put in
    line, and what only other outputs need is left out. Not for the JAX route, whose
    loops TensorFlow can't put in line ("inputs from different frames").
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / SAVED_MODEL_FILE
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    (graph,) = model.meta_graphs
    for name in signatures:
        for alias, info in sorted(graph.signature_def[name].outputs.items()):
            node = graph.graph_def.node.add(name=f"{name}_{alias}", op="Identity")
            node.input.append(info.name)
            node.attr["T"].type = info.dtype
            info.name = f"{node.name}:0"
    path.write_bytes(model.SerializeToString(deterministic=True))

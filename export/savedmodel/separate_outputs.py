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

    The other nodes wait for one that waits for the call, so that its checks are made.
    Without that TensorFlow doesn't put a call in line that has any, and its function
    gets ready once more when it is called first: half a second each time.
    """
    from tensorflow.core.protobuf import saved_model_pb2

    path = folder / SAVED_MODEL_FILE
    model = saved_model_pb2.SavedModel.FromString(path.read_bytes())
    (graph,) = model.meta_graphs
    nodes = graph.graph_def.node
    for name in signatures:
        outputs = sorted(graph.signature_def[name].outputs.items())
        called = nodes.add(name=f"{name}_called", op="NoOp")
        called.input.append(f"^{outputs[0][1].name.partition(':')[0]}")
        for alias, info in outputs:
            node = nodes.add(name=f"{name}_{alias}", op="Identity")
            node.input.extend([info.name, f"^{called.name}"])
            node.attr["T"].type = info.dtype
            info.name = f"{node.name}:0"
    path.write_bytes(model.SerializeToString(deterministic=True))

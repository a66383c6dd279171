"""Which signatures need XLA: a jax2tf module, or ``jit_compile=True``."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_MARK = "_XlaMustCompile"


def xla_signatures(meta_graph: Any) -> set[str]:
    """Names of the signatures whose graph calls the compiler."""
    graph = meta_graph.graph_def
    functions = {f.signature.name: f for f in graph.library.function}
    nodes = {node.name: node for node in graph.node}
    names = set()
    for name, signature in meta_graph.signature_def.items():
        outputs = [info.name.split(":")[0] for info in signature.outputs.values()]
        if _needs_xla(_ancestors(nodes, outputs), functions):
            names.add(name)
    return names


def _ancestors(nodes: Mapping[str, Any], names: Iterable[str]) -> Iterator[Any]:
    seen: set[str] = set()
    stack = list(names)
    while stack:
        name = stack.pop()
        if name in seen or name not in nodes:
            continue
        seen.add(name)
        yield nodes[name]
        stack += (i.lstrip("^").split(":")[0] for i in nodes[name].input)


def _needs_xla(nodes: Iterable[Any], functions: Mapping[str, Any]) -> bool:
    seen: set[str] = set()
    stack = list(nodes)
    while stack:
        node = stack.pop()
        if node.op == "XlaCallModule" or (_MARK in node.attr and node.attr[_MARK].b):
            return True
        for name in {node.op, *_called(node)} - seen:
            seen.add(name)
            function = functions.get(name)
            if function is None:
                continue
            if _MARK in function.attr and function.attr[_MARK].b:
                return True
            stack += function.node_def
    return False


def _called(node: Any) -> Iterator[str]:
    for value in node.attr.values():
        kind = value.WhichOneof("value")
        if kind == "func":
            yield value.func.name
        elif kind == "list":
            yield from (f.name for f in value.list.func)

"""The serving graph in TensorFlow and in JAX read side by side: what both files define
has the same name and stands in the same order."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest
from optserve import export

FOLDER = Path(export.__file__).parent / "savedmodel"
SHARED = {
    "graph": {"positions", "run_layers", "extend", "advance"},
    "packed_cache": {"pack", "unpack"},
    "matmul": {"Matrix"},
}
"""What both files of a pair must have, whatever else they share."""


def definitions(module: str) -> list[str]:
    """Names of a file's functions and classes, and of the methods, in its order."""
    tree = ast.parse((FOLDER / f"{module}.py").read_text())
    kinds = ast.FunctionDef | ast.ClassDef
    names = []
    for node in tree.body:
        if isinstance(node, kinds):
            names.append(node.name)
        if isinstance(node, ast.ClassDef):
            names += [method.name for method in node.body if isinstance(method, kinds)]
    return names


@pytest.mark.parametrize("pair", SHARED)
def test_what_both_define_stands_in_the_same_order(pair):
    tf, jax = definitions(f"{pair}_tf"), definitions(f"{pair}_jax")
    both = set(tf) & set(jax)
    assert both >= SHARED[pair]
    once = {name for name in both if tf.count(name) == jax.count(name) == 1}
    assert [n for n in tf if n in once] == [n for n in jax if n in once]

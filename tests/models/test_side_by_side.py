"""The two frameworks' models read side by side: same functions, in the same order, with
the same parameters."""

from __future__ import annotations

import ast
import inspect
from pathlib import Path

import pytest
from optserve import models

FOLDER = Path(models.__file__).parent
ALONE = {
    "model": {
        "upcast_on_cpu",  # 16-bit sums of TensorFlow's CPU kernels
        "matmul",
        "shape",  # TensorFlow's sizes may be unknown when a graph is traced
        "scan_layers",  # rematerialisation; Keras has its own
    },
    "sampling": {
        "total",  # what XLA makes of each ...
        "first_argmax",  # ... differs
        "likely_to_win",  # tokens of a number that XLA can't know ...
        "draw_from",
        "noise_of",  # ... and what they and gumbel share
        "noise_from",
    },
}
"""What stands in one file of a pair only."""


def functions(framework: str, module: str) -> list[tuple[str, list[str]]]:
    """Names and parameters of a file's functions and classes, in its order."""
    tree = ast.parse((FOLDER / framework / f"{module}.py").read_text())
    return [
        (node.name, parameters(node) if isinstance(node, ast.FunctionDef) else [])
        for node in tree.body
        if isinstance(node, ast.FunctionDef | ast.ClassDef)
        and node.name not in ALONE[module]
    ]


def parameters(node: ast.FunctionDef) -> list[str]:
    """A function's parameters; ``compiled`` asks TensorFlow what JAX always does."""
    names = [*node.args.posonlyargs, *node.args.args, *node.args.kwonlyargs]
    return [name.arg for name in names if name.arg != "compiled"]


@pytest.mark.parametrize("module", ALONE)
def test_same_order_names_and_parameters(module):
    assert functions("tf", module) == functions("flax", module)


def test_what_stands_alone_is_there():
    texts = [(FOLDER / f / "model.py").read_text() for f in ("tf", "flax")]
    for name in ALONE["model"]:
        assert sum(f"def {name}(" in text for text in texts) == 1, name


def test_frameworks_share_the_context():
    from optserve.models.flax import model as flax_model
    from optserve.models.tf import model as tf_model

    for name in ("layer", "attention", "run_layers", "decoder"):
        actual = inspect.signature(getattr(tf_model, name))
        expected = inspect.signature(getattr(flax_model, name))
        kinds = [p.kind for p in actual.parameters.values()]
        assert kinds == [p.kind for p in expected.parameters.values()]

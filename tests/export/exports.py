"""Exports of the golden checkpoints, each made once, and calls to their signatures."""

from __future__ import annotations

import functools
import json
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from optserve.export.layout import read_manifest

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CASES = ("pre_ln", "post_ln_proj", "untied_head", "no_final_ln", "bias_free_gelu")
_FOLDER = tempfile.TemporaryDirectory(prefix="optserve-tests-")


class Served:
    """A loaded export: signatures as functions of numpy arrays."""

    def __init__(self, path: Path) -> None:
        import tensorflow as tf

        self.path = path
        self._model = tf.saved_model.load(str(path))
        self.row_shape = read_manifest(path).cache_layout.row_shape
        self.width = self.row_shape[-1]

    def __call__(self, name: str, **inputs: Any) -> dict[str, np.ndarray]:
        import tensorflow as tf

        tensors = {key: tf.constant(value) for key, value in inputs.items()}
        found = self._model.signatures[name](**tensors)
        return {key: value.numpy() for key, value in found.items()}


@functools.cache
def served(case: str, **options: Any) -> Served:
    """The export of a golden checkpoint with these options."""
    from optserve.export.savedmodel import export_savedmodel

    name = json.dumps([case, options]).translate(str.maketrans('"{}[]:, ', "________"))
    out = Path(_FOLDER.name) / name
    if options.get("framework") == "jax" or options.get("compiler") == "xla":
        few = {"prompt_buckets": (1, 16), "cache_buckets": (48,), "batch_sizes": (1, 3)}
        options = {**few, **options}
    return Served(export_savedmodel(GOLDEN / case, out, **options))


def expected(case: str) -> dict[str, np.ndarray]:
    """The reference implementation's inputs and outputs."""
    return dict(np.load(GOLDEN / case / "expected.npz"))


def int32(*values: int) -> np.ndarray:
    """A vector."""
    return np.array(values, np.int32)

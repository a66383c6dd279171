"""TensorFlow Serving's recorded messages, and comparison with the official classes."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

tf = pytest.importorskip("tensorflow")

RECORDINGS = Path(__file__).parents[1] / "data" / "tfs-recordings"
ENCODINGS = ("typed_fields", "tensor_content")


def recordings(kind: str, method: str = "PredictionService/Predict") -> list:
    """The recorded messages of one method, as test parameters."""
    parameters = []
    for encoding in ENCODINGS:
        folder = RECORDINGS / encoding
        for case in json.loads((folder / "index.json").read_text()):
            path = folder / f"{case['name']}.{kind}.bin"
            if case["method"] == method and path.exists():
                parameters.append(pytest.param(path, id=f"{encoding}-{path.stem}"))
    return parameters


def same(ours: np.ndarray, theirs: np.ndarray) -> None:
    assert ours.dtype == theirs.dtype
    assert ours.shape == theirs.shape
    if ours.dtype == object:
        assert ours.tolist() == theirs.tolist()
    else:
        assert ours.tobytes() == theirs.tobytes()


def official(tensor) -> np.ndarray:
    if tensor.dtype == 7 and tensor.tensor_content:  # make_ndarray can't read these
        return tf.io.parse_tensor(tensor.SerializeToString(), tf.string).numpy()
    return tf.make_ndarray(tensor)

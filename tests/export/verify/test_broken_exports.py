"""What `optserve verify` must not let pass, whatever the type of the weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from optserve.export.options import WEIGHTS, ExportOptions
from optserve.export.savedmodel import exporter as savedmodel
from optserve.export.verify import verify_export
from optserve.export.verify.weights import wrong_weights
from optserve.export.weights import SCALE, packed_weights
from optserve.models.checkpoints import open_weights
from optserve.models.config import OPTConfig
from optserve.models.weights import weight_shapes

from tests.export.exports import export_only

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
FC1 = "decoder.layers.fc1.weight"
FC2 = "decoder.layers.fc2.weight"
QKV = "decoder.layers.self_attn.qkv_proj.weight"


def negated(name: str, array: np.ndarray) -> np.ndarray:
    """One number of one matrix with the other sign."""
    if name != FC1:
        return array
    array = array.copy()
    at = np.unravel_index(np.abs(array.astype(np.float32)).argmax(), array.shape)
    array[at] = -array[at]
    return array


def scaled(name: str, array: np.ndarray) -> np.ndarray:
    """One matrix larger by 2 %: its scales, where it has any."""
    has_scales = array.dtype in (np.int8, np.int32)
    if name == FC1 + SCALE or (name == FC1 and not has_scales):
        return (array.astype(np.float32) * 1.02).astype(array.dtype)
    return array


def swapped(name: str, array: np.ndarray) -> np.ndarray:
    """Two rows of a fused matrix in each other's place."""
    if name not in (QKV, QKV + SCALE):
        return array
    array = array.copy()
    rows = array[0, 0] if array.ndim == 4 else array[0]  # of int4's one panel
    rows[[0, 1]] = rows[[1, 0]]
    return array


def unbiased(name: str, array: np.ndarray) -> np.ndarray:
    """A bias that is off by one thousandth of a number's size."""
    return array * 1.001 if name == "decoder.layers.fc2.bias" else array


@pytest.mark.parametrize("case", ["pre_ln", "post_ln_proj", "untied_head"])
@pytest.mark.parametrize("dtype", WEIGHTS["savedmodel"])
def test_stored_weights(case, dtype):
    config, weights = (
        OPTConfig.from_pretrained(GOLDEN / case),
        open_weights(GOLDEN / case),
    )
    stored = dict(packed_weights(config, weights, dtype))

    def problems(change=lambda name, array: array) -> list[str]:
        held = {name: change(name, array) for name, array in stored.items()}
        return wrong_weights(held, config, weights, dtype)

    assert problems() == []
    for change, name in (
        (negated, FC1),
        (scaled, FC1),
        (swapped, QKV),
        (unbiased, "decoder.layers.fc2.bias"),
    ):
        (problem,) = problems(change)
        assert problem.startswith(f"{name} is not the checkpoint's")
    missing = {name: array for name, array in stored.items() if name != FC1}
    (problem,) = wrong_weights(missing, config, weights, dtype)
    assert problem == f"{FC1} is not stored"


def test_weights_stored_in_panels():
    config = OPTConfig.from_pretrained(GOLDEN / "pre_ln")
    config = replace(config, ffn_dim=4096)
    rng = np.random.default_rng(0)
    weights = {
        name: rng.standard_normal(shape, np.float32)
        for name, shape in weight_shapes(config).items()
    }
    stored = dict(packed_weights(config, weights, "int8", compiled=True))
    assert wrong_weights(stored, config, weights, "int8") == []
    stored[FC2] = stored[FC2][:, ::-1]  # one panel for the other
    (problem,) = wrong_weights(stored, config, weights, "int8")
    assert problem.startswith(f"{FC2} is not the checkpoint's")


def exported(out: Path, dtype: str) -> Path:
    options = ExportOptions(weights=dtype, generate=[])
    return export_only(out, GOLDEN / "pre_ln", options, ("prefill",))


def test_a_wrong_weight_in_an_int8_export(tmp_path, monkeypatch):
    """The smallest of the changes above, in a whole export."""

    def changed(*arguments, **options):
        for name, array in packed_weights(*arguments, **options):
            yield name, negated(name, array)

    monkeypatch.setattr(savedmodel, "packed_weights", changed)
    folder = exported(tmp_path, "int8")
    report = verify_export(folder, checkpoint=GOLDEN / "pre_ln", max_length=16)
    assert not report.ok
    assert any(problem.startswith(FC1) for problem in report.problems)


@pytest.mark.parametrize(
    "dtype",
    [
        "int8",
        pytest.param("float32", marks=pytest.mark.slow),
        pytest.param("float16", marks=pytest.mark.slow),
        pytest.param("bfloat16", marks=pytest.mark.slow),
    ],
)
def test_a_graph_that_multiplies_too_much(tmp_path, monkeypatch, dtype):
    """Every stored weight is right, every product 2 % too large."""
    from optserve.export.savedmodel import matmul_tf

    right = matmul_tf.Matrix.matmul
    monkeypatch.setattr(matmul_tf.Matrix, "matmul", lambda *a: right(*a) * 1.02)
    folder = exported(tmp_path, dtype)
    report = verify_export(folder, checkpoint=GOLDEN / "pre_ln", max_length=16)
    assert report.problems == []
    assert any(not o.ok and o.source == dtype for o in report.outputs)

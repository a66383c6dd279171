"""Files exchanged with the transformers package (<5): its classes read ours, we theirs.

Needs torch; the TensorFlow half needs tf-keras too, the Flax half flax.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from optserve.models.checkpoints import open_weights, save_weights

pytestmark = pytest.mark.reference

VARIANTS = ["pre_ln", "post_ln_proj", "no_final_ln", "untied_head", "bias_free_gelu"]
ORDINARY = VARIANTS[:3]  # Transformers' TensorFlow and Flax classes have no others
LIMITS = ["5GB", "20KB"]


@pytest.fixture(scope="module", autouse=True)
def transformers():
    os.environ["TF_USE_LEGACY_KERAS"] = "1"
    pytest.importorskip("torch")
    return pytest.importorskip("transformers")


@pytest.fixture(scope="module")
def tf_class(transformers):
    pytest.importorskip("tf_keras")
    return transformers.TFOPTForCausalLM


@pytest.fixture(scope="module")
def flax_class(transformers):
    pytest.importorskip("flax")
    return transformers.FlaxOPTForCausalLM


def ours(variant: str, data_dir: Path, out: Path, format: str, limit: str) -> None:
    """A checkpoint written by us into ``out``."""
    source = data_dir / "golden" / variant
    shutil.copy(source / "config.json", out)
    items = dict(open_weights(source)).items()
    save_weights(out, items, format=format, max_shard_size=limit)


def assert_logits(logits, variant: str, data_dir: Path) -> None:
    expected = np.load(data_dir / "golden" / variant / "expected.npz")["logits"]
    np.testing.assert_allclose(logits, expected, atol=2e-5 * np.abs(expected).max())


def inputs(variant: str, data_dir: Path) -> np.ndarray:
    return np.load(data_dir / "golden" / variant / "expected.npz")["input_ids"]


def assert_same_weights(directory: Path, variant: str, data_dir: Path) -> None:
    weights = open_weights(directory)
    expected = open_weights(data_dir / "golden" / variant)
    names = set(weights) - ({"lm_head.weight"} - set(expected))
    assert names == set(expected)
    for name in expected:
        np.testing.assert_array_equal(weights[name], expected[name])


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("variant", VARIANTS)
def test_torch_reads_ours(variant, limit, transformers, data_dir, tmp_path):
    import torch

    ours(variant, data_dir, tmp_path, "safetensors", limit)
    model, info = transformers.OPTForCausalLM.from_pretrained(
        tmp_path, output_loading_info=True
    )
    assert not info["missing_keys"] and not info["unexpected_keys"]
    with torch.no_grad():
        logits = model(torch.from_numpy(inputs(variant, data_dir)).long()).logits
    assert_logits(logits.numpy(), variant, data_dir)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("variant", ORDINARY)
def test_tensorflow_reads_ours(variant, limit, tf_class, data_dir, tmp_path):
    ours(variant, data_dir, tmp_path, "h5", limit)
    model, info = tf_class.from_pretrained(tmp_path, output_loading_info=True)
    assert not info["missing_keys"] and not info["unexpected_keys"]
    assert_logits(model(inputs(variant, data_dir)).logits.numpy(), variant, data_dir)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("variant", ORDINARY)
def test_flax_reads_ours(variant, limit, flax_class, data_dir, tmp_path):
    ours(variant, data_dir, tmp_path, "msgpack", limit)
    model = flax_class.from_pretrained(tmp_path)
    logits = model(inputs(variant, data_dir)).logits
    assert_logits(np.asarray(logits), variant, data_dir)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", VARIANTS)
def test_we_read_what_torch_saves(
    variant, safe, limit, transformers, data_dir, tmp_path
):
    source = data_dir / "golden" / variant
    model = transformers.OPTForCausalLM.from_pretrained(source)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=limit)
    assert_same_weights(tmp_path, variant, data_dir)


@pytest.mark.parametrize("head", [True, False])
@pytest.mark.parametrize("safe", [True, False])
def test_half_precision_and_the_base_model(
    safe, head, transformers, data_dir, tmp_path
):
    import torch

    source = data_dir / "golden" / "pre_ln"
    kind = transformers.OPTForCausalLM if head else transformers.OPTModel
    model = kind.from_pretrained(source, torch_dtype=torch.bfloat16)
    model.save_pretrained(tmp_path, safe_serialization=safe)
    weights, full = open_weights(tmp_path), open_weights(source)
    assert set(full) <= set(weights)
    for name in full:
        assert weights.dtype(name).name == "bfloat16"
        rounded = torch.from_numpy(full[name].copy()).bfloat16().float().numpy()
        np.testing.assert_array_equal(weights[name].astype(np.float32), rounded)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", ORDINARY)
def test_we_read_what_tensorflow_saves(
    variant, safe, limit, tf_class, data_dir, tmp_path
):
    source = data_dir / "golden" / variant
    model = tf_class.from_pretrained(source, use_safetensors=False)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=limit)
    assert_same_weights(tmp_path, variant, data_dir)


@pytest.mark.parametrize("limit", LIMITS)
@pytest.mark.parametrize("safe", [True, False])
@pytest.mark.parametrize("variant", ORDINARY)
def test_we_read_what_flax_saves(variant, safe, limit, flax_class, data_dir, tmp_path):
    model = flax_class.from_pretrained(data_dir / "golden" / variant)
    model.save_pretrained(tmp_path, safe_serialization=safe, max_shard_size=limit)
    assert_same_weights(tmp_path, variant, data_dir)

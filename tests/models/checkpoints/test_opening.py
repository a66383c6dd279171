"""Every golden checkpoint reads as its own files say it should."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from optserve.models.checkpoints import CheckpointNotFound, open_weights
from safetensors.numpy import load_file

VARIANTS = ["pre_ln", "post_ln_proj", "no_final_ln", "untied_head", "bias_free_gelu"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_safetensors_gives_canonical_names_and_exact_values(variant, data_dir: Path):
    directory = data_dir / "golden" / variant
    weights = open_weights(directory, format="safetensors")
    expected = {
        name.removeprefix("model."): array
        for name, array in load_file(directory / "model.safetensors").items()
    }
    assert set(weights) == set(expected)
    for name in weights:
        np.testing.assert_array_equal(weights[name], expected[name])
        assert weights.shape(name) == expected[name].shape
        assert weights.dtype(name) == expected[name].dtype
        assert not weights[name].flags.writeable


def test_a_directory_without_weights_names_what_it_looked_for(tmp_path: Path):
    with pytest.raises(CheckpointNotFound, match=r"model\.safetensors"):
        open_weights(tmp_path)

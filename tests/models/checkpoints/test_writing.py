"""Writing: what goes in comes out, in one file or many; nothing half-written stays."""

from __future__ import annotations

import json
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from optserve.models.checkpoints import LazyArray, open_weights, save_weights
from optserve.models.checkpoints.writing import parse_size
from optserve.models.config import OPTConfig
from optserve.models.examples.random_checkpoint import write_random_checkpoint
from optserve.models.weights import weight_shapes
from safetensors import safe_open

VARIANTS = ["pre_ln", "post_ln_proj", "no_final_ln", "untied_head", "bias_free_gelu"]


def assert_same(weights, expected):
    assert set(weights) == set(expected)
    for name in expected:
        assert weights[name].dtype == expected[name].dtype
        np.testing.assert_array_equal(weights[name], expected[name])


@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_round_trip(variant, limit, data_dir: Path, tmp_path: Path):
    source = open_weights(data_dir / "golden" / variant)
    written = save_weights(tmp_path, source.items(), max_shard_size=limit)
    assert (len(written) > 1) == (limit == "20KB")
    assert sorted(tmp_path.iterdir()) == sorted(written)
    assert_same(open_weights(tmp_path), dict(source))


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_sixteen_bit_weights_keep_their_bits(dtype, tmp_path: Path):
    dtype = np.dtype(getattr(ml_dtypes, dtype, dtype))
    array = np.arange(65536, dtype=np.uint16).view(dtype).reshape(256, 256)
    save_weights(tmp_path, [("lm_head.weight", array)])
    again = open_weights(tmp_path)["lm_head.weight"]
    assert again.dtype == dtype
    np.testing.assert_array_equal(again.view(np.uint16), array.view(np.uint16))


def test_other_tools_read_names_shapes_and_metadata(data_dir: Path, tmp_path: Path):
    source = open_weights(data_dir / "golden" / "untied_head")
    save_weights(tmp_path, source.items())
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert file.metadata() == {"format": "pt"}
        names = set(file.keys())
        assert "lm_head.weight" in names
        assert "model.decoder.layers.0.fc1.weight" in names
    reference = data_dir / "golden" / "untied_head" / "model.safetensors"
    with safe_open(reference, "np") as file:
        assert names == set(file.keys())


def test_base_model_names_have_no_prefix(tmp_path: Path):
    array = np.ones(3, np.float32)
    save_weights(tmp_path, [("decoder.x.weight", array)], base_model=True)
    with safe_open(tmp_path / "model.safetensors", "np") as file:
        assert list(file.keys()) == ["decoder.x.weight"]


def test_an_index_lists_every_weight_and_the_total(data_dir: Path, tmp_path: Path):
    source = open_weights(data_dir / "golden" / "pre_ln")
    *shards, index = save_weights(tmp_path, source.items(), max_shard_size=20_000)
    content = json.loads(index.read_text())
    assert content["metadata"]["total_size"] == source.nbytes
    assert set(content["weight_map"].values()) == {path.name for path in shards}
    assert all(path.stat().st_size < 30_000 for path in shards)


def test_saving_again_leaves_nothing_of_the_earlier_save(tmp_path: Path):
    items = [(f"decoder.x{i}.weight", np.full(100, i, np.float32)) for i in range(5)]
    save_weights(tmp_path, items, max_shard_size=400)
    (tmp_path / "model-notes.txt").write_text("kept")
    save_weights(tmp_path, items[:2])
    assert {path.name for path in tmp_path.iterdir()} == {
        "model.safetensors",
        "model-notes.txt",
    }
    save_weights(tmp_path, items, max_shard_size=400)
    assert not (tmp_path / "model.safetensors").exists()
    assert len(open_weights(tmp_path)) == 5


def test_a_checkpoint_can_be_rewritten_in_place(data_dir: Path, tmp_path: Path):
    source = open_weights(data_dir / "golden" / "pre_ln")
    save_weights(tmp_path, source.items())
    opened = open_weights(tmp_path)
    save_weights(tmp_path, opened.items(), max_shard_size=30_000)
    assert_same(open_weights(tmp_path), dict(source))


def test_a_failed_save_leaves_the_earlier_file_alone(tmp_path: Path):
    save_weights(tmp_path, [("lm_head.weight", np.zeros(4, np.float32))])

    def fail():
        raise RuntimeError("no such weight")

    broken = LazyArray((4,), np.float32, fail)
    with pytest.raises(RuntimeError, match="no such weight"):
        save_weights(tmp_path, [("lm_head.weight", broken)])
    assert [path.name for path in tmp_path.iterdir()] == ["model.safetensors"]
    assert open_weights(tmp_path)["lm_head.weight"].tolist() == [0, 0, 0, 0]


def test_a_name_given_twice_is_refused(tmp_path: Path):
    array = np.zeros(1, np.float32)
    with pytest.raises(ValueError, match="twice"):
        save_weights(tmp_path, [("lm_head.weight", array)] * 2)


@pytest.mark.parametrize(
    ("text", "size"),
    [("5GB", 5_000_000_000), ("2 MiB", 2 << 20), ("7", 7), (9, 9), ("1kb", 1000)],
)
def test_sizes(text, size):
    assert parse_size(text) == size


@pytest.mark.parametrize("text", ["", "5XB", "-1", "1.5GB", 0])
def test_impossible_sizes_are_refused(text):
    with pytest.raises(ValueError):
        parse_size(text)


def test_random_checkpoints_are_complete_and_repeatable(tmp_path: Path):
    config = OPTConfig(
        vocab_size=64,
        hidden_size=16,
        ffn_dim=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=8,
        word_embed_proj_dim=8,
    )
    for name in ("one", "two"):
        write_random_checkpoint(tmp_path / name, config, dtype="bfloat16", seed=5)
    one, two = open_weights(tmp_path / "one"), open_weights(tmp_path / "two")
    assert_same(one, dict(two))
    assert {name: one.shape(name) for name in one} == weight_shapes(config)
    assert OPTConfig.from_pretrained(tmp_path / "one") == config

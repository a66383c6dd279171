"""TensorFlow's files: Transformers', ours by Keras's own rules, and hostile ones."""

from __future__ import annotations

from pathlib import Path

import h5py
import ml_dtypes
import numpy as np
import pytest
from optserve.models.checkpoints import (
    CorruptFile,
    UnsafeFile,
    UnsupportedFile,
    open_weights,
    save_weights,
)

from tests.models.checkpoints.golden import VARIANTS, assert_same


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_files_are_read(variant, data_dir: Path):
    directory = data_dir / "golden" / variant
    weights = open_weights(directory, format="h5")
    assert_same(weights, dict(open_weights(directory, format="safetensors")))


def names_in(path: Path) -> dict[str, list[str]]:
    """Layers and their weights in Keras's order, the model's own name left out."""
    with h5py.File(path) as file:
        return {
            layer: [
                (name if isinstance(name, str) else name.decode()).split("/", 1)[1]
                for name in file[layer].attrs["weight_names"]
            ]
            for layer in ("model",)
        }


@pytest.mark.parametrize("variant", VARIANTS)
def test_our_files_have_the_reference_names_and_layout(
    variant, data_dir: Path, tmp_path: Path
):
    directory = data_dir / "golden" / variant
    save_weights(tmp_path, open_weights(directory).items(), format="h5")
    ours, theirs = tmp_path / "tf_model.h5", directory / "tf_model.h5"
    assert sorted(names_in(ours)["model"]) == sorted(names_in(theirs)["model"])
    with h5py.File(ours) as file, h5py.File(theirs) as reference:
        (their_root,) = reference["model"]
        for name in names_in(ours)["model"]:
            np.testing.assert_array_equal(
                file["model/tfopt_for_causal_lm"][name],
                reference[f"model/{their_root}"][name],
            )


@pytest.mark.parametrize("variant", [*VARIANTS, "untied_head", "bias_free_gelu"])
@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_round_trip(variant, limit, data_dir: Path, tmp_path: Path):
    source = dict(open_weights(data_dir / "golden" / variant))
    save_weights(tmp_path, source.items(), format="h5", max_shard_size=limit)
    assert (tmp_path / "tf_model.h5").exists() == (limit == "5GB")
    assert_same(open_weights(tmp_path), source)


def test_bfloat16_becomes_float32(tmp_path: Path):
    array = np.arange(12, dtype=ml_dtypes.bfloat16).reshape(3, 4)
    save_weights(tmp_path, [("decoder.fc1.weight", array)], format="h5")
    again = open_weights(tmp_path)["decoder.fc1.weight"]
    assert again.dtype == np.float32
    np.testing.assert_array_equal(again, array.astype(np.float32))


def test_names_beyond_one_attribute_are_split_as_keras_does(tmp_path: Path):
    items = [
        (f"decoder.layers.{i}.self_attn.k_proj.bias", np.full(1, i, np.float32))
        for i in range(960)
    ]
    save_weights(tmp_path, items, format="h5")
    with h5py.File(tmp_path / "tf_model.h5") as file:
        attributes = file["model"].attrs
        assert "weight_names" not in attributes
        parts = [attributes[f"weight_names{i}"] for i in range(len(attributes))]
        assert sum(map(len, parts)) == 960 and len(parts) == 2
    assert_same(open_weights(tmp_path), dict(items))


def make(path: Path, build) -> Path:
    with h5py.File(path, "w") as file:
        build(file)
    return path


def test_links_to_elsewhere_are_refused(tmp_path: Path):
    secret = make(tmp_path / "other.h5", lambda f: f.create_dataset("x", data=[1.0]))
    for link in (h5py.ExternalLink(str(secret), "/x"), h5py.SoftLink("/x")):

        def build(file, link=link):
            file["decoder.x"] = link

        with pytest.raises(UnsafeFile, match="link to somewhere else"):
            open_weights(make(tmp_path / "tf_model.h5", build))


def test_numbers_kept_elsewhere_are_refused(tmp_path: Path):
    (tmp_path / "secret").write_bytes(b"\1" * 64)

    def external(file):
        where = [(str(tmp_path / "secret"), 0, 64)]
        file.create_dataset("x", (16,), np.float32, external=where)

    def virtual(file):
        layout = h5py.VirtualLayout((4,), np.float32)
        layout[:] = h5py.VirtualSource("other.h5", "x", (4,))
        file.create_virtual_dataset("x", layout)

    for build in (external, virtual):
        with pytest.raises(UnsafeFile, match="elsewhere"):
            open_weights(make(tmp_path / "tf_model.h5", build))


def test_compressed_numbers_are_refused(tmp_path: Path):
    def bomb(file):
        file.create_dataset(
            "x", (1 << 40,), np.uint8, chunks=(1 << 20,), compression="gzip"
        )

    with pytest.raises(UnsupportedFile, match="compressed"):
        open_weights(make(tmp_path / "tf_model.h5", bomb))


def test_numbers_that_were_never_written_are_refused(tmp_path: Path):
    def hole(file):
        file.create_dataset("x", (1 << 40,), np.uint8)

    with pytest.raises(CorruptFile):
        open_weights(make(tmp_path / "tf_model.h5", hole))


def test_strings_and_foreign_byte_orders_are_refused(tmp_path: Path):
    for data in (["text"], np.ones(2, ">f4"), np.ones(2, np.complex64)):

        def build(file, data=data):
            file.create_dataset("x", data=data)

        with pytest.raises(UnsupportedFile, match="dtype"):
            open_weights(make(tmp_path / "tf_model.h5", build))


def test_cycles_and_depths_end(tmp_path: Path):
    def cycle(file):
        group = file.create_group("a")
        group["b"] = group

    with pytest.raises(CorruptFile, match="nested"):
        open_weights(make(tmp_path / "tf_model.h5", cycle))

"""Flax's files: Transformers', ours as Flax reads them, and hostile ones."""

from __future__ import annotations

from pathlib import Path

import ml_dtypes
import msgpack
import numpy as np
import pytest
from optserve.models.checkpoints import (
    CorruptFile,
    UnsupportedFile,
    msgpack_format,
    open_weights,
    save_weights,
)

from tests.models.checkpoints.golden import VARIANTS, assert_same


def flat(tree, prefix=()):
    for key, value in tree.items():
        if isinstance(value, dict):
            yield from flat(value, (*prefix, key))
        else:
            yield (*prefix, key), value


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_reference_files_are_read(variant, data_dir: Path):
    directory = data_dir / "golden" / variant
    weights = open_weights(directory, format="msgpack")
    assert_same(weights, dict(open_weights(directory, format="safetensors")))


@pytest.mark.parametrize("variant", VARIANTS)
def test_flax_reads_ours_as_the_reference_file(variant, data_dir: Path, tmp_path: Path):
    from flax.serialization import msgpack_restore

    directory = data_dir / "golden" / variant
    save_weights(tmp_path, open_weights(directory).items(), format="msgpack")
    name = "flax_model.msgpack"
    ours = dict(flat(msgpack_restore((tmp_path / name).read_bytes())))
    theirs = dict(flat(msgpack_restore((directory / name).read_bytes())))
    assert set(ours) == set(theirs)
    for key in theirs:
        assert ours[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(ours[key], theirs[key])


@pytest.mark.parametrize("variant", [*VARIANTS, "untied_head", "bias_free_gelu"])
@pytest.mark.parametrize("limit", ["5GB", "20KB"])
def test_round_trip(variant, limit, data_dir: Path, tmp_path: Path):
    source = dict(open_weights(data_dir / "golden" / variant))
    save_weights(tmp_path, source.items(), format="msgpack", max_shard_size=limit)
    assert (tmp_path / "flax_model.msgpack").exists() == (limit == "5GB")
    assert_same(open_weights(tmp_path), source)


def test_flax_and_we_agree_on_large_and_sixteen_bit_arrays(tmp_path, monkeypatch):
    """Both sides' limit for a chunk, 1 GiB, is lowered to a few numbers."""
    from flax import serialization

    monkeypatch.setattr(serialization, "MAX_CHUNK_SIZE", 64)
    monkeypatch.setattr(msgpack_format, "_CHUNK", 64)
    half = np.arange(60, dtype=ml_dtypes.bfloat16).reshape(6, 10)
    tree = {"decoder": {"x": {"bias": half}, "y": {"bias": half[0, :3]}}}
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(serialization.msgpack_serialize(tree))
    weights = open_weights(path)
    expected = {"decoder.x.bias": half, "decoder.y.bias": half[0, :3]}
    assert_same(weights, expected)
    assert weights["decoder.x.bias"].dtype == half.dtype
    save_weights(tmp_path, expected.items(), format="msgpack", base_model=True)
    again = serialization.msgpack_restore(path.read_bytes())
    np.testing.assert_array_equal(again["decoder"]["x"]["bias"], half)


def array(shape, dtype="float32", data=b"\0" * 16) -> msgpack.ExtType:
    return msgpack.ExtType(1, msgpack.packb((shape, dtype, data)))


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\xc1",
        b"\x80\x80",
        msgpack.packb([1]),
        msgpack.packb(3),
        b"\x81" * 100_000,
        b"\x91" * 100_000,
        b"\xdf\xff\xff\xff\xff",
        b"\xdd\xff\xff\xff\xff",
        b"\xdf\xff\xff\xff\xff" + b"\xa1a\xc0" * 1000,
        b"\x82\xa1a\xc0\xa1a\xc0",
        b"\x81\xa1\xff\xc0",
        b"\x81\xdb\xff\xff\xff\xff",
        b"\x81\xa1a\xc6\xff\xff\xff\xff",
        b"\x81\xa1a\xc9\xff\xff\xff\xff\x01",
        msgpack.packb({"a": array((5,))}),
        msgpack.packb({"a": array((3,))}),
        msgpack.packb({"a": array((-4,))}),
        msgpack.packb({"a": array((2**40, 2**40))}),
        msgpack.packb({"a": array((1,) * 9)}),
        msgpack.packb({"a": array((4,), data=b"")}),
        msgpack.packb({"a": array((4,), data="x" * 16)}),
        msgpack.packb({"a": msgpack.ExtType(1, b"")}),
        msgpack.packb({"a": msgpack.ExtType(1, b"\x93\x91\x04")}),
        msgpack.packb({"a": {"__msgpack_chunked_array__": True}}),
        msgpack.packb(
            {
                "a": {
                    "__msgpack_chunked_array__": True,
                    "shape": {"0": 2**50},
                    "chunks": {"0": array((4,))},
                }
            }
        ),
    ],
)
def test_broken_files_are_corrupt(content, tmp_path: Path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(content)
    with pytest.raises(CorruptFile):
        open_weights(path)


def test_unknown_dtypes_are_named(tmp_path: Path):
    path = tmp_path / "flax_model.msgpack"
    path.write_bytes(msgpack.packb({"a": array((1,), "object")}))
    with pytest.raises(UnsupportedFile, match="object"):
        open_weights(path)


def test_what_is_no_array_is_passed_over(tmp_path: Path):
    path = tmp_path / "flax_model.msgpack"
    rest = {"step": 7, "rate": 0.1, "names": ["a", None], "z": msgpack.ExtType(2, b"x")}
    path.write_bytes(msgpack.packb({"decoder": {"x": array((4,))}, **rest}))
    assert list(open_weights(path)) == ["decoder.x"]

"""Damaged and hostile files: our error or a right read, never anything else.

The golden files are cut, overwritten and spliced at random; each result must open and
read, or raise :class:`CheckpointError` with one line that names the file. A limit on
the address space turns any large allocation into a failure.
"""

from __future__ import annotations

import json
import os
import random
import resource
import subprocess
import sys
from pathlib import Path

import msgpack
import numpy as np
import pytest
import safetensors.numpy
from hypothesis import example, given
from hypothesis import strategies as st
from optserve.models.checkpoints import (
    CheckpointError,
    CheckpointNotFound,
    CorruptFile,
    UnsafeFile,
    UnsupportedFile,
    open_weights,
    save_weights,
)

GOLDEN = Path(__file__).parents[2] / "data" / "golden" / "post_ln_proj"
SEEDS = [
    GOLDEN / "model.safetensors",
    GOLDEN / "pytorch_model.bin",
    GOLDEN / "tf_model.h5",
    GOLDEN / "flax_model.msgpack",
    Path(__file__).parent / "data" / "legacy.bin",
    Path(__file__).parent / "data" / "views.bin",
]
OFFICIAL_READERS = {
    ".msgpack": lambda data: msgpack.unpackb(data, raw=True, strict_map_key=False),
    ".safetensors": safetensors.numpy.load,
}
"""Of the formats so terse that a few random bytes can be a whole file."""
ROUNDS = 100


def check(path: Path) -> bool:
    """Open and read everything; whether it was accepted. Only our errors may come."""
    try:
        weights = open_weights(path)
        for name, array in weights.items():
            assert array.shape == weights.shape(name)
            assert array.nbytes <= path.stat().st_size
            array.tobytes()
    except CheckpointError as error:
        text = str(error)
        assert str(path) in text and "\n" not in text and len(text) < 600
        return False
    return True


def damaged(data: bytes, rng: random.Random) -> bytes:
    """One to four changes, most of them where the structure is described."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 4)):
        size = len(changed)
        if not size:
            break
        edge = rng.choice([4000, size]) if size > 4000 else size
        at = (
            rng.randrange(edge)
            if rng.random() < 0.7
            else size - 1 - rng.randrange(edge)
        )
        kind = rng.randrange(6)
        if kind == 0:
            changed[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            changed[at : at + 8] = rng.choice([b"\xff", b"\x00", b"\x7f", b"9"]) * 8
        elif kind == 2:
            del changed[at : at + rng.randint(1, 64)]
        elif kind == 3:
            changed[at:at] = rng.randbytes(rng.randint(1, 16))
        elif kind == 4:
            source = rng.randrange(size)
            changed[at : at + 16] = changed[source : source + 16]
        elif rng.random() < 0.3:
            del changed[at:]
    return bytes(changed)


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_damaged_files(seed: Path, tmp_path: Path):
    rng = random.Random(seed.name)
    data, path = seed.read_bytes(), tmp_path / seed.name
    soft, hard = resource.getrlimit(resource.RLIMIT_AS)
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    accepted = 0
    try:
        resource.setrlimit(resource.RLIMIT_AS, (used + (256 << 20), hard))
        for _ in range(ROUNDS):
            path.write_bytes(damaged(data, rng))
            accepted += check(path)
    finally:
        resource.setrlimit(resource.RLIMIT_AS, (soft, hard))
    assert 0 < accepted < ROUNDS  # harmless changes pass, others are seen


@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_every_truncation_is_seen(seed: Path, tmp_path: Path):
    data, path = seed.read_bytes(), tmp_path / seed.name
    for size in {*range(0, len(data), len(data) // 40), len(data) - 1, 1, 7, 8, 9}:
        path.write_bytes(data[:size])
        assert not check(path)


@given(st.binary(max_size=200), st.sampled_from(SEEDS))
@example(b"\x80", GOLDEN / "flax_model.msgpack")
@example(b"\x81\xa1x\xc0", GOLDEN / "flax_model.msgpack")
def test_arbitrary_bytes(tmp_path_factory, data, seed):
    """Refused, unless the format's own library reads them too.

    The one byte 0x80 is a msgpack file, an empty map.
    """
    path = tmp_path_factory.mktemp("bytes") / seed.name
    path.write_bytes(data)
    if check(path):
        assert isinstance(OFFICIAL_READERS[path.suffix](data), dict)


@given(st.binary(max_size=120))
def test_arbitrary_bytes_after_a_right_beginning(tmp_path_factory, data):
    directory = tmp_path_factory.mktemp("bytes")
    (directory / "x.msgpack").write_bytes(b"\x81\xa5model\x81\xa7decoder" + data)
    (directory / "x.bin").write_bytes(b"\x80\x02}q\x00" + data)
    check(directory / "x.msgpack")
    assert not check(directory / "x.bin")


def safetensors(header: object, body: bytes = b"\0" * 16) -> bytes:
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + body


def entry(shape=(4,), offsets=(0, 16), dtype="F32", **more) -> dict:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets, **more}


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"\0" * 7,
        b"\xff" * 8,
        (2**40).to_bytes(8, "little") + b"{}",
        (5 << 20).to_bytes(8, "little") + b" " * (5 << 20),
        safetensors(b"[" * 100_000),
        safetensors(b'{"a":' * 50_000),
        safetensors(b"\xff{}"),
        safetensors(b"[]"),
        safetensors(b"{} x"),
        safetensors({}),
        safetensors({"a": 1}),
        safetensors({"a": {}}),
        safetensors({"a": entry(extra=1)}),
        safetensors({"a": entry(shape=4)}),
        safetensors({"a": entry(shape=(-4,))}),
        safetensors({"a": entry(shape=(4.0,))}),
        safetensors({"a": entry(shape=(True, 4))}),
        safetensors({"a": entry(shape=(5,))}),
        safetensors({"a": entry(shape=(2**62, 2**62))}),
        safetensors({"a": entry(shape=(10**4000,))}),
        safetensors({"a": entry(shape=(0, 2**62), offsets=(0, 0))}),
        safetensors({"a": entry(shape=(1,) * 40)}),
        safetensors({"a": entry(offsets=(0, 17))}),
        safetensors({"a": entry(offsets=(16, 0))}),
        safetensors({"a": entry(offsets=(-16, 0))}),
        safetensors({"a": entry(offsets=(10**4000, 10**4000 + 16))}),
        safetensors({"a": entry(offsets=(0, 16, 32))}),
        safetensors({"a": entry(offsets="ab")}),
        safetensors({"a": entry(), "b": entry()}),
        safetensors({"a": entry((2,), (0, 8)), "b": entry((3,), (4, 16))}),
        safetensors({"a": entry((2,), (0, 8)), "b": entry((1,), (12, 16))}),
        safetensors({"a": entry()}, b"\0" * 17),
        safetensors({"a" * 100_000: entry(shape=4)}),
        safetensors(b'{"a":%s,"a":%s}' % ((json.dumps(entry()).encode(),) * 2)),
        safetensors(
            {"decoder.a": entry((2,), (0, 8)), "model.decoder.a": entry((2,), (8, 16))}
        ),
    ],
)
def test_hostile_safetensors(content, tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CorruptFile) as caught:
        open_weights(path)
    assert str(path) in str(caught.value) and len(str(caught.value)) < 600


def test_an_unknown_dtype_is_named(tmp_path: Path):
    path = tmp_path / "model.safetensors"
    path.write_bytes(safetensors({"a": entry(dtype="F4")}))
    with pytest.raises(UnsupportedFile, match="F4"):
        open_weights(path)


def test_fused_projections_need_three_equal_parts(tmp_path: Path):
    name = "decoder.layers.0.self_attn.qkv_proj.bias"
    save_weights(tmp_path, [(name, np.zeros(4, np.float32))])
    with pytest.raises(CorruptFile, match="three projections"):
        open_weights(tmp_path)


@pytest.mark.parametrize(
    "shard",
    [
        "../secret.safetensors",
        "/etc/passwd",
        "sub/x.safetensors",
        "..",
        ".",
        "a\\b",
        "C:x",
        "x\0y",
    ],
)
def test_shards_cannot_lead_out_of_the_directory(shard, tmp_path: Path):
    directory = tmp_path / "checkpoint"
    directory.mkdir()
    save_weights(tmp_path, [("decoder.a", np.zeros(1, np.float32))])
    (tmp_path / "model.safetensors").rename(tmp_path / "secret.safetensors")
    index = directory / "model.safetensors.index.json"
    index.write_text(json.dumps({"weight_map": {"decoder.a": shard}}))
    with pytest.raises(UnsafeFile, match="not the name of a file in this directory"):
        open_weights(directory)


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[]",
        "{}",
        '{"weight_map": []}',
        '{"weight_map": {}}',
        '{"weight_map": {"a": 1}}',
        '{"weight_map": {"a": ""}}',
        '{"weight_map": {"a": "model.safetensors", "a": "model.safetensors"}}',
        "[" * 100_000,
        " " * (5 << 20),
    ],
)
def test_broken_indexes(content, tmp_path: Path):
    (tmp_path / "model.safetensors.index.json").write_text(content)
    with pytest.raises(CorruptFile):
        open_weights(tmp_path)


def test_shards_must_hold_what_the_index_says(tmp_path: Path):
    items = [(f"decoder.x{i}", np.zeros(8, np.float32)) for i in range(4)]
    first, second, *_ = save_weights(tmp_path, items, max_shard_size=64)
    second.write_bytes(first.read_bytes())
    with pytest.raises(CorruptFile, match="does not hold it"):
        open_weights(tmp_path)
    second.unlink()
    with pytest.raises(CheckpointNotFound, match=second.name):
        open_weights(tmp_path)


def test_what_is_no_regular_file_is_refused(tmp_path: Path):
    os.mkfifo(tmp_path / "model.safetensors")
    with pytest.raises(CheckpointNotFound, match="regular file"):
        open_weights(tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SEEDS, ids=lambda path: path.name)
def test_damaged_files_for_longer(seed: Path):
    """Many more rounds, in a process of its own: libhdf5 could end it."""
    command = [sys.executable, __file__, str(seed)]
    subprocess.run(command, check=True, timeout=600)


if __name__ == "__main__":
    import tempfile

    source = Path(sys.argv[1])
    generator = random.Random()
    with tempfile.TemporaryDirectory() as folder:
        target = Path(folder) / source.name
        for _ in range(2000):
            target.write_bytes(damaged(source.read_bytes(), generator))
            check(target)

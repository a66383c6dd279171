"""PyTorch's files: everything that PyTorch wrote, and nothing that an attacker did."""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
from optserve.models.checkpoints import CorruptFile, UnsafeFile, open_weights

FILES = Path(__file__).parent / "data"
READABLE = sorted(path.stem for path in FILES.glob("*.npz"))
VARIANTS = ["pre_ln", "post_ln_proj", "no_final_ln", "untied_head", "bias_free_gelu"]


@pytest.mark.parametrize("variant", VARIANTS)
def test_bin_equals_safetensors(variant, data_dir: Path):
    directory = data_dir / "golden" / variant
    expected = open_weights(directory, format="safetensors")
    weights = open_weights(directory, format="bin")
    assert set(weights) == set(expected)
    for name in expected:
        assert weights.shape(name) == expected.shape(name)
        np.testing.assert_array_equal(weights[name], expected[name])


@pytest.mark.parametrize("name", READABLE)
def test_what_torch_wrote_is_read(name):
    weights = open_weights(FILES / f"{name}.bin")
    expected = np.load(FILES / f"{name}.npz")
    assert set(weights) == set(expected.files)
    for key in weights:
        array = weights[key]
        if array.dtype.name == "bfloat16":
            array = array.view(np.uint16)
        assert array.dtype == expected[key].dtype
        assert array.shape == weights.shape(key)
        np.testing.assert_array_equal(array, expected[key])


def test_a_view_larger_than_its_storage_is_refused():
    with pytest.raises(CorruptFile, match="outside its storage"):
        open_weights(FILES / "refused_expanded.bin")


def test_an_unknown_global_is_named():
    with pytest.raises(UnsafeFile, match=r"torch\.device"):
        open_weights(FILES / "refused_device.bin")


class Attack:
    """Pickles as a call of ``function``."""

    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


def archive(path: Path, data: bytes, method: int = zipfile.ZIP_STORED) -> Path:
    with zipfile.ZipFile(path, "w", method) as file:
        file.writestr("archive/data.pkl", data)
        file.writestr("archive/data/0", b"\0" * 64)
    return path


@pytest.mark.parametrize("protocol", range(5))
@pytest.mark.parametrize(
    ("function", "name"),
    [
        (os.system, r"(posix|nt)\.system"),
        (eval, r"(builtins|__builtin__)\.eval"),
        (getattr, r"(builtins|__builtin__)\.getattr"),
        (np.load, r"numpy.*\.load"),
    ],
)
def test_code_is_named_and_never_run(protocol, function, name, tmp_path: Path):
    marker = tmp_path / "executed"
    data = pickle.dumps({"x": Attack(function, f"touch {marker}")}, protocol)
    archive(tmp_path / "evil.bin", data)
    (tmp_path / "legacy.bin").write_bytes(data)
    with pytest.raises(UnsafeFile, match=name):
        open_weights(tmp_path / "evil.bin")
    with pytest.raises(UnsafeFile, match=name):
        open_weights(tmp_path / "legacy.bin")
    assert not marker.exists()


def test_opcodes_that_make_objects_are_refused(tmp_path: Path):
    path = archive(tmp_path / "x.bin", b"cos\nsystem\n")
    with pytest.raises(UnsafeFile, match=r"os\.system"):
        open_weights(path)
    for data in (b"(ios\nsystem\n.", b"\x80\x02]\x81.", b"\x82\x01."):
        with pytest.raises(UnsafeFile, match="opcode"):
            open_weights(archive(tmp_path / "x.bin", data))


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b".",
        b"}",
        b"}u.",
        b"(}u.",
        b"]}s.",
        b"}]Ns.",
        b"\x80\x02}r\xff\xff\xff\xffh\x00.",
        b"\x8b\x04\x00\x00\x00",
        b"\x8d" + b"\xff" * 8 + b".",
        b"N" * 1000 + b".",
        b"(" * 100_000 + b".",
        b"\x85" * 5 + b".",
        b"]" + b"\x85" * 100_000 + b".",
        b"ccollections\nOrderedDict\n)R)R.",
        b"\x80\x02}(U\x01\xffK\x01u",
    ],
)
def test_broken_pickles_are_corrupt(data, tmp_path: Path):
    with pytest.raises(CorruptFile):
        open_weights(archive(tmp_path / "x.bin", data))


def tensor_pickle(offset, shape, strides, size=16, key="0") -> bytes:
    """A pickle, as PyTorch's, of ``{"decoder.x": tensor}``."""

    def numbers(values):
        return b"(" + b"".join(number(v) for v in values) + b"t"

    def number(value):
        data = value.to_bytes(9, "little", signed=True)
        return b"\x8a" + bytes([len(data)]) + data

    def text(value):
        return b"X" + struct.pack("<I", len(value)) + value.encode()

    storage = b"(" + text("storage") + b"ctorch\nFloatStorage\n" + text(key)
    storage += text("cpu") + number(size) + b"tQ"
    rebuild = b"ctorch._utils\n_rebuild_tensor_v2\n(" + storage + number(offset)
    rebuild += numbers(shape) + numbers(strides) + b"\x89}tR"
    return b"\x80\x02}" + text("decoder.x") + rebuild + b"s."


def test_a_tensor_pickle_of_our_own_is_read(tmp_path: Path):
    path = archive(tmp_path / "x.bin", tensor_pickle(4, (3, 4), (4, 1)))
    assert open_weights(path)["decoder.x"].tolist() == [[0] * 4] * 3


@pytest.mark.parametrize(
    "arguments",
    [
        {"offset": 5, "shape": (3, 4), "strides": (4, 1)},
        {"offset": -1, "shape": (3, 4), "strides": (4, 1)},
        {"offset": 0, "shape": (17,), "strides": (1,)},
        {"offset": 0, "shape": (17,), "strides": (0,)},
        {"offset": 15, "shape": (4,), "strides": (-1,)},
        {"offset": 0, "shape": (-4,), "strides": (1,)},
        {"offset": 0, "shape": (4,), "strides": (1, 1)},
        {"offset": 0, "shape": (2,) * 9, "strides": (1,) * 9},
        {"offset": 0, "shape": (2**62, 2**62), "strides": (0, 0), "size": 2**62},
        {"offset": 0, "shape": (0, 2**62), "strides": (1, 1)},
        {"offset": 2**62, "shape": (4,), "strides": (1,), "size": 2**63},
        {"offset": 0, "shape": (4,), "strides": (1,), "size": 2**62},
        {"offset": 0, "shape": (4,), "strides": (1,), "key": "1"},
        {"offset": 0, "shape": (4,), "strides": (1,), "key": "../data.pkl"},
    ],
)
def test_tensors_outside_their_storage_are_refused(arguments, tmp_path: Path):
    path = archive(tmp_path / "x.bin", tensor_pickle(**arguments))
    with pytest.raises(CorruptFile):
        open_weights(path)


def test_compressed_archives_are_refused(tmp_path: Path):
    bomb = b"\0" * 10_000_000
    path = archive(tmp_path / "x.bin", bomb, zipfile.ZIP_DEFLATED)
    assert path.stat().st_size < 100_000
    with pytest.raises(UnsafeFile, match="compressed"):
        open_weights(path)


def test_members_that_share_bytes_are_refused(tmp_path: Path):
    """The overlapping-files bomb: many entries of the list name the same bytes."""
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("a/data/0", b"\0" * 500)
        info = file.infolist()[0]
        file.filelist.append(info)
    with pytest.raises(CorruptFile, match="twice"):
        open_weights(path)


def test_a_zip_of_something_else_is_refused(tmp_path: Path):
    path = tmp_path / "x.bin"
    with zipfile.ZipFile(path, "w") as file:
        file.writestr("notes.txt", "hello")
    with pytest.raises(CorruptFile, match=r"data\.pkl"):
        open_weights(path)

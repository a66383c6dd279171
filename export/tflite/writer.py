"""Writing a ``.tflite`` file: converted graphs joined, weights put in once.

The flatbuffer proper is small and comes first; the weights follow it in the file, each
written as it is read, so that memory stays at one weight. While the whole is below
2 GiB they are ordinary vectors of the flatbuffer; beyond, they are referred to by
offset, as the format provides for.

Format: https://github.com/google-ai-edge/LiteRT/blob/main/tflite/schema/schema.fbs
"""

from __future__ import annotations

import struct
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, BinaryIO

import flatbuffers
import numpy as np
from tensorflow.lite.python import schema_py_generated as schema

from ...runtime.contract import MESSAGE_LIMIT
from ..errors import ExportError
from .graph import SCALE, Argument

_ALIGNMENT = 64
_HYBRID_VERSION = {"int8": 12, "int4": 13}  # of FULLY_CONNECTED: by row, by block
_TYPES = {
    "float32": schema.TensorType.FLOAT32,
    "float16": schema.TensorType.FLOAT16,
    "int8": schema.TensorType.INT8,
    "int4": schema.TensorType.INT4,
}
_Op = schema.BuiltinOperator


@dataclass(frozen=True)
class Constant:
    """A weight of the file: its dtype's name, its bytes when asked, its row scales."""

    dtype: str
    nbytes: int
    read: Callable[[], np.ndarray]
    scale: np.ndarray | None = None


def write(
    file: BinaryIO,
    graphs: Mapping[str, bytes],
    arguments: Sequence[Argument],
    constants: Mapping[str, Constant],
    metadata: Mapping[str, bytes],
    *,
    inline_limit: int = MESSAGE_LIMIT,
) -> None:
    """Write one model.

    Args:
        file: seekable, at its start.
        graphs: a converted flatbuffer for each signature, whose inputs ``w{i}`` are
            ``arguments[i]``. The first becomes the primary subgraph.
        constants: the weights by name.
        metadata: named blobs to carry along.
        inline_limit: size from which on weights are referred to by offset.
    """
    joined = _Joined(list(constants))
    for name, graph in graphs.items():
        joined.add(name, graph, arguments, constants)
    model = joined.model(metadata)
    buffers = {name: joined.buffers[name] for name in constants}
    total = sum(c.nbytes + _ALIGNMENT for c in constants.values())
    head = _pack(model)
    inline = len(head) + total <= inline_limit
    if not inline:
        for index in buffers.values():
            buffer = model.buffers[index]
            buffer.data, buffer.offset, buffer.size = None, 1, 1
        head = _pack(model)
    root = schema.Model.GetRootAs(head, 0)
    file.write(head)
    for name, constant in constants.items():
        start = -(-(file.tell() + 4) // _ALIGNMENT) * _ALIGNMENT
        file.write(bytes(start - 4 - file.tell()))
        # A vector's length stands before it; data found by an offset has none.
        file.write(struct.pack("<I", constant.nbytes % 2**32))
        array = np.ascontiguousarray(constant.read())
        if array.nbytes != constant.nbytes:
            raise ValueError(
                f"{name}: {array.nbytes} bytes, expected {constant.nbytes}"
            )
        file.write(array.reshape(-1).view(np.uint8).data)
        end = file.tell()
        _refer(file, root.Buffers(buffers[name]), start, constant.nbytes, inline)
        file.seek(end)


def _refer(file: BinaryIO, buffer: Any, start: int, nbytes: int, inline: bool) -> None:
    """Point a buffer's table at its bytes in the file."""
    table = buffer._tab
    if inline:  # the vector's length stands before its bytes
        field = table.Pos + table.Offset(4)
        file.seek(field)
        file.write(struct.pack("<I", start - 4 - field))
        return
    for slot, value in ((6, start), (8, nbytes)):
        file.seek(table.Pos + table.Offset(slot))
        file.write(struct.pack("<Q", value))


def _pack(model: Any) -> bytes:
    builder = flatbuffers.Builder(1 << 20)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


class _Joined:
    """Subgraphs of several converted models in one."""

    def __init__(self, weights: Sequence[str]) -> None:
        self._buffers = [schema.BufferT()]  # the first one means "no data"
        self._codes: dict[tuple[Any, ...], int] = {}
        self._operator_codes: list[Any] = []
        self._subgraphs: list[Any] = []
        self._signatures: list[Any] = []
        self._runtime = b""
        self.buffers = {name: self._buffer(b"\0") for name in weights}

    def model(self, metadata: Mapping[str, bytes]) -> Any:
        """The whole, its weights still missing."""
        model = schema.ModelT()
        model.version = 3
        model.description = b"optserve"
        model.operatorCodes = self._operator_codes
        model.subgraphs = self._subgraphs
        model.signatureDefs = self._signatures
        model.metadata = []
        for name, data in {"min_runtime_version": self._runtime, **metadata}.items():
            entry = schema.MetadataT()
            entry.name, entry.buffer = name.encode(), self._buffer(data)
            model.metadata.append(entry)
        model.buffers = self._buffers
        return model

    def add(
        self,
        name: str,
        graph: bytes,
        arguments: Sequence[Argument],
        constants: Mapping[str, Constant],
    ) -> None:
        """Add a signature."""
        source = schema.ModelT.InitFromPackedBuf(bytearray(graph), 0)
        if len(source.subgraphs) != 1 or len(source.signatureDefs) != 1:
            # Without room for its temporary files the converter leaves out what it
            # would have had from them, and says nothing.
            raise ExportError(
                f"the TFLite converter lost the signature {name}: is there room in "
                f"{tempfile.gettempdir()}, where it writes?"
            )
        (subgraph,), (signature,) = source.subgraphs, source.signatureDefs
        subgraph.name = signature.signatureKey = name.encode()
        signature.subgraphIndex = len(self._subgraphs)
        self._take_constants(source, subgraph)
        self._take_codes(source, subgraph)
        _fuse_biases(subgraph, self._operator_codes)
        inputs = {entry.name.decode(): entry for entry in signature.inputs}
        for i, argument in enumerate(arguments):
            entry = inputs.pop(f"w{i}")
            subgraph.inputs = [t for t in subgraph.inputs if t != entry.tensorIndex]
            self._bind(subgraph, entry.tensorIndex, argument, constants)
        signature.inputs = list(inputs.values())
        _schedule(subgraph)
        self._subgraphs.append(subgraph)
        self._signatures.append(signature)
        for entry in source.metadata or ():
            if entry.name == b"min_runtime_version":
                data = bytes(source.buffers[entry.buffer].data)
                self._runtime = max(self._runtime, data)

    def _buffer(self, data: Any) -> int:
        buffer = schema.BufferT()
        buffer.data = np.frombuffer(bytes(data), np.uint8)
        self._buffers.append(buffer)
        return len(self._buffers) - 1

    def _take_constants(self, source: Any, subgraph: Any) -> None:
        for tensor in subgraph.tensors:
            data = source.buffers[tensor.buffer].data
            tensor.buffer = 0 if data is None or not len(data) else self._buffer(data)

    def _take_codes(self, source: Any, subgraph: Any) -> None:
        for op in subgraph.operators:
            code = source.operatorCodes[op.opcodeIndex]
            op.opcodeIndex = self._code(code.builtinCode, code.version, code.customCode)

    def _code(self, builtin: int, version: int, custom: bytes | None = None) -> int:
        key = (builtin, version, custom)
        if key not in self._codes:
            code = schema.OperatorCodeT()
            code.builtinCode, code.version, code.customCode = key
            code.deprecatedBuiltinCode = min(builtin, 127)
            self._codes[key] = len(self._operator_codes)
            self._operator_codes.append(code)
        return self._codes[key]

    def _bind(
        self,
        subgraph: Any,
        index: int,
        argument: Argument,
        constants: Mapping[str, Constant],
    ) -> None:
        """Make an input a constant."""
        tensor = subgraph.tensors[index]
        tensor.name = argument.name.encode()
        tensor.buffer = self.buffers[argument.name]
        constant = constants[argument.name]
        if argument.role != "matrix" or constant.dtype == "float32":
            return
        tensor.type = _TYPES[constant.dtype]
        if constant.dtype == "float16":
            self._as_float32(subgraph, index)
            return
        assert constant.scale is not None
        if constant.dtype == "int8":
            tensor.quantization = _scaled_rows(constant.scale)
        else:
            tensor.quantization = self._scaled_blocks(subgraph, argument, constant)
        for op in _consumers(subgraph, index):
            version = _HYBRID_VERSION[constant.dtype]
            op.opcodeIndex = self._code(_Op.FULLY_CONNECTED, version)
            op.builtinOptions.asymmetricQuantizeInputs = True

    def _scaled_blocks(
        self, subgraph: Any, argument: Argument, constant: Constant
    ) -> Any:
        assert constant.scale is not None
        scale = schema.TensorT()
        scale.name = (argument.name + SCALE).encode()
        scale.shape = np.array(constant.scale.shape, np.int32)
        scale.type = schema.TensorType.FLOAT16
        scale.buffer = self.buffers[argument.name + SCALE]
        subgraph.tensors.append(scale)
        quantization = schema.QuantizationParametersT()
        quantization.detailsType = schema.QuantizationDetails.BlockwiseQuantization
        details = quantization.details = schema.BlockwiseQuantizationT()
        details.scales, details.zeroPoints = len(subgraph.tensors) - 1, -1
        details.blockSize = argument.shape[1] // constant.scale.shape[1]
        return quantization

    def _as_float32(self, subgraph: Any, index: int) -> None:
        """float16 weights to float32, which the delegate does once, when it loads."""
        wide = schema.TensorT()
        wide.name = subgraph.tensors[index].name + b"_float32"
        wide.shape = subgraph.tensors[index].shape
        wide.type = schema.TensorType.FLOAT32
        consumers = _consumers(subgraph, index)
        subgraph.tensors.append(wide)
        for op in consumers:
            op.inputs = [
                len(subgraph.tensors) - 1 if t == index else t for t in op.inputs
            ]
        op = schema.OperatorT()
        op.opcodeIndex = self._code(_Op.DEQUANTIZE, 3)
        op.builtinOptionsType = schema.BuiltinOptions.DequantizeOptions
        op.builtinOptions = schema.DequantizeOptionsT()
        op.inputs, op.outputs = [index], [len(subgraph.tensors) - 1]
        subgraph.operators.insert(0, op)


def _scaled_rows(scale: np.ndarray) -> Any:
    quantization = schema.QuantizationParametersT()
    quantization.scale = scale
    quantization.zeroPoint = np.zeros(len(scale), np.int64)
    return quantization


def _consumers(subgraph: Any, tensor: int) -> list[Any]:
    return [op for op in subgraph.operators if tensor in list(op.inputs)]


def _fuse_biases(subgraph: Any, codes: Sequence[Any]) -> None:
    """``FULLY_CONNECTED`` then ``ADD`` of an input vector: one op.

    The converter does so itself, but for constants only.
    """

    def is_a(op: Any, kind: int) -> bool:
        return codes[op.opcodeIndex].builtinCode == kind

    inputs = set(map(int, subgraph.inputs))
    gone = []
    for op in subgraph.operators:
        users = _consumers(subgraph, op.outputs[0])
        if not is_a(op, _Op.FULLY_CONNECTED) or op.inputs[2] != -1 or len(users) != 1:
            continue
        (add,) = users
        others = [int(t) for t in add.inputs if t != op.outputs[0]]
        if not is_a(add, _Op.ADD) or len(others) != 1 or others[0] not in inputs:
            continue
        if len(subgraph.tensors[others[0]].shape) != 1:
            continue
        op.inputs = [*op.inputs[:2], others[0]]
        op.outputs = add.outputs
        op.builtinOptions.fusedActivationFunction = (
            add.builtinOptions.fusedActivationFunction
        )
        gone.append(add)
    subgraph.operators = [op for op in subgraph.operators if op not in gone]


def _schedule(subgraph: Any) -> None:
    """Each op right before it is needed: what it reads is then still near."""
    makers = {int(t): op for op in subgraph.operators for t in op.outputs}
    ordered: list[Any] = []
    seen: set[int] = set()

    def needs(op: Any) -> Iterator[Any]:
        return (makers[t] for t in map(int, op.inputs) if t in makers)

    stack = [(makers[int(t)], False) for t in reversed(list(subgraph.outputs))]
    while stack:
        op, ready = stack.pop()
        if ready:
            ordered.append(op)
        elif id(op) not in seen:
            seen.add(id(op))
            stack.append((op, True))
            stack.extend((need, False) for need in reversed(list(needs(op))))
    subgraph.operators = ordered

"""The part of pickle that describes PyTorch weights, interpreted, never executed.

``pickletools`` (standard library) splits the stream into opcodes; the machine below
gives a meaning to those that build plain containers and tensors, and to the few names
that PyTorch's ``state_dict`` files contain. Nothing is imported, nothing is called: a
hostile pickle can do no more than be refused.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np

from .errors import CheckpointError, CorruptFile, UnsafeFile, quoted
from .mapped import DTYPES

MAX_PICKLE = 4 << 20
"""Bytes; the largest OPT's pickle has 0.2 million."""

STORAGES = {
    f"torch.{name}Storage": DTYPES[dtype]
    for name, dtype in {
        "Double": "float64",
        "Float": "float32",
        "Half": "float16",
        "BFloat16": "bfloat16",
        "Long": "int64",
        "Int": "int32",
        "Short": "int16",
        "Char": "int8",
        "Byte": "uint8",
        "Bool": "bool",
    }.items()
}


@dataclass(frozen=True)
class Global:
    """A name that may appear; only this machine gives it a meaning."""

    name: str


@dataclass(frozen=True)
class Storage:
    """A block of ``size`` numbers, found elsewhere in the file under ``key``."""

    key: str
    dtype: np.dtype
    size: int


@dataclass(frozen=True)
class Strided:
    """A tensor: a strided view of a storage; sizes and strides count numbers."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]


def load(path: Path, stream: BytesIO) -> tuple[Any, dict[str, Storage]]:
    """The value of the next pickle in ``stream``, and the storages it mentions.

    Containers, numbers and strings, with :class:`Strided` for tensors; the stream is
    left after the pickle's end. Raises :class:`UnsafeFile` for a name or an opcode that
    no weights need, and :class:`CorruptFile` for anything that is not a pickle.
    """
    machine = _Machine(path)
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "STOP":
                return machine.stack.pop(), machine.storages
            machine.step(opcode.name, argument)
    except CheckpointError:
        raise
    except (ArithmeticError, LookupError, TypeError, ValueError, Warning) as e:
        raise CorruptFile(
            f"{path} holds a broken pickle: {' '.join(str(e).split())[:100]}"
        ) from None
    raise CorruptFile(f"{path} holds a pickle without an end")


class _Machine:
    """Pickle's stack and memo. A mark puts the stack below it aside."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.stack: list[Any] = []
        self.marks: list[list[Any]] = []
        self.memo: dict[int, Any] = {}
        self.storages: dict[str, Storage] = {}

    def step(self, name: str, argument: Any) -> None:
        """One opcode, by its name in ``pickletools``."""
        push, pop = self.stack.append, self.stack.pop
        match name:
            case "PROTO" | "FRAME":
                pass
            case name if name in _LITERALS:
                push(argument)
            case name if name in _CONSTANTS:
                push(_CONSTANTS[name]())
            case "MARK":
                self.marks.append(self.stack)
                self.stack = []
            case "POP":
                pop()
            case "TUPLE" | "LIST":
                items = self._pop_to_mark()
                self.stack.append(tuple(items) if name == "TUPLE" else items)
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                items = [pop() for _ in range(int(name[-1]))]
                push(tuple(reversed(items)))
            case "DICT":
                items = self._pop_to_mark()
                self.stack.append({})
                self._update(items)
            case "APPEND":
                self._extend([pop()])
            case "APPENDS":
                self._extend(self._pop_to_mark())
            case "SETITEM":
                value = pop()
                self._update([pop(), value])
            case "SETITEMS":
                self._update(self._pop_to_mark())
            case "PUT" | "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = self.stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = self.stack[-1]
            case "GET" | "BINGET" | "LONG_BINGET":
                push(self.memo[argument])
            case "GLOBAL":
                self._find(argument.replace(" ", "."))
            case "STACK_GLOBAL":
                attribute, module = pop(), pop()
                self._find(f"{_text(module)}.{_text(attribute)}")
            case "REDUCE":
                self._call(pop())
            case "BUILD":  # an OrderedDict's own attributes: the state's versions
                pop()
            case "BINPERSID":
                storage = self._storage(pop())
                if self.storages.setdefault(storage.key, storage) != storage:
                    raise ValueError("a storage is described in two ways")
                push(storage)
            case _:
                raise UnsafeFile(
                    f"{self.path} holds a pickle with the opcode {name}, which no "
                    "weights need; nothing of it was executed"
                )

    def _pop_to_mark(self) -> list[Any]:
        items, self.stack = self.stack, self.marks.pop()
        return items

    def _extend(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, list):
            raise TypeError("items are added to something that is not a list")
        target.extend(items)

    def _update(self, items: list[Any]) -> None:
        target = self.stack[-1]
        if not isinstance(target, dict):
            raise TypeError("entries are added to something that is not a dictionary")
        for key, value in zip(items[::2], items[1::2], strict=True):
            if not isinstance(key, (str, int)):
                raise TypeError("a key is neither text nor a number")
            target[key] = value

    def _find(self, name: str) -> None:
        if name not in _CALLABLE and name not in STORAGES:
            raise UnsafeFile(
                f"{self.path} holds a pickle that asks for {quoted(name)}, which no "
                "weights need; it was neither imported nor called"
            )
        self.stack.append(Global(name))

    def _call(self, arguments: Any) -> None:
        function = self.stack.pop()
        if not isinstance(function, Global) or function.name not in _CALLABLE:
            raise TypeError("something is called that is not a function")
        if not isinstance(arguments, tuple):
            raise TypeError("a function's arguments are not a tuple")
        self.stack.append(_CALLABLE[function.name](*arguments))

    def _storage(self, identity: Any) -> Storage:
        match identity:
            case ("storage", Global(name), str(key), str(), int(size)):
                return Storage(key, STORAGES[name], size)
            case ("storage", Global(name), str(key), str(), int(size), None):
                return Storage(key, STORAGES[name], size)
        raise ValueError("a storage is described in an unknown way")


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError("a name is not text")
    return value


def _rebuild_tensor(
    storage: Any, offset: Any, shape: Any, strides: Any, *_: Any
) -> Any:
    if not isinstance(storage, Storage):
        raise TypeError("a tensor has no storage")
    if not isinstance(shape, tuple) or not isinstance(strides, tuple):
        raise TypeError("a tensor has no shape")
    if len(shape) != len(strides):
        raise ValueError("a tensor has not as many sizes as strides")
    if not all(type(number) is int for number in (offset, *shape, *strides)):
        raise TypeError("a tensor's sizes are not integers")
    return Strided(storage, offset, shape, strides)


def _rebuild_parameter(data: Any, *_: Any) -> Any:
    return data


def _ordered_dict() -> dict:
    return {}


_CALLABLE: dict[str, Callable[..., Any]] = {
    "collections.OrderedDict": _ordered_dict,
    "torch._utils._rebuild_tensor": _rebuild_tensor,
    "torch._utils._rebuild_tensor_v2": _rebuild_tensor,
    "torch._utils._rebuild_parameter": _rebuild_parameter,
    "torch.Size": tuple,
}
_CONSTANTS: dict[str, Callable[[], Any]] = {
    "NONE": lambda: None,
    "NEWTRUE": lambda: True,
    "NEWFALSE": lambda: False,
    "EMPTY_TUPLE": tuple,
    "EMPTY_LIST": list,
    "EMPTY_DICT": dict,
}
_LITERALS = {
    *("INT", "BININT", "BININT1", "BININT2", "LONG", "LONG1", "LONG4"),
    *("FLOAT", "BINFLOAT", "UNICODE", "BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8"),
    *("STRING", "BINSTRING", "SHORT_BINSTRING", "BINBYTES", "SHORT_BINBYTES"),
}

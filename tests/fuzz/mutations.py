"""Changes to bytes, JSON and arrays, drawn from a numpy generator."""

from __future__ import annotations

import copy
import json
from typing import Any

import numpy as np

NUMBERS = (0, -1, 1, 2**31 - 1, 2**31, -(2**31) - 1, 2**63, 10**30, 1e-50, 1e300, -0.0)
TEXTS = ("", "\x1b[2J", "‮abc", "\0", "../../etc/passwd", "é" * 300, "nan", "%s%n")
VALUES = (*NUMBERS, *TEXTS, None, True, [], {}, [[[]]], {"a": {"b": []}})


def pick(rng: np.random.Generator, choices: Any) -> Any:
    """One of a sequence."""
    return choices[int(rng.integers(len(choices)))]


def changed_bytes(rng: np.random.Generator, data: bytes) -> bytes:
    """One to five bytes or blocks overwritten, flipped, cut out, put in or doubled."""
    changed = bytearray(data)
    for _ in range(rng.integers(1, 6)):
        at = int(rng.integers(len(changed) + 1))
        match rng.integers(5):
            case 0 if changed:
                changed[at % len(changed)] = int(rng.integers(256))
            case 1 if changed:
                changed[at % len(changed)] ^= 1 << int(rng.integers(8))
            case 2:
                del changed[at : at + int(rng.integers(1, 9))]
            case 3:
                changed[at:at] = rng.bytes(int(rng.integers(1, 9)))
            case 4:
                changed[at:at] = changed[at : at + int(rng.integers(1, 40))]
    return bytes(changed)


def changed_json(rng: np.random.Generator, text: str) -> bytes:
    """Values swapped for hostile ones, keys lost, nesting; at times no JSON at all."""
    if rng.random() < 0.15:
        return changed_bytes(rng, text.encode())
    if rng.random() < 0.03:
        depth = int(rng.integers(1, 100_000))
        return b"[" * depth + b"]" * depth
    tree = json.loads(text)
    for _ in range(rng.integers(1, 4)):
        _change(rng, tree)
    return json.dumps(tree).encode()


def _change(rng: np.random.Generator, tree: Any) -> None:
    """One value somewhere below ``tree``."""
    keys = list(tree) if isinstance(tree, dict) else list(range(len(tree)))
    if not keys:
        return
    key = pick(rng, keys)
    if isinstance(tree[key], dict | list) and tree[key] and rng.random() < 0.6:
        _change(rng, tree[key])
    elif isinstance(tree, dict) and rng.random() < 0.2:
        del tree[key]
    else:
        tree[key] = copy.deepcopy(pick(rng, VALUES))  # it may be changed in turn


def hostile_array(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    """Another type, another shape, or values that do not belong there."""
    match rng.integers(5):
        case 0:
            return array.astype(pick(rng, ["f4", "f8", "i8", "i4", "u1", "?", "c8"]))
        case 1:
            words = np.full(array.shape, b"word", object)
            return words if array.size else array
        case 2:
            return array[: int(rng.integers(array.shape[0] + 1))]
        case 3:
            shape = rng.integers(0, 4, int(rng.integers(0, 7)))
            return np.resize(array, shape) if array.size else np.zeros(shape)
        case _:
            return _hostile_values(rng, array)


def _hostile_values(rng: np.random.Generator, array: np.ndarray) -> np.ndarray:
    if array.dtype == object or not array.size:
        return array
    floats = (np.nan, np.inf, -np.inf, 1e38, -1.0)
    whole = (-1, -(2**31), 2**31 - 1, 10**6)
    changed = array.copy()
    value = pick(rng, floats if array.dtype.kind == "f" else whole)
    with np.errstate(over="ignore"):
        changed.reshape(-1)[int(rng.integers(array.size)) :] = np.array(value).astype(
            array.dtype
        )
    return changed

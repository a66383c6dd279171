"""Checkpoint files: one lazy mapping of canonical names to arrays, whatever the format.

weights = open_weights(resolve("facebook/opt-125m"))
weights["decoder.layers.0.fc1.weight"]      # [out, in], read-only, memory-mapped
"""

from .errors import (
    CheckpointError,
    CheckpointNotFound,
    CorruptFile,
    HubError,
    UnsafeFile,
    UnsupportedFile,
)
from .hub import resolve
from .mapped import DTYPES, aligned, chunks
from .opening import FORMATS, Weights, open_weights
from .writing import LazyArray, save_weights

__all__ = [
    "DTYPES",
    "FORMATS",
    "CheckpointError",
    "CheckpointNotFound",
    "CorruptFile",
    "HubError",
    "LazyArray",
    "UnsafeFile",
    "UnsupportedFile",
    "Weights",
    "aligned",
    "chunks",
    "open_weights",
    "resolve",
    "save_weights",
]

"""A small manifest, for tests that need one."""

from __future__ import annotations

from typing import Any

from optserve.runtime.contract import Manifest

FIELDS: dict[str, Any] = {
    "config": {"num_hidden_layers": 2, "num_attention_heads": 2, "hidden_size": 8},
    "framework": "tf",
    "compiler": "none",
    "weights_dtype": "float32",
    "cache_dtype": "float32",
    "signatures": ["prefill", "decode"],
    "max_positions": 128,
    "vocab_size": 100,
}


def manifest(**more: Any) -> Manifest:
    """A manifest that is accepted, some fields replaced."""
    return Manifest(**{**FIELDS, **more})

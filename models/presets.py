"""The published sizes of OPT, by name."""

from __future__ import annotations

from typing import Any

PRESETS: dict[str, dict[str, Any]] = {
    "125m": {
        "num_hidden_layers": 12,
        "hidden_size": 768,
        "num_attention_heads": 12,
    },
    "350m": {
        "num_hidden_layers": 24,
        "hidden_size": 1024,
        "num_attention_heads": 16,
        "do_layer_norm_before": False,
        "word_embed_proj_dim": 512,
    },
    "1.3b": {
        "num_hidden_layers": 24,
        "hidden_size": 2048,
        "num_attention_heads": 32,
    },
    "2.7b": {
        "num_hidden_layers": 32,
        "hidden_size": 2560,
        "num_attention_heads": 32,
    },
    "6.7b": {
        "num_hidden_layers": 32,
        "hidden_size": 4096,
        "num_attention_heads": 32,
    },
    "13b": {"num_hidden_layers": 40, "hidden_size": 5120, "num_attention_heads": 40},
    "30b": {"num_hidden_layers": 48, "hidden_size": 7168, "num_attention_heads": 56},
    "66b": {"num_hidden_layers": 64, "hidden_size": 9216, "num_attention_heads": 72},
    "175b": {"num_hidden_layers": 96, "hidden_size": 12288, "num_attention_heads": 96},
}
"""What distinguishes the published sizes; ``ffn_dim`` is 4 × ``hidden_size`` in all."""

"""The four classes behind one small face, the configurations to test them with, and
random weights."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
from optserve.models import config as config_module
from optserve.models.checkpoints import save_weights
from optserve.models.weights import weight_shapes

OPTConfig = config_module.OPTConfig

FEW = ("pre-LN", "post-LN, projections", "bias-free, affine-free, gelu", "untied")
"""Configurations that between them have every feature."""

_SMALL = {
    "vocab_size": 61,
    "hidden_size": 24,
    "num_hidden_layers": 2,
    "ffn_dim": 40,
    "num_attention_heads": 3,
    "max_position_embeddings": 32,
    "init_std": 0.3,
}
ONE_LAYER = "one layer, one head"
_ONE = {"num_hidden_layers": 1}
CONFIGS = {  # of two layers those in which layers differ in what they hand on
    "pre-LN": {},
    "post-LN, projections": {"do_layer_norm_before": False, "word_embed_proj_dim": 10},
    "pre-LN, projections": {
        "word_embed_proj_dim": 36,
        "activation_function": "gelu",
        **_ONE,
    },
    "post-LN, gelu": {
        "do_layer_norm_before": False,
        "activation_function": "gelu",
        **_ONE,
    },
    "no final norm": {"_remove_final_layer_norm": True, **_ONE},
    "bias-free, affine-free, gelu": {
        "enable_bias": False,
        "layer_norm_elementwise_affine": False,
        "activation_function": "gelu",
        **_ONE,
    },
    "bias-free": {"enable_bias": False, **_ONE},
    "affine-free": {"layer_norm_elementwise_affine": False, **_ONE},
    "untied": {"tie_word_embeddings": False, **_ONE},
    "untied, projections": {
        "tie_word_embeddings": False,
        "word_embed_proj_dim": 10,
        **_ONE,
    },
    ONE_LAYER: {"num_attention_heads": 1, **_ONE},
    "no padding token": {"pad_token_id": None, **_ONE},
}


def small_config(name: str = "pre-LN", **changes) -> OPTConfig:
    """One of ``CONFIGS``, without dropout unless ``changes`` say so."""
    return OPTConfig(**{**_SMALL, "dropout": 0.0, **CONFIGS[name], **changes})


def random_weights(config: OPTConfig, seed: int = 0) -> dict[str, np.ndarray]:
    """Weights by canonical name, none of them at a neutral value."""
    rng = np.random.default_rng(seed)

    def draw(name, shape):
        values = rng.normal(0, config.init_std, shape)
        return (values + name.endswith("norm.weight")).astype(np.float32)

    return {name: draw(name, shape) for name, shape in weight_shapes(config).items()}


def write_checkpoint(directory: Path, config: OPTConfig, weights=None) -> Path:
    """A checkpoint directory with random weights."""
    config.save_pretrained(directory)
    save_weights(directory, (weights or random_weights(config)).items())
    return directory


@dataclass(frozen=True)
class Kind:
    """One of the classes."""

    name: str
    framework: str  # "tf" or "flax"
    head: bool

    @property
    def cls(self):
        """The class itself."""
        import optserve.models

        return getattr(optserve.models, self.name)

    @property
    def main(self) -> str:
        """The output that the class is there for."""
        return "logits" if self.head else "last_hidden_state"

    def call(self, model, input_ids=None, **inputs) -> dict:
        """Outputs as numpy, past_key_values aside."""
        output = model(input_ids, **inputs)
        return {name: _numpy(value) for name, value in output.items()}

    def value(self, model, input_ids=None, **inputs) -> np.ndarray:
        """The main output alone."""
        return self.call(model, input_ids, **inputs)[self.main]


def _numpy(value):
    if isinstance(value, tuple | list):
        return [_numpy(v) for v in value]
    if isinstance(value, dict):
        return {k: _numpy(v) for k, v in value.items()}
    return np.asarray(value)


KINDS = {
    kind.name: kind
    for kind in (
        Kind("TFOPTModel", "tf", False),
        Kind("TFOPTForCausalLM", "tf", True),
        Kind("FlaxOPTModel", "flax", False),
        Kind("FlaxOPTForCausalLM", "flax", True),
    )
}


@cache
def checkpoint(base: Path, name: str) -> Path:
    """A checkpoint of a named configuration, written once below ``base``."""
    directory = base / "".join(c if c.isalnum() else "-" for c in name)
    return write_checkpoint(directory, small_config(name))


def tokens(config: OPTConfig, B: int, S: int, seed: int = 3) -> np.ndarray:
    """Random ids without the padding token."""
    return np.random.default_rng(seed).integers(3, config.vocab_size, [B, S])


def padded(lengths, S: int, side: str) -> np.ndarray:
    """A mask [B,S] with ``lengths`` real tokens, padding left, right or scattered."""
    mask = np.zeros([len(lengths), S], int)
    for row, length in zip(mask, lengths, strict=True):
        if side == "left":
            row[S - length :] = 1
        elif side == "right":
            row[:length] = 1
        elif side == "middle":
            row[: length // 2] = 1
            row[S - (length - length // 2) :] = 1
        else:
            row[np.random.default_rng(length).permutation(S)[:length]] = 1
    return mask


def close(actual, expected, keep=slice(None), tolerance: float = 2e-5) -> None:
    """Assert equality within ``tolerance`` of the expected values' scale."""
    actual = np.asarray(actual, np.float64)
    expected = np.asarray(expected, np.float64)
    assert actual.shape == expected.shape
    actual, expected = actual[keep], expected[keep]
    error = np.abs(actual - expected).max() / np.abs(expected).max()
    assert error <= tolerance, f"relative error {error:.1e}"

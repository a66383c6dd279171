"""What the fields of a configuration must be like, whatever wrote it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

ACTIVATIONS = ("relu", "gelu")  # "gelu" is the exact one, with erf

_LARGEST_SIZE = 2**31 - 1
_MOST_LAYERS = 10_000
"""A hundred times as many as any published size: each has names and shapes, which are
listed before anything is read or estimated."""

_SIZES = (
    "vocab_size",
    "hidden_size",
    "num_hidden_layers",
    "ffn_dim",
    "num_attention_heads",
    "max_position_embeddings",
    "word_embed_proj_dim",
)
_PROBABILITIES = ("dropout", "attention_dropout", "layerdrop")
_TOKENS = ("pad_token_id", "bos_token_id", "eos_token_id")
_BOOLEANS = (
    "do_layer_norm_before",
    "_remove_final_layer_norm",
    "use_cache",
    "enable_bias",
    "layer_norm_elementwise_affine",
    "tie_word_embeddings",
    "output_attentions",
    "output_hidden_states",
    "return_dict",
)


class ConfigError(ValueError):
    """A configuration that describes no OPT model; the message names the field."""


def check_fields(values: Mapping[str, Any]) -> None:
    """Raise :class:`ConfigError` naming the first of ``values`` that fits no model.

    ``values`` are all fields of :class:`~optserve.models.OPTConfig` by name.
    """
    _check_types(values)
    pad, vocabulary = values["pad_token_id"], values["vocab_size"]
    if pad is not None and pad >= vocabulary:
        raise ConfigError(
            f"pad_token_id should be below vocab_size {vocabulary}, got {pad}"
        )
    if values["activation_function"] not in ACTIVATIONS:
        raise ConfigError(
            f"activation_function should be one of {', '.join(ACTIVATIONS)}, "
            f"got {shown(values['activation_function'])}"
        )
    hidden, heads = values["hidden_size"], values["num_attention_heads"]
    if hidden % heads:
        raise ConfigError(
            f"hidden_size {hidden} is not a multiple of num_attention_heads {heads}"
        )


def _check_types(values: Mapping[str, Any]) -> None:
    size = f"a whole number from 1 to {_LARGEST_SIZE}"
    _check(values, _SIZES, size, lambda x: _is_int(x) and 0 < x <= _LARGEST_SIZE)
    _check(
        values,
        ("num_hidden_layers",),
        f"at most {_MOST_LAYERS}",
        lambda x: x <= _MOST_LAYERS,
    )
    _check(values, _PROBABILITIES, "in [0, 1)", lambda x: _is_number(x) and 0 <= x < 1)
    _check(values, ("init_std",), "0 or more", lambda x: _is_number(x) and x >= 0)
    _check(values, _BOOLEANS, "true or false", lambda x: isinstance(x, bool))
    _check(values, _TOKENS, "an integer or null", lambda x: x is None or _is_int(x))


def _check(
    values: Mapping[str, Any],
    names: tuple[str, ...],
    expected: str,
    right: Callable[[Any], bool],
) -> None:
    for name in names:
        if not right(values[name]):
            raise ConfigError(f"{name} should be {expected}, got {shown(values[name])}")


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def shown(value: object) -> str:
    """A value from a file, for a message: printable and short, whatever it holds."""
    text = ascii(value)
    return text if len(text) <= 80 else f"{text[:80]}…"

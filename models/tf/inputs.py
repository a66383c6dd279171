"""The forms in which the Keras classes take their inputs, and what may be in them."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tensorflow as tf

from ..config import OPTConfig
from .model import IGNORED_LABEL


def unpack(given: dict[str, Any]) -> dict[str, Any]:
    """Spread a dict, list or tuple that came as the first argument over the others.

    ``given`` holds ``call``'s arguments in their order. A list is in that order too,
    except that a second tensor of rank 2 is always the attention mask.
    """
    names = list(given)
    first = given[names[0]]
    if isinstance(first, Mapping):
        arguments = dict(first)
    elif isinstance(first, list | tuple) and not is_token_list(first):
        order = list(names)
        mask_second = len(first) > 1 and len(getattr(first[1], "shape", ())) == 2
        if mask_second and names[1] == "past_key_values":
            order.remove("past_key_values")
        if mask_second and len(first) == 3 and _is_token_types(first):
            first = first[:2]
        if len(first) > len(order):
            raise ValueError(
                f"a list of inputs has at most {len(order)} entries "
                f"({', '.join(order)}), got {len(first)}"
            )
        arguments = dict(zip(order, first, strict=False))
    else:
        return given
    if unknown := arguments.keys() - set(names):
        raise ValueError(
            f"unknown input {sorted(unknown)[0]!r}; there are {', '.join(names)}"
        )
    return {**given, names[0]: None} | arguments


def _is_token_types(inputs: Any) -> bool:
    """Whether the third of a list's tensors is the documented ``token_type_ids``."""
    ids, _, third = inputs
    dtype = getattr(third, "dtype", None)
    return (
        dtype is not None
        and tf.as_dtype(dtype).is_integer
        and tuple(third.shape) == tuple(ids.shape)
    )


def as_dict(x: Any) -> Any:
    """A mapping of any kind (a tokenizer's) as the dict that Keras knows."""
    if not isinstance(x, Mapping) or isinstance(x, dict):
        return x
    return {name: tf.convert_to_tensor(value) for name, value in x.items()}


def is_token_list(x: Any) -> bool:
    """Whether ``x`` is token ids as nested lists, and not a list of inputs."""
    return isinstance(x, list | tuple) and bool(x) and isinstance(x[0], int | list)


def refuse(x: Any, bad: Any, message: str) -> Any:
    """``x``, and an InvalidArgumentError with ``message`` where ``bad`` is true.

    Inside a function compiled with XLA nothing can be raised; there ``x`` passes.
    """
    if tf.executing_eagerly() and tf.is_tensor(bad):
        if bool(bad):
            raise tf.errors.InvalidArgumentError(None, None, message)
        return x
    with tf.control_dependencies([tf.debugging.Assert(~bad, [message, x])]):
        return tf.identity(x)


def check_ids(config: OPTConfig, input_ids: Any, name: str = "input_ids") -> Any:
    """``input_ids`` [B,S] as an integer tensor, each of them in the vocabulary."""
    ids = tf.convert_to_tensor(input_ids)
    if not ids.dtype.is_integer:
        raise ValueError(f"{name} should be int32 or int64, got {ids.dtype.name}")
    if ids.dtype.size < 4:  # too few for the gather
        ids = tf.cast(ids, tf.int32)
    if ids.shape.rank not in (2, None):
        raise ValueError(f"{name} should have shape (B, S), got {ids.shape}")
    V = config.vocab_size
    bad = tf.reduce_any((ids < 0) | (ids >= tf.cast(V, ids.dtype)))
    return refuse(ids, bad, f"{name} should be from 0 to {V - 1} (vocab_size {V})")


def check_labels(config: OPTConfig, labels: Any, logits: Any) -> Any:
    """``labels`` as an integer tensor of the shape that ``logits`` [B,S,V] have."""
    labels = tf.convert_to_tensor(labels)
    if not labels.dtype.is_integer or not labels.shape.is_compatible_with(
        logits.shape[:2]
    ):
        raise ValueError(
            f"labels should be integers of shape {tuple(logits.shape[:2])}, "
            f"got {labels.dtype.name} {tuple(labels.shape)}"
        )
    labels = tf.cast(labels, tf.int32)
    counts = labels != IGNORED_LABEL
    checked = check_ids(config, tf.where(counts, labels, 0), "labels")
    return tf.where(counts, checked, IGNORED_LABEL)


def check_mask(mask: Any, B: Any, T: Any) -> Any:
    """``mask`` [B,T] as int32, ones by default."""
    if mask is None:
        return tf.ones([B, T], tf.int32)
    mask = tf.cast(tf.convert_to_tensor(mask), tf.int32)
    expected = [size if isinstance(size, int) else None for size in (B, T)]
    if not mask.shape.is_compatible_with(expected):
        raise ValueError(
            "attention_mask should cover the past and the new tokens, "
            f"shape {tuple(expected)}, got {tuple(mask.shape)}"
        )
    return mask


def check_length(config: OPTConfig, mask: Any) -> Any:
    """``mask`` [B,T], which marks no more tokens than there are positions."""
    limit = config.max_position_embeddings
    T = mask.shape[1]
    if T is not None and limit >= T:
        return mask
    bad = tf.reduce_any(tf.reduce_sum(mask, axis=1) > limit)
    return refuse(mask, bad, f"the tokens exceed max_position_embeddings {limit}")


def check_positions(config: OPTConfig, position_ids: Any) -> Any:
    """``position_ids`` [B,S] as int32: −1 for padding, else a position there is."""
    limit = config.max_position_embeddings
    positions = tf.cast(tf.convert_to_tensor(position_ids), tf.int32)
    bad = tf.reduce_any((positions < -1) | (positions >= limit))
    return refuse(
        positions,
        bad,
        f"position_ids should be from -1 (padding) to {limit - 1} "
        f"(max_position_embeddings {limit})",
    )


def check_head_mask(config: OPTConfig, head_mask: Any) -> Any:
    """``head_mask`` as a tensor [L,H], or None."""
    if head_mask is None:
        return None
    head_mask = tf.convert_to_tensor(head_mask)
    expected = (config.num_hidden_layers, config.num_attention_heads)
    if not head_mask.shape.is_compatible_with(expected):
        raise ValueError(
            f"head_mask should have shape {expected}, got {head_mask.shape}"
        )
    return head_mask


def pairs(
    config: OPTConfig, past_key_values: Any, dtype: Any
) -> list[tuple[Any, Any]] | None:
    """The cache as L (keys, values); a layer came as a tensor (2,B,H,T,D) or a pair."""
    if past_key_values is None:
        return None
    L, H, D = config.num_hidden_layers, config.num_attention_heads, config.head_dim
    if len(past_key_values) != L:
        raise ValueError(
            f"past_key_values should have {L} layers, got {len(past_key_values)}"
        )
    layers = [(layer[0], layer[1]) for layer in past_key_values]
    for k, v in layers:
        for x in (k, v):
            sizes = tuple(x.shape)
            if (
                len(sizes) != 4
                or sizes[1] not in (H, None)
                or sizes[3] not in (D, None)
            ):
                raise ValueError(
                    "keys and values in past_key_values should have shape "
                    f"(B, {H}, T, {D}), got {sizes}"
                )
    return [(tf.cast(k, dtype), tf.cast(v, dtype)) for k, v in layers]

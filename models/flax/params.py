"""The Flax classes' ``params`` tree: Transformers' names, dense kernels [in, out].

model/decoder/layers/0/self_attn/q_proj/kernel      (no ``model`` without a head)
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax.core import unfreeze
from flax.traverse_util import flatten_dict, unflatten_dict

from ..checkpoints import aligned, chunks
from ..config import OPTConfig
from ..weights import Shape, weight_shapes

Tree = dict[str, Any]


def plain(tree: Mapping[str, Any]) -> Tree:
    """A tree as plain dicts: flax's ``FrozenDict`` is taken as well."""
    given: Any = tree  # flax names dicts and its own class only
    return dict(unfreeze(given))


def by_path(tree: Mapping[str, Any]) -> dict[tuple[str, ...], Any]:
    """The arrays of a tree by their path in it."""
    flat: Any = flatten_dict(plain(tree))  # flax types leaves as trees again
    return flat


def tree_path(name: str, *, head: bool) -> tuple[str, ...]:
    """Where a weight is in ``params``; below ``model`` in the class with a head."""
    *parts, leaf = name.split(".")
    if leaf == "weight":
        if parts[-1].startswith("embed_"):
            leaf = "embedding"
        else:
            leaf = "scale" if parts[-1].endswith("norm") else "kernel"
    root = ("model",) if head and parts[0] == "decoder" else ()
    return (*root, *parts, leaf)


def tree_shape(name: str, shape: Shape) -> Shape:
    """A weight's shape in ``params``: dense kernels are the other way round."""
    return shape[::-1] if tree_path(name, head=True)[-1] == "kernel" else shape


def as_array(value: np.ndarray) -> Any:
    """``value`` as a JAX array. An array in a file is read part by part, into memory
    that JAX takes over: nothing of it is there twice."""
    copy = aligned(value.shape, value.dtype)
    for part, rows in chunks(value):
        copy[part] = rows
    return jax.device_put(copy)  # jnp.asarray would copy


def random_params(config: OPTConfig, rng: Any, *, head: bool) -> Tree:
    """Fresh weights as for training: normal with ``init_std``, norms 1, biases 0.

    The padding token's embedding is zero, as in Transformers' PyTorch class.
    """
    tree = {}
    for i, (name, shape) in enumerate(weight_shapes(config, head=head).items()):
        path = tree_path(name, head=head)
        if path[-1] == "bias":
            value = jnp.zeros(shape)
        elif path[-1] == "scale":
            value = jnp.ones(shape)
        else:
            value = _normal(rng, i, config.init_std, tree_shape(name, shape))
        if name == "decoder.embed_tokens.weight" and config.pad_token_id is not None:
            value = value.at[config.pad_token_id].set(0)
        tree[path] = value
    return unflatten_dict(tree)


@partial(jax.jit, static_argnums=3)
def _normal(rng: Any, i: int, std: float, shape: Shape) -> Any:
    return std * jax.random.normal(jax.random.fold_in(rng, i), shape)


def cast_floating(params: Tree, dtype: Any, mask: Any = None) -> Tree:
    """``params`` with floating leaves in ``dtype``; where ``mask`` (a tree) is False,
    as they are."""

    def cast(x: Any, chosen: Any = True) -> Any:
        return (
            x.astype(dtype) if chosen and jnp.issubdtype(x.dtype, jnp.floating) else x
        )

    return (
        jax.tree.map(cast, params) if mask is None else jax.tree.map(cast, params, mask)
    )


def resized(
    config: OPTConfig, vocab_size: int, params: Tree, rng: Any, *, head: bool
) -> Tree:
    """``params`` for another vocabulary size: old rows stay, new ones are random."""
    config = OPTConfig.from_dict(config.to_dict() | {"vocab_size": vocab_size})
    fresh = by_path(random_params(config, rng, head=head))

    def resize(path: tuple[str, ...], old: Any) -> Any:
        new = fresh[path]
        if old.shape == new.shape:
            return old
        axis = 1 if path[-1] == "kernel" else 0  # an untied head is [W, V]
        kept = jax.lax.slice_in_dim(old, 0, min(old.shape[axis], vocab_size), axis=axis)
        more = jax.lax.slice_in_dim(new, kept.shape[axis], vocab_size, axis=axis)
        return jnp.concatenate([kept, more.astype(old.dtype)], axis=axis)

    return unflatten_dict(
        {path: resize(path, old) for path, old in by_path(params).items()}
    )

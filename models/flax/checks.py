"""What may be in the Flax classes' inputs.

Arrays are checked before the computation; what is not JAX's yet is checked by numpy,
which compiles nothing. In a trace (``jit``, ``vmap``, …) the program
itself checks, through a primitive that calls back to Python; an exported program
(``jax.export``, ``jax2tf``) can't call back and goes without: ids and positions are
clipped to their tables there.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import ShapedArray, Tracer
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from ..config import OPTConfig
from .model import positions_from_mask


def check_inputs(
    config: OPTConfig,
    input_ids: Any,
    attention_mask: Any,
    position_ids: Any,
    past: Mapping[str, Any] | None,
) -> tuple[Any, Any, Any]:
    """Ids, mask and positions as arrays; ValueError for what cannot be.

    The mask has the cache's length T where there is one. In a trace, values are
    checked when the program runs.
    """
    ids = _whole_numbers(_array(input_ids))
    if ids.ndim != 2:
        raise ValueError(f"input_ids should have shape (B, S), got {ids.shape}")
    B, S = ids.shape
    if past is not None and "layers" not in past:
        raise ValueError("past_key_values should be what init_cache or a call returned")
    kept, _, T, _ = (B, 0, S, 0) if past is None else past["layers"][0][0].shape
    if kept != B or T < S:
        raise ValueError(
            f"past_key_values hold {kept} rows of {T} tokens, input_ids have {B} of {S}"
        )
    if past is not None and (attention_mask is None or position_ids is None):
        raise ValueError(
            "past_key_values need position_ids and an attention_mask of the cache's "
            f"full length, shape ({B}, {T})"
        )
    mask = library_of(ids).ones([B, T], np.int32)
    if attention_mask is not None:
        mask = _array(attention_mask).astype(np.int32)
    if mask.shape != (B, T):
        raise ValueError(
            f"attention_mask should have shape ({B}, {T}), got {mask.shape}"
        )
    if position_ids is None:
        positions = positions_from_mask(mask)
    else:
        positions = _array(position_ids).astype(np.int32)
        positions = library_of(positions).broadcast_to(positions, (B, S))
    end = 0 if past is None else past["index"] + S
    extremes = (
        ids.min(initial=0),
        ids.max(initial=0),
        positions.min(initial=0),
        positions.max(initial=0),
        end,
    )
    if any(isinstance(x, Tracer) for x in extremes):
        packed = jnp.stack([jnp.asarray(x, jnp.int32) for x in extremes])
        ids = jnp.asarray(ids)
        ids += _check.bind(packed, config=config, T=T).astype(ids.dtype)
    else:
        refuse(config, T, *map(int, extremes))
    if isinstance(ids, np.ndarray):
        ids = ids.astype(np.int32)
    return ids, mask, positions


def library_of(x: Any) -> Any:
    """Whose array it is: numpy, or JAX's numpy, which compiles each operation."""
    return np if isinstance(x, np.ndarray) else jnp


def _array(x: Any) -> Any:
    """What JAX has, or a list of such, is JAX's; everything else becomes numpy's."""
    held = any(isinstance(leaf, jax.Array) for leaf in jax.tree.leaves(x))
    return (jnp if held else np).asarray(x)


def _whole_numbers(ids: Any) -> Any:
    """Ids as integers; ValueError for others, and for floats that are not whole."""
    if jnp.issubdtype(ids.dtype, jnp.integer):
        return ids
    whole = jnp.issubdtype(ids.dtype, jnp.floating)
    if whole and not isinstance(ids, Tracer):
        whole = bool((ids == library_of(ids).rint(ids)).all())
    if not whole:
        raise ValueError(
            f"input_ids should be int32 or int64 (or whole numbers), got {ids.dtype}"
        )
    return ids.astype(np.int32)


def refuse(
    config: OPTConfig, T: int, id_min: int, id_max: int, at_min: int, at_max: int, end
) -> None:
    """Raise ValueError naming the limit that the extremes pass."""
    V, limit = config.vocab_size, config.max_position_embeddings
    if id_min < 0 or id_max >= V:
        raise ValueError(
            f"input_ids should be from 0 to {V - 1} (vocab_size {V}), "
            f"got {id_min} to {id_max}"
        )
    if at_min < -1 or at_max >= limit:
        raise ValueError(
            f"positions should be from -1 (padding) to {limit - 1} "
            f"(max_position_embeddings {limit}), got {at_min} to {at_max}"
        )
    if end > T:
        raise ValueError(f"the cache holds {T} tokens, {end} would be in it")


_check = Primitive("opt_check_inputs")
"""Extremes [..., 5] → 0, int32; the result is added to the ids to keep the check."""


def _on_host(packed: Any, *, config: OPTConfig, T: int) -> Any:
    for extremes in np.asarray(packed).reshape(-1, 5):
        refuse(config, T, *map(int, extremes))
    return np.zeros([], np.int32)


def _in_program(packed: Any, *, config: OPTConfig, T: int) -> Any:
    def host(packed):
        return _on_host(packed, config=config, T=T)

    return jax.pure_callback(host, jax.ShapeDtypeStruct([], jnp.int32), packed)


def _lower(ctx, packed, *, config: OPTConfig, T: int):
    exported = ctx.module_context.lowering_parameters.for_export
    rule = (lambda *_, **__: jnp.zeros([], jnp.int32)) if exported else _in_program
    lower = mlir.lower_fun(rule, multiple_results=False)
    return lower(ctx, packed, config=config, T=T)


def _batch(packed, axes, **static):
    moved = jnp.moveaxis(packed[0], axes[0], 0)
    return _check.bind(moved, **static), None  # None: one result for all


_check.def_impl(_on_host)
_check.def_abstract_eval(lambda packed, **_: ShapedArray((), jnp.dtype(jnp.int32)))
batching.primitive_batchers[_check] = _batch
mlir.register_lowering(_check, _lower)

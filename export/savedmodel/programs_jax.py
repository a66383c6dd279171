"""JAX functions of stored weights as programs that XLA compiles, one for each shape."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import tensorflow as tf
from jax.experimental import jax2tf

from ...models.config import OPTConfig
from ...runtime.contract import CacheLayout
from ..weights import assemble
from . import paged_cache
from .matmul_jax import stored_matrix

_MOST_PAGES_BYTES = 8 << 30
"""Of one program's pages. They are reserved only, but no system reserves any number."""


@dataclass(frozen=True)
class JaxPrograms:
    """Makes programs of one model that read its cache in pages.

    ``pages`` of ``slots`` are what the largest cache takes.
    """

    config: OPTConfig
    stored: Mapping[str, tf.Variable]
    layout: CacheLayout
    pages: int
    slots: int

    def program(self, function: Callable[..., Any], *inputs: Any) -> Any:
        """``function(params, *inputs)`` of JAX arrays as a compiled one of tensors.

        ``inputs`` are the tensors' specifications. Whoever calls it, it is one module.
        """

        def run(stored, *inputs):
            params = assemble(
                self.config, stored, lambda _, *parts: stored_matrix(*parts)
            )
            return function(params, *inputs)

        converted = jax2tf.convert(
            run, with_gradient=False, native_serialization_platforms=("cpu",)
        )
        return tf.function(
            lambda *inputs: converted(dict(self.stored), *inputs),
            input_signature=inputs,
            autograph=False,
            jit_compile=True,
        )

    def affordable(self, rows: Sequence[int]) -> tuple[int, ...]:
        """``rows``, or fewer where their pages would be too many to reserve."""
        kv, _, _ = self.pages_spec(1)
        most = max(1, _MOST_PAGES_BYTES // (4 * kv.shape.num_elements()))
        return tuple(sorted({min(size, most) for size in rows}))

    def pages_spec(self, rows: int) -> paged_cache.Pages:
        """What a program of ``rows`` gets as its cache."""
        layout, pages = self.layout, self.pages
        kv = [layout.layers, 2, rows, layout.heads, self.slots, layout.head_dim]
        return paged_cache.Pages(
            tf.TensorSpec([pages, *kv]), int32(pages, rows), int32()
        )

    def paged(self, rows: int, cache, length) -> paged_cache.Pages:
        """The wire's ``cache`` in pages, of which a row uses ``length`` [B] slots."""
        pages, slots = self.pages, self.slots
        empty = paged_cache.empty(self.layout, rows, pages=pages, slots=slots)
        return paged_cache.append(empty, cache, length, self.layout.dtype)


def stored_once(function: Callable[..., Any], *inputs: Any) -> Any:
    """``function`` of tensors as one that all signatures call.

    Else each of them would hold all of it, and a server, which prepares signatures one
    by one, would take that many times as long to be ready.
    """
    return tf.function(function, input_signature=inputs, autograph=False)


def int32(*shape: int | None) -> tf.TensorSpec:
    """The specification of such a tensor."""
    return tf.TensorSpec(list(shape), tf.int32)


def float32(*shape: int | None) -> tf.TensorSpec:
    """The specification of such a tensor."""
    return tf.TensorSpec(list(shape))

"""What all layers of one call share, whatever the framework."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from .config import OPTConfig

Cache = Any
"""What a layer keeps between calls; only the ``store`` that made it looks inside."""
Store = Callable[[Cache, Any, Any], tuple[Any, Any, Cache]]
"""``store(past, k, v)`` with new k, v [B,H,S,D]: keys and values to attend to
[B,H,T,D], and the layer's cache after it."""

Attend = Callable[[Any, Any, Any], Any]
"""``attend(q, keys, values)`` with q [B,H,S,D] and what ``store`` gave: [B,H,S,D]."""

FusedAttention = Callable[[Any, Cache], tuple[Any, Cache]]
"""``attend(qkv, past)`` with one matrix's queries, keys and values [N,3E]: context
[N,E], and the layer's cache after it."""

RNG_SITES = 4
"""How many numbers one layer's random draws take: see ``dropout`` and ``layer``."""


@dataclass(frozen=True)
class LayerContext:
    """The arguments of ``layer`` that are the same for all layers of a call.

    ``head_mask`` is [L,H] for the stack and [H] for one layer (:meth:`of_layer`).
    """

    config: OPTConfig
    batch_size: Any  # B
    bias: Any  # [B,1,S,T] float32, added to the scores; None: all attend to all
    store: Store
    head_mask: Any = None
    rng: Any = None  # None: no dropout
    attend: Attend | None = None  # None: the framework's own softmax attention
    attend_fused: FusedAttention | None = None  # in place of both store and attend

    def of_layer(
        self, i: Any, fold_in: Callable[[Any, Any], Any], head_mask: Any = None
    ) -> LayerContext:
        """The context of layer ``i``: its row of the head mask and its random numbers.

        ``fold_in`` is the framework's; a scan, which has the layer's row at hand, gives
        it as ``head_mask``.
        """
        if head_mask is None and self.head_mask is not None:
            head_mask = self.head_mask[i]
        rng = None if self.rng is None else fold_in(self.rng, RNG_SITES * i)
        return replace(self, head_mask=head_mask, rng=rng)
